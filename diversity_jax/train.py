"""Train a Llama on a diversity-gated mixture: score, gate, register, prepare, train, evaluate, and write the page.

    python -m diversity_jax.train --config configs/quickstart.py
    python -m diversity_jax.train --config configs/llama_350m.py --config.train.steps=2 --config.prepared=/data/mixture

Every field of the configuration can be set on the command line; run again with the same output_dir to go on.
"""

from typing import TYPE_CHECKING

from diversity_jax.core import cli
from diversity_jax.training.run import Config

if TYPE_CHECKING:
    from diversity_jax.training.loop import TrainingResult


def main(config: Config) -> "TrainingResult":
    """The whole run; where SIGTERM stopped it, the result says `interrupted`."""
    from diversity_jax.training import run, runtime

    runtime.keep_freed_memory()
    several_processes = runtime.start_distributed(config.distributed)
    result = run.run(config, several_processes=several_processes)

    import jax

    if jax.process_index() == 0:
        write_page(config)
    return result


def write_page(config: Config) -> None:
    """Writes the run's page and prints its path, last."""
    from diversity_jax.report.pages import training_run

    print(training_run.write(config.output_dir, mixture_dir=config.prepared))


if __name__ == "__main__":
    cli.run(main, Config, __doc__)
