"""Writes the logits that transformers computes for small seeded models, so that tests can compare without transformers.

python -m tests.golden_logits        (needs transformers and torch; writes tests/golden/llama_logits.json)
"""

import json
from pathlib import Path
import tempfile

import numpy as np

from diversity_jax.model.checkpoint_io.hugging_face import export_hugging_face
from tests.small_llama import random_params, small_config

PATH = Path(__file__).parent / "golden" / "llama_logits.json"
VARIANTS = {
    "tied": {},
    "untied": {"tie_embeddings": False},
    "grouped_query": {"num_kv_heads": 2},
    "one_key_value_head_untied": {"num_kv_heads": 1, "tie_embeddings": False, "rms_norm_eps": 1e-4},
}
LENGTH = 24
SHOWN = (0, 1, 7, 23)  # positions of which logits are kept


def golden_model(name: str):
    """Config and parameters of a variant."""
    config = small_config(rope_theta=5000.0, **VARIANTS[name])
    return config, random_params(config, seed=11, scale=0.3)


def golden_tokens() -> np.ndarray:
    """int32 [1, L], the same for every variant."""
    return np.random.default_rng(5).integers(0, 64, (1, LENGTH), dtype=np.int32)


def main() -> None:
    import torch
    import transformers

    rows_of = {}
    for name in VARIANTS:
        config, params = golden_model(name)
        with tempfile.TemporaryDirectory() as folder:
            export_hugging_face(config, params, Path(folder) / "model")
            model = transformers.LlamaForCausalLM.from_pretrained(
                Path(folder) / "model", dtype=torch.float32, attn_implementation="eager"
            ).eval()
        with torch.no_grad():
            logits = model(torch.from_numpy(golden_tokens()).long()).logits[0].numpy()
        rows_of[name] = [[round(float(value), 6) for value in logits[position]] for position in SHOWN]
    made_with = f"transformers {transformers.__version__}, torch {torch.__version__}"
    PATH.parent.mkdir(exist_ok=True)
    rows = ",\n".join(
        f'  "{name}": [\n   ' + ",\n   ".join(map(json.dumps, values)) + "\n  ]" for name, values in rows_of.items()
    )
    PATH.write_text(f'{{\n "made_with": {json.dumps(made_with)},\n "logits": {{\n{rows}\n }}\n}}\n')
    print(f"{PATH}: {made_with}")


if __name__ == "__main__":
    main()
