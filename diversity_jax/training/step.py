"""One training step as a pure function of (state, batch), compiled for a mesh with the state donated."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import optax

from diversity_jax.model.config import LlamaConfig
from diversity_jax.model.cross_entropy import loss, target_weights
from diversity_jax.model.llama import init_params, param_shapes
from diversity_jax.model.lora import LoraConfig, init_adapters, with_adapters
from diversity_jax.model.sharding import batch_sharding, check_batch, param_shardings
from diversity_jax.training.optimizer import OptimizerConfig, learning_rate, make_optimizer

Batch = Mapping[str, jax.Array]
_ALL_PARAMETERS = LoraConfig()
Metrics = dict[str, jax.Array]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class TrainState:
    """Everything a step changes; with the batches, all that a run's continuation depends on."""

    step: jax.Array  # int32 scalar, finished steps, skipped ones too
    params: Any  # float32; what is trained: all parameters, or low-rank adapters alone
    opt_state: Any  # optax state; moments are float32 and placed like their parameters
    skipped: jax.Array  # int32 scalar, steps whose update was left out because loss or gradient was not finite


class OnMesh:
    """A jitted function that always runs, and lowers, with its mesh as the ambient one (`jax.set_mesh`)."""

    def __init__(self, mesh: Mesh, jitted: Callable, *, check: Callable[..., None] | None = None):
        self.mesh = mesh
        self.jitted = jitted
        self._check = check

    def __call__(self, *arguments: Any) -> Any:
        """Runs the function, after its check of the arguments' shapes."""
        if self._check:
            self._check(*arguments)
        with jax.set_mesh(self.mesh):
            return self.jitted(*arguments)

    def lower(self, *arguments: Any) -> Any:
        """Lowers for ahead-of-time compilation; arguments may be `jax.ShapeDtypeStruct`s."""
        with jax.set_mesh(self.mesh):
            return self.jitted.lower(*arguments)


def component_sums(parts: Mapping[str, jax.Array], component_B: jax.Array, num_components: int) -> Metrics:
    """Loss and target tokens summed over each component's rows, two float32 arrays of `num_components`.

    Counts are exact up to 2^24 targets of one component in one batch.
    """
    mine_BxC = component_B[:, None] == jnp.arange(num_components)
    rows = {"component_loss_sum": parts["losses"].sum(axis=1), "component_tokens": parts["weights"].sum(axis=1)}
    return {name: jnp.where(mine_BxC, row_B[:, None], 0).sum(axis=0) for name, row_B in rows.items()}


def _micro_batches(batch: Batch, count: int) -> dict[str, jax.Array]:
    """Each array B x ... as count x B/count x ...; rows are dealt in turn, so that every device keeps its own."""
    return {name: jnp.swapaxes(x.reshape(x.shape[0] // count, count, *x.shape[1:]), 0, 1) for name, x in batch.items()}


def loss_and_gradient(
    model: LlamaConfig,
    params: Any,
    batch: Batch,
    *,
    z_loss: float,
    num_components: int,
    accumulation: int,
    dropout_key: jax.Array,
    whole: Callable[[Any], Any] = lambda params: params,
) -> tuple[jax.Array, Metrics, Any]:
    """Objective, component sums and float32 gradient of a batch, worked through in `accumulation` equal parts.

    Args:
      params: what is trained; `whole` makes the model's parameters of it.
    """
    token_count = jnp.sum(target_weights(batch))

    @functools.partial(jax.value_and_grad, has_aux=True)
    def objective(params, part, key):
        value, parts = loss(model, whole(params), part, z_loss=z_loss, token_count=token_count, dropout_key=key)
        return value, component_sums(parts, part["component"], num_components)

    if accumulation == 1:
        (value, sums), gradient = objective(params, batch, dropout_key)
        return value, sums, gradient

    def body(carry, item):
        index, part = item
        (value, sums), gradient = objective(params, part, jax.random.fold_in(dropout_key, index))
        return jax.tree.map(jnp.add, carry, (value, sums, gradient)), None

    zeros_C = jnp.zeros(num_components, jnp.float32)
    sums = {"component_loss_sum": zeros_C, "component_tokens": zeros_C}
    start = (jnp.float32(0), sums, jax.tree.map(jnp.zeros_like, params))
    return jax.lax.scan(body, start, (jnp.arange(accumulation), _micro_batches(batch, accumulation)))[0]


def state_shardings(
    model: LlamaConfig, optimizer: OptimizerConfig, mesh: Mesh, lora: LoraConfig = _ALL_PARAMETERS
) -> tuple[TrainState, TrainState]:
    """Shapes and placements of a whole `TrainState`; moments live where their parameters do.

    Raises:
      InputError: a parameter cannot be cut evenly over the mesh.
    """
    shapes = jax.eval_shape(functools.partial(_init, model, optimizer, lora), jax.random.key(0))
    whole = NamedSharding(mesh, PartitionSpec())
    placed = param_shardings(mesh, shapes.params)
    opt_state = optax.tree_utils.tree_map_params(
        make_optimizer(optimizer),
        lambda _, place: place,
        shapes.opt_state,
        placed,
        transform_non_params=lambda _: whole,
    )
    return shapes, TrainState(step=whole, params=placed, opt_state=opt_state, skipped=whole)


def base_shardings(model: LlamaConfig, mesh: Mesh) -> Any:
    """Placements of all of a model's parameters, trained or not."""
    return param_shardings(mesh, param_shapes(model))


def _init(model: LlamaConfig, optimizer: OptimizerConfig, lora: LoraConfig, key: jax.Array) -> TrainState:
    params = init_adapters(model, lora, key) if lora.rank else init_params(model, key)
    zero = jnp.zeros((), jnp.int32)
    return TrainState(step=zero, params=params, opt_state=make_optimizer(optimizer).init(params), skipped=zero)


@functools.lru_cache(maxsize=4)  # runs of one process, such as a study's, trace and load a program once
def make_train_step(
    model: LlamaConfig,
    optimizer: OptimizerConfig,
    mesh: Mesh,
    *,
    num_components: int = 1,
    z_loss: float = 0.0,
    gradient_accumulation: int = 1,
    seed: int = 0,
    lora: LoraConfig = _ALL_PARAMETERS,
) -> tuple[OnMesh, OnMesh]:
    """Compiles initialisation and step for a mesh.

    Args:
      model: The model.
      optimizer: AdamW and schedule.
      mesh: From `make_mesh`.
      num_components: Length of the per-component metrics.
      z_loss: Weight of log(Z)^2 in the objective.
      gradient_accumulation: Equal parts a batch is worked through in, to save memory; the result is the same up to
        rounding.
      seed: Of dropout; each step's randomness depends on it and the step alone, so that a resumed run repeats it.
      lora: With a rank above 0, adapters are trained and the model's own parameters are a third argument of the step,
        read only.

    Returns:
      `init_state(key) -> TrainState`, born sharded, and `train_step(state, batch) -> (state, metrics)`. The given state
      is donated: use it no more. The batch holds `tokens` int32 BxL+1 and `component` int32 B, and optionally
        `segment_ids`, `positions`, `loss_mask`,
      BxL+1.
      Metrics, float32 scalars on the device: `loss` (mean cross-entropy in nats), `gradient_norm` (before clipping),
        `learning_rate`,
      `applied` (1, or 0 where a non-finite loss or gradient made the step leave parameters and moments as they were),
      and the arrays of
      `num_components`: `component_loss_sum`, `component_tokens`.

    Raises:
      InputError: model and mesh do not fit; on a call, a batch that cannot be dealt evenly.
    """
    transformation = make_optimizer(optimizer)
    _, placed = state_shardings(model, optimizer, mesh, lora)
    whole = NamedSharding(mesh, PartitionSpec())

    def train_step(state: TrainState, batch: Batch, *base: Any) -> tuple[TrainState, Metrics]:
        value, sums, gradient = loss_and_gradient(
            model,
            state.params,
            batch,
            z_loss=z_loss,
            num_components=num_components,
            accumulation=gradient_accumulation,
            dropout_key=jax.random.fold_in(jax.random.key(seed), state.step),
            **({"whole": lambda adapters: with_adapters(base[0], adapters, lora)} if lora.rank else {}),
        )
        norm = optax.global_norm(gradient)
        rate = learning_rate(optimizer, state.step)
        updates, opt_state = transformation.update(gradient, state.opt_state, state.params)
        params = jax.tree.map(lambda p, u: p + rate * u, state.params, updates)
        applied = jnp.isfinite(value) & jnp.isfinite(norm)
        params, opt_state = jax.tree.map(
            lambda new, old: jnp.where(applied, new, old), (params, opt_state), (state.params, state.opt_state)
        )
        metrics = {
            "loss": sums["component_loss_sum"].sum() / jnp.maximum(sums["component_tokens"].sum(), 1),
            "gradient_norm": norm,
            "learning_rate": rate,
            "applied": applied.astype(jnp.float32),
            **sums,
        }
        skipped = state.skipped + jnp.where(applied, 0, 1)
        return TrainState(step=state.step + 1, params=params, opt_state=opt_state, skipped=skipped), metrics

    init_state = jax.jit(functools.partial(_init, model, optimizer, lora), out_shardings=placed)
    read = (placed, batch_sharding(mesh), *([base_shardings(model, mesh)] if lora.rank else []))
    jitted = jax.jit(train_step, donate_argnums=0, in_shardings=read, out_shardings=(placed, whole))
    check = functools.partial(_check_rows, mesh, gradient_accumulation)
    return OnMesh(mesh, init_state), OnMesh(mesh, jitted, check=check)


def _check_rows(mesh: Mesh, accumulation: int, _: Any, batch: Batch, *base: Any) -> None:
    check_batch(mesh, batch["tokens"].shape[0], gradient_accumulation=accumulation)


@functools.lru_cache(maxsize=4)
def make_eval_step(model: LlamaConfig, mesh: Mesh, *, num_components: int = 1) -> OnMesh:
    """Compiles `eval_step(params, batch) -> metrics` for a mesh: no dropout, no gradient, nothing donated.

    Metrics: `component_loss_sum` and `component_tokens`, float32 arrays of `num_components`, to be added up over
      batches, and the batch's
    mean
    `loss`.
    """
    whole, placed = NamedSharding(mesh, PartitionSpec()), base_shardings(model, mesh)

    def eval_step(params: Any, batch: Batch) -> Metrics:
        value, parts = loss(model, params, batch)
        return {"loss": value, **component_sums(parts, batch["component"], num_components)}

    jitted = jax.jit(eval_step, in_shardings=(placed, batch_sharding(mesh)), out_shardings=whole)
    return OnMesh(mesh, jitted, check=functools.partial(_check_rows, mesh, 1))
