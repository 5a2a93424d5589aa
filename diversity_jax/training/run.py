"""A whole training run by its configuration: builds or opens the mixture, checks that all fits together, and trains."""

import dataclasses
from dataclasses import dataclass, field
import logging
from pathlib import Path
import sys
from typing import TYPE_CHECKING

from diversity_jax.cluster_agent import AgentConfig
from diversity_jax.core import run_info
from diversity_jax.core.errors import InputError
from diversity_jax.llm import BudgetConfig, EndpointConfig, EngineConfig
from diversity_jax.mixtures.config import MixtureConfig
from diversity_jax.mixtures.mixture import Mixture
from diversity_jax.model import LlamaConfig, MeshConfig
from diversity_jax.tokenizers.tokenizer import load_tokenizer
from diversity_jax.training.config import TrainConfig
from diversity_jax.training.optimizer import OptimizerConfig
from diversity_jax.training.runtime import DistributedConfig

if TYPE_CHECKING:
    from diversity_jax.training.loop import TrainingResult

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Config:
    """A whole run: `python -m diversity_jax.train --config FILE`."""

    output_dir: str  # everything the run writes; a second run with the same folder goes on where the first stopped
    mixture: MixtureConfig | None = None  # what is trained on; None where `prepared` is given
    prepared: str | None = None  # folder of a built mixture: nothing is scored, read or tokenised, no corpora needed
    # Measures diversity: `offline` (no LLM), `openai:MODEL`, `gemini:MODEL` or `google-genai:MODEL`.
    judge: str = "offline"
    judge_base_url: str | None = None  # of an OpenAI-compatible server, such as http://127.0.0.1:8000/v1
    judge_endpoint: EndpointConfig = field(default_factory=EndpointConfig)  # headers, query and body it wants
    agent: AgentConfig = field(default_factory=AgentConfig)
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    model: LlamaConfig | None = None  # what is trained; None: the model of `train.init_from`
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    register: bool = False  # also register the mixture with SeqIO in this process, to see that it is accepted
    # How this process finds the others, where it is one of several: `distributed.start=auto` on TPU slices, Slurm and
    # Open MPI. The first one builds the mixture, so all of them have to see `output_dir`.
    distributed: DistributedConfig = field(default_factory=DistributedConfig)

    def __post_init__(self) -> None:
        if self.mixture is None and self.prepared is None:
            raise InputError("config.mixture and config.prepared are both None; give one")
        if self.model is None and self.train.init_from is None:
            raise InputError("config.model and config.train.init_from are both None; give one")


def run(config: Config, *, several_processes: bool) -> "TrainingResult":
    """Builds the mixture, unless it is prepared or built already, and trains on it; logs how the run ended.

    Raises:
      InputError: settings that do not fit together, or whatever building and training refuse.
    """
    import jax
    from jax.experimental import multihost_utils

    from diversity_jax.training.loop import train

    output_dir, is_first = Path(config.output_dir), jax.process_index() == 0
    config, model = with_model(config)
    check(config, model)
    if config.prepared is None and is_first:
        build_mixture(config)
    if several_processes:
        multihost_utils.sync_global_devices("mixture built")
    mixture = Mixture.load(config.prepared or output_dir / "mixture")
    config = dataclasses.replace(config, train=config.train.for_rows(mixture.train_rows))
    if is_first:
        run_info.describe(sys.argv, config, jax.devices()).save(output_dir)
    shares = ", ".join(f"{part.name} {100 * float(part.share_granted):.1f} %" for part in mixture.taken)
    log.info("model: %s parameters; mixture %s: %s", f"{model.parameter_count:,}", mixture.name, shares)
    result = train(mixture, model, config.optimizer, config.train, config.mesh, output_dir)
    for line in console_summary(result):
        log.info(line)
    return result


def with_model(config: Config) -> tuple[Config, LlamaConfig]:
    """The model, that of `train.init_from` where the configuration describes none, and the configuration with it."""
    if config.model is not None:
        return config, config.model
    from diversity_jax.model.convert import read_config

    assert config.train.init_from is not None  # checked by Config
    model = read_config(config.train.init_from)
    return dataclasses.replace(config, model=model), model


def check(config: Config, model: LlamaConfig) -> None:
    """Refuses settings that cannot work together before hours go into scoring and preparation."""
    from diversity_jax.training.loop import check_fit

    if config.mixture is None or config.prepared is not None:
        mixture = Mixture.load(config.prepared or "")
        token_ids, length, vocabulary_hash = mixture.vocabulary.size, mixture.sequence_length, mixture.vocabulary.hash
    else:
        tokenizer = load_tokenizer(config.mixture.vocabulary, end_of_text=config.mixture.end_of_text)
        token_ids, length, vocabulary_hash = tokenizer.size, config.mixture.sequence_length, tokenizer.hash
    if config.train.init_from is not None:
        check_same_tokenizer(config.train.init_from, vocabulary_hash)
    check_fit(model, config.train, config.mesh, token_ids, length)


def check_same_tokenizer(init_from: str, vocabulary_hash: str) -> None:
    """Refuses to go on from a run whose token ids mean other text than the mixture's.

    Of an imported model the tokenizer is not recorded, so it is not checked.
    """
    from diversity_jax.evaluation.load_model import mixture_folder

    if (Path(init_from) / "run.json").exists():
        theirs = Mixture.load(mixture_folder(Path(init_from))).vocabulary
        if theirs.hash != vocabulary_hash:
            raise InputError(
                f"train.init_from={init_from}: was trained with another tokenizer ({theirs.kind}, {theirs.size:,} ids) "
                "than the mixture's; set mixture.vocabulary to it"
            )


def build_mixture(config: Config) -> None:
    """Builds the configured mixture in `output_dir`/mixture; finds what an earlier attempt has built."""
    from diversity_jax.mixtures.builder import build
    from diversity_jax.mixtures.gate import undecided
    from diversity_jax.scoring.run import scorer

    folder = Path(config.output_dir) / "mixture"
    assert config.mixture is not None  # checked by Config
    build(config.mixture, folder, scorer(config, folder / "scorecards", undecided(config.mixture.components)))
    if config.register:
        from diversity_jax.mixtures.registry import register

        log.info("registered with SeqIO: %s", ", ".join(register(folder)))


def console_summary(result: "TrainingResult") -> list[str]:
    """How a run ended, in a few lines."""
    from diversity_jax.training.throughput import summary_lines

    lines = [f"{'interrupted' if result.interrupted else 'finished'} at step {result.steps}"]
    if result.interrupted:
        lines.append("a checkpoint of this step is saved; run the same command to go on")
    for name, (first, last) in result.held_out.items():
        lines.append(f"held-out loss {name:<12} {first:.4f} -> {last:.4f} nats per token")
    if result.summary:
        lines += summary_lines(result.summary)
    if result.skipped_steps:
        lines.append(f"{result.skipped_steps} updates were skipped: loss or gradient was not finite")
    return lines
