"""The page of an audit, the page of a scoring without a usable grouping, and a scoring's section on its judge."""

from collections.abc import Mapping
import json
import os
from pathlib import Path

from diversity_jax.cluster_agent import Scorecard, UnusableScore
from diversity_jax.cluster_agent.exam_result import HALF, RIGHT, WRONG, ExamResult, total
from diversity_jax.cluster_agent.verdict import FITNESS, Verdict
from diversity_jax.core import formats
from diversity_jax.core.formats import count, counted, estimate, listed, money, shortened, significant
from diversity_jax.core.run_info import Fact
from diversity_jax.report import page
from diversity_jax.report.figures import diversity
from diversity_jax.report.figures.diversity import Whisker
from diversity_jax.report.html import Palette, macro
from diversity_jax.report.page import Page, Section
from diversity_jax.report.plotting import render
from diversity_jax.scoring.audit import AuditResult

_FOOTER = "Written by diversity_jax. The exam's corpora were written for it; intervals are at 95 %."
_SHORT = {
    "subjects_24": "24 subjects",
    HALF: "24 subjects, K / 2",
    "subjects_6": "6 far apart",
    "one_subject": "one subject",
    "neighbours": "12, neighbours",
    "skewed": "24, falling size",
    "styles": "4 in 5 styles",
    "lengths": "6, mixed lengths",
    "languages": "6 in 13 languages",
}
"""Short names of the exam's corpora, for the figure."""


def write(output_dir: str | os.PathLike, result: AuditResult) -> Path:
    """Writes `report.html` and `figures/`; a `run.json` in the folder adds the command line and versions.

    Returns:
      The path of the page.
    """
    facts = page.run_facts(output_dir) + _facts(result.exam)
    right = sum(result.exam.fitness_of(reading) == "fit" for reading in result.exam.readings)
    moved = max((abs(injection.moved) for injection in result.injections.values()), default=None)
    composed = Page(
        kind="Audit of",
        name=result.exam.judge,
        verdict=_verdict(result.exam),
        lede=_lede(result.exam),
        key_figures=macro("audit", "key_figures", result.exam, right, _shares(result.exam), moved),
        sections=(
            _reasons(result.exam),
            _readings(result.exam),
            _mistakes(result.exam),
            _injections(result),
            page.facts(facts, intro="What one needs to examine again and get the same."),
        ),
        footer=_FOOTER,
    )
    return page.write(composed, output_dir)


def _verdict(exam: ExamResult) -> str:
    name = formats.shortened(exam.judge, 60)
    return {
        "fit": f"{name} is fit: it reads corpora of known diversity as what they are.",
        "doubtful": f"{name} is doubtful: figures by it may be off by more than their intervals say.",
        "unfit": f"{name} is unfit: figures by it say little about a corpus.",
    }[exam.verdict.judge]


def _lede(exam: ExamResult) -> str:
    reasons = exam.verdict.reasons
    if not reasons:
        return "Nothing was found against it in any corpus of the exam."
    return f"{reasons[0][:1].upper()}{reasons[0][1:]}."


def _shares(exam: ExamResult) -> list[tuple[str, float]]:
    """Mistakes among the key figures: a label, and their share of the pairs of their kind."""
    shares = []
    for label, kinds, right in (
        ("Unrelated pairs put together", ("unrelated",), False),
        ("Neighbouring pairs put together", ("neighbours",), False),
        ("Pairs of one subject set apart", tuple(RIGHT), True),
    ):
        counts = total((reading.pairs for reading in exam.readings), kinds)
        if counts.shown:
            together = counts.together / counts.shown
            shares.append((label, 1 - together if right else together))
    return shares


def _reasons(exam: ExamResult) -> Section | None:
    reasons = exam.verdict.reasons
    return page.section("audit", "reasons", "Reasons", reasons=reasons) if len(reasons) > 1 else None


def _readings(exam: ExamResult) -> Section:
    """The known diversity of the exam's corpora against the judge's figure, as a plot and a table."""
    read = [(reading, reading.reading) for reading in exam.readings if reading.reading]
    palette = Palette([_SHORT[reading.corpus] for reading in exam.readings])
    rows = [
        Whisker(
            name=_SHORT[reading.corpus],
            interval=interval,
            note="" if exam.fitness_of(reading) == "fit" else exam.fitness_of(reading),
            fill="full" if exam.fitness_of(reading) == "fit" else "none",
            required=reading.truth * exam.scale,
        )
        for reading, interval in read
    ]
    alt = "; ".join(
        f"{reading.title}: {estimate(reading_estimate)}, in truth {significant(reading.truth)}"
        for reading, reading_estimate in read
    )
    plot = render("readings", alt, lambda width: diversity.whiskers(rows, None, palette, width)) if rows else None
    return page.section("audit", "readings", "Truth and reading", exam=exam, plot=plot)


def _mistakes(exam: ExamResult) -> Section:
    """How often the judge put pairs of each kind together."""
    rows = []
    for kinds, right in ((RIGHT, True), (WRONG, False)):
        for kind, what in kinds.items():
            counts = total((reading.pairs for reading in exam.readings), (kind,))
            if counts.shown:
                rows.append((what, right, counts))
    if not rows:
        return page.absent("mistakes", "Mistakes by kind", "No partition came, so no pair can be counted.")
    return page.section("audit", "mistakes", "Mistakes by kind", rows=rows)


def _injections(result: AuditResult) -> Section:
    if not result.injections and not result.failures:
        why = "No corpus was named (config.corpus), so none was attacked."
        return page.absent("injections", "Hostile documents", why)
    palette = Palette([*result.injections, *result.failures])
    return page.section(
        "audit",
        "injections",
        "Hostile documents",
        audits=result.injections,
        failures=result.failures,
        palette=palette,
    )


def _facts(exam: ExamResult) -> list[Fact]:
    settings = ", ".join(f"{name}={value}" for name, value in sorted(exam.settings.items()))
    tokens = f"{count(exam.tokens['prompt'])} prompt and {count(exam.tokens['completion'])} completion tokens"
    return [
        Fact(name="Judge", value=exam.judge),
        Fact(name="Prompts", value=exam.prompt_version, code=True),
        Fact(name="Identity", value=json.dumps(exam.identity, sort_keys=True), code=True),
        Fact(name="Settings", value=settings, code=True),
        Fact(name="Exam", value=f"{counted(exam.calls, 'call')}, {tokens}, {money(exam.cost_usd)}"),
    ]


_NOT_EXAMINED = Verdict(judge="doubtful", reasons=("it was not examined: this scorecard is of an earlier version",))


def verdict_of(scorecard: Scorecard) -> Verdict:
    """The verdict on a scorecard's judge; "doubtful" for scorecards of earlier versions, which have no verdict."""
    return scorecard.verdict or _NOT_EXAMINED


def headline(scorecards: Mapping[str, Scorecard]) -> str:
    """The sentence before any figure, on the worst verdict; empty where the judge is fit for all corpora."""
    verdicts = {name: verdict_of(scorecard) for name, scorecard in scorecards.items()}
    worst = max((verdict.judge for verdict in verdicts.values()), key=FITNESS.index)
    if worst == "fit":
        return ""
    names = [shortened(name, 40) for name, verdict in verdicts.items() if verdict.judge == worst]
    reason = next(verdict.reasons[0] for verdict in verdicts.values() if verdict.judge == worst and verdict.reasons)
    where = f" for {listed(names)}" if len(scorecards) > 1 else ""
    worth = "the figures say nothing of the text. As read" if worst == "unfit" else "the figures may be biased. As read"
    return f"The judge is {worst}{where} ({reason}), and {worth}:"


def section(scorecards: Mapping[str, Scorecard], palette: Palette) -> Section:
    """The verdict on the judge for each corpus, with its reasons."""
    verdicts = {name: verdict_of(scorecard) for name, scorecard in scorecards.items()}
    return page.section("score", "examination", "Can these figures be believed?", verdicts=verdicts, palette=palette)


def write_unusable(output_dir: str | os.PathLike, score: UnusableScore) -> Path:
    """Writes the page of a scoring without a usable grouping: reasons, an example of an answer, and remedies.

    Returns:
      The path of `report.html`.
    """
    parameters = ", ".join(f"{name}={value}" for name, value in sorted(score.parameters.items()))
    facts = [
        *page.run_facts(output_dir),
        Fact(name="Judge", value=score.judge),
        Fact(name="Prompts", value=score.prompt_version, code=True),
        Fact(name="Parameters", value=parameters, code=True),
    ]
    composed = Page(
        kind="Diversity of",
        name=str(score.corpus.get("name", "corpus")),
        verdict=f"No figure: none of {counted(score.groupings, 'grouping')} was usable.",
        lede=f"Judged by {score.judge}, which is {score.verdict.judge} for this.",
        sections=(
            page.section("score", "unusable", "What was seen", score=score),
            page.section("score", "remedies", "What helps", remedies=score.remedies),
            page.facts(facts, intro="What was asked of whom."),
        ),
        footer="Written by diversity_jax.",
    )
    return page.write(composed, output_dir)
