"""Train a Llama on a diversity-gated mixture: score, gate, register, prepare, train, evaluate, and write the page.

    python -m diversity_jax.train --config configs/quickstart.py
    python -m diversity_jax.train --config configs/llama_350m.py --config.train.steps=2 --config.prepared=/data/mixture

Every field of the configuration can be set on the command line; run again with the same output_dir to go on.
"""

import dataclasses
import logging
from pathlib import Path
import sys
from typing import TYPE_CHECKING

from diversity_jax.core import cli, run_info
from diversity_jax.core.errors import InputError
from diversity_jax.mixtures.mixture import Mixture
from diversity_jax.tokenizers.tokenizer import load_tokenizer
from diversity_jax.training.run_config import Config

if TYPE_CHECKING:
    from diversity_jax.training.loop import TrainingResult

log = logging.getLogger(__name__)


def main(config: Config) -> "TrainingResult":
    """The whole run; each stage finds what an earlier sitting finished. Where SIGTERM stopped it, the result says
    `interrupted`.
    """
    from diversity_jax.training import distributed, runtime

    runtime.keep_freed_memory()
    several = distributed.start(config.distributed)
    import jax
    from jax.experimental import multihost_utils

    from diversity_jax.training.loop import train
    from diversity_jax.training.metrics import console_summary

    first = jax.process_index() == 0
    output_dir = Path(config.output_dir)
    config = with_model(config)
    check(config)
    if config.prepared is None and first:
        build_mixture(config)
    if several:
        multihost_utils.sync_global_devices("mixture built")
    mixture = Mixture.load(config.prepared or output_dir / "mixture")
    config = dataclasses.replace(config, train=config.train.for_rows(mixture.train_rows))
    if first:
        run_info.describe(sys.argv, config, jax.devices()).save(output_dir)
    log.info(
        "model: %s parameters; mixture %s: %s", f"{config.model.parameter_count:,}", mixture.name, _composition(mixture)
    )
    result = train(mixture, config.model, config.optimizer, config.train, config.mesh, output_dir)
    for line in console_summary(result):
        log.info(line)
    if first:
        write_page(config)
    return result


def with_model(config: Config) -> Config:
    """The configuration with the model of `train.init_from` filled in where it names none of its own."""
    if config.model is not None:
        return config
    from diversity_jax.model.convert import read_config

    return dataclasses.replace(config, model=read_config(config.train.init_from))


def check(config: Config) -> None:
    """Refuses settings that cannot work together before hours go into scoring and preparation."""
    from diversity_jax.training.loop import check_fit

    if config.prepared is not None:
        mixture = Mixture.load(config.prepared)
        token_ids, sequence_length, known_as = mixture.vocabulary.size, mixture.sequence_length, mixture.vocabulary.hash
    else:
        tokenizer = load_tokenizer(config.mixture.vocabulary, end_of_text=config.mixture.end_of_text)
        token_ids, sequence_length, known_as = tokenizer.size, config.mixture.sequence_length, tokenizer.hash
    if config.train.init_from is not None:
        check_begun_with(config.train.init_from, known_as)
    check_fit(config.model, config.train, config.mesh, token_ids=token_ids, sequence_length=sequence_length)


def check_begun_with(folder: str, vocabulary: str) -> None:
    """Refuses to go on from a run whose token ids mean other text than the mixture's; what an imported model knows is
    not recorded.
    """
    from diversity_jax.evaluation.load_model import mixture_folder

    if (Path(folder) / "run.json").exists():
        theirs = Mixture.load(mixture_folder(Path(folder))).vocabulary
        if theirs.hash != vocabulary:
            raise InputError(
                f"train.init_from={folder}: was trained with another tokenizer ({theirs.kind}, {theirs.size:,} ids) "
                "than the mixture's; "
                "set mixture.vocabulary to the run's own"
            )


def build_mixture(config: Config) -> None:
    """Builds the mixture asked for in `output_dir`/mixture, or finds it built."""
    from diversity_jax.mixtures.builder import build
    from diversity_jax.scoring.run import scorer

    folder = Path(config.output_dir) / "mixture"
    build(config.mixture, folder, scorer(config, folder / "scorecards"))
    if config.register:
        from diversity_jax.mixtures.registry import register

        log.info("registered with SeqIO: %s", ", ".join(register(folder)))


def _composition(mixture: Mixture) -> str:
    return ", ".join(f"{part.name} {100 * float(part.share_granted):.1f} %" for part in mixture.taken)


def write_page(config: Config) -> None:
    """Writes the run's page and prints where it lies, last."""
    from diversity_jax.report.pages import training_run

    print(training_run.write(config.output_dir, mixture_dir=config.prepared))


if __name__ == "__main__":
    cli.run(main, Config, __doc__)
