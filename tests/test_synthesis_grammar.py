"""The demo grammar: reproducible, readable, labelled, and of the requested diversity."""

from collections import Counter
import gzip
import json
import re

import numpy as np
import pytest

from diversity_jax.core.errors import InputError
from diversity_jax.corpus import open_corpus
from diversity_jax.synthesis.demo_grammar import (
    GENERATOR,
    MOST_TOPICS,
    GrammarConfig,
    generate,
    load_grammar,
    write_component,
)


def texts(**settings):
    return [record["text"] for record in generate(GrammarConfig(**settings))]


def distinct_share(passages, n):
    grams = [tuple(words[i : i + n]) for words in map(str.split, passages) for i in range(len(words) - n + 1)]
    return len(set(grams)) / len(grams)


def test_every_topic_gives_whole_sentences():
    records = list(generate(GrammarConfig(topics=MOST_TOPICS, documents=MOST_TOPICS)))
    assert len({record["topic"] for record in records}) == MOST_TOPICS >= 1000
    for record in records:
        assert re.fullmatch(r"([A-Z][^.?!{}]*\. )*[A-Z][^.?!{}]*\.", record["text"]), record["text"]
        assert not re.search(r"\b([Aa] (?!one-)[aeio]|[Aa]n [^aeiou])|  ", record["text"]), record["text"]


def test_passages_keep_their_length():
    for shortest, longest in ((60, 200), (50, 80), (300, 400)):
        lengths = [len(text.split()) for text in texts(documents=1000, shortest_words=shortest, longest_words=longest)]
        assert shortest <= min(lengths)
        assert max(lengths) <= longest
        assert np.std(lengths) > 0.1 * (longest - shortest)


def test_the_same_settings_give_the_same_text_and_seeds_differ():
    assert texts(documents=500, seed=3) == texts(documents=500, seed=3)
    assert not set(texts(documents=500, seed=3)) & set(texts(documents=500, seed=4))
    assert texts(documents=500) == texts(documents=900)[:500]


@pytest.mark.parametrize("topics", [4, 400])
def test_passages_are_distinct_and_topics_take_turns(topics):
    records = list(generate(GrammarConfig(topics=topics, documents=4000)))
    assert len({record["text"] for record in records}) == 4000
    counts = Counter(record["topic"] for record in records)
    assert len(counts) == topics
    assert set(counts.values()) == {4000 // topics}


def test_many_topics_are_clearly_more_diverse_than_few():
    few, many = (texts(topics=topics, documents=2000) for topics in (4, 400))
    assert abs(np.mean([len(text.split()) for text in few]) / np.mean([len(text.split()) for text in many]) - 1) < 0.05
    for n in (1, 2, 3, 4):
        assert distinct_share(many, n) > 4 * distinct_share(few, n)
    assert len(gzip.compress(" ".join(many).encode())) > 1.4 * len(gzip.compress(" ".join(few).encode()))


def test_passages_of_a_topic_are_closer_than_those_of_two():
    from sklearn.feature_extraction.text import TfidfVectorizer

    records = list(generate(GrammarConfig(topics=40, documents=400)))
    vectors = TfidfVectorizer().fit_transform([record["text"] for record in records]).toarray()
    similar = vectors @ vectors.T
    same = np.equal.outer(*[[record["topic"] for record in records]] * 2)
    np.fill_diagonal(similar, np.nan)
    assert np.nanquantile(similar[same], 0.1) > np.nanquantile(similar[~same], 0.9)


@pytest.mark.parametrize("name", ["part.jsonl", "part.jsonl.gz"])
def test_a_component_is_a_corpus_with_its_provenance(tmp_path, name):
    config = GrammarConfig(topics=7, documents=30, seed=5)
    path = write_component(config, tmp_path / "component" / name)
    documents = list(open_corpus(str(path)))
    assert [document.text for document in documents] == texts(topics=7, documents=30, seed=5)
    assert all(document.meta["generator"] == GENERATOR and document.meta["seed"] == 5 for document in documents)
    assert "not an LLM" in GENERATOR
    assert [document.meta["document"] for document in documents] == list(range(30))
    written = path.read_bytes()
    assert write_component(config, tmp_path / "again" / f"other_{name}").read_bytes() == written
    first_line = (gzip.decompress(written) if name.endswith("gz") else written).partition(b"\n")[0]
    assert set(json.loads(first_line)) == {"text", "topic", "seed", "document", "generator", "generator_version"}


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"topics": 0}, "grammar.topics=0: expected 1 to"),
        ({"topics": MOST_TOPICS + 1, "documents": 10**6}, "grammar.topics"),
        ({"topics": 10, "documents": 9}, "grammar.documents=9: expected at least one for each"),
        ({"shortest_words": 180}, "shortest_words=180"),
    ],
)
def test_settings_are_checked(settings, says):
    with pytest.raises(InputError, match=says):
        GrammarConfig(**settings)


def test_unknown_file_endings_are_refused(tmp_path):
    with pytest.raises(InputError, match="ends in"):
        write_component(GrammarConfig(topics=1, documents=1), tmp_path / "a.txt")


def test_fields_share_no_things():
    fields = load_grammar().fields
    things = [thing for field in fields for thing in field.things]
    assert len(set(things)) == len(things)
    for field in fields:
        assert len(set(field.parts)) >= 6
        assert len(field.quantities) >= 6
