"""A small codebase of somebody else: its own SeqIO tasks and its own trainer, which knows nothing of this project."""
