"""How long and how a run trains, and what it writes while it does."""

import dataclasses
from dataclasses import dataclass, field
import math

from diversity_jax.core.config import ADDED
from diversity_jax.core.errors import InputError
from diversity_jax.core.stores import check_store
from diversity_jax.model.config import LoraConfig

_AT_LEAST_ONE = ["steps", "batch_size", "gradient_accumulation", "log_every", "checkpoint_every", "keep_checkpoints"]
_AT_LEAST_ONE += ["max_skipped_steps", "sample_tokens"]
_NOT_NEGATIVE = ["eval_every", "eval_batches", "z_loss", "sample_every", "sample_temperature", "keep_every_steps"]
_NOT_NEGATIVE += ["keep_every_minutes", "profile_start", "profile_steps"]


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """How rows that lie in a bucket are read."""

    cache_gb: float = 8.0  # of this host's disk, for rows that were read: later passes take them from there; 0: none

    def __post_init__(self) -> None:
        if not 0 <= self.cache_gb < math.inf:
            raise InputError(f"data.cache_gb={self.cache_gb}: must be at least 0")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How long and how a run trains; the optimizer, model and mesh have their own configs."""

    steps: int = 1000
    epochs: float | None = None  # instead of `steps`: passes over as many rows as the mixture's components have in all
    init_from: str | None = None  # folder of a run, of an imported or Hugging Face model to begin with; None: random
    init_step: int | None = None  # of such a run: which checkpoint; None: the latest
    # Folder of a run to branch off from, into another output_dir: parameters, moments, step and place in the data are
    # that run's at `branch_step` (None: its latest checkpoint), and so is its mixture.
    branch_from: str | None = field(default=None, metadata=ADDED)
    branch_step: int | None = field(default=None, metadata=ADDED)
    # Fields that may differ from here on from those the finished steps were made with, such as
    # ("optimizer.learning_rate",) or ("mesh",) for all of a part; the change is recorded. Others are refused.
    allow_changed: tuple[str, ...] = field(default=(), metadata=ADDED)
    # Rank above 0: adapters are trained, the parameters of init_from stay as they are.
    lora: LoraConfig = field(default_factory=LoraConfig)
    batch_size: int = 8  # rows of the global batch
    seed: int = 0  # of initial parameters and dropout
    gradient_accumulation: int = 1  # equal parts a batch is worked through in
    z_loss: float = 0.0  # weight of log(Z)^2
    attend_across_documents: bool = True  # False keeps attention and positions inside each document
    log_every: int = 10  # steps
    eval_every: int = 0  # steps between held-out losses; 0: only before and after training
    eval_batches: int = 8  # of each component
    sample_every: int = 0  # steps between samples of what the model writes; 0: only at the end
    sample_prompts: tuple[str, ...] = ()  # texts the model goes on from; "" starts a document; none: no samples
    sample_tokens: int = 64  # written after each prompt
    sample_temperature: float = 0.0  # 0: always the likeliest token
    checkpoint_every: int = 1000  # steps; a checkpoint is also written at the end, on SIGTERM and when the run fails
    keep_checkpoints: int = 3  # the latest so many stay
    keep_every_steps: int = 0  # checkpoints of its multiples stay for ever; a multiple of checkpoint_every; 0: none
    keep_every_minutes: float = 0.0  # of those at least so far apart, each stays for ever; 0: none
    grace_seconds: float = 30.0  # from SIGTERM to the end: what is not saved by then is given up
    max_skipped_steps: int = 20  # consecutive steps with a non-finite loss or gradient after which training stops
    profile_start: int = 10  # finished steps after which the profiler's trace begins
    profile_steps: int = 0  # steps the trace covers; 0: no trace
    compilation_cache: str | None = "user"  # folder of compiled programs; "user": under ~/.cache; None: no cache
    tensorboard: bool = True  # write TensorBoard events beside metrics.jsonl; needs clu and TensorFlow

    def __post_init__(self):
        for least, names in ((1, _AT_LEAST_ONE), (0, _NOT_NEGATIVE)):
            for name in names:
                if not getattr(self, name) >= least:
                    raise InputError(f"train.{name}={getattr(self, name)}: must be at least {least}")
        if self.epochs is not None and not 0 < self.epochs < math.inf:
            raise InputError(f"train.epochs={self.epochs}: must be above 0, or None to count steps")
        if self.init_step is not None and self.init_from is None:
            raise InputError(f"train.init_step={self.init_step}: says which checkpoint of init_from, which is None")
        if self.branch_step is not None and self.branch_from is None:
            raise InputError(f"train.branch_step={self.branch_step}: says where to leave branch_from, which is None")
        if self.branch_from is not None and self.init_from is not None and not self.lora.rank:
            raise InputError("train.init_from and train.branch_from: a branch has the parameters of its run; give one")
        for name in ("init_from", "branch_from"):
            check_store(getattr(self, name), f"train.{name}")
        if isinstance(self.allow_changed, str):
            object.__setattr__(self, "allow_changed", (self.allow_changed,))
        object.__setattr__(self, "allow_changed", tuple(self.allow_changed))
        if self.lora.rank and self.init_from is None:
            why = "adapters are added to a trained model; name it as train.init_from"
            raise InputError(f"train.lora.rank={self.lora.rank}: {why}")
        if not self.grace_seconds > 0:
            raise InputError(f"train.grace_seconds={self.grace_seconds}: must be above 0")
        if self.keep_every_steps % self.checkpoint_every:
            raise InputError(
                f"train.keep_every_steps={self.keep_every_steps}: must be a multiple of "
                f"checkpoint_every={self.checkpoint_every}, since only steps that are saved can be kept"
            )
        if isinstance(self.sample_prompts, str) or not all(isinstance(prompt, str) for prompt in self.sample_prompts):
            raise InputError(f"train.sample_prompts={self.sample_prompts!r}: must be a tuple of texts")
        object.__setattr__(self, "sample_prompts", tuple(self.sample_prompts))

    def for_rows(self, rows: int) -> "TrainConfig":
        """With `steps` filled in where `epochs` are asked for, of so many rows."""
        if self.epochs is None:
            return self
        return dataclasses.replace(self, steps=max(1, round(self.epochs * rows / self.batch_size)))
