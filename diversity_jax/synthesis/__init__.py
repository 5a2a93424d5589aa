"""Synthetic components: documents written by language models, steered by their diversity, and demo text."""
