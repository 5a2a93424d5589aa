"""Scorecards are the same after saving and loading, and a damaged one is one clear line."""

import dataclasses
import json

import pytest

from diversity_jax.cluster_agent import AgentConfig, Scorecard, score_corpus
from diversity_jax.cluster_agent.compare import compare
from diversity_jax.cluster_agent.verdict import Verdict
from diversity_jax.core.errors import InputError
from tests.simulated_corpus import LabelJudge, even_corpus


@pytest.fixture(scope="module")
def scorecard():
    """A small scorecard."""
    corpus = even_corpus(20, 5000)
    return score_corpus(
        corpus, LabelJudge(corpus.label_of), AgentConfig(groupings=100, proposals=2, correct_judge_error=True)
    )


def test_a_scorecard_is_the_same_after_saving_and_loading(scorecard, tmp_path):
    scorecard.save(tmp_path / "scorecard.json")
    again = Scorecard.load(tmp_path / "scorecard.json")
    assert again.to_json() == scorecard.to_json()
    assert again.content_hash == scorecard.content_hash
    again.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "scorecard.json").read_bytes()


def test_what_the_examination_found_goes_into_the_file_and_may_be_missing(scorecard):
    verdict = Verdict(judge="doubtful", reasons=("one reason",))
    examined = dataclasses.replace(scorecard, verdict=verdict, consistency={"rechecks": 3}, drift={"drifts": False})
    value = json.loads(json.dumps(examined.to_json()))
    assert value["verdict"] == {"judge": "doubtful", "reasons": ["one reason"]}
    assert Scorecard.from_json(value, where="x").verdict == verdict
    for name in ("verdict", "consistency", "drift"):
        del value[name]
    bare = Scorecard.from_json(value, where="x")
    assert bare.verdict is bare.consistency is bare.drift is None
    assert set(bare.to_json()) == set(value)


def test_the_file_has_the_fields_that_others_read(scorecard, tmp_path):
    scorecard.save(tmp_path / "scorecard.json")
    value = json.loads((tmp_path / "scorecard.json").read_text())
    for name in ("effective_clusters", "cluster_score", "clusters_per_sample", "collision"):
        assert set(value[name]) == {"value", "low", "high"}
    plain = (
        "groupings",
        "dropped_groupings",
        "invalid_clusters",
        "criteria",
        "criteria_hash",
        "canaries",
        "calls",
        "cost_usd",
        "judge",
    )
    assert not [name for name in (*plain, "prompt_version", "parameters", "seed") if name not in value]
    assert set(value["tokens"]) == {"prompt", "completion"}
    assert {"fingerprint", "documents", "sampled"} <= set(value["corpus"])
    assert value["judge"] == "labels (oracle)"


def test_what_a_page_draws_is_there(scorecard):
    for name in ("clusters", "samples_per_cluster", "cluster_sizes"):
        histogram = scorecard.histogram(name)
        assert len(histogram["values"]) == len(histogram["counts"]) > 0
        assert histogram["values"] == sorted(histogram["values"])
    assert sum(scorecard.histogram("clusters")["counts"]) == scorecard.groupings
    assert len(scorecard.examples) == 8
    assert all(cluster["texts"] for example in scorecard.examples for cluster in example["clusters"])
    assert len(scorecard.convergence["groupings"]) == len(scorecard.convergence["low"])


def changed(scorecard, **changes):
    """The JSON of a scorecard with some fields changed."""
    return {**scorecard.to_json(), **changes}


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"version": 7}, "version is 7"),
        ({"calls": "many"}, "calls is str"),
        ({"effective_clusters": {"value": 1}}, "effective_clusters: expected an object with numbers"),
        ({"collision": {"value": 1, "low": 0, "high": "x"}}, "collision.high"),
        ({"verdict": {"judge": "great", "reasons": []}}, "verdict: expected judge, one of fit, doubtful, unfit"),
        ({"verdict": "fit"}, "verdict: expected judge"),
        ({"consistency": [1]}, "consistency is list"),
        ({"surprise": 1}, "'surprise'"),
        ({"series": {"samples_per_grouping": 10}}, "series"),
        ({"content_hash": "0"}, "content_hash"),
    ],
)
def test_a_damaged_file_is_one_clear_line(scorecard, changes, complaint, tmp_path):
    path = tmp_path / "scorecard.json"
    path.write_text(json.dumps(changed(scorecard, **changes)))
    with pytest.raises(InputError, match=complaint) as caught:
        Scorecard.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["[]", "{}", "not json", '{"loss": 1}'])
def test_another_file_is_no_scorecard(text, tmp_path):
    path = tmp_path / "scorecard.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"scorecard\.json"):
        Scorecard.load(path)


def test_scores_of_different_rulers_are_not_compared(scorecard):
    value = scorecard.to_json()
    other = Scorecard.from_json({**value, "ruler": "another", "judge": "someone else"}, where="other")
    with pytest.raises(InputError, match="different judges"):
        compare(scorecard, other)
    assert not compare(scorecard, other, any_judge=True).decided
