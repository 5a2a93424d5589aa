"""Launch scripts: the commands they would run, checked by the tools' parsers, and their effects on a host."""

import os
from pathlib import Path
import re
import shlex
import shutil
import subprocess
import sys
import time

import pytest
import yaml

from tests.processes import wait_until

ROOT = Path(__file__).resolve().parents[1]
LAUNCH = ROOT / "scripts" / "launch"
STUDY = (
    "study",
    "--config",
    "configs/studies/ratio.py",
    "--config.only=model=350M|1.4B",
    "--config.output_dir=/mnt/a b",
)
TRAIN = ("train", "--config", "configs/llama_1p4b.py", "--config.output_dir=gs://b/run")
KUBERNETES = ("kubernetes.yaml", "kubernetes_gpu.yaml", "gke_tpu.yaml")


def run(*words, check=True, **environment):
    variables = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", **environment}
    words = list(map(str, words))
    return subprocess.run(words, env=variables, capture_output=True, text=True, check=check, timeout=60)


def printed(*words: str, script: str = "tpu", **environment: str) -> list[list[str]]:
    """The commands that a launcher would run, as words."""
    return [shlex.split(line) for line in run(LAUNCH / script, "--print", *words, **environment).stdout.splitlines()]


def remote(command: list[str]) -> list[str]:
    """The words that a command runs on a host."""
    line = next(word.removeprefix("--command=") for word in command if word.startswith("--command="))
    return shlex.split(line)


@pytest.fixture
def env_file(tmp_path):
    (tmp_path / "keys").write_text("# of the judge\nOPENAI_API_KEY=s3cret $(touch /tmp/never)\n")
    return tmp_path / "keys"


def test_tpu_vms_are_queued_set_up_and_started_with_the_very_arguments(env_file):
    flags = ("--env-file", str(env_file), "--spot", "--max-restarts", "7", "--source", "https://example.org/d.git")
    commands = printed(*flags, "vm", "w1", "v5litepod-8", "zone-a", *STUDY)
    create, *_, install, start = commands
    assert create[:6] == ["gcloud", "compute", "tpus", "queued-resources", "create", "w1"]
    wanted = {"--accelerator-type=v5litepod-8", "--runtime-version=v2-alpha-tpuv5-lite", "--spot", "--node-id=w1"}
    assert wanted <= set(create)
    assert remote(install)[1:] == [".diversity_jax/host", "install", "https://example.org/d.git", "tpu"]
    assert remote(start)[1:] == [".diversity_jax/host", "start", "w1", "7", *STUDY]
    assert "s3cret" not in str(commands)
    assert any(str(env_file) in command for command in commands)


@pytest.mark.parametrize(
    ("type_", "slices", "runtime", "several"),
    [
        ("v4-8", 1, "tpu-ubuntu2204-base", False),
        ("v4-32", 1, "tpu-ubuntu2204-base", True),
        ("v5litepod-256", 2, "v2-alpha-tpuv5-lite", True),
        ("v5p-128", 1, "v2-alpha-tpuv5", True),
        ("v6e-16", 1, "v2-alpha-tpuv6e", True),
        ("v6e-4", 2, "v2-alpha-tpuv6e", True),
        ("v6e-4", 1, "v2-alpha-tpuv6e", False),
    ],
)
def test_each_generation_has_its_runtime_and_several_hosts_find_each_other(type_, slices, runtime, several):
    create, *_, start = printed("--slices", str(slices), "vm", "w1", type_, "zone-a", *TRAIN)
    assert f"--runtime-version={runtime}" in create
    nodes = {"--node-id=w1"} if slices == 1 else {f"--node-count={slices}", "--node-prefix=w1"}
    assert nodes <= set(create)
    assert ("--config.distributed.start=auto" in remote(start)) == several
    assert start[5] == ("w1" if slices == 1 else f"w1-{slices - 1}")


def test_xpk_gets_the_workload_and_its_command(env_file):
    flags = ("--image", "image:1", "--slices", "2", "--max-restarts", "3", "--env-file", str(env_file))
    (create,) = printed(*flags, "xpk", "w1", "v5litepod-256", "cluster", *TRAIN)
    wanted = {"--workload=w1", "--cluster=cluster", "--tpu-type=v5litepod-256", "--num-slices=2", "--max-restarts=3"}
    assert wanted | {"--docker-image=image:1", f"--env-file={env_file}"} <= set(create)
    assert remote(create)[-len(TRAIN) :] == [*TRAIN[1:], "--config.distributed.start=auto"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("vm",), "scripts/launch/tpu [OPTIONS] xpk NAME TYPE CLUSTER"),
        (("--bogus", "vm", "a", "v6e-8", "z", "train"), "scripts/launch/tpu [OPTIONS] vm"),
        (("vm", "a", "tpu7x-16", "z", "train"), "not offered by the Cloud TPU API; use xpk"),
        (("vm", "a", "v6e-9", "z", "train"), "error: v6e-9: v6e has no such slice; known numbers are 1, 4, 8, 16"),
        (("vm", "a", "h100", "z", "train"), "is no TPU slice; write FAMILY-NUMBER"),
        (("--slices", "0", "vm", "a", "v6e-8", "z", "train"), "--slices 0: must be a whole number from 1 on"),
        (("--env-file", "/nowhere", "vm", "a", "v6e-8", "z", "train"), "--env-file /nowhere: no such file"),
        (("--max-restarts", "many", "vm", "a", "v6e-8", "z", "train"), "--max-restarts many: must be a whole number"),
        (("xpk", "a", "v6e-8", "c", "train"), "--image: give a container image"),
    ],
)
def test_what_cannot_be_is_refused_before_any_command(words, message):
    done = run(LAUNCH / "tpu", "--print", *words, check=False)
    assert done.returncode == 2
    assert message in done.stdout + done.stderr
    assert not re.search(r"^\W*gcloud ", done.stdout, re.MULTILINE)


GCLOUD = """#!/usr/bin/env bash
# Queued resources as a list of states in $STATES, one a question; hosts answer with a line of $HOSTS.
printf '%q ' "$@" >>"$CALLS"; printf '\\n' >>"$CALLS"
next() { line=$(head -n 1 "$1"); [[ $(wc -l <"$1") == 1 ]] || sed -i 1d "$1"; printf '%s\\n' "$line"; }
case "$*" in
*"queued-resources describe"*) next "$STATES" ;;
*"host status"*) line=$(next "$HOSTS"); [[ $line != gone ]] || exit 255; printf '%s\\n' "$line" ;;
esac
"""


@pytest.mark.parametrize(
    ("states", "hosts", "restarts", "status", "created"),
    [
        ("\nWAITING_FOR_RESOURCES\nACTIVE\n", "running\nended 0\n", 0, 0, 1),
        ("ACTIVE\n", "running\nended 0\n", 0, 0, 0),  # a rerun
        ("SUSPENDED\n\nACTIVE\n", "ended 0\n", 0, 0, 1),  # a rerun after spot machines were taken away
        ("ACTIVE\nSUSPENDED\nSUSPENDED\n\nACTIVE\n", "gone\nended 0\n", 1, 0, 1),
        ("ACTIVE\nSUSPENDED\n", "gone\n", 0, 75, 0),
        ("ACTIVE\n", "ended 2\n", 5, 2, 0),
        ("ACTIVE\n", "gone\ngone\nended 1\n", 5, 1, 0),  # a connection that fails is no loss of machines
    ],
)
def test_slices_are_waited_for_taken_anew_and_left_in_peace(states, hosts, restarts, status, created, tmp_path):
    for name, text in (("states", states), ("hosts", hosts), ("calls", "")):
        (tmp_path / name).write_text(text)
    (tmp_path / "gcloud").write_text(GCLOUD)
    (tmp_path / "gcloud").chmod(0o755)
    (tmp_path / "sleep").symlink_to("/bin/true")
    files = {name.upper(): str(tmp_path / name) for name in ("states", "hosts", "calls")}
    path = f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    words = ("--max-restarts", restarts, "vm", "w1", "v6e-16", "zone", *TRAIN)
    done = run(LAUNCH / "tpu", *words, check=False, PATH=path, **files)
    calls = (tmp_path / "calls").read_text()
    assert done.returncode == status, done.stderr
    assert calls.count("queued-resources create") == created
    assert calls.count("host\\ start") == 1 + (restarts == 1)


def test_ssh_starts_one_process_a_host_and_names_the_first_as_coordinator(env_file):
    flags = ("--address", "10.0.0.1", "--env-file", str(env_file), "--max-restarts", "3")
    commands = printed(*flags, "run1", "me@a,b", *TRAIN, script="ssh")
    starts = [shlex.split(command[2]) for command in commands if command[0] == "ssh" and "host start" in command[2]]
    addresses = ["--config.distributed.coordinator=10.0.0.1:8476", "--config.distributed.num_processes=2"]
    for number, words in enumerate(starts):
        assert words[2:] == ["start", "run1", "3", *TRAIN, *addresses, f"--config.distributed.process_id={number}"]
    assert len(starts) == 2
    (alone,) = [words for words in printed("run1", "a", *TRAIN, script="ssh") if "host start" in str(words)]
    assert "distributed" not in str(alone)


@pytest.fixture
def host(tmp_path):
    """A host's folder with a project whose command writes what it sees, and this Python as its environment."""
    folder = tmp_path / "host folder"
    (folder / "project" / "diversity_jax").mkdir(parents=True)
    (folder / "project" / "diversity_jax" / "__init__.py").touch()
    (folder / "project" / "diversity_jax" / "act.py").write_text(
        "import os, pathlib, signal, sys, time\n"
        "out = pathlib.Path(sys.argv[1])\n"
        "out.write_text((out.read_text() if out.exists() else '') + os.environ.get('OPENAI_API_KEY', '') + '\\n')\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n"
        "time.sleep(float(sys.argv[2]))\n"
        "sys.exit(int(sys.argv[3]))\n"
    )
    (folder / "venv" / "bin").mkdir(parents=True)
    (folder / "venv" / "bin" / "python").symlink_to(sys.executable)
    shutil.copy(LAUNCH / "host", folder / "host")
    return folder


def wait_for(host, wanted, seconds=30):
    deadline = time.monotonic() + seconds
    while (state := run("bash", host / "host", "status", "w1").stdout.strip()) != wanted:
        assert time.monotonic() < deadline, (state, (host / "w1.log").read_text())
        time.sleep(0.1)


@pytest.mark.parametrize(("status", "attempts"), [(0, 1), (2, 1), (3, 3)])
def test_a_host_starts_again_after_failures_but_not_after_bad_input(host, status, attempts, tmp_path):
    (tmp_path / "sleep").symlink_to("/bin/true")
    (host / "env").write_text("# a comment\n\nOPENAI_API_KEY=s3cret $(exit 9) 'x'\n")
    assert run("bash", host / "host", "status", "w1").stdout == "absent\n"
    path = f"{tmp_path}:{os.environ['PATH']}"
    words = ("start", "w1", "2", "act", tmp_path / "a b", "0.3", status)
    run("bash", host / "host", *words, PATH=path)
    assert "runs already" in run("bash", host / "host", *words, PATH=path).stdout
    assert "is at work; nothing is installed" in run("bash", host / "host", "install", "-", "cpu").stdout
    wait_for(host, f"ended {status}")
    assert (tmp_path / "a b").read_text() == "s3cret $(exit 9) 'x'\n" * attempts


def test_a_host_passes_the_request_to_stop_on_and_starts_nothing_more(host, tmp_path):
    run("bash", host / "host", "start", "w1", "5", "act", tmp_path / "out", "60", "0")
    wait_until((tmp_path / "out").exists, seconds=30)
    time.sleep(0.3)
    run("bash", host / "host", "stop", "w1")
    wait_for(host, "ended 143")
    assert (tmp_path / "out").read_text() == "\n"


def test_an_env_file_with_anything_else_is_refused(host, tmp_path):
    (host / "env").write_text("export KEY=1\n")
    done = run("bash", host / "host", "start", "w1", "0", "act", tmp_path / "out", "0", "0", check=False)
    assert done.returncode == 2
    assert "not NAME=VALUE" in done.stderr


def test_a_host_without_a_fitting_python_says_so_and_installs_nothing(host, tmp_path):
    """Ubuntu 22.04, the image of TPU VMs, has Python 3.10; here its packages cannot be reached either."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("bash", "hostname", "dirname", "cat", "cksum", "mkdir", "tar"):
        (tools / name).symlink_to(shutil.which(name))
    (tools / "python3").write_text('#!/bin/bash\n[ "$1" = -V ] && echo Python 3.10.12 && exit\nexit 1\n')
    (tools / "sudo").write_text("#!/bin/bash\nexit 1\n")
    for name in ("python3", "sudo"):
        (tools / name).chmod(0o755)
    done = run(tools / "bash", host / "host", "install", "-", "tpu", check=False, PATH=str(tools), PYTHON="")
    assert done.returncode == 2
    assert "no Python from 3.11 to 3.13 (python3 is Python 3.10.12); installing one" in done.stdout
    assert "neither python3.12 nor python3.11 can be installed here" in done.stderr
    assert not (host / "venv" / "installed").exists()


def containers(job):
    return job["spec"]["template"]["spec"]["containers"]


@pytest.mark.parametrize("name", KUBERNETES)
def test_kubernetes_files_mount_what_they_write_to_and_end_on_bad_input(name):
    *services, job = yaml.safe_load_all((LAUNCH / name).read_text())
    pod, (worker,) = job["spec"]["template"]["spec"], containers(job)
    mounted = {mount["mountPath"]: mount["name"] for mount in worker.get("volumeMounts", ())}
    assert set(mounted.values()) == {volume["name"] for volume in pod.get("volumes", ())}
    values = dict(word.split("=", 1) for word in worker["args"] if "=" in word)
    output = values["--config.output_dir"]
    assert output.startswith("gs://") or Path("/", Path(output).parts[1]).as_posix() in mounted
    assert (ROOT / values["--config"]).exists()
    assert worker["args"][0] in ("diversity_jax.train", "diversity_jax.study")
    for service in services:
        assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
        assert pod["subdomain"] == service["metadata"]["name"]
        assert job["spec"]["podFailurePolicy"]["rules"][1]["onExitCodes"] == {"operator": "In", "values": [2]}
        environment = {variable["name"]: variable.get("value") for variable in worker.get("env", ())}
        assert int(environment.get("JAX_NUM_PROCESSES", job["spec"]["completions"])) == job["spec"]["completions"]


@pytest.mark.parametrize("name", KUBERNETES)
def test_kubernetes_accepts_them_by_its_schemas(name, tmp_path):
    validate = pytest.importorskip("kubernetes_validate")
    for document in yaml.safe_load_all((LAUNCH / name).read_text()):
        document["metadata"].setdefault("name", "of-generateName")  # which this tool does not know
        validate.validate(document, "1.31", strict=True)


def tool(name):
    path = shutil.which(name, path=f"{os.environ['PATH']}:{os.environ.get('LAUNCH_TOOLS', '')}")
    return path or pytest.skip(f"{name} is not installed; LAUNCH_TOOLS may name a folder that holds it")


@pytest.mark.parametrize("name", ["slurm.sbatch", "tpu", "host", "ssh"])
def test_the_shell_reads_them(name):
    run("bash", "-n", LAUNCH / name)
    run(tool("shellcheck"), LAUNCH / name)


def test_gcloud_knows_the_flags(tmp_path):
    """Without an account a command ends at the log-in, which comes after its flags were read."""
    gcloud = tool("gcloud")
    commands = printed("--slices", "2", "--spot", "vm", "w1", "v6e-16", "zone-a", *TRAIN)
    for command in {tuple(words[:5]): words for words in commands}.values():
        done = run(
            gcloud,
            *command[1:],
            "--project=p",
            check=False,
            CLOUDSDK_CONFIG=str(tmp_path),
            CLOUDSDK_CORE_DISABLE_PROMPTS="1",
        )
        assert "You do not currently have an active account" in done.stderr, (command, done.stderr)


def test_xpk_accepts_the_workload(env_file, tmp_path):
    xpk = tool("xpk")
    flags = ("--image", "image:1", "--slices", "2", "--max-restarts", "3", "--env-file", str(env_file))
    (create,) = printed(*flags, "xpk", "w1", "v5litepod-256", "cluster", *TRAIN)
    dry = ("--dry-run", "--project=p", "--zone=us-west4-a", "--skip-validation")
    done = run(xpk, *create[1:], *dry, CLOUDSDK_CONFIG=str(tmp_path), PATH=f"{Path(xpk).parent}:{os.environ['PATH']}")
    assert "XPK Done" in done.stdout or "Exiting XPK cleanly" in done.stdout
    assert "python -m diversity_jax.train" in done.stdout


def slurm_job(tmp_path, *words, restarts="0", status=0):
    """Runs the batch file as Slurm does, from the submit folder; `srun` here runs its command once."""
    (tmp_path / ".venv/bin").mkdir(parents=True)
    scripts = {
        ".venv/bin/python": f'printf "%s\\n" "$@"; exit {status}',
        "srun": '[[ $1 != --* ]] || shift\nexec "$@"',
        "scontrol": 'echo "scontrol $*"',
    }
    for name, line in scripts.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{line}\n")
        (tmp_path / name).chmod(0o755)
    job = {"SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": restarts, "SLURM_NTASKS": "4"}
    return run("bash", LAUNCH / "slurm.sbatch", *words, check=False, PATH=f"{tmp_path}:{os.environ['PATH']}", **job)


def test_slurm_starts_the_command_it_was_given(tmp_path):
    done = slurm_job(tmp_path, *STUDY)
    assert (done.returncode, done.stdout.splitlines()) == (0, ["-m", "diversity_jax.study", *STUDY[1:]])


@pytest.mark.parametrize(
    ("status", "restarts", "again"),
    [(0, "0", False), (143, "0", True), (1, "19", True), (1, "20", False), (2, "0", False)],
)
def test_slurm_queues_a_stopped_training_again(status, restarts, again, tmp_path):
    done = slurm_job(tmp_path, *TRAIN, restarts=restarts, status=status)
    assert done.returncode == status
    assert ("scontrol requeue 7" in done.stdout) == again
    assert "--config.distributed.start=auto" in done.stdout
