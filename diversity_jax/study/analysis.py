"""Analyses a study: a table of its runs, and relations, effects and curves with n and intervals, as JSON."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np

from diversity_jax.cluster_agent import Scorecard
from diversity_jax.core.errors import InputError
from diversity_jax.core.files import read_json
from diversity_jax.core.formats import counted
from diversity_jax.core.json_fields import Fields, read_fields
from diversity_jax.evaluation.results import is_accuracy
from diversity_jax.mixtures.mixture import Mixture
from diversity_jax.study import statistics
from diversity_jax.study.config import StudyConfig, StudyRun, recipe_name
from diversity_jax.study.graph import StepStore
from diversity_jax.study.saturation import saturation

FORMAT_VERSION = 2  # of analysis.json
Row = dict[str, Any]
STAGES = {"evaluate": "pre-trained", "evaluate_sft": "fine-tuned"}
_SECOND = "second_score"
SCORED = "scored"  # the stage of studies that only score: their outcomes are the diversity figures themselves
_TRAINING = {"evaluate": "train", "evaluate_sft": "sft"}
_FEWEST_AMOUNTS = 4  # different ones that a saturation curve needs
_ANTICIPATED = (0.3, 0.5, 0.7)  # correlations whose chance of being detected is reported


def table(study: StudyConfig, runs: Sequence[StudyRun], store: StepStore) -> list[Row]:
    """A row for each run and stage whose evaluation is done: `levels`, `recipe`, `seed`, `stage`, `diversity`,
    `controls`, `outcomes`.

    Levels of the factors in `study.apart` are part of the stage's name. Runs without an evaluation get a row whose
    outcomes are their diversity figures.
    """
    rows = []
    for run in runs:
        apart = [str(run.levels[name]) for name in study.apart]
        levels = {name: level for name, level in run.levels.items() if name not in study.apart}
        diversity = _diversity(study, run, store)
        head = {"levels": levels, "recipe": recipe_name(levels), "seed": run.seed, "diversity": diversity}
        for kind, stage in STAGES.items():
            if kind in run.keys and store.done(run.keys[kind]) is not None:
                results = read_json(store.output(run.keys[kind]) / "results.json")
                controls = _controls(run, store, _TRAINING[kind])
                row = {"stage": " ".join([*apart, stage]), "controls": controls, "outcomes": outcomes(results)}
                rows.append(head | row)
        if not STAGES.keys() & run.keys.keys() and diversity:
            figures = {name: diversity[name] for name in study.predictors if name in diversity}
            rows.append(head | {"stage": " ".join([*apart, SCORED]), "controls": {}, "outcomes": figures})
    return rows


def outcomes(results: Mapping[str, Any]) -> dict[str, float]:
    """Figures of an evaluation: `accuracy`, the mean over tasks that have one, and of each; `METRIC of TASK` of other
    tasks; `loss on NAME`, nats a token, and `bits on NAME`, bits a byte, of held-out texts.
    """
    accuracies: dict[str, float] = {}
    figures: dict[str, float] = {}
    for task in results["tasks"].values():
        is_one, name = is_accuracy(task), task["metric"]
        named = accuracies if is_one else figures
        named[f"{'accuracy' if is_one else name} of {task['title']}"] = task["metrics"][name]["value"]
    if accuracies:
        figures = {"accuracy": sum(accuracies.values()) / len(accuracies), **figures}
    if len(accuracies) > 1:
        figures |= accuracies
    for name, loss in results.get("held_out", {}).items():
        figures |= {f"loss on {name}": loss["nats_per_token"], f"bits on {name}": loss["bits_per_byte"]}
    return {name: value for name, value in figures.items() if value is not None and math.isfinite(value)}


def _diversity(study: StudyConfig, run: StudyRun, store: StepStore) -> dict[str, float]:
    """The predictors and controls in the run's scorecards, by name: a field, `metrics.NAME`, or either of the second
    scoring after `second_score.`. Figures by a judge whose verdict is unfit are left out.

    A judge's scorecard holds the metrics in its field `baseline`.
    """
    figures = {}
    for name in (*study.predictors, *study.controls):
        kind, figure = (_SECOND, name.removeprefix(f"{_SECOND}.")) if name.startswith(_SECOND) else ("score", name)
        if kind not in run.keys or store.done(run.keys[kind]) is None:
            continue
        scorecard = read_json(store.output(run.keys[kind]) / "scorecard.json")
        metric = figure.removeprefix("metrics.")
        if metric != figure:
            estimate = (scorecard.get("baseline") or scorecard).get("metrics", {}).get(metric)
        else:
            unfit = (scorecard.get("verdict") or {}).get("judge") == "unfit"
            estimate = None if unfit else scorecard.get(figure)
        value = estimate.get("value") if isinstance(estimate, Mapping) else None
        if value is not None and math.isfinite(value):
            figures[name] = float(value)
    return figures


def verdicts(study: StudyConfig, runs: Sequence[StudyRun], store: StepStore) -> list[dict[str, Any]]:
    """The verdict on each scoring's judge: `scoring`, `corpus`, `judge`, `verdict` and `reasons`; also of scorings that
    failed because no grouping was usable.
    """
    by_outcome: dict[str, dict[str, Any]] = {}
    for run in runs:
        for kind in ("score", _SECOND):
            path = store.output(run.keys[kind]) / "scorecard.json" if kind in run.keys else None
            if path is None or run.keys[kind] in by_outcome or not path.exists():
                continue
            scorecard = read_json(path)
            if verdict := scorecard.get("verdict"):
                head = {"scoring": kind, "corpus": run.recipe, "judge": scorecard["judge"]}
                by_outcome[run.keys[kind]] = head | {"verdict": verdict["judge"], "reasons": verdict["reasons"]}
    return list(by_outcome.values())


def densities(study: StudyConfig, runs: Sequence[StudyRun], store: StepStore) -> dict[str, Any]:
    """Histograms of clusters in a grouping and of their mean size, for each scored corpus, named by its levels of the
    factors that change it.
    """
    scored = [run for run in runs if "score" in run.keys and store.done(run.keys["score"]) is not None]
    factors = [factor.name for factor in study.factors if _changes_score(factor.name, scored)]
    corpora: dict[str, Any] = {}
    for run in scored:
        path = store.output(run.keys["score"]) / "scorecard.json"
        name = " \u00b7 ".join(str(run.levels[factor]) for factor in factors) or "base"
        if name not in corpora and path.exists():
            scorecard = Scorecard.load(path)
            histograms = {kind: scorecard.histogram(kind) for kind in ("clusters", "samples_per_cluster")}
            corpora[name] = {"name": name, **histograms, "samples_per_grouping": scorecard.series.samples_per_grouping}
    return {"factors": factors, "corpora": list(corpora.values())}


def _changes_score(factor: str, runs: Sequence[StudyRun]) -> bool:
    """Whether runs that differ in this factor alone have different scorings."""
    seen: dict[tuple[Any, ...], set[str]] = {}
    for run in runs:
        others = (run.seed, *(level for name, level in run.levels.items() if name != factor))
        seen.setdefault(others, set()).add(run.keys["score"])
    return any(len(keys) > 1 for keys in seen.values())


def _controls(run: StudyRun, store: StepStore, training: str) -> dict[str, float]:
    """`tokens` that the model was trained on, and the mean `length` of synthetic documents in tokens."""
    mixture = _mixture(run, store, training)
    if training not in run.keys or mixture is None or store.done(run.keys[training]) is None:
        return {}
    # The run's own record, which holds the number of steps where the study set epochs.
    train = read_fields(store.output(run.keys[training]) / "run.json", settings=Fields)["settings"]["train"]
    controls = {"tokens": float(train["steps"] * train["batch_size"] * mixture.sequence_length)}
    manifests = [part.manifest for part in mixture.taken if part.kind == "synthetic"]
    synthetic = [manifest.splits["train"] for manifest in manifests if manifest is not None]
    if documents := sum(split.documents for split in synthetic):
        controls["length"] = sum(split.tokens for split in synthetic) / documents
    return controls


def _mixture(run: StudyRun, store: StepStore, training: str) -> Mixture | None:
    """The mixture in the training's own folder, or else in that of the build."""
    folders = [store.output(run.keys[kind]) for kind in (training, "build") if kind in run.keys]
    candidates = [path for folder in folders for path in (folder / "mixture", folder)]
    return next((Mixture.load(path) for path in candidates if (path / "mixture.json").exists()), None)


def analyse(study: StudyConfig, rows: Sequence[Row]) -> dict[str, Any]:
    """The analysis; a part for which the runs do not suffice holds only the reason, under `reason`."""
    factors = [factor.name for factor in study.factors if factor.name not in study.apart]
    relations, effects = [], []
    for stage in dict.fromkeys(row["stage"] for row in rows):
        names = dict.fromkeys(name for row in rows if row["stage"] == stage for name in row["outcomes"])
        for outcome in names:
            if outcome.startswith("loss on "):
                continue  # `bits on` the same text is the same figure, comparable across tokenizers
            predictors = [name for name in study.predictors if name not in names]
            relations += [_relation(study, rows, stage, outcome, predictor) for predictor in predictors]
            effects.append(_effects(factors, rows, stage, outcome))
    recipes = len({row["recipe"] for row in rows})
    power = {
        "recipes": recipes,
        "chance": {str(r): statistics.power(r, recipes) for r in _ANTICIPATED} if recipes >= 3 else {},
        "needed": {str(r): statistics.recipes_needed(r) for r in _ANTICIPATED},
    }
    return _as_json(
        {
            "format_version": FORMAT_VERSION,
            "study": study.name,
            "factors": factors,
            "runs": rows,
            "relations": relations,
            "effects": effects,
            "figures": _figures(study, rows, factors),
            "published": _published(study, rows),
            "power": power,
        }
    )


def _figures(study: StudyConfig, rows: Sequence[Row], factors: Sequence[str]) -> list[dict[str, Any]]:
    """Each diversity figure at the levels of the factors by which corpora differ: means, and the corpora's values."""
    # Several runs may share a corpus: take one row for each.
    corpora = {tuple(sorted(row["diversity"].items())): row for row in rows if row["diversity"]}.values()
    figures = []
    for name in dict.fromkeys((*study.predictors, *study.controls)):
        if not any(name in row["diversity"] for row in rows):
            continue
        levels: dict[str, list[dict[str, Any]]] = {}
        for factor in factors:
            by_level: dict[Any, list[float]] = {}
            for row in (row for row in corpora if name in row["diversity"]):
                by_level.setdefault(row["levels"][factor], []).append(row["diversity"][name])
            means = [{"name": level, "value": _mean(values), "values": values} for level, values in by_level.items()]
            if len(means) > 1:
                levels[factor] = means
        if levels:
            figures.append({"figure": name, "levels": levels})
    return figures


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _result_or_reason(compute: Callable[..., Any], *arguments: Any, **settings: Any) -> Any:
    """What `compute` returns, or `{"reason": ...}` where it refuses its arguments."""
    try:
        return compute(*arguments, **settings)
    except InputError as error:
        return {"reason": str(error)}


def _relation(study: StudyConfig, rows: Sequence[Row], stage: str, outcome: str, predictor: str) -> dict[str, Any]:
    """Regression and correlations of an outcome and a diversity figure over recipes, whose seeds are averaged."""
    head = {"stage": stage, "outcome": outcome, "predictor": predictor}
    recipes: dict[str, list[dict[str, float]]] = {}
    measured = {row["recipe"] for row in rows if row["stage"] == stage and outcome in row["outcomes"]}
    for row in rows:
        if row["stage"] == stage and outcome in row["outcomes"] and predictor in row["diversity"]:
            figures = row["controls"] | row["diversity"] | {outcome: row["outcomes"][outcome]}
            recipes.setdefault(row["recipe"], []).append(figures)
    if not recipes:
        return head | {"reason": f"no run has {predictor}"}
    columns = {
        name: [_mean([run[name] for run in runs]) for runs in recipes.values()]
        for name in (outcome, predictor, *study.controls)
        if all(name in run for runs in recipes.values() for run in runs)
    }
    without = len(measured) - len(recipes)
    missing = [f"{counted(without, 'recipe has', 'recipes have')} no {predictor}"] if without else []
    missing += [
        f"{name} is not controlled for {outcome} over {predictor}: some runs have none"
        for name in study.controls
        if name not in columns and any(name in run for runs in recipes.values() for run in runs)
    ]
    x, y = columns[predictor], columns[outcome]
    logged = np.log(x) if min(x) > 0 else np.asarray(x)
    controls = {
        name: columns[name] for name in study.controls if name in columns and not statistics.is_constant(columns[name])
    }
    partial = _result_or_reason(statistics.partial_correlation, logged, y, controls)
    return head | {
        "recipes": list(recipes),
        "x": x,
        "y": y,
        "line": _result_or_reason(_line, y, x),
        "log_line": _result_or_reason(_line, y, logged),
        "spearman": _result_or_reason(statistics.rank_correlation, x, y),
        "kendall": _result_or_reason(statistics.rank_correlation, x, y, kind="kendall"),
        "pearson_of_log": _result_or_reason(statistics.partial_correlation, logged, y),
        "partial": partial if controls else {"reason": "no control varies"},
        "controls": list(controls),
        "missing": missing,
    }


def _line(y: statistics.Values, x: statistics.Values) -> dict[str, Any]:
    fit = statistics.least_squares(y, {"slope": x})
    return {**fit.coefficients, "r_squared": fit.r_squared}


def _effects(factors: Sequence[str], rows: Sequence[Row], stage: str, outcome: str) -> dict[str, Any]:
    """Analysis of variance of an outcome over the factors, with the seed as a block; and saturation curves."""
    runs = [
        {**row["levels"], "seed": row["seed"], "outcome": row["outcomes"][outcome]}
        for row in rows
        if row["stage"] == stage and outcome in row["outcomes"]
    ]
    head = {"stage": stage, "outcome": outcome}
    try:
        effects = statistics.factor_effects(runs, "outcome", factors, block="seed")
    except InputError as error:
        return head | {"reason": str(error)}
    values = [run["outcome"] for run in runs]
    curves = {}
    for factor in factors:
        amounts = [run[factor] for run in runs]
        if all(isinstance(amount, int | float) for amount in amounts) and len(set(amounts)) >= _FEWEST_AMOUNTS:
            curves[factor] = _result_or_reason(saturation, amounts, values)
    pairs = {f"{a}:{b}": f"{a} \u00d7 {b}" for a, b in itertools.combinations(factors, 2)}
    return head | {
        "terms": [{**vars(term), "name": pairs.get(term.name, term.name)} for term in effects.terms],
        "levels": {
            factor: [{"name": level, **vars(mean)} for level, mean in means.items()]
            for factor, means in effects.levels.items()
        },
        "saturation": curves,
        "withheld": effects.withheld,
        "residual_degrees": effects.residual_degrees,
        "residual_variance": effects.residual_variance,
    }


def _published(study: StudyConfig, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Figures published for single levels, each with the mean of this study's runs at that level."""
    compared = []
    levels = [(factor.name, level) for factor in study.factors for level in factor.levels]
    for factor, level in levels:
        at_level = [row for row in rows if row["levels"].get(factor) == level.name]
        for figure, value in level.published.items():
            outcomes = [
                (f"{row['stage']} {name}", value) for row in at_level for name, value in row["outcomes"].items()
            ]
            ours = [value for name, value in outcomes if name == figure]
            head: Row = {"factor": factor, "level": level.name, "figure": figure, "published": value}
            compared.append(head | {"ours": _mean(ours) if ours else None, "runs": len(ours)})
    return compared


def draw(folder: Path) -> Path:
    """Writes `report.html` and `figures/` from `analysis.json` and `run.json` in a study's folder.

    Raises:
      InputError: one of the two does not exist, or another version of this package wrote `analysis.json`.
    """
    from diversity_jax.report.pages import study

    path = folder / "analysis.json"
    analysis = read_fields(path)
    if analysis.get("format_version") != FORMAT_VERSION:
        raise InputError(f"{path}: another version of this package wrote it; run the study again, done steps are kept")
    return study.write(folder, analysis)


def _as_json(value: Any) -> Any:
    """The value as JSON values; numbers that are not finite become None."""
    if dataclasses.is_dataclass(value):
        return {field.name: _as_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(name): _as_json(item) for name, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [_as_json(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
