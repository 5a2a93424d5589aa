"""A scoring run: forecast, scorecards, comparisons, checks and baseline metrics, with all files but the page."""

from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
from dataclasses import dataclass, field, replace
import logging
from pathlib import Path
from typing import Any

import diversity_jax
from diversity_jax.cluster_agent import (
    Comparison,
    Draws,
    JudgeSettings,
    PairComparison,
    Scorecard,
    Undecided,
    compare_pairs,
    drift,
    judge_kind,
    open_judge,
    score_corpora,
    score_draws,
    score_in_looks,
    score_key,
    score_until_decided,
)
from diversity_jax.core.artifacts import exclusive_lock
from diversity_jax.core.errors import InputError
from diversity_jax.core.files import content_hash, file_hash, read_json, write_json
from diversity_jax.core.formats import counted, estimate
from diversity_jax.core.json_fields import Fields, read_fields
from diversity_jax.corpus import Corpus, open_corpus
from diversity_jax.llm import BudgetConfig, EngineConfig, require_cap
from diversity_jax.metrics import MetricsReport
from diversity_jax.scoring.config import ScoreConfig, is_name, named_corpora
from diversity_jax.scoring.forecast import ScoringForecast

log = logging.getLogger(__name__)

_RESULTS = (
    *("scorecard.json", "groupings.jsonl", "comparison.json", "metrics_cost.json", "draws.json", "drift.json"),
    "drift/scorecard.json",
)  # files of a scoring, most in the folder of each corpus
_RECORD = "scoring.json"  # record of a finished scoring, by which a rerun is skipped, and other corpora are refused
# Settings that do not change the results of a scoring, with the values that replace them in its key.
_NOT_OF_A_SCORING: Mapping[str, Any] = {
    "output_dir": "",
    "dry_run": False,
    "pilot_groupings": 0,
    "overwrite": False,
    "judge_base_url": None,
    "exam_dir": None,  # the exam's verdict is part of `score_key`
    "engine": EngineConfig(),
    "budget": BudgetConfig(),
}


@dataclass(frozen=True, kw_only=True)
class DriftCheck:
    """A test of drift: the scorecard at the other K, and the comparison of the two K, the smaller first."""

    scorecard: Scorecard
    comparison: Comparison
    sizes: tuple[int, int]

    def to_json(self) -> dict[str, Any]:
        drifts, comparison = self.comparison.decided, self.comparison.to_json()
        return {"samples_per_grouping": list(self.sizes), "drifts": drifts, "comparison": comparison}


@dataclass(frozen=True, kw_only=True)
class Checks:
    """Scores of draws and tests of drift by name of the corpus, where they were asked for."""

    draws: Mapping[str, Draws] = field(default_factory=dict)
    drift: Mapping[str, DriftCheck] = field(default_factory=dict)

    def save(self, folders: Mapping[str, Path]) -> None:
        """Writes draws.json, drift.json and the scorecard at the other K to each corpus's folder."""
        for name, draws in self.draws.items():
            write_json(folders[name] / "draws.json", draws.to_json())
        for name, check in self.drift.items():
            write_json(folders[name] / "drift.json", check.to_json())
            check.scorecard.save(folders[name] / "drift" / "scorecard.json")


@dataclass(frozen=True, kw_only=True)
class ScoreResult:
    """Results of a run by name of the corpus; `scorecards` is empty without a judge, and all is after a dry run."""

    forecast: ScoringForecast | None = None
    scorecards: Mapping[str, Scorecard] = field(default_factory=dict)
    metrics: Mapping[str, MetricsReport] = field(default_factory=dict)
    checks: Checks = field(default_factory=Checks)
    comparisons: Sequence[PairComparison] = ()


def run_score(config: ScoreConfig, corpora: Mapping[str, Corpus] | None = None) -> ScoreResult | None:
    """Forecasts, scores and measures as a configuration asks for, and writes all files but the page.

    Args:
      corpora: opened corpora by name; None opens those of the configuration.

    Returns:
      None where `output_dir` already holds this scoring with its page.

    Raises:
      InputError: a corpus cannot be read, the judge cannot be opened or has no usable answer, `output_dir` holds scores
        of other corpora or is being written to, or calls would be paid for without a cap.
    """
    kind, output_dir = judge_kind(config.judge), Path(config.output_dir)
    kind.check(config, not config.forecast_only)
    corpora = open_corpora(config) if corpora is None else corpora
    record = {} if config.forecast_only else _check_folder(config, corpora)
    if not config.dry_run and _is_scored(output_dir, record):
        log.info("scored before with these settings: %s", ", ".join(corpora))
        return None
    expected = None if kind.open is None else ScoringForecast(config, list(corpora.values()))
    if config.forecast_only:  # its caller prints the forecast
        return ScoreResult(forecast=expected)
    if expected:
        log.info("%s", expected)
    if expected and expected.planned:
        require_cap(expected.costs["before"], config.budget, [config.judge_base_url])
    with exclusive_lock(output_dir / ".score.lock", f"config.output_dir: {{holder}} is scoring in {output_dir}; wait"):
        if expected and expected.planned and config.pilot_groupings:
            expected.run_pilot(config.pilot_groupings, output_dir / "ledger.sqlite")
            log.info("%s", expected)
        if config.dry_run:
            return ScoreResult(forecast=expected)
        result = _score_and_measure(config, corpora, output_dir, expected)
        _remove_earlier(output_dir, result)
        if not any(scorecard.stopped_early for scorecard in result.scorecards.values()):
            write_json(output_dir / _RECORD, {**record, "files": _files(output_dir)})
    return result


def stored_result(config: ScoreConfig, corpora: Iterable[str]) -> ScoreResult:
    """Reads a finished scoring from `output_dir`: its scorecards, comparisons and metrics.

    Raises:
      InputError: a file is missing or damaged.
    """
    names, output_dir = list(corpora), Path(config.output_dir)
    files = {name: (output_dir / name if len(names) > 1 else output_dir) / "scorecard.json" for name in names}
    if judge_kind(config.judge).open is None:
        return ScoreResult(metrics={name: MetricsReport.load(path) for name, path in files.items()})
    scorecards = {name: Scorecard.load(path) for name, path in files.items()}
    metrics = {name: MetricsReport.load(files[name]) for name, scorecard in scorecards.items() if scorecard.baseline}
    return ScoreResult(scorecards=scorecards, metrics=metrics, comparisons=compare_pairs(scorecards, config.alpha))


def _check_folder(config: ScoreConfig, corpora: Mapping[str, Corpus]) -> dict[str, Any]:
    """The record of this scoring; InputError where the folder holds scores of other corpora."""
    output_dir = Path(config.output_dir)
    if config.baseline.runner is None:
        fingerprints = {name: corpus.fingerprint() for name, corpus in corpora.items()}
    else:  # text for many machines is not read for this
        fingerprints = {
            name: content_hash(dataclasses.asdict(corpus)) for name, corpus in named_corpora(config).items()
        }
    before = (
        read_fields(output_dir / _RECORD, corpora=Fields | None)["corpora"] if (output_dir / _RECORD).exists() else None
    )
    if before is None and len(corpora) == 1 and (scorecard := output_dir / "scorecard.json").exists():
        (name,) = corpora  # a run of an earlier version, which wrote no record
        before = {name: (read_fields(scorecard, corpus=Fields | None)["corpus"] or {}).get("fingerprint")}
    if before is not None and before != fingerprints and not config.overwrite:
        raise InputError(
            f"config.output_dir: {output_dir} holds scores of other text ({', '.join(before)}); give another folder, "
            "or config.overwrite=True to replace them"
        )
    judged = judge_kind(config.judge).open is not None
    key = {"settings": dataclasses.asdict(replace(config, **_NOT_OF_A_SCORING)), "version": diversity_jax.__version__}
    if judged:
        judge = open_judge(config, output_dir / "ledger.sqlite")
        key["scores"] = {name: score_key(corpus.fingerprint(), judge, config.agent) for name, corpus in corpora.items()}
    return {"key": content_hash(key), "corpora": fingerprints}


def _files(output_dir: Path) -> dict[str, str]:
    """Hashes of the files of a scoring by relative path."""
    paths = (path for name in ("scorecard.json", "groupings.jsonl") for path in sorted(output_dir.rglob(name)))
    return {str(path.relative_to(output_dir)): file_hash(path) for path in paths}


def _is_scored(output_dir: Path, record: Mapping[str, Any]) -> bool:
    """Whether a folder holds this scoring with its page, unchanged."""
    path = output_dir / _RECORD
    if not (path.exists() and (output_dir / "report.html").exists()):
        return False
    return read_json(path) == {**record, "files": _files(output_dir)}


def _remove_earlier(output_dir: Path, result: ScoreResult) -> None:
    """Removes files of earlier settings or corpora that `result` has none of, and which would be taken for its own."""
    corpora = list(result.scorecards or result.metrics)
    folder_of = {name: output_dir / name if len(corpora) > 1 else output_dir for name in corpora}
    written = {folder / "scorecard.json" for folder in folder_of.values()}
    written |= {folder_of[name] / "groupings.jsonl" for name in result.scorecards}
    written |= {folder_of[name] / "metrics_cost.json" for name in result.metrics}
    written |= {folder_of[name] / "draws.json" for name in result.checks.draws}
    written |= {
        folder_of[name] / file for name in result.checks.drift for file in ("drift.json", "drift/scorecard.json")
    }
    written |= {output_dir / "comparison.json"} if result.comparisons else set()
    path = output_dir / _RECORD
    earlier = (read_fields(path, corpora=Fields | None)["corpora"] or {}) if path.exists() else {}
    folders = [output_dir, *folder_of.values(), *(output_dir / name for name in earlier if is_name(name))]
    others = {folder / name for folder in folders for name in _RESULTS} - written
    removed = sorted(str(other.relative_to(output_dir)) for other in others if other.exists())
    for name in removed:
        (output_dir / name).unlink()
    if removed:
        log.info("%s: removed results of the run before: %s", output_dir, ", ".join(removed))


def _score_and_measure(
    config: ScoreConfig, corpora: Mapping[str, Corpus], output_dir: Path, expected: ScoringForecast | None
) -> ScoreResult:
    folders = {name: output_dir / name if len(corpora) > 1 else output_dir for name in corpora}
    if expected is None:
        return ScoreResult(metrics=_measure(config, corpora, folders))
    cache = output_dir / "ledger.sqlite"
    scorecards, comparisons = _score(config, corpora, cache, folders, expected)
    expected.save(output_dir / "forecast.json", scorecards.values())
    metrics = _measure(config, corpora, folders)
    for name, measured in metrics.items():
        scorecards[name] = replace(scorecards[name], baseline=measured.to_json())
    for name, scorecard in scorecards.items():
        scorecard.save(folders[name] / "scorecard.json")
        log.info("%s: %s", name, _summary(scorecard))
        if scorecard.verdict and scorecard.verdict.judge != "fit":
            log.warning("%s: the judge is %s: %s", name, scorecard.verdict.judge, "; ".join(scorecard.verdict.reasons))
        for warning in scorecard.warnings:
            log.warning("%s: %s", name, warning)
    for comparison in comparisons:
        log.info("%s", comparison)
    if comparisons:
        write_json(output_dir / "comparison.json", [comparison.to_json() for comparison in comparisons])
    checks = _run_checks(config, corpora, scorecards, cache)
    checks.save(folders)
    return ScoreResult(
        forecast=expected, scorecards=scorecards, metrics=metrics, checks=checks, comparisons=comparisons
    )


def open_corpora(config: ScoreConfig) -> dict[str, Corpus]:
    """The corpora of a configuration by name."""
    return {name: open_corpus(corpus) for name, corpus in named_corpora(config).items()}


def _score(
    config: ScoreConfig,
    corpora: Mapping[str, Corpus],
    cache: Path,
    folders: Mapping[str, Path],
    expected: ScoringForecast,
) -> tuple[dict[str, Scorecard], list[PairComparison]]:
    """Scorecards and comparisons, with a number of groupings fixed beforehand or until a comparison is decided."""
    paths = {name: folder / "groupings.jsonl" for name, folder in folders.items()}
    judge = open_judge(config, cache)
    if not config.until_decided:
        log.info("scoring %s (judge: %s)", ", ".join(corpora), judge.label)
        progress = expected.watch(judge)
        scorecards = score_corpora(corpora, judge, config.agent, groupings_paths=paths, progress=progress)
        return scorecards, compare_pairs(scorecards, config.alpha)
    if len(corpora) != 2:
        raise InputError(f"config.until_decided: compares two corpora and {len(corpora)} are named; name two")
    log.info("scoring %s until decided (judge: %s)", " and ".join(corpora), judge.label)
    first, second = corpora
    a, b = corpora.values()
    options: dict[str, Any] = {"alpha": config.alpha, "looks": config.looks}
    options["groupings_paths"] = tuple(paths.values())
    comparison, *scored = score_until_decided(a, b, judge, config.agent, **options)
    return dict(zip(corpora, scored, strict=True)), [PairComparison(first=first, second=second, comparison=comparison)]


def _measure(
    config: ScoreConfig, corpora: Mapping[str, Corpus], folders: Mapping[str, Path]
) -> Mapping[str, MetricsReport]:
    if not config.metrics:
        return {}
    from diversity_jax.scoring.metrics import measure_corpora

    return measure_corpora(config, corpora, folders)


def _run_checks(
    config: ScoreConfig, corpora: Mapping[str, Corpus], scorecards: Mapping[str, Scorecard], cache: Path
) -> Checks:
    """Scores the draws and the other K that a configuration asks for."""
    draws, drifts = {}, {}
    for name, corpus in corpora.items() if config.draws else ():
        judge = open_judge(config, cache)
        log.info("%s: scoring %s of %s", name, counted(config.draws, "draw"), counted(config.draw_size, "document"))
        draws[name] = score_draws(corpus, judge, config.agent, draws=config.draws, draw_size=config.draw_size)
        mean = estimate(draws[name].effective_clusters, "effective clusters")
        log.info("%s: %s over %s", name, mean, counted(config.draws, "draw"))
    if config.drift_samples_per_grouping:
        judge = open_judge(config, cache)
        agent = replace(config.agent, samples_per_grouping=config.drift_samples_per_grouping)
        log.info("scoring %s at K = %d", ", ".join(corpora), config.drift_samples_per_grouping)
        for name, scorecard in score_corpora(corpora, judge, agent).items():
            pair = sorted((scorecards[name], scorecard), key=lambda either: either.series.samples_per_grouping)
            small, large = (either.series.samples_per_grouping for either in pair)
            comparison = drift(*pair, alpha=config.alpha)
            drifts[name] = DriftCheck(scorecard=scorecard, comparison=comparison, sizes=(small, large))
            verdict = f"drifts: keep K = {small}" if comparison.decided else "no drift seen"
            log.info("%s: K = %d against K = %d: ratio %s, %s", name, small, large, comparison.ratio_text, verdict)
    return Checks(draws=draws, drift=drifts)


def _summary(scorecard: Scorecard) -> str:
    score, judge = scorecard.effective_clusters, scorecard.judge
    line = f"{estimate(score, 'effective clusters')}, {counted(scorecard.groupings, 'grouping')}"
    line += f", {scorecard.dropped_groupings} dropped" if scorecard.dropped_groupings else ""
    line += f", {scorecard.reading_words} words of each document read" if scorecard.reading_words else ""
    return f"{line}, cluster score {scorecard.cluster_score.value:.3g}, ${scorecard.cost_usd:.2f} (judge: {judge})"


def scorer(
    settings: JudgeSettings, folder: Path, undecided: Undecided
) -> Callable[[Mapping[str, Corpus]], Mapping[str, Scorecard]]:
    """A function that scores a mixture's corpora in looks while its gate is undecided, and stores the scorecards in
    `folder`, where the next run finds them.
    """

    def score(corpora: Mapping[str, Corpus]) -> Mapping[str, Scorecard]:
        if not corpora:
            return {}
        kind, index = judge_kind(settings.judge), folder / "index.json"
        kind.check(settings, True)
        judge = open_judge(settings, folder / "ledger.sqlite")
        key = content_hash(
            {name: score_key(corpus.fingerprint(), judge, settings.agent) for name, corpus in corpora.items()}
        )
        if index.exists() and read_json(index) == {"key": key, "names": sorted(corpora)}:
            scorecards = {name: Scorecard.load(folder / f"{name}.json") for name in corpora}
            # An earlier gate with other conditions may have stopped at fewer groupings than this one needs.
            if all(_took_all_looks(scorecards[name]) for name in undecided(scorecards)):
                log.info("scored before: %s (judge: %s)", ", ".join(corpora), judge.label)
                return scorecards
        expected = ScoringForecast(settings, list(corpora.values()))
        log.info("%s", expected)
        if expected.planned:
            require_cap(expected.costs["before"], settings.budget, [settings.judge_base_url])
        folder.mkdir(parents=True, exist_ok=True)
        log.info("scoring %s (judge: %s)", ", ".join(corpora), judge.label)
        paths = {name: folder / f"{name}.groupings.jsonl" for name in corpora}
        scorecards = score_in_looks(corpora, judge, settings.agent, undecided, groupings_paths=paths)
        for name, scorecard in scorecards.items():
            scorecard.save(folder / f"{name}.json")
        if not any(scorecard.stopped_early for scorecard in scorecards.values()):
            write_json(index, {"key": key, "names": sorted(corpora)})
        return scorecards

    return score


def _took_all_looks(scorecard: Scorecard) -> bool:
    taken, planned = scorecard.look or (1, 1)
    return taken == planned
