"""Search over meshes, batches and remat policies for a target, step time estimates, and the printed report."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
from dataclasses import dataclass
import itertools
import math
from typing import Any

from diversity_jax.aot.worker import CompileRequest
from diversity_jax.core.chips import SOURCES_READ_ON
from diversity_jax.core.errors import InputError
from diversity_jax.model import LlamaConfig, MeshConfig
from diversity_jax.model.config import LoraConfig

_MESH_FIELDS = tuple(field.name for field in dataclasses.fields(MeshConfig))
_NO_LORA = LoraConfig()
REMAT_BY_MEMORY = ("none", "save_matmuls", "full", "offload")  # the most memory first


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """The worker's report on a request, and the estimate where compilation succeeded."""

    request: CompileRequest
    report: Mapping[str, Any]
    estimate: Mapping[str, Any] | None

    @property
    def fits(self) -> bool:
        """Whether the program fits into a device's memory."""
        return self.estimate is not None and self.estimate["fits"]


Compile = Callable[[CompileRequest], Compiled]


def state_bytes(request: CompileRequest, shards: int) -> float:
    """Bytes of float32 parameters and Adam's two moments on one of `shards` devices, without any activations."""
    frozen = request.model.parameter_count if request.lora.rank else 0
    return 4 * (frozen + 3 * trained_parameters(request)) / shards


def trained_parameters(request: CompileRequest) -> int:
    """The number of parameters that have a gradient and moments."""
    return request.lora.parameter_count(request.model) if request.lora.rank else request.model.parameter_count


def meshes(request: CompileRequest) -> Iterator[MeshConfig]:
    """Meshes whose axes divide parameters, heads and batch: fsdp first, then tensor parallelism, then data."""
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
    """Lists of settings with growing memory: once one of a list does not fit, those after it will not either.

    A list has one mesh and batch without gradient accumulation; its items store ever more for the backward pass.
    """
    for mesh in meshes(request):
        for rows in sorted({request.batch_size, 2 * request.batch_size, max(request.batch_size // 2, 1)}):
            fixed = dataclasses.replace(request, mesh=mesh, batch_size=rows, gradient_accumulation=1)
            models = [dataclasses.replace(request.model, remat=remat) for remat in reversed(REMAT_BY_MEMORY[:3])]
            yield [dataclasses.replace(fixed, model=model) for model in models]


def search(request: CompileRequest, compile_step: Compile, *, limit: int, say: Callable[[str], None]) -> list[Compiled]:
    """Compiles up to `limit` candidates and ranks those that fit by time per token without overlap.

    Args:
      say: called with a line when a candidate cannot be compiled, and at the limit.
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
                if not result.fits and (accumulating := in_parts(result)) and tried < limit:
                    tried += 1
                    result = compile_step(accumulating)
            except InputError as error:
                say(str(error))
                break
            if not result.fits:
                break
            fitting.append(result)
    return _ranked(fitting)


def in_parts(unfit: Compiled) -> CompileRequest | None:
    """The step with the fewest gradient accumulation parts that should fit by the compiler's figure; None: none.

    Every part gathers the parameters again, which often costs less than recomputing layers.
    """
    request, capacity = unfit.request, unfit.request.target.chip.hbm_bytes
    needed = unfit.report.get("needed_bytes") or (unfit.estimate and unfit.estimate["memory_total_bytes"])
    sizes = request.mesh.resolved(request.target.devices)
    # Parameters, moments and one gradient do not depend on the number of parts.
    shards = sizes["fsdp"] * sizes["tensor"]
    fixed = state_bytes(request, shards) + 4 * trained_parameters(request) / shards
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
    """Settings that need less memory, least costly first.

    Gradient accumulation in two parts, then more remat, then more parts, then fsdp instead of data, and only then a
    smaller batch, which changes the trained model.
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
    """The first of `smaller` that compiles and fits; None if none of the first `limit` does."""
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
    """The command-line options that change one request into the other."""
    pairs = {
        "model.remat": (request.model.remat, changed.model.remat),
        "train.batch_size": (request.batch_size, changed.batch_size),
        "train.gradient_accumulation": (request.gradient_accumulation, changed.gradient_accumulation),
        **{f"mesh.{axis}": (getattr(request.mesh, axis), getattr(changed.mesh, axis)) for axis in _MESH_FIELDS},
    }
    return " ".join(f"--config.{name}={new}" for name, (old, new) in pairs.items() if old != new)


ASSUMPTIONS = (
    "products at the data sheet's bfloat16 peak; no kernel is that fast, so measured MFU stays below the upper end",
    "memory traffic from the program's own reads and writes at the data sheet's bandwidth; not that inside kernels",
    "collectives as rings: one torus axis, both directions (TPU), or NVLink; across slices at the network's speed",
    "fastest: all four overlap perfectly (the largest alone); slowest: none do (their sum)",
)
# Share of all token pairs that a kernel computes, and its backward pass's products as a multiple of the forward pass's.
_ATTENTION_WORK = {
    "splash": (0.5, 2.5),
    "cudnn": (0.5, 2.5),
    "chunked": (0.5625, 2.5),
    "plain": (1.0, 2.0),
    "reference": (1.0, 2.0),
}
_MEMORY_KINDS = ("arguments", "outputs", "temporaries", "code")
USABLE_GPU_SHARE = 0.92  # of a GPU's memory, with XLA_PYTHON_CLIENT_MEM_FRACTION=0.92; JAX's default takes 0.75


def executed_flops_per_token(config: LlamaConfig, length: int, attention: str, lora: LoraConfig = _NO_LORA) -> float:
    """FLOPs per trained token as executed: with recomputation by remat, and the pairs that the kernel computes."""
    share, backward = _ATTENTION_WORK[attention]
    full = len(config.layers_without_window)
    window = min(config.sliding_window or length, length) if attention in ("splash", "cudnn") else length
    pairs = (config.num_layers - full) * window + full * length
    scores = 4 * config.num_heads * config.head_size * pairs * share
    layers = 2 * config.num_layers * config.layer_matrix_parameters
    head = 2 * config.vocab_size * config.hidden_size
    again = {"none": 0, "save_matmuls": 0, "full": layers + scores, "offload": layers + scores}[config.remat]
    # An adapter's gradient is that of its matrix, times its other factor.
    trained = sum(2 * math.prod(config.matrix_sides[name]) * config.num_layers for name in lora.matrices)
    gradients = trained if lora.rank else layers + head
    return 2 * (layers + head) + gradients + (1 + backward) * scores + again


def estimate(request: CompileRequest, report: Mapping[str, Any]) -> dict[str, Any]:
    """Seconds by resource, ranges of step time and MFU, memory, and the limiting resource of a compiled step."""
    from diversity_jax.training.throughput import flops_per_token

    config, target, length = request.model, request.target, request.sequence_length
    chip, tokens = target.chip, request.batch_size * length
    sent = {False: 0, True: 0}  # by whether it crosses slices
    for row in report["collectives"]:
        sent[row["crosses_slices"]] += row["sent_bytes"]
    executed = executed_flops_per_token(config, length, report["attention"], request.lora) * tokens
    seconds = {
        "compute": executed / target.devices / chip.peak_flops,
        "memory": report["hbm_traffic_bytes"] / chip.hbm_bytes_per_second,
        "interconnect": sent[False] / chip.link_bytes_per_second,
        "network": sent[True] / chip.network_bytes_per_second,
    }
    fastest, slowest = max(seconds.values()), sum(seconds.values())
    # The state is donated, so outputs count only where they are new.
    memory = sum(report["memory_bytes"][kind] for kind in _MEMORY_KINDS)
    capacity = chip.hbm_bytes * (USABLE_GPU_SHARE if chip.platform == "cuda" else 1)
    peak = target.devices * chip.peak_flops
    kinds = {"mfu": False, "mfu_causal": True}
    useful = {
        name: flops_per_token(config, length, causal=causal, lora=request.lora) * tokens
        for name, causal in kinds.items()
    }
    return {
        "flops": {"executed": executed, "model": useful["mfu"], "model_causal": useful["mfu_causal"]},
        "seconds": seconds,
        "step_seconds": [fastest, slowest],
        "tokens_per_second": [tokens / slowest, tokens / fastest],
        **{name: [flops / peak / slowest, flops / peak / fastest] for name, flops in useful.items()},
        "memory_total_bytes": memory,
        "memory_capacity_bytes": capacity,
        "fits": memory <= capacity,
        "binds": max(seconds, key=seconds.__getitem__) if memory <= capacity else "capacity",
    }


_BINDS = {
    "compute": "compute: the matrix products",
    "memory": "HBM: reading and writing device memory",
    "interconnect": "ICI/NVLink: collectives inside a slice or node",
    "network": "DCN: collectives between slices or nodes",
    "capacity": "capacity: it does not fit into device memory",
}


def gib(count: float) -> str:
    """`12.3 GiB`."""
    return f"{count / 2**30:.2f} GiB"


def quantity(count: float, unit: str) -> str:
    """Three digits with an SI prefix, such as `1.23 TFLOP`."""
    for prefix, size in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {prefix}{unit}"
    return f"{count:.3g} {unit}"


def milliseconds(seconds: float) -> str:
    """Whole milliseconds from 100 on, three digits below."""
    return f"{1000 * seconds:,.0f}" if seconds >= 0.1 else f"{1000 * seconds:.3g}"


def _span(values: Sequence[float], form: Callable[[float], str]) -> str:
    return " to ".join(map(form, values))


def setting(request: CompileRequest) -> str:
    """Batch, remat and mesh in one line."""
    sizes = request.mesh.resolved(request.target.devices)
    mesh = ", ".join(f"{axis} {size}" for axis, size in sizes.items() if size > 1) or "one device"
    parts = f" in {request.gradient_accumulation} parts" if request.gradient_accumulation > 1 else ""
    return f"batch {request.batch_size} x {request.sequence_length}{parts}, remat {request.model.remat}, mesh {mesh}"


def lines(compiled: Compiled) -> list[str]:
    """The full report; where the step did not fit, its first lines and the memory needed."""
    request, report, estimate = compiled.request, compiled.report, compiled.estimate
    target, model = request.target, request.model
    head = [
        f"{target.name}: {target.devices} devices; {model.parameter_count:,} parameters; {setting(request)}",
        f"attention        {report['attention']} ({report['attention_reason']})",
    ]
    if estimate is None:
        needed = f"needs {gib(report['needed_bytes'])}, " if report["needed_bytes"] else ""
        capacity = gib(target.chip.hbm_bytes)
        return [*head, f"memory           does not fit: {needed}a device has {capacity}; binds: capacity"]
    return [*head, *_memory(request, report, estimate), *_work(report, estimate), *_time(estimate, target)]


def _memory(request: CompileRequest, report: Mapping[str, Any], estimate: Mapping[str, Any]) -> list[str]:
    memory = report["memory_bytes"]
    share = estimate["memory_total_bytes"] / estimate["memory_capacity_bytes"]
    parts = ", ".join(f"{kind} {gib(memory[kind])}" for kind in _MEMORY_KINDS)
    host = f"; host memory {gib(memory['host'])}" if memory["host"] else ""
    gpu = f" (with XLA_PYTHON_CLIENT_MEM_FRACTION={USABLE_GPU_SHARE})" if request.target.chip.platform == "cuda" else ""
    fits = "fits" if estimate["fits"] else "DOES NOT FIT"
    used = f"{gib(estimate['memory_total_bytes'])} of {gib(estimate['memory_capacity_bytes'])}, {share:.0%}"
    return [f"memory a device  {parts}{host}", f"                 {used}{gpu}: {fits}"]


def _work(report: Mapping[str, Any], estimate: Mapping[str, Any]) -> list[str]:
    flops = {name: quantity(value, "FLOP") for name, value in estimate["flops"].items()}
    lines = [
        f"FLOPs a step     {flops['model']} of the model, {flops['model_causal']} counting causal pairs only; "
        f"executed with recomputation {flops['executed']}",
        f"HBM traffic      {quantity(report['hbm_traffic_bytes'], 'B')} a device and step",
        "collectives      a device and step, loops counted by their rounds"
        + ("" if report["collectives"] else ": none"),
    ]
    for row in report["collectives"]:
        where = "across slices" if row["crosses_slices"] else "inside a slice"
        lines.append(
            f"  {row['kind']:<19}{row['count']:>6} x of {row['devices']:>3} devices {where}: "
            f"{quantity(row['payload_bytes'], 'B'):>8}, sent {quantity(row['sent_bytes'], 'B')}"
        )
    kernels = ", ".join(f"{name} x {count}" for name, count in sorted(report["kernels"].items()))
    lines += [f"kernels          {kernels}"] if kernels else []
    if report["unknown_loops"]:
        lines.append(f"note             {report['unknown_loops']} loops of unknown length count as one round")
    return lines


def _time(estimate: Mapping[str, Any], target: Any) -> list[str]:
    seconds = ", ".join(f"{name} {milliseconds(value)} ms" for name, value in estimate["seconds"].items() if value)
    chip = target.chip
    return [
        f"roofline         {seconds}",
        f"step time        {_span(estimate['step_seconds'], milliseconds)} ms, "
        f"{_span(estimate['tokens_per_second'], '{:,.0f}'.format)} tokens/s",
        f"MFU              {_span([100 * value for value in estimate['mfu']], '{:.1f}'.format)} %; causal pairs only "
        f"{_span([100 * value for value in estimate['mfu_causal']], '{:.1f}'.format)} %",
        f"binds            {_BINDS[estimate['binds']]}",
        f"assumed          {chip.peak_flops / 1e12:,.0f} TFLOP/s, {chip.hbm_bytes_per_second / 1e9:,.0f} GB/s of HBM, "
        f"{chip.link_bytes_per_second / 1e9:,.0f} GB/s in a ring, {chip.network_bytes_per_second / 1e9:,.4g} GB/s of "
        f"network ({chip.source}; read {SOURCES_READ_ON})",
        *[f"                 {assumption}" for assumption in ASSUMPTIONS],
    ]


def ranking(rows: Sequence[Compiled]) -> list[str]:
    """A table of settings that fit, in the given order."""
    table = [f"{'':>3} {'ms a step':>15} {'tokens/s':>19} {'MFU %':>11} {'memory':>10}  {'binds':<12} setting"]
    for number, row in enumerate(rows, 1):
        request, estimate = row.request, row.estimate or {}
        times = _span(estimate["step_seconds"], milliseconds)
        speed = _span([value / 1000 for value in estimate["tokens_per_second"]], "{:,.0f}".format) + " k"
        mfu = _span([100 * value for value in estimate["mfu"]], "{:.0f}".format)
        memory = f"{estimate['memory_total_bytes'] / 2**30:.1f} GiB"
        table.append(
            f"{number:>3} {times:>15} {speed:>19} {mfu:>11} {memory:>10}  {estimate['binds']:<12} {setting(request)}"
        )
    return table
