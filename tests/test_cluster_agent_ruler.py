"""A ruler reads every text for itself: neither its neighbours nor what follows its first words change the vector."""

import numpy as np
import pytest

from diversity_jax.cluster_agent import ruler
from diversity_jax.core.errors import InputError

TEXTS = ["The parliament votes on the new law on Monday.", "Whisk the eggs with sugar.", "", " \n", "Ministers vote."]


def test_vectors_are_of_unit_length_and_depend_on_the_text_alone():
    together = ruler.default_ruler().embed(TEXTS)
    alone = np.concatenate([ruler.default_ruler().embed([text]) for text in TEXTS])
    assert (together == alone).all()
    assert together.dtype == np.float32
    assert np.allclose(np.linalg.norm(together, axis=1), [1, 1, 0, 0, 1])
    assert together[0] @ together[4] > 0.2 > together[0] @ together[1]


def test_only_the_first_words_are_read():
    text = "one two three four five six seven"
    cut = ruler.default_ruler().embed([text, "one two  three\nand another end"], words=3)
    assert (cut[0] == cut[1]).all()
    assert (cut[0] == ruler.default_ruler().embed(["one two three"])[0]).all()


def test_a_missing_package_is_one_line(monkeypatch):
    monkeypatch.setattr(ruler, "PACKAGE", "no-such-package-here")
    ruler.default_ruler.cache_clear()
    with pytest.raises(InputError, match="pip install --no-deps no-such-package-here"):
        ruler.default_ruler()
