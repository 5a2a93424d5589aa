"""Properties that the exam assumes of its texts."""

from collections import Counter
import itertools
from pathlib import Path
import re
import unicodedata

import numpy as np
import pytest

from diversity_jax.cluster_agent import exam_corpora as module
from diversity_jax.cluster_agent.exam_corpora import calibration_pairs, exam_corpora, neighbour_of
from diversity_jax.cluster_agent.ruler import default_ruler
from diversity_jax.core.errors import InputError
from diversity_jax.core.files import read_json

DATA = read_json(Path(module.__file__).with_name("exam_texts.json"))
NAMES = {
    "bread": r"bread\w*",
    "beer": r"beers?",
    "volcanoes": r"volcan\w+",
    "earthquakes": r"earthquakes?",
    "violin": r"violin\w*",
    "choir": r"choirs?|choir\w+",
    "taxes": r"(un)?tax\w*",
    "mortgages": r"mortgages?|home loans?",
    "databases": r"databases?|SQL",
    "spreadsheets": r"spreadsheets?|Excel",
    "beekeeping": r"bees?|beekeep\w+|honeybees?",
    "hens": r"hens?|chickens?",
    "running": r"runn(er|ers|ing)|marathons?|jog\w*",
    "cycling": r"cycl(ing|ists?)|bicycles?|bikes?",
    "dentistry": r"dent\w+|teeth|tooth\w*",
    "eye care": r"eyes?|eyeball|opticians?",
    "planets": r"planets?",
    "rockets": r"rockets?",
    "castles": r"castles?",
    "cathedrals": r"cathedrals?",
    "railways": r"railways?|trains?",
    "ferries": r"ferry|ferries",
    "watercolour": r"watercolours?",
    "pottery": r"potter\w*",
}
# Scripts in which a text of a language is written; letters of another one are allowed in none.
SCRIPTS = {
    **dict.fromkeys(("de", "es"), ("LATIN",)),
    **{"ru": ("CYRILLIC",), "ar": ("ARABIC",), "hi": ("DEVANAGARI",), "zh": ("CJK",), "ko": ("HANGUL",)},
    **{
        "ja": ("CJK", "HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA"),
        "th": ("THAI",),
        "lo": ("LAO",),
        "km": ("KHMER",),
        "my": ("MYANMAR",),
    },
}
ENGLISH = [(subject, text) for subject, texts in DATA["english"].items() for text in texts] + [
    (subject, text) for subject, styles in DATA["styles"].items() for texts in styles.values() for text in texts
]


def test_there_are_as_many_texts_as_the_exam_counts_on():
    assert {subject: len(texts) for subject, texts in DATA["english"].items()} == dict.fromkeys(NAMES, 10)
    assert sorted(itertools.chain(*DATA["neighbours"])) == sorted(NAMES)
    assert [len(texts) for styles in DATA["styles"].values() for texts in styles.values()] == [2] * 20
    assert set(DATA["languages"]) == set(SCRIPTS)
    for by_subject in DATA["languages"].values():
        assert [len(texts) for texts in by_subject.values()] == [3] * 6
        assert set(by_subject) <= set(NAMES)


def test_english_texts_have_45_to_70_words():
    assert not [(subject, text) for subject, text in ENGLISH if not 45 <= len(text.split()) <= 70]


def test_no_text_names_the_subject_of_another():
    pairs = [
        (subject, other, text)
        for subject, text in ENGLISH
        for other, name in NAMES.items()
        if other != subject and re.search(rf"\b({name})\b", text, re.IGNORECASE)
    ]
    assert not pairs


def test_no_sentence_and_no_run_of_six_words_is_in_two_texts():
    others = [text for texts in DATA["languages"].values() for part in texts.values() for text in part]
    where = Counter()
    for text in [text for _, text in ENGLISH] + others:
        words = [word.strip(",.;:!?") for word in text.lower().split()]
        runs = {" ".join(words[start : start + 6]) for start in range(len(words) - 5)}
        where.update(runs | {part for part in re.split(r"(?<=[.!?။។。])\s*", text) if len(part) > 20})
    assert not [run for run, count in where.items() if count > 1]


@pytest.mark.parametrize("language", SCRIPTS)
def test_each_language_is_in_its_own_script(language):
    for texts in DATA["languages"][language].values():
        letters = {character for text in texts for character in text if character.isalpha()}
        assert {unicodedata.name(letter).split()[0] for letter in letters} <= set(SCRIPTS[language])


def test_the_truth_is_that_of_the_labels():
    truth = {name: corpus.effective_clusters for name, corpus in exam_corpora().items()}
    assert truth == {
        "subjects_24": pytest.approx(239 / 9),
        "subjects_6": pytest.approx(59 / 9),
        "one_subject": 1,
        "neighbours": pytest.approx(119 / 9),
        "skewed": pytest.approx(9.77, abs=0.01),
        "styles": pytest.approx(39 / 9),
        "lengths": pytest.approx(59 / 9),
        "languages": pytest.approx(233 / 38),
    }
    for corpus in exam_corpora().values():  # by counting, beside the formula
        pairs = list(itertools.combinations(corpus.labels, 2))
        assert corpus.collision == pytest.approx(sum(a == b for a, b in pairs) / len(pairs))


def test_a_corpus_is_sampled_without_replacement_and_the_same_way_each_time():
    corpus = exam_corpora()["styles"]
    drawn = corpus.sample(12, seed=3)
    assert len({document.id for document in drawn}) == 12
    assert drawn == corpus.sample(12, seed=3)
    assert {document.text for document in corpus.sample(10**6, seed=1)} == set(corpus.texts)
    assert all(corpus.texts[int(document.id)] == document.text for document in drawn)


def test_lengths_are_mixed():
    counts = Counter(min(len(text.split()), 46) for text in exam_corpora()["lengths"].texts)
    assert counts == {15: 15, 30: 15, 45: 15, 46: 15}


def test_calibration_pairs_are_all_pairs_by_relation():
    pairs = calibration_pairs()
    english = pairs["en"]
    assert (len(english.same), len(english.neighbours), len(english.unrelated)) == (1080, 1200, 26400)
    labels = np.array([subject for subject in DATA["english"] for _ in range(10)])
    assert all(labels[a] == labels[b] for a, b in english.same)
    assert all(neighbour_of()[labels[a]] == labels[b] for a, b in english.neighbours)
    assert len(english.neighbours) + len(english.unrelated) == 27600
    assert set(pairs) == {"en", *SCRIPTS}
    others = [p for name, p in pairs.items() if name != "en"]
    assert {(len(p.same), len(p.neighbours) + len(p.unrelated)) for p in others} == {(18, 135)}


def test_longer_calibration_texts_are_joined_within_a_subject():
    for words, texts in ((20, 240), (100, 110), (200, 48)):
        english = calibration_pairs(words)["en"]
        assert len(english.texts) >= texts
        assert min(len(text.split()) for text in english.texts) >= words
        assert len(english.same) >= 24
    with pytest.raises(InputError, match="at most 200"):
        calibration_pairs(400)


@pytest.mark.parametrize("words", [20, 50])
def test_subjects_are_told_apart_about_as_well_as_in_real_corpora(words):
    """The area under the curve of real corpora with these vectors is 0.69 to 0.93; at 1.0 a threshold means nothing."""
    english = calibration_pairs()["en"]
    vectors = default_ruler().embed(english.texts, words)
    same, different = (
        np.sort(np.einsum("nd,nd->n", vectors[pairs[:, 0]], vectors[pairs[:, 1]]))
        for pairs in (english.same, np.concatenate([english.neighbours, english.unrelated]))
    )
    assert 0.85 < np.searchsorted(different, same).mean() / len(different) < 0.97
