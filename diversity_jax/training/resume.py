"""Decides which settings of a run may change when it is resumed or branched.

Settings are compared with those in the checkpoint's record, before anything is restored or written. Kinds of settings:

- free: does not change any bit of later steps, so it may change.
- of the schedule: may change if every finished step would have had the same learning rate.
- by name: changes later steps, if only by rounding; may change if `train.allow_changed` names it.
- fixed, as all others: determines the state or the order of the data.
"""

from collections.abc import Mapping, Sequence
import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from diversity_jax.core.errors import InputError
from diversity_jax.core.files import content_hash, exists, join_path
from diversity_jax.core.json_fields import Fields, from_json, read_fields
from diversity_jax.core.run_info import Change, changes, plain
from diversity_jax.mixtures.config import MixtureConfig
from diversity_jax.model import LlamaConfig, MeshConfig
from diversity_jax.training.config import OptimizerConfig, TrainConfig
from diversity_jax.training.step import learning_rate

_FREE_OF_TRAIN = (
    *("epochs", "allow_changed", "log_every", "eval_every", "eval_batches", "sample_every", "sample_prompts"),
    *("sample_tokens", "sample_temperature", "checkpoint_every", "keep_checkpoints", "keep_every_steps"),
    *("keep_every_minutes", "grace_seconds", "max_skipped_steps", "profile_start", "profile_steps"),
    *("compilation_cache", "tensorboard", "trackers"),
)
FREE = {"model.max_length", *(f"train.{name}" for name in _FREE_OF_TRAIN)}
_RATE = ("learning_rate", "warmup_steps", "total_steps", "schedule", "decay_share", "final_ratio")
SCHEDULE = {"train.steps", *(f"optimizer.{name}" for name in _RATE)}
_ROUNDING = ("scan_layers", "remat", "attention", "loss_chunk_bytes")  # fields of the model that change rounding only
_FUNCTION = (
    *("rope_theta", "rms_norm_eps", "sliding_window", "dropout", "compute_dtype", "layers_without_window"),
    *("layers_without_rotary", "rope_scaling", "rope_factor", "rope_original_length", "rope_slow_turns"),
    *("rope_fast_turns", "rope_attention_factor", "window_rope_theta"),
)
BY_NAME = {
    *(f"model.{name}" for name in (*_ROUNDING, *_FUNCTION)),
    *(f"optimizer.{name}" for name in ("beta1", "beta2", "weight_decay", "clip_norm", "epsilon")),
    *(f"train.{name}" for name in ("seed", "gradient_accumulation", "z_loss", "attend_across_documents", "lora.alpha")),
    *(f"mesh.{field.name}" for field in dataclasses.fields(MeshConfig)),
}
_ORIGIN = {f"train.{name}" for name in ("init_from", "init_step", "branch_from", "branch_step")}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All that a run's steps depend on, except the rows; checkpoints record its `run_info.plain` form."""

    model: LlamaConfig
    optimizer: OptimizerConfig  # `total_steps` as in the configuration
    train: TrainConfig
    mesh: MeshConfig


def field_names(config: Any, prefix: str = "") -> set[str]:
    """Dotted names of all fields of a configuration and its parts."""
    names = set[str]()
    for field in dataclasses.fields(config):
        names.add(prefix + field.name)
        if dataclasses.is_dataclass(value := getattr(config, field.name)):
            names |= field_names(value, f"{prefix}{field.name}.")
    return names


def check_mixture(info: Mapping[str, Any], record: Mapping[str, Any], mixture: MixtureConfig, run: str | Path) -> None:
    """Raises `InputError` where the configured mixture differs from the run's; it names fields with both values.

    Args:
      info: the record of the run's last checkpoint.
      record: the run's `mixture.json`, with the `document_start` that `auto` was resolved to.
    """
    asked = {**record["asked"], "document_start": record.get("document_start")}
    free = {"mixture.processes", *(["mixture.document_start"] if mixture.document_start == "auto" else [])}
    differing = [change for change in changes(asked, mixture, "mixture") if change.field not in free]
    if differing:
        raise InputError(_refusal(differing, {}, None, info["step"], run))


def accepted_changes(
    info: Mapping[str, Any], now: Settings, mixture: Mapping[str, Any], *, run: str | Path, is_branch: bool = False
) -> list[Change]:
    """Compares settings with those in a checkpoint's record.

    Args:
      info: the record of the checkpoint to resume from.
      mixture: its `content_hash` and `document_start`; empty: not known yet.
      run: folder of the run that wrote the checkpoint.
      is_branch: resumes in another folder, so that `init_from` and `branch_from` may differ.

    Returns:
      Changes that `train.allow_changed` names.

    Raises:
      InputError: a setting differs that may not; the message names it with both values, and remedies.
    """
    step, before = int(info["step"]), _recorded_settings(info, now, run)
    differing = [change for change in _differing(before, now) if change.field not in FREE]
    if is_branch:
        differing = [change for change in differing if change.field not in _ORIGIN]
    if unknown := set(now.train.allow_changed) - field_names(now):
        raise InputError(
            f"train.allow_changed: no field is named {min(unknown)!r}; name one as optimizer.learning_rate"
        )
    allowed_names = now.train.allow_changed
    named = [change for change in differing if any(f"{change.field}.".startswith(f"{name}.") for name in allowed_names)]
    by_name = [change for change in named if change.field in BY_NAME | SCHEDULE]
    other, first_other = _other_rates(before, now, differing, by_name, step)
    allowed = [change for change in differing if change.field in SCHEDULE and change not in other]
    refused = [change for change in differing if change not in (*by_name, *allowed)]
    rows_hash = mixture.get("content_hash")
    starts = info.get("document_start"), mixture.get("document_start")
    if rows_hash is not None and starts[0] != starts[1]:
        refused.append(Change(field="mixture.document_start", before=starts[0], now=starts[1]))
    elif rows_hash is not None and rows_hash != _rows_hash(info):
        refused.append(Change(field="mixture (hash of its rows)", before=_rows_hash(info)[:12], now=rows_hash[:12]))
    if refused:
        raise InputError(_refusal(refused, before, first_other, step, run))
    return by_name


def _differing(before: Mapping[str, Any], now: Settings) -> list[Change]:
    """All differences, except equivalent values of `num_kv_heads`."""

    def same_form(model: LlamaConfig) -> LlamaConfig:
        return dataclasses.replace(model, num_kv_heads=model.kv_heads)

    model = same_form(_from_json(LlamaConfig, before["model"]))
    return changes({**before, "model": vars(model)}, dataclasses.replace(now, model=same_form(now.model)))


def _from_json(kind: Any, value: Mapping[str, Any]) -> Any:
    names = {field.name for field in dataclasses.fields(kind)}
    return from_json(kind, {name: item for name, item in value.items() if name in names}, "the run's record")


def _other_rates(
    before: Mapping[str, Any], now: Settings, differing: Sequence[Change], named: Sequence[Change], step: int
) -> tuple[list[Change], tuple[int, float] | None]:
    """Changes of the schedule, without `named` ones, that would have given finished steps another learning rate; and
    the first such step, counted from 0, with its new rate.
    """
    schedule = [change for change in differing if change.field in SCHEDULE]
    if not schedule:
        return [], None
    recorded = _from_json(OptimizerConfig, before["optimizer"])

    def rates(changed: Sequence[Change]) -> np.ndarray:
        fields = {change.field for change in changed}
        own = {name: getattr(now.optimizer, name) for name in _RATE if f"optimizer.{name}" in fields}
        steps = now.train.steps if "train.steps" in fields else before["train"]["steps"]
        return np.asarray(learning_rate(dataclasses.replace(recorded, **own).for_run(steps), jnp.arange(step)))

    were, are = rates(named), rates(schedule)
    first = next(iter(np.flatnonzero(were != are)), None)
    if first is None:
        return [], None
    alone = [change for change in schedule if change not in named and np.any(rates([*named, change]) != were)]
    return alone or [change for change in schedule if change not in named], (int(first), float(are[first]))


def _refusal(
    refused: Sequence[Change], before: Mapping[str, Any], first_other: tuple[int, float] | None, step: int, run: Any
) -> str:
    """One line with the differences and remedies."""
    fields = [change.field for change in refused]
    nameable = [field for field in fields if field in BY_NAME | SCHEDULE]
    ways = ["set it back" if len(refused) == 1 else "set them back"]
    problem = f"{run}: its {step} finished steps were made with other settings: {', '.join(map(str, refused))}"
    if first_other and set(fields) & SCHEDULE:
        problem += f" (step {first_other[0] + 1} would have had a learning rate of {first_other[1]:.4g})"
        if "train.steps" in fields and before["optimizer"].get("total_steps") is None:
            ways.append(f"keep the schedule with optimizer.total_steps={before['train']['steps']}")
        if set(fields) & {"train.steps", "optimizer.total_steps", "optimizer.schedule", "optimizer.decay_share"}:
            ways.append(f"branch off before its decay with train.branch_from={run} and train.branch_step")
    if len(nameable) == len(fields):
        ways.append(f"go on with it from here with train.allow_changed={','.join(nameable)}")
    elif any(field.startswith("model.") for field in set(fields) - set(nameable)):
        ways.append("begin another run in another output_dir")
    else:
        ways.append(f"begin another run, in another output_dir, from its parameters with train.init_from={run}")
    return f"{problem}; {', or '.join(ways)}; nothing was changed"


def _rows_hash(info: Mapping[str, Any]) -> str:
    return info["mixture"] if "mixture" in info else info["identity"]["mixture"]


# Early checkpoints hold hashes of these fields instead of settings.
_OLD_MODEL = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads", "num_kv_heads", "max_length"),
    *("rope_theta", "rms_norm_eps", "tie_embeddings", "sliding_window", "dropout", "initializer_range"),
    "compute_dtype",
)
_OLD_OPTIMIZER = (*_RATE, "beta1", "beta2", "weight_decay", "clip_norm", "epsilon")
_OLD_TRAIN = ("batch_size", "seed", "z_loss")


def _recorded_settings(info: Mapping[str, Any], now: Settings, run: str | Path) -> Mapping[str, Any]:
    """The settings in a checkpoint's record; for an early record, settings that match its hashes.

    Settings without a hash in an early record, such as the mesh, count as unchanged.
    """
    if "settings" in info:
        return info["settings"]
    wanted, current = info["identity"], plain(now)
    record = join_path(run, "run.json")
    written = (read_fields(record, settings=Fields | None)["settings"] or {}) if exists(record) else {}
    settings = dict(current)
    for part in ("model", "train", "optimizer"):
        candidates = [current, {**settings, part: written.get(part)}, {**settings, **written}]
        fitting = [candidate for candidate in candidates if candidate.get(part) and _fits(part, candidate, wanted)]
        if not fitting:
            raise InputError(
                f"{run}: its {info['step']} finished steps were made with another {part} configuration, whose fields "
                "were not recorded by the version that wrote them; set it back, or choose another output_dir; nothing "
                "was changed"
            )
        settings[part] = fitting[0][part]
        if part == "optimizer":
            settings["train"] = {**settings["train"], "steps": fitting[0]["train"]["steps"]}
    return settings


def _fits(part: str, settings: Mapping[str, Any], wanted: Mapping[str, str]) -> bool:
    """Whether a part of the settings matches the hashes in an early record."""
    return all(wanted.get(name) == old_hash for name, old_hash in _old_hashes(part, settings).items())


def _old_hashes(part: str, settings: Mapping[str, Any]) -> dict[str, str | None]:
    train = settings["train"]
    if part == "model":
        model = vars(_from_json(LlamaConfig, settings["model"]))
        return {"model": content_hash({name: model[name] for name in _OLD_MODEL})}
    if part == "optimizer":
        optimizer = vars(_from_json(OptimizerConfig, settings["optimizer"]).for_run(train["steps"]))
        return {"optimizer": content_hash({name: optimizer[name] for name in _OLD_OPTIMIZER})}
    training = {name: train[name] for name in _OLD_TRAIN} | {"across": train["attend_across_documents"]}
    lora, begun = train.get("lora") or {"rank": 0}, [train.get("init_from"), train.get("init_step")]
    return {
        "batch_size, seed, z_loss or attend_across_documents": content_hash(training),
        "init_from": content_hash(begun) if begun[0] is not None else None,
        "lora": content_hash({name: lora[name] for name in ("rank", "alpha", "matrices")}) if lora["rank"] else None,
    }
