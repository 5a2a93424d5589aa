"""A reader for each kind of source; `corpus.sources` lists them."""
