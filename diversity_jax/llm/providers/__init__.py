"""Providers of language models: the table in `registry`, and the modules that it names."""
