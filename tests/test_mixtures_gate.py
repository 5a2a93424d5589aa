"""Shares before and after the gate."""

from fractions import Fraction

from hypothesis import given, settings
from hypothesis import strategies as st
import pytest

from diversity_jax.errors import InputError
from diversity_jax.mixtures.component import Component, GatePolicy, MixtureConfig, regrant, token_shares


def component(name, kind, share=1.0, **policy):
    return Component(name=name, kind=kind, corpus=f"{name}.jsonl", share=share, policy=GatePolicy(**policy))


REAL = [component("web", "real", 4), component("code", "real", 1), component("math", "real", 1)]


def test_the_papers_ratio_within_and_between_kinds():
    shares = token_shares([*REAL, component("made", "synthetic")], (4, 1))
    assert shares == (Fraction(8, 15), Fraction(2, 15), Fraction(2, 15), Fraction(1, 5))


def test_shares_that_do_not_add_up_are_refused_with_their_sum():
    with pytest.raises(InputError, match=r"shares sum to 0.9 \(a 0.5, b 0.4\)"):
        token_shares([component("a", "real", 0.5), component("b", "real", 0.4)])


def test_a_ratio_without_a_component_of_that_kind_is_refused():
    with pytest.raises(InputError, match="no synthetic component has a share"):
        token_shares(REAL, (4, 1))


@settings(max_examples=50)
@given(
    st.lists(st.tuples(st.sampled_from(["real", "synthetic"]), st.integers(1, 20), st.floats(0, 1) | st.just(1.0)), min_size=1, max_size=8)
)
def test_what_the_gate_takes_away_goes_to_others_and_nothing_is_lost(parts):
    components = [component(f"c{i}", kind, share) for i, (kind, share, _) in enumerate(parts)]
    total = sum(share for _, share, _ in parts)
    shares = [Fraction(share, total) for _, share, _ in parts]
    factors = [factor for *_, factor in parts]
    if not any(round(factor, 4) for factor in factors):
        with pytest.raises(InputError, match="rejected every component"):
            regrant(components, shares, factors)
        return
    granted = regrant(components, shares, factors)
    assert sum(granted) == 1
    kept_by_kind = {kind: any(f == 1 and p == kind for (p, _, _), f in zip(parts, factors, strict=True)) for kind in ("real", "synthetic")}
    for kind, kept in kept_by_kind.items():
        if kept and all(kept_by_kind[k] or all(p != k for p, _, _ in parts) for k in kept_by_kind):
            members = [i for i, (p, _, _) in enumerate(parts) if p == kind]
            assert abs(float(sum(granted[i] for i in members) - sum(shares[i] for i in members))) < 1e-4


def test_a_rejected_synthetic_part_leaves_its_tokens_to_the_other():
    components = [*REAL, component("good", "synthetic"), component("poor", "synthetic")]
    shares = token_shares(components, (1, 1))
    granted = regrant(components, shares, [1, 1, 1, 1, 0])
    assert granted == (*shares[:3], Fraction(1, 2), 0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"components": ()}, "has no components"),
        ({"components": (REAL[0], REAL[0])}, "2 components named 'web'"),
        ({"components": REAL, "name": "a b"}, "letters, digits and underscores"),
        ({"components": (component("a", "real", min_ratio_to={"b": 0.5}),)}, "names 'b'"),
    ],
)
def test_impossible_mixtures_are_refused(options, words):
    with pytest.raises(InputError, match=words):
        MixtureConfig(**{"name": "m", "real_to_synthetic": (1, 0), **options})


@pytest.mark.parametrize(("kind", "words"), [("fake", "kind 'fake' is unknown")])
def test_an_unknown_kind_is_named(kind, words):
    with pytest.raises(InputError, match=words):
        component("a", kind)
