"""An OpenAI-compatible server for one model, reachable from this machine only.

    python -m diversity_jax.serve --config configs/serve.py --config.model.checkpoint=runs/quickstart

Then any OpenAI client: base_url http://127.0.0.1:8000/v1, any api_key, the checkpoint folder's name as model. Hardware:
any. An accelerator: `--config.model.compute_dtype=bfloat16 --config.slots=64`.
"""

from diversity_jax.evaluation.config import ServeConfig


def get_config() -> ServeConfig:
    return ServeConfig()
