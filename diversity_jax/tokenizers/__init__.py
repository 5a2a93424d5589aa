"""Tokenizers: text to ids and back, chat templates, and the tokenizer files of a model."""
