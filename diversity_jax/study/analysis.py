"""What a study found, as one table of runs: levels, diversity figures, what might confound them, and outcomes.

What the table of runs says: every relation with its n and interval, as JSON from which the page is drawn.
"""

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
from diversity_jax.mixtures.mixture import Mixture
from diversity_jax.study import statistics
from diversity_jax.study import statistics as regression
from diversity_jax.study.config import Run, StudyConfig, in_words
from diversity_jax.study.graph import Store

Row = dict[str, Any]
STAGES = {"evaluate": "pre-trained", "evaluate_sft": "fine-tuned"}
SCORED = "scored"  # the stage of studies that only score: their outcomes are the diversity figures themselves
READ = ("score", "build", "train", "evaluate", "sft", "evaluate_sft")  # kinds of steps that the table is made from
_TRAINED = {"evaluate": "train", "evaluate_sft": "sft"}


def table(study: StudyConfig, runs: Sequence[Run], store: Store) -> list[Row]:
    """One row for each run and stage whose evaluation is done: `levels`, `seed`, `stage`, `diversity`, `controls`,
    `outcomes`.

    Levels of factors that are analysed apart stand in the name of the stage.
    """
    rows = []
    for run in runs:
        apart = [str(run.levels[name]) for name in study.apart]
        levels = {name: level for name, level in run.levels.items() if name not in study.apart}
        head = {
            "levels": levels,
            "recipe": in_words(levels),
            "seed": run.seed,
            "diversity": _diversity(study, run, store),
        }
        for kind, stage in STAGES.items():
            if kind in run.keys and store.done(run.keys[kind]) is not None:
                found = outcomes(read_json(store.output(run.keys[kind]) / "results.json"))
                controls = _controls(study, run, store, _TRAINED[kind])
                rows.append(head | {"stage": " ".join([*apart, stage]), "controls": controls, "outcomes": found})
        if not STAGES.keys() & run.keys.keys() and head["diversity"]:
            found = {name: head["diversity"][name] for name in study.predictors if name in head["diversity"]}
            rows.append(head | {"stage": " ".join([*apart, SCORED]), "controls": {}, "outcomes": found})
    return rows


def outcomes(results: Mapping[str, Any]) -> dict[str, float]:
    """Figures of one evaluation: `accuracy` over tasks and of each, `loss on NAME` (nats a token) and `bits on NAME` (a
    byte).
    """
    found = {
        f"accuracy of {task['title']}": task["metrics"][task["metric"]]["value"] for task in results["tasks"].values()
    }
    if len(found) == 1:
        found = {"accuracy": next(iter(found.values()))}
    elif found:
        found = {"accuracy": sum(found.values()) / len(found)} | found
    for name, loss in results.get("held_out", {}).items():
        found |= {f"loss on {name}": loss["nats_per_token"], f"bits on {name}": loss["bits_per_byte"]}
    return {name: value for name, value in found.items() if value is not None and math.isfinite(value)}


def _diversity(study: StudyConfig, run: Run, store: Store) -> dict[str, float]:
    """The predictors, and those controls that are figures too; ones that a score does not hold are left out."""
    if "score" not in run.keys or store.done(run.keys["score"]) is None:
        return {}
    folder = store.output(run.keys["score"])
    found = {}
    for name in (*study.predictors, *study.controls):
        value = _figure(folder, name)
        if value is not None:
            found[name] = value
    return found


def _figure(folder: Path, name: str) -> float | None:
    """`effective_clusters`, or `metrics.NAME`, of the scorecard in a score's folder; baseline metrics stand in a
    judge's apart.
    """
    card = read_json(folder / "scorecard.json")
    metric = name.removeprefix("metrics.")
    one: Any = card.get(name) if metric == name else (card.get("baseline") or card).get("metrics", {}).get(metric)
    value = one.get("value") if isinstance(one, Mapping) else None
    return float(value) if value is not None else None


def densities(study: StudyConfig, runs: Sequence[Run], store: Store) -> dict[str, Any]:
    """How often a grouping had C clusters, and of which mean size: of each corpus that was scored, named by its levels
    of `factors`.
    """
    scored = [run for run in runs if "score" in run.keys and store.done(run.keys["score"]) is not None]
    telling = [factor.name for factor in study.factors if _tells_scores_apart(factor.name, scored)]
    found: dict[str, Any] = {}
    for run in scored:
        path = store.output(run.keys["score"]) / "scorecard.json"
        name = " \u00b7 ".join(str(run.levels[name]) for name in telling) or "base"
        if name not in found and path.exists():
            card = Scorecard.load(path)
            kinds = {kind: card.histogram(kind) for kind in ("clusters", "samples_per_cluster")}
            found[name] = {"name": name, **kinds, "samples_per_grouping": card.series.samples_per_grouping}
    return {"factors": telling, "corpora": list(found.values())}


def _tells_scores_apart(factor: str, runs: Sequence[Run]) -> bool:
    seen: dict[tuple, set[str]] = {}
    for run in runs:
        others = (run.seed, *(level for name, level in run.levels.items() if name != factor))
        seen.setdefault(others, set()).add(run.keys["score"])
    return any(len(keys) > 1 for keys in seen.values())


def _controls(study: StudyConfig, run: Run, store: Store, trained: str) -> dict[str, float]:
    """`tokens` the model was trained on, and mean `length` in tokens of the synthetic documents."""
    found: dict[str, float] = {}
    settings = store.done(run.keys[trained]) if trained in run.keys else None
    if settings is not None:
        train = settings["settings"]["train"]
        mixture = _mixture(run, store, trained)
        if mixture is not None:
            found["tokens"] = float(train["steps"] * train["batch_size"] * mixture.sequence_length)
            made = [part.manifest for part in mixture.taken if part.kind == "synthetic"]
            documents = sum(manifest.splits["train"].documents for manifest in made)
            if documents:
                found["length"] = sum(manifest.splits["train"].tokens for manifest in made) / documents
    return found


def _mixture(run: Run, store: Store, trained: str) -> Mixture | None:
    places = [
        store.output(run.keys[kind]) / tail
        for kind in (trained, "build")
        if kind in run.keys
        for tail in ("mixture", ".")
    ]
    return next((Mixture.load(place) for place in places if (place / "mixture.json").exists()), None)


def by_recipe(
    rows: Sequence[Row], stage: str, outcome: str, predictors: Sequence[str]
) -> tuple[list[str], dict[str, list[float]]]:
    """Recipes of a stage with an outcome and the first predictor, and their columns averaged over seeds, as far as all
    have them.

    Raises:
      InputError: no run of the stage has the outcome.
    """
    judged = [row for row in rows if row["stage"] == stage and outcome in row["outcomes"]]
    chosen = [row for row in judged if predictors[0] in row["diversity"]] if predictors else judged
    if not judged:
        known = sorted({name for row in rows for name in row["outcomes"]})
        raise InputError(f"no finished {stage} run has {outcome!r}; outcomes are {', '.join(known)}")
    recipes = list(dict.fromkeys(row["recipe"] for row in chosen))
    columns: dict[str, list[float]] = {outcome: []}
    values = [
        {outcome: row["outcomes"][outcome]} | {k: v for k, v in {**row["controls"], **row["diversity"]}.items()}
        for row in chosen
    ]
    for name in (outcome, *predictors):
        if all(name in value for value in values):
            columns[name] = [
                _mean([v[name] for row, v in zip(chosen, values, strict=True) if row["recipe"] == recipe])
                for recipe in recipes
            ]
    return recipes, columns


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


FORMAT_VERSION = 2
_AMOUNTS_TO_BEND = 4
_ANTICIPATED = (0.3, 0.5, 0.7)


def analyse(study: StudyConfig, rows: Sequence[Row]) -> dict[str, Any]:
    """The whole analysis; parts that the runs cannot carry hold the reason instead, under `reason`."""
    factors = [factor.name for factor in study.factors if factor.name not in study.apart]
    found: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "study": study.name,
        "factors": factors,
        "runs": list(rows),
    }
    found |= {"relations": [], "effects": [], "figures": _figures(study, rows, factors)}
    for stage in dict.fromkeys(row["stage"] for row in rows):
        names = [
            name for name in _names(rows, stage) if not name.startswith("loss on ")
        ]  # of one vocabulary, bits say the same
        for outcome in names:
            others = [predictor for predictor in study.predictors if predictor not in names]
            found["relations"] += [_relation(study, rows, stage, outcome, predictor) for predictor in others]
            found["effects"].append(_effects(study, rows, stage, outcome))
    found["published"] = _published(study, rows)
    recipes = len({row["recipe"] for row in rows})
    found["power"] = {
        "recipes": recipes,
        "chance": {str(r): statistics.power(r, recipes) for r in _ANTICIPATED} if recipes >= 3 else {},
        "needed": {str(r): statistics.recipes_needed(r) for r in _ANTICIPATED},
    }
    return _plain(found)


def _figures(study: StudyConfig, rows: Sequence[Row], factors: Sequence[str]) -> list[dict[str, Any]]:
    """Each diversity figure at the levels of the factors that move any: the means over scored corpora, and their
    values.
    """
    corpora = {
        tuple(sorted(row["diversity"].items())): row for row in rows if row["diversity"]
    }  # runs share their corpora
    names = [
        name
        for name in dict.fromkeys((*study.predictors, *study.controls))
        if any(name in row["diversity"] for row in rows)
    ]
    found = []
    for name in names:
        levels: dict[str, list[dict[str, Any]]] = {}
        for factor in factors:
            values: dict[Any, list[float]] = {}
            for row in corpora.values():
                values.setdefault(row["levels"][factor], []).append(row["diversity"][name])
            if len(values) > 1:
                levels[factor] = [
                    {"name": level, "value": sum(one) / len(one), "values": one} for level, one in values.items()
                ]
        if levels and len(corpora) > 1:
            found.append({"figure": name, "levels": levels})
    return found


def _names(rows: Sequence[Row], stage: str) -> list[str]:
    return list(dict.fromkeys(name for row in rows if row["stage"] == stage for name in row["outcomes"]))


def _attempt(compute: Callable[[], Any]) -> Any:
    try:
        return compute()
    except InputError as error:
        return {"reason": str(error)}


def _relation(study: StudyConfig, rows: Sequence[Row], stage: str, outcome: str, predictor: str) -> dict[str, Any]:
    """How one outcome goes with one diversity figure over recipes."""
    head = {"stage": stage, "outcome": outcome, "predictor": predictor}
    recipes, columns = by_recipe(rows, stage, outcome, (predictor, *study.controls))
    if not columns.get(predictor):
        return head | {"reason": f"no run has {predictor}"}
    x, y = columns[predictor], columns[outcome]
    logged = np.log(x) if min(x) > 0 else np.asarray(x)
    controls = {name: columns[name] for name in study.controls if name in columns and np.ptp(columns[name]) > 0}
    return head | {
        "recipes": recipes,
        "x": x,
        "y": y,
        "line": _attempt(lambda: _line(y, x)),
        "log_line": _attempt(lambda: _line(y, logged)),
        "spearman": _attempt(lambda: regression.rank_correlation(x, y)),
        "kendall": _attempt(lambda: regression.rank_correlation(x, y, kind="kendall")),
        "pearson_of_log": _attempt(lambda: regression.partial_correlation(logged, y)),
        "partial": _attempt(lambda: regression.partial_correlation(logged, y, controls))
        if controls
        else {"reason": "no control varies"},
        "controls": list(controls),
    }


def _line(y: Sequence[float], x: Sequence[float]) -> dict[str, Any]:
    fit = regression.least_squares(y, {"slope": x})
    return {**fit.coefficients, "r_squared": fit.r_squared}


def _effects(study: StudyConfig, rows: Sequence[Row], stage: str, outcome: str) -> dict[str, Any]:
    """What each factor does to one outcome, with the seed as a block."""
    runs = [
        {**row["levels"], "seed": row["seed"], "outcome": row["outcomes"][outcome]}
        for row in rows
        if row["stage"] == stage and outcome in row["outcomes"]
    ]
    factors = [factor for factor in study.factors if factor.name not in study.apart]
    head = {"stage": stage, "outcome": outcome}
    try:
        whole = statistics.factor_effects(runs, "outcome", [factor.name for factor in factors], block="seed")
    except InputError as error:
        return head | {"reason": str(error)}
    bends = {}
    for factor in factors:
        amounts = [run[factor.name] for run in runs]
        if all(isinstance(amount, int | float) for amount in amounts) and len(set(amounts)) >= _AMOUNTS_TO_BEND:
            bends[factor.name] = _attempt(
                lambda amounts=amounts: statistics.saturation(amounts, [run["outcome"] for run in runs])
            )
    levels = {
        name: [{"name": level, **vars(mean)} for level, mean in means.items()] for name, means in whole.levels.items()
    }
    pairs = {f"{a.name}:{b.name}": f"{a.name} \u00d7 {b.name}" for a, b in itertools.combinations(factors, 2)}
    terms = [{**vars(term), "name": pairs.get(term.name, term.name)} for term in whole.terms]
    rest = {"residual_degrees": whole.residual_degrees, "residual_variance": whole.residual_variance}
    return head | {"terms": terms, "levels": levels, "saturation": bends, **rest}


def _published(study: StudyConfig, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """What others reported for single levels, each beside the mean of our runs at that level."""
    found = []
    for factor in study.factors:
        for level in factor.levels:
            for figure, value in level.published.items():
                ours = [
                    row["outcomes"][outcome]
                    for row in rows
                    for outcome in row["outcomes"]
                    if row["levels"].get(factor.name) == level.name and figure == f"{row['stage']} {outcome}"
                ]
                mean = sum(ours) / len(ours) if ours else None
                found.append(
                    {
                        "factor": factor.name,
                        "level": level.name,
                        "figure": figure,
                        "published": value,
                        "ours": mean,
                        "runs": len(ours),
                    }
                )
    return found


def _plain(value: Any) -> Any:
    """JSON values; what is not finite becomes None."""
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
