"""Whether a judge's figures can be believed: the first section of a scoring's page, and the page without any figure."""

from collections.abc import Mapping
import os
from pathlib import Path

from diversity_jax.cluster_agent import Scorecard, UnusableScore
from diversity_jax.cluster_agent.verdict import FITNESS, Verdict
from diversity_jax.core.formats import counted, listed, shortened
from diversity_jax.core.run_info import Fact, RunInfo
from diversity_jax.report import page
from diversity_jax.report.html import Palette
from diversity_jax.report.page import Page, Section

_NOT_EXAMINED = Verdict(judge="doubtful", reasons=("it was not examined: this scorecard is of an earlier version",))


def verdict_of(scorecard: Scorecard) -> Verdict:
    """The verdict on a scorecard's judge; of earlier versions, that there was none."""
    return scorecard.verdict or _NOT_EXAMINED


def headline(scorecards: Mapping[str, Scorecard]) -> str:
    """The sentence that stands before any figure; empty where the judge is fit for all corpora."""
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
    """Writes the page of a scoring that gave no figure: what was seen, an answer as an example, and what helps.

    Returns:
      The path of `report.html`.
    """
    name, record = str(score.corpus.get("name", "corpus")), Path(output_dir) / "run.json"
    info = RunInfo.load(record) if record.exists() else None
    parameters = ", ".join(f"{name}={value}" for name, value in sorted(score.parameters.items()))
    facts = [
        *(info.facts() if info else []),
        Fact(name="Judge", value=score.judge),
        Fact(name="Prompts", value=score.prompt_version, code=True),
        Fact(name="Parameters", value=parameters, code=True),
    ]
    composed = Page(
        kind="Diversity of",
        name=name,
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
