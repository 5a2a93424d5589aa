#!/usr/bin/env python3
"""Checks which GPUs each process takes under real Slurm and Open MPI on this machine, by JAX's own detection and by
ours.

    apt-get install --no-install-recommends slurmctld slurmd slurm-client munge openmpi-bin
    python scripts/checks/launch_devices.py        # as root: Slurm's daemons and device files want it; about 2 minutes

Two Slurm nodes of eight GPUs, both this machine; a GPU is a device file in place of one. There is no driver, so a
process uses as many CPU devices as it would take GPUs, and all of them compute a sum together. What is not installed is
left out with a line. Exits with status 1 where a process takes other devices than it should, or none ran.
"""

import argparse
import collections
from collections.abc import Iterator
import contextlib
import json
import os
from pathlib import Path
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

_GPUS = 8
# Layout, arguments of srun, processes, and the GPUs that each has to take.
SLURM_LAYOUTS = (
    ("one task a node", ("--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=8"), 2, 8),
    ("one task a GPU, each sees all", ("--nodes=1", "--ntasks-per-node=8", "--gpus-per-node=8"), 8, 1),
    ("one task a GPU, each bound", ("--nodes=1", "--ntasks-per-node=4", "--gpus-per-task=1"), 4, 1),
    ("two tasks a node, each sees all", ("--nodes=2", "--ntasks-per-node=2", "--gpus-per-node=8"), 4, 4),
    ("a part of a node", ("--nodes=1", "--ntasks=1", "--gpus=3"), 1, 3),
)
SLURM_REFUSED = ("three tasks for eight GPUs", ("--nodes=1", "--ntasks=3", "--gpus=8"))
MPI_LAYOUTS = (("one process a host", 1, 8), ("one process a GPU", 8, 1), ("two processes a host", 2, 4))

_CONFIGURATION = """ClusterName=check
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
ReturnToService=2
GresTypes=gpu
SwitchType=switch/none
NodeName=127.0.0.[1-2] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{first}-{last}] CPUs=16 RealMemory=1000 Gres=gpu:8
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def task(mode: str) -> None:
    """One process of a job: joins the others and prints what it would take, as a line of JSON."""
    import jax
    from jax._src import xla_bridge

    from diversity_jax.training import distributed
    from diversity_jax.training.distributed import DistributedConfig, start_distributed

    environment = {name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"}
    if mode == "jax":
        jax.distributed.initialize()
        taken = xla_bridge.CUDA_VISIBLE_DEVICES.value
        visible = len(environment["CUDA_VISIBLE_DEVICES"].split(","))
        there = range(visible) if taken == "all" else [device for device in taken.split(",") if int(device) < visible]
        count = len(there)  # CUDA has no ordinal beyond those visible
        print(json.dumps({"process": jax.process_index(), "ordinals": taken, "count": count, "all": None}))
        return
    choice = distributed.choose_devices(environment)
    jax.config.update("jax_num_cpu_devices", choice.granted)
    start_distributed(DistributedConfig(start="auto", timeout_seconds=60))
    taken = "all" if choice.ids is None else ",".join(map(str, choice.ids))
    together = jax.numpy.arange(jax.device_count())
    mesh = jax.make_mesh((jax.device_count(),), ("x",))
    array = jax.make_array_from_callback(
        together.shape, jax.NamedSharding(mesh, jax.P("x")), lambda index: together[index]
    )
    total = int(jax.jit(jax.numpy.sum, out_shardings=jax.NamedSharding(mesh, jax.P()))(array))
    assert total == sum(range(jax.device_count()))
    shown = {"process": jax.process_index(), "ordinals": taken, "count": jax.local_device_count()}
    print(json.dumps(shown | {"all": jax.device_count()}))


EIGHT = ",".join(map(str, range(_GPUS)))


def run(command: list[str], environment: dict[str, str]) -> tuple[list[dict], str]:
    """What the processes of a job printed, by their number, and its standard error."""
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=180, check=False)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return sorted(lines, key=lambda line: line["process"]), done.stderr


def compare(title: str, launcher: list[str], environment: dict[str, str], processes: int, wanted: int) -> bool:
    """Runs a layout by JAX's detection and by ours, prints both, and returns whether ours is as wanted."""
    good = False
    for mode in ("jax", "ours"):
        reports, errors = run([*launcher, sys.executable, __file__, "--task", mode], environment)
        kinds = collections.Counter(line["ordinals"] for line in reports)
        shown = " ".join(f"{count} x [{name}]" for name, count in kinds.items()) or "failed"
        counts = [line["count"] for line in reports]
        good = counts == [wanted] * processes and (mode == "jax" or reports[0]["all"] == wanted * processes)
        print(f"  {title:34} {mode:5} {sum(counts):3} of {wanted * processes:3} GPUs   {shown}")
        if mode == "ours" and not good:
            print(errors[-2000:], file=sys.stderr)
    return good


@contextlib.contextmanager
def slurm(folder: Path) -> Iterator[dict[str, str]]:
    """A Slurm of two nodes on this machine; the environment of its commands."""
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(1024))
    key.chmod(0o400)
    with contextlib.ExitStack() as ports:
        port = ports.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]
    first = 20000 + secrets.randbelow(10000)
    host = socket.gethostname().split(".")[0]
    values = {"host": host, "port": port, "folder": folder, "first": first, "last": first + 1}
    (folder / "slurm.conf").write_text(_CONFIGURATION.format(**values))
    for number in range(_GPUS):
        os.mknod(folder / f"nvidia{number}", 0o020666, os.makedev(1, 3))  # as /dev/null
    (folder / "gres.conf").write_text(f"NodeName=127.0.0.[1-2] Name=gpu File={folder}/nvidia[0-7]\n")
    environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf"), "JAX_PLATFORMS": "cpu"}
    files = {"key-file": key, "socket": folder / "munge.socket", "pid-file": folder / "munged.pid"}
    files |= {"log-file": folder / "munged.log", "seed-file": folder / "munge.seed"}
    try:
        daemons = [["munged", "--force", *(f"--{name}={path}" for name, path in files.items())], ["slurmctld", "-c"]]
        for command in [*daemons, ["slurmd", "-N", "127.0.0.1"], ["slurmd", "-N", "127.0.0.2"]]:
            subprocess.run(command, env=environment, check=True)
            time.sleep(1)
        deadline = time.monotonic() + 30
        while "idle" not in (state := run_text(["sinfo", "-h", "-o", "%t %D"], environment)) or "2" not in state:
            if time.monotonic() > deadline:
                sys.exit(f"error: the nodes did not come up ({state.strip()}); {folder}/*.log say why")
            time.sleep(0.5)
        yield environment
    finally:
        for name in ("slurmd-127.0.0.1", "slurmd-127.0.0.2", "slurmctld", "munged"):
            if (folder / f"{name}.pid").exists():
                os.kill(int((folder / f"{name}.pid").read_text()), 15)
        time.sleep(2)


def run_text(command: list[str], environment: dict[str, str]) -> str:
    """What a command prints."""
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False).stdout


def check_slurm() -> list[bool]:
    """All layouts, and one that has to be refused."""
    print(run_text(["slurmd", "-V"], dict(os.environ)).strip())
    results = []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, slurm(Path(folder)) as environment:
        for title, arguments, processes, wanted in SLURM_LAYOUTS:
            results.append(compare(title, ["srun", *arguments], environment, processes, wanted))
        title, arguments = SLURM_REFUSED
        _, errors = run(["srun", *arguments, sys.executable, __file__, "--task", "ours"], environment)
        message = "3 processes cannot share 8 GPUs of a host evenly"
        results.append(message in errors)
        print(f"  {title:34} ours  {'refused: ' + message if results[-1] else errors[-500:]}")
    return results


def check_open_mpi(mpirun: str) -> list[bool]:
    """One process a host, one a GPU, and in between; GPUs are those that CUDA_VISIBLE_DEVICES shows."""
    print(run_text([mpirun, "--version"], dict(os.environ)).splitlines()[0])
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": EIGHT}
    launcher = [mpirun, "--allow-run-as-root", "--oversubscribe", "--host", f"localhost:{_GPUS}"]
    return [
        compare(title, [*launcher, "-n", str(processes)], environment, processes, wanted)
        for title, processes, wanted in MPI_LAYOUTS
    ]


def main() -> None:
    """Runs what is installed here."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mpirun", action="append", help="of Open MPI; may be given for several releases")
    parser.add_argument("--task", choices=("jax", "ours"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task:
        try:
            task(options.task)
        except Exception as error:
            sys.exit(f"{type(error).__name__}: {error}")
        return
    results: list[bool] = []
    if all(map(shutil.which, ("slurmctld", "slurmd", "munged"))) and os.geteuid() == 0:
        results += check_slurm()
    else:
        print("Slurm: left out; slurmctld, slurmd and munged are not all installed, or this is not root")
    for mpirun in options.mpirun or filter(None, [shutil.which("mpirun")]):
        results += check_open_mpi(mpirun)
    print(f"{sum(results)} of {len(results)} as they should be")
    sys.exit(not results or not all(results))


if __name__ == "__main__":
    main()
