"""What the table of runs says: every relation with its n and interval, as JSON from which the page is drawn."""

from collections.abc import Callable, Sequence
import dataclasses
import itertools
import math
from typing import Any

import numpy as np

from diversity_jax.errors import InputError
from diversity_jax.study import effects, regression, results
from diversity_jax.study.recipe import StudyConfig
from diversity_jax.study.results import Row

FORMAT_VERSION = 2
_AMOUNTS_TO_BEND = 4
_ANTICIPATED = (0.3, 0.5, 0.7)


def analyse(study: StudyConfig, rows: Sequence[Row]) -> dict[str, Any]:
    """The whole analysis; parts that the runs cannot carry hold the reason instead, under `reason`."""
    factors = [factor.name for factor in study.factors if factor.name not in study.apart]
    found: dict[str, Any] = {"format_version": FORMAT_VERSION, "study": study.name, "factors": factors, "runs": list(rows)}
    found |= {"relations": [], "effects": [], "figures": _figures(study, rows, factors)}
    for stage in dict.fromkeys(row["stage"] for row in rows):
        names = [name for name in _names(rows, stage) if not name.startswith("loss on ")]  # of one vocabulary, bits say the same
        for outcome in names:
            others = [predictor for predictor in study.predictors if predictor not in names]
            found["relations"] += [_relation(study, rows, stage, outcome, predictor) for predictor in others]
            found["effects"].append(_effects(study, rows, stage, outcome))
    found["published"] = _published(study, rows)
    recipes = len({row["recipe"] for row in rows})
    found["power"] = {
        "recipes": recipes,
        "chance": {str(r): effects.power(r, recipes) for r in _ANTICIPATED} if recipes >= 3 else {},
        "needed": {str(r): effects.recipes_needed(r) for r in _ANTICIPATED},
    }
    return _plain(found)


def _figures(study: StudyConfig, rows: Sequence[Row], factors: Sequence[str]) -> list[dict[str, Any]]:
    """Each diversity figure at the levels of the factors that move any: the means over scored corpora, and their values."""
    corpora = {tuple(sorted(row["diversity"].items())): row for row in rows if row["diversity"]}  # runs share their corpora
    names = [name for name in dict.fromkeys((*study.predictors, *study.controls)) if any(name in row["diversity"] for row in rows)]
    found = []
    for name in names:
        levels: dict[str, list[dict[str, Any]]] = {}
        for factor in factors:
            values: dict[Any, list[float]] = {}
            for row in corpora.values():
                values.setdefault(row["levels"][factor], []).append(row["diversity"][name])
            if len(values) > 1:
                levels[factor] = [{"name": level, "value": sum(one) / len(one), "values": one} for level, one in values.items()]
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
    recipes, columns = results.by_recipe(rows, stage, outcome, (predictor, *study.controls))
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
        "partial": _attempt(lambda: regression.partial_correlation(logged, y, controls)) if controls else {"reason": "no control varies"},
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
        whole = effects.factor_effects(runs, "outcome", [factor.name for factor in factors], block="seed")
    except InputError as error:
        return head | {"reason": str(error)}
    bends = {}
    for factor in factors:
        amounts = [run[factor.name] for run in runs]
        if all(isinstance(amount, int | float) for amount in amounts) and len(set(amounts)) >= _AMOUNTS_TO_BEND:
            bends[factor.name] = _attempt(lambda amounts=amounts: effects.saturation(amounts, [run["outcome"] for run in runs]))
    levels = {name: [{"name": level, **vars(mean)} for level, mean in means.items()] for name, means in whole.levels.items()}
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
                    {"factor": factor.name, "level": level.name, "figure": figure, "published": value, "ours": mean, "runs": len(ours)}
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
