"""Small models, one for each option in which Llama's successors differ from Llama."""

from tests.small_llama import small_config

_WIDE = {"num_layers": 4, "num_kv_heads": 2, "head_dim": 12}
_LONG = {"rope_factor": 4.0, "rope_original_length": 16}
SWITCHES = {
    "llama_3": {"rope_scaling": "llama3", "head_dim": 12, **_LONG},
    "llama_3_turns": {"rope_scaling": "llama3", "rope_slow_turns": 0.5, "rope_fast_turns": 1.5, **_LONG},
    "linear": {"rope_scaling": "linear", "rope_factor": 4.0, "output_bias": True, "qkv_bias": True},
    "dynamic": {"rope_scaling": "dynamic", "rope_factor": 4.0, "rope_original_length": 128, "max_length": 128},
    "yarn": {"rope_scaling": "yarn", "rope_fast_turns": 2.0, "qkv_bias": True, **_LONG},
    "yarn_attention": {"rope_scaling": "yarn", "rope_attention_factor": 1.5, **_LONG},
    "mistral": {"sliding_window": 5, "num_kv_heads": 2},
    "qwen_2": {"qkv_bias": True, "sliding_window": 5, "layers_without_window": (0, 1), "num_layers": 3},
    "qwen_3": {"qk_norm": "head", "tie_embeddings": False, **_WIDE},
    "smollm_3": {"layers_without_rotary": (1, 3), **_WIDE},
    "smollm_3_uneven": {"layers_without_rotary": (2,), "mlp_bias": True, "num_layers": 3},
    "olmo_2": {"qk_norm": "full", "norm_order": "post", "num_kv_heads": 2},
    "olmo_3": {
        **{"qk_norm": "full", "norm_order": "post", "sliding_window": 5, "layers_without_window": (1, 3)},
        **{"num_layers": 4, "rope_scaling": "yarn", "window_rope_theta": 10000.0, **_LONG},
    },
    "phi_4": {"partial_rotary_factor": 0.75, "sliding_window": 9, "rms_norm_eps": 1e-4},
    "granite": {
        **{"embedding_multiplier": 12.0, "attention_multiplier": 0.1, "residual_multiplier": 0.22},
        **{"logits_divisor": 8.0, "qkv_bias": True, "output_bias": True, "mlp_bias": True},
    },
    "gemma": {"norm_offset": 1.0, "activation": "gelu_tanh", "embedding_multiplier": 32**0.5, **_WIDE},
    "gemma_3": {
        **{"norm_offset": 1.0, "activation": "gelu_tanh", "embedding_multiplier": 32**0.5, "norm_order": "both"},
        **{"qk_norm": "head", "attention_multiplier": 0.3, "sliding_window": 5, "layers_without_window": (2, 5)},
        **{"num_layers": 6, "window_rope_theta": 1000.0, "rope_scaling": "linear", "rope_factor": 8.0},
    },
}
"""Name -> fields of `LlamaConfig`."""


def switched(name, **fields):
    """The small model of this name."""
    return small_config(**(SWITCHES[name] | fields))
