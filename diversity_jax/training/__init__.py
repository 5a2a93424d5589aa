"""Training: optimizer, step, loop, checkpoints and what is measured while it runs."""
