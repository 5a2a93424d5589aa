"""AdamW with a clipped global norm, and its learning rate as a function of the step."""

import dataclasses
from dataclasses import dataclass
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from diversity_jax.core.errors import InputError
from diversity_jax.model.sharding import VECTORS, path_name

SCHEDULES = ("linear", "cosine", "warmup_stable_decay", "constant")


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
    beta1: float = 0.9
    beta2: float = 0.95
    weight_decay: float = 0.1  # on matrices; norms are not decayed
    clip_norm: float = 1.0  # global gradient norm above which gradients are scaled down; 0: never
    epsilon: float = 1e-8

    def __post_init__(self):
        for fields, is_allowed, must in (
            (("learning_rate", "epsilon"), lambda x: 0 < x < math.inf, "above 0"),
            (("beta1", "beta2"), lambda x: 0 <= x < 1, "at least 0 and below 1"),
            (("decay_share", "final_ratio"), lambda x: 0 <= x <= 1, "between 0 and 1"),
            (("weight_decay", "clip_norm", "warmup_steps"), lambda x: x >= 0, "at least 0"),
        ):
            for field in fields:
                if not is_allowed(getattr(self, field)):
                    raise InputError(f"optimizer.{field}={getattr(self, field)}: must be {must}")
        if self.schedule not in SCHEDULES:
            raise InputError(f"optimizer.schedule={self.schedule!r}: must be one of {', '.join(SCHEDULES)}")
        if self.total_steps is None:
            return
        if self.total_steps < 1:
            raise InputError(f"optimizer.total_steps={self.total_steps}: must be at least 1")
        if (warmup := self.warmup_steps) > self.total_steps:
            raise InputError(f"optimizer.warmup_steps={warmup}: must not be above total_steps={self.total_steps}")

    def for_run(self, steps: int) -> "OptimizerConfig":
        """With `total_steps` filled in; a run shorter than its warm-up is warm-up throughout."""
        if self.total_steps is not None:
            return self
        return dataclasses.replace(self, total_steps=max(steps, self.warmup_steps))


def learning_rate(config: OptimizerConfig, step: jax.Array | int) -> jax.Array:
    """Learning rate of the update that follows `step` finished ones, a float32 scalar.

    Raises:
      InputError: the schedule decays but its end is not given (`for_run` fills it in).
    """
    step = jnp.asarray(step, jnp.float32)
    peak = config.learning_rate * jnp.minimum((step + 1) / max(config.warmup_steps, 1), 1)
    if config.schedule == "constant":
        return peak
    if config.total_steps is None:
        raise InputError(f"optimizer.total_steps=None: schedule {config.schedule!r} needs to know its last step")
    decay_start = config.warmup_steps
    if config.schedule == "warmup_stable_decay":
        decay_start = max(decay_start, config.total_steps - round(config.decay_share * config.total_steps))
    progress = jnp.clip((step - decay_start) / max(config.total_steps - decay_start, 1), 0, 1)
    remaining = 0.5 * (1 + jnp.cos(jnp.pi * progress)) if config.schedule == "cosine" else 1 - progress
    return peak * (config.final_ratio + (1 - config.final_ratio) * remaining)


def decayed(params: Any) -> Any:
    """True for every parameter that weight decay applies to: all but the norms' weights and the biases."""
    return jax.tree_util.tree_map_with_path(lambda path, _: not path_name(path).endswith(VECTORS), params)


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """Clipping, Adam and decoupled weight decay, without the learning rate.

    The train step multiplies that in, so that a skipped update leaves Adam's state while the schedule goes on.
    """
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity(),
        optax.scale_by_adam(b1=config.beta1, b2=config.beta2, eps=config.epsilon),
        optax.add_decayed_weights(config.weight_decay, mask=decayed),
        optax.scale(-1.0),
    )


def adam_updates(config: OptimizerConfig, opt_state: Any, params: Any) -> Any:
    """What `make_optimizer`'s update gives, from the state after it: decoupled weight decay added to Adam's direction.

    A step that makes its updates from these moments writes them over the old ones; made together with them, XLA's CPU
    backend keeps a copy of all old moments through the whole step.
    """
    adam = next(part for part in opt_state if isinstance(part, optax.ScaleByAdamState))
    mean = optax.tree.bias_correction(adam.mu, config.beta1, adam.count)
    square = optax.tree.bias_correction(adam.nu, config.beta2, adam.count)
    direction = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + config.epsilon), mean, square)
    decay = jax.tree.map(lambda p, is_decayed: config.weight_decay * p if is_decayed else 0.0, params, decayed(params))
    return jax.tree.map(lambda u, d: -(u + d), direction, decay)
