"""Rotary settings in `config.json`, in the styles of transformers 4 (`rope_theta`, `rope_scaling`) and 5
(`rope_parameters`), to and from fields of `LlamaConfig`.

Where two of them say different things, transformers takes one without a word, and not every version the same one; here
such files are refused.
"""

from collections.abc import Mapping
import math
from pathlib import Path
from typing import Any

from diversity_jax.core.errors import InputError
from diversity_jax.model.checkpoint_io.families import FULL, SLIDING, Family
from diversity_jax.model.config import LlamaConfig

_OWN_BASE_IN_WINDOWS = ("gemma3_text", "olmo3")  # layers with a window turn by their own base, not stretched
_KEYS = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor", "original_max_position_embeddings"),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": (
        *("factor", "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow", "mscale"),
        *("mscale_all_dim", "truncate"),
    ),
}
_ALWAYS = ("rope_type", "type", "rope_theta", "partial_rotary_factor", "finetuned")
ENTRIES = (
    *("rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor", "original_max_position_embeddings"),
)


def number(path: Path, name: str, value: Any) -> float:
    """The value of an entry that must be a number above 0."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
        raise InputError(f"{path}: {name} is {value!r}; expected a number above 0")
    return float(value)


def rope_fields(path: Path, theirs: Mapping[str, Any], family: Family) -> dict[str, Any]:
    """Fields of `LlamaConfig` by a configuration with its family's defaults filled in.

    Raises:
      InputError: a kind of scaling that is not computed here, an unknown entry, or entries that contradict each other.
    """
    rope, local = _dictionary(path, theirs, family)
    theta = _agreed(path, "rope_theta", rope, theirs, family.defaults.get("rope_theta", 10000.0))
    share = _agreed(path, "partial_rotary_factor", rope, theirs, 1.0)
    if share != 1 and family.model_type != "phi3":
        raise InputError(f"{path}: partial_rotary_factor is {share:g}; transformers' {family.model_type} has only 1.0")
    fields = {"rope_theta": theta, "partial_rotary_factor": share, **_scaling(path, rope, theirs, family)}
    if family.model_type in _OWN_BASE_IN_WINDOWS:
        own = theirs.get("rope_local_base_freq", theta)
        fields["window_rope_theta"] = number(path, "rope_theta of sliding_attention", local.get("rope_theta", own))
    return fields


def _dictionary(path: Path, theirs: Mapping[str, Any], family: Family) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings of the layers that see all tokens, and of those with a window where they have their own."""
    found = {name: theirs.get(name) or {} for name in ("rope_scaling", "rope_parameters")}
    for name, value in found.items():
        if not isinstance(value, dict):
            raise InputError(f"{path}: {name} is {value!r}; expected an object with rope_type and its settings")
    old, new = found["rope_scaling"], found["rope_parameters"]
    local: dict[str, Any] = {}
    if family.model_type in _OWN_BASE_IN_WINDOWS:
        parts = [new.get(kind) or {} for kind in (FULL, SLIDING)]
        if new and not (set(new) <= {FULL, SLIDING} and all(isinstance(part, dict) for part in parts)):
            raise InputError(f"{path}: rope_parameters of {family.model_type} are by kind of layer, {FULL}, {SLIDING}")
        if not new and family.model_type == "olmo3" and "rope_theta" in theirs and theirs["rope_theta"] != 500000.0:
            raise InputError(
                f"{path}: rope_theta of olmo3 is read differently by transformers 4 and 5; write rope_parameters with "
                f"{FULL} and {SLIDING}"
            )
        new, local = parts
        if (kind := _kind(path, local)) != "default":
            raise InputError(f"{path}: rope_type of {SLIDING} is {kind!r}; only 'default' can be read")
    both = {name: value for name, value in old.items() if name in new and name != "type" and new[name] != value}
    if old and new and _kind(path, new) != "default" and (both or _kind(path, old) != _kind(path, new)):
        raise InputError(f"{path}: rope_scaling {old} and rope_parameters {new} differ; keep one of them")
    assumed = family.defaults.get("rope_theta", 10000.0)
    if old and new.get("rope_theta", assumed) != assumed and "rope_theta" not in {**old, **theirs}:
        raise InputError(
            f"{path}: rope_scaling stands beside rope_parameters, which transformers then ignores with its "
            f"rope_theta={new['rope_theta']}; move its settings into rope_parameters"
        )
    beside = {name: new[name] for name in ("rope_theta", "partial_rotary_factor") if name in new}
    return {**beside, **old} if old else new, local


def _kind(path: Path, rope: Mapping[str, Any]) -> str:
    kinds = {str(rope[name]) for name in ("rope_type", "type") if rope.get(name) is not None}
    if len(kinds) > 1:
        raise InputError(f"{path}: rope_type is {rope['rope_type']!r} and type is {rope['type']!r}; keep one of them")
    return next(iter(kinds), "default")


def _agreed(path: Path, name: str, rope: Mapping[str, Any], theirs: Mapping[str, Any], default: float) -> float:
    """A number that stands in the object of rotary settings or beside it, or in both alike."""
    values = {number(path, name, place[name]) for place in (rope, theirs) if place.get(name) is not None}
    if len(values) > 1:
        raise InputError(
            f"{path}: {name} is {rope[name]} in the rotary settings and {theirs[name]} beside them, of which "
            "transformers 4 takes one and 5 the other; keep one of them"
        )
    return next(iter(values), default)


def _scaling(path: Path, rope: dict[str, Any], theirs: Mapping[str, Any], family: Family) -> dict[str, Any]:
    kind = _kind(path, rope)
    if kind not in family.rope_types:
        listed = ", ".join(family.rope_types)
        raise InputError(f"{path}: rope_type is {kind!r}; of {family.model_type} only {listed} can be read")
    rope = {name: value for name, value in rope.items() if value is not None and name not in _ALWAYS}
    if kind == "default" and rope.get("factor") == 1:
        del rope["factor"]
    if unknown := sorted(set(rope) - set(_KEYS[kind])):
        raise InputError(f"{path}: {unknown[0]}={rope[unknown[0]]!r} is no setting of rope_type {kind!r}; remove it")
    if kind == "default":
        return {}
    reach = number(path, "max_position_embeddings", theirs.get("max_position_embeddings"))
    original = int(_agreed(path, "original_max_position_embeddings", rope, theirs, reach))
    if kind == "dynamic" and original != reach:
        raise InputError(
            f"{path}: original_max_position_embeddings is {original}; with rope_type 'dynamic' transformers ignores it "
            f"and takes max_position_embeddings={reach:.0f}"
        )
    if "factor" not in rope and kind == "yarn":
        rope["factor"] = reach / original
    values = {name: number(path, f"{name} of rope_type {kind!r}", value) for name, value in _numbers(path, rope)}
    if missing := [name for name in _KEYS[kind][: 3 if kind == "llama3" else 1] if name not in values]:
        raise InputError(f"{path}: rope_type is {kind!r} without {missing[0]}")
    fields: dict[str, Any] = {"rope_scaling": kind, "rope_factor": values["factor"]}
    if kind != "linear":
        fields["rope_original_length"] = original
    if kind == "llama3":
        turns = {"rope_slow_turns": values["low_freq_factor"], "rope_fast_turns": values["high_freq_factor"]}
        return fields | turns
    if kind == "yarn":
        fields |= {"rope_slow_turns": values.get("beta_slow", 1.0), "rope_fast_turns": values.get("beta_fast", 32.0)}
        fields["rope_attention_factor"] = _attention_factor(values)
    return fields


def _numbers(path: Path, rope: Mapping[str, Any]) -> list[tuple[str, Any]]:
    if rope.get("truncate", True) is not True:
        raise InputError(f"{path}: truncate is {rope['truncate']!r}; only yarn with true can be read")
    # A beta or mscale of 0 counts as none in transformers.
    unset = {name for name in ("beta_fast", "beta_slow", "mscale", "mscale_all_dim") if not rope.get(name)}
    return [(name, value) for name, value in rope.items() if name not in unset | {"truncate"}]


def _attention_factor(values: Mapping[str, float]) -> float | None:
    """Of yarn: the file's own, or DeepSeek's by two scales; None: the paper's."""
    if "attention_factor" in values or not {"mscale", "mscale_all_dim"} <= set(values):
        return values.get("attention_factor")
    growth = math.log(max(values["factor"], 1.0))
    return (0.1 * values["mscale"] * growth + 1) / (0.1 * values["mscale_all_dim"] * growth + 1)


def rope_entries(config: LlamaConfig, family: Family) -> dict[str, Any]:
    """The entries of `config.json`, for transformers 4 and 5 alike."""
    scaling: dict[str, Any] = {"rope_type": "default"}
    if config.rope_scaling != "none":
        scaling = {"rope_type": config.rope_scaling, "factor": config.rope_factor}
    if config.rope_scaling in ("llama3", "yarn"):
        names = {"llama3": ("low_freq_factor", "high_freq_factor"), "yarn": ("beta_slow", "beta_fast")}
        turns = (config.rope_slow_turns, config.fast_turns)
        scaling |= dict(zip(names[config.rope_scaling], turns, strict=True))
        scaling["original_max_position_embeddings"] = config.rope_original_length
    if config.rope_attention_factor is not None:
        scaling["attention_factor"] = config.rope_attention_factor
    new: dict[str, Any] = {**scaling, "rope_theta": config.rope_theta}
    entries: dict[str, Any] = {"rope_theta": config.rope_theta}
    if family.model_type in _OWN_BASE_IN_WINDOWS:
        own = config.window_rope_theta or config.rope_theta
        new = {FULL: new, SLIDING: {"rope_type": "default", "rope_theta": own}}
        entries |= {"rope_local_base_freq": own} if family.model_type == "gemma3_text" else {}
    if family.model_type == "phi3":
        new["partial_rotary_factor"] = entries["partial_rotary_factor"] = config.partial_rotary_factor
    if config.rope_scaling != "none":
        entries["rope_scaling"] = scaling
    if config.rope_scaling == "dynamic":
        entries["max_position_embeddings"] = config.rope_original_length
    return entries | {"rope_parameters": new}
