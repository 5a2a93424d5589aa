r"""Generates text with a model, greedily by default; temperature, top_k, top_p, seed, samples and stop are fields.

    python -m diversity_jax.generate_text --config configs/generate_text.py --config.model.checkpoint=runs/quickstart \
        --config.prompt="The "

Hardware: any. A file of prompts: `--config.prompts_file=prompts.jsonl --config.output=answers.jsonl`.
"""

from diversity_jax.evaluation.config import GenerateTextConfig


def get_config() -> GenerateTextConfig:
    return GenerateTextConfig()
