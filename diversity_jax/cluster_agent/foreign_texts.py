"""Texts that are foreign to any corpus in their subject, and as near as can be to the samples beside them in form.

A judge that groups by form or length alone then puts the foreign text with samples, and one that reads does not. Texts
are kept in several forms (`planted_texts.json`); the form nearest to the samples' is taken, at their usual length.
"""

from collections.abc import Mapping, Sequence
import functools
import itertools
from pathlib import Path
import random
import re
import statistics
from typing import Any

import numpy as np

from diversity_jax.core.files import read_json
from diversity_jax.core.words import words

_LETTERS_OF_A_WORD = 4  # at least, or function words would decide
_LOOKED_AT_CHARACTERS = 600  # of a text
_LEAST_CHARACTERS = 40  # of a foreign text, under which its subject would be cut away with it
_CODE = re.compile(r"[{}()\[\]=;<>_]")

PLANTED_TEXTS: Mapping[str, Any] = read_json(Path(__file__).with_name("planted_texts.json"))
# By form. Subjects far apart, so that whatever a corpus is about at least one of them is foreign to it.
FOREIGN_TEXTS: Mapping[str, Sequence[str]] = PLANTED_TEXTS["foreign"]


def foreign_text(samples: Sequence[str], generator: random.Random) -> str:
    """A text of the form and median length of `samples` that shares the fewest longer words with them, the first such
    after a random start. Where one is too short, others of its form follow.
    """
    form = _nearest_form(samples)
    texts, start = FOREIGN_TEXTS[form], int(generator.random() * len(FOREIGN_TEXTS[form]))
    shown = set().union(*map(_words, samples))
    turned = [(start + turn) % len(texts) for turn in range(len(texts))]
    ordered = [texts[number] for number in sorted(turned, key=lambda number: len(shown & _words(texts[number])))]
    length = max(_LEAST_CHARACTERS, int(statistics.median(map(len, samples))))
    joined, following = ordered[0], itertools.cycle(ordered[1:])
    while len(joined) < length:
        further = next(following)
        joined += ("\n" if "\n" in further else " ") + further
    return _cut(joined, length)


def _cut(text: str, length: int) -> str:
    """The text up to the last end of a word within `length`."""
    if len(text) <= length:
        return text.strip()
    head = re.match(r".*(?=\s)", text[: length + 1], re.DOTALL)
    return (head.group() if head and len(head.group()) >= length // 2 else text[:length]).strip()


@functools.lru_cache(maxsize=4096)
def _words(text: str) -> frozenset[str]:
    found = words(text[:_LOOKED_AT_CHARACTERS])
    return frozenset(word for word in found if len(word) >= _LETTERS_OF_A_WORD and word.isalpha())


@functools.lru_cache(maxsize=4096)
def _form(text: str) -> np.ndarray:
    """[6] of a text: questions, lines, code characters, capitals at the start, full stops, and words of a sentence."""
    head = text[:_LOOKED_AT_CHARACTERS]
    letters, words = max(len(head), 1), max(len(head.split()), 1)
    stops = sum(head.count(mark) for mark in ".!?")
    return np.array(
        [
            float("?" in head),
            min(1.0, 40 * head.count("\n") / letters),
            min(1.0, 15 * len(_CODE.findall(head)) / letters),
            float(head[:1].isupper()),
            float(head.rstrip()[-1:] in ".!?"),
            min(1.0, words / (40 * max(stops, 1))) if stops else 0.0,
        ]
    )


@functools.cache
def _mean_forms() -> Mapping[str, np.ndarray]:
    return {form: np.mean([_form(text) for text in texts], axis=0) for form, texts in FOREIGN_TEXTS.items()}


def _nearest_form(samples: Sequence[str]) -> str:
    """The form of the most samples, each counted for the one that it is nearest to."""
    means = _mean_forms()
    nearest = [min(means, key=lambda form: float(np.abs(means[form] - _form(text)).sum())) for text in samples]
    return max(means, key=nearest.count)
