"""Allocation of shares after the gate: removed share goes where the policy says, and decisions are repeatable."""

from fractions import Fraction
import json

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

from diversity_jax.core.config import plain_for_keys
from diversity_jax.core.errors import InputError
from diversity_jax.core.files import content_hash
from diversity_jax.core.json_fields import from_json
from diversity_jax.core.run_info import plain
from diversity_jax.mixtures.config import SHARES_OF, Component, GatePolicy, MixtureConfig, token_shares
from diversity_jax.mixtures.gate import decide, measure
from diversity_jax.mixtures.shares import (
    AvailableRows,
    GateResult,
    allocate_shares,
    granted_shares,
    part_shares,
    train_rows,
)
from tests.example_run import make_scorecard


def component(name, kind, share=1.0, **policy):
    return Component(name=name, kind=kind, corpus=f"{name}.jsonl", share=share, policy=GatePolicy(**policy))


REAL = [component("web", "real", 4), component("code", "real", 1), component("math", "real", 1)]


def test_the_papers_ratio_within_and_between_kinds():
    shares = token_shares([*REAL, component("made", "synthetic")], (4, 1))
    assert shares == (Fraction(8, 15), Fraction(2, 15), Fraction(2, 15), Fraction(1, 5))


def test_shares_that_do_not_add_up_are_refused_with_their_sum():
    with pytest.raises(InputError, match=r"shares sum to 0.9 \(a 0.5, b 0.4\)"):
        token_shares([component("a", "real", 0.5), component("b", "real", 0.4)])


def test_shares_as_fractions_or_numbers_of_numpy_are_read_back_as_they_were_recorded():
    parts = [component("a", "real", Fraction(1, 3)), component("b", "synthetic", np.float32(0.5))]
    config = MixtureConfig(name="m", components=parts, vocabulary="bytes", real_to_synthetic=(Fraction(2, 3), 1))
    recorded = json.loads(json.dumps(plain(config)))
    assert from_json(MixtureConfig, recorded, "mixture.json").shares_asked() == (Fraction(2, 5), Fraction(3, 5))
    assert len(content_hash(plain_for_keys(config))) == 64
    with pytest.raises(InputError, match=r"shares sum to 0.333333 \(a 0.333333\)"):
        token_shares(parts[:1])


def test_a_ratio_without_a_component_of_that_kind_is_refused():
    with pytest.raises(InputError, match="no synthetic component has a share"):
        token_shares(REAL, (4, 1))


def one_part(rows):
    return (AvailableRows(share=Fraction(1), rows=rows),)


REJECTED, HALVED = GateResult(factor=0.0), GateResult(factor=0.5)


def taken(rows=None):
    return GateResult(rows=one_part(rows) if rows else ())


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["real", "synthetic"]),
            st.integers(1, 20),
            st.floats(0, 1) | st.just(1.0),
            st.sampled_from(["kind_then_all", "kind", "all", "error"]),
            st.none() | st.floats(0.5, 8),
            st.booleans(),
            st.floats(1, 500),
            st.integers(10, 3000),
        ),
        min_size=1,
        max_size=7,
    )
)
def test_allocations_lose_nothing_keep_limits_and_say_where_they_cannot(parts):
    components = [
        component(f"c{i}", kind, share, freed_share=freed, repeat_limit=limit, auto=auto)
        for i, (kind, share, _, freed, limit, auto, _, _) in enumerate(parts)
    ]
    total = sum(share for _, share, *_ in parts)
    shares = [Fraction(share, total) for _, share, *_ in parts]
    results = [
        GateResult(factor=factor, effective_clusters=clusters, rows=one_part(rows))
        for _, _, factor, _, _, _, clusters, rows in parts
    ]
    try:
        granted = allocate_shares(components, shares, results, 4000)
    except InputError as error:
        refused = str(error)
    else:
        refused = ""
    if refused:
        assert "nowhere to go" in refused or "rejected every component" in refused
        return
    assert sum(granted) == 1
    for asked, share, gate in zip(components, granted, results, strict=True):
        if asked.policy.epochs is not None:
            assert share * 4000 <= asked.policy.epochs * gate.rows[0].rows
        if not gate.factor:
            assert share == 0


def test_a_rejected_synthetic_part_leaves_its_tokens_to_the_other():
    components = [*REAL, component("good", "synthetic"), component("poor", "synthetic")]
    shares = token_shares(components, (1, 1))
    granted = allocate_shares(components, shares, [taken(), taken(), taken(), taken(), REJECTED])
    assert granted == (*shares[:3], Fraction(1, 2), 0)


@pytest.mark.parametrize(
    ("freed_share", "expected"),
    [
        ("kind", (Fraction(1, 4), Fraction(1, 4), 0, Fraction(1, 2))),
        ("kind_then_all", (Fraction(1, 4), Fraction(1, 4), 0, Fraction(1, 2))),
        ("all", (Fraction(1, 3), Fraction(1, 3), 0, Fraction(1, 3))),
        ("code", (Fraction(1, 4), Fraction(1, 2), 0, Fraction(1, 4))),
        ("web,code", (Fraction(3, 8), Fraction(3, 8), 0, Fraction(1, 4))),
    ],
)
def test_a_freed_share_goes_where_the_policy_says(freed_share, expected):
    components = [
        component("web", "real"),
        component("code", "real"),
        component("poor", "synthetic", freed_share=freed_share),
        component("good", "synthetic"),
    ]
    granted = allocate_shares(components, [Fraction(1, 4)] * 4, [taken(), taken(), REJECTED, taken()])
    assert [float(share) for share in granted] == pytest.approx([float(share) for share in expected], abs=1e-5)


@pytest.mark.parametrize(
    ("freed_share", "unit"), [("kind", "tokens"), ("error", "documents"), ("spare", "passes"), ("spare", "rows")]
)
def test_a_share_with_nowhere_to_go_is_one_clear_line(freed_share, unit):
    components = [
        component("web", "real"),
        component("poor", "synthetic", freed_share=freed_share),
        component("spare", "real", 0),
    ]
    words = f"'poor': the gate takes away 0.5 of the mixture's {unit}, .* nowhere to go "
    shares, results = [Fraction(1, 2), Fraction(1, 2), Fraction(0)], [taken(), REJECTED, taken()]
    counted = {words: name for name, words in SHARES_OF.items()}.get(unit, unit)
    with pytest.raises(InputError, match=words + r"\(freed_share=.*could take them: web\)") as caught:
        allocate_shares(components, shares, results, shares_of=counted)
    assert "\n" not in str(caught.value)


def test_a_repeat_limit_caps_what_an_upweighted_component_may_be_asked_for():
    """The paper's ratio experiment: 12.9 B tokens asked to stand for 50 B beside 34 B, and allowed two epochs."""
    components = [*REAL, component("made", "synthetic", repeat_limit=2.0, freed_share="all")]
    shares = token_shares(components, (34, 50))
    rows = train_rows(84_000, 1)
    granted = allocate_shares(components, shares, [taken(), taken(), taken(), taken(12_900)], rows)
    assert 2 * 12_900 - 5 < granted[3] * rows <= 2 * 12_900
    assert granted[0] / granted[1] == pytest.approx(4, abs=1e-3)


def test_auto_divides_by_effective_clusters_and_stops_at_what_there_is():
    components = [
        component("web", "real"),
        component("a", "synthetic", auto=True),
        component("b", "synthetic", auto=True),
    ]
    shares = token_shares(components, (1, 1))
    plenty = [
        taken(),
        *(GateResult(effective_clusters=clusters, rows=one_part(10**6)) for clusters in (30.0, 10.0)),
    ]
    assert allocate_shares(components, shares, plenty, 1000) == (Fraction(1, 2), Fraction(3, 8), Fraction(1, 8))
    scarce = [taken(), GateResult(effective_clusters=30.0, rows=one_part(203)), plenty[2]]
    assert allocate_shares(components, shares, scarce, 1000) == (Fraction(1, 2), Fraction(1, 5), Fraction(3, 10))


def test_downweighting_is_the_stated_function_of_the_low_end():
    scorecards = {"a": make_scorecard("a", 10), "real": make_scorecard("real", 40)}
    for power in (1.0, 2.0):
        synthetic = component(
            "a", "synthetic", min_ratio_to={"real": 0.5}, on_fail="downweight", downweight_power=power
        )
        decision = decide(synthetic, measure(synthetic, scorecards))
        assert decision.action == "downweight"
        assert decision.factor == pytest.approx((decision.findings[0].low / 0.5) ** power)


def test_parts_of_a_mixture_inside_a_mixture_sum_to_its_grant():
    results = [
        taken(),
        GateResult(rows=tuple(AvailableRows(share=share, rows=5) for share in (Fraction(1, 3), Fraction(2, 3)))),
    ]
    assert part_shares([Fraction(1, 4), Fraction(3, 4)], results) == [
        (Fraction(1, 4),),
        (Fraction(1, 4), Fraction(1, 2)),
    ]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"components": ()}, "has no components"),
        ({"components": REAL[0]}, "put a comma after it"),
        ({"components": (REAL[0], REAL[0])}, "2 components named 'web'"),
        ({"components": REAL, "name": "a b"}, "letters, digits and underscores"),
        ({"components": (component("a", "real", min_ratio_to={"b": 0.5}),)}, "names 'b'"),
        ({"components": (component("a", "real", freed_share="b"),)}, "freed_share names 'b'"),
        ({"components": (component("a", "real", repeat_limit=2),)}, "repeat_limit counts epochs; set train_tokens"),
        ({"components": REAL, "train_tokens": 0}, "train_tokens 0"),
        ({"components": REAL, "train_tokens": float("inf")}, "train_tokens=inf: must be a whole number"),
        ({"components": REAL, "sequence_length": 0}, "sequence_length 0"),
        ({"components": REAL, "sequence_length": 12.5}, "sequence_length=12.5: must be a whole number"),
        ({"components": REAL, "seed": 2**63}, "seed=9223372036854775808"),
        ({"components": REAL, "real_to_synthetic": 4}, "real_to_synthetic 4: give two parts"),
        ({"components": REAL, "real_to_synthetic": (1, float("nan"))}, "give two parts"),
    ],
)
def test_impossible_mixtures_are_refused(options, words):
    with pytest.raises(InputError, match=words):
        MixtureConfig(**{"name": "m", "real_to_synthetic": (1, 0), **options})


def test_whole_numbers_of_any_type_are_counts():
    config = MixtureConfig(name="m", components=REAL, real_to_synthetic=(1, 0), train_tokens=5e9, seed=np.int32(3))
    assert (config.train_tokens, config.seed) == (5_000_000_000, 3)
    assert type(config.train_tokens) is type(config.seed) is int


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kind": "fake"}, "kind 'fake' is unknown"),
        ({"share": float("inf")}, "share inf"),
        ({"share": "1/3"}, "share 1/3"),
        ({"name": "real"}, "has a meaning of its own"),
        ({"repeat_limit": 0}, "repeat_limit 0"),
        ({"downweight_power": -1}, "downweight_power -1"),
        ({"auto": True, "ungated": True}, "set one of the two"),
        ({"on_fail": "drop"}, "'drop' is unknown"),
        ({"freed_share": ""}, "freed_share '': choose"),
    ],
)
def test_an_impossible_component_is_refused(options, words):
    with pytest.raises(InputError, match=words):
        component(**{"name": "a", "kind": "real", **options})


@pytest.mark.parametrize(("shares_of", "limit"), [("tokens", None), ("examples", None), ("examples", 0.5)])
def test_the_ratio_holds_in_what_shares_count_where_a_component_is_rejected_or_limited(shares_of, limit):
    synthetic = [
        component("a", "synthetic", repeat_limit=limit),
        component("b", "synthetic"),
        component("c", "synthetic"),
    ]
    config = MixtureConfig(
        name="m",
        components=(component("web", "real"), *synthetic),
        real_to_synthetic=(4, 1),
        shares_of=shares_of,
        sequence_length=256,
        train_tokens=256 * 5000,
    )
    contents = [(257, 25), (200, 8), (240, 1)]  # tokens and documents a row; of `b` nothing was prepared
    rows = [AvailableRows(share=Fraction(1), rows=100, tokens=100 * n, documents=100 * k) for n, k in contents]
    web, a, c = (GateResult(rows=(each,)) for each in rows)
    granted = [float(share) for (share,) in granted_shares(config, [web, a, REJECTED, c], shares_of)[1]]
    units = [pair[shares_of == "examples"] for pair in contents]
    amounts = [share * per_row for share, per_row in zip((granted[0], granted[1], granted[3]), units, strict=True)]
    assert amounts[0] / sum(amounts) == pytest.approx(0.8, abs=1e-3)
    assert granted[2] == 0
    if limit:
        assert granted[1] <= limit * 100 / 5000
        assert granted[1] == pytest.approx(limit * 100 / 5000, abs=1e-3)
    else:
        assert amounts[1] == pytest.approx(amounts[2], rel=1e-3)
