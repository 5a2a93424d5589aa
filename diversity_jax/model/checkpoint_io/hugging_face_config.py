"""`config.json` of transformers, versions 4 and 5, to and from `LlamaConfig`.

Unknown entries are refused: a model read without one of them could silently give other logits.
"""

from collections.abc import Mapping
import os
from pathlib import Path
from typing import Any

from diversity_jax.core.errors import InputError
from diversity_jax.core.files import read_json
from diversity_jax.model.checkpoint_io.families import (
    ENTRIES,
    FAMILIES,
    FULL,
    SLIDING,
    Family,
    layers_without_rotary,
    number,
    rope_entries,
    rope_fields,
    whole_number,
    window_fields,
)
from diversity_jax.model.config import LlamaConfig

_REQUIRED = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
}
"""Field of `LlamaConfig` -> entry of `config.json`."""
_COUNTS = _REQUIRED | {"max_length": "max_position_embeddings", "num_kv_heads": "num_key_value_heads"}
_READ = {
    *_COUNTS.values(),
    *ENTRIES,
    *("architectures", "model_type", "hidden_act", "head_dim", "rms_norm_eps", "initializer_range"),
    *("tie_word_embeddings", "quantization_config", "is_causal"),
}
# Entries without effect on the logits: of training, generation, files and devices.
_HARMLESS_NAMES = """
_name_or_path name_or_path transformers_version torch_dtype dtype use_cache auto_map bos_token_id eos_token_id
pad_token_id sep_token_id cls_token_id unk_token_id mask_token_id decoder_start_token_id attention_dropout
resid_pdrop embd_pdrop residual_dropout hidden_dropout task_specific_params problem_type id2label label2id
return_dict return_dict_in_generate output_attentions output_hidden_states output_scores tokenizer_class prefix
torchscript use_bfloat16 chunk_size_feed_forward finetuning_task max_length min_length do_sample early_stopping
num_beams temperature top_k top_p typical_p repetition_penalty length_penalty no_repeat_ngram_size
encoder_no_repeat_ngram_size bad_words_ids num_return_sequences suppress_tokens begin_suppress_tokens
forced_bos_token_id forced_eos_token_id remove_invalid_values num_beam_groups exponential_decay_length_penalty
diversity_penalty tf_legacy_loss pretraining_tp is_llama_config _attn_implementation attn_implementation
_attn_implementation_autoset _flash_attn_2_enabled use_flash_attn cache_implementation unsloth_fixed unsloth_version
transformers.js_config
"""
_HARMLESS = frozenset(_HARMLESS_NAMES.split())
_MOST_LAYERS = 10_000
_WHOLE_HEADS = ("llama", "gemma3_text")  # transformers 5 refuses a hidden_size that is no multiple of the heads
_NO_EFFECT_ON_LOGITS = (
    *("max_length", "dropout", "scan_layers", "remat", "attention", "compute_dtype", "loss_chunk_bytes"),
    "num_kv_heads",
)


def config_from_hugging_face(folder: str | os.PathLike, **overrides: Any) -> LlamaConfig:
    """The model that a folder's `config.json` describes; keyword arguments replace fields of `LlamaConfig`.

    Raises:
      InputError: its family is unknown, or an entry is invalid or not supported; the message names it.
    """
    path = Path(folder) / "config.json"
    if (adapters := path.with_name("adapter_config.json")).exists():  # transformers would add them to the weights
        raise InputError(f"{adapters}: the folder holds adapters; merge them into their model with peft and save that")
    return config_from_entries(path, read_json(path), **overrides)


def config_from_entries(path: Path, theirs: Any, **overrides: Any) -> LlamaConfig:
    """As `config_from_hugging_face`, from the content of a `config.json`; errors name `path`."""
    if not isinstance(theirs, dict):
        raise InputError(f"{path}: is not an object; expected the configuration of a LlamaForCausalLM or a relative")
    family = family_of(path, theirs)
    defaults: dict[str, Any] = {"max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "initializer_range": 0.02}
    defaults |= {name: value for name, value in family.defaults.items() if name != "rope_theta"}  # see `rope_fields`
    theirs = defaults | theirs
    _refuse_others(path, theirs, family)
    fields = _counts(path, theirs)
    fields |= {name: number(path, name, theirs[name]) for name in ("rms_norm_eps", "initializer_range")}
    fields |= {"tie_embeddings": _flag(path, theirs, "tie_word_embeddings"), **family.fixed}
    fields |= rope_fields(path, theirs, family) | window_fields(path, theirs, family)
    if "sliding_window" not in fields:
        fields.pop("window_rope_theta", None)
    for entry, names in family.entries.items():
        is_flag = entry.endswith("bias")
        value = _flag(path, theirs, entry) if is_flag else number(path, entry, theirs[entry])
        fields |= dict.fromkeys(names, value)
    fields |= _own_fields(path, theirs, family)
    try:
        return LlamaConfig(**(fields | overrides))
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def family_of(path: Path, theirs: Mapping[str, Any]) -> Family:
    """The family that `model_type` names.

    Raises:
      InputError: the family is unknown, or the model is not for text generation.
    """
    kind = theirs.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise InputError(f"{path}: model_type is {kind!r}; can be read: {', '.join(FAMILIES)}")
    family = FAMILIES[kind]
    architectures = theirs.get("architectures") or [family.architecture]
    if not isinstance(architectures, list) or family.architecture not in architectures:
        raise InputError(f"{path}: architectures is {architectures!r}; only {family.architecture} can be read")
    return family


def _refuse_others(path: Path, theirs: Mapping[str, Any], family: Family) -> None:
    if missing := [name for name in _REQUIRED.values() if name not in theirs]:
        raise InputError(f"{path}: has no {missing[0]}; expected the configuration of a {family.architecture}")
    if theirs.get("quantization_config"):
        raise InputError(f"{path}: the weights are quantised (quantization_config); dequantise them with transformers")
    if theirs.get("is_causal", True) is not True:  # transformers 5 then lets tokens attend to those after them
        raise InputError(f"{path}: is_causal is {theirs['is_causal']!r}; only true can be read")
    allowed: tuple[str, ...] = ("silu", "swish")
    if family.fixed.get("activation") == "gelu_tanh":  # the first Gemma's files call it gelu
        allowed = ("gelu_pytorch_tanh", "gelu")[: 2 if family.model_type == "gemma" else 1]
    for name in ("hidden_act", "hidden_activation"):
        value = theirs.get(name, allowed[0])
        is_null = value is None and (name == "hidden_activation" or "hidden_activation" in family.others)
        if value not in allowed and not is_null:
            only = f"of {family.model_type} only {allowed[0]!r} can be read"
            raise InputError(f"{path}: {name} is {value!r}; {only}")
    is_listing = "layer_types" in theirs and family.windows != "listed"
    known = _READ | _HARMLESS | family.known() | ({"layer_types"} if is_listing else set())
    for name, value in theirs.items():
        if name not in known and value is not None and value is not False and value not in ("", [], {}):
            raise InputError(
                f"{path}: {name} is {value!r}, an entry that is not known of {family.model_type} and may change the "
                "model; remove it if it does not"
            )


def _counts(path: Path, theirs: Mapping[str, Any]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for ours, name in (_COUNTS | {"head_dim": "head_dim"}).items():
        is_default = theirs.get(name) is None and ours in ("num_kv_heads", "head_dim")
        fields[ours] = None if is_default else whole_number(path, theirs, name)
    if fields["num_layers"] > _MOST_LAYERS:
        layers = fields["num_layers"]
        raise InputError(f"{path}: num_hidden_layers is {layers}; no model has more than {_MOST_LAYERS:,}")
    return fields


def _flag(path: Path, theirs: Mapping[str, Any], name: str) -> bool:
    value = theirs.get(name)
    if value is not None and not isinstance(value, bool):
        raise InputError(f"{path}: {name} is {value!r}; expected true or false")
    return bool(value)


def _own_fields(path: Path, theirs: Mapping[str, Any], family: Family) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    if family.model_type in ("gemma", "gemma3_text"):
        fields["embedding_multiplier"] = theirs["hidden_size"] ** 0.5
    if family.model_type == "gemma3_text":
        scalar = number(path, "query_pre_attn_scalar", theirs["query_pre_attn_scalar"])
        fields["attention_multiplier"] = scalar**-0.5
    if family.model_type == "smollm3":
        fields["layers_without_rotary"] = layers_without_rotary(path, theirs)
    return fields


def config_to_hugging_face(config: LlamaConfig, dtype: str, token_ids: Mapping[str, Any]) -> dict[str, Any]:
    """The content of `config.json` for transformers 4 and 5, of the first family that represents the model.

    Args:
      token_ids: further entries, such as `eos_token_id`.

    Raises:
      InputError: no family represents it.
    """
    for family in FAMILIES.values():
        if family.model_type in _WHOLE_HEADS and config.hidden_size % config.num_heads:
            continue
        entries = _entries(config, family)
        try:
            read_back = config_from_entries(Path("config.json"), entries)
        except InputError:
            continue
        if _fields_of_logits(read_back) == _fields_of_logits(config):
            # Null where none are given: a family's own default may lie outside the vocabulary.
            none = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
            return entries | none | dict(token_ids) | {"dtype": dtype, "torch_dtype": dtype}
    switches = ", ".join(f"{name}={value!r}" for name, value in config.changed_switches.items())
    raise InputError(f"no architecture of transformers has all that this model has: {switches}; it cannot be exported")


def _fields_of_logits(config: LlamaConfig) -> dict[str, Any]:
    """All that the logits depend on."""
    fields = {name: value for name, value in vars(config).items() if name not in _NO_EFFECT_ON_LOGITS}
    return fields | {"kv_heads": config.kv_heads}


def _entries(config: LlamaConfig, family: Family) -> dict[str, Any]:
    """The entries of a family's `config.json`, which may not represent all of the model."""
    activation = "silu" if config.activation == "silu" else "gelu_pytorch_tanh"
    entries: dict[str, Any] = {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        **{theirs: getattr(config, ours) for ours, theirs in _REQUIRED.items()},
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_size,
        "hidden_act": activation,
        "max_position_embeddings": config.max_length,
        "initializer_range": config.initializer_range,
        "rms_norm_eps": config.rms_norm_eps,
        "attention_dropout": config.dropout,
        "tie_word_embeddings": config.tie_embeddings,
        **{entry: getattr(config, names[0]) for entry, names in family.entries.items()},
        **rope_entries(config, family),
    }
    if config.attention_multiplier is None and "attention_multiplier" in entries:
        entries["attention_multiplier"] = config.head_size**-0.5
    if family.windows != "none":
        entries["sliding_window"] = config.sliding_window
    if family.windows in ("listed", "from"):
        windows = [config.layer_window(layer) for layer in range(config.num_layers)]
        entries["layer_types"] = [FULL if window is None else SLIDING for window in windows]
    if family.windows == "from" or family.model_type == "smollm3":
        entries["use_sliding_window"] = config.sliding_window is not None
    if family.windows == "from":  # for versions of transformers without layer_types
        entries["max_window_layers"] = len(config.layers_without_window) if config.sliding_window else config.num_layers
    if family.model_type == "smollm3":
        without = config.layers_without_rotary
        entries["no_rope_layers"] = [int(layer not in without) for layer in range(config.num_layers)]
    if family.fixed.get("activation") == "gelu_tanh":
        entries["hidden_activation"] = activation
    if family.model_type == "gemma3_text":
        scale = config.attention_multiplier or config.head_size**-0.5
        entries["query_pre_attn_scalar"] = round(scale**-2)
    return entries
