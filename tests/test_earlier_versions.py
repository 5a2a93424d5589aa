"""What commit fdaef38 wrote is read and continued as it was: configurations, scores, mixtures, prepared components."""

import contextlib
import json
import os
from pathlib import Path
import shutil
import sqlite3

import pytest

from diversity_jax.cluster_agent import Scorecard
from diversity_jax.metrics import MetricsReport
from diversity_jax.mixtures.mixture import Mixture
from tests import earlier_versions
from tests.cluster_agent_answers import by_first_word
from tests.earlier_versions import EXPECTED, ROOT, config, flat, read, rewritten, run, sha256
from tests.llm_server import serve
from tests.processes import run_python

unpacked, world = earlier_versions.unpacked, earlier_versions.world  # fixtures

FIGURES = ("effective_clusters", "cluster_score", "clusters_per_sample", "collision")
SCORECARDS = (
    "score_offline/scorecard.json",
    "score_llm/varied/scorecard.json",
    "score_llm/dull/scorecard.json",
    *(f"mixture/scorecards/{name}.json" for name in ("real", "web", "varied", "lean", "dull")),
)


# Configuration files


def test_every_configuration_file_as_written_loads(world):
    shutil.move("configs_as_written", "configs")
    code = (
        "import dataclasses, pathlib, runpy\n"
        "for path in sorted(pathlib.Path('configs').rglob('*.py')):\n"
        "    value = runpy.run_path(str(path))['get_config']()\n"
        "    print(path.relative_to('configs'), type(value).__name__, dataclasses.is_dataclass(value))\n"
    )
    lines = [line.split() for line in run_python(code, cwd=world, PYTHONPATH=f"{world}{os.pathsep}{ROOT}").splitlines()]
    assert len(lines) == 28
    assert {kind for _, kind, _ in lines} == {
        "BuildConfig",
        "Config",
        "EvaluateConfig",
        "GenerateConfig",
        "GenerateTextConfig",
        "PrepareConfig",
        "ScoreConfig",
        "ServeConfig",
        "StudyConfig",
        "TokenizerConfig",
    }
    assert all(is_dataclass == "True" for _, _, is_dataclass in lines)


# Scores


@pytest.mark.parametrize("path", SCORECARDS)
def test_a_scorecard_is_read_with_its_hash(world, path):
    stored, scorecard = read(path), Scorecard.load(path)
    assert scorecard.content_hash == stored["content_hash"]
    for name in FIGURES:
        estimate = getattr(scorecard, name)
        assert {part: getattr(estimate, part) for part in ("value", "low", "high")} == stored[name]
    assert scorecard.series.clusters.tolist() == stored["series"]["clusters"]
    scorecard.save("again.json")
    assert read("again.json") == stored
    Path(path).write_text(json.dumps(stored | {"repairs": stored["repairs"] + 1}))
    with pytest.raises(ValueError, match="does not fit its content_hash"):
        Scorecard.load(path)


def stored_answers(path: str) -> dict[str, list]:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return {key: rest for key, *rest in connection.execute("SELECT key, answer, dollars FROM answers")}


def test_a_response_cache_of_paid_answers_is_added_to(world):
    """Prompts of groupings have changed since, so that old answers no longer fit; they stay in the file."""
    Path("again").mkdir()
    shutil.copy("score_llm/ledger.sqlite", "again/ledger.sqlite")
    stored = stored_answers("again/ledger.sqlite")
    words = ("--config.corpus=text/varied.jsonl.gz", "--config.output_dir=again", "--config.judge=openai:gpt-4o-mini")
    with serve(by_first_word) as server:
        run("score", *config("score"), *words, f"--config.judge_base_url={server.openai_url}")
    rows = stored_answers("again/ledger.sqlite")
    assert stored.items() <= rows.items()
    assert len(rows) == len(stored) + sum(server.answered.values())
    assert "<html" in Path("again/report.html").read_text()


def test_a_metrics_report_is_read_and_measured_again_with_the_same_figures(world):
    stored, report = read("metrics/scorecard.json"), MetricsReport.load("metrics/scorecard.json")
    assert report.content_hash == stored["content_hash"]
    assert {name: figure.value for name, figure in report.metrics.items()} == {
        name: figure["value"] for name, figure in stored["metrics"].items()
    }
    run("score", *config("metrics"), "--config.output_dir=again")
    again = read("again/scorecard.json")
    for part in ("metrics", "controlled"):
        assert set(again[part]) == set(stored[part])
        for name, figure in stored[part].items():
            assert flat(again[part][name]) == pytest.approx(flat(figure), rel=1e-9), name
    assert again["corpus"] == stored["corpus"]


# Mixtures and prepared components


@pytest.mark.parametrize(("name", "components", "scored"), [("mixture", 5, 4), ("nested", 2, 1)])
def test_decisions_are_replayed_and_the_page_is_written(world, name, components, scored):
    recorded = read(f"{name}/mixture.json")
    done = run("mixtures.show", name, "--samples", "1", "--output", "page")
    message = f"decisions: all {components} repeated from mixture.json, {scored} of them from the scorecards beside it"
    assert message in done.out
    for part in recorded["components"]:
        assert part["decision"]["reason"] in done.out
    assert "<html" in Path("page/report.html").read_text()
    assert Mixture.load(name).content_hash == recorded["content_hash"]
    recorded["gate"][-1]["decision"]["factor"] = 0.5
    Path(f"{name}/mixture.json").write_text(json.dumps(recorded))
    with pytest.raises(AssertionError, match="was decided"):
        run("mixtures.show", name)


def test_the_loader_deals_the_same_rows(world):
    mixture = Mixture.load("mixture")
    assert mixture.content_hash == EXPECTED["mixture"]["content_hash"]
    for split in ("train", "validation"):
        batch = mixture.loader(batch_size=100, split=split).batch(0)
        hashes = {name: sha256(getattr(batch, name).astype("<i4").tobytes()) for name in EXPECTED["mixture"][split]}
        assert hashes == EXPECTED["mixture"][split]


def test_seqio_sees_the_same_rows_and_loss_weights(world):
    code = """
import hashlib
import numpy as np, seqio
import diversity_jax.mixtures.registry
dataset = seqio.get_mixture_or_task("earlier").get_dataset(None, split="train", num_epochs=None).take(100)
examples = list(dataset.as_numpy_iterator())
for name in ("targets", "decoder_loss_weights"):
    print(hashlib.sha256(np.stack([one[name] for one in examples]).astype("<i4").tobytes()).hexdigest())
print(*sorted(name for name in seqio.TaskRegistry.names() if name.startswith("earlier.")))
"""
    rows, weights, tasks = run_python(code, cwd=world, DIVERSITY_JAX_MIXTURES=str(world / "mixture")).splitlines()
    assert rows == EXPECTED["mixture"]["train"]["tokens"]
    targets = Mixture.load("mixture").loader(batch_size=100).batch(0).targets
    assert weights == sha256(targets[:, 1:].astype("<i4").tobytes())
    assert tasks.split() == [f"earlier.{name}" for name in ("lean", "talk", "varied", "web")]


def test_a_mixture_that_stands_is_scored_again_and_its_rows_are_kept(world):
    """Scoring has changed since; prepared components are not made again."""
    before = read("mixture/mixture.json")
    done = run("mixtures.build", *config("mixture"))
    assert done.out.splitlines()[-1] == "mixture"
    after = read("mixture/mixture.json")
    for component, stored in zip(after["components"], before["components"], strict=True):
        assert stored["manifest_hash"] in (component["manifest_hash"], None)  # None: it was rejected then
    stood = [f"components/{stored['name']}/" for stored in before["components"] if stored["manifest_hash"]]
    rows = [name for name in rewritten(world / "mixture") if name.endswith((".bin", ".crc32"))]
    assert not [name for name in rows if name.startswith(tuple(stood))]


def test_an_interrupted_preparation_ends_with_the_same_files(world):
    done = run("mixtures.prepare", *config("part"))
    assert "starting afresh" in done.err  # what one layout has half finished another does not take over
    assert not Path("part/.preparing").exists()
    files = {path.relative_to("part").as_posix(): path for path in Path("part").rglob("*") if path.is_file()}
    files.pop("manifest.json")
    assert {name: sha256(path.read_bytes()) for name, path in files.items()} == EXPECTED["part"]["files"]
    manifest, stored = read("part/manifest.json"), read("whole/manifest.json")
    assert {name: manifest[name] for name in stored} == stored


@pytest.mark.parametrize(
    ("name", "file"), [("sentencepiece", "tokenizers/small.model"), ("byte_pairs", "tokenizers/tokenizer.json")]
)
def test_rows_of_a_trained_tokenizer_stand(world, name, file):
    """The tokenizer's hash, read from its file, is the one that the rows were made with."""
    words = (f"--config.vocabulary={file}", f"--config.output_dir={name}")
    done = run("mixtures.prepare", *config("tokens"), *words)
    assert done.out.splitlines()[-1] == f"{name}/manifest.json"
    assert rewritten(world / name) == []
    shutil.move(name, "stored")
    run("mixtures.prepare", *config("tokens"), *words)
    for path in Path("stored").rglob("*"):
        if path.is_file():
            again = Path(name, path.relative_to("stored"))
            as_value = read if path.name == "manifest.json" else Path.read_bytes
            # Of a tokenizer.json, what is recorded beside the same rows: special tokens' texts are letters by now.
            added = {"encoders": as_value(again)["encoders"]} if path.name == "manifest.json" else None
            if added and name == "byte_pairs":
                added["special_text"] = "plain"
            assert as_value(again) == (as_value(path) | added if added else as_value(path)), path
