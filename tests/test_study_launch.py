"""Launch files: the commands they would run, and manifests that hold what a worker needs."""

import os
from pathlib import Path
import shlex
import shutil
import subprocess

import pytest
import yaml

LAUNCH = Path(__file__).resolve().parents[1] / "scripts" / "launch"
STUDY = (
    "study",
    "--config",
    "configs/studies/ratio.py",
    "--config.only=model=350M|1.4B",
    "--config.output_dir=/mnt/a b",
)


def printed(*words: str, **environment: str) -> list[list[str]]:
    """The commands that `tpu` would run, as words."""
    done = subprocess.run(
        [LAUNCH / "tpu", *words],
        env={**os.environ, "PRINT": "1", **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return [shlex.split(line, comments=True) for line in done.stdout.splitlines() if not line.startswith("#")]


def test_tpu_vms_are_made_set_up_and_started_with_the_very_arguments():
    create, setup, start = printed(
        "vm", "w1", "v5litepod-8", "zone-a", *STUDY, REPOSITORY="https://example.org/d.git", OPENAI_API_KEY="s3cret"
    )
    assert create[:6] == ["gcloud", "compute", "tpus", "tpu-vm", "create", "w1"]
    assert {"--accelerator-type=v5litepod-8", "--zone=zone-a"} <= set(create)
    assert "https://example.org/d.git" in setup[-1]
    remote = shlex.split(start[-1].removeprefix("--command="))
    first = remote.index("diversity_jax.study")
    assert tuple(remote[first + 1 : first + len(STUDY)]) == STUDY[1:]
    assert "s3cret" not in str((create, setup, start))


def test_xpk_gets_the_workload_and_its_command():
    (create,) = printed("xpk", "w1", "v5litepod-256", "cluster", *STUDY, IMAGE="image:1", SLICES="2")
    assert {
        "--workload=w1",
        "--cluster=cluster",
        "--tpu-type=v5litepod-256",
        "--num-slices=2",
        "--docker-image=image:1",
    } <= set(create)
    assert tuple(shlex.split(create[-1].removeprefix("--command="))[-len(STUDY) + 1 :]) == STUDY[1:]


def test_too_few_words_print_the_usage():
    done = subprocess.run([LAUNCH / "tpu", "vm"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "scripts/launch/tpu xpk NAME TYPE CLUSTER" in done.stdout


def test_the_kubernetes_job_mounts_the_folder_it_writes_to():
    job = yaml.safe_load((LAUNCH / "kubernetes.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    pod = job["spec"]["template"]["spec"]
    (worker,) = pod["containers"]
    mounted = {mount["mountPath"]: mount["name"] for mount in worker["volumeMounts"]}
    assert set(mounted.values()) == {volume["name"] for volume in pod["volumes"]}
    assert next(word for word in worker["command"] if word.startswith("--config.output_dir=")).split("=")[1] in mounted
    assert (
        LAUNCH.parents[1] / next(word for word in worker["command"] if word.startswith("--config=")).split("=")[1]
    ).exists()


@pytest.mark.parametrize("name", ["slurm.sbatch", "tpu"])
def test_the_shell_reads_them(name):
    subprocess.run(["bash", "-n", LAUNCH / name], check=True)


def test_slurm_starts_the_command_it_was_given(tmp_path):
    """As Slurm runs it: from the submit folder, `srun` on the path; here `srun` runs its command once."""
    (tmp_path / ".venv/bin").mkdir(parents=True)
    for name, line in ((".venv/bin/python", 'printf "%s\\n" "$@"'), ("srun", 'exec "$@"')):
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{line}\n")
        (tmp_path / name).chmod(0o755)
    shutil.copy(LAUNCH / "slurm.sbatch", tmp_path / "script")
    environment = {**os.environ, "SLURM_SUBMIT_DIR": str(tmp_path), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", tmp_path / "script", *STUDY], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == ["-m", "diversity_jax.study", *STUDY[1:]]
