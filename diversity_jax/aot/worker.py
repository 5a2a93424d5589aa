"""Compiles one training step for absent chips, in a process of its own, since the compiler may crash.

Reads a pickled `CompileRequest` from standard input and writes one line of JSON, its report, to standard output.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
import json
import math
import os
import pickle
import re
import sys
import time
from typing import Any

from diversity_jax.core.chips import CHIPS, Chip, parse_slice
from diversity_jax.core.errors import InputError
from diversity_jax.model import LlamaConfig, MeshConfig
from diversity_jax.model.config import LoraConfig
from diversity_jax.training.config import OptimizerConfig


@dataclass(frozen=True, kw_only=True)
class Target:
    """One or several slices of chips: `v5e:4x4*2` is two slices of 16, joined by the data-centre network."""

    chip: Chip
    shape: tuple[int, ...]  # of one slice
    slices: int = 1

    @property
    def devices(self) -> int:
        """JAX devices of all slices."""
        return math.prod(self.shape) * self.chip.devices_per_chip * self.slices

    @property
    def shape_name(self) -> str:
        """Such as `4x4`."""
        return "x".join(map(str, self.shape))

    @property
    def name(self) -> str:
        """As on the command line."""
        return f"{self.chip.name}:{self.shape_name}" + (f"*{self.slices}" if self.slices > 1 else "")


def parse_target(text: str) -> Target:
    """Parses a name such as `v5e:4x4`, `v5p:2x2x4*2`, `h100:8` or a cloud's `v6e-16`.

    Raises:
      InputError: the chip is unknown, or its slices have no such shape.
    """
    name, star, slices = text.partition("*")
    if slice_ := parse_slice(name):
        text = f"{slice_.family.chip}:{slice_.topology}{star}{slices}"
    match = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)(?:\*(\d+))?", text.strip().lower())
    if match is None or match[1] not in CHIPS:
        chips = ", ".join(CHIPS)
        raise InputError(f"--topology {text}: is not known; choose CHIP:SHAPE with a chip of {chips}, such as v5e:4x4")
    chip = CHIPS[match[1]]
    target = Target(chip=chip, shape=tuple(map(int, match[2].split("x"))), slices=int(match[3] or 1))
    dimensions = 1 + chip.example.partition(":")[2].count("x")  # the name may hold an x, too
    if len(target.shape) != dimensions or not target.devices:
        raise InputError(f"--topology {text}: a slice of {chip.name} has {dimensions} sizes, such as {chip.example}")
    if chip.platform == "cuda" and target.shape[0] > 8:
        raise InputError(f"--topology {text}: a node has up to 8 GPUs; for two nodes of 8 write {chip.name}:8*2")
    return target


@dataclass(frozen=True, kw_only=True)
class CompileRequest:
    """A training step and its target."""

    model: LlamaConfig
    optimizer: OptimizerConfig
    mesh: MeshConfig
    target: Target
    batch_size: int  # rows of the global batch
    sequence_length: int  # tokens a row predicts
    gradient_accumulation: int = 1
    z_loss: float = 0.0
    num_components: int = 1
    packed: bool = False  # the batch holds segment ids and positions, for attention within documents
    lora: LoraConfig = field(default_factory=LoraConfig)
    effort: str = "default"  # of the compiler; "O1" takes half the time and may use a little more memory


# Values that only libtpu's start-up reads: every TPU machine sets them, other machines have to.
_TPU_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5e-16",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
}


def environment(platform: str, base: Mapping[str, str]) -> dict[str, str]:
    """The environment of a worker: JAX on one CPU, with what compiling for `platform` (tpu, cuda) needs."""
    variables = {**base, "JAX_PLATFORMS": "cpu"}
    variables.pop("JAX_COMPILATION_CACHE_DIR", None)  # holds programs for devices of this machine
    if platform == "tpu":
        return variables | _TPU_ENVIRONMENT | {"ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    # Without a GPU kernels cannot be timed, so autotuning is turned off.
    return variables | {"XLA_FLAGS": f"{base.get('XLA_FLAGS', '')} --xla_gpu_autotune_level=0".strip()}


def gpu_description(target: Target) -> str:
    """An H100 or H200 as a text protocol buffer with its limits, sizes and speeds, which XLA accepts as a device."""
    chip = target.chip
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448 shared_memory_per_core: 233472
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  registers_per_core_limit: 65536 registers_per_block_limit: 65536 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  memory_bandwidth: {int(chip.hbm_bytes_per_second)} device_memory_size: {chip.hbm_bytes}
  cuda_compute_capability {{ major: 9 }} device_vendor: "NVIDIA Corporation"
}}
platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 10 }}
device_description_str: "NVIDIA {chip.name.upper()} (described)"
"""


def describe_topology(target: Target) -> list[Any]:
    """Device descriptions of an absent target, to make a mesh of.

    Raises:
      InputError: its compiler is not installed, or knows no such slice.
    """
    from jax.experimental import topologies

    try:
        if target.chip.platform == "cuda":
            gpus = {"target_config": gpu_description(target), "topology": f"1x{target.slices}x{target.shape[0]}"}
            return topologies.get_topology_desc(platform="cuda", topology_name="", **gpus).devices
        settings: dict[str, Any] = {"chip_config_name": "megacore"} if target.chip.name == "v4" else {}
        if target.slices > 1:
            settings["num_slices"] = target.slices
        if set(target.shape) == {1}:
            settings["chips_per_host_bounds"] = [1, 1, 1]
        name = f"{target.chip.name}:{target.shape_name}"
        return topologies.get_topology_desc(platform="tpu", topology_name=name, **settings).devices
    except Exception as error:  # libtpu and XLA have no error types of their own
        message = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise InputError(f"--topology {target.name}: {_remedy(target, message)}") from None


def _remedy(target: Target, message: str) -> str:
    import importlib.util

    package, extra = ("libtpu", "tpu") if target.chip.platform == "tpu" else ("jax_cuda12_plugin", "cuda")
    if importlib.util.find_spec(package) is None:
        return f"its compiler is not installed; pip install 'diversity_jax[{extra}]' brings {package}"
    return f"the compiler refuses it ({message}); choose a slice that exists"


def compile_and_measure(request: CompileRequest) -> dict[str, Any]:
    """Compiles the request and analyses the program; returns the report.

    Raises:
      InputError: there is no such compiler or slice, or mesh and batch do not fit.
    """
    import jax

    from diversity_jax.model import check_batch, make_mesh
    from diversity_jax.model.attention import choose_attention

    devices = describe_topology(request.target)
    if request.effort != "default":
        jax.config.update("jax_optimization_level", request.effort)
    mesh = make_mesh(request.mesh, devices)
    check_batch(mesh, request.batch_size, gradient_accumulation=request.gradient_accumulation)
    platform, length, shards = devices[0].platform, request.sequence_length, mesh.shape["sequence"]
    kernel, why = choose_attention(request.model, platform, length, segments=request.packed, sequence_shards=shards)
    report: dict[str, Any] = {"mesh": dict(mesh.shape), "attention": kernel, "attention_reason": why}
    report["jax"] = jax.__version__
    started = time.perf_counter()
    lowered = _lower(request, mesh)
    report["lowering_seconds"] = round(time.perf_counter() - started, 1)
    started = time.perf_counter()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        size = re.search(r"(?:temporaries \(|[Uu]sed )([\d.]+)([KMGT])", str(error))
        needed_bytes = float(size[1]) * 1024 ** (" KMGT".index(size[2])) if size else None
        return report | {"fits": False, "compiler_said": str(error).splitlines()[0], "needed_bytes": needed_bytes}
    report["compile_seconds"] = round(time.perf_counter() - started, 1)
    return report | {"fits": True} | _measure(compiled, mesh, request.target)


def _lower(request: CompileRequest, mesh: Any) -> Any:
    import jax
    import jax.numpy as jnp

    from diversity_jax.model import batch_sharding
    from diversity_jax.model.llama import param_shapes
    from diversity_jax.model.sharding import with_shardings
    from diversity_jax.training.step import make_train_step, model_shardings, state_shardings

    _, step = make_train_step(
        request.model,
        request.optimizer,
        mesh,
        num_components=request.num_components,
        z_loss=request.z_loss,
        gradient_accumulation=request.gradient_accumulation,
        lora=request.lora,
    )

    state = with_shardings(*state_shardings(request.model, request.optimizer, mesh, request.lora))
    frozen = None
    if request.lora.rank:
        frozen = with_shardings(param_shapes(request.model), model_shardings(request.model, mesh))
    names = ("tokens", "segment_ids", "positions") if request.packed else ("tokens",)
    shapes = {
        name: jax.ShapeDtypeStruct((request.batch_size, request.sequence_length + 1), jnp.int32) for name in names
    }
    shapes["component"] = jax.ShapeDtypeStruct((request.batch_size,), jnp.int32)
    batch = with_shardings(shapes, dict.fromkeys(shapes, batch_sharding(mesh)))
    return step.lower(state, batch, frozen)


def _measure(compiled: Any, mesh: Any, target: Target) -> dict[str, Any]:
    from diversity_jax.aot.hlo import measure

    memory = compiled.memory_analysis()
    per_slice = target.devices // target.slices
    number = {device: index for index, device in enumerate(sorted(mesh.devices.flat, key=lambda device: device.id))}
    slices = [getattr(device, "slice_index", number[device] // per_slice) for device in mesh.devices.flat]
    traffic = measure(compiled.as_text(), slices)
    columns = ("kind", "devices", "crosses_slices", "count", "payload_bytes", "sent_bytes")
    return {
        "memory_bytes": {
            "arguments": memory.argument_size_in_bytes,
            "outputs": memory.output_size_in_bytes - memory.alias_size_in_bytes,
            "temporaries": memory.temp_size_in_bytes,
            "code": memory.generated_code_size_in_bytes,
            "host": memory.host_temp_size_in_bytes + memory.host_argument_size_in_bytes,
        },
        "collectives": [
            dict(zip(columns, (*key, int(count), *sizes), strict=True))
            for key, (count, *sizes) in sorted(traffic.collectives.items())
        ],
        "hbm_traffic_bytes": traffic.hbm_bytes,
        "kernels": dict(traffic.kernels),
        "unknown_loops": traffic.unknown_loops,
    }


def main() -> None:
    """Answers one request."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries' output goes to standard error
    try:
        answer = compile_and_measure(pickle.load(sys.stdin.buffer))
    except InputError as error:
        answer = {"input_error": str(error)}
    print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
