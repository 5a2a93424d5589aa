"""AdamW with a clipped global norm, and its learning rate as a function of the step."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from diversity_jax.core.errors import InputError
from diversity_jax.model.sharding import VECTORS, path_name
from diversity_jax.training.config import OptimizerConfig


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
