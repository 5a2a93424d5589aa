"""Verdicts: each faulty judge is detected with the right reason, and judges without faults are fit."""

import json
from pathlib import Path

import numpy as np
import pytest

from diversity_jax.cluster_agent import AgentConfig, LlmJudge, NothingUsable, Scorecard, examination, score_corpus
from diversity_jax.cluster_agent.canaries import ErrorRates
from diversity_jax.cluster_agent.examination import recheck, traits
from diversity_jax.cluster_agent.verdict import JudgeEvidence, Verdict, verdict
from diversity_jax.core.errors import InputError
from diversity_jax.llm import Engine, EngineConfig
from diversity_jax.scoring.config import ScoreConfig
from tests.faulty_judges import FaultyJudge
from tests.llm_answers import clusters_in, label_oracle
from tests.llm_server import serve
from tests.simulated_corpus import LabelledCorpus, even_corpus, even_shares, zipf_shares
from tests.styled_corpus import StyledCorpus, style_of

CONFIG = AgentConfig(groupings=200, proposals=2)
TRUTH = zipf_shares(72.9)


def judge(fault, rate=0.05, verifier="yes", seed=0):
    """A faulty judge of the styled corpus."""
    return FaultyJudge(
        fault,
        StyledCorpus.label_of,
        style_of=style_of,
        labels=[str(label) for label in range(len(TRUTH))],
        rate=rate,
        verifier=verifier,
        seed=seed,
    )


def verdict_on(judged_by, config=CONFIG):
    """The verdict, and the scorecard where there is one."""
    try:
        scorecard = score_corpus(StyledCorpus(TRUTH, documents=3000), judged_by, config)
        return scorecard.verdict, scorecard
    except NothingUsable as failure:
        return failure.score.verdict, None


@pytest.mark.parametrize(
    ("fault", "rate", "verifier", "reason"),
    [
        ("other", 1.0, "yes", "a foreign text was put with samples"),
        ("other", 0.1, "yes", "a foreign text was put with samples"),
        ("at most 5", 0, "yes", "a foreign text was put with samples"),
        ("style", 0, "yes", "a foreign text was put with samples"),
        ("errors", 0.05, "yes", "a foreign text was put with samples"),
        ("position", 0, "yes", "follow the places of samples"),
        ("length", 0, "yes", "follow the length of texts"),
        ("none", 0, "yes", "calls a cluster with a foreign text valid"),
        ("none", 0, "no", "calls a text and its copy unlike"),
        ("merges all", 0, "yes", "a foreign text was put with samples"),
        ("splits all", 0, "honest", "none of 200 groupings was usable"),
        ("errors", 0.15, "honest", "elsewhere than its own copy"),
    ],
)
def test_a_faulty_judge_is_found_out_by_the_right_reason(fault, rate, verifier, reason):
    result, _ = verdict_on(judge(fault, rate, verifier))
    assert result.judge in ("doubtful", "unfit")
    assert any(reason in told for told in result.reasons)


@pytest.mark.parametrize("k", [5, 20])
@pytest.mark.parametrize("rate", [0, 0.02])
def test_a_judge_that_reads_and_errs_now_and_then_is_fit_and_its_interval_holds_the_truth(k, rate):
    faulty = judge("errors" if rate else "none", rate, "honest", seed=k)
    result, scorecard = verdict_on(faulty, AgentConfig(groupings=150, proposals=2, samples_per_grouping=k))
    assert result == Verdict(judge="fit", reasons=("exam not taken",))
    assert scorecard.effective_clusters.low < 1 / np.square(TRUTH).sum() < scorecard.effective_clusters.high


@pytest.mark.parametrize("k", [5, 40])
def test_misplaced_samples_move_the_figure_by_less_than_its_interval(k):
    corpus = even_corpus(4, 20_000)
    values = []
    for seed in range(4):
        faulty = FaultyJudge("errors", LabelledCorpus.label_of, rate=0.05, verifier="honest", seed=seed)
        config = AgentConfig(groupings=150, proposals=2, samples_per_grouping=k, seed=seed)
        values.append(score_corpus(corpus, faulty, config).effective_clusters.value)
    assert np.mean(values) == pytest.approx(4, rel=0.06)


# The tests of partitions, each on its own


def rows_of(partition, k, count=200, seed=0, lengths=None):
    """Traits of `count` partitions; `partition(generator)` gives [k] labels."""
    generator = np.random.default_rng(seed)
    drawn = [generator.integers(1, 1000, k) if lengths is None else lengths(generator) for _ in range(count)]
    return [traits(partition(generator, length), length) for length in drawn]


def multinomial(shares):
    """Partitions by clusters of these shares."""
    return lambda generator, length: generator.choice(len(shares), len(length), p=shares)


@pytest.mark.parametrize("k", [5, 10, 40])
@pytest.mark.parametrize("shares", [even_shares(3), even_shares(40), zipf_shares(10)], ids=["3", "40", "zipf"])
def test_no_test_accuses_random_samples(shares, k):
    accused = 0
    for seed in range(20):
        rows = rows_of(multinomial(shares), k, seed=seed)
        evidence = examination.partition_checks(rows, k)
        assert not evidence["cluster_counts"]["held"]
        assert evidence["length"] is None or evidence["length"]["low"] < 0.6
        accused += evidence["position"]["follows"] and evidence["position"]["effect"] > 0.3
    assert accused <= 1


@pytest.mark.parametrize(
    "labels",
    [
        lambda generator, length: np.arange(len(length)) // 3,
        lambda generator, length: np.arange(len(length)) % 4,
        lambda generator, length: np.where(np.arange(len(length)) < len(length) // 2, np.arange(len(length)), -1),
    ],
    ids=["blocks", "turns", "the second half"],
)
def test_clusters_by_place_are_seen(labels):
    result = examination.position(rows_of(labels, 12), 12)
    assert result["follows"]
    assert result["effect"] > 0.3


def test_clusters_by_length_are_seen():
    rows = rows_of(lambda generator, length: length // 200, 12)
    assert examination.length(rows)["low"] > 0.85


@pytest.mark.parametrize("most", [4, 6, 9])
def test_a_number_of_clusters_that_is_held_down_is_seen(most):
    def capped(generator, length):
        labels = generator.choice(73, len(length))
        return np.minimum(np.unique(labels, return_inverse=True)[1], most - 1)

    assert examination.cluster_counts(rows_of(capped, 10), 10)["held"]


@pytest.mark.parametrize("documents", [10, 11, 12, 15, 100])
def test_a_corpus_of_few_documents_is_not_taken_for_clusters_held_down(documents):
    """Hardly any of its documents is missing from any grouping, so that the number of clusters hardly varies."""
    label = np.arange(documents) % (documents - 2)
    rows = rows_of(lambda generator, length: label[generator.permutation(documents)[:10]], 10, count=1000)
    assert not examination.cluster_counts(rows, 10, documents)["held"]


def test_pairs_judged_twice_are_counted():
    first = recheck([0, 0, 1, 1], [0, 0, 0, 1], [True, True, True, False])
    assert (first.pairs, first.first, first.second, first.both, first.verified, first.again) == (6, 2, 3, 1, 1, 1)
    again = recheck([0, 1, 2], [5, 5, 6], None)
    assert (again.first, again.second, again.both, again.verified) == (0, 1, 0, None)
    result = examination.consistency([first, again])
    assert (result["rechecks"], result["pairs"], result["together_both"]) == (2, 9, 1)
    assert result["flip_rate"]["value"] == pytest.approx(1 - 2 / 6)
    assert result["repeat_rate"]["value"] == 1
    assert examination.consistency([]) is None


def test_drift_is_the_paired_difference_of_the_two_partitions():
    generator = np.random.default_rng(0)
    steady, coarse = [], []
    for _ in range(60):
        labels = generator.choice(20, 10)
        steady.append(recheck(labels, labels, None))
        coarse.append(recheck(labels // 4, labels, None))
    assert examination.drift(steady, 20)["drifts"] is False
    result = examination.drift(coarse, 20)
    assert result["drifts"]
    assert result["relative"] < -0.5
    assert (result["K"], result["half"]) == (20, 10)


# The verdict as a function of the evidence

CLEAN = ErrorRates(shown=300, merged=0, split=0, merged_pairs=0, drawn_pairs=3000, controls=300)


def evidence(**changes):
    """Of a judge without a fault."""
    return JudgeEvidence(
        **{"groupings": 300, "drops": {}, "rates": CLEAN, "collision": 0.02, "relative_half_width": 0.1} | changes
    )


def test_without_a_finding_a_judge_is_fit_and_an_exam_is_only_mentioned():
    assert verdict(evidence()) == Verdict(judge="fit", reasons=("exam not taken",))
    failed = verdict(evidence(exam=Verdict(judge="unfit", reasons=("24 subjects read as 3",))))
    assert failed == Verdict(judge="unfit", reasons=("exam: 24 subjects read as 3",))


@pytest.mark.parametrize(
    ("changes", "judged", "reason"),
    [
        ({"drops": {"refused": 90}}, "doubtful", "90 of 300 groupings do not count (refused 90)"),
        ({"drops": {"refused": 200}}, "unfit", "200 of 300"),
        ({"drops": {"refused": 300}, "collision": None}, "unfit", "none of 300 groupings was usable"),
        ({"rates": ErrorRates(shown=0, merged=0, split=0)}, "doubtful", "no canaries were shown"),
    ],
)
def test_each_finding_has_its_verdict_and_its_reason(changes, judged, reason):
    result = verdict(evidence(**changes))
    assert result.judge == judged
    assert any(reason in told for told in result.reasons)


def test_the_worst_reason_comes_first_and_all_are_told():
    rates = ErrorRates(
        shown=300, merged=150, split=0, merged_pairs=900, drawn_pairs=3000, controls=300, missed=300, asked=9, kept=9
    )
    result = verdict(evidence(rates=rates, drops={"canary": 150}))
    assert result.judge == "unfit"
    assert "foreign text was put with samples" in result.reasons[0]
    assert len(result.reasons) == 3


# Over HTTP, and from the command line


def lazy(stage, samples, payload):
    """Puts whatever is like nothing else into one cluster, and calls every cluster valid."""
    labels = {sample["text"]: LabelledCorpus.label_of(sample["text"]) for sample in samples}
    if stage == "verify_clusters":
        return {"validation": [{"cluster": cluster["cluster"], "valid": 1} for cluster in clusters_in(payload["user"])]}
    if stage == "cluster_samples":
        values = list(labels.values())
        labels = {text: label if values.count(label) > 1 else "other" for text, label in labels.items()}
    return label_oracle(labels)(stage, samples, payload)


def test_over_http_a_lazy_judge_gives_no_figure_and_a_page_with_remedies(tmp_path):
    corpus = even_corpus(73, 300)
    lines = [json.dumps({"text": document.text}) for document in corpus.sample(300, seed=0)]
    (tmp_path / "texts.jsonl").write_text("\n".join(lines))
    from diversity_jax import score

    with serve(lazy) as server:
        config = ScoreConfig(
            output_dir=str(tmp_path / "out"),
            corpus=str(tmp_path / "texts.jsonl"),
            judge="openai:lazy",
            judge_base_url=server.openai_url,
            agent=AgentConfig(groupings=30, proposals=1, criteria_sets=1),
            engine=EngineConfig(progress="off"),
        )
        with pytest.raises(InputError) as failure:
            score.main(config)
    assert "none of 30 groupings was usable (canary" in str(failure.value)
    scorecard = json.loads((tmp_path / "out" / "scorecard.json").read_text())
    assert scorecard["effective_clusters"] is None
    assert scorecard["verdict"]["judge"] == "unfit"
    assert len(scorecard["remedies"]) == 3
    with pytest.raises(InputError, match=r"scorecard\.json: holds no figure: judge openai:lazy: none of 30"):
        Scorecard.load(tmp_path / "out" / "scorecard.json")
    page = Path(tmp_path / "out" / "report.html").read_text()
    assert "No figure" in page
    assert all(remedy.split(",")[0].split(":")[0] in page for remedy in scorecard["remedies"])


def test_over_http_an_answer_that_is_no_partition_is_shown_as_it_came():
    def nonsense(stage, samples, payload):
        if stage == "cluster_samples":
            return {"clusters": [{"cluster": 1, "sample_ids": ["everything"]}]}
        return label_oracle({})(stage, samples, payload)

    corpus = even_corpus(5, 300)
    with serve(nonsense) as server:
        engine = Engine("openai:x", base_url=server.openai_url, config=EngineConfig(progress="off"))
        with pytest.raises(NothingUsable) as failure:
            score_corpus(corpus, LlmJudge(engine), AgentConfig(groupings=5, proposals=1, criteria_sets=1))
    assert "everything" in failure.value.score.example_answer
    assert failure.value.score.drops == {"malformed": 5}
    assert "enforces JSON schemas" in failure.value.score.remedies[0]
