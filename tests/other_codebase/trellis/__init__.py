"""A SeqIO codebase of somebody else with tasks of ten kinds, as T5's, ByT5's and their heirs register them."""
