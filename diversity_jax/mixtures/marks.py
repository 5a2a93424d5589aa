"""Tokens of conversations as they lie on disk: uint32, the id in the low 30 bits and two bits about it.

Attention stays inside an example because segments and positions are read from START; end-of-text may well stand within one.
"""

import numpy as np

DTYPE = "<u4"
TARGET = np.uint32(1 << 31)
"""On every token of an answer: what the loss counts. Never on the first token of an example."""
START = np.uint32(1 << 30)
"""On the first token of every example."""
ID_BITS = np.uint32((1 << 30) - 1)
