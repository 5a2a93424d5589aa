"""Labelled corpora for the exam of judges and the calibration of embedding judges; and foreign texts for canaries.

The texts in `exam_texts.json`, written for this project, are about 24 subjects in 12 pairs of neighbours (baking bread,
brewing beer): ten English texts of 45 to 70 words for each, which name their subject within the first 20 words; for
four subjects also texts in five styles; and for six subjects texts in twelve further languages. The label of a text is
its subject.

`foreign_text` makes texts whose subject is foreign to a corpus, and which resemble the samples in form and length, so
that a judge that groups by form or length puts them with samples. `planted_texts.json` has them in several forms.
"""

from collections.abc import Iterable, Mapping, Sequence
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
_ZIPF_LARGEST = 20  # texts of the largest subject in "skewed"; the subject at rank r has 1 / r of them
_CUT_WORDS = (15, 30, 45, 1000)  # lengths of the texts of "lengths", in turn; 1000 leaves a text uncut

_Row = tuple[str, str, str, str]  # text, subject, style, language


@dataclass(frozen=True, kw_only=True)
class ExamCorpus:
    """A `SampledCorpus` of labelled texts; the id of a document is its index in `texts`.

    Attributes:
      labels: the subject of each text.
      styles, languages: of each text; "plain" and "en" for most.
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
        """Share of the pairs of different texts that have the same label: sum n (n - 1) / (D (D - 1))."""
        counts = [self.labels.count(label) for label in set(self.labels)]
        return sum(n * (n - 1) for n in counts) / (len(self) * (len(self) - 1))

    @property
    def effective_clusters(self) -> float:
        """The true value, 1 / `collision`."""
        return 1 / self.collision

    def sample(self, size: int, *, seed: int) -> Sequence[Document]:
        """`size` texts without replacement; all of them, in random order, where there are no more."""
        order = random_order(random.Random(child_seed(seed, "exam", self.name)), len(self))
        return [Document(id=str(number), text=self.texts[number]) for number in order[:size]]

    def fingerprint(self) -> str:
        """Hash of texts and labels."""
        return content_hash([self.texts, self.labels])


@dataclass(frozen=True, kw_only=True, eq=False)
class CalibrationPairs:
    """Pairs of texts of known relation in one language, each array [N, 2] of positions in `texts`.

    Attributes:
      same: of the same subject.
      neighbours: of two neighbouring subjects, such as violin and choir; empty where the language has none.
      unrelated: of two other subjects.
    """

    texts: tuple[str, ...]
    same: np.ndarray
    neighbours: np.ndarray
    unrelated: np.ndarray


@functools.cache
def _data() -> Mapping[str, Any]:
    value: Mapping[str, Any] = read_json(Path(__file__).with_name("exam_texts.json"))
    return value


@functools.cache
def neighbour_of() -> Mapping[str, str]:
    """The neighbour of each of the 24 subjects."""
    pairs = _data()["neighbours"]
    return {a: b for a, b in pairs} | {b: a for a, b in pairs}


def _english(name: str, counts: Mapping[str, int]) -> ExamCorpus:
    """The first English texts of each subject, as many as `counts` says: plain ones, then those in a style."""
    rows: list[_Row] = []
    for subject, count in counts.items():
        plain = [(text, subject, "plain", "en") for text in _data()["english"][subject]]
        rows += [*plain, *_styled(subject)][:count]
    return _corpus(name, rows)


def _styled(subject: str) -> list[_Row]:
    styles = _data()["styles"].get(subject, {})
    return [(text, subject, style, "en") for style, texts in styles.items() for text in texts]


def _corpus(name: str, rows: Iterable[_Row]) -> ExamCorpus:
    texts, labels, styles, languages = map(tuple, zip(*rows, strict=True))
    return ExamCorpus(name=name, texts=texts, labels=labels, styles=styles, languages=languages)


@functools.cache
def exam_corpora() -> Mapping[str, ExamCorpus]:
    """The corpora by name.

    subjects_24: all subjects, ten texts each; subjects_6: six that are far apart; one_subject: a single one, also in
    styles; neighbours: six pairs of neighbouring subjects; skewed: 24 subjects whose sizes fall as 1 / rank; styles:
    four subjects in five styles; lengths: the texts of subjects_6, cut to 15, 30 or 45 words or uncut; languages: six
    subjects in 13 languages. Labels are subjects throughout.
    """
    english, in_styles, by_language = _data()["english"], list(_data()["styles"]), _data()["languages"]
    close = itertools.chain.from_iterable(_data()["neighbours"][:_NEIGHBOUR_PAIRS])
    ranked = dict.fromkeys([in_styles[0], *english])  # with most texts first
    far_apart = _english("subjects_6", dict.fromkeys(_FAR_APART, 10))
    lengths = itertools.cycle(_CUT_WORDS)
    translated = [
        (text, subject, "plain", language)
        for language, by_subject in by_language.items()
        for subject, texts in by_subject.items()
        for text in texts
    ]
    originals = [(text, subject, "plain", "en") for subject in by_language["de"] for text in english[subject][:3]]
    corpora = (
        _english("subjects_24", dict.fromkeys(english, 10)),
        far_apart,
        _english("one_subject", {in_styles[0]: 20}),
        _english("neighbours", dict.fromkeys(close, 10)),
        _english("skewed", {subject: max(1, round(_ZIPF_LARGEST / rank)) for rank, subject in enumerate(ranked, 1)}),
        _corpus("styles", itertools.chain.from_iterable(map(_styled, in_styles))),
        replace(far_apart, name="lengths", texts=tuple(first_words(text, next(lengths)) for text in far_apart.texts)),
        _corpus("languages", originals + translated),
    )
    return {corpus.name: corpus for corpus in corpora}


@functools.cache
def calibration_pairs(words: int = 0) -> Mapping[str, CalibrationPairs]:
    """All pairs of texts by language (ISO 639-1): `en` of 240 texts, each other of 18 short ones.

    Args:
      words: least length of the English texts, for which several of a subject are joined; up to 200 at least two texts
        of each subject remain. They are not cut.

    Raises:
      InputError: more words than two texts of a subject have.
    """
    english = {subject: _joined(texts, words) for subject, texts in _data()["english"].items()}
    if short := [subject for subject, texts in english.items() if len(texts) < 2]:
        raise InputError(f"calibration pairs: {short[0]} has no two texts of {words} words; ask for at most 200")
    by_language = {"en": english, **_data()["languages"]}
    return MappingProxyType({language: _pairs(texts) for language, texts in by_language.items()})


def _joined(texts: Sequence[str], words: int) -> list[str]:
    """Texts of at least so many words, each joined from as few of `texts` as possible; a remainder is dropped."""
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


_LETTERS_OF_A_WORD = 4  # of words that are compared, at least: shorter ones are mostly function words
_COMPARED_CHARACTERS = 600  # of a text
_LEAST_CHARACTERS = 40  # of a foreign text: shorter ones do not show their subject
_CODE = re.compile(r"[{}()\[\]=;<>_]")

PLANTED_TEXTS: Mapping[str, Any] = read_json(Path(__file__).with_name("planted_texts.json"))
# By form; on subjects far apart, so that at least one of them is foreign to any corpus.
FOREIGN_TEXTS: Mapping[str, Sequence[str]] = PLANTED_TEXTS["foreign"]


def foreign_text(samples: Sequence[str], generator: random.Random) -> str:
    """A text of the form and median length of `samples` that shares the fewest longer words with them; of equal ones
    the first after a random start. Further texts of the form are appended where it is too short.
    """
    form = _nearest_form(samples)
    texts, start = FOREIGN_TEXTS[form], int(generator.random() * len(FOREIGN_TEXTS[form]))
    shown = set().union(*(_foreign_words(text[:_COMPARED_CHARACTERS]) for text in samples))
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


@functools.cache
def _words(text: str) -> frozenset[str]:
    """The longer words of a foreign text."""
    split = words(text[:_COMPARED_CHARACTERS])
    return frozenset(word for word in split if len(word) >= _LETTERS_OF_A_WORD and word.isalpha())


@functools.cache
def _all_foreign_words() -> frozenset[str]:
    return frozenset().union(*(_words(text) for texts in FOREIGN_TEXTS.values() for text in texts))


@functools.lru_cache(maxsize=32_768)  # documents are drawn into several groupings
def _foreign_words(head: str) -> frozenset[str]:
    """The longer words of foreign texts that a text holds, by its first `_COMPARED_CHARACTERS`."""
    return _all_foreign_words().intersection(words(head))


def _form(text: str) -> np.ndarray:
    """Features [6] of a text's form: question, lines, code characters, capital at the start, full stop, sentence
    length.
    """
    head = text[:_COMPARED_CHARACTERS]
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
def _mean_forms() -> np.ndarray:
    """[forms, 6]: the mean features of the foreign texts of each form."""
    return np.array([np.mean([_form(text) for text in texts], axis=0) for texts in FOREIGN_TEXTS.values()])


@functools.lru_cache(maxsize=32_768)
def _form_of(head: str) -> str:
    """The form that is nearest to a text, by its first `_COMPARED_CHARACTERS`."""
    return list(FOREIGN_TEXTS)[np.abs(_mean_forms() - _form(head)).sum(axis=1).argmin()]


def _nearest_form(samples: Sequence[str]) -> str:
    """The form that is nearest to the most samples."""
    nearest = [_form_of(text[:_COMPARED_CHARACTERS]) for text in samples]
    return max(FOREIGN_TEXTS, key=nearest.count)
