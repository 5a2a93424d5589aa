"""The processes of a run: how they find each other, and which devices they take."""

from collections.abc import Mapping
from dataclasses import dataclass
import logging
import math
import os
import socket
import time
from typing import Any

import jax

from diversity_jax.core.errors import InputError
from diversity_jax.training import devices
from diversity_jax.training.config import DistributedConfig, coordinator_address
from diversity_jax.training.together import together

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ProcessId:
    """This process among those of a run."""

    coordinator: str
    num_processes: int
    process_id: int


def start_distributed(config: DistributedConfig) -> bool:
    """Joins this process with the others through `jax.distributed`; call before JAX starts its devices.

    JAX aborts the process where the others do not come within `timeout_seconds`; what can be known before, an address
    that cannot be reached or listened at, is checked here. The GPUs of the process are those of
    `devices.choose_devices`.

    Returns:
      Whether this process is one of several.

    Raises:
      InputError: the processes cannot be joined, or do not use what they were granted; the message says why and what to
        do.
    """
    own = find_process_id(config, os.environ)
    choice = devices.choose_devices(os.environ, devices.present_gpus())
    if own is None and config.start == "off":
        if choice.ids is not None:  # one of several workers that a launcher has put on this host
            jax.config.update("jax_cuda_visible_devices", ",".join(map(str, choice.ids)))
            jax.config.update("jax_rocm_visible_devices", ",".join(map(str, choice.ids)))
        return _alone(choice)
    options: dict[str, Any] = {"initialization_timeout": max(1, math.ceil(config.timeout_seconds))}
    if own is not None:
        _check_address(own, config.timeout_seconds)
        waiting = "process %d of %d: joining the others at %s, for at most %g s"
        log.info(waiting, own.process_id, own.num_processes, own.coordinator, config.timeout_seconds)
        options |= {
            "coordinator_address": own.coordinator,
            "num_processes": own.num_processes,
            "process_id": own.process_id,
            "local_device_ids": choice.ids,
            "cluster_detection_method": "deactivate",
        }
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
    together(lambda: devices.check_found(choice, jax.default_backend(), jax.local_device_count()))
    counts = jax.process_index(), jax.process_count(), jax.local_device_count(), jax.device_count()
    log.info("process %d of %d, %d of %d devices", *counts)
    return jax.process_count() > 1


def _alone(choice: devices.DeviceChoice) -> bool:
    """A process that was not told of others: whether the slice or the launcher knows some all the same."""
    if jax.process_count() > 1:  # libtpu has found the other hosts of its slice by itself
        raise InputError(
            f"distributed.start=off: this host is one of {jax.process_count()} of a TPU slice; start the same command "
            "on all of them with --config.distributed.start=auto"
        )
    devices.check_found(choice, jax.default_backend(), jax.local_device_count())
    return False


def _check_address(own: ProcessId, timeout_seconds: float) -> None:
    """Whether process 0 can listen at the coordinator's address, and the others can reach it.

    Raises:
      InputError: they cannot.
    """
    if own.num_processes == 1:
        return
    host, port = coordinator_address(own.coordinator)
    if own.process_id == 0:
        try:
            socket.create_server(("", port)).close()
        except OSError as error:
            reason = f"process 0 cannot listen there ({error.strerror})"
            raise InputError(f"distributed.coordinator={own.coordinator}: {reason}") from None
        return
    deadline = time.monotonic() + timeout_seconds
    while True:
        try:
            socket.create_connection((host, port), timeout=max(0.01, deadline - time.monotonic())).close()
            return
        except OSError as error:
            if time.monotonic() + 0.2 > deadline:
                raise InputError(
                    f"distributed.coordinator={own.coordinator}: process {own.process_id} could not reach process 0 "
                    f"there within {timeout_seconds:g} s ({error.strerror or error}); check it and the port"
                ) from None
            time.sleep(0.2)


def launched_process_id(environment: Mapping[str, str]) -> int:
    """This process's number in its job by its launcher's variables, before JAX knows; 0 where no launcher set any."""
    names = devices.launcher(environment)
    name = names[1] if names else "TPU_WORKER_ID"
    return _number(environment, name, "process_id") if name in environment else 0


def find_process_id(config: DistributedConfig, environment: Mapping[str, str]) -> ProcessId | None:
    """Which process this is by configuration and environment; None where no coordinator is given or known.

    Raises:
      InputError: a coordinator, but no number of processes or none of this one, or numbers that cannot be.
    """
    address = config.coordinator or environment.get("JAX_COORDINATOR_ADDRESS")
    if address is None and config.start == "auto":
        address = devices.coordinator(environment)
    if address is None:
        if config.num_processes is not None or config.process_id is not None:
            raise InputError("distributed.num_processes, process_id: give distributed.coordinator=HOST:PORT too")
        return None
    coordinator_address(address)
    names = devices.launcher(environment) or (None, None)
    count, number = config.num_processes, config.process_id
    count = _number(environment, names[0], "num_processes") if count is None else count
    number = _number(environment, names[1], "process_id") if number is None else number
    if not 0 <= number < count:
        raise InputError(f"distributed.process_id={number}: must be below num_processes={count}, counted from 0")
    return ProcessId(coordinator=address, num_processes=count, process_id=number)


def _number(environment: Mapping[str, str], name: str | None, field: str) -> int:
    if name is None:
        variables = ", ".join(names[0] for names in devices.LAUNCHERS)
        raise InputError(f"distributed.{field}=None: give it with a coordinator; no launcher ({variables}) did")
    try:
        return int(environment[name])
    except ValueError:
        raise InputError(f"{name}={environment[name]!r}: is not a whole number; set distributed.{field}") from None
