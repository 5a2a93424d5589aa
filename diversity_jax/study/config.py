"""The configuration of a study, and its plan: the runs (recipe x levels of the factors x seeds) and their steps."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from dataclasses import dataclass, field
import itertools
import re
from typing import Any

from diversity_jax.core import config as config_files
from diversity_jax.core.errors import InputError, without_secrets
from diversity_jax.core.files import is_remote
from diversity_jax.core.run_info import without_headers
from diversity_jax.evaluation.config import ContinuationsConfig, EvaluateConfig
from diversity_jax.mixtures.config import BuildConfig
from diversity_jax.scoring.config import ScoreConfig
from diversity_jax.study.graph import Server, Step, StepStore
from diversity_jax.synthesis.config import GenerateConfig
from diversity_jax.training.run import Config

_FOLDER = re.compile(r"\{(\w+)\}")
STALE = ("keep", "again")
_NAMES_IN_KEYS = {"Filtering": "Hygiene"}  # keys of finished steps contain the class's former name


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The steps of a run, in this order; None leaves a step out.

    Each is the configuration of the command of its name. In every string in it, `{output}` stands for the folder the
    step writes to, and `{benchmark}`, `{generate}`, `{score}`, `{build}`, `{train}` and `{sft}` for those of earlier
    steps; `output_dir` is set by the study. `second_score` scores by another judge, such as a language model besides
    the offline judge; `sft` is a second training, and `evaluate_sft` evaluates its model.
    """

    benchmark: ContinuationsConfig | None = None
    generate: GenerateConfig | None = None
    score: ScoreConfig | None = None
    second_score: ScoreConfig | None = None
    build: BuildConfig | None = None
    train: Config | None = None
    sft: Config | None = None
    evaluate: EvaluateConfig | None = None
    evaluate_sft: EvaluateConfig | None = None

    def parts(self) -> dict[str, Any]:
        """The configurations that are not None, by kind, in order."""
        return {kind: config for kind, config in vars(self).items() if config is not None}


@dataclass(frozen=True, kw_only=True)
class Level:
    """One setting of a factor.

    Attributes:
      name: the name shown; a number where the level is an amount.
      set: values by dotted name of a field of the recipe, such as `{"train.train.steps": 100}`.
      published: figures published for this level, by stage and outcome (`350M pre-trained accuracy`).
    """

    name: str | float
    set: Mapping[str, Any]
    published: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Factor:
    """A factor of the grid. Where its levels are numbers, a saturation curve of outcomes over them is fitted too."""

    name: str  # shown
    levels: tuple[Level, ...]

    def __post_init__(self):
        names = [level.name for level in self.levels]
        if not names or len(set(names)) < len(names):
            problem = f"two levels of one name ({', '.join(map(str, names))})" if names else "no levels"
            raise InputError(f"factor {self.name!r} has {problem}; give different names, at least one")


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Accelerators for which hours are forecast."""

    name: str  # shown
    devices: int  # number of accelerators
    peak_flops: float  # of each device, a second
    utilisation: float = 0.45  # share of the peak that training reaches

    def hours(self, flops: float) -> float:
        """Hours that so many floating-point operations take on all devices."""
        return flops / (self.devices * self.peak_flops * self.utilisation) / 3600


@dataclass(frozen=True, kw_only=True)
class Assumed:
    """Assumptions of the forecast, which is made before there is any text.

    Attributes:
      document_tokens: length of a synthetic document as shown to a judge.
      generation_prompt_tokens: length of the prompt for a document.
      epoch_tokens: tokens of an epoch, for trainings whose length is set in epochs.
      machines: the accelerators for which hours are forecast.
    """

    document_tokens: int = 1000
    generation_prompt_tokens: int = 800
    epoch_tokens: float = 1e8
    machines: tuple[Machine, ...] = (
        Machine(name="v5e-256", devices=256, peak_flops=197e12),
        Machine(name="8 x H200", devices=8, peak_flops=989e12),
    )


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """What `python -m diversity_jax.study` runs.

    Attributes:
      name: title of the page.
      output_dir: a local or mounted folder with file locks, shared by all processes that work on the study.
      overwrite: replace the analysis of another study there; finished steps stay.
      factors: the grid is the product of their levels.
      only: levels to keep, as `factor=level, factor=level|level`; empty for the complete grid.
      apart: factors whose levels are analysed separately, such as the size of the model.
      seeds: each recipe is run with each seed. A recipe that leaves out the steps of all `seed_fields`, such as a model
        that is not trained, is run once.
      seed_fields: fields of the recipe that are set to the seed.
      recipe: the base recipe, which levels change.
      predictors: diversity figures to regress outcomes on: fields of the scorecard, or `metrics.NAME`; those of the
        second scoring as `second_score.NAME`. Figures by a judge whose verdict is `unfit` are left out.
      controls: what partial correlations control for: `tokens`, `length`, or a figure as in `predictors`.
      processes: number of processes that run steps on this machine; other machines join by the same command.
      servers: servers that steps send requests to; a process starts one for a step that names its address, unless a
        server answers there already.
      stale: whether to `keep` steps made by code that has changed since, with a warning, or to run them `again`.
      dry_run: print the graph and the forecast, and stop.
      step: run only the step with this key, as the dry run lists them; every process of a multi-host job names the
        same one.
      assumed: assumptions of the forecast.
    """

    name: str
    output_dir: str
    overwrite: bool = False
    factors: tuple[Factor, ...]
    only: str = ""
    apart: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0,)
    seed_fields: tuple[str, ...] = ("train.train.seed",)
    recipe: Recipe
    predictors: tuple[str, ...] = ("effective_clusters", "cluster_score")
    controls: tuple[str, ...] = ()
    processes: int = 1
    servers: tuple[Server, ...] = field(default=(), metadata=config_files.ADDED)
    stale: str = "keep"
    dry_run: bool = False
    step: str = ""
    assumed: Assumed = field(default_factory=Assumed)

    def __post_init__(self):
        names = [factor.name for factor in self.factors]
        if len(set(names)) < len(names):
            raise InputError(f"study {self.name!r}: two factors of one name ({', '.join(names)}); give each its own")
        if unknown := [name for name in self.apart if name not in names]:
            raise InputError(f"study {self.name!r}: apart names {unknown[0]!r}; its factors are {', '.join(names)}")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise InputError(f"study {self.name!r}: seeds {list(self.seeds)}; give different seeds, at least one")
        if self.stale not in STALE:
            raise InputError(f"stale={self.stale!r}: choose {' or '.join(STALE)}")
        if self.processes < 1:
            raise InputError(f"processes={self.processes}: give at least 1")
        if is_remote(self.output_dir):
            raise InputError(
                f"output_dir={self.output_dir}: a study needs a folder with file locks; mount the bucket, or share a "
                "folder between workers as scripts/launch shows"
            )
        if not self.recipe.parts():
            raise InputError(f"study {self.name!r}: the recipe has no step; give at least one")


@dataclass(frozen=True, kw_only=True)
class StudyRun:
    """A recipe with a seed: its levels by factor, and the keys of its steps by kind."""

    levels: Mapping[str, str | float]
    seed: int
    keys: Mapping[str, str]

    @property
    def recipe(self) -> str:
        """The recipe's name, from its levels."""
        return recipe_name(self.levels)


def recipe_name(levels: Mapping[str, str | float]) -> str:
    """Levels in words, such as `topics 40, ratio 4:1`."""
    return ", ".join(f"{name} {level}" for name, level in levels.items()) or "base"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All runs, and all their steps by key; a step comes after those it needs."""

    runs: tuple[StudyRun, ...]
    steps: Mapping[str, Step]


def plan(study: StudyConfig, store: StepStore) -> Plan:
    """The runs and steps of a study.

    Raises:
      InputError: a level sets a field that the recipe does not have, a step names a later or missing step, or two runs
        have the same last step.
    """
    steps: dict[str, Step] = {}
    runs = []
    for levels in itertools.product(*_selected_levels(study)):
        chosen = {factor.name: level.name for factor, level in zip(study.factors, levels, strict=True)}
        recipe = study.recipe
        for (factor, name), level in zip(chosen.items(), levels, strict=True):
            recipe = _with_values(recipe, level.set, f"study {study.name!r}: factor {factor!r}, level {name!r}")
        left_out = {name for name in study.seed_fields if getattr(recipe, name.partition(".")[0], name) is None}
        seed_fields = [name for name in study.seed_fields if name not in left_out]
        for seed in study.seeds if seed_fields or not left_out else study.seeds[:1]:
            seeded = _with_values(recipe, dict.fromkeys(seed_fields, seed), f"study {study.name!r}: seed_fields")
            keys: dict[str, str] = {}
            for kind, config in seeded.parts().items():
                step = _step(kind, config, keys, store)
                steps.setdefault(step.key, step)
                keys[kind] = step.key
            runs.append(StudyRun(levels=chosen, seed=seed, keys=keys))
    _check_different(study, runs)
    order = list(Recipe.__dataclass_fields__)
    return Plan(runs=tuple(runs), steps=dict(sorted(steps.items(), key=lambda item: order.index(item[1].kind))))


def _selected_levels(study: StudyConfig) -> list[tuple[Level, ...]]:
    wanted: dict[str, list[str]] = {}
    for part in filter(None, (part.strip() for part in study.only.split(","))):
        name, equals, names = part.partition("=")
        if not equals:
            raise InputError(f"only={study.only!r}: {part!r} is not of the form factor=level")
        wanted[name.strip()] = [level.strip() for level in names.split("|")]
    level_names = {factor.name: [str(level.name) for level in factor.levels] for factor in study.factors}
    for name, levels in wanted.items():
        only = f"only={study.only!r}:"
        if name not in level_names:
            raise InputError(f"{only} study {study.name!r} has no factor {name!r}; it has {', '.join(level_names)}")
        if unknown := [level for level in levels if level not in level_names[name]]:
            raise InputError(
                f"{only} factor {name!r} has no level {unknown[0]!r}; it has {', '.join(level_names[name])}"
            )
    return [
        tuple(level for level in factor.levels if str(level.name) in wanted.get(factor.name, level_names[factor.name]))
        for factor in study.factors
    ]


def _with_values(recipe: Recipe, values: Mapping[str, Any], where: str) -> Recipe:
    try:
        return config_files.with_values(recipe, values)
    except InputError as error:
        raise InputError(f"{where}: {str(error).removeprefix('--config.')}") from None
    except TypeError as error:
        raise InputError(f"{where}: {dict(values)}: a value of the wrong type ({error})") from None


def _step(kind: str, config: Any, earlier: Mapping[str, str], store: StepStore) -> Step:
    """A step of a recipe. The settings, from which its key is made, name folders of steps by key; its configuration
    names the folders themselves.
    """
    needs: list[str] = []

    def by_key(name: str) -> str:
        if name == "output":
            return "{output}"
        if name not in earlier:
            steps = ", ".join(earlier) or "none"
            raise InputError(f"the recipe's {kind} names {{{name}}}; steps before it are {steps}")
        if earlier[name] not in needs:
            needs.append(earlier[name])
        return f"{{{earlier[name]}}}"

    if any(f.name == "output_dir" for f in dataclasses.fields(config)):
        config = dataclasses.replace(config, output_dir="{output}")
    settings = _as_json(_in_texts(config, by_key))
    key = Step(kind=kind, config=None, settings=settings).key
    folders = {name: str(store.output(earlier_key)) for name, earlier_key in (*earlier.items(), ("output", key))}
    return Step(kind=kind, config=_in_texts(config, folders.__getitem__), settings=settings, needs=tuple(needs))


def _in_texts(value: Any, replace: Callable[[str], str]) -> Any:
    """The value with `{name}` replaced in all strings inside."""
    if isinstance(value, str):
        return _FOLDER.sub(lambda match: replace(match[1]), value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        changed = {f.name: _in_texts(getattr(value, f.name), replace) for f in dataclasses.fields(value) if f.init}
        return dataclasses.replace(value, **changed)
    if isinstance(value, tuple | list):
        return type(value)(_in_texts(item, replace) for item in value)
    if isinstance(value, Mapping):
        return {name: _in_texts(item, replace) for name, item in value.items()}
    return value


def _as_json(value: Any) -> Any:
    """A configuration as JSON values, each dataclass with the name of its type, without secrets."""
    if dataclasses.is_dataclass(value):
        fields = config_files.fields_for_keys(value)
        name = type(value).__name__
        return {"type": _NAMES_IN_KEYS.get(name, name)} | _as_json(fields)
    if isinstance(value, Mapping):
        return {str(name): _as_json(item) for name, item in without_headers(value).items()}
    if isinstance(value, tuple | list):
        return [_as_json(item) for item in value]
    return value if isinstance(value, bool | int | float) or value is None else without_secrets(str(value))


def _check_different(study: StudyConfig, runs: Sequence[StudyRun]) -> None:
    """Refuses levels and seeds that change neither the last step nor a step it needs."""
    last = list(study.recipe.parts())[-1]
    seen: dict[str, StudyRun] = {}
    for run in runs:
        other = seen.setdefault(run.keys[last], run)
        if other is run:
            continue
        if other.levels == run.levels:
            fields = ", ".join(study.seed_fields)
            reason = f"it reads none of {fields}" if fields else "seed_fields names no field for them"
            problem = f"seeds {other.seed} and {run.seed} come to the same {last}: {reason}"
        else:
            names = [name for name in run.levels if run.levels[name] != other.levels[name]]
            old, new = (recipe_name({name: levels[name] for name in names}) for levels in (other.levels, run.levels))
            problem = f"{old} and {new} make the same recipe: {_why_equal(study, names, (run, other), last)}"
        raise InputError(f"study {study.name!r}: {problem}")


def _why_equal(study: StudyConfig, names: Sequence[str], runs: Sequence[StudyRun], last: str) -> str:
    """Why two runs that differ in the levels of the named factors have the same last step."""
    pairs = [
        [level.set for level in factor.levels if level.name in (run.levels[factor.name] for run in runs)]
        for factor in study.factors
        if factor.name in names
    ]
    if all(first == second for first, second in pairs):
        return "these levels set the same; leave one out"
    fields = dict.fromkeys(field for pair in pairs for values in pair for field in values)
    return f"{last} and the steps it needs read none of {', '.join(fields)}; vary a field that they read"
