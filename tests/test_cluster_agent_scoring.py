"""Complete scorings with judges of known truth: correct, independent of the order of answers, failures counted."""

import asyncio
from collections import Counter
import json
import random

import numpy as np
import pytest

from diversity_jax.cluster_agent import (
    AgentConfig,
    JudgeAnswer,
    drift,
    load_criteria,
    score_corpora,
    score_corpus,
    score_corpus_async,
    score_draws,
    score_key,
    score_until_decided,
)
from diversity_jax.cluster_agent.compare import compare
from diversity_jax.core.errors import InputError
from tests.json_lines import json_lines
from tests.simulated_corpus import ChangedJudge, LabelJudge, LabelledCorpus, even_corpus

CONFIG = AgentConfig(groupings=300, proposals=3)


@pytest.mark.parametrize("k", [5, 20])
def test_the_score_holds_the_truth_and_every_count_adds_up(k, tmp_path):
    corpus = even_corpus(20)
    config = AgentConfig(groupings=300, proposals=3, samples_per_grouping=k, verify_share=1.0)
    scorecard = score_corpus(corpus, LabelJudge(corpus.label_of), config, groupings_path=tmp_path / "groupings.jsonl")
    assert scorecard.effective_clusters.low < 20 < scorecard.effective_clusters.high
    assert scorecard.groupings == 300
    assert scorecard.dropped_groupings == scorecard.invalid_clusters == 0
    again = sum(map(config.rechecks, range(300)))
    assert scorecard.calls == 5 * (3 + 3) + 2 * 300 + again == config.forecast_calls()
    assert 30 < again < 90
    assert scorecard.consistency["rechecks"] == again
    assert scorecard.verdict.judge == "fit"
    assert scorecard.canaries["shown"] == 300
    assert scorecard.corpus["documents"] == 20_000
    lines = json_lines(tmp_path / "groupings.jsonl")
    assert [line["grouping"] for line in lines] == list(range(300))
    pairs = [sum(n * (n - 1) // 2 for n in (len(c["sample_ids"]) for c in line["clusters"])) for line in lines]
    assert pairs == scorecard.series.pairs.tolist()
    assert scorecard.effective_clusters.value == pytest.approx(1 / (np.mean(pairs) / (k * (k - 1) / 2)))
    assert len({s["document"] for line in lines for s in line["samples"]} - {"canary"}) == scorecard.corpus["sampled"]
    assert sum(int(size) * count for size, count in scorecard.cluster_sizes.items()) == 300 * k


def test_canaries_change_the_prompt_and_not_the_figures():
    corpus = even_corpus(20)
    scorecards = [
        score_corpus(corpus, LabelJudge(corpus.label_of), AgentConfig(groupings=200, proposals=2, canary_share=s))
        for s in (0.0, 0.3, 1.0)
    ]
    assert len({scorecard.series.pairs.tobytes() for scorecard in scorecards}) == 1
    assert [scorecard.canaries["shown"] > 0 for scorecard in scorecards] == [False, True, True]


def test_the_scorecard_does_not_depend_on_the_order_in_which_answers_come(tmp_path):
    corpus = even_corpus(20)

    def priced(task, answer):
        return JudgeAnswer(
            value=answer.value, prompt_tokens=task.replicate, completion_tokens=3, cost_usd=0.1 + task.replicate / 7
        )

    hashes, texts = set(), set()
    for number, (delay, in_flight) in enumerate([(None, 512), (random.Random(1), 64), (random.Random(2), 7)]):
        config = AgentConfig(groupings=250, proposals=3, in_flight=in_flight)
        path = tmp_path / f"{number}.jsonl"
        hashes.add(
            score_corpus(corpus, ChangedJudge(corpus.label_of, priced, delay), config, groupings_path=path).content_hash
        )
        texts.add(path.read_bytes())
    assert len(hashes) == len(texts) == 1


def test_a_longer_run_begins_with_the_calls_of_a_shorter_one():
    corpus = even_corpus(20)
    asked = []
    for groupings in (50, 450):
        judge = ChangedJudge(corpus.label_of)
        score_corpus(corpus, judge, AgentConfig(groupings=groupings, proposals=3))
        asked.append({(t.stage, t.replicate, t.criteria_set): t for t in judge.tasks})
    short, long = asked
    assert all(long[key] == task for key, task in short.items())


def test_ids_are_dealt_anew_in_every_call_and_another_seed_shows_other_texts():
    corpus = even_corpus(20)
    shown = []
    for seed in (0, 1):
        judge = ChangedJudge(corpus.label_of)
        score_corpus(corpus, judge, AgentConfig(groupings=60, proposals=2, seed=seed))
        shown.append([task.samples for task in judge.tasks if task.stage == "cluster_samples"])
    orders = Counter(tuple(sample.sample_id for sample in samples) for samples in shown[0])
    assert max(orders.values()) == 1
    sets = {frozenset(order) for order in orders}
    assert sorted(map(len, sets)) == [7, 12]  # one schema for groupings, and one for the halves that are judged again
    assert {s.document for samples in shown[0] for s in samples} != {
        s.document for samples in shown[1] for s in samples
    }


def test_no_sample_is_shown_twice_in_one_grouping_and_a_small_corpus_is_reused_between_them():
    corpus = even_corpus(4, documents=30)
    judge = ChangedJudge(corpus.label_of)
    scorecard = score_corpus(corpus, judge, AgentConfig(groupings=100, proposals=2, canary_share=0.0))
    for task in judge.tasks:
        if task.stage == "cluster_samples":
            assert len({sample.document for sample in task.samples}) == len(task.samples) in (5, 10)
    assert scorecard.corpus["sampled"] == scorecard.corpus["documents"] == 30
    assert scorecard.effective_clusters_of_corpus.value <= 30
    truth = 1 / np.square(np.bincount(corpus.topics) / 30).sum()
    assert scorecard.effective_clusters_of_corpus.low < truth < scorecard.effective_clusters_of_corpus.high


@pytest.mark.parametrize(
    ("documents", "message"), [(0, "holds no document with text"), (1, "has 1 document with"), (3, "has 3 documents")]
)
def test_a_corpus_too_small_for_a_grouping_is_one_clear_line(documents, message):
    corpus = even_corpus(2, documents=documents)
    with pytest.raises(InputError, match=rf"^2 topics: {message}") as caught:
        score_corpus(corpus, LabelJudge(corpus.label_of), CONFIG)
    assert "\n" not in str(caught.value)


def spoil(task, answer):
    """Three answers in ten are bad: by kind, and some of them again when asked a second time."""
    point = random.Random(f"{task.stage}{task.criteria_set}{task.replicate}{task.problem is not None}").random()
    if point < 0.05:
        return JudgeAnswer(value=None, failure="refused")
    if point < 0.10:
        return JudgeAnswer(value=None, failure="truncated")
    if point < 0.15:
        return JudgeAnswer(value=None, failure="gave_up")
    if point < 0.20:
        return JudgeAnswer(value=None, failure="garbled", text="{oops")
    if point < 0.25:
        return JudgeAnswer(value={"something": "else"}, text="{}")
    if point < 0.30 and task.stage == "cluster_samples":
        clusters = answer.value["clusters"]
        return JudgeAnswer(value={"clusters": [{**clusters[0], "sample_ids": ["nonsense"]}, *clusters[1:]]}, text="...")
    return answer


def test_with_three_answers_in_ten_bad_the_run_ends_with_the_same_estimate_and_counts_every_drop():
    corpus = even_corpus(20)
    config = AgentConfig(groupings=600, proposals=10)
    clean = score_corpus(corpus, LabelJudge(corpus.label_of), config)
    judge = ChangedJudge(corpus.label_of, spoil)
    scorecard = score_corpus(corpus, judge, config)
    assert scorecard.groupings + scorecard.dropped_groupings == 600
    assert scorecard.dropped_groupings == sum(scorecard.drops.values()) > 100
    assert set(scorecard.drops) <= {"refused", "truncated", "gave_up", "garbled", "malformed"}
    assert scorecard.effective_clusters.low < 20 < scorecard.effective_clusters.high
    assert scorecard.effective_clusters.value == pytest.approx(clean.effective_clusters.value, rel=0.1)
    assert scorecard.repairs > 0
    assert scorecard.calls == len(judge.tasks)
    assert any("groupings were dropped" in warning for warning in scorecard.warnings)


def test_a_repair_says_what_was_wrong_and_is_asked_once_only():
    corpus = even_corpus(20)
    judge = ChangedJudge(
        corpus.label_of,
        lambda task, answer: (
            JudgeAnswer(value={"clusters": []}, text="EMPTY") if task.stage == "cluster_samples" else answer
        ),
    )
    with pytest.raises(InputError, match=r"none of 20 groupings was usable \(malformed 20: sample ids in no cluster"):
        score_corpus(corpus, judge, AgentConfig(groupings=20, proposals=2))
    asked = [task for task in judge.tasks if task.stage == "cluster_samples"]
    assert len(asked) == 40
    second = [task for task in asked if task.problem]
    assert len(second) == 20
    assert "in no cluster" in second[0].problem
    assert second[0].previous == "EMPTY"


def test_when_no_further_call_can_succeed_what_is_done_is_scored_and_said():
    corpus = even_corpus(20)

    def ends(task, answer):
        late = task.stage == "verify_clusters" and task.replicate >= 100
        return (
            JudgeAnswer(value=None, failure="budget", detail="the cap of $1 is reached", ends_run=True)
            if late
            else answer
        )

    scorecard = score_corpus(corpus, ChangedJudge(corpus.label_of, ends), AgentConfig(groupings=300, proposals=2))
    assert scorecard.groupings == 100
    assert scorecard.dropped_groupings == 0
    assert any(
        "stopped after 100 of 300 groupings: the cap of $1 is reached" in warning for warning in scorecard.warnings
    )

    def at_once(task, answer):
        return JudgeAnswer(value=None, failure="budget", detail="the cap of $1 is reached", ends_run=True)

    with pytest.raises(InputError, match=r"the cap of \$1 is reached"):
        score_corpus(corpus, ChangedJudge(corpus.label_of, at_once), CONFIG)


def test_an_error_of_the_judge_ends_the_run_and_leaves_no_file(tmp_path):
    corpus = even_corpus(20)

    def breaks(task, answer):
        if task.stage == "cluster_samples" and task.replicate == 30:
            raise InputError("openai: the key is wrong")
        return answer

    with pytest.raises(InputError, match="the key is wrong"):
        score_corpus(corpus, ChangedJudge(corpus.label_of, breaks), CONFIG, groupings_path=tmp_path / "g.jsonl")
    assert not list(tmp_path.iterdir())


def test_hostile_verification_is_caught_by_the_control_cluster():
    corpus = even_corpus(5)

    def all_invalid(task, answer):
        if task.stage != "verify_clusters" or task.replicate % 2:
            return answer
        return JudgeAnswer(value={"validation": [{**verdict, "valid": 0} for verdict in answer.value["validation"]]})

    scorecard = score_corpus(corpus, ChangedJudge(corpus.label_of, all_invalid), CONFIG)
    assert scorecard.drops == {"canary": 150}
    assert scorecard.effective_clusters.low < 5 < scorecard.effective_clusters.high


def test_a_run_stops_at_the_precision_asked_for():
    corpus = even_corpus(10)
    config = AgentConfig(groupings=3000, proposals=2, stop_at_relative_half_width=0.1, look_every=50)
    seen = []
    scorecard = score_corpus(corpus, LabelJudge(corpus.label_of), config, progress=seen.append)
    assert scorecard.groupings < 1500
    assert scorecard.groupings % 50 == 0
    assert scorecard.effective_clusters.high / scorecard.effective_clusters.low < 1.25
    assert [progress.done for progress in seen] == list(range(1, scorecard.groupings + 1))


def test_criteria_of_one_scorecard_measure_another_corpus(tmp_path):
    first, second = even_corpus(5), even_corpus(20)
    scorecard = score_corpus(first, LabelJudge(first.label_of), CONFIG)
    scorecard.save(tmp_path / "a.json")
    config = AgentConfig(groupings=300, criteria=str(tmp_path / "a.json"), verify_share=1.0)
    again = score_corpus(second, LabelJudge(second.label_of), config)
    assert again.criteria_hash == scorecard.criteria_hash
    assert again.criteria_origin == "scorecard"
    assert again.calls == config.forecast_calls() > 2 * 300
    assert compare(scorecard, again).higher == "b"


def test_criteria_written_by_hand_are_one_set(tmp_path):
    path = tmp_path / "criteria.json"
    path.write_text(
        json.dumps(
            {
                "metadata": [{"name": "topic", "definition": "d", "guidance": "g"}],
                "metrics": [{"name": "depth", "levels": ["a"] * 5}],
            }
        )
    )
    corpus = even_corpus(5)
    scorecard = score_corpus(corpus, LabelJudge(corpus.label_of), AgentConfig(groupings=100, criteria=str(path)))
    assert len(scorecard.criteria) == 1
    assert scorecard.criteria[0]["metadata"][0]["name"] == "topic"
    path.write_text("{}")
    with pytest.raises(InputError, match=r"criteria\.json: criteria set 1"):
        load_criteria(str(path))


def test_several_corpora_share_their_criteria_and_one_of_them_pays_for_these():
    corpora = {"few": even_corpus(5), "many": even_corpus(50)}
    scorecards = score_corpora(corpora, LabelJudge(LabelledCorpus.label_of), CONFIG)
    assert scorecards["few"].criteria_hash == scorecards["many"].criteria_hash
    assert scorecards["few"].calls - scorecards["many"].calls == 5 * (3 + 3)
    comparison = compare(scorecards["few"], scorecards["many"])
    assert comparison.paired
    assert comparison.low < 0.1 < comparison.high < 1


def test_two_corpora_are_scored_side_by_side_until_it_is_decided():
    comparison, a, b = score_until_decided(
        even_corpus(5), even_corpus(50), LabelJudge(LabelledCorpus.label_of), AgentConfig(groupings=800, proposals=2)
    )
    assert comparison.higher == "b"
    assert a.groupings == b.groupings == 100 * comparison.look < 800


def test_inside_a_running_loop_the_plain_form_gives_what_the_other_gives():
    corpus = even_corpus(5)

    async def notebook():
        plain = score_corpus(corpus, LabelJudge(corpus.label_of), CONFIG)
        return plain, await score_corpus_async(corpus, LabelJudge(corpus.label_of), CONFIG)

    plain, awaited = asyncio.run(notebook())
    assert plain.effective_clusters == awaited.effective_clusters


def test_a_score_is_found_again_by_all_that_it_depends_on_and_nothing_else(tmp_path):
    judge = LabelJudge({"a": 1})
    key = score_key("f", judge, CONFIG)
    assert key == score_key("f", judge, AgentConfig(groupings=300, proposals=3, in_flight=3))
    others = [score_key("g", judge, CONFIG), score_key("f", judge, AgentConfig(groupings=301, proposals=3))]
    others.append(score_key("f", judge, AgentConfig(groupings=300, proposals=3, seed=1)))
    assert len({key, *others}) == 4


@pytest.mark.parametrize(
    "bad",
    [
        {"samples_per_grouping": 1},
        {"groupings": 0},
        {"canary_share": 1.5},
        {"criteria_sets": 0},
        {"stop_at_relative_half_width": 0.0},
        {"max_characters": 0},
        {"samples_per_grouping": 501},
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(bad):
    with pytest.raises(InputError, match=f"agent.{next(iter(bad))}"):
        AgentConfig(**bad)


@pytest.mark.parametrize("draw_size", [200, 1_000_000])
def test_several_draws_give_a_mean_with_an_error_bar(draw_size):
    corpus = even_corpus(10)
    config = AgentConfig(groupings=60, proposals=2)
    draws = score_draws(corpus, LabelJudge(corpus.label_of), config, draws=5, draw_size=draw_size)
    assert len({scorecard.seed for scorecard in draws.scorecards}) == 5
    assert draws.effective_clusters.low < 10 * (1.1 if draw_size == 200 else 1) < draws.effective_clusters.high * 1.1
    assert all((scorecard.corpus["documents"] == 200) == (draw_size == 200) for scorecard in draws.scorecards)
    with pytest.raises(InputError, match="at least 2"):
        score_draws(corpus, LabelJudge(corpus.label_of), config, draws=1)


def coarse_above_fifteen(task, answer):
    """Lumps labels in twos where it is shown many samples."""
    if len(task.samples) < 15:
        return answer
    if task.stage == "verify_clusters":
        checked = [{"cluster": n, "valid": 1} for n in range(1, len(task.clusters) + 1)]
        return JudgeAnswer(value={"validation": checked})
    groups = {}
    for sample in task.samples:
        label = LabelledCorpus.label_of(sample.text)
        groups.setdefault(int(label) // 2 if label.isdigit() else label, []).append(sample.sample_id)
    return JudgeAnswer(
        value={"clusters": [{"cluster": n, "sample_ids": ids} for n, ids in enumerate(groups.values(), 1)]}
    )


@pytest.mark.parametrize(("documents", "change", "chosen"), [(3000, None, 40), (120, None, 20), (3000, "coarse", 10)])
def test_the_run_chooses_the_most_samples_that_are_read_like_half_as_many(documents, change, chosen):
    corpus = even_corpus(20, documents)
    judge = ChangedJudge(corpus.label_of, *[coarse_above_fifteen] * (change is not None))
    scorecard = score_corpus(corpus, judge, AgentConfig(groupings=60, proposals=2, samples_per_grouping=0))
    assert scorecard.series.samples_per_grouping == chosen == scorecard.parameters["samples_per_grouping"]
    assert scorecard.groupings == 60
    assert scorecard.effective_clusters.low < 20 < scorecard.effective_clusters.high


def test_a_judge_that_coarsens_with_more_samples_is_seen_to_drift():
    corpus = even_corpus(20)

    def at(k, change=lambda task, answer: answer):
        return score_corpus(
            corpus,
            ChangedJudge(corpus.label_of, change),
            AgentConfig(groupings=300, proposals=2, samples_per_grouping=k),
        )

    assert not drift(at(10), at(20)).decided
    comparison = drift(at(10), at(20, coarse_above_fifteen))
    assert comparison.decided
    assert comparison.ratio == pytest.approx(2, rel=0.2)
    other = even_corpus(20, seed=1)
    with pytest.raises(InputError, match="two corpora"):
        drift(at(10), score_corpus(other, LabelJudge(other.label_of), AgentConfig(groupings=20, proposals=2)))
