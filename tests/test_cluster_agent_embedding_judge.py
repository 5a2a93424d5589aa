"""The embedding judge: its figure does not depend on other corpora, corpus size or K; copies are one cluster; texts
that its vectors cannot tell apart are refused.
"""

from collections import Counter
import contextlib
from dataclasses import replace
import itertools

import numpy as np
import pytest

from diversity_jax.cluster_agent import (
    AgentConfig,
    EmbeddingJudge,
    Scorecard,
    score_corpora,
    score_corpus,
    score_until_decided,
)
from diversity_jax.cluster_agent.compare import compare
from diversity_jax.cluster_agent.embedding_judge import partition
from diversity_jax.cluster_agent.exam_corpora import calibration_pairs
from diversity_jax.cluster_agent.registry import judge_kind, open_judge
from diversity_jax.cluster_agent.ruler import default_ruler
from diversity_jax.cluster_agent.types import Cluster, Sample, Task
from diversity_jax.core.errors import InputError
from diversity_jax.core.words import first_words
from diversity_jax.llm import BudgetConfig
from diversity_jax.scoring.config import ScoreConfig
from tests.shared_data import shared_file
from tests.simulated_corpus import ListCorpus

ENGLISH = calibration_pairs(0)["en"].texts
"""Ten texts on each of 24 subjects, in order."""
JUDGE = EmbeddingJudge()


def score(texts, **settings):
    """The scorecard of texts."""
    return score_corpus(ListCorpus(texts), JUDGE, AgentConfig(**{"groupings": 300} | settings))


def exact_collision(texts, words):
    """Share of all pairs of texts that are alike."""
    vectors = default_ruler().embed(texts, words)
    alike = vectors @ vectors.T > default_ruler().thresholds[words]
    return (alike.sum() - len(texts)) / (len(texts) * (len(texts) - 1))


@pytest.mark.parametrize("k", [2, 5, 12, 40])
def test_the_figure_is_the_share_of_alike_pairs_at_every_k(k):
    scorecard = score(ENGLISH, samples_per_grouping=k, groupings=max(60, 16000 // (k * k)), seed=1)
    error = scorecard.series.collisions.std() / len(scorecard.series) ** 0.5
    assert abs(scorecard.series.collisions.mean() - exact_collision(ENGLISH, 50)) < 3 * error
    assert scorecard.reading_words == 50
    assert scorecard.judge == "offline (no LLM)"
    assert scorecard.ruler_identity["package"] == "wordllama"
    assert not scorecard.warnings


def test_a_partition_has_the_right_number_of_pairs_on_average_and_keeps_copies_together():
    draw = np.random.default_rng(0)
    for _ in range(10):
        vectors = draw.normal(size=(8, 3))
        vectors[5] = vectors[2]
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        similar = vectors @ vectors.T
        for threshold in (-1.1, 0.0, 0.7, 0.999999):
            wanted = int((similar[np.triu_indices(8, 1)] > threshold).sum())
            groups = [partition(similar, threshold, chance) for chance in (np.arange(50) + 0.5) / 50]
            assert all(sorted(itertools.chain(*rows)) == list(range(8)) for rows in groups)
            assert all(any({2, 5} <= set(row) for row in rows) for rows in groups)
            pairs = [sum(len(row) * (len(row) - 1) // 2 for row in rows) for rows in groups]
            assert np.mean(pairs) == pytest.approx(wanted, abs=0.3)


def test_neither_company_nor_order_nor_a_second_run_changes_a_scorecard():
    a, b = ListCorpus(ENGLISH[:120], "a"), ListCorpus(ENGLISH[120:], "b")
    config = AgentConfig(groupings=40)
    alone = score_corpus(a, EmbeddingJudge(), config)
    beside = score_corpora({"b": b, "a": a}, JUDGE, config)["a"]
    assert beside.content_hash == alone.content_hash


def test_copies_are_one_cluster_and_lower_the_figure():
    once, thirty = score(ENGLISH[::2]), score(ENGLISH[:8] * 15)
    assert thirty.effective_clusters.value <= 8
    assert thirty.verdict.judge == "fit"  # copies are of one length, which is no fault of the judge
    few = score(["cat", "bread", "stone", "river", "music", "tree", "king", "paper", "wolf", "house", "car"] * 10)
    assert few.effective_clusters.value <= few.corpus["different"] == 11
    assert compare(once, thirty).higher == "a"
    assert score(["the very same words again and again in every document"] * 60).effective_clusters.value == 1.0
    assert score(["!!! 123"] * 2 + [*ENGLISH[:60]]).effective_clusters.value > 5


def test_corpora_are_compared_at_the_smaller_reading_length():
    first = [first_words(text, 15) for text in ENGLISH]
    long, short = score(ENGLISH, seed=3), score(first, seed=3)
    assert (long.reading_words, short.reading_words) == (50, 15)
    assert long.effective_clusters.value != pytest.approx(short.effective_clusters.value, rel=0.02)
    assert compare(long, short).ratio == pytest.approx(1, rel=0.02)
    again = Scorecard.from_json(long.to_json(), where="here")
    assert again.series_at(15).pairs.sum() == pytest.approx(short.series.pairs.sum(), rel=0.02)
    assert score(ENGLISH, seed=3, reading_words=15).effective_clusters.value == short.effective_clusters.value
    with pytest.raises(InputError, match="holds no groupings at 70 words"):
        again.series_at(70)
    with pytest.raises(InputError, match=r"agent.reading_words: is 16; choose one of 5, 7, 10"):
        AgentConfig(reading_words=16)
    corpora = ListCorpus(ENGLISH), ListCorpus([first_words(text, 15) for text in ENGLISH])
    assert not score_until_decided(*corpora, JUDGE, AgentConfig(groupings=100))[0].decided


def test_a_few_first_words_of_long_texts_decide_nothing():
    """All queries begin alike here, the long texts all differ in their beginnings."""
    queries = score([f"please tell me now {text.split()[0]}" for text in ENGLISH])
    compared = compare(score(ENGLISH), queries)
    assert queries.reading_words == 5
    assert (compared.decided, compared.higher, compared.low, compared.high) == (False, None, None, None)
    assert "only the first 5 can be compared" in str(compared)
    assert compare(queries, queries).note is None


def test_scorecards_of_two_rulers_are_not_compared():
    strict = replace(default_ruler(), identity={"embedder": "other"})
    other = score_corpus(ListCorpus(ENGLISH), EmbeddingJudge(strict), AgentConfig(groupings=20))
    with pytest.raises(InputError, match="different rulers"):
        compare(score(ENGLISH), other)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (calibration_pairs()["th"].texts * 2, "Thai 100.0%"),
        (calibration_pairs()["de"].texts * 2, "German"),
        ([*ENGLISH[:40], *calibration_pairs()["ko"].texts], "31% of the documents of texts are not .Korean"),
        ([f"{n} {n * n} 3.14" for n in range(100)], "numbers and signs"),
        ([" ".join(f"{hash((n, m)):x}" for m in range(40)) for n in range(100)], "hardly differ"),
    ],
)
def test_what_the_ruler_cannot_read_is_refused_with_an_embedder_to_take(texts, message):
    with pytest.raises(InputError, match=f"{message}.*judge=embedding:st:"):
        score(texts, groupings=20)


_SENTENCES = [
    ("French", "Le chat dort.|Il fait beau aujourd'hui.|Nous allons \u00e0 Paris.|Mon fr\u00e8re travaille."),
    ("Spanish", "El gato duerme.|Hace buen tiempo hoy.|Vamos a Madrid.|No lo s\u00e9.|Mi hermano trabaja."),
    ("Polish", "Kot \u015bpi.|Dzisiaj jest \u0142adna pogoda.|Jutro jedziemy do Warszawy.|Nie wiem."),
    ("Italian", "Il gatto dorme.|Fa bel tempo oggi.|Andiamo a Roma.|Mio fratello lavora.|Non lo so.|Ho fame."),
    ("another language", "O gato dorme.|Hoje faz sol.|Vamos para Lisboa.|Tenho fome.|Onde voc\u00ea mora?"),
    ("another language", "Kissa nukkuu.|Menemme Helsinkiin.|Minulla on n\u00e4lk\u00e4.|Juon kahvia."),
    ("another language", "Kedi uyuyor.|Bilmiyorum.|Elma yiyorum.|Nerede oturuyorsun?|Taze ekmek al\u0131yorum."),
    (
        "another language",
        "Ko\u010dka sp\u00ed.|M\u00e1m hlad.|Kde bydl\u00ed\u0161?|Vlak odj\u00ed\u017ed\u00ed v osm.",
    ),
    ("another language", "A macska alszik.|Ma sz\u00e9p id\u0151 van.|Nem tudom.|Hol laksz?|J\u00f3l \u00e9nekel."),
    ("another language", "Paka analala.|Unaishi wapi?|Ninapenda muziki.|Kesho nitasoma.|Funga mlango."),
]


@pytest.mark.parametrize(("language", "sentences"), _SENTENCES)
def test_sentences_too_short_to_be_recognised_alone_are_refused_together(language, sentences):
    with pytest.raises(InputError, match=rf"short documents of it are {language}; take an embedder"):
        JUDGE.read_corpus("it", sentences.split("|") * 30, None)


@pytest.mark.parametrize(
    ("texts", "remarks"),
    [
        ("The cat sleeps.|Nice weather.|Ask Jos\u00e9.", 0),
        ("Aspirin|Ibuprofen|Acetylcholinesterase inhibitor|Warfarin", 0),
        ("def __init__(self): pass|return os.path.join(root, name)|for i in range(10): print(i)", 0),
        ("acetylcholinesterase|rhododendron|sauerkraut|hippopotamus|xylophone", 1),
    ],
)
def test_english_names_code_and_terms_are_read(texts, remarks):
    assert len(JUDGE.read_corpus("it", texts.split("|") * 30, None)[1]) == remarks


def test_vectors_of_zeros_are_no_reading():
    blank = replace(default_ruler(), read=lambda texts, lengths: np.zeros((len(texts), len(lengths), 8), np.float32))
    with pytest.raises(InputError, match=r"vector of zeros.*judge=embedding:st:"):
        score_corpus(ListCorpus(ENGLISH), EmbeddingJudge(blank), AgentConfig(groupings=20))


@pytest.mark.parametrize(
    ("budget", "problem"),
    [
        ({}, "budget.max_dollars: is not set"),
        ({"max_dollars": 1.0}, "budget.input_price: is not set"),
        ({"max_dollars": 1.0, "input_price": 0.02, "output_price": 0.0}, None),
        ({"unlimited": True}, None),
    ],
)
def test_embeddings_that_are_paid_for_want_a_cap_that_holds(budget, problem, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-the-test")
    config = ScoreConfig(judge="embedding:openai:small", budget=BudgetConfig(**budget))
    with pytest.raises(InputError, match=problem) if problem else contextlib.nullcontext():
        judge_kind(config.judge).check(config, True)
    judge_kind(config.judge).check(replace(config, judge_base_url="http://127.0.0.1:1/v1"), True)


def test_a_few_documents_that_cannot_be_read_are_told():
    scorecard = score([*ENGLISH, *calibration_pairs()["ru"].texts[:6]])
    assert "Cyrillic 2.4%" in scorecard.warnings[0]


def test_clusters_say_what_they_share_and_single_samples_say_nothing():
    scorecard = score(ENGLISH, samples_per_grouping=30, groupings=60)
    clusters = [cluster for example in scorecard.examples for cluster in example["clusters"]]
    assert all(cluster["reasoning"] == "" for cluster in clusters if len(cluster["texts"]) == 1)
    reasons = [cluster["reasoning"] for cluster in clusters if len(cluster["texts"]) > 1]
    sharing = [reason for reason in reasons if reason.startswith("share the words ")]
    assert len(sharing) > 0.8 * len(reasons) > 10
    assert {*reasons} - {*sharing} <= {"words of like meaning"}
    assert [len(criteria["metadata"]) for criteria in scorecard.criteria] == [1]


def test_verification_names_what_is_misplaced():
    texts = [*ENGLISH[:2], ENGLISH[200], ENGLISH[0]]
    samples = tuple(Sample(sample_id=f"s{n}", text=text, document=str(n)) for n, text in enumerate(texts))
    clusters = Cluster(sample_ids=("s0", "s3", "s2")), Cluster(sample_ids=("s0", "s2")), Cluster(sample_ids=("s1",))
    task = Task(stage="verify_clusters", replicate=0, criteria_set=0, criteria_count=4, reasoning_words=15)
    answer = JUDGE._verify_clusters(replace(task, samples=samples, clusters=clusters, reading_words=30))["validation"]
    assert [item["misplaced"] for item in answer] == [["s2"], ["s0", "s2"], []]
    assert [item["valid"] for item in answer] == [0, 0, 1]


def test_a_judge_by_an_unknown_embedder_is_refused(tmp_path):
    with pytest.raises(InputError, match="expected st:NAME_OR_PATH, openai:MODEL or llama:FOLDER"):
        open_judge(ScoreConfig(judge="embedding:word2vec"), tmp_path / "cache")


def test_known_labels_are_read_on_real_text():
    from diversity_jax.corpus import open_corpus

    folder = "corpora_synthetic"
    low = open_corpus(str(shared_file(f"{folder}/llm_answers_20_prompts_low_diversity.jsonl.gz")))
    high = open_corpus(str(shared_file(f"{folder}/llm_answers_600_prompts.jsonl.gz")))
    scorecards = [score_corpus(corpus, JUDGE, AgentConfig(groupings=200)) for corpus in (low, high)]
    sizes = Counter(document.meta["label"] for document in low)
    truth = sizes.total() ** 2 / sum(size * size for size in sizes.values())
    assert scorecards[0].effective_clusters.value == pytest.approx(truth, rel=0.15)
    assert compare(*scorecards, looks=8).higher == "b"
