"""The paper's evaluation: zero-shot accuracy on its eight benchmarks and their average, with intervals and the paper's
figures.

    python -m diversity_jax.evaluate --config configs/evaluate_paper.py --config.model.checkpoint=runs/quickstart

The data is downloaded from the Hugging Face hub; `--config.data_dir=FOLDER` reads local files instead
(docs/evaluation.md lists their names). For a fine-tuned model add `--config.apply_chat_template=True` and the system
prompt of its tuning, `--config.system_prompt="..."`.

Hardware: any; on 2 cores a 20M model takes minutes. An accelerator: `--config.model.compute_dtype=bfloat16
--config.batch_size=64`.
"""

from diversity_jax.evaluation.config import EvaluateConfig


def get_config() -> EvaluateConfig:
    return EvaluateConfig(output_dir="runs/evaluation", tasks="paper")
