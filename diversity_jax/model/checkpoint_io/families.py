"""Model types of transformers that are this Llama with some of its switches set: their entries of `config.json`.

A family is read by its own class's defaults, since transformers writes only what differs from them. It is written by
trial: the first family whose entries, read back, give the same model.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diversity_jax.core.errors import InputError

SLIDING, FULL = "sliding_attention", "full_attention"


@dataclass(frozen=True, kw_only=True)
class Family:
    """One model type: what it always has, and which entries say the rest."""

    model_type: str
    architecture: str
    defaults: Mapping[str, Any] = field(default_factory=dict)  # entries where config.json is silent, other than Llama's
    fixed: Mapping[str, Any] = field(default_factory=dict)  # fields of LlamaConfig that all its models have
    # Entry of config.json -> the fields of LlamaConfig that all have its value.
    entries: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    # Which layers `sliding_window` is for: "none", "all", "listed" (in layer_types) or "from" (max_window_layers on).
    windows: str = "none"
    rope_types: tuple[str, ...] = ("default", "linear", "dynamic", "llama3", "yarn")
    others: frozenset[str] = field(default=frozenset())  # further entries that are read

    def known(self) -> set[str]:
        """All entries that this family reads."""
        windows = {"none": set(), "all": {"sliding_window"}, "listed": {"sliding_window", "layer_types"}}
        windows["from"] = {"sliding_window", "layer_types", "use_sliding_window", "max_window_layers"}
        return {*self.entries, *windows[self.windows], *self.others, *self.defaults}


_ATTENTION_BIAS = {"attention_bias": ("qkv_bias", "output_bias")}
_BIASES = {**_ATTENTION_BIAS, "mlp_bias": ("mlp_bias",)}
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
            entries={
                **{"attention_bias": ("qkv_bias",), "attention_out_bias": ("output_bias",), "mlp_bias": ("mlp_bias",)}
            },
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
"""By model type, in the order in which they are tried for export."""


def window_fields(path: Path, theirs: Mapping[str, Any], family: Family) -> dict[str, Any]:
    """`sliding_window` and `layers_without_window` by the entries of a family.

    Raises:
      InputError: the list of layers has another length or another kind of attention.
    """
    layers, window = theirs["num_hidden_layers"], theirs.get("sliding_window")
    listed = theirs.get("layer_types")
    if listed is not None and (not isinstance(listed, list) or len(listed) != layers):
        raise InputError(f"{path}: layer_types does not list {layers} layers, as num_hidden_layers says")
    if other := [kind for kind in listed or () if kind not in (SLIDING, FULL)]:
        raise InputError(f"{path}: layer_types has {other[0]!r}; only {FULL} and {SLIDING} can be read")
    if family.windows == "none" or theirs.get("use_sliding_window") is False:
        window = None
    if window is None:
        # Of a family without windows transformers ignores the list; here it would be a model with other numbers.
        if SLIDING in (listed or ()):
            raise InputError(f"{path}: layer_types has {SLIDING!r}, but no window's size is in effect (sliding_window)")
        return {}
    if not isinstance(window, int) or isinstance(window, bool) or window < 1:
        raise InputError(f"{path}: sliding_window is {window!r}; expected a whole number above 0")
    if listed is None:
        listed = _unlisted_kinds(path, theirs, family)
    elif family.windows == "all" and FULL in listed:
        raise InputError(f"{path}: layer_types has {FULL!r}, which {family.architecture} ignores; remove it")
    full = tuple(number for number, kind in enumerate(listed) if kind == FULL)
    return {"sliding_window": window, "layers_without_window": full} if len(full) < layers else {}


def _unlisted_kinds(path: Path, theirs: Mapping[str, Any], family: Family) -> list[str]:
    """The layers' attention where `layer_types` is not given."""
    layers = range(theirs["num_hidden_layers"])
    if family.windows == "from" and not isinstance(theirs["max_window_layers"], int):
        raise InputError(f"{path}: max_window_layers is {theirs['max_window_layers']!r}; expected a whole number")
    full: Any = {
        "qwen2": lambda: range(theirs["max_window_layers"]),
        "qwen3": lambda: range(theirs["max_window_layers"]),
        "smollm3": lambda: set(layers) - set(unturned_layers(theirs)),
        "olmo3": lambda: layers[3::4],
        "gemma3_text": lambda: layers[theirs["sliding_window_pattern"] - 1 :: theirs["sliding_window_pattern"]],
    }
    kept = full.get(family.model_type, tuple)()
    return [FULL if number in kept else SLIDING for number in layers]


def unturned_layers(theirs: Mapping[str, Any]) -> tuple[int, ...]:
    """Numbers of SmolLM3's layers without rotary positions; its list, despite its name, has 1 where there are some."""
    layers, interval = theirs["num_hidden_layers"], theirs["no_rope_layer_interval"]
    turning = theirs.get("no_rope_layers")
    if turning is None:
        return tuple(range(interval - 1, layers, interval))
    return tuple(number for number, turns in enumerate(turning) if not turns)
