"""Formatting of numbers keeps their value, and foreign text is escaped."""

import errno
from fractions import Fraction
import os
import re
import tempfile

from hypothesis import given
from hypothesis import strategies as st
import pytest

from diversity_jax.core.errors import InputError
from diversity_jax.core.formats import (
    clean,
    compact,
    count,
    duration,
    estimate,
    listed,
    money,
    of_unit,
    percent,
    shortened,
    signed,
    significant,
)
from diversity_jax.core.intervals import Estimate
from diversity_jax.mixtures.mixture import MixtureComponent
from diversity_jax.report.figures.diversity import Distribution
from diversity_jax.report.html import Html, HtmlTable, environment, html, macro
from diversity_jax.report.pages.mixture import gate_figures


@given(st.floats(1e-4, 1e15), st.integers(1, 6))
def test_significant_digits_keep_the_value(value, digits):
    written = float(significant(value, digits).replace(",", ""))
    assert written == pytest.approx(value, rel=0.51 * 10 ** (1 - digits))


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (significant(52.34), "52.3"),
        (significant(4.10), "4.1"),
        (significant(1234), "1,230"),
        (significant(0.0512), "0.0512"),
        (significant(-3.5), "\u22123.5"),
        (significant(float("nan")), "not finite"),
        (signed(-4.168, 2), "\u22124.17"),
        (signed(4.168), "+4.2"),
        (signed(-0.04), "0.0"),
        (count(1234567), "1,234,567"),
        (compact(12_345_678, "tokens"), "12.3\u202fM\u00a0tokens"),
        (compact(999_600), "1\u202fM"),
        (compact(12), "12"),
        (percent(0.1234), "12.3\u202f%"),
        (duration(0.0123), "12.3\u202fms"),
        (duration(7384), "2\u202fh 3\u202fmin"),
        (duration(3599.7), "1\u202fh 0\u202fmin"),
        (duration(59.99), "60\u202fs"),
        (money(12.3456), "$12.35"),
        (money(0.00123), "$0.00123"),
        (estimate(Estimate(value=4.1, low=3.8, high=4.5)), "4.1 [3.8, 4.5]"),
        (estimate(Estimate(value=200, low=120, high=None)), "at least 120"),
        (estimate(Estimate(value=1.0, low=1.0, high=1.0004), "clusters"), "1 cluster [1, 1]"),
        (estimate(Estimate(value=3.0, low=1.0), "clusters"), "at least 1 cluster"),
        (of_unit("1", "effective clusters"), "effective cluster"),
        (estimate(Estimate(value=1.2, low=1.0, high=1.3), "clusters"), "1.2 clusters [1, 1.3]"),
        (listed(["a", "b", "c"]), "a, b and c"),
        (shortened("one\ntwo   three", 8), "one two\u2026"),
    ],
)
def test_how_numbers_are_written(written, expected):
    assert written == expected


@given(st.text(st.characters(codec=None), max_size=200))
def test_clean_text_is_valid_utf8_without_controls(value):
    cleaned = clean(value)
    cleaned.encode("utf-8")
    assert not any(ord(letter) < 32 and letter not in "\n\t" for letter in cleaned)
    assert not any("\u202a" <= letter <= "\u202e" or "\u2066" <= letter <= "\u2069" for letter in cleaned)


def test_direction_marks_are_spelt_out():
    assert clean("ab\u202ecd") == "ab[U+202E]cd"


@given(st.text(st.characters(codec=None), max_size=200))
def test_plain_strings_never_become_markup(value):
    made = html('<p title="{}">{}</p>', value, value)
    inside = made[made.index(">") + 1 : -len("</p>")]
    assert "<" not in inside
    assert '"' not in inside
    assert made.count('"') == 2
    cells = HtmlTable([f"#{value}"], [[value]]).__html__()
    assert set(re.findall(r"</?(\w+)", cells)) == {"div", "table", "thead", "tbody", "tr", "th"}
    absent = macro("macros", "absent", why=value)
    assert re.findall(r"</?(\w+)", absent) == ["p", "p"]


def test_markup_made_here_is_kept_and_foreign_text_is_escaped_once():
    made = html('<p class="x">{}{}</p>', html("<b>{}</b>", "a<b"), "&amp;")
    assert made == '<p class="x"><b>a&lt;b</b>&amp;amp;</p>'
    assert html("{}", Html("<i>")) == "<i>"


def test_table_cells_carry_their_heading_for_narrow_screens():
    made = HtmlTable(["Name", "#Tokens"], [("web", "12")]).__html__()
    assert '<td class="number" data-label="Tokens"><span>12</span></td>' in made


def _decision(**fields) -> MixtureComponent:
    decision = {"action": "warn", "reason": ""} | fields
    return MixtureComponent(
        name="web",
        kind="real",
        share_asked=Fraction(1),
        share_granted=Fraction(1),
        decision=decision,
        manifest=None,
    )


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Estimate(value=1, low=2, high=1), "upside down"),
        (lambda: Estimate(value=float("nan"), low=1, high=2), "value is nan"),
        (lambda: gate_figures(_decision(action="maybe"), {}), "action is 'maybe'"),
        (lambda: Distribution(name="web", values=[1, 2], counts=[1]), "expected equal lengths"),
        (lambda: Distribution(name="web", values=[2, 1], counts=[1, 1]), "must ascend"),
    ],
)
def test_wrong_data_is_refused_by_name(make, says):
    with pytest.raises(InputError, match=says):
        make()


def test_templates_that_cannot_be_cached_are_used_all_the_same(tmp_path, monkeypatch):
    (tmp_path / "diversity_jax" / "templates").mkdir(parents=True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    opened = []

    def full(*_, **__):
        opened.append(1)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tempfile, "NamedTemporaryFile", full)
    assert environment.__wrapped__().get_template("macros.html.j2").module
    assert opened
