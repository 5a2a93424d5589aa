"""Small labelled corpora, written for this project, whose diversity is known: what a judge is examined on, and the
pairs of known relation on which the threshold of an embedding judge is set.

The texts in `exam_texts.json` are about 24 subjects in 12 pairs of neighbours (baking bread, brewing beer), ten English
texts of 45 to 70 words each that name their subject within the first 20; four subjects also in five styles; and six
subjects in twelve further languages. Every text is of exactly one subject, which is its label throughout.

Texts planted beside samples (`foreign_text`) are foreign to any corpus in their subject, and as near as can be to the
samples in form: a judge that groups by form or length alone then puts them with samples, and one that reads does not.
They are kept in several forms (`planted_texts.json`); the form nearest to that of the samples is taken, at their usual
length.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
import functools
import itertools
from pathlib import Path
import random
import re
import statistics
from types import MappingProxyType
from typing import Any

import numpy as np

from diversity_jax.cluster_agent.text_cleaning import child_seed, random_order
from diversity_jax.core.errors import InputError
from diversity_jax.core.files import content_hash, read_json
from diversity_jax.core.words import first_words, words
from diversity_jax.corpus.document import Document

_FAR_APART = ("bread", "volcanoes", "taxes", "dentistry", "planets", "cycling")
_NEIGHBOUR_PAIRS = 6  # in the corpus "neighbours"
_ZIPF_LARGEST = 20  # texts of the commonest subject in "skewed"; the subject at rank r has a share 1 / r of them
_CUT_WORDS = (15, 30, 45, 1000)  # of the texts of "lengths", in turn; the last one leaves a text whole


@dataclass(frozen=True, kw_only=True)
class ExamCorpus:
    """Labelled texts that can be sampled as any corpus; the id of a document is its number in `texts`.

    Attributes:
      labels: the subject of each text, by which the truth is known.
      styles, languages: what else is known of each text; "plain" and "en" for most.
    """

    name: str
    texts: tuple[str, ...]
    labels: tuple[str, ...]
    styles: tuple[str, ...]
    languages: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def collision(self) -> float:
        """Share of the pairs of different texts that are of one subject: sum n (n - 1) / (D (D - 1))."""
        counts = [self.labels.count(label) for label in set(self.labels)]
        return sum(n * (n - 1) for n in counts) / (len(self) * (len(self) - 1))

    @property
    def effective_clusters(self) -> float:
        """The truth: 1 / `collision`, which 1 / T of drawn samples estimates without bias in T."""
        return 1 / self.collision

    def sample(self, size: int, *, seed: int) -> Sequence[Document]:
        """`size` texts without replacement; all of them, in random order, where there are no more."""
        order = random_order(random.Random(child_seed(seed, "exam", self.name)), len(self))
        return [Document(id=str(number), text=self.texts[number]) for number in order[:size]]

    def fingerprint(self) -> str:
        """Of texts and labels."""
        return content_hash([self.texts, self.labels])


@dataclass(frozen=True, kw_only=True, eq=False)
class CalibrationPairs:
    """Pairs of texts of known relation in one language, each array [N, 2] of positions in `texts`.

    Attributes:
      same: of one subject.
      neighbours: of two subjects that are close, such as violin and choir; empty where the language has none.
      unrelated: of two subjects that are not.
    """

    texts: tuple[str, ...]
    same: np.ndarray
    neighbours: np.ndarray
    unrelated: np.ndarray

    @property
    def different(self) -> np.ndarray:
        """Neighbours and unrelated pairs together."""
        return np.concatenate([self.neighbours, self.unrelated])


@functools.cache
def _data() -> Mapping[str, Any]:
    value: Mapping[str, Any] = read_json(Path(__file__).with_name("exam_texts.json"))
    return value


@functools.cache
def neighbour_of() -> Mapping[str, str]:
    """The close subject of each of the 24."""
    pairs = _data()["neighbours"]
    return {a: b for a, b in pairs} | {b: a for a, b in pairs}


def _english(name: str, subjects: Sequence[str], per_subject: Sequence[int]) -> ExamCorpus:
    """The first so many English texts of each subject, those in a style after the plain ones."""
    rows = []
    for subject, count in zip(subjects, per_subject, strict=True):
        styled = _data()["styles"].get(subject, {})
        plain = [(text, "plain") for text in _data()["english"][subject]]
        texts = plain + [(text, style) for style, texts in styled.items() for text in texts]
        rows += [(text, subject, style, "en") for text, style in texts[:count]]
    return _corpus(name, rows)


def _corpus(name: str, rows: Sequence[tuple[str, str, str, str]]) -> ExamCorpus:
    texts, labels, styles, languages = map(tuple, zip(*rows, strict=True))
    return ExamCorpus(name=name, texts=texts, labels=labels, styles=styles, languages=languages)


def _skewed() -> ExamCorpus:
    styled = list(_data()["styles"])
    subjects = styled[:1] + [subject for subject in _data()["english"] if subject != styled[0]]
    return _english("skewed", subjects, [max(1, round(_ZIPF_LARGEST / rank)) for rank in range(1, len(subjects) + 1)])


def _lengths() -> ExamCorpus:
    full_texts = _english("lengths", _FAR_APART, [10] * len(_FAR_APART))
    cuts = itertools.cycle(_CUT_WORDS)
    return replace(full_texts, texts=tuple(first_words(text, next(cuts)) for text in full_texts.texts))


def _styles() -> ExamCorpus:
    rows = [
        (text, subject, style, "en")
        for subject, styles in _data()["styles"].items()
        for style, texts in styles.items()
        for text in texts
    ]
    return _corpus("styles", rows)


def _languages() -> ExamCorpus:
    by_language = _data()["languages"]
    subjects = next(iter(by_language.values()))
    english = [(text, subject, "plain", "en") for subject in subjects for text in _data()["english"][subject][:3]]
    others = [
        (text, subject, "plain", language)
        for language, by_subject in by_language.items()
        for subject, texts in by_subject.items()
        for text in texts
    ]
    return _corpus("languages", english + others)


@functools.cache
def exam_corpora() -> Mapping[str, ExamCorpus]:
    """The corpora by name.

    subjects_24: all subjects, ten texts each, so that 24 equal clusters show; subjects_6: six that are far apart;
    one_subject: a single one, also in styles; neighbours: six pairs of close subjects; skewed: 24 subjects whose sizes
    fall as 1 / rank; styles: four subjects in five styles, of which the subject counts; lengths: the texts of
    subjects_6 cut to 15, 30 or 45 words or whole; languages: six subjects in 13 languages, of which the subject counts.
    """
    subjects = list(_data()["english"])
    close = [subject for pair in _data()["neighbours"][:_NEIGHBOUR_PAIRS] for subject in pair]
    corpora = (
        _english("subjects_24", subjects, [10] * len(subjects)),
        _english("subjects_6", _FAR_APART, [10] * len(_FAR_APART)),
        _english("one_subject", list(_data()["styles"])[:1], [20]),
        _english("neighbours", close, [10] * len(close)),
        _skewed(),
        _styles(),
        _lengths(),
        _languages(),
    )
    return {corpus.name: corpus for corpus in corpora}


@functools.cache
def calibration_pairs(words: int = 0) -> Mapping[str, CalibrationPairs]:
    """All pairs of texts by language (ISO 639-1): `en` of 240 texts, each other of 18 short ones.

    Args:
      words: so many at least has every English text, which for more than 45 is several of one subject joined; up to
        200 there remain two texts or more of each subject. Cutting is left to whoever compares the texts.

    Raises:
      InputError: more words than two texts of a subject have.
    """
    english = {subject: _joined(texts, words) for subject, texts in _data()["english"].items()}
    if short := [subject for subject, texts in english.items() if len(texts) < 2]:
        raise InputError(f"calibration pairs: {short[0]} has no two texts of {words} words; ask for at most 200")
    by_language = {"en": english, **_data()["languages"]}
    return MappingProxyType({language: _pairs(texts) for language, texts in by_language.items()})


def _joined(texts: Sequence[str], words: int) -> list[str]:
    """Texts of at least so many words, made of as few of `texts` as it takes; a remainder is dropped."""
    joined, parts = [], []
    for text in texts:
        parts.append(text)
        if len(" ".join(parts).split()) >= words:
            joined.append(" ".join(parts))
            parts = []
    return joined


def _pairs(by_subject: Mapping[str, Sequence[str]]) -> CalibrationPairs:
    labels = [subject for subject, texts in by_subject.items() for _ in texts]
    pairs = np.array(list(itertools.combinations(range(len(labels)), 2)))
    same = np.array([labels[a] == labels[b] for a, b in pairs])
    near = np.array([neighbour_of()[labels[a]] == labels[b] for a, b in pairs])
    return CalibrationPairs(
        texts=tuple(itertools.chain.from_iterable(by_subject.values())),
        same=pairs[same],
        neighbours=pairs[near],
        unrelated=pairs[~same & ~near],
    )


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
    split = words(text[:_LOOKED_AT_CHARACTERS])
    return frozenset(word for word in split if len(word) >= _LETTERS_OF_A_WORD and word.isalpha())


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
