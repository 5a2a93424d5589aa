"""Connects the processes of a run through `jax.distributed`, and assigns each its devices.

Devices are a function of the launcher's environment variables. JAX's own detection gives every process that Slurm or
Open MPI started the one device of its local rank: one process per node then trains on one GPU of eight, and a process
that is bound to one GPU looks for an ordinal that it does not have (`jax/_src/clusters/cluster.py`, jax 0.4 to 0.12).
"""

from collections.abc import Mapping
from dataclasses import dataclass
import glob
import logging
import math
import os
import re
import socket
import time
from typing import Any

import jax

from diversity_jax.core.errors import InputError
from diversity_jax.training.config import DistributedConfig, coordinator_address
from diversity_jax.training.runtime import together

log = logging.getLogger(__name__)

# Variables of a launcher: number of processes, rank, rank on the host, processes on the host.
# Open MPI and Hydra come before Slurm, since inside a Slurm job Slurm's variables describe the batch script.
LAUNCHERS = (
    ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID", "JAX_LOCAL_PROCESS_ID", "JAX_LOCAL_PROCESS_COUNT"),
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    ("PMI_SIZE", "PMI_RANK", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    ("SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE"),
)
_NO_LAUNCHER = ("", "", "", "")
_VISIBLE = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")


@dataclass(frozen=True, kw_only=True)
class DeviceChoice:
    """The GPUs that this process uses.

    Attributes:
      ids: ordinals among its visible GPUs, for `jax.distributed.initialize(local_device_ids=...)`; None: all visible.
      granted: number that JAX has to find; None: unknown.
      reason: the variables that decided.
    """

    ids: tuple[int, ...] | None = None
    granted: int | None = None
    reason: str = ""


def launcher(environment: Mapping[str, str]) -> tuple[str, str, str, str] | None:
    """Names of the variables of the launcher that started this process; None without a launcher."""
    for names in LAUNCHERS:
        # srun also sets PMI's variables, except those about the host.
        by_srun = names[0] == "PMI_SIZE" and names[2] not in environment and "SLURM_PROCID" in environment
        if names[0] in environment and names[1] in environment and not by_srun:
            return names
    return None


def present_gpus() -> int | None:
    """Number of this host's GPUs by their device files, without starting a driver; None for none."""
    return len(glob.glob("/dev/nvidia[0-9]*")) or None


def choose_devices(environment: Mapping[str, str], present: int | None = None) -> DeviceChoice:
    """Chooses all GPUs for a host's only process; for one of several those bound to it, or an equal share.

    Args:
      environment: of this process.
      present: number of the host's GPUs, for launchers that grant none.

    Raises:
      InputError: granted GPUs would be unused, or processes would share a GPU.
    """
    if environment.get("JAX_PLATFORMS", "").startswith("cpu"):
        return DeviceChoice()
    if own := environment.get("JAX_LOCAL_DEVICE_IDS"):  # set by the user, so that GPUs may be left out
        ids = tuple(_integer("JAX_LOCAL_DEVICE_IDS", part) for part in own.split(","))
        return DeviceChoice(ids=ids, granted=len(ids), reason=f"JAX_LOCAL_DEVICE_IDS={own}")
    names = launcher(environment) or _NO_LAUNCHER
    local_id = _integer(names[2], environment.get(names[2], "0"))
    processes = _local_processes(environment, names[3])
    visible, visible_reason = _visible(environment)
    granted, reason = _granted(environment, processes or 1)
    if granted is None and visible is not None:
        # No variable grants GPUs: a single visible GPU, or all that add up to the host's, are bound to this process.
        is_bound = visible == 1 or visible * (processes or 1) == present
        granted = visible * (processes or 1) if is_bound else visible
    elif granted is None:
        granted, reason = present, f"{present} GPUs on this host"
    if granted is None or (processes is None and names[2] in environment):
        one_each = names[2] in environment and processes != 1 and visible != 1
        return DeviceChoice(ids=(local_id,) if one_each else None, granted=granted and 1, reason=visible_reason)
    reasons = (reason, visible_reason, f"{names[3]}={processes}" if processes else "")
    seen = granted if visible is None else visible
    return _share(seen, granted, processes or 1, local_id, ", ".join(filter(None, reasons)))


def _share(seen: int, granted: int, processes: int, local_id: int, why: str) -> DeviceChoice:
    """The choice of a process that sees `seen` of the `granted` GPUs of its host."""
    if seen * processes == granted:  # one process per host, or each is bound to its own GPUs
        return DeviceChoice(granted=seen, reason=why)
    if seen == granted and seen % processes == 0:
        own = seen // processes
        ids = tuple(range(local_id * own, (local_id + 1) * own))
        return DeviceChoice(ids=ids, granted=own, reason=why)
    if seen == granted:
        raise InputError(
            f"distributed: {processes} processes cannot share {seen} GPUs of a host evenly ({why}); start one process "
            "a host or one a GPU"
        )
    raise InputError(
        f"distributed: {granted} GPUs of this host were granted to {processes} process{'es' * (processes > 1)}, and "
        f"this one sees {seen} ({why}); bind none or each to its own (Slurm: --ntasks-per-node=1 --gpus-per-node=N, "
        "or --gpus-per-task=1 with one task a GPU), or set JAX_LOCAL_DEVICE_IDS"
    )


def check_found(choice: DeviceChoice, platform: str, in_use: int) -> None:
    """Raises `InputError` where JAX does not use the number of GPUs that was granted.

    Args:
      platform: of JAX's default backend: "cpu", "gpu" or "tpu".
      in_use: number of this process's devices.
    """
    if choice.granted is None or platform == "tpu":
        return
    if platform == "cpu" and choice.granted:
        raise InputError(
            f"distributed: {choice.granted} GPUs were granted ({choice.reason}) and JAX found none; install "
            "jax[cuda12] and see that `nvidia-smi` works there, or set JAX_PLATFORMS=cpu to compute on the CPU"
        )
    if platform != "cpu" and in_use != choice.granted:
        raise InputError(
            f"distributed: {choice.granted} GPUs were granted ({choice.reason}) and JAX uses {in_use}; set "
            "JAX_LOCAL_DEVICE_IDS where that is meant"
        )


def coordinator(environment: Mapping[str, str]) -> str | None:
    """HOST:PORT of process 0 from the variables of Slurm or Open MPI; None for other launchers and without one."""
    names, given = launcher(environment) or _NO_LAUNCHER, environment.get("JAX_COORDINATOR_PORT")
    if names[0] == "SLURM_NTASKS" and "SLURM_STEP_NODELIST" in environment:
        host = re.split(r",(?![^\[]*\])", environment["SLURM_STEP_NODELIST"])[0]
        host = re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", host)  # rack1-n[07-12,20]-ib is rack1-n07-ib first
        job = int(environment["SLURM_JOB_ID"]) + int(environment.get("SLURM_STEP_ID", "0"))
        return f"{host}:{given or 61440 + job % 4096}"  # above Linux's ephemeral ports
    if names[0] == "OMPI_COMM_WORLD_SIZE":
        uri = environment.get("OMPI_MCA_orte_hnp_uri", "")  # Open MPI 4: 1531576320.0;tcp://10.96.0.1,10.1.0.1:34911
        if match := re.match(r"(\d+)\..*?(?:tcp://([^,:]+)|tcp6://\[([^,\]]+))", uri):
            return f"{match[2] or f'[{match[3]}]'}:{given or 61440 + int(match[1]) // 4096 % 4096}"
        # Open MPI 5: prterun-HOST-PID@1, on the host of mpirun.
        if match := re.match(r"prterun-(.+)-(\d+)@", environment.get("PMIX_NAMESPACE", "")):
            return f"{match[1]}:{given or 61440 + int(match[2]) % 4096}"
    return None


def _visible(environment: Mapping[str, str]) -> tuple[int | None, str]:
    """Number of GPUs visible to this process, and the variable that sets it."""
    name = next((name for name in _VISIBLE if name in environment), None)
    if name is None:
        return None, ""
    value = environment[name].strip()
    hidden = value in ("", "-1", "NoDevFiles", "void", "none")
    return 0 if hidden else len(value.split(",")), f"{name}={value}"


def _granted(environment: Mapping[str, str], processes: int) -> tuple[int | None, str]:
    """Number of GPUs that Slurm granted to this step on this node, and the variable that says so.

    SLURM_STEP_GPUS is not used, since for a bound task it lists the task's own GPUs.
    """
    if count := environment.get("SLURM_GPUS_ON_NODE"):
        return _integer("SLURM_GPUS_ON_NODE", count), f"SLURM_GPUS_ON_NODE={count}"
    if count := environment.get("SLURM_GPUS_PER_TASK"):  # such as 4, h100:4 or a100:2,h100:2
        per_task = sum(_integer("SLURM_GPUS_PER_TASK", part.rpartition(":")[2]) for part in count.split(","))
        return per_task * processes, f"SLURM_GPUS_PER_TASK={count}"
    return None, ""


def _local_processes(environment: Mapping[str, str], name: str) -> int | None:
    """Number of processes on this host; Slurm writes `2(x3),1` for four nodes."""
    if name not in environment:
        return None
    counts: list[int] = []
    for part in environment[name].split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part.strip())
        if match is None:
            raise InputError(f"{name}={environment[name]!r}: is not a number of processes")
        counts += [int(match[1])] * int(match[2] or 1)
    node = _integer("SLURM_NODEID", environment.get("SLURM_NODEID", "0")) if len(counts) > 1 else 0
    if node >= len(counts):
        raise InputError(f"SLURM_NODEID={node}: is beyond the {len(counts)} nodes of {name}")
    return counts[node]


def _integer(name: str, value: str, remedy: str = "") -> int:
    try:
        return int(value)
    except ValueError:
        raise InputError(f"{name}={value!r}: is not a whole number{remedy}") from None


@dataclass(frozen=True, kw_only=True)
class ProcessId:
    """A process's rank, the number of processes, and the coordinator's HOST:PORT."""

    coordinator_address: str
    num_processes: int
    process_id: int


def start_distributed(config: DistributedConfig) -> bool:
    """Joins the processes of a run through `jax.distributed`; call before JAX starts its devices.

    JAX aborts the process where the others do not connect within `timeout_seconds`; before that the coordinator's
    address is checked, for a clear error. The GPUs are those of `choose_devices`.

    Returns:
      Whether this process is one of several.

    Raises:
      InputError: the processes cannot be joined, or do not use the GPUs that were granted.
    """
    own = find_process_id(config, os.environ)
    choice = choose_devices(os.environ, present_gpus())
    if own is None and config.start == "off":
        if choice.ids is not None:  # one of several independent processes that a launcher started on this host
            jax.config.update("jax_cuda_visible_devices", ",".join(map(str, choice.ids)))
            jax.config.update("jax_rocm_visible_devices", ",".join(map(str, choice.ids)))
        if jax.process_count() > 1:  # libtpu has found the other hosts of its slice by itself
            raise InputError(
                f"distributed.start=off: this host is one of {jax.process_count()} of a TPU slice; start the same "
                "command on all of them with --config.distributed.start=auto"
            )
        check_found(choice, jax.default_backend(), jax.local_device_count())
        return False
    options: dict[str, Any] = {"initialization_timeout": max(1, math.ceil(config.timeout_seconds))}
    if own is not None:
        _check_address(own, config.timeout_seconds)
        waiting = "process %d of %d: joining the others at %s, for at most %g s"
        log.info(waiting, own.process_id, own.num_processes, own.coordinator_address, config.timeout_seconds)
        options |= {**vars(own), "local_device_ids": choice.ids, "cluster_detection_method": "deactivate"}
    try:
        jax.distributed.initialize(**options)
    except (ValueError, RuntimeError, KeyError) as error:
        raise InputError(
            f"distributed: JAX could not join the processes ({' '.join(str(error).split())[:200]}); on a TPU slice, "
            "Slurm or Open MPI use start=auto, elsewhere give coordinator, num_processes and process_id"
        ) from error
    if own is not None and jax.process_count() != own.num_processes:
        raise InputError(
            f"distributed: process {own.process_id} was started with num_processes={own.num_processes}, process 0 with "
            f"{jax.process_count()}; start all with the same number"
        )
    together(lambda: check_found(choice, jax.default_backend(), jax.local_device_count()))
    counts = jax.process_index(), jax.process_count(), jax.local_device_count(), jax.device_count()
    log.info("process %d of %d, %d of %d devices", *counts)
    return jax.process_count() > 1


def _check_address(own: ProcessId, timeout_seconds: float) -> None:
    """Raises `InputError` where process 0 cannot listen at the coordinator's port, or another cannot reach it."""
    if own.num_processes == 1:
        return
    host, port = coordinator_address(own.coordinator_address)
    if own.process_id == 0:
        try:
            socket.create_server(("", port)).close()
        except OSError as error:
            reason = f"process 0 cannot listen there ({error.strerror})"
            raise InputError(f"distributed.coordinator={own.coordinator_address}: {reason}") from None
        return
    deadline = time.monotonic() + timeout_seconds
    while True:
        try:
            socket.create_connection((host, port), timeout=max(0.01, deadline - time.monotonic())).close()
            return
        except OSError as error:
            if time.monotonic() + 0.2 > deadline:
                raise InputError(
                    f"distributed.coordinator={own.coordinator_address}: process {own.process_id} could not reach "
                    f"process 0 there within {timeout_seconds:g} s ({error.strerror or error}); check it and the port"
                ) from None
            time.sleep(0.2)


def launched_process_id(environment: Mapping[str, str]) -> int:
    """This process's rank by its launcher's variables, before JAX is started; 0 without a launcher."""
    names = launcher(environment)
    name = names[1] if names else "TPU_WORKER_ID"
    return _number(environment, name, "process_id") if name in environment else 0


def find_process_id(config: DistributedConfig, environment: Mapping[str, str]) -> ProcessId | None:
    """This process's identity by configuration and environment; None where no coordinator is given or known.

    Raises:
      InputError: number of processes or rank is missing or invalid.
    """
    address = config.coordinator or environment.get("JAX_COORDINATOR_ADDRESS")
    if address is None and config.start == "auto":
        address = coordinator(environment)
    if address is None:
        if config.num_processes is not None or config.process_id is not None:
            raise InputError("distributed.num_processes, process_id: give distributed.coordinator=HOST:PORT too")
        return None
    coordinator_address(address)
    names = launcher(environment) or (None, None)
    count, number = config.num_processes, config.process_id
    count = _number(environment, names[0], "num_processes") if count is None else count
    number = _number(environment, names[1], "process_id") if number is None else number
    if not 0 <= number < count:
        raise InputError(f"distributed.process_id={number}: must be below num_processes={count}, counted from 0")
    return ProcessId(coordinator_address=address, num_processes=count, process_id=number)


def _number(environment: Mapping[str, str], name: str | None, field: str) -> int:
    if name is None:
        variables = ", ".join(names[0] for names in LAUNCHERS)
        raise InputError(f"distributed.{field}=None: give it with a coordinator; no launcher ({variables}) did")
    return _integer(name, environment[name], f"; set distributed.{field}")
