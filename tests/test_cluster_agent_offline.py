"""The offline judge ranks corpora by how varied they are, always the same way, and copes with odd text."""

import numpy as np
import pytest

from diversity_jax.cluster_agent import AgentConfig, OfflineJudge, compare, score_corpus
from diversity_jax.core.errors import InputError
from tests.shared_data import shared_file
from tests.simulated_corpus import LabelledDocument

COMMON = [
    "the",
    "of",
    "and",
    "to",
    "in",
    "is",
    "a",
    "that",
    "with",
    "for",
    "as",
    "on",
    "it",
    "by",
    "from",
    "this",
    "which",
    "are",
    "at",
    "more",
]


class ListCorpus:
    """Texts in a list."""

    def __init__(self, texts, name="list"):
        self.texts = texts
        self.name = name

    def sample(self, size, *, seed):
        """Without replacement."""
        chosen = np.random.default_rng(seed).permutation(len(self.texts))[:size]
        return [LabelledDocument(id=str(i), text=self.texts[i]) for i in chosen]

    def fingerprint(self):
        """The number of texts will do here."""
        return str(len(self.texts))


def grammar(topics, documents, seed):
    """Sentences of common words and of words that belong to one topic."""
    generator = np.random.default_rng(seed)
    syllables = [a + b for a in "bdfgklmnprstvz" for b in "aeiou"]
    lexicon = ["".join(np.random.default_rng((t, w)).choice(syllables, 3)) for t in range(topics) for w in range(20)]
    texts = []
    for _ in range(documents):
        topic = int(generator.integers(topics))
        own = [lexicon[topic * 20 + i] for i in generator.integers(20, size=40)]
        texts.append(" ".join(generator.permutation(own + list(generator.choice(COMMON, 80)))))
    return texts


@pytest.fixture(scope="module")
def corpora():
    """One corpus of 4 topics and one of 400."""
    return ListCorpus(grammar(4, 1000, 0)), ListCorpus(grammar(400, 1000, 1))


@pytest.fixture(scope="module")
def judge(corpora):
    """One ruler for both."""
    return OfflineJudge.fit(corpora, documents=1000)


@pytest.mark.parametrize("k", [10, 20])
def test_few_topics_score_far_below_many_and_near_their_number(corpora, judge, k):
    few, many = (score_corpus(c, judge, AgentConfig(groupings=200, samples_per_grouping=k)) for c in corpora)
    assert few.judge == "offline (no LLM)"
    assert few.effective_clusters.value == pytest.approx(4, rel=0.25)
    assert many.effective_clusters.value > 20 * few.effective_clusters.value
    assert compare(few, many).higher == "b"
    assert few.dropped_groupings == many.dropped_groupings == 0


def test_two_judges_fitted_to_the_same_texts_agree_in_every_answer(corpora):
    hashes = {
        score_corpus(corpora[0], OfflineJudge.fit(corpora, documents=200), AgentConfig(groupings=30)).content_hash
        for _ in range(2)
    }
    assert len(hashes) == 1
    other = OfflineJudge.fit(corpora, documents=200, seed=1)
    assert other.identity != OfflineJudge.fit(corpora, documents=200).identity


def test_its_criteria_are_words_and_its_reasons_name_them(corpora, judge):
    card = score_corpus(corpora[0], judge, AgentConfig(groupings=50))
    assert len(card.criteria) == 5
    assert all(one["metadata"] and one["metrics"] for one in card.criteria)
    shared = [c["reasoning"] for example in card.examples for c in example["clusters"] if len(c["texts"]) > 1]
    assert shared
    assert all("share the words" in reason for reason in shared)
    assert not card.warnings


def score_texts(texts):
    """Effective clusters of texts under a judge fitted to them alone."""
    corpus = ListCorpus(texts)
    return score_corpus(corpus, OfflineJudge.fit([corpus]), AgentConfig(groupings=60, proposals=2)).effective_clusters


def test_one_text_many_times_is_one_cluster():
    assert score_texts(["the very same words again and again in every document"] * 200).value == 1.0


def test_texts_without_letters_are_alike_only_where_they_are_equal():
    one = score_texts(["plain words about rivers and lakes here"] * 100 + ["!!!"] * 100)
    assert one.value == pytest.approx(2.0, rel=0.1)
    with pytest.raises(InputError, match="offline judge"):
        score_texts(["!!!", "???", "...", ",,,"] * 20)


def test_scripts_without_spaces_are_read_by_their_characters():
    first, second = "河流和湖泊的水很清澈", "股票市场今天下跌了很多"
    assert score_texts(
        [first[i % 3 :] for i in range(60)] + [second[i % 3 :] for i in range(60)]
    ).value == pytest.approx(2.0, rel=0.35)


def test_too_few_texts_are_refused():
    with pytest.raises(InputError, match="at least 4"):
        OfflineJudge(["one", "two", "three"])


def test_embedding_of_a_text_does_not_depend_on_its_company(corpora, judge):
    alone = judge._compute(corpora[0].texts[5]).vector
    assert np.array_equal(alone, judge._read(corpora[0].texts[5]).vector)
    assert np.linalg.norm(alone) == pytest.approx(1, abs=1e-5)


def test_known_low_diversity_ranks_below_its_twin_on_real_text():
    from diversity_jax.corpus import open_corpus

    folder = "corpora_synthetic"
    low = open_corpus(str(shared_file(f"{folder}/llm_answers_20_prompts_low_diversity.jsonl.gz")))
    high = open_corpus(str(shared_file(f"{folder}/llm_answers_600_prompts.jsonl.gz")))
    judge = OfflineJudge.fit([low, high], documents=1200)
    cards = [score_corpus(corpus, judge, AgentConfig(groupings=400)) for corpus in (low, high)]
    assert 15 < cards[0].effective_clusters.value < 30
    assert cards[1].effective_clusters.low > 4 * cards[0].effective_clusters.high
    assert compare(*cards, looks=8).higher == "b"
