"""Which accelerators of its host a process takes: from what its launcher says, as a function of the environment alone.

JAX's own detection gives every process that Slurm or Open MPI started one device, that of its local number: one
process a node trains on one GPU of eight, and a process that was bound to a GPU of its own looks for an ordinal that it
does not have (`jax/_src/clusters/cluster.py`, jax 0.4 to 0.12).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
import glob
import re

from diversity_jax.core.errors import InputError

# Variables of a launcher: number of processes, this process's number, its number on its host, processes on its host.
# Open MPI and Hydra run inside Slurm jobs, whose own variables then describe the job's batch script: they come first.
LAUNCHERS = (
    ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID", "JAX_LOCAL_PROCESS_ID", "JAX_LOCAL_PROCESS_COUNT"),
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    ("PMI_SIZE", "PMI_RANK", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    ("SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE"),
)
_NONE = ("", "", "", "")
_VISIBLE = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")


@dataclass(frozen=True, kw_only=True)
class DeviceChoice:
    """The GPUs that this process takes.

    Attributes:
      ids: their ordinals among those that it sees, as `jax.distributed.initialize(local_device_ids=...)` takes them;
        None: all that it sees.
      granted: how many JAX has to find; None: nothing was granted, so nothing can be compared.
      reason: the variables it follows from.
    """

    ids: tuple[int, ...] | None = None
    granted: int | None = None
    reason: str = ""


def launcher(environment: Mapping[str, str]) -> tuple[str, str, str, str] | None:
    """Names of the variables of the launcher that started this process; None where none did."""
    for names in LAUNCHERS:
        # srun sets PMI's numbers too, without those on the host.
        by_srun = names[0] == "PMI_SIZE" and names[2] not in environment and "SLURM_PROCID" in environment
        if names[0] in environment and names[1] in environment and not by_srun:
            return names
    return None


def present_gpus() -> int | None:
    """GPUs of this host by their device files, without starting a driver; None where there is none."""
    return len(glob.glob("/dev/nvidia[0-9]*")) or None


def choose_devices(environment: Mapping[str, str], present: int | None = None) -> DeviceChoice:
    """All GPUs for the only process of a host, and for one of several its own, or its equal part of those shared.

    Args:
      environment: of this process.
      present: GPUs of the host, for launchers that grant none.

    Raises:
      InputError: the process would leave a part of what was granted unused, or processes would share a GPU.
    """
    if environment.get("JAX_PLATFORMS", "").startswith("cpu"):
        return DeviceChoice()
    if own := environment.get("JAX_LOCAL_DEVICE_IDS"):  # by hand: whoever sets it knows what is left out
        ids = tuple(_integer("JAX_LOCAL_DEVICE_IDS", part) for part in own.split(","))
        return DeviceChoice(ids=ids, granted=len(ids), reason=f"JAX_LOCAL_DEVICE_IDS={own}")
    names = launcher(environment) or _NONE
    local_id = _integer(names[2], environment.get(names[2], "0"))
    processes = _local_processes(environment, names[3])
    visible, visible_reason = _visible(environment)
    granted, reason = _granted(environment, processes or 1)
    if granted is None and visible is not None:
        # Nothing is granted by name: one GPU is this process's own, as are those that add up to the host's.
        own_ones = visible == 1 or visible * (processes or 1) == present
        granted = visible * (processes or 1) if own_ones else visible
    elif granted is None:
        granted, reason = present, f"{present} GPUs on this host"
    if granted is None or (processes is None and names[2] in environment):
        one_each = names[2] in environment and processes != 1 and visible != 1
        return DeviceChoice(ids=(local_id,) if one_each else None, granted=granted and 1, reason=visible_reason)
    said = (reason, visible_reason, f"{names[3]}={processes}" if processes else "")
    seen = granted if visible is None else visible
    return _share(seen, granted, processes or 1, local_id, ", ".join(filter(None, said)))


def _share(seen: int, granted: int, processes: int, local_id: int, said: str) -> DeviceChoice:
    """Divides what this process sees of what its node was granted."""
    if seen * processes == granted:  # one process a host, or the launcher has bound each to its own
        return DeviceChoice(granted=seen, reason=said)
    if seen == granted and seen % processes == 0:
        own = seen // processes
        ids = tuple(range(local_id * own, (local_id + 1) * own))
        return DeviceChoice(ids=ids, granted=own, reason=said)
    if seen == granted:
        raise InputError(
            f"distributed: {processes} processes cannot share {seen} GPUs of a host evenly ({said}); start one process "
            "a host or one a GPU"
        )
    raise InputError(
        f"distributed: {granted} GPUs of this host were granted to {processes} process{'es' * (processes > 1)}, and "
        f"this one sees {seen} ({said}); bind none or each to its own (Slurm: --ntasks-per-node=1 --gpus-per-node=N, "
        "or --gpus-per-task=1 with one task a GPU), or set JAX_LOCAL_DEVICE_IDS"
    )


def check_found(choice: DeviceChoice, platform: str, found: int) -> None:
    """Compares what JAX found with what was granted.

    Args:
      platform: of JAX's default backend: "cpu", "gpu" or "tpu".
      found: devices of this process.

    Raises:
      InputError: GPUs were granted, and JAX uses none or another number.
    """
    if choice.granted is None or platform == "tpu":
        return
    if platform == "cpu" and choice.granted:
        raise InputError(
            f"distributed: {choice.granted} GPUs were granted ({choice.reason}) and JAX found none; install "
            "jax[cuda12] and see that `nvidia-smi` works there, or set JAX_PLATFORMS=cpu to compute on the CPU"
        )
    if platform != "cpu" and found != choice.granted:
        raise InputError(
            f"distributed: {choice.granted} GPUs were granted ({choice.reason}) and JAX uses {found}; set "
            "JAX_LOCAL_DEVICE_IDS where that is meant"
        )


def coordinator(environment: Mapping[str, str]) -> str | None:
    """HOST:PORT of process 0 by what Slurm and Open MPI say; None for other launchers, and where none started this."""
    names, given = launcher(environment) or _NONE, environment.get("JAX_COORDINATOR_PORT")
    if names[0] == "SLURM_NTASKS" and "SLURM_STEP_NODELIST" in environment:
        host = re.split(r",(?![^\[]*\])", environment["SLURM_STEP_NODELIST"])[0]
        host = re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", host)  # rack1-n[07-12,20]-ib is rack1-n07-ib first
        job = int(environment["SLURM_JOB_ID"]) + int(environment.get("SLURM_STEP_ID", "0"))
        return f"{host}:{given or 61440 + job % 4096}"  # above the ports that Linux hands out by itself
    if names[0] == "OMPI_COMM_WORLD_SIZE":
        uri = environment.get("OMPI_MCA_orte_hnp_uri", "")  # Open MPI 4: 1531576320.0;tcp://10.96.0.1,10.1.0.1:34911
        if match := re.match(r"(\d+)\..*?(?:tcp://([^,:]+)|tcp6://\[([^,\]]+))", uri):
            return f"{match[2] or f'[{match[3]}]'}:{given or 61440 + int(match[1]) // 4096 % 4096}"
        # Open MPI 5: prterun-HOST-PID@1, on the host of mpirun.
        if match := re.match(r"prterun-(.+)-(\d+)@", environment.get("PMIX_NAMESPACE", "")):
            return f"{match[1]}:{given or 61440 + int(match[2]) % 4096}"
    return None


def _visible(environment: Mapping[str, str]) -> tuple[int | None, str]:
    """How many GPUs the environment shows this process, and by which variable."""
    name = next((name for name in _VISIBLE if name in environment), None)
    if name is None:
        return None, ""
    value = environment[name].strip()
    hidden = value in ("", "-1", "NoDevFiles", "void", "none")
    return 0 if hidden else len(value.split(",")), f"{name}={value}"


def _granted(environment: Mapping[str, str], processes: int) -> tuple[int | None, str]:
    """GPUs that Slurm granted to this step on this node, and by which variable.

    SLURM_STEP_GPUS is no such number: for a task that was bound it lists the task's own.
    """
    if count := environment.get("SLURM_GPUS_ON_NODE"):
        return _integer("SLURM_GPUS_ON_NODE", count), f"SLURM_GPUS_ON_NODE={count}"
    if count := environment.get("SLURM_GPUS_PER_TASK"):
        return _last_number("SLURM_GPUS_PER_TASK", count) * processes, f"SLURM_GPUS_PER_TASK={count}"
    return None, ""


def _last_number(name: str, value: str) -> int:
    """`4`, `h100:4` and `a100:2,h100:2` are four GPUs."""
    return sum(_integer(name, part.rpartition(":")[2]) for part in value.split(","))


def _local_processes(environment: Mapping[str, str], name: str) -> int | None:
    """Processes on this host; Slurm writes `2(x3),1` for four nodes."""
    if name not in environment:
        return None
    counts: list[int] = []
    for part in environment[name].split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part.strip())
        if match is None:
            raise InputError(f"{name}={environment[name]!r}: is not a number of processes")
        counts += [int(match[1])] * int(match[2] or 1)
    node = _integer("SLURM_NODEID", environment.get("SLURM_NODEID", "0")) if len(counts) > 1 else 0
    return _at(counts, node, name)


def _at(counts: Sequence[int], node: int, name: str) -> int:
    if node >= len(counts):
        raise InputError(f"SLURM_NODEID={node}: is beyond the {len(counts)} nodes of {name}")
    return counts[node]


def _integer(name: str, value: str) -> int:
    try:
        return int(value)
    except ValueError:
        raise InputError(f"{name}={value!r}: is not a whole number") from None
