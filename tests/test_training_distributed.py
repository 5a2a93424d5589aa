"""Distributed start: processes connect, or fail with one line; JAX's own start is tested in test_training_resume."""

import socket

import pytest

from diversity_jax.core.errors import InputError
from diversity_jax.training.distributed import DistributedConfig, ProcessId, find_process_id, start_distributed


@pytest.fixture
def coordinator():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return f"localhost:{free.getsockname()[1]}"


def test_a_coordinator_that_cannot_be_reached_is_one_line(coordinator):
    config = DistributedConfig(coordinator=coordinator, num_processes=2, process_id=1, timeout_seconds=0.3)
    with pytest.raises(InputError) as error:
        start_distributed(config)
    assert f"{coordinator}: process 1 could not reach process 0 there within 0.3 s" in str(error.value)


def test_a_port_in_use_is_said(coordinator):
    config = DistributedConfig(coordinator=coordinator, num_processes=2, process_id=0)
    with (
        socket.create_server(("", int(coordinator.split(":")[1]))),
        pytest.raises(InputError, match="process 0 cannot listen there"),
    ):
        start_distributed(config)


BY_HAND = {"coordinator": "10.0.0.1:1234", "num_processes": 4, "process_id": 2}
PLACE = ProcessId(coordinator_address="10.0.0.1:1234", num_processes=4, process_id=2)


@pytest.mark.parametrize(
    ("fields", "environment", "wanted"),
    [
        ({}, {}, None),
        ({"start": "auto"}, {"SLURM_NTASKS": "4", "SLURM_PROCID": "2"}, None),
        (BY_HAND, {}, PLACE),
        ({}, {"JAX_COORDINATOR_ADDRESS": "10.0.0.1:1234", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "2"}, PLACE),
        ({"coordinator": "10.0.0.1:1234"}, {"PMI_SIZE": "4", "PMI_RANK": "2"}, PLACE),
        ({"coordinator": "10.0.0.1:1234"}, {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "2"}, PLACE),
        (
            {"coordinator": "10.0.0.1:1234", "process_id": 2},
            {"SLURM_NTASKS": "4", "SLURM_PROCID": "1", "SLURM_LOCALID": "1"},
            PLACE,
        ),
    ],
    ids=str,
)
def test_the_place_comes_from_the_configuration_or_the_launcher(fields, environment, wanted):
    assert find_process_id(DistributedConfig(**fields), environment) == wanted


def test_auto_reads_the_coordinator_of_a_slurm_step():
    environment = {"SLURM_NTASKS": "4", "SLURM_PROCID": "2", "SLURM_STEP_NODELIST": "n[07-10]", "SLURM_JOB_ID": "8"}
    wanted = ProcessId(coordinator_address="n07:61448", num_processes=4, process_id=2)
    assert find_process_id(DistributedConfig(start="auto"), environment) == wanted
    assert find_process_id(DistributedConfig(), environment) is None  # a worker of a study, for one


@pytest.mark.parametrize(
    ("fields", "environment", "message"),
    [
        ({"start": "always"}, {}, "distributed.start='always': must be one of off, auto"),
        ({"coordinator": "node1"}, {}, "must be HOST:PORT"),
        ({"coordinator": "node1:99999"}, {}, "must be HOST:PORT"),
        ({"num_processes": 2}, {}, "give distributed.coordinator"),
        ({"coordinator": "node1:12"}, {}, "distributed.num_processes=None"),
        (
            {"coordinator": "node1:12", "num_processes": 2, "process_id": 2},
            {},
            "process_id=2: must be below num_processes=2",
        ),
        ({"coordinator": "node1:12"}, {"PMI_SIZE": "two", "PMI_RANK": "0"}, "PMI_SIZE='two': is not a whole number"),
        ({"timeout_seconds": 0.0}, {}, "timeout_seconds=0.0: must be above 0"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused(fields, environment, message):
    with pytest.raises(InputError) as error:
        find_process_id(DistributedConfig(**fields), environment)
    assert message in str(error.value)
