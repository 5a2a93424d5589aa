"""Train a Llama on a diversity-gated mixture: score, gate, register, prepare, train, evaluate, and write the page.

    python -m diversity_jax.train --config configs/quickstart.py
    python -m diversity_jax.train --config configs/llama_350m.py --config.train.steps=2 --config.prepared=/data/mixture

Every field of the configuration can be set on the command line; run again with the same output_dir to continue.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from diversity_jax.core import cli
from diversity_jax.core.buckets import public_name
from diversity_jax.core.process import INTERRUPTED, TERMINATED
from diversity_jax.training.run import Config

if TYPE_CHECKING:
    from diversity_jax.training.loop import TrainingResult


def main(config: Config) -> "TrainingResult":
    """Runs all steps; the result is `interrupted` if SIGTERM stopped them."""
    from diversity_jax.training import distributed, run, runtime

    if config.model is not None and config.model.parameter_count < runtime.LARGE_MODEL:
        runtime.keep_freed_memory()
    distributed.start_distributed(config.distributed)
    with runtime.shared_failures():
        return run.run(config, finish=lambda folder: write_page(config, folder))


def run_command(config: Config) -> None:
    """Runs `main`; exits with status 143 if SIGTERM stopped it, so that Slurm and Kubernetes start it again."""
    try:
        interrupted = main(config).interrupted
    except KeyboardInterrupt:
        from diversity_jax.training import runtime

        runtime.exit_soon(INTERRUPTED)
        raise
    if interrupted:
        raise SystemExit(TERMINATED)


def write_page(config: Config, folder: Path) -> None:
    """Writes the run's page and prints its path, last."""
    from diversity_jax.report.pages import training_run

    print(public_name(training_run.write(folder, mixture_dir=config.prepared)))


if __name__ == "__main__":
    cli.run(run_command, Config, __doc__)
