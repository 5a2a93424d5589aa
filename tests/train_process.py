"""One attempt of a small training run in a process of its own, so that tests can kill it.

python -m tests.train_process FOLDER_OR_URL STEPS [PROCESS_ID PROCESSES PORT] ; prints how it ended
"""

import contextlib
import os
import sys

import jax

from diversity_jax.core.errors import InputError


def _settings(steps: int):
    """Model, optimizer and training of the attempt, by the environment."""
    from diversity_jax.model import LLAMA
    from diversity_jax.training.config import OptimizerConfig, TrainConfig

    model = LLAMA["llama_tiny"](
        num_layers=1, hidden_size=32, intermediate_size=64, num_heads=2, dropout=0.1, attention="xla"
    )
    config = TrainConfig(
        steps=steps,
        batch_size=4,
        log_every=1,  # a line a step, so that lines can be compared whatever step an attempt began at
        eval_batches=1,
        checkpoint_every=int(os.environ.get("CHECKPOINT_EVERY", "3")),
        tensorboard=False,
        attend_across_documents=os.environ.get("ACROSS", "1") == "1",
        branch_from=os.environ.get("BRANCH_FROM"),
        keep_checkpoints=int(os.environ.get("KEEP_CHECKPOINTS", "3")),
    )
    schedule = os.environ.get("SCHEDULE", "linear")
    optimizer = OptimizerConfig(
        schedule=schedule,
        total_steps=200 if schedule == "linear" else None,
        warmup_steps=5 if schedule != "linear" else 0,
        decay_share=0.4,
        learning_rate=float(os.environ.get("LEARNING_RATE", "1e-2")),
    )
    return model, optimizer, config


def main(folder: str, steps: str, process_id: str = "0", processes: str = "1", port: str = "") -> None:
    devices = 2
    jax.config.update("jax_num_cpu_devices", devices // int(processes))
    from diversity_jax.core.buckets import published
    from diversity_jax.core.files import join_path
    from diversity_jax.core.stores import is_remote
    from diversity_jax.mixtures.mixture import Mixture
    from diversity_jax.model import MeshConfig
    from diversity_jax.training.bucket_checkpoints import open_checkpoints
    from diversity_jax.training.checkpoint import read_info
    from diversity_jax.training.distributed import DistributedConfig, start_distributed
    from diversity_jax.training.loop import train

    model, optimizer, config = _settings(int(steps))
    output = join_path(folder, os.environ.get("RUN", "run"))
    try:
        if int(processes) > 1:
            start_distributed(
                DistributedConfig(
                    coordinator=f"localhost:{port}", num_processes=int(processes), process_id=int(process_id)
                )
            )
        with contextlib.ExitStack() as resources:
            logs, options = output, {}
            if is_remote(output):
                mirrors = []
                publication = published(
                    output,
                    "output_dir",
                    process=int(process_id),
                    skipped=lambda name: name.startswith("checkpoints"),
                    mirrors=mirrors,
                )
                logs = resources.enter_context(publication)
                options["checkpoints"] = open_checkpoints(join_path(output, "checkpoints"), config, mirrors[0].push)
            result = train(Mixture.load(folder), model, optimizer, config, MeshConfig(), logs, **options)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    if process_id == "0":
        info = read_info(join_path(output, "checkpoints"), result.steps)
        print("finished", result.steps, result.interrupted, info["fingerprint"] if info else "")


if __name__ == "__main__":
    main(*sys.argv[1:])
