"""Processes find each other or say, in one line, why not. The greeting is tried with threads; JAX's own start in
test_training_resume.
"""

import socket
import threading

import pytest

from diversity_jax.core.errors import InputError
from diversity_jax.training.distributed import DistributedConfig, Place, find_place, greet


@pytest.fixture
def coordinator():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return f"localhost:{free.getsockname()[1]}"


def meet(coordinator, *members, timeout_seconds=5.0):
    """Greets with (process_id, num_processes) each in a thread of its own; returns what each raised."""
    said = [None] * len(members)

    def one(index, process_id, num_processes):
        try:
            greet(Place(coordinator=coordinator, num_processes=num_processes, process_id=process_id), timeout_seconds)
        except InputError as error:
            said[index] = str(error)

    threads = [threading.Thread(target=one, args=(index, *member)) for index, member in enumerate(members)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads)
    return said


def test_processes_that_agree_meet_and_leave_the_port_free(coordinator):
    assert meet(coordinator, (2, 4), (0, 4), (3, 4), (1, 4)) == [None] * 4
    assert meet(coordinator, (0, 2), (1, 2)) == [None] * 2


def test_processes_that_count_differently_all_hear_of_it(coordinator):
    said = meet(coordinator, (0, 2), (1, 3))
    assert all("process 1 at 127.0.0.1 was started with num_processes=3, process 0 with 2" in line for line in said)
    assert all("\n" not in line for line in said)


def test_a_number_given_twice_is_named(coordinator):
    said = meet(coordinator, (0, 3), (1, 3), (1, 3))
    assert all("two processes were started with process_id=1" in line for line in said)


def test_a_process_that_does_not_come_is_named(coordinator):
    said = meet(coordinator, (0, 4), (2, 4), timeout_seconds=0.6)
    assert "2 of 4 processes did not come" in said[0]
    assert "number 1, 3" in said[0]
    assert said[1] is not None


def test_a_coordinator_that_cannot_be_reached_is_one_line(coordinator):
    (said,) = meet(coordinator, (1, 2), timeout_seconds=0.3)
    assert f"{coordinator}: process 1 could not reach process 0 there within 0.3 s" in said


def test_a_stranger_at_the_port_does_no_harm(coordinator):
    host, port = coordinator.split(":")
    waiting = threading.Thread(target=meet, args=(coordinator, (0, 2)))
    waiting.start()
    for _ in range(100):
        try:
            with socket.create_connection((host, int(port)), timeout=1) as stranger:
                stranger.sendall(b"GET / HTTP/1.0\r\n\r\n")
            break
        except OSError:
            threading.Event().wait(0.02)
    assert meet(coordinator, (1, 2)) == [None]
    waiting.join(10)
    assert not waiting.is_alive()


def test_a_port_in_use_is_said(coordinator):
    with socket.create_server(("", int(coordinator.split(":")[1]))):
        (said,) = meet(coordinator, (0, 2))
    assert "process 0 cannot listen there" in said


BY_HAND = {"coordinator": "10.0.0.1:1234", "num_processes": 4, "process_id": 2}
PLACE = Place(coordinator="10.0.0.1:1234", num_processes=4, process_id=2)


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
    assert find_place(DistributedConfig(**fields), environment) == wanted


def test_a_launchers_local_number_picks_the_device():
    environment = {"SLURM_NTASKS": "4", "SLURM_PROCID": "2", "SLURM_LOCALID": "1"}
    assert find_place(DistributedConfig(coordinator="10.0.0.1:1234"), environment).local_id == 1


@pytest.mark.parametrize(
    ("fields", "environment", "said"),
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
def test_what_cannot_be_is_refused(fields, environment, said):
    with pytest.raises(InputError) as error:
        find_place(DistributedConfig(**fields), environment)
    assert said in str(error.value)
