"""The optimizer, and the compiled training and evaluation steps for a mesh."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
import functools
from typing import Any

import jax
from jax import Array
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import optax

from diversity_jax.core.errors import InputError
from diversity_jax.model.config import LlamaConfig, LoraConfig
from diversity_jax.model.cross_entropy import loss, target_weights
from diversity_jax.model.llama import Params, init_adapters, init_params, param_shapes, with_adapters
from diversity_jax.model.sharding import VECTORS, batch_sharding, check_batch, param_shardings, path_name
from diversity_jax.training.config import OptimizerConfig


def learning_rate(config: OptimizerConfig, step: jax.Array | int) -> jax.Array:
    """Learning rate of the update after `step` finished ones, a float32 scalar.

    Raises:
      InputError: the schedule decays and `total_steps` is None (`for_run` sets it).
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
    """A tree of whether weight decay applies to each parameter: to all but the weights of norms and biases."""
    return jax.tree_util.tree_map_with_path(lambda path, _: not path_name(path).endswith(VECTORS), params)


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """Clipping, Adam and decoupled weight decay, without the learning rate.

    The train step applies the learning rate, so that a skipped update advances the schedule but not Adam's state.
    """
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity(),
        optax.scale_by_adam(b1=config.beta1, b2=config.beta2, eps=config.epsilon),
        optax.add_decayed_weights(config.weight_decay, mask=decayed),
        optax.scale(-1.0),
    )


def adam_updates(config: OptimizerConfig, opt_state: Any, params: Any) -> Any:
    """The updates of `make_optimizer`, computed from its state after the update.

    The new moments can then overwrite the old ones; where updates and moments are computed together, XLA's CPU backend
    keeps a copy of all old moments during the step.
    """
    adam = next(part for part in opt_state if isinstance(part, optax.ScaleByAdamState))
    mean = optax.tree.bias_correction(adam.mu, config.beta1, adam.count)
    square = optax.tree.bias_correction(adam.nu, config.beta2, adam.count)
    direction = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + config.epsilon), mean, square)
    decay = jax.tree.map(lambda p, is_decayed: config.weight_decay * p if is_decayed else 0.0, params, decayed(params))
    return jax.tree.map(lambda u, d: -(u + d), direction, decay)


Batch = Mapping[str, Array]
Metrics = dict[str, Array]
_NO_LORA = LoraConfig()


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class TrainState:
    """All that a step changes. The same tree type also holds the arrays' shapes or shardings."""

    step: Any  # int32 scalar, finished steps, skipped ones too
    params: Any  # float32; the trained parameters: all, or low-rank adapters only
    opt_state: Any  # optax state; moments are float32 and sharded like their parameters
    skipped: Any  # int32 scalar, steps whose update was left out because loss or gradient was not finite


@dataclass(frozen=True, kw_only=True)
class TrainStep:
    """The compiled train step of `make_train_step`."""

    mesh: Mesh
    gradient_accumulation: int
    jitted: Any

    def __call__(self, state: TrainState, batch: Batch, frozen: Params | None = None) -> tuple[TrainState, Metrics]:
        """The state after the step, and its metrics; the given state is donated.

        Raises:
          InputError: the batch cannot be divided evenly over the devices.
        """
        check_batch(self.mesh, batch["tokens"].shape[0], gradient_accumulation=self.gradient_accumulation)
        return self.jitted(state, frozen, batch)

    def lower(self, state: TrainState, batch: Mapping[str, Any], frozen: Params | None = None) -> Any:
        """Lowers the step for ahead-of-time compilation; arguments may be `jax.ShapeDtypeStruct`s."""
        return self.jitted.lower(state, frozen, batch)


def component_sums(parts: Mapping[str, Array], component_B: Array, num_components: int) -> Metrics:
    """Loss and target tokens summed over each component's rows, two float32 arrays of `num_components`.

    Counts are exact up to 2^24 targets of one component in one batch.
    """
    mine_BxC = component_B[:, None] == jnp.arange(num_components)
    rows = {"component_loss_sum": parts["losses"].sum(axis=1), "component_tokens": parts["weights"].sum(axis=1)}
    return {name: jnp.where(mine_BxC, row_B[:, None], 0).sum(axis=0) for name, row_B in rows.items()}


def _value_and_gradient(objective, trainable, batch, parts, num_components, dropout_key):
    """((objective, component sums), float32 gradient) of a batch, accumulated over equal `parts`."""
    compute = jax.value_and_grad(objective, has_aux=True)
    if parts == 1:
        return compute(trainable, batch, dropout_key)

    def add_part(total, item):
        index, part = item
        result = compute(trainable, part, jax.random.fold_in(dropout_key, index))
        return jax.tree.map(jnp.add, total, result), None

    # Each array B x ... as parts x B/parts x ..., with every parts-th row in a part, so that no row changes its device.
    split = {name: jnp.swapaxes(x.reshape(-1, parts, *x.shape[1:]), 0, 1) for name, x in batch.items()}
    sums = dict.fromkeys(("component_loss_sum", "component_tokens"), jnp.zeros(num_components, jnp.float32))
    start = ((jnp.float32(0), sums), jax.tree.map(jnp.zeros_like, trainable))
    return jax.lax.scan(add_part, start, (jnp.arange(parts), split))[0]


def _apply_gradient(optimizer, state, value, gradient):
    """The state after an update, and the metrics `gradient_norm`, `learning_rate` and `applied`.

    A non-finite objective `value` or gradient leaves parameters and moments as they were.
    """
    norm = optax.tree.norm(gradient)
    rate = learning_rate(optimizer, state.step)
    applied = jnp.isfinite(value) & jnp.isfinite(norm)

    def if_applied(new: Any, old: Any) -> Any:
        return jax.tree.map(lambda new, old: jnp.where(applied, new, old), new, old)

    _, opt_state = make_optimizer(optimizer).update(gradient, state.opt_state, state.params)
    opt_state = jax.lax.optimization_barrier(if_applied(opt_state, state.opt_state))
    updates = adam_updates(optimizer, opt_state, state.params)
    params = if_applied(jax.tree.map(lambda p, u: p + rate * u, state.params, updates), state.params)
    skipped = state.skipped + jnp.where(applied, 0, 1)
    metrics = {"gradient_norm": norm, "learning_rate": rate, "applied": applied.astype(jnp.float32)}
    return TrainState(step=state.step + 1, params=params, opt_state=opt_state, skipped=skipped), metrics


def _init(model, optimizer, lora, key, params=None):
    if params is None:
        params = init_adapters(model, lora, key) if lora.rank else init_params(model, key)
    zero = jnp.zeros((), jnp.int32)
    return TrainState(step=zero, params=params, opt_state=make_optimizer(optimizer).init(params), skipped=zero)


def state_shardings(
    model: LlamaConfig, optimizer: OptimizerConfig, mesh: Mesh, lora: LoraConfig = _NO_LORA
) -> tuple[TrainState, TrainState]:
    """Shapes and shardings of a `TrainState`; moments are sharded like their parameters.

    Raises:
      InputError: a parameter cannot be sharded evenly over the mesh.
    """
    shapes = jax.eval_shape(functools.partial(_init, model, optimizer, lora), jax.random.key(0))
    replicated = NamedSharding(mesh, PartitionSpec())
    params = param_shardings(mesh, shapes.params)
    moments, others = (lambda _, sharding: sharding), (lambda _: replicated)
    opt_state = optax.tree_utils.tree_map_params(
        make_optimizer(optimizer), moments, shapes.opt_state, params, transform_non_params=others
    )
    return shapes, TrainState(step=replicated, params=params, opt_state=opt_state, skipped=replicated)


def model_shardings(model: LlamaConfig, mesh: Mesh) -> Any:
    """Shardings of all of a model's parameters, trained or not."""
    return param_shardings(mesh, param_shapes(model))


def make_train_step(
    model: LlamaConfig,
    optimizer: OptimizerConfig,
    mesh: Mesh,
    *,
    num_components: int = 1,
    z_loss: float = 0.0,
    gradient_accumulation: int = 1,
    seed: int = 0,
    lora: LoraConfig = _NO_LORA,
) -> tuple[Callable[..., TrainState], TrainStep]:
    """Compiles initialisation and step for a mesh.

    Args:
      num_components: Length of the per-component metrics.
      z_loss: Weight of log(Z)^2 in the objective.
      gradient_accumulation: Number of equal parts of a batch that are computed in turn, to save memory. The update is
        that of the full batch up to rounding, except with dropout, where every part has its own mask.
      seed: Of dropout; a step's randomness depends on seed and step only, so that a resumed run repeats it.
      lora: With a rank above 0, adapters are trained, and the step takes the model's parameters as `frozen`.

    Returns:
      `init_state(key, params=None) -> TrainState`, sharded, with random parameters or the given ones, which it donates,
      and `train_step(state, batch, frozen) -> (state, metrics)`, which donates the state. The batch holds `tokens`
      int32 BxL+1, `component` int32 B, and optionally `segment_ids`, `positions` and `loss_mask`, BxL+1. Metrics stay
      on the device: scalars `loss` (mean cross-entropy in nats), `gradient_norm` (before clipping), `learning_rate` and
      `applied` (0 where a non-finite loss or gradient left parameters and moments unchanged, else 1), and per component
      `component_loss_sum` and `component_tokens`.

    Raises:
      InputError: model and mesh do not fit.
    """
    _, placed = state_shardings(model, optimizer, mesh, lora)

    def train_step(state, frozen, batch):
        token_count = jnp.sum(target_weights(batch))

        def objective(trainable, part, key):
            params = trainable if frozen is None else with_adapters(frozen, trainable, lora)
            value, parts = loss(model, params, part, mesh=mesh, z_loss=z_loss, token_count=token_count, dropout_key=key)
            return value, component_sums(parts, part["component"], num_components)

        dropout_key = jax.random.fold_in(jax.random.key(seed), state.step)
        (value, sums), gradient = _value_and_gradient(
            objective, state.params, batch, gradient_accumulation, num_components, dropout_key
        )
        mean_loss = sums["component_loss_sum"].sum() / jnp.maximum(sums["component_tokens"].sum(), 1)
        state, metrics = _apply_gradient(optimizer, state, value, gradient)
        return state, {"loss": mean_loss, **metrics, **sums}

    jitted = jax.jit(
        train_step,
        donate_argnums=0,
        in_shardings=(placed, model_shardings(model, mesh) if lora.rank else None, batch_sharding(mesh)),
        out_shardings=(placed, NamedSharding(mesh, PartitionSpec())),
    )
    init, options = functools.partial(_init, model, optimizer, lora), _options_of_one_run(mesh)
    init_state = jax.jit(init, out_shardings=placed, donate_argnames="params", compiler_options=options)
    return init_state, TrainStep(mesh=mesh, gradient_accumulation=gradient_accumulation, jitted=jitted)


def _options_of_one_run(mesh: Mesh) -> dict[str, Any] | None:
    """Compiler options of a program that runs once: on a CPU they reduced compile time of initialisation from 9.6 s to
    3.6 s for a model of a million parameters.
    """
    is_reduced = jax.config.read("jax_disable_most_optimizations")  # by the user, to even less
    is_cpu = mesh.devices.flat[0].platform == "cpu"
    return {"xla_backend_optimization_level": 1} if is_cpu and not is_reduced else None


def make_eval_step(model: LlamaConfig, mesh: Mesh, *, num_components: int = 1) -> Callable[[Params, Batch], Metrics]:
    """Compiles `eval_step(params, batch) -> metrics` for a mesh: no dropout, no gradient, nothing donated.

    Metrics: `component_loss_sum` and `component_tokens`, float32 arrays of `num_components`, to be summed over batches,
    and the batch's mean `loss`.
    """

    def compute(params, batch):
        value, parts = loss(model, params, batch, mesh=mesh)
        return {"loss": value, **component_sums(parts, batch["component"], num_components)}

    shardings = (model_shardings(model, mesh), batch_sharding(mesh))
    jitted = jax.jit(compute, in_shardings=shardings, out_shardings=NamedSharding(mesh, PartitionSpec()))

    def eval_step(params: Params, batch: Batch) -> Metrics:
        check_batch(mesh, batch["tokens"].shape[0])
        return jitted(params, batch)

    return eval_step
