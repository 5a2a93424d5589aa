"""MaxText's own pretraining loop, for `peers.py`: its converter, optimizer and checkpoints, in float32.

    pip install 'maxtext[tpu]==0.2.5'   # its extras hold what it imports; there is none for CPUs

Rows come from an iterator of ours that starts where the last checkpoint ends: of MaxText's own, Grain's alone keep
their place. Only parameters whose path says norm are without weight decay where `--decayed matrices` asks for it.
"""

import importlib.metadata
from pathlib import Path
import subprocess
import sys

import maxtext_convert
import training


def settings(options, start: Path) -> dict[str, object]:
    """MaxText's settings for this run."""
    masks = {"all": "[]", "matrices": "['norm']", "linear": "['norm','token_embedder']"}
    is_constant = options.schedule == "constant"
    return maxtext_convert.settings(options.model) | {
        "run_name": "run",
        "base_output_directory": (options.output / "maxtext").absolute(),
        "load_parameters_path": start / "0" / "items",
        "dataset_type": "synthetic",  # replaced by the rows below
        "steps": options.steps,
        "per_device_batch_size": options.batch / options.devices,
        "max_target_length": training.TrainingRows(options.mixture).length,
        "packing": False,
        "enable_dropout": False,
        "dtype": "float32",
        "matmul_precision": "float32",
        "attention": "dot_product",
        "remat_policy": "minimal",
        "opt_type": "adamw",
        "learning_rate": options.learning_rate,
        "learning_rate_final_fraction": 1.0 if is_constant else 0.1,
        "warmup_steps_fraction": options.warmup / options.steps,
        "adam_weight_decay": 0.1,
        "adamw_mask": masks[options.decayed],
        "gradient_clipping_threshold": 1.0,
        "checkpoint_period": options.checkpoint_every,
        "async_checkpointing": False,
        "enable_tensorboard": False,
        "ici_fsdp_parallelism": options.devices,
        "shard_optimizer_over_data": False,
    }


def main() -> None:
    """Trains, from the last checkpoint in the output folder where there is one."""
    options = training.options(__doc__)
    convert = str(Path(__file__).with_name("maxtext_convert.py"))
    start = (options.output / "start").absolute()
    if not start.exists():
        subprocess.run([sys.executable, convert, "in", options.model, start], check=True)
    record, rows = training.Record(options), training.TrainingRows(options.mixture)
    import jax
    from maxtext.common import checkpointing, metric_logger
    from maxtext.input_pipeline import input_pipeline_interface
    from maxtext.trainers.pre_train import train
    import numpy as np

    saved = options.output / "maxtext" / "run" / "checkpoints"

    class Batches:
        """Batches of rows; targets are the inputs' successors."""

        def __init__(self):
            steps = [int(path.name) for path in saved.glob("*") if path.name.isdigit()]
            self.step = max(steps) + 1 if steps else 0  # a checkpoint is named by the step it was made in, from 0

        def __iter__(self):
            return self

        def __next__(self):
            batch = rows.batch(self.step, options.batch)
            self.step += 1
            positions = np.broadcast_to(np.arange(rows.length, dtype=np.int32), (options.batch, rows.length))
            inputs = {"inputs": batch[:, :-1], "targets": batch[:, 1:]}
            for name in ("inputs", "targets"):
                inputs |= {f"{name}_position": positions, f"{name}_segmentation": np.ones_like(positions)}
            return inputs

    input_pipeline_interface.create_data_iterator = lambda config, mesh: (Batches(), None)
    checkpointing.save_checkpoint = record.timed(checkpointing.save_checkpoint)
    write = metric_logger.MetricLogger.write_metrics

    def write_metrics(self, metrics, step, metric_type="train"):
        if metrics:
            record.step(int(step) + 1, float(metrics["scalar"]["learning/loss"]))
        write(self, metrics, step, metric_type)

    metric_logger.MetricLogger.write_metrics = write_metrics
    train.main(["train", maxtext_convert.base_config(), *maxtext_convert.words(settings(options, start))])
    last = saved / str(max(int(path.name) for path in saved.glob("*") if path.name.isdigit()))
    words = [convert, "out", last / "items", options.model, options.output / "hf"]
    subprocess.run([sys.executable, *words, f"--max-shard-gigabytes={options.max_shard_gigabytes}"], check=True)
    version = importlib.metadata.version("maxtext")
    record.finish(checkpoint=last, framework=f"maxtext {version}", **{"with": f"jax {jax.__version__}"})


if __name__ == "__main__":
    main()
