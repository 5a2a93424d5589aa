"""Files `config.json` of published models, in the styles of transformers 4 and 5, with the sizes made small.

Lengths are divided by 512 (8,192 becomes 16), so that 64 tokens are four times the length that was trained on before.
"""

from typing import Any

import numpy as np

VOCABULARY, LENGTH = 64, 64
SHOWN, SHOWN_IDS = (3, 30, 63), 6  # positions and first ids whose logits the golden file keeps
_SIZES = {
    **{"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256},
    **{"initializer_range": 0.02, "rms_norm_eps": 1e-05, "attention_dropout": 0.0, "use_cache": True},
    **{"bos_token_id": 1, "eos_token_id": 2},
}
_OLD = {"torch_dtype": "bfloat16", "transformers_version": "4.43.0"}
_NEW = {"dtype": "bfloat16", "transformers_version": "5.2.0", "pad_token_id": None}


def _of(architecture: str, kind: str, activation: str = "silu", **fields: Any) -> dict[str, Any]:
    return {"architectures": [architecture], "model_type": kind, "hidden_act": activation, **_SIZES, **_OLD, **fields}


def _llama(**fields: Any) -> dict[str, Any]:
    biases = {"attention_bias": False, "mlp_bias": False, "pretraining_tp": 1, "tie_word_embeddings": False}
    return _of("LlamaForCausalLM", "llama", **{**biases, "rope_theta": 10000.0, "rope_scaling": None, **fields})


def _new(config: dict[str, Any], **rope: Any) -> dict[str, Any]:
    """The same in the style of transformers 5, where all rotary settings are in one object."""
    rest = {name: value for name, value in config.items() if name not in ("rope_theta", "rope_scaling", *_OLD)}
    theta = {} if config.get("rope_theta") is None else {"rope_theta": config["rope_theta"]}
    return {**rest, **_NEW, "rope_parameters": {"rope_type": "default", **theta, **rope}}


LLAMA_3 = {
    **{"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_type": "llama3"},
    "original_max_position_embeddings": 16,
}
YARN = {"factor": 4.0, "original_max_position_embeddings": 16, "type": "yarn"}
NEW_YARN = {"factor": 4.0, "original_max_position_embeddings": 16, "rope_type": "yarn"}
_LLAMA_3 = _llama(rope_theta=500000.0, rope_scaling=LLAMA_3, eos_token_id=[2, 3])
_LLAMAS = {
    "llama_2_7b": _llama(num_key_value_heads=4),
    "llama_2_70b": _llama(),
    "llama_2_without_key_value_heads": _llama(num_key_value_heads=None),
    "tiny_llama": _llama(max_position_embeddings=64),
    "llama_3_8b": _llama(rope_theta=500000.0, max_position_embeddings=64),
    "llama_3_1_8b": _LLAMA_3,
    "llama_3_2_1b": _LLAMA_3
    | {"tie_word_embeddings": True, "head_dim": 8, "rope_scaling": {**LLAMA_3, "factor": 32.0}},
    "llama_3_3_70b": _LLAMA_3 | {"head_dim": 16},
    "llama_3_1_new": _new(_LLAMA_3, **LLAMA_3),
    "llama_3_2_new_turns": _new(_LLAMA_3, **{**LLAMA_3, "low_freq_factor": 0.5, "high_freq_factor": 2.0}),
    "vicuna_16k_linear": _llama(rope_scaling={"type": "linear", "factor": 4.0}, max_position_embeddings=16),
    "linear_new": _new(_llama(), rope_type="linear", factor=2.5),
    "linear_both_keys": _llama(rope_scaling={"type": "linear", "rope_type": "linear", "factor": 4.0}),
    "linear_beside_default_parameters": _llama(rope_scaling={"rope_type": "linear", "factor": 4.0})
    | {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
    "llama_3_beside_default_parameters": _LLAMA_3
    | {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}},
    "deepseek_coder": _llama(rope_theta=100000.0, rope_scaling={"type": "linear", "factor": 4.0}),
    "dynamic": _llama(rope_scaling={"type": "dynamic", "factor": 4.0}, max_position_embeddings=16),
    "dynamic_new": _new(_llama(max_position_embeddings=16), rope_type="dynamic", factor=2.0),
    "yarn_llama_2": _llama(rope_scaling={**YARN, "finetuned": True}, num_key_value_heads=4),
    "yarn_attention_factor": _llama(rope_scaling={**YARN, "attention_factor": 1.3}),
    "yarn_two_scales": _llama(rope_scaling={**YARN, "mscale": 0.707, "mscale_all_dim": 1.0}),
    "yarn_turns": _new(_llama(), **NEW_YARN, beta_fast=2.0, beta_slow=0.5),
    "yarn_new": _new(_llama(rope_theta=1000000.0), **NEW_YARN),
    "yarn_of_the_whole_length": _llama(rope_scaling={"type": "yarn", "factor": 4.0}, max_position_embeddings=16),
    "smollm_2": _llama(
        **{"rope_interleaved": False, "is_llama_config": True, "rope_theta": 100000, "tie_word_embeddings": True},
        **{"transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}}},
    ),
    "granite_code": _llama(attention_bias=True, mlp_bias=True, tie_word_embeddings=True, rope_theta=10000000),
    "attention_bias": _llama(attention_bias=True),
    "mlp_bias_new": _new(_llama(mlp_bias=True)),
    "falcon_3_wide_heads": _llama(head_dim=16, rope_theta=1000042),
}


def _mistral(**fields: Any) -> dict[str, Any]:
    old = {"rope_theta": 10000.0, "sliding_window": 8, "tie_word_embeddings": False}
    return _of("MistralForCausalLM", "mistral", **{**old, **fields})


_LISTED = ["sliding_attention", "full_attention"] * 2
_MISTRALS = {
    "mistral_0_1": _mistral(),
    "mistral_0_3": _mistral(sliding_window=None, rope_theta=1000000.0),
    "mistral_nemo": _mistral(sliding_window=None, head_dim=16, rope_theta=1000000.0),
    "mistral_new": _new(_mistral(head_dim=None)),
    "mistral_yarn": _mistral(rope_scaling=YARN, head_dim=8),
    "mistral_by_its_defaults": {k: v for k, v in _mistral().items() if k not in ("sliding_window", "rope_theta")}
    | {"num_attention_heads": 8, "num_key_value_heads": 8},
    "ministral": _of("MinistralForCausalLM", "ministral", sliding_window=8, layer_types=_LISTED, head_dim=8)
    | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e8}},
}


def _qwen(version: int = 2, **fields: Any) -> dict[str, Any]:
    old = {"rope_theta": 1000000.0, "sliding_window": 8, "use_sliding_window": False, "max_window_layers": 2}
    own = {"head_dim": 16, "attention_bias": False, "rope_scaling": None} if version == 3 else {}
    both = {**old, "tie_word_embeddings": False, **own, **fields}
    return _of(f"Qwen{version}ForCausalLM", f"qwen{version}", **both)


_FULL = ["full_attention"] * 4
_QWENS = {
    "qwen_2_7b": _qwen(),
    "qwen_2_5_half": _qwen(tie_word_embeddings=True, rms_norm_eps=1e-06),
    "qwen_2_5_yarn": _qwen(rope_scaling=YARN),
    "qwen_2_windows": _qwen(use_sliding_window=True),
    "qwen_2_all_windows": _qwen(use_sliding_window=True, max_window_layers=0),
    "qwen_2_5_new": _new(_qwen(sliding_window=None, layer_types=_FULL), **NEW_YARN),
    "qwen_2_listed_windows": _new(_qwen(use_sliding_window=True, layer_types=_LISTED)),
    "qwen_3_small": _qwen(3, tie_word_embeddings=True),
    "qwen_3_8b_yarn": _qwen(3, rope_scaling={**YARN, "rope_type": "yarn"}),
    "qwen_3_bias": _qwen(3, attention_bias=True),
    "qwen_3_windows": _qwen(3, use_sliding_window=True),
    "qwen_3_new": _new(_qwen(3, sliding_window=None, layer_types=_FULL)),
}


def _smollm(**fields: Any) -> dict[str, Any]:
    own = {"no_rope_layer_interval": 4, "use_sliding_window": False, "sliding_window": None, "rope_theta": 5000000.0}
    rest = {"attention_bias": False, "mlp_bias": False, "pretraining_tp": 2, "rope_scaling": None}
    return _of("SmolLM3ForCausalLM", "smollm3", **{**own, **rest, "max_window_layers": 28, "pad_token_id": 3, **fields})


def _olmo(version: int = 2, **fields: Any) -> dict[str, Any]:
    own = {"sliding_window": 8, "layer_types": ["sliding_attention"] * 3 + ["full_attention"]} if version == 3 else {}
    old = {"rope_theta": 500000.0, "rope_scaling": None, "attention_bias": False, "tie_word_embeddings": False}
    return _of(f"Olmo{version}ForCausalLM", f"olmo{version}", **{**old, **own, **fields})


_OLMO_YARN = {**NEW_YARN, "attention_factor": 1.2079441541679836, "beta_fast": 32.0, "beta_slow": 1.0}
_BY_KIND = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 500000.0},
    "full_attention": {**_OLMO_YARN, "rope_theta": 500000.0},
}
_OTHERS = {
    "smollm_3": _smollm(no_rope_layers=[1, 1, 1, 0], layer_types=_FULL),
    "smollm_3_by_interval": _smollm(no_rope_layer_interval=2, tie_word_embeddings=False),
    "smollm_3_new": _new(_smollm(no_rope_layers=[1, 0, 0, 1], layer_types=_FULL), **NEW_YARN),
    "smollm_3_windows": _smollm(use_sliding_window=True, sliding_window=8, no_rope_layers=[1, 0, 1, 0]),
    "smollm_3_bias": _smollm(attention_bias=True, mlp_bias=True),
    "olmo_2_7b": _olmo(num_key_value_heads=4, rms_norm_eps=1e-06),
    "olmo_2_32b": _olmo(),
    "olmo_2_new": _new(_olmo(attention_bias=True)),
    "olmo_2_yarn": _olmo(rope_scaling=YARN),
    "olmo_3_7b": _olmo(3, rope_scaling=_OLMO_YARN),
    "olmo_3_without_scaling": _olmo(3, layer_types=None),
    "olmo_3_new": {k: v for k, v in _new(_olmo(3)).items() if k != "rope_parameters"} | {"rope_parameters": _BY_KIND},
    "seed_oss": _of("SeedOssForCausalLM", "seed_oss", head_dim=16, attention_bias=True, attention_out_bias=False)
    | {"mlp_bias": False, "residual_dropout": 0.1, "rope_scaling": {"rope_type": "default"}, "rope_theta": 1e7},
    "seed_oss_new": _new(_of("SeedOssForCausalLM", "seed_oss", head_dim=8, attention_out_bias=True, mlp_bias=True)),
}


def _phi(**fields: Any) -> dict[str, Any]:
    dropout = {"embd_pdrop": 0.0, "resid_pdrop": 0.0, "original_max_position_embeddings": 256, "pad_token_id": 3}
    own = {"rope_theta": 10000.0, "rope_scaling": None, "auto_map": {"AutoConfig": "configuration_phi3.Phi3Config"}}
    return _of("Phi3ForCausalLM", "phi3", **{**dropout, **own, "tie_word_embeddings": False, **fields})


def _granite(**fields: Any) -> dict[str, Any]:
    own = {"embedding_multiplier": 12.0, "attention_multiplier": 0.15, "residual_multiplier": 0.22, "rope_theta": 1e7}
    rest = {"logits_scaling": 8.0, "attention_bias": False, "mlp_bias": False, "rope_scaling": None}
    return _of("GraniteForCausalLM", "granite", **{**own, **rest, "tie_word_embeddings": True, **fields})


def _gemma(**fields: Any) -> dict[str, Any]:
    own = {"head_dim": 16, "rope_theta": 10000.0, "rope_scaling": None, "attention_bias": False, "pad_token_id": 0}
    return _of("GemmaForCausalLM", "gemma", "gelu", **{**own, "hidden_activation": None, **fields})


def _gemma_3(**fields: Any) -> dict[str, Any]:
    own = {"head_dim": 16, "rope_theta": 1000000, "rope_local_base_freq": 10000, "rope_scaling": None}
    rest = {"query_pre_attn_scalar": 24, "sliding_window": 8, "sliding_window_pattern": 3, "num_hidden_layers": 6}
    soft = {"attn_logit_softcapping": None, "final_logit_softcapping": None, "cache_implementation": "hybrid"}
    both = {**own, **rest, **soft, "attention_bias": False, "hidden_activation": "gelu_pytorch_tanh", **fields}
    return {k: v for k, v in _of("Gemma3ForCausalLM", "gemma3_text", **both).items() if k != "hidden_act"}


_GEMMA_BY_KIND = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
}
_GEMMAS = {
    "phi_3_mini": _phi(sliding_window=7),
    "phi_4": _phi(sliding_window=None, rope_theta=250000),
    "phi_4_partial": _phi(sliding_window=9, partial_rotary_factor=0.75, tie_word_embeddings=True),
    "phi_3_new": _new(_phi(), partial_rotary_factor=0.5),
    "granite_3_2b": _granite(),
    "granite_3_8b_bias": _granite(attention_bias=True, mlp_bias=True, tie_word_embeddings=False),
    "granite_new": _new(_granite(logits_scaling=1.0), **NEW_YARN),
    "granite_by_its_defaults": {k: v for k, v in _granite().items() if not k.endswith(("_multiplier", "_scaling"))},
    "gemma_2b": _gemma(num_key_value_heads=1),
    "gemma_7b": _gemma(hidden_act="gelu_pytorch_tanh", num_key_value_heads=4),
    "gemma_new": _new(_gemma(hidden_act="gelu_pytorch_tanh")),
    "gemma_3_1b": _gemma_3(),
    "gemma_3_scaled": _gemma_3(rope_scaling={"factor": 8.0, "rope_type": "linear"}),
    "gemma_3_new": {k: v for k, v in _new(_gemma_3()).items() if k not in ("rope_local_base_freq", "rope_parameters")}
    | {"rope_parameters": _GEMMA_BY_KIND, "layer_types": ["sliding_attention", "full_attention"] * 3},
}
CONFIGS: dict[str, dict[str, Any]] = _LLAMAS | _MISTRALS | _QWENS | _OTHERS | _GEMMAS
"""Name -> `config.json` of a model that is read."""

_LONG = {"long_factor": [1.0] * 4, "short_factor": [1.0] * 4}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "phi_3_128k": (_phi(rope_scaling={**_LONG, "type": "longrope"}), "rope_type is 'longrope'"),
    "phi_3_first_128k": (_phi(rope_scaling={**_LONG, "type": "su"}), "rope_type is 'su'"),
    "phi_3_yarn": (_phi(rope_scaling=YARN), "rope_type is 'yarn'; of phi3 only default"),
    "qwen_2_vl_text": (_qwen(rope_scaling={"type": "mrope", "mrope_section": [1, 1, 2]}), "rope_type is 'mrope'"),
    "gpt_oss_yarn": (_llama(rope_scaling={**YARN, "truncate": False}), "truncate is False"),
    "llama_3_without_turns": (_llama(rope_scaling={"rope_type": "llama3", "factor": 8.0}), "without low_freq_factor"),
    "linear_without_factor": (_llama(rope_scaling={"type": "linear"}), "without factor"),
    "default_with_factor": (_llama(rope_scaling={"rope_type": "default", "factor": 8.0}), "factor=8.0 is no setting"),
    "hunyuan_alpha": (_llama(rope_scaling={"type": "dynamic", "factor": 2.0, "alpha": 1000.0}), "alpha=1000.0"),
    "dynamic_with_original": (
        _llama(rope_scaling={"type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 16}),
        "transformers ignores it",
    ),
    "olmo_3_original_beside": (
        _olmo(3, original_max_position_embeddings=8)
        | {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}, "max_position_embeddings": 16},
        "is 8; outside rope_parameters of full_attention transformers ignores it",
    ),
    "olmo_3_windows_without_size": (_olmo(3, sliding_window=None, layer_types=None), "no window's size is in effect"),
    "olmo_3_kind_of_version_4": (
        _olmo(3, rope_scaling={"type": "yarn", "factor": 4.0}),
        "type in rope_scaling of olmo3 is read differently",
    ),
    "gemma_3_pattern_null": (_gemma_3(sliding_window_pattern=None), "sliding_window_pattern is None; expected a whole"),
    "phi_3_part_in_what_is_ignored": (
        _phi(rope_scaling={"rope_type": "default"}, rope_parameters={"partial_rotary_factor": 0.5}),
        "ignores rope_parameters and its partial_rotary_factor=0.5",
    ),
    "two_kinds": (_llama(rope_scaling={"type": "linear", "rope_type": "yarn", "factor": 2.0}), "keep one of them"),
    "two_scalings": (
        _new(_llama(), **LLAMA_3) | {"rope_scaling": {"type": "linear", "factor": 2.0}},
        "differ; keep one",
    ),
    "two_bases": (_llama() | {"rope_parameters": {"rope_theta": 500000.0}}, "of which transformers 4 takes one"),
    "scaling_that_forgets_the_base": (
        _new(_llama(rope_theta=500000.0)) | {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
        "move its settings into rope_parameters",
    ),
    "factor_in_words": (_llama(rope_scaling={"type": "linear", "factor": "2"}), "is '2'; expected a number"),
    "partial_llama": (_llama(partial_rotary_factor=0.5), "partial_rotary_factor is 0.5"),
    "rope_in_words": (_llama(rope_scaling="linear"), "rope_scaling is 'linear'; expected an object"),
    "rope_of_another_type": (_llama(rope_parameters=False), "rope_parameters is False; expected an object"),
    "base_null": (_llama(rope_theta=None), "rope_theta is None; expected a number above 0"),
    "olmo_3_part_in_words": (
        _olmo(3) | {"rope_parameters": {**_BY_KIND, "sliding_attention": ""}},
        "sliding_attention is ''; expected an object",
    ),
    "both_ways": (_llama(is_causal=False), "is_causal is False; only true can be read"),
    "both_ways_by_null": (_qwen(is_causal=None), "is_causal is None; only true can be read"),
    "activation_null": (_llama(hidden_act=None), "hidden_act is None; of llama only 'silu'"),
    "interleaved": (_llama(rope_interleaved=True), "rope_interleaved is True"),
    "unknown_entry": (_llama(use_alibi=True), "use_alibi is True, an entry that is not known of llama"),
    "unknown_number": (_llama(clip_qkv=8.0), "clip_qkv is 8.0"),
    "pruned": (_llama(pruned_heads={"0": [1]}), "pruned_heads is"),
    "encoder": (_llama(is_encoder_decoder=True), "is_encoder_decoder is True"),
    "llama_window": (_llama(sliding_window=8), "sliding_window is 8, an entry that is not known of llama"),
    "llama_listed_window": (_llama(layer_types=_LISTED), "no window's size is in effect"),
    "mistral_listed": (_mistral(layer_types=_LISTED), "which MistralForCausalLM ignores"),
    "listed_too_few": (_qwen(layer_types=_LISTED[:3]), "layer_types does not list 4 layers"),
    "chunked": (_qwen(layer_types=["chunked_attention"] * 4), "layer_types has 'chunked_attention'"),
    "no_rope_of_three": (_smollm(no_rope_layers=[1, 1, 0]), "no_rope_layers does not list 4 zeros and ones"),
    "interval_of_none": (_smollm(no_rope_layer_interval=0), "no_rope_layer_interval is 0; expected a whole number"),
    "interval_in_words": (_smollm(no_rope_layer_interval="4"), "no_rope_layer_interval is '4'"),
    "olmo_3_other_base": (_olmo(3, rope_theta=10000.0), "read differently by transformers 4 and 5"),
    "gemma_3_soft": (_gemma_3(final_logit_softcapping=30.0), "final_logit_softcapping is 30.0"),
    "gemma_3_both_ways": (_gemma_3(use_bidirectional_attention=True), "use_bidirectional_attention is True"),
    "gemma_3_flat": (_new(_gemma_3()), "rope_parameters of gemma3_text are by kind of layer"),
    "relu": (_llama(hidden_act="relu2"), "hidden_act is 'relu2'"),
    "bias_in_words": (_llama(attention_bias="yes"), "attention_bias is 'yes'; expected true or false"),
    "multiplier_none": (_granite(logits_scaling=None), "logits_scaling is None; expected a number above 0"),
    "classifier": (_llama(architectures=["LlamaForSequenceClassification"]), "only LlamaForCausalLM can be read"),
    "quantised": (_llama(quantization_config={"quant_method": "gptq"}), "the weights are quantised"),
    "claims": (_llama(num_hidden_layers=1_000_000_000), "num_hidden_layers is 1000000000"),
    "window_of_no_layers": (_qwen(use_sliding_window=True, max_window_layers="2"), "max_window_layers is '2'"),
    **{
        kind: (_of("AnyForCausalLM", kind), f"model_type is {kind!r}; can be read: llama, mistral")
        for kind in (
            *(
                "gemma2",
                "gemma3",
                "gemma3n",
                "mixtral",
                "qwen2_moe",
                "qwen3_moe",
                "qwen3_next",
                "phi",
                "phimoe",
                "gpt2",
            ),
            *("olmo", "olmoe", "cohere2", "nemotron", "deepseek_v3", "llama4_text", "glm4", "granitemoe", "exaone4"),
            *("gpt_oss", "mistral3", "stablelm", "arcee", "falcon"),
        )
    },
}
"""Name -> `config.json` of a model that is refused, and what is said."""


def tensor_values(name: str, shape: tuple[int, ...], norm_offset: float) -> np.ndarray:
    """Weights that depend on a tensor's name there and its shape alone."""
    noise = np.random.default_rng(list(name.encode())).normal(size=shape).astype(np.float32)
    if len(shape) == 1:
        return 0.3 * noise + (1 - norm_offset if "norm" in name else 0)
    return noise if "embed" in name else 1.5 * noise / np.float32(shape[1]) ** 0.5


def tokens() -> np.ndarray:
    """2 x LENGTH."""
    return np.random.default_rng(0).integers(0, VOCABULARY, (2, LENGTH), dtype=np.int32)
