"""Runs training from a configuration: checks the settings, builds or opens the mixture, and trains."""

from collections.abc import Callable, Sequence
import contextlib
import dataclasses
from dataclasses import dataclass, field
import functools
import logging
from pathlib import Path
import sys
from typing import TYPE_CHECKING

from diversity_jax.cluster_agent import AgentConfig
from diversity_jax.core import run_info
from diversity_jax.core.artifacts import locked_folder
from diversity_jax.core.buckets import Mirror, published
from diversity_jax.core.config import ADDED
from diversity_jax.core.errors import InputError
from diversity_jax.core.files import exists, join_path, local_folder, remove_tree
from diversity_jax.core.json_fields import read_fields
from diversity_jax.core.stores import check_store, is_remote, refuse_other_than_model
from diversity_jax.llm import BudgetConfig, EndpointConfig, EngineConfig
from diversity_jax.mixtures.config import TRAINED, MixtureConfig
from diversity_jax.mixtures.mixture import Mixture
from diversity_jax.model import LlamaConfig, MeshConfig
from diversity_jax.training.config import DataConfig, DistributedConfig, OptimizerConfig, TrainConfig

if TYPE_CHECKING:
    from diversity_jax.training.loop import TrainingResult

log = logging.getLogger(__name__)

_FILES_OF_A_RUN = (
    *("checkpoints", "checkpoints-damaged", "metrics.jsonl", "samples.jsonl", "goodput.json", "summary.json"),
    *("run.json", "report.html", "figures", "tensorboard", "profile", "trackers.json", "wandb", "mlflow"),
)


@dataclass(frozen=True, kw_only=True)
class Config:
    """A training run: `python -m diversity_jax.train --config FILE`."""

    # Folder of all output, also in a bucket (gs://BUCKET/run, s3://BUCKET/run). A run with equal settings is resumed,
    # one with other settings refused.
    output_dir: str
    # Start again instead: removes the output of an earlier run, except its mixture.
    overwrite: bool = field(default=False, metadata=ADDED)
    mixture: MixtureConfig | None = None  # training data; None where `prepared` is given
    # Folder or URL of a built mixture: nothing is scored or prepared, no corpora are needed.
    prepared: str | None = None
    # Judge that measures diversity: `offline` (no LLM), `embedding:EMBEDDER`, `openai:MODEL`, `gemini:MODEL` or
    # `google-genai:MODEL`.
    judge: str = "offline"
    judge_base_url: str | None = None  # of an OpenAI-compatible server, such as http://127.0.0.1:8000/v1
    # Headers, query and body that this server needs.
    judge_endpoint: EndpointConfig = field(default_factory=EndpointConfig, metadata=ADDED)
    agent: AgentConfig = field(default_factory=AgentConfig)
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    model: LlamaConfig | None = None  # None: the model of `train.init_from`
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    data: DataConfig = field(default_factory=DataConfig, metadata=ADDED)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    register: bool = False  # also registers the mixture with SeqIO in this process, as a check
    # How the processes of a run find each other: `distributed.start=auto` on TPU slices, Slurm and Open MPI. The first
    # one builds the mixture, so all need access to `output_dir`.
    distributed: DistributedConfig = field(default_factory=DistributedConfig)

    def __post_init__(self) -> None:
        if self.mixture is None and self.prepared is None:
            raise InputError("config.mixture and config.prepared are both None; give one")
        if self.model is None and self.train.init_from is None and self.train.branch_from is None:
            raise InputError("config.model and config.train.init_from are both None; give one")
        check_store(self.output_dir, "output_dir")
        check_store(self.prepared, "prepared")


def run(config: Config, *, finish: Callable[[Path], None] = lambda folder: None) -> "TrainingResult":
    """Builds the mixture, unless it is prepared or built already, and trains on it; logs a summary.

    Args:
      finish: called last in the first process, with the local folder of the run's files.

    Raises:
      InputError: settings do not fit each other or the run in `output_dir`, another process trains there, or building
        or training raises it.
    """
    import jax

    from diversity_jax.training.bucket_checkpoints import open_checkpoints
    from diversity_jax.training.loop import train
    from diversity_jax.training.runtime import in_first_process, together

    is_bucket = is_remote(config.output_dir)
    output_dir = config.output_dir if is_bucket else local_folder(config.output_dir, "output_dir")
    if config.mixture is not None and config.prepared is None and config.mixture.vocabulary == TRAINED:
        in_first_process(functools.partial(rows_of, config))  # trains the tokenizer, unless that is done
    config, model = with_model(config)
    check_folder(config, model, output_dir)
    config = with_mixture_of_branch(config)
    check(config, model)
    with contextlib.ExitStack() as resources:
        folder, mirrors = _open_folder(resources, config, output_dir)
        mixture = together(lambda: Mixture.load(config.prepared or join_path(output_dir, "mixture")))
        config = dataclasses.replace(config, train=config.train.for_rows(mixture.train_rows))

        def begin_writing() -> None:
            if config.overwrite:
                remove_former_run(output_dir)
                if is_bucket:
                    remove_former_run(folder)
            run_info.describe(sys.argv, config, jax.devices()).save(folder)

        shares = ", ".join(f"{part.name} {100 * float(part.share_granted):.1f} %" for part in mixture.taken)
        log.info("model: %s parameters; mixture %s: %s", f"{model.parameter_count:,}", mixture.name, shares)
        parts = config.optimizer, config.train, config.mesh
        checkpoints = join_path(output_dir, "checkpoints")
        result = train(
            mixture,
            model,
            *parts,
            folder,
            checkpoints=open_checkpoints(checkpoints, config.train, mirrors[0].push if mirrors else lambda: None),
            data=config.data,
            anew=config.overwrite,
            before_writing=lambda: in_first_process(begin_writing),
        )
        for line in console_summary(result):
            log.info(line)
        if jax.process_index() == 0:
            finish(folder)
    return result


def _open_folder(
    resources: contextlib.ExitStack, config: Config, output_dir: str | Path
) -> tuple[Path, Sequence[Mirror]]:
    """Locks a run's folder and builds its mixture there if needed, in the first process while the others wait.

    Returns:
      The local folder of the run's files, and its mirrors in a bucket.
    """
    import jax

    from diversity_jax.training.runtime import check_shared, in_first_process, together

    is_bucket = is_remote(config.output_dir)
    folders: list[Path] = []
    mirrors: list[Mirror] = []
    build = config.prepared is None and not _is_mixture_built(output_dir)

    def enter() -> None:
        if not folders:  # else this is the first process, which has entered in `make_ready`
            process, skipped = jax.process_index(), _stays_in_bucket(build)
            folder_of_run = published(
                config.output_dir, "output_dir", process=process, skipped=skipped, mirrors=mirrors
            )
            folders.append(resources.enter_context(folder_of_run))

    def make_ready() -> None:
        enter()
        if not is_bucket:
            resources.enter_context(locked_folder(output_dir))
        if build:
            build_mixture(config, folders[0])
            for mirror in mirrors:
                mirror.push()

    if not is_bucket:
        check_shared(Path(output_dir), "output_dir")
    in_first_process(make_ready)
    together(enter)
    return folders[0], mirrors


def _stays_in_bucket(build: bool) -> Callable[[str], bool]:
    """Whether a file of a run is not downloaded: checkpoints, traces, and rows unless the mixture has to be built."""

    def is_skipped(name: str) -> bool:
        is_rows = name.startswith("mixture/") and name.endswith((".bin", ".crc32"))
        return name.startswith(("checkpoints", "tensorboard/", "profile/")) or (is_rows and not build)

    return is_skipped


def _is_mixture_built(output_dir: Path | str) -> bool:
    """Whether the run has a mixture and checkpoints: the mixture is then used as it is, and no corpus is read."""
    from diversity_jax.training.checkpoint import complete_steps

    is_begun = bool(complete_steps(join_path(output_dir, "checkpoints")))
    return is_begun and exists(join_path(output_dir, "mixture", "mixture.json"))


def with_mixture_of_branch(config: Config) -> Config:
    """The configuration; of a branch, with the mixture of the run that it continues."""
    branch_from = config.train.branch_from
    if branch_from is None or config.prepared is not None:
        return config
    from diversity_jax.evaluation.load_model import mixture_folder

    return dataclasses.replace(config, prepared=str(mixture_folder(branch_from)))


def with_model(config: Config) -> tuple[Config, LlamaConfig]:
    """The configuration with its model filled in, from the mixture or `train.init_from`, and that model."""
    if config.model is not None:
        model = config.model
        if model.follows_mixture:
            model = model.for_rows(*rows_of(with_mixture_of_branch(config))[:2])
        return dataclasses.replace(config, model=model), model
    from diversity_jax.model.convert import read_config

    source = config.train.branch_from or config.train.init_from
    assert source is not None  # checked by Config
    model = read_config(source)
    return dataclasses.replace(config, model=model), model


def check_folder(config: Config, model: LlamaConfig, output_dir: Path | str) -> None:
    """Checks the run in `output_dir`, or the one of `train.branch_from`; writes nothing.

    Raises:
      InputError: its settings differ, or another command wrote to `output_dir`.
    """
    from diversity_jax.training.checkpoint import last_info
    from diversity_jax.training.resume import Settings, accepted_changes, check_mixture

    if not config.overwrite:
        run_info.refuse_other_command(output_dir, "optimizer", "training run")
    folder, step = output_dir, None
    info = None if config.overwrite else last_info(join_path(folder, "checkpoints"))
    is_branch = info is None and config.train.branch_from is not None
    if is_branch:
        folder, step = config.train.branch_from or "", config.train.branch_step
        info = last_info(join_path(folder, "checkpoints"), step)
    if info is None:
        return
    mixture = join_path(config.prepared or join_path(folder, "mixture"), "mixture.json")
    record = read_fields(mixture) if exists(mixture) else {}
    if config.mixture is not None and config.prepared is None and record.get("asked"):
        check_mixture(info, record, config.mixture, folder)
    train = config.train
    if train.epochs is not None and record:
        train = train.for_rows(Mixture.load(mixture).train_rows)
    settings = Settings(model=model, optimizer=config.optimizer, train=train, mesh=config.mesh)
    accepted_changes(info, settings, record, run=folder, is_branch=is_branch)


def remove_former_run(output_dir: Path | str) -> None:
    """Removes the output of an earlier run, except its mixture, for `overwrite`."""
    for name in _FILES_OF_A_RUN:
        remove_tree(join_path(output_dir, name))


def check(config: Config, model: LlamaConfig) -> None:
    """Raises `InputError` where settings do not fit each other, before scoring and preparation, which take hours."""
    from diversity_jax.training.loop import check_fit
    from diversity_jax.training.trackers import check_installed

    check_installed(config.train.all_trackers)
    token_ids, length, vocabulary_hash = rows_of(config)
    if config.train.init_from is not None:
        check_same_tokenizer(config.train.init_from, vocabulary_hash)
    check_fit(model, config.train, config.mesh, token_ids, length)


def rows_of(config: Config) -> tuple[int, int, str]:
    """Number of token ids, tokens that a row predicts, and the tokenizer's hash; trains a missing tokenizer."""
    if config.mixture is None or config.prepared is not None:
        mixture = Mixture.load(config.prepared or "")
        return mixture.vocabulary.size, mixture.sequence_length, mixture.vocabulary.hash
    from diversity_jax.mixtures.sources import open_vocabulary

    tokenizer = open_vocabulary(config.mixture, join_path(config.output_dir, "mixture"))
    return tokenizer.size, config.mixture.sequence_length, tokenizer.hash


def check_same_tokenizer(init_from: str, vocabulary_hash: str) -> None:
    """Raises `InputError` where the run `init_from` has another tokenizer; imported models have no record of theirs."""
    from diversity_jax.evaluation.load_model import mixture_folder

    refuse_other_than_model(init_from, "train.init_from=")
    if exists(join_path(init_from, "run.json")):
        theirs = Mixture.load(mixture_folder(init_from)).vocabulary
        if theirs.hash != vocabulary_hash:
            raise InputError(
                f"train.init_from={init_from}: was trained with another tokenizer ({theirs.kind}, {theirs.size:,} ids) "
                "than the mixture's; set mixture.vocabulary to it"
            )


def build_mixture(config: Config, output_dir: Path) -> None:
    """Builds the configured mixture in `output_dir`/mixture, continuing an earlier attempt."""
    from diversity_jax.mixtures.builder import build
    from diversity_jax.mixtures.gate import undecided
    from diversity_jax.scoring.run import scorer

    folder = output_dir / "mixture"
    assert config.mixture is not None  # checked by Config
    build(config.mixture, folder, scorer(config, folder / "scorecards", undecided(config.mixture.components)))
    if config.register:
        from diversity_jax.mixtures.registry import register

        log.info("registered with SeqIO: %s", ", ".join(register(folder)))


def console_summary(result: "TrainingResult") -> list[str]:
    """The result of a run in a few lines."""
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
