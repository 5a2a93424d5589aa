"""Parsing of partitions: one is accepted only if every shown sample is in exactly one cluster."""

from hypothesis import given
from hypothesis import strategies as st
import pytest

from diversity_jax.cluster_agent.canaries import CanaryResult, canary_result, plant, with_controls, without_planted
from diversity_jax.cluster_agent.exam_corpora import FOREIGN_TEXTS, foreign_text
from diversity_jax.cluster_agent.groupings import parse_partition, parse_validation
from diversity_jax.cluster_agent.types import AnswerError, Cluster, Sample

SAMPLES = tuple(Sample(sample_id=f"k{i}", text=f"text number {i} about weather", document=str(i)) for i in range(6))
IDS = [sample.sample_id for sample in SAMPLES]


def answer(*clusters):
    """A clustering answer from lists of ids."""
    return {
        "clusters": [
            {"cluster": n, "sample_ids": list(ids), "uniqueness_reasoning": "r"} for n, ids in enumerate(clusters, 1)
        ]
    }


def clusters_of(*groups):
    """Clusters from lists of ids."""
    return tuple(Cluster(sample_ids=tuple(ids)) for ids in groups)


@given(st.lists(st.integers(0, 3), min_size=6, max_size=6))
def test_every_partition_is_taken(labels):
    groups = [[i for i, own in zip(IDS, labels, strict=True) if own == label] for label in sorted(set(labels))]
    assert [list(c.sample_ids) for c in parse_partition(answer(*groups), SAMPLES)] == groups


@given(st.lists(st.lists(st.sampled_from([*IDS, "zz", ""]), max_size=7), max_size=5))
def test_anything_else_is_refused(groups):
    flat = [i for group in groups for i in group]
    if sorted(flat) == sorted(IDS) and all(groups):
        return
    with pytest.raises(AnswerError):
        parse_partition(answer(*groups), SAMPLES)


@pytest.mark.parametrize(
    ("groups", "complaint"),
    [
        ((IDS[:5],), "in no cluster: k5"),
        ((IDS, ["k0"]), "more than one place: k0"),
        ((IDS, ["k9"]), "unknown sample ids: k9"),
        ((IDS, []), "no `sample_ids`"),
    ],
)
def test_the_complaint_names_what_is_wrong(groups, complaint):
    with pytest.raises(AnswerError, match=complaint):
        parse_partition(answer(*groups), SAMPLES)


@pytest.mark.parametrize(
    "value", [None, [], "text", {}, {"clusters": {}}, {"clusters": [1]}, {"clusters": [{"sample_ids": [1, 2]}]}]
)
def test_another_shape_is_refused(value):
    with pytest.raises(AnswerError):
        parse_partition(value, SAMPLES)


def test_metadata_and_metrics_may_be_maps_or_lists_and_are_for_people_only():
    as_map = {"cluster_metadata": {"topic": "rain"}, "cluster_metrics": {"depth": {"reasoning": "plain", "score": 4}}}
    as_list = {
        "cluster_metadata": [{"name": "topic", "value": "rain"}, {"value": "nameless"}],
        "cluster_metrics": [{"name": "depth", "reasoning": "plain", "score": 4}],
    }
    for described in (as_map, as_list):
        (cluster,) = parse_partition({"clusters": [{"sample_ids": IDS, **described}]}, SAMPLES)
        assert cluster.metadata == (("topic", "rain"),)
        assert cluster.metrics == (("depth", 4, "plain"),)
    (cluster,) = parse_partition(
        {"clusters": [{"sample_ids": IDS, "cluster_metrics": {"depth": {"score": "high"}}}]}, SAMPLES
    )
    assert cluster.metrics == (("depth", 0, ""),)


VALUES = {"number": 1, "text": "1", "float": 1.0, "words": "cluster 1", "list": [1], "mark": "#1"}


@given(st.lists(st.integers(0, 9), min_size=6, max_size=6), st.randoms())
def test_every_assignment_of_numbers_is_a_partition(numbers, generator):
    order = list(zip(IDS, numbers, strict=True))
    generator.shuffle(order)
    groups = [[i for i, own in order if own == number] for number in sorted(set(numbers))]
    clusters = parse_partition({"assignment": dict(order)}, SAMPLES)
    assert [list(cluster.sample_ids) for cluster in clusters] == groups


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
def test_a_cluster_number_may_be_written_in_many_ways(value):
    clusters = parse_partition({"assignment": {**dict.fromkeys(IDS, 2), "k3": value, "k4": 1}}, SAMPLES)
    assert [cluster.sample_ids for cluster in clusters] == [("k3", "k4"), ("k0", "k1", "k2", "k5")]


@pytest.mark.parametrize("clusters", [None, 3, [], ["x"], [{"cluster": 77, "uniqueness_reasoning": "r"}], [[1]]])
def test_descriptions_beside_an_assignment_cannot_spoil_it(clusters):
    value = {"assignment": dict.fromkeys(IDS, 1), "clusters": clusters}
    assert parse_partition(value, SAMPLES) == (Cluster(sample_ids=tuple(IDS)),)
    value["clusters"] = [{"cluster": "1", "uniqueness_reasoning": "all of a kind", "sample_ids": ["zz"]}, "x"]
    assert parse_partition(value, SAMPLES)[0].reasoning == "all of a kind"


@pytest.mark.parametrize(
    ("assignment", "complaint"),
    [
        ({"k0": 1}, "in no cluster: k1"),
        (dict.fromkeys([*IDS, "k9"], 1), "unknown sample ids: k9"),
        (dict.fromkeys(IDS, None), "`assignment` of k0 is no cluster number"),
        (dict.fromkeys(IDS, 1.5), "`assignment` of k0 is no cluster number"),
        (dict.fromkeys(IDS, "9" * 5000), "`assignment` of k0 is no cluster number"),
        ({}, "expected an object with `assignment`"),
    ],
)
def test_what_is_wrong_with_an_assignment_is_named(assignment, complaint):
    with pytest.raises(AnswerError, match=complaint):
        parse_partition({"assignment": assignment}, SAMPLES)


PAIR_AND_ONE = clusters_of(["k0", "k1"], ["k2"])


def checked(*verdicts, clusters=PAIR_AND_ONE):
    """(valid, misplaced) of each cluster."""
    return [(cluster.valid, cluster.misplaced) for cluster in parse_validation({"validation": [*verdicts]}, clusters)]


def test_a_singleton_is_valid_whatever_is_said_of_it():
    verdicts = [{"cluster": 1, "valid": 0, "reasoning": "no"}, {"cluster": 2, "valid": 0, "misplaced": ["k2"]}]
    assert checked(*verdicts) == [(False, ("k0", "k1")), (True, ())]
    assert checked({"cluster": 1, "valid": 1}) == [(True, ()), (True, ())]
    assert parse_validation({"validation": verdicts}, PAIR_AND_ONE)[0].validation == "no"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"valid": 0, "misplaced": ["k1"]}, (False, ("k1",))),
        ({"valid": 0, "misplaced": ["k2", "k0"]}, (False, ("k0", "k2"))),
        ({"valid": 0, "misplaced": []}, (False, ("k0", "k1", "k2"))),
        ({"valid": 0}, (False, ("k0", "k1", "k2"))),
        ({"valid": 0, "misplaced": ["k9", "k3"]}, (False, ("k0", "k1", "k2"))),
        ({"valid": 0, "misplaced": ["k1", "k9", {}]}, (False, ("k1",))),
        ({"valid": 0, "misplaced": "k1, k2"}, (False, ("k1", "k2"))),
        ({"valid": 0, "misplaced": [{"sample_id": "k1"}]}, (False, ("k1",))),
        ({"valid": 1, "misplaced": ["k1"]}, (False, ("k1",))),
        ({"valid": 1, "misplaced": []}, (True, ())),
        ({"valid": 1, "misplaced": None}, (True, ())),
        ({"valid": 1, "misplaced": 3}, (True, ())),
        ({"valid": 1, "misplaced": ["k3"]}, (True, ())),
    ],
)
def test_only_the_named_samples_are_misplaced_and_all_where_none_is_named(fields, expected):
    assert checked({"cluster": 1, **fields}, clusters=clusters_of(["k0", "k1", "k2"])) == [expected]


@pytest.mark.parametrize(
    ("number", "valid", "expected"), [("1", "1", True), (1, True, True), (1.0, "false", False), (" 1", "No", False)]
)
def test_numbers_may_come_as_text_or_truth_values(number, valid, expected):
    assert checked({"cluster": number, "valid": valid})[0][0] is expected


@pytest.mark.parametrize(
    "verdicts",
    [
        [],
        [{"cluster": 2, "valid": 1}],
        [{"cluster": 1, "valid": 2}],
        [{"cluster": "first", "valid": 1}],
        [{"cluster": 1, "valid": None}],
        [{"cluster": 1, "valid": float("nan")}],
        [{"cluster": 1, "valid": 1}, {"cluster": 1, "valid": 0}],
        ["valid"],
    ],
)
def test_a_verdict_that_is_missing_or_double_is_refused(verdicts):
    with pytest.raises(AnswerError):
        parse_validation({"validation": verdicts}, clusters_of(["k0", "k1"], ["k2"]))


@given(st.integers(0, 200))
def test_planting_adds_a_copy_and_a_foreign_text_and_taking_them_out_restores_the_partition(seed):
    import random

    shown, canary = plant(SAMPLES, ["c0", "f0"], random.Random(seed))
    texts = {sample.sample_id: sample.text for sample in shown}
    assert len(shown) == len(SAMPLES) + 2
    assert [sample for sample in shown if sample.sample_id in IDS] == list(SAMPLES)
    assert texts[canary.copy] == texts[canary.original]
    assert canary.foreign not in IDS
    assert texts[canary.foreign] not in [sample.text for sample in SAMPLES]
    right = clusters_of(*[[i, *(["c0"] if i == canary.original else [])] for i in IDS], ["f0"])
    assert canary_result(right, canary).passed
    assert without_planted(right, canary) == clusters_of(*[[i] for i in IDS])


def test_a_split_copy_and_a_foreign_text_merged_with_any_sample_are_seen():
    import random

    _, canary = plant(SAMPLES, ["c0", "f0"], random.Random(0))
    rest = [i for i in IDS if i != canary.original]
    split = canary_result(clusters_of([*rest], [canary.original], ["c0"], ["f0"]), canary)
    assert (split.split, split.merged, split.passed) == (True, False, False)
    merged = canary_result(clusters_of([*IDS, "c0", "f0"]), canary)
    assert (merged.split, merged.merged, merged.merged_with, merged.drawn) == (False, True, 6, 6)
    with_another = canary_result(clusters_of([canary.original, "c0"], [*rest[:2], "f0"], rest[2:]), canary)
    assert (with_another.merged, with_another.merged_with, with_another.passed) == (True, 2, False)


def test_the_foreign_text_shares_no_subject_with_the_samples():
    import random

    bees = [FOREIGN_TEXTS["prose"][9]] * 3
    for seed in range(30):
        assert foreign_text(bees, random.Random(seed))[:60] != bees[0][:60]


@pytest.mark.parametrize("form", ["question", "command", "headline", "steps", "code"])
def test_the_foreign_text_has_the_form_of_the_samples(form):
    import random

    samples = list(FOREIGN_TEXTS[form][:4])
    taken = foreign_text(samples, random.Random(0))
    assert any(taken[:30] == text[:30] for text in FOREIGN_TEXTS[form])


@pytest.mark.parametrize(("characters", "least", "most"), [(10, 20, 40), (90, 50, 90), (2000, 1700, 2000)])
def test_the_foreign_text_is_as_long_as_the_samples_but_keeps_its_subject(characters, least, most):
    import random

    samples = [("the committee met again on the bridge. " * 60)[:characters] for _ in range(5)]
    for seed in range(20):
        assert least <= len(foreign_text(samples, random.Random(seed))) <= most


@pytest.mark.parametrize("seed", range(12))
def test_verification_sees_one_cluster_that_is_valid_for_certain_and_one_that_is_not(seed):
    import random

    _, canary = plant(SAMPLES, ["c0", f"f{seed}"], random.Random(seed))
    clusters = clusters_of(IDS[:3], IDS[3:])
    shown, (valid, invalid) = with_controls(clusters, canary)
    assert shown[valid].sample_ids == (canary.original, "c0")
    assert shown[invalid].sample_ids == (canary.original, "c0", f"f{seed}")
    assert tuple(cluster for n, cluster in enumerate(shown) if n not in (valid, invalid)) == clusters
    assert with_controls(clusters, None) == (clusters, ())


@pytest.mark.parametrize(
    ("valid", "invalid", "passed", "missed"),
    [(1, 0, True, False), (1, 1, True, True), (0, 0, False, False), (0, 1, False, True)],
)
def test_a_denied_copy_discards_a_grouping_and_a_missed_control_is_only_counted(valid, invalid, passed, missed):
    controls = [
        Cluster(sample_ids=("a", "b"), valid=bool(valid)),
        Cluster(sample_ids=("a", "b", "f"), valid=bool(invalid)),
    ]
    result = CanaryResult(merged=False, split=False).with_controls(controls)
    assert (result.passed, result.missed, result.denied) == (passed, missed, not valid)
