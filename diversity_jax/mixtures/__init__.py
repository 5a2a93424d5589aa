"""Mixtures: which text is trained on and in which shares, decided by measured diversity."""
