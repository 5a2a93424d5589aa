"""The paper's evaluation: zero-shot accuracy on its eight benchmarks, their average and standard errors, beside the
paper's figures.

    python -m diversity_jax.evaluate --config configs/evaluate_paper.py --config.model.checkpoint=runs/quickstart

Data comes from the hub; where there is none, `--config.data_dir=FOLDER` takes local files (docs/evaluation.md lists
their names). A fine-tuned model: `--config.apply_chat_template=True` and, with the one used in tuning,
`--config.system_prompt="..."`.

Hardware: any; 2 cores judge a 20M model in minutes. An accelerator: `--config.model.compute_dtype=bfloat16
--config.batch_size=64`.
"""

from diversity_jax.evaluation.config import EvaluateConfig


def get_config() -> EvaluateConfig:
    return EvaluateConfig(output_dir="runs/evaluation", tasks="paper")
