"""The study command on a small grid of real scorings: one process, two, killed and resumed, and single steps."""

import json
import os
from pathlib import Path
import re
import shutil
import subprocess
import sys

import pytest

from tests.kills import kills
from tests.processes import wait_until

ROOT = Path(__file__).resolve().parents[1]
CONFIG = """
from diversity_jax.cluster_agent import AgentConfig
from diversity_jax.synthesis.config import GenerateConfig, GrammarComponent
from diversity_jax.score_config import ScoreConfig
from diversity_jax.study.recipe import Factor, Level, Recipe, StudyConfig
from diversity_jax.synthesis.grammar import GrammarConfig


def get_config():
    made = GrammarComponent(path="{output}/text.jsonl", grammar=GrammarConfig(documents=300, topics=3))
    return StudyConfig(
        name="small",
        output_dir="",
        factors=(
            Factor(
                name="topics",
                levels=tuple(Level(name=n, set={"generate.grammar[0].grammar.topics": n}) for n in (3, 60)),
            ),
            Factor(name="K", levels=tuple(Level(name=k, set={"score.agent.samples_per_grouping": k}) for k in (5, 10))),
        ),
        apart=("K",),
        seeds=(0, 1),
        seed_fields=("score.agent.seed",),
        recipe=Recipe(
            generate=GenerateConfig(grammar=(made,)),
            score=ScoreConfig(corpus="{generate}/text.jsonl", agent=AgentConfig(groupings=60)),
        ),
    )
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("study") / "small.py"
    path.write_text(CONFIG)
    return path


def start(config: Path, folder: Path, *more: str, before: tuple[str, ...] = (), **environment: str) -> subprocess.Popen:
    words = [
        *before,
        sys.executable,
        "-m",
        "diversity_jax.study",
        "--config",
        str(config),
        f"--config.output_dir={folder}",
        *more,
    ]
    return subprocess.Popen(
        words,
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=200)
    return process.returncode, out, err


@pytest.fixture(scope="module")
def finished_study(config, tmp_path_factory) -> Path:
    """The study of one process, uninterrupted."""
    folder = tmp_path_factory.mktemp("whole")
    code, out, err = finish(start(config, folder))
    assert code == 0, err
    assert out.splitlines()[-1] == str(folder / "report.html")
    return folder


def analysis(folder: Path) -> str:
    return (folder / "analysis.json").read_text()


def page(folder: Path) -> str:
    """The page without its last section, which holds the command line."""
    return (folder / "report.html").read_text().split('id="facts"')[0]


def test_a_study_that_only_scores_says_what_its_factors_do_to_the_score(finished_study):
    result = json.loads(analysis(finished_study))
    assert {run["stage"] for run in result["runs"]} == {"5 scored", "10 scored"}
    assert {tuple(run["levels"]) for run in result["runs"]} == {("topics",)}
    effect = next(
        effect
        for effect in result["effects"]
        if (effect["stage"], effect["outcome"]) == ("10 scored", "effective_clusters")
    )
    few, many = (level["value"] for level in effect["levels"]["topics"])
    assert few < many
    assert result["densities"]["factors"] == ["topics", "K"]
    assert [density["name"] for density in result["densities"]["corpora"]] == [
        "3 \u00b7 5",
        "3 \u00b7 10",
        "60 \u00b7 5",
        "60 \u00b7 10",
    ]
    assert sum(result["densities"]["corpora"][0]["clusters"]["counts"]) == 60


def test_two_processes_find_the_same_and_share_the_steps(config, finished_study, tmp_path):
    code, _, err = finish(start(config, tmp_path, "--config.processes=2"))
    assert code == 0, err
    assert (analysis(tmp_path), page(tmp_path)) == (analysis(finished_study), page(finished_study))
    lines = re.findall(r"^(\w+-\w{16})  step", err, re.MULTILINE)
    assert sorted(lines) == sorted(folder.name for folder in (tmp_path / "steps").iterdir())


NAMESPACE = ("unshare", "--pid", "--fork", "--mount-proc")  # as a container: process ids of its own, the first is 1
CONTAINERS = int(os.environ.get("TEST_CONTAINERS", "3"))


@pytest.mark.skipif(
    shutil.which("unshare") is None or subprocess.run([*NAMESPACE, "true"], check=False).returncode != 0,
    reason="needs unshare and the right to make process namespaces",
)
def test_processes_that_do_not_see_each_other_share_the_steps(config, finished_study, tmp_path):
    ended = [finish(each) for each in [start(config, tmp_path, before=NAMESPACE) for _ in range(CONTAINERS)]]
    assert [code for code, _, _ in ended] == [0] * CONTAINERS, "".join(err for _, _, err in ended)
    assert (analysis(tmp_path), page(tmp_path)) == (analysis(finished_study), page(finished_study))
    lines = re.findall(r"^(\w+-\w{16})  step", "".join(err for _, _, err in ended), re.MULTILINE)
    assert sorted(lines) == sorted(folder.name for folder in (tmp_path / "steps").iterdir())
    assert not [path for path in tmp_path.rglob("*.partial")]


@pytest.mark.slow
def test_the_whole_chain_killed_ends_with_the_same_page():
    options = ["--kills", str(kills(1)), "--only", "topics=3", "--seed", "1"]
    words = [sys.executable, "scripts/checks/kill_study.py", *options]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert sum(line.startswith("kill ") for line in lines) == kills(1)
    assert re.fullmatch(r"\d kills: analysis.json the same, page the same", lines[-1])


@pytest.mark.slow
def test_a_training_stopped_by_sigterm_is_saved_and_not_taken_for_done(tmp_path):
    smoke = ROOT / "configs" / "studies" / "smoke.py"
    process = start(
        smoke, tmp_path, "--config.only=topics=3", "--config.recipe.train.train.steps=100000", "--config.processes=2"
    )
    logs = lambda: [path.read_text() for path in tmp_path.glob("steps/train-*/log.txt")]  # noqa: E731
    wait_until(lambda: any(re.search(r"step +\d+/", log) for log in logs()), seconds=200)
    process.terminate()
    code, _, err = finish(process)
    assert code == 143, err
    (train,) = tmp_path.glob("steps/train-*")
    assert not (train / "done.json").exists()
    assert not (train / "failed.json").exists()
    assert any((train / "output" / "checkpoints").iterdir())


def test_a_bucket_is_refused_with_what_to_do_instead(config):
    code, _, err = finish(start(config, "gs://bucket/study"))
    assert code == 2
    (line,) = err.strip().splitlines()
    assert line.startswith(
        "error: output_dir=gs://bucket/study: a study needs a folder with file locks; mount the bucket"
    )


def test_again_it_runs_no_step_and_draws_the_same_page(config, finished_study):
    before = page(finished_study)
    code, _, err = finish(start(config, finished_study))
    assert code == 0
    assert not re.search(r"  step \d", err)
    assert page(finished_study) == before


def test_single_steps_for_a_scheduler(config, tmp_path):
    code, out, _ = finish(start(config, tmp_path, "--config.dry_run=True", "--config.only=topics=3, K=5"))
    assert code == 0
    generate, *scores = re.findall(r"^to do\s+(\S+)", out, re.MULTILINE)
    assert len(scores) == 2
    refused = finish(start(config, tmp_path, f"--config.step={scores[0]}"))
    assert refused[0] == 2
    assert (
        refused[2].strip().splitlines()[-1]
        == f"error: step={scores[0]!r}: needs {generate}, which is not done; run it first"
    )
    assert finish(start(config, tmp_path, f"--config.step={generate}"))[0] == 0
    assert [folder.name for folder in (tmp_path / "steps").iterdir() if (folder / "done.json").exists()] == [generate]


@pytest.mark.parametrize(
    ("only", "message"),
    [
        ("colour=red", "study 'small' has no factor 'colour'; it has topics, K"),
        ("K=7", "factor 'K' has no level '7'; it has 5, 10"),
        ("K", "'K' is not of the form factor=level"),
    ],
)
def test_what_is_not_in_the_study_cannot_be_kept(config, tmp_path, only, message):
    from diversity_jax.core import config as config_files
    from diversity_jax.core.errors import InputError
    from diversity_jax.study.config import StudyConfig, plan
    from diversity_jax.study.graph import StepStore

    study = config_files.parse(["--config", str(config), f"--config.only={only}"], StudyConfig)
    with pytest.raises(InputError, match=re.escape(message)):
        plan(study, StepStore(tmp_path))
