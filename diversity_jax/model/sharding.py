"""Sharding of all arrays: the device mesh, the table from logical to mesh axes, and the parameters' logical axes."""

from collections.abc import Sequence
import functools
import math
from typing import Any

import jax
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
import numpy as np

from diversity_jax.core.errors import InputError
from diversity_jax.model.config import MESH_AXES, MeshConfig

GATHERED = "gathered"  # checkpoint name of parameters that were gathered over fsdp, for remat policies

# Logical axis -> mesh axes. Parameters are sharded over fsdp along D and over tensor along heads, F and V; activations
# over data and fsdp along the batch.
RULES: dict[str, str | tuple[str, ...] | None] = {
    "batch": ("data", "fsdp"),
    "length": "sequence",
    "layers": None,
    "embed": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "head": None,
    "mlp": "tensor",
    "vocab": "tensor",
    "norm": None,
    "rank": None,
    "activation_embed": None,
}

# Logical axes of each parameter, by its path in the tree.
PARAMETER_AXES: dict[str, tuple[str, ...]] = {
    "embed": ("vocab", "embed"),  # [V, D]
    "head": ("embed", "vocab"),  # [D, V]
    "norm": ("norm",),  # [D]
    "blocks/attention_norm": ("layers", "norm"),  # [N, D]
    "blocks/attention_post_norm": ("layers", "norm"),  # [N, D]
    "blocks/attention/query": ("layers", "embed", "heads", "head"),  # [N, D, H, Dh]
    "blocks/attention/key": ("layers", "embed", "kv_heads", "head"),  # [N, D, K, Dh]
    "blocks/attention/value": ("layers", "embed", "kv_heads", "head"),  # [N, D, K, Dh]
    "blocks/attention/output": ("layers", "heads", "head", "embed"),  # [N, H, Dh, D]
    "blocks/attention/query_bias": ("layers", "heads", "head"),  # [N, H, Dh]
    "blocks/attention/key_bias": ("layers", "kv_heads", "head"),  # [N, K, Dh]
    "blocks/attention/value_bias": ("layers", "kv_heads", "head"),  # [N, K, Dh]
    "blocks/attention/output_bias": ("layers", "norm"),  # [N, D]
    "blocks/attention/query_norm": ("layers", "head"),  # [N, Dh]
    "blocks/attention/key_norm": ("layers", "head"),  # [N, Dh]
    "blocks/attention/full_query_norm": ("layers", "heads", "head"),  # [N, H, Dh]
    "blocks/attention/full_key_norm": ("layers", "kv_heads", "head"),  # [N, K, Dh]
    "blocks/mlp_norm": ("layers", "norm"),  # [N, D]
    "blocks/mlp_post_norm": ("layers", "norm"),  # [N, D]
    "blocks/mlp/gate": ("layers", "embed", "mlp"),  # [N, D, F]
    "blocks/mlp/up": ("layers", "embed", "mlp"),  # [N, D, F]
    "blocks/mlp/down": ("layers", "mlp", "embed"),  # [N, F, D]
    "blocks/mlp/gate_bias": ("layers", "mlp"),  # [N, F]
    "blocks/mlp/up_bias": ("layers", "mlp"),  # [N, F]
    "blocks/mlp/down_bias": ("layers", "norm"),  # [N, D]
}
VECTORS = ("norm", "bias")  # suffixes of the names of parameters that are no matrices


def input_axes(matrix: str) -> int:
    """Number of input axes of a layer's matrix, not counting the axis of layers."""
    return 2 if matrix == "output" else 1


# Low-rank adapters are sharded so that their product is sharded as their matrix.
for _path, _axes in list(PARAMETER_AXES.items()):
    if _path.startswith("blocks/") and not _path.endswith(VECTORS):
        _split = 1 + input_axes(_path.rpartition("/")[2])
        PARAMETER_AXES |= {f"{_path}/a": (*_axes[:_split], "rank"), f"{_path}/b": ("layers", "rank", *_axes[_split:])}


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh `(data, fsdp, tensor, sequence)` over `devices` (default: all), in an order that JAX chooses.

    Raises:
      InputError: the axes do not multiply to the number of devices, or the network axes to the number of slices.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = config.resolved(len(devices))
    types = (AxisType.Auto,) * len(MESH_AXES)
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices not in (1, config.slices):
        raise InputError(
            f"mesh.network_data={config.network_data}, mesh.network_fsdp={config.network_fsdp}: the devices are "
            f"{slices} slices; set mesh.network_data={slices} and mesh.data to a multiple of it"
        )
    if config.slices == 1:
        return jax.make_mesh(tuple(sizes.values()), MESH_AXES, axis_types=types, devices=devices)
    crossing = (config.network_data, config.network_fsdp, 1, 1)
    inside = tuple(size // slices for size, slices in zip(sizes.values(), crossing, strict=True))
    if slices == config.slices:
        ordered = mesh_utils.create_hybrid_device_mesh(inside, crossing, devices)
    else:  # nodes of GPUs, or one machine that simulates slices: consecutive devices are neighbours
        by_slice = np.array(devices, dtype=object).reshape(*crossing, *inside)
        ordered = by_slice.transpose(0, 4, 1, 5, 2, 6, 3, 7).reshape(tuple(sizes.values()))
    return Mesh(ordered, MESH_AXES, axis_types=types)


def spec(*logical: str | None) -> PartitionSpec:
    """The partition of an array whose axes have these logical names; None: not sharded."""
    return PartitionSpec(*(RULES[name] if name is not None else None for name in logical))


def constrain(x: Array, mesh: Mesh | None, *logical: str | None) -> Array:
    """Requires this layout of `x`; without a mesh, or with one device, does nothing."""
    if mesh is None or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec(*logical)))


def gathered(layer: Any, prefix: str, mesh: Mesh | None) -> Any:
    """One layer's parameters gathered over fsdp; each device then multiplies its own rows by full matrices.

    Without this the compiler multiplies by one shard of a matrix at a time and accumulates the output in memory, which
    on TPUs took twice the time of the products themselves. Gradients are reduce-scattered. Without fsdp sharding the
    parameters are returned unchanged: a loop over layers would store a copy of a new array for the backward pass.
    """
    if mesh is None or mesh.shape["fsdp"] == 1:
        return layer

    def gather(path: tuple[Any, ...], leaf: Array) -> Array:
        _, *logical = PARAMETER_AXES[f"{prefix}/{path_name(path)}"]
        return checkpoint_name(_gather(mesh, tuple(logical), leaf), GATHERED) if "embed" in logical else leaf

    return jax.tree_util.tree_map_with_path(gather, layer)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _gather(mesh: Mesh | None, logical: tuple[str, ...], leaf: Array) -> Array:
    return constrain(leaf, mesh, *(None if axis == "embed" else axis for axis in logical))


def _scatter(mesh: Mesh | None, logical: tuple[str, ...], _: None, gradient: Array) -> tuple[Array]:
    """Constrained to be full, then sharded, which compiles to one reduce-scatter after the product. The gradient of a
    plain constraint would stay full on every device; a sharded one alone would again be computed shard by shard."""
    return (constrain(_gather(mesh, logical, gradient), mesh, *logical),)


_gather.defvjp(lambda mesh, logical, leaf: (_gather(mesh, logical, leaf), None), _scatter)


def path_name(path: tuple[Any, ...]) -> str:
    """`blocks/mlp/up` from a key path of `jax.tree_util`."""
    return "/".join(str(getattr(key, "key", getattr(key, "name", key))) for key in path)


def _shards(mesh: Mesh, mesh_axes: str | tuple[str, ...] | None) -> int:
    names = () if mesh_axes is None else (mesh_axes,) if isinstance(mesh_axes, str) else mesh_axes
    return math.prod(mesh.shape[name] for name in names)


def param_shardings(mesh: Mesh, params: Any) -> Any:
    """A `NamedSharding` for every parameter of a tree, or of its shapes, by `PARAMETER_AXES` and `RULES`.

    Raises:
      InputError: an axis of a parameter cannot be sharded evenly.
    """

    def sharding(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        name = path_name(path)
        logical = PARAMETER_AXES[name]
        for axis, size in zip(logical, leaf.shape, strict=True):
            if size % (shards := _shards(mesh, RULES[axis])):
                raise InputError(
                    f"mesh.{RULES[axis]}={shards}: cannot cut axis {axis!r} ({size}) of parameter {name} {leaf.shape} "
                    f"evenly; choose a divisor of {size}, and use mesh.data for the other devices"
                )
        return NamedSharding(mesh, spec(*logical))

    return jax.tree_util.tree_map_with_path(sharding, params)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Sharding of arrays whose first axis is the batch: over data and fsdp, other axes not sharded."""
    return NamedSharding(mesh, spec("batch"))


def row_shards(mesh: Mesh) -> int:
    """Number of shards of the batch."""
    return _shards(mesh, RULES["batch"])


def with_shardings(shapes: Any, shardings: Any) -> Any:
    """`jax.ShapeDtypeStruct`s with these shardings, of a tree of arrays or shapes."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)


def check_batch(mesh: Mesh, rows: int, *, gradient_accumulation: int = 1) -> None:
    """Raises `InputError` where `rows` is no multiple of data x fsdp x gradient accumulation."""
    shards = row_shards(mesh)
    if rows % (shards * gradient_accumulation):
        raise InputError(
            f"batch of {rows} rows: must be a multiple of mesh.data * mesh.fsdp * gradient_accumulation = "
            f"{mesh.shape['data']} * {mesh.shape['fsdp']} * {gradient_accumulation} = {shards * gradient_accumulation}"
        )
