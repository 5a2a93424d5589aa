"""Several processes as one run: who they are, that they agree on it, and JAX's own start among them.

| started by        | who coordinates, how many there are, which one this is                                       |
|-------------------|----------------------------------------------------------------------------------------------|
| TPU slice         | JAX asks the slice: `distributed.start=auto`                                                 |
| Slurm, Open MPI   | JAX reads the launcher's variables: `distributed.start=auto`                                 |
| other MPI (PMI)   | `distributed.coordinator=HOST:PORT`; the others are the launcher's PMI_SIZE and PMI_RANK     |
| by hand           | `distributed.coordinator`, `.num_processes` and `.process_id`, or the variables              |
|                   | JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID                                |

With a coordinator given, the processes first greet each other on its port: a wrong address, count or number is then one
line within `timeout_seconds`, where JAX itself would wait in silence or abort.
"""

from collections.abc import Mapping
from dataclasses import dataclass
import json
import logging
import os
import socket
import time
from typing import Any

from diversity_jax.core.errors import InputError

log = logging.getLogger(__name__)

STARTS = ("off", "auto")
# Variables that hold the number of processes, this one's number, and its number on its host.
_LAUNCHERS = (
    ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID", "JAX_LOCAL_PROCESS_ID"),
    ("SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID"),
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK"),
    ("PMI_SIZE", "PMI_RANK", "MPI_LOCALRANKID"),
)
_LINE_BYTES = 4096
_HELLO_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True)
class DistributedConfig:
    """How this process finds the others of a run.

    Attributes:
      start: "off": it is the only one, unless a coordinator is given; "auto": JAX finds the others (TPU slice, Slurm,
        Open MPI).
      coordinator: HOST:PORT at which process 0 listens, reachable from all.
      num_processes, process_id: how many there are, and which this is, from 0; None: from the launcher's variables.
      timeout_seconds: how long processes wait for each other at the start.
    """

    start: str = "off"
    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None
    timeout_seconds: float = 300.0

    def __post_init__(self):
        if self.start not in STARTS:
            raise InputError(f"distributed.start={self.start!r}: must be one of {', '.join(STARTS)}")
        if self.num_processes is not None and self.num_processes < 1:
            raise InputError(f"distributed.num_processes={self.num_processes}: must be at least 1")
        if self.process_id is not None and self.process_id < 0:
            raise InputError(f"distributed.process_id={self.process_id}: must be at least 0")
        if not self.timeout_seconds > 0:
            raise InputError(f"distributed.timeout_seconds={self.timeout_seconds}: must be above 0")
        if self.coordinator is not None:
            _address(self.coordinator)


@dataclass(frozen=True, kw_only=True)
class Place:
    """This process among the others; `local_id` is None where all devices of the host are its own."""

    coordinator: str
    num_processes: int
    process_id: int
    local_id: int | None = None


def start(config: DistributedConfig) -> bool:
    """Joins this process with the others, before JAX starts its devices.

    Returns:
      Whether it is one of several.

    Raises:
      InputError: the others cannot be found, reached, or count differently; one line that says which and what to do.
    """
    import jax

    place = find_place(config, os.environ)
    if place is None and config.start == "off":
        return False
    if place is not None:
        greet(place, config.timeout_seconds)
    try:
        if place is None:
            jax.distributed.initialize(initialization_timeout=int(config.timeout_seconds))
        else:
            jax.distributed.initialize(
                place.coordinator,
                place.num_processes,
                place.process_id,
                local_device_ids=place.local_id,
                cluster_detection_method="deactivate",
                initialization_timeout=int(config.timeout_seconds),
            )
    except (ValueError, RuntimeError, KeyError) as error:
        said = " ".join(str(error).split())[:200]
        raise InputError(
            f"distributed: JAX could not join the processes ({said}); on a TPU slice, Slurm or Open MPI use "
            "start=auto, elsewhere give "
            "coordinator, num_processes and process_id"
        ) from error
    log.info(
        "process %d of %d, %d of %d devices",
        jax.process_index(),
        jax.process_count(),
        jax.local_device_count(),
        jax.device_count(),
    )
    return True


def launched_number(environment: Mapping[str, str]) -> int:
    """This process's number in its job, as its launcher says, before JAX knows; 0 where no launcher says anything."""
    names = [names[1] for names in _LAUNCHERS] + ["TPU_WORKER_ID"]
    return next((_number(environment, name, "process_id") for name in names if name in environment), 0)


def find_place(config: DistributedConfig, environment: Mapping[str, str]) -> Place | None:
    """Who this process is by configuration and environment; None where no coordinator is given.

    Raises:
      InputError: a coordinator, but no number of processes or none of this one, or numbers that cannot be.
    """
    coordinator = config.coordinator or environment.get("JAX_COORDINATOR_ADDRESS")
    if coordinator is None:
        if config.num_processes is not None or config.process_id is not None:
            raise InputError(
                "distributed.num_processes and process_id are of no use alone; give distributed.coordinator=HOST:PORT "
                "too"
            )
        return None
    _address(coordinator)
    launched = next(
        (names for names in _LAUNCHERS if names[0] in environment and names[1] in environment), (None, None, None)
    )
    given = (config.num_processes, config.process_id)
    count, number = (
        own if own is not None else _number(environment, name, field)
        for own, name, field in zip(given, launched, ("num_processes", "process_id"), strict=False)
    )
    if not 0 <= number < count:
        raise InputError(f"distributed.process_id={number}: must be below num_processes={count}, counted from 0")
    local = _number(environment, launched[2], "local") if given == (None, None) and launched[2] in environment else None
    return Place(coordinator=coordinator, num_processes=count, process_id=number, local_id=local)


def _number(environment: Mapping[str, str], name: str | None, field: str) -> int:
    if name is None:
        raise InputError(
            f"distributed.{field}=None: a coordinator is given, but neither this field nor the variables of a launcher "
            f"({', '.join(names[0] for names in _LAUNCHERS)}) say it; give distributed.{field}"
        )
    try:
        return int(environment[name])
    except ValueError:
        raise InputError(
            f"{name}={environment[name]!r}: is not a whole number; set it right, or give distributed.{field}"
        ) from None


def _address(coordinator: str) -> tuple[str, int]:
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise InputError(f"distributed.coordinator={coordinator!r}: must be HOST:PORT, such as 10.0.0.1:12345")
    return host.strip("[]"), int(port)


def greet(place: Place, timeout_seconds: float) -> None:
    """Returns once all processes have met at the coordinator's port and count alike; the port is free again then.

    Raises:
      InputError: they have not, within the time.
    """
    if place.num_processes > 1:
        (_host if place.process_id == 0 else _guest)(place, time.monotonic() + timeout_seconds, timeout_seconds)


def _host(place: Place, deadline: float, timeout_seconds: float) -> None:
    """Process 0: waits for a greeting of every other one, and answers all at once."""
    try:
        listener = socket.create_server(("", _address(place.coordinator)[1]), backlog=place.num_processes)
    except OSError as error:
        raise InputError(
            f"distributed.coordinator={place.coordinator}: process 0 cannot listen there ({error.strerror})"
        ) from None
    guests: dict[int, socket.socket] = {}
    trouble = None
    with listener:
        while trouble is None and len(guests) < place.num_processes - 1:
            missing = sorted(set(range(1, place.num_processes)) - set(guests))
            listener.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                connection, address = listener.accept()
            except TimeoutError:
                trouble = (
                    f"{len(missing)} of {place.num_processes} processes did not come to {place.coordinator} within "
                    f"{timeout_seconds:g} s: "
                    f"number {', '.join(map(str, missing[:8]))}; see why they did not start, or whether they were "
                    "given this address"
                )
                break
            hello = _receive(connection)
            if hello is None:  # a port scanner, or whatever else is not one of us
                connection.close()
                continue
            trouble = _disagreement(place, hello, address[0], guests)
            guests[hello["process_id"] if trouble is None else -1] = connection
        for connection in guests.values():
            with connection:
                _send(connection, {"trouble": trouble})
    if trouble is not None:
        raise InputError(f"distributed: {trouble}")


def _disagreement(place: Place, hello: Mapping[str, Any], address: str, guests: Mapping[int, Any]) -> str | None:
    number, count = hello["process_id"], hello["num_processes"]
    if count != place.num_processes:
        return (
            f"process {number} at {address} was started with num_processes={count}, process 0 with "
            f"{place.num_processes}; "
            "start all with the same number"
        )
    if number in guests or number == 0:
        return f"two processes were started with process_id={number}, the second at {address}; give each its own"
    return None


def _guest(place: Place, deadline: float, timeout_seconds: float) -> None:
    """Any other process: calls until process 0 answers."""
    why = "no answer"
    while (left := deadline - time.monotonic()) > 0:
        try:
            with socket.create_connection(_address(place.coordinator), timeout=left) as connection:
                _send(connection, {"process_id": place.process_id, "num_processes": place.num_processes})
                connection.settimeout(left + _HELLO_SECONDS)  # process 0 waits for the last of all
                answer = _receive_line(connection)
        except OSError as error:
            why = error.strerror or str(error) or type(error).__name__
            answer = None
        if answer is not None:
            if answer["trouble"] is not None:
                raise InputError(f"distributed: {answer['trouble']}")
            return
        time.sleep(min(0.2, max(0.0, deadline - time.monotonic())))
    raise InputError(
        f"distributed.coordinator={place.coordinator}: process {place.process_id} could not reach process 0 there "
        "within "
        f"{timeout_seconds:g} s ({why}); see that it runs, that the address is its own, and that the port is open"
    )


def _send(connection: socket.socket, message: Mapping[str, Any]) -> None:
    try:
        connection.sendall(json.dumps(message).encode() + b"\n")
    except OSError:
        log.debug("a process left before it was answered")


def _receive(connection: socket.socket) -> Mapping[str, Any] | None:
    """A greeting; None for anything else."""
    connection.settimeout(_HELLO_SECONDS)
    try:
        hello = _receive_line(connection)
    except OSError:
        return None
    known = isinstance(hello, dict) and all(
        isinstance(hello.get(name), int) for name in ("process_id", "num_processes")
    )
    return hello if known else None


def _receive_line(connection: socket.socket) -> Any:
    """One line of JSON; None where the other side ends without one."""
    data = b""
    while not data.endswith(b"\n") and len(data) < _LINE_BYTES:
        part = connection.recv(_LINE_BYTES)
        if not part:
            return None
        data += part
    try:
        return json.loads(data)
    except ValueError:
        return None
