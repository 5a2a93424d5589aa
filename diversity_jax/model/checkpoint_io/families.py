"""Model types of transformers that this Llama can represent, and how their `config.json` maps to `LlamaConfig`.

Entries that are missing have the defaults of the family's own class in transformers. Export tries the families in order
and takes the first whose entries, read back, give the same model.

Rotary settings come in the styles of transformers 4 (`rope_theta`, `rope_scaling`) and 5 (`rope_parameters`). Where
they contradict each other, transformers uses one of them without a warning, which one depends on its version; here such
files are refused.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
import math
from pathlib import Path
from typing import Any

from diversity_jax.core.errors import InputError
from diversity_jax.model.config import LlamaConfig

SLIDING, FULL = "sliding_attention", "full_attention"


@dataclass(frozen=True, kw_only=True)
class Family:
    """One model type of transformers."""

    model_type: str
    architecture: str
    defaults: Mapping[str, Any] = field(default_factory=dict)  # values of missing entries, where Llama's differ
    fixed: Mapping[str, Any] = field(default_factory=dict)  # fields of LlamaConfig that are the same in all models
    # Entry of config.json -> the fields of LlamaConfig that all have its value.
    entries: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    # Which layers `sliding_window` is for: "none", "all", "listed" (in layer_types) or "from" (max_window_layers on).
    windows: str = "none"
    rope_types: tuple[str, ...] = ("default", "linear", "dynamic", "llama3", "yarn")
    others: frozenset[str] = frozenset()  # further entries that are read

    def known(self) -> set[str]:
        """Names of all entries that are read of this family."""
        windows = {"none": set(), "all": {"sliding_window"}, "listed": {"sliding_window", "layer_types"}}
        windows["from"] = {"sliding_window", "layer_types", "use_sliding_window", "max_window_layers"}
        return {*self.entries, *windows[self.windows], *self.others, *self.defaults}


_ATTENTION_BIAS = {"attention_bias": ("qkv_bias", "output_bias")}
_MLP_BIAS = {"mlp_bias": ("mlp_bias",)}
_BIASES = {**_ATTENTION_BIAS, **_MLP_BIAS}
_MULTIPLIERS = {f"{name}_multiplier": (f"{name}_multiplier",) for name in ("embedding", "attention", "residual")}
_QWEN = {"num_key_value_heads": 32, "sliding_window": 4096, "max_window_layers": 28, "use_sliding_window": False}
_OLMO = {"qk_norm": "full", "norm_order": "post"}
_GEMMA = {"norm_offset": 1.0, "activation": "gelu_tanh"}
_GEMMA_DEFAULTS = {"head_dim": 256, "tie_word_embeddings": True}

FAMILIES = {
    family.model_type: family
    for family in (
        Family(model_type="llama", architecture="LlamaForCausalLM", entries=_BIASES),
        Family(
            model_type="mistral",
            architecture="MistralForCausalLM",
            defaults={"num_key_value_heads": 8, "sliding_window": 4096, "max_position_embeddings": 131072},
            windows="all",
        ),
        Family(
            model_type="ministral",
            architecture="MinistralForCausalLM",
            defaults={"num_key_value_heads": 8, "sliding_window": 4096, "max_position_embeddings": 131072},
            windows="listed",
        ),
        Family(
            model_type="qwen2",
            architecture="Qwen2ForCausalLM",
            defaults={**_QWEN, "max_position_embeddings": 32768},
            fixed={"qkv_bias": True},
            windows="from",
        ),
        Family(
            model_type="qwen3",
            architecture="Qwen3ForCausalLM",
            defaults={**_QWEN, "max_position_embeddings": 32768, "head_dim": 128},
            fixed={"qk_norm": "head"},
            entries=_ATTENTION_BIAS,
            windows="from",
        ),
        Family(
            model_type="smollm3",
            architecture="SmolLM3ForCausalLM",
            defaults={
                **{"num_key_value_heads": 4, "rope_theta": 2000000.0, "max_position_embeddings": 32768},
                **{"tie_word_embeddings": True, "use_sliding_window": False, "no_rope_layer_interval": 4},
            },
            entries=_BIASES,
            windows="listed",
            others=frozenset({"no_rope_layers", "use_sliding_window", "max_window_layers"}),
        ),
        Family(
            model_type="olmo2",
            architecture="Olmo2ForCausalLM",
            defaults={"rms_norm_eps": 1e-5},
            fixed=_OLMO,
            entries=_ATTENTION_BIAS,
        ),
        Family(
            model_type="olmo3",
            architecture="Olmo3ForCausalLM",
            defaults={"rms_norm_eps": 1e-5, "rope_theta": 500000.0, "sliding_window": 4096},
            fixed=_OLMO,
            entries=_ATTENTION_BIAS,
            windows="listed",
        ),
        Family(
            model_type="granite",
            architecture="GraniteForCausalLM",
            defaults=dict.fromkeys((*_MULTIPLIERS, "logits_scaling"), 1.0),
            entries={**_BIASES, **_MULTIPLIERS, "logits_scaling": ("logits_divisor",)},
        ),
        Family(
            model_type="seed_oss",
            architecture="SeedOssForCausalLM",
            defaults={
                **{"num_key_value_heads": 8, "head_dim": 128, "attention_bias": True},
                **{"max_position_embeddings": 524288},
            },
            entries={"attention_bias": ("qkv_bias",), "attention_out_bias": ("output_bias",), **_MLP_BIAS},
        ),
        Family(
            model_type="phi3",
            architecture="Phi3ForCausalLM",
            defaults={"rms_norm_eps": 1e-5, "max_position_embeddings": 4096},
            windows="all",
            rope_types=("default",),
        ),
        Family(
            model_type="gemma",
            architecture="GemmaForCausalLM",
            defaults={**_GEMMA_DEFAULTS, "num_key_value_heads": 16, "max_position_embeddings": 8192},
            fixed=_GEMMA,
            entries=_ATTENTION_BIAS,
            others=frozenset({"hidden_activation"}),
        ),
        Family(
            model_type="gemma3_text",
            architecture="Gemma3ForCausalLM",
            defaults={
                **{**_GEMMA_DEFAULTS, "num_key_value_heads": 4, "max_position_embeddings": 131072},
                **{"rope_theta": 1000000.0, "rope_local_base_freq": 10000.0, "sliding_window": 4096},
                **{"query_pre_attn_scalar": 256, "sliding_window_pattern": 6},
            },
            fixed={**_GEMMA, "norm_order": "both", "qk_norm": "head"},
            entries=_ATTENTION_BIAS,
            windows="listed",
            others=frozenset({"hidden_activation", "_sliding_window_pattern"}),
        ),
    )
}
"""Families by model type, in the order in which export tries them."""


def window_fields(path: Path, theirs: Mapping[str, Any], family: Family) -> dict[str, Any]:
    """`sliding_window` and `layers_without_window` from the entries of a `config.json`.

    Raises:
      InputError: the list of layers has another length or another kind of attention.
    """
    layers, window = theirs["num_hidden_layers"], theirs.get("sliding_window")
    listed: Any = theirs.get("layer_types")
    if listed is not None and (not isinstance(listed, list) or len(listed) != layers):
        raise InputError(f"{path}: layer_types does not list {layers} layers, as num_hidden_layers says")
    if other := [kind for kind in listed or () if kind not in (SLIDING, FULL)]:
        raise InputError(f"{path}: layer_types has {other[0]!r}; only {FULL} and {SLIDING} can be read")
    if family.windows == "none" or ("use_sliding_window" in family.known() and not theirs.get("use_sliding_window")):
        window = None  # classes without the switch ignore it
    if listed is None and (window is not None or family.model_type in _OWN_BASE_IN_WINDOWS):
        listed = _unlisted_kinds(path, theirs, family)
    if window is None:
        # transformers ignores the list in a family without windows, so the logits would differ.
        if SLIDING in (listed or ()):
            raise InputError(f"{path}: layer_types has {SLIDING!r}, but no window's size is in effect (sliding_window)")
        return {}
    whole_number(path, theirs, "sliding_window")
    if family.windows == "all" and FULL in listed:
        raise InputError(f"{path}: layer_types has {FULL!r}, which {family.architecture} ignores; remove it")
    full = tuple(number for number, kind in enumerate(listed) if kind == FULL)
    return {"sliding_window": window, "layers_without_window": full} if len(full) < layers else {}


def _unlisted_kinds(path: Path, theirs: Mapping[str, Any], family: Family) -> list[str]:
    """The default of `layer_types`."""
    layers = range(theirs["num_hidden_layers"])
    full: Any = {
        **dict.fromkeys(("qwen2", "qwen3"), lambda: range(whole_number(path, theirs, "max_window_layers", 0))),
        "smollm3": lambda: set(layers) - set(layers_without_rotary(path, theirs)),
        "olmo3": lambda: layers[3::4],
        "gemma3_text": lambda: layers[(every := whole_number(path, theirs, "sliding_window_pattern")) - 1 :: every],
    }
    layer_kinds = full.get(family.model_type, tuple)()
    return [FULL if number in layer_kinds else SLIDING for number in layers]


def layers_without_rotary(path: Path, theirs: Mapping[str, Any]) -> tuple[int, ...]:
    """Numbers of SmolLM3's layers without rotary positions, which are 0 in its list `no_rope_layers`.

    Raises:
      InputError: the list has another length or other values, or there is neither a list nor a valid interval.
    """
    layers, interval = theirs["num_hidden_layers"], theirs["no_rope_layer_interval"]
    has_rotary = theirs.get("no_rope_layers")
    if has_rotary is None:
        whole_number(path, theirs, "no_rope_layer_interval")
        return tuple(range(interval - 1, layers, interval))
    is_list = isinstance(has_rotary, list) and set(map(repr, has_rotary)) <= {"0", "1", "True", "False"}
    if not is_list or len(has_rotary) != layers:
        raise InputError(f"{path}: no_rope_layers does not list {layers} zeros and ones, as num_hidden_layers says")
    return tuple(number for number, flag in enumerate(has_rotary) if not flag)


_OWN_BASE_IN_WINDOWS = ("gemma3_text", "olmo3")  # layers with a window have a base of their own and no scaling
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
ENTRIES = ("rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor", "original_max_position_embeddings")


def whole_number(path: Path, theirs: Mapping[str, Any], name: str, least: int = 1) -> int:
    """The value of an entry that must be a whole number of at least 1, or 0."""
    value = theirs.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InputError(f"{path}: {name} is {value!r}; expected a whole number{' above 0' if least else ''}")
    return value


def number(path: Path, name: str, value: Any) -> float:
    """The value of an entry that must be a number above 0."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
        raise InputError(f"{path}: {name} is {value!r}; expected a number above 0")
    return float(value)


def rope_fields(path: Path, theirs: Mapping[str, Any], family: Family) -> dict[str, Any]:
    """Rotary fields of `LlamaConfig` from a configuration with its family's defaults filled in.

    Raises:
      InputError: a kind of scaling that is not computed here, an unknown entry, or entries that contradict each other.
    """
    rope, local = _dictionary(path, theirs, family)
    missing = theirs.get("rope_theta", family.defaults.get("rope_theta", 10000.0))  # None, an error, where it is null
    theta = number(path, "rope_theta", _agreed(path, "rope_theta", rope, theirs, missing))
    share = _agreed(path, "partial_rotary_factor", rope, theirs, 1.0)
    if share != 1 and family.model_type != "phi3":
        raise InputError(f"{path}: partial_rotary_factor is {share:g}; transformers' {family.model_type} has only 1.0")
    fields = {"rope_theta": theta, "partial_rotary_factor": share, **_scaling(path, rope, theirs, family)}
    if family.model_type in _OWN_BASE_IN_WINDOWS:
        own = theirs.get("rope_local_base_freq", family.defaults["rope_theta"])  # not that of the other layers
        fields["window_rope_theta"] = number(path, "rope_theta of sliding_attention", local.get("rope_theta", own))
    return fields


def _dictionary(path: Path, theirs: Mapping[str, Any], family: Family) -> tuple[dict[str, Any], dict[str, Any]]:
    """Rotary settings of layers with full attention, and of layers with a window where these have their own."""
    old, new = (_object(path, theirs, name) for name in ("rope_scaling", "rope_parameters"))
    local: dict[str, Any] = {}
    if family.model_type in _OWN_BASE_IN_WINDOWS:
        if not set(new) <= {FULL, SLIDING}:
            raise InputError(f"{path}: rope_parameters of {family.model_type} are by kind of layer, {FULL}, {SLIDING}")
        is_other_base = not new and family.model_type == "olmo3" and theirs.get("rope_theta", 500000.0) != 500000.0
        if is_other_base or ("rope_type" not in old and _kind(path, old) != "default"):
            name = "rope_theta" if is_other_base else "type in rope_scaling"
            raise InputError(
                f"{path}: {name} of {family.model_type} is read differently by transformers 4 and 5; write "
                f"rope_parameters with {FULL} and {SLIDING}"
            )
        new, local = (_object(path, new, kind) for kind in (FULL, SLIDING))
        if (kind := _kind(path, local)) != "default":
            raise InputError(f"{path}: rope_type of {SLIDING} is {kind!r}; only 'default' can be read")
    both = {name: value for name, value in old.items() if name in new and name != "type" and new[name] != value}
    if old and new and _kind(path, new) != "default" and (both or _kind(path, old) != _kind(path, new)):
        raise InputError(f"{path}: rope_scaling {old} and rope_parameters {new} differ; keep one of them")
    for name, assumed in (("rope_theta", family.defaults.get("rope_theta", 10000.0)), ("partial_rotary_factor", 1.0)):
        if old and new.get(name, assumed) != assumed and name not in {**old, **theirs}:
            raise InputError(
                f"{path}: with rope_scaling, transformers ignores rope_parameters and its {name}={new[name]}; move its "
                "settings into rope_parameters"
            )
    beside: dict[str, Any] = {name: new[name] for name in ("rope_theta", "partial_rotary_factor") if name in new}
    return {**beside, **old} if old else new, local


def _object(path: Path, entries: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The rotary settings of an entry; empty where it is missing or null."""
    value = entries.get(name)
    if value is not None and not isinstance(value, dict):
        raise InputError(f"{path}: {name} is {value!r}; expected an object with rope_type and its settings")
    return value or {}


def _kind(path: Path, rope: Mapping[str, Any]) -> str:
    kinds = {str(rope[name]) for name in ("rope_type", "type") if rope.get(name) is not None}
    if len(kinds) > 1:
        raise InputError(f"{path}: rope_type is {rope['rope_type']!r} and type is {rope['type']!r}; keep one of them")
    return next(iter(kinds), "default")


def _agreed(path: Path, name: str, rope: Mapping[str, Any], theirs: Mapping[str, Any], default: Any) -> Any:
    """A number from the object of rotary settings or beside it; where both have it, they must agree."""
    values = {number(path, name, entries[name]) for entries in (rope, theirs) if entries.get(name) is not None}
    if len(values) > 1:
        raise InputError(
            f"{path}: {name} is {rope[name]} in the rotary settings and {theirs[name]} beside them, of which "
            "transformers 4 takes one and 5 the other; keep one of them"
        )
    return next(iter(values), default)


def _scaling(path: Path, rope: dict[str, Any], theirs: Mapping[str, Any], family: Family) -> dict[str, Any]:
    kind = _kind(path, rope)
    if kind not in family.rope_types:
        only = f"of {family.model_type} only {', '.join(family.rope_types)} can be read"
        raise InputError(f"{path}: rope_type is {kind!r}; {only}")
    rope = {name: value for name, value in rope.items() if value is not None and name not in _ALWAYS}
    if kind == "default" and rope.get("factor") == 1:
        del rope["factor"]
    if unknown := sorted(set(rope) - set(_KEYS[kind])):
        raise InputError(f"{path}: {unknown[0]}={rope[unknown[0]]!r} is no setting of rope_type {kind!r}; remove it")
    if kind == "default":
        return {}
    reach = number(path, "max_position_embeddings", theirs.get("max_position_embeddings"))
    original = int(_agreed(path, "original_max_position_embeddings", rope, theirs, reach))
    is_beside = "original_max_position_embeddings" not in rope and family.model_type in _OWN_BASE_IN_WINDOWS
    if original != reach and (kind == "dynamic" or is_beside):
        ignoring = "with rope_type 'dynamic'" if kind == "dynamic" else f"outside rope_parameters of {FULL}"
        raise InputError(
            f"{path}: original_max_position_embeddings is {original}; {ignoring} transformers ignores it and takes "
            f"max_position_embeddings={reach:.0f}"
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
    """Yarn's attention factor: the file's, or DeepSeek's from two scales; None: the default of the paper."""
    if "attention_factor" in values or not {"mscale", "mscale_all_dim"} <= set(values):
        return values.get("attention_factor")
    growth = math.log(max(values["factor"], 1.0))
    return (0.1 * values["mscale"] * growth + 1) / (0.1 * values["mscale_all_dim"] * growth + 1)


def rope_entries(config: LlamaConfig, family: Family) -> dict[str, Any]:
    """Rotary entries of `config.json` for transformers 4 and 5."""
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
