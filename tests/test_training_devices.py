"""GPUs that a process takes under each launcher's environment; the Slurm rows were printed by Slurm 22.05."""

import pytest

from diversity_jax.core.errors import InputError
from diversity_jax.training.distributed import check_found, choose_devices, coordinator

EIGHT = "0,1,2,3,4,5,6,7"


def slurm(tasks: str, local: int = 0, node: int = 0, **more: str) -> dict[str, str]:
    numbers = {"SLURM_NTASKS": "16", "SLURM_PROCID": "3", "SLURM_LOCALID": str(local), "SLURM_NODEID": str(node)}
    return numbers | {"SLURM_STEP_TASKS_PER_NODE": tasks} | more


def mpi(size: int, local: int = 0, **more: str) -> dict[str, str]:
    numbers = {"OMPI_COMM_WORLD_SIZE": "16", "OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_LOCAL_SIZE": str(size)}
    return numbers | {"OMPI_COMM_WORLD_LOCAL_RANK": str(local)} | more


def on_node(count: int, visible: str) -> dict[str, str]:
    return {"SLURM_GPUS_ON_NODE": str(count), "CUDA_VISIBLE_DEVICES": visible, "SLURM_STEP_GPUS": visible}


ONE_A_NODE = slurm("1(x2)", **on_node(8, EIGHT))


@pytest.mark.parametrize(
    ("environment", "present", "ids", "granted"),
    [
        pytest.param(ONE_A_NODE, 8, None, 8, id="slurm, one task a node"),
        pytest.param(slurm("8(x2)", 5, 1, **on_node(8, EIGHT)), 8, (5,), 1, id="slurm, one task a GPU, unbound"),
        pytest.param(slurm("8", 5, **on_node(8, "5")), 8, None, 1, id="slurm, one task a GPU, bound"),
        pytest.param(slurm("4", 3, **on_node(8, "6,7")), 8, None, 2, id="slurm, two GPUs a task, bound"),
        pytest.param(slurm("2", 1, **on_node(8, EIGHT)), 8, (4, 5, 6, 7), 4, id="slurm, four GPUs a task, unbound"),
        pytest.param(slurm("2(x3),1", 0, 3, **on_node(8, EIGHT)), 8, None, 8, id="slurm, the last node has one task"),
        pytest.param(slurm("2(x3),1", 1, 2, **on_node(8, EIGHT)), 8, (4, 5, 6, 7), 4, id="slurm, the others two"),
        pytest.param(slurm("1", **on_node(3, "0,1,2")), 8, None, 3, id="slurm, a part of the node"),
        pytest.param(slurm("8", 5, SLURM_GPUS_PER_TASK="h100:1"), None, (5,), 1, id="slurm, a count a task alone"),
        pytest.param(slurm("1", SLURM_GPUS_PER_TASK="a100:2,h100:2"), None, None, 4, id="slurm, two kinds"),
        pytest.param(slurm("8", 5), None, (5,), None, id="slurm without GPUs"),
        pytest.param(slurm("1"), None, None, None, id="slurm without GPUs, one task a node"),
        pytest.param(slurm("1"), 8, None, 8, id="slurm that does not manage GPUs, one task a node"),
        pytest.param(slurm("8", 5), 8, (5,), 1, id="slurm that does not manage GPUs, eight tasks"),
        pytest.param(ONE_A_NODE | {"PMI_SIZE": "16", "PMI_RANK": "3"}, 8, None, 8, id="srun --mpi=pmi2"),
        pytest.param(mpi(1), 8, None, 8, id="open mpi, one process a host"),
        pytest.param(mpi(8, 5), 8, (5,), 1, id="open mpi, one a GPU"),
        pytest.param(mpi(8, 5, CUDA_VISIBLE_DEVICES="5"), 8, None, 1, id="open mpi, bound by a wrapper"),
        pytest.param(mpi(8, 5, CUDA_VISIBLE_DEVICES="5"), None, None, 1, id="open mpi, bound, devices unknown"),
        pytest.param(mpi(2, 1, CUDA_VISIBLE_DEVICES="4,5,6,7"), 8, None, 4, id="open mpi, four each, bound"),
        pytest.param(mpi(2, 1, CUDA_VISIBLE_DEVICES="4,5,6,7"), 16, (2, 3), 2, id="open mpi, four of sixteen shared"),
        pytest.param(mpi(8, 5, **ONE_A_NODE), 8, (5,), 1, id="mpirun inside a Slurm job"),
        pytest.param(mpi(8, 5), None, (5,), None, id="open mpi on CPUs"),
        pytest.param({"PMI_SIZE": "4", "PMI_RANK": "1", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "4"}, 8, (2, 3), 2,
                     id="hydra"),
        pytest.param({}, 8, None, 8, id="bare host"),
        pytest.param({}, None, None, None, id="bare host without GPUs"),
        pytest.param({"CUDA_VISIBLE_DEVICES": "2,3"}, 8, None, 2, id="bare host, restricted by hand"),
        pytest.param({"CUDA_VISIBLE_DEVICES": "MIG-1a,MIG-2b"}, 1, None, 2, id="bare host, MIG"),
        pytest.param({"CUDA_VISIBLE_DEVICES": ""}, 8, None, 0, id="bare host, hidden"),
        pytest.param({"ROCR_VISIBLE_DEVICES": "0,1"}, None, None, 2, id="bare host, AMD"),
        pytest.param({"JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "2"}, 8, None, 8, id="by ssh, one process a host"),
        pytest.param(
            {"JAX_NUM_PROCESSES": "16", "JAX_PROCESS_ID": "9", "JAX_LOCAL_PROCESS_ID": "1"}, 8, (1,), 1,
            id="by ssh, one a GPU",
        ),
        pytest.param({"JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "2", "JAX_LOCAL_PROCESS_ID": "0",
                      "JAX_LOCAL_PROCESS_COUNT": "1"}, 8, None, 8, id="by ssh, one of one"),
        pytest.param(ONE_A_NODE | {"JAX_LOCAL_DEVICE_IDS": "0,1"}, 8, (0, 1), 2, id="a part by hand"),
        pytest.param({"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "1"}, None, None, None, id="TPU slice, XPK"),
        pytest.param({"MEGASCALE_NUM_SLICES": "2", "MEGASCALE_SLICE_ID": "1"}, None, None, None, id="TPU multislice"),
    ],
)  # fmt: skip
def test_devices_of_a_process(environment, present, ids, granted):
    choice = choose_devices(environment, present)
    assert (choice.ids, choice.granted) == (ids, granted)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (slurm("3", 1, **on_node(8, EIGHT)), "3 processes cannot share 8 GPUs of a host evenly"),
        (slurm("2", 1, **on_node(1, "0")), "2 processes cannot share 1 GPUs"),
        (slurm("1", **on_node(8, "0")), "8 GPUs of this host were granted to 1 process, and this one sees 1"),
        (slurm("1", **on_node(8, "")), "sees 0"),
        (slurm("4", 1, **on_node(8, "1")), "8 GPUs of this host were granted to 4 processes, and this one sees 1"),
        (slurm("some"), "SLURM_STEP_TASKS_PER_NODE='some': is not a number of processes"),
        (slurm("1(x2)", 0, 2), "SLURM_NODEID=2: is beyond the 2 nodes"),
        (slurm("1", SLURM_GPUS_ON_NODE="many"), "SLURM_GPUS_ON_NODE='many': is not a whole number"),
        ({"JAX_LOCAL_DEVICE_IDS": "0,one"}, "JAX_LOCAL_DEVICE_IDS='one': is not a whole number"),
    ],
    ids=str,
)
def test_a_part_that_would_lie_idle_is_refused(environment, message):
    with pytest.raises(InputError) as error:
        choose_devices(environment, 8)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("environment", "platform", "devices", "message"),
    [
        (ONE_A_NODE, "gpu", 8, None),
        (ONE_A_NODE, "gpu", 1, "8 GPUs were granted (SLURM_GPUS_ON_NODE=8, CUDA_VISIBLE_DEVICES=0,1"),
        (ONE_A_NODE, "cpu", 1, "and JAX found none; install"),
        (ONE_A_NODE | {"JAX_PLATFORMS": "cpu"}, "cpu", 1, None),
        (ONE_A_NODE | {"JAX_LOCAL_DEVICE_IDS": "3"}, "gpu", 1, None),
        (slurm("1"), "cpu", 1, None),
        ({}, "tpu", 4, None),
    ],
    ids=str,
)
def test_what_was_found_is_compared_with_what_was_granted(environment, platform, devices, message):
    choice = choose_devices(environment)
    if message is None:
        check_found(choice, platform, devices)
        return
    with pytest.raises(InputError) as error:
        check_found(choice, platform, devices)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("node001", "node001"),
        ("node001,host2", "node001"),
        ("node[001-0015],host2", "node001"),
        ("node[001,007-015],host2", "node001"),
        ("rack[1-2]-node[07-12,20]-ib,other", "rack1-node07-ib"),
    ],
)
def test_slurms_first_node_is_the_coordinator(nodes, host):
    environment = slurm("1") | {"SLURM_STEP_NODELIST": nodes, "SLURM_JOB_ID": "4097", "SLURM_STEP_ID": "2"}
    assert coordinator(environment) == f"{host}:{61440 + 3}"
    assert coordinator(environment | {"JAX_COORDINATOR_PORT": "123"}) == f"{host}:123"


@pytest.mark.parametrize(
    ("variables", "address"),
    [
        ({"OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911"}, "10.96.0.1:62624"),
        ({"OMPI_MCA_orte_hnp_uri": "1314521088.0;tcp6://[fe80::b9b,2620:10d::3]:43370"}, "[fe80::b9b]:62880"),
        ({"PMIX_NAMESPACE": "prterun-my-host-4100@1"}, "my-host:61444"),
        ({}, None),
    ],
)
def test_open_mpis_own_host_is_the_coordinator(variables, address):
    assert coordinator(mpi(1) | variables) == address
