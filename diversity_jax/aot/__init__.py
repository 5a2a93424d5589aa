"""Ahead-of-time compilation of the training step for chips that are absent: memory, traffic, and how fast it can be."""
