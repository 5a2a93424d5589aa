"""Configurations of training: steps, optimizer, data, processes and output. Does not import JAX."""

import dataclasses
from dataclasses import dataclass, field
import math
import threading

from diversity_jax.core.config import ADDED, check_kinds, check_least
from diversity_jax.core.errors import InputError
from diversity_jax.core.stores import check_store
from diversity_jax.model.config import LoraConfig

SCHEDULES = ("linear", "cosine", "warmup_stable_decay", "constant")
_STARTS = ("off", "auto")
_LEAST_FLOAT32, _MOST_FLOAT32 = 2.0**-126, 3.4e38  # normal numbers of float32
_AT_LEAST_ONE = ["steps", "batch_size", "gradient_accumulation", "log_every", "checkpoint_every", "keep_checkpoints"]
_AT_LEAST_ONE += ["max_skipped_steps", "sample_tokens"]
_NOT_NEGATIVE = ["eval_every", "eval_batches", "z_loss", "sample_every", "sample_temperature", "keep_every_steps"]
_NOT_NEGATIVE += ["keep_every_minutes", "profile_start", "profile_steps"]


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """How rows in a bucket are read."""

    cache_gb: float = 8.0  # disk space on this host for rows that were read, for later passes; 0: none

    def __post_init__(self) -> None:
        if not 0 <= self.cache_gb < math.inf:
            raise InputError(f"data.cache_gb={self.cache_gb}: must be at least 0")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How long and how a run trains; the optimizer, model and mesh have their own configs."""

    steps: int = 1000  # updates of the parameters
    epochs: float | None = None  # instead of `steps`: passes over the number of rows of all components
    init_from: str | None = None  # folder of a run, or of an imported or Hugging Face model to start from; None: random
    init_step: int | None = None  # checkpoint of such a run; None: the latest
    # Folder of a run to continue in another output_dir: with that run's mixture, and its parameters, moments, step and
    # position in the data at `branch_step`.
    branch_from: str | None = field(default=None, metadata=ADDED)
    # Checkpoint of that run; None: its latest.
    branch_step: int | None = field(default=None, metadata=ADDED)
    # Fields that may differ from those of the finished steps, such as ("optimizer.learning_rate",), or ("mesh",) for a
    # whole part; changes are recorded. Changes of other fields are refused.
    allow_changed: tuple[str, ...] = field(default=(), metadata=ADDED)
    # Rank above 0: adapters are trained, the parameters of init_from stay as they are.
    lora: LoraConfig = field(default_factory=LoraConfig)
    batch_size: int = 8  # rows of the global batch
    seed: int = 0  # of initial parameters and dropout; its lowest 32 bits count
    gradient_accumulation: int = 1  # equal parts of a batch that are computed one after another
    z_loss: float = 0.0  # weight of log(Z)^2
    attend_across_documents: bool = True  # False keeps attention and positions inside each document
    log_every: int = 10  # steps
    eval_every: int = 0  # steps between held-out losses; 0: only before and after training
    eval_batches: int = 8  # of each component
    sample_every: int = 0  # steps between samples of what the model writes; 0: only at the end
    sample_prompts: tuple[str, ...] = ()  # texts that the model continues; "" starts a document; none: no samples
    sample_tokens: int = 64  # written after each prompt
    sample_temperature: float = 0.0  # 0: always the likeliest token
    checkpoint_every: int = 1000  # steps; a checkpoint is also written at the end, on SIGTERM and when the run fails
    keep_checkpoints: int = 3  # number of latest checkpoints that are kept
    keep_every_steps: int = 0  # checkpoints of its multiples are kept for ever; a multiple of checkpoint_every; 0: none
    keep_every_minutes: float = 0.0  # checkpoints at least this far apart are kept for ever; 0: none
    grace_seconds: float = 30.0  # from SIGTERM until the process exits, saved or not
    max_skipped_steps: int = 20  # consecutive steps with a non-finite loss or gradient after which training stops
    profile_start: int = 10  # number of finished steps after which the profiler's trace begins
    profile_steps: int = 0  # steps the trace covers; 0: no trace
    compilation_cache: str | None = "user"  # folder of compiled programs; "user": under ~/.cache; None: no cache
    tensorboard: bool = True  # adds `tensorboard` to the trackers; needs clu and TensorFlow
    # Further destinations of the figures in metrics.jsonl: "tensorboard", "wandb", "mlflow".
    trackers: tuple[str, ...] = field(default=(), metadata=ADDED)

    def __post_init__(self):
        for name in ("allow_changed", "trackers"):
            if isinstance(value := getattr(self, name), str):
                object.__setattr__(self, name, (value,))
        check_kinds(self, "train.")
        check_least(self, "train.", **dict.fromkeys(_AT_LEAST_ONE, 1), **dict.fromkeys(_NOT_NEGATIVE, 0))
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
        if self.lora.rank and self.init_from is None:
            why = "adapters are added to a trained model; name it as train.init_from"
            raise InputError(f"train.lora.rank={self.lora.rank}: {why}")
        if not 0 < self.grace_seconds <= threading.TIMEOUT_MAX:
            raise InputError(f"train.grace_seconds={self.grace_seconds}: must be above 0 and finite")
        if self.keep_every_steps % self.checkpoint_every:
            raise InputError(
                f"train.keep_every_steps={self.keep_every_steps}: must be a multiple of "
                f"checkpoint_every={self.checkpoint_every}, since only steps that are saved can be kept"
            )

    @property
    def all_trackers(self) -> tuple[str, ...]:
        """All trackers to use, each once."""
        return tuple(dict.fromkeys((*(("tensorboard",) if self.tensorboard else ()), *self.trackers)))

    def for_rows(self, rows: int) -> "TrainConfig":
        """A copy with `steps` set by `epochs`, where given, over this number of rows."""
        if self.epochs is None:
            return self
        return dataclasses.replace(self, steps=max(1, round(self.epochs * rows / self.batch_size)))


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW and its schedule; the defaults are the paper's where it gives them."""

    learning_rate: float = 3e-4  # peak
    warmup_steps: int = 0  # steps of linear growth from zero; the first step already moves
    total_steps: int | None = None  # step at which the decay ends; None: the last step of the run
    # After warm-up: "linear", "cosine", "warmup_stable_decay" (constant, then linear) or "constant".
    schedule: str = "linear"
    decay_share: float = 0.2  # share of total_steps that the decay of "warmup_stable_decay" takes
    final_ratio: float = 0.0  # learning rate at the end, as a share of the peak
    beta1: float = 0.9  # decay of Adam's first moment
    beta2: float = 0.95  # decay of its second moment
    weight_decay: float = 0.1  # on matrices; norms are not decayed
    clip_norm: float = 1.0  # global gradient norm above which gradients are scaled down; 0: never
    epsilon: float = 1e-8  # of Adam, added to the root of the second moment

    def __post_init__(self):
        check_kinds(self, "optimizer.")
        for fields, is_allowed, must in (
            (("learning_rate",), lambda x: 0 < x < _MOST_FLOAT32, "above 0 and finite"),
            # 0 in float32 would make a NaN of the update of a parameter that has had no gradient.
            (("epsilon",), lambda x: _LEAST_FLOAT32 <= x < math.inf, f"at least {_LEAST_FLOAT32:.3g} and finite"),
            (("beta1", "beta2"), lambda x: 0 <= x < 1, "at least 0 and below 1"),
            (("decay_share", "final_ratio"), lambda x: 0 <= x <= 1, "between 0 and 1"),
            (("weight_decay", "clip_norm", "warmup_steps"), lambda x: 0 <= x < math.inf, "at least 0 and finite"),
        ):
            for name in fields:
                if not is_allowed(getattr(self, name)):
                    raise InputError(f"optimizer.{name}={getattr(self, name)}: must be {must}")
        if self.schedule not in SCHEDULES:
            raise InputError(f"optimizer.schedule={self.schedule!r}: must be one of {', '.join(SCHEDULES)}")
        if self.total_steps is None:
            return
        if self.total_steps < 1:
            raise InputError(f"optimizer.total_steps={self.total_steps}: must be at least 1")
        if (warmup := self.warmup_steps) > self.total_steps:
            raise InputError(f"optimizer.warmup_steps={warmup}: must not be above total_steps={self.total_steps}")

    def for_run(self, steps: int) -> "OptimizerConfig":
        """A copy with `total_steps` set; a run shorter than its warm-up consists of warm-up only."""
        if self.total_steps is not None:
            return self
        return dataclasses.replace(self, total_steps=max(steps, self.warmup_steps))


@dataclass(frozen=True, kw_only=True)
class DistributedConfig:
    """How this process finds the others of a run."""

    # "off": it is the only one, unless a coordinator is given; "auto": what Slurm, Open MPI, a TPU slice or Kubernetes
    # says.
    start: str = "off"
    coordinator: str | None = None  # HOST:PORT at which process 0 listens, reachable from all
    num_processes: int | None = None  # None: from the launcher's variables
    process_id: int | None = None  # from 0; None: from the launcher's variables
    timeout_seconds: float = 300.0  # how long processes wait for each other at the start

    def __post_init__(self) -> None:
        if self.start not in _STARTS:
            raise InputError(f"distributed.start={self.start!r}: must be one of {', '.join(_STARTS)}")
        if self.num_processes is not None and self.num_processes < 1:
            raise InputError(f"distributed.num_processes={self.num_processes}: must be at least 1")
        if self.process_id is not None and self.process_id < 0:
            raise InputError(f"distributed.process_id={self.process_id}: must be at least 0")
        if not 0 < self.timeout_seconds < math.inf:
            raise InputError(f"distributed.timeout_seconds={self.timeout_seconds}: must be above 0 and finite")
        if self.coordinator is not None:
            coordinator_address(self.coordinator)


def coordinator_address(coordinator: str) -> tuple[str, int]:
    """Host and port of `distributed.coordinator`.

    Raises:
      InputError: it is not HOST:PORT.
    """
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise InputError(f"distributed.coordinator={coordinator!r}: must be HOST:PORT, such as 10.0.0.1:12345")
    return host.strip("[]"), int(port)
