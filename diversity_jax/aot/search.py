"""Meshes, batches and remat policies to try for a target, and the ones that fit, best first."""

from collections.abc import Callable, Iterator, Mapping
import dataclasses
from dataclasses import dataclass
import itertools
from typing import Any

from diversity_jax.aot.worker import CompileRequest
from diversity_jax.core.errors import InputError
from diversity_jax.model import MeshConfig

_MESH_FIELDS = tuple(field.name for field in dataclasses.fields(MeshConfig))
REMAT_BY_MEMORY = ("none", "save_matmuls", "full", "offload")  # the most memory first


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """The result of a request: the worker's report, and the estimate where the compiler could place the program."""

    request: CompileRequest
    report: Mapping[str, Any]
    estimate: Mapping[str, Any] | None

    @property
    def fits(self) -> bool:
        """Whether a device's memory is enough."""
        return self.estimate is not None and self.estimate["fits"]


Compile = Callable[[CompileRequest], Compiled]


def state_bytes(request: CompileRequest, shards: int) -> float:
    """Parameters and Adam's two moments, float32, on one of `shards` devices: below this no batch fits."""
    return 12 * request.model.parameter_count / shards


def meshes(request: CompileRequest) -> Iterator[MeshConfig]:
    """Meshes that parameters, heads and batch allow: all of fsdp first, then with tensor parallelism, then copies."""
    target, model = request.target, request.model
    for tensor, copies in itertools.product((1, 2, 4), (1, 2, 4, 8)):
        fsdp, rest = divmod(target.devices, tensor * copies)
        sizes = (model.num_heads, model.kv_heads, model.intermediate_size, model.vocab_size)
        if rest or any(size % tensor for size in sizes) or model.hidden_size % fsdp or copies % target.slices:
            continue
        if fsdp == 1 and copies > 1 and tensor > 1:
            continue
        if request.batch_size % (copies * fsdp) or state_bytes(request, fsdp * tensor) > target.chip.hbm_bytes:
            continue
        yield MeshConfig(data=copies, fsdp=fsdp, tensor=tensor, network_data=target.slices)


def candidates(request: CompileRequest) -> Iterator[list[CompileRequest]]:
    """Settings in families of growing memory: once one of a family does not fit, those after it will not either.

    A family has one mesh and batch, not in parts; its members save ever more for the backward pass.
    """
    for mesh in meshes(request):
        for rows in sorted({request.batch_size, 2 * request.batch_size, max(request.batch_size // 2, 1)}):
            fixed = dataclasses.replace(request, mesh=mesh, batch_size=rows, gradient_accumulation=1)
            models = [dataclasses.replace(request.model, remat=remat) for remat in reversed(REMAT_BY_MEMORY[:3])]
            yield [dataclasses.replace(fixed, model=model) for model in models]


def search(request: CompileRequest, compile_step: Compile, *, limit: int, say: Callable[[str], None]) -> list[Compiled]:
    """Compiles up to `limit` candidates and ranks those that fit by time a token, nothing overlapping.

    `say` is called with a line when something cannot be compiled, and at the limit.
    """
    fitting, tried = list[Compiled](), 0
    for family in candidates(request):
        for candidate in family:
            if tried >= limit:
                say(f"stopped after {limit} compilations; --limit tries more")
                return _ranked(fitting)
            tried += 1
            try:
                result = compile_step(candidate)
                if not result.fits and (parted := in_parts(result)) and tried < limit:
                    tried += 1
                    result = compile_step(parted)
            except InputError as error:
                say(str(error))
                break
            if not result.fits:
                break
            fitting.append(result)
    return _ranked(fitting)


def in_parts(unfit: Compiled) -> CompileRequest | None:
    """The same step with its batch in the fewest parts that should fit by the compiler's figure; None: none would.

    Every part gathers the parameters again, which often costs less than recomputing layers.
    """
    request, capacity = unfit.request, unfit.request.target.chip.hbm_bytes
    needed = unfit.report.get("needed_bytes") or (unfit.estimate and unfit.estimate["memory_total_bytes"])
    sizes = request.mesh.resolved(request.target.devices)
    # Parameters, moments and one gradient stay whatever the number of parts.
    fixed = state_bytes(request, sizes["fsdp"] * sizes["tensor"]) * 4 / 3
    if not needed or fixed >= 0.9 * capacity:
        return None
    fewest = (needed - fixed) / (0.9 * capacity - fixed)
    for parts in (2, 4, 8):
        rows = sizes["data"] * sizes["fsdp"] * request.gradient_accumulation * parts
        if parts >= fewest and request.batch_size % rows == 0:
            return dataclasses.replace(request, gradient_accumulation=request.gradient_accumulation * parts)
    return None


def _ranked(fitting: list[Compiled]) -> list[Compiled]:
    return sorted(fitting, key=lambda result: -result.estimate["tokens_per_second"][0] if result.estimate else 0.0)


def smaller(request: CompileRequest) -> Iterator[CompileRequest]:
    """Changes that need less memory and leave the trained model as it is where they can, least costly first.

    The batch in two parts, then more remat, then more parts, then all cuts over fsdp, and only then a smaller batch.
    """
    stronger = REMAT_BY_MEMORY[REMAT_BY_MEMORY.index(request.model.remat) + 1 : 3]
    model = dataclasses.replace(request.model, remat="full" if stronger else request.model.remat)
    sizes = request.mesh.resolved(request.target.devices)
    rows = sizes["data"] * sizes["fsdp"]
    if stronger and request.batch_size % (2 * rows * request.gradient_accumulation) == 0:
        yield dataclasses.replace(request, gradient_accumulation=2 * request.gradient_accumulation)
    for remat in stronger:
        yield dataclasses.replace(request, model=dataclasses.replace(request.model, remat=remat))
    for parts in (2, 4, 8, 16):
        if request.batch_size % (rows * request.gradient_accumulation * parts) == 0:
            yield dataclasses.replace(request, model=model, gradient_accumulation=request.gradient_accumulation * parts)
    mesh = MeshConfig(data=request.target.slices, fsdp=-1, tensor=sizes["tensor"], network_data=request.target.slices)
    if sizes["data"] > request.target.slices and request.batch_size % rows == 0:
        yield dataclasses.replace(request, model=model, mesh=mesh)
    batch = request.batch_size // 2
    while batch >= rows:
        if batch % rows == 0:
            yield dataclasses.replace(request, model=model, batch_size=batch, gradient_accumulation=1)
        batch //= 2


def suggestion(request: CompileRequest, compile_step: Compile, *, limit: int = 4) -> Compiled | None:
    """The first of `smaller` that compiles and fits; None where none of the first `limit` does."""
    if state_bytes(request, request.target.devices) > request.target.chip.hbm_bytes:
        return None
    for candidate in itertools.islice(smaller(request), limit):
        try:
            result = compile_step(candidate)
        except InputError:
            continue
        if result.fits:
            return result
    return None


def flags(request: CompileRequest, changed: CompileRequest) -> str:
    """What to put on the command line to go from one request to the other."""
    pairs = {
        "model.remat": (request.model.remat, changed.model.remat),
        "train.batch_size": (request.batch_size, changed.batch_size),
        "train.gradient_accumulation": (request.gradient_accumulation, changed.gradient_accumulation),
        **{f"mesh.{axis}": (getattr(request.mesh, axis), getattr(changed.mesh, axis)) for axis in _MESH_FIELDS},
    }
    return " ".join(f"--config.{name}={new}" for name, (old, new) in pairs.items() if old != new)
