"""Providers of language models: one entry in `registry` each, and the modules that the entries name."""
