"""What commit fdaef38 wrote is read, and gone on with, as it was then: configurations, scores, mixtures, runs, studies.

The samples lie in `golden/written_by_fdaef38`; its README says how they were made. Nearly everything is driven by the
public commands; the few classes that have none are imported at the top.
"""

import contextlib
from dataclasses import dataclass
import gzip
import hashlib
import html
import io
import json
import logging
import os
from pathlib import Path
import random
import re
import runpy
import shutil
import sqlite3
import subprocess
import sys
import tarfile
import warnings

import numpy as np
import pytest

from diversity_jax.cluster_agent import Scorecard
from diversity_jax.metrics import MetricsReport
from diversity_jax.mixtures.mixture import Mixture
from tests.cluster_agent_answers import by_first_word
from tests.llm_server import serve
from tests.synthesis_answers import subject_of, write

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = Path(__file__).parent / "golden" / "written_by_fdaef38"
EXPECTED = json.loads((GOLDEN / "expected.json").read_text())
FIGURES = ("effective_clusters", "cluster_score", "clusters_per_sample", "collision")
SCORECARDS = (
    "score_offline/scorecard.json",
    "score_llm/varied/scorecard.json",
    "score_llm/dull/scorecard.json",
    *(f"mixture/scorecards/{name}.json" for name in ("real", "web", "varied", "lean", "dull")),
)
WEIGHTS_TOLERANCE = 2e-5  # weights are about 1; after eight steps on other devices they were seen to differ by 1e-7


@pytest.fixture(scope="session")
def unpacked(tmp_path_factory) -> Path:
    """All samples; every file carries the modification time 0."""
    folder = tmp_path_factory.mktemp("written_by_fdaef38")
    for archive in sorted(GOLDEN.glob("*.tar.gz")):
        with tarfile.open(archive) as packed:
            packed.extractall(folder, filter="data")
    shutil.copytree(GOLDEN / "settings", folder / "settings")
    return folder


@pytest.fixture
def world(unpacked, tmp_path, monkeypatch) -> Path:
    """A copy of all samples, which the test works in: paths in their configurations are relative."""
    folder = tmp_path / "world"
    shutil.copytree(unpacked, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-not-a-key")
    return folder


@dataclass(frozen=True)
class Done:
    """What a command printed and logged."""

    out: str
    err: str


def run(module: str, *words: str) -> Done:
    """Runs `python -m diversity_jax.MODULE WORDS` inside this process; a failure fails the test."""
    root, argv = logging.getLogger(), sys.argv
    handlers, level = root.handlers[:], root.level
    out, err, code = io.StringIO(), io.StringIO(), 0
    sys.argv = [module, *map(str, words)]
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            warnings.simplefilter("ignore", RuntimeWarning)  # runpy's, about modules that are imported already
            runpy.run_module(f"diversity_jax.{module}", run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        code = ended.code or 0
    finally:
        sys.argv = argv
        root.handlers[:] = handlers
        root.setLevel(level)
    assert code == 0, err.getvalue()
    return Done(out.getvalue(), err.getvalue())


def config(name: str) -> tuple[str, str]:
    """The words that name one of the samples' configurations."""
    return "--config", f"settings/{name}.py"


def read(path: str | Path):
    """The JSON value in a file."""
    return json.loads(Path(path).read_text())


def lines(path: str | Path) -> list:
    """The JSON values in a file, one a line."""
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def flat(value, where: str = "") -> dict[str, float]:
    """All numbers in a JSON value, by their place in it."""
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {path: number for key, item in items for path, number in flat(item, f"{where}/{key}").items()}
    return {where: float(value)} if isinstance(value, int | float) else {}


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def rewritten(folder: Path) -> list[str]:
    """Files that are not the sample's own any more."""
    return [
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file() and path.stat().st_mtime
    ]


def run_python(code: str, **environment: str) -> str:
    """Runs code in a process of its own; returns what it printed."""
    known = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=known, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


# Configuration files


def test_every_configuration_file_as_written_loads(world):
    shutil.move("configs_as_written", "configs")
    code = (
        "import dataclasses, pathlib, runpy\n"
        "for path in sorted(pathlib.Path('configs').rglob('*.py')):\n"
        "    value = runpy.run_path(str(path))['get_config']()\n"
        "    print(path.relative_to('configs'), type(value).__name__, dataclasses.is_dataclass(value))\n"
    )
    lines = [line.split() for line in run_python(code, PYTHONPATH=f"{world}{os.pathsep}{ROOT}").splitlines()]
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


def ledger_rows(path: str) -> dict[str, list]:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return {key: rest for key, *rest in connection.execute("SELECT key, answer, dollars FROM answers")}


def test_a_ledger_of_paid_answers_is_gone_on_with(world):
    """Groupings are asked about otherwise now, so that old answers are no longer theirs; they are kept as they are."""
    Path("again").mkdir()
    shutil.copy("score_llm/ledger.sqlite", "again/ledger.sqlite")
    stored = ledger_rows("again/ledger.sqlite")
    words = ("--config.corpus=text/varied.jsonl.gz", "--config.output_dir=again", "--config.judge=openai:gpt-4o-mini")
    with serve(by_first_word) as server:
        run("score", *config("score"), *words, f"--config.judge_base_url={server.openai_url}")
    rows = ledger_rows("again/ledger.sqlite")
    assert stored.items() <= rows.items()
    assert len(rows) == len(stored) + sum(server.answered.values())
    assert "<html" in Path("again/report.html").read_text()


def test_a_metrics_card_is_read_and_measured_again_with_the_same_figures(world):
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
    rows, weights, tasks = run_python(code, DIVERSITY_JAX_MIXTURES=str(world / "mixture")).splitlines()
    assert rows == EXPECTED["mixture"]["train"]["tokens"]
    targets = Mixture.load("mixture").loader(batch_size=100).batch(0).targets
    assert weights == sha256(targets[:, 1:].astype("<i4").tobytes())
    assert tasks.split() == [f"earlier.{name}" for name in ("lean", "talk", "varied", "web")]


def test_a_mixture_that_stands_is_scored_again_and_its_rows_are_kept(world):
    """Scores are taken otherwise now; what is prepared stands."""
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


# Training


def weights(folder: str | Path) -> dict[str, np.ndarray]:
    """All tensors of a Hugging Face folder."""
    from safetensors.numpy import load_file

    return load_file(Path(folder, "model.safetensors"))


def weights_hash(folder: str | Path) -> str:
    digest = hashlib.sha256()
    for name, values in sorted(weights(folder).items()):
        digest.update(f"{name} {values.shape} {values.dtype}".encode() + values.tobytes())
    return digest.hexdigest()


def assert_close_weights(folder: str, stored: str) -> None:
    values, wanted = weights(folder), weights(stored)
    assert set(values) == set(wanted)
    for name in wanted:
        np.testing.assert_allclose(values[name], wanted[name], atol=WEIGHTS_TOLERANCE, err_msg=name)


def losses(run_dir: str) -> dict[int, float]:
    """Training loss by step; what a resumed run wrote again counts."""
    return {line["step"]: line["loss"] for line in lines(f"{run_dir}/metrics.jsonl") if "loss" in line}


ADDED_TO_EXPORTS = {
    "config.json": {"pad_token_id": 0},
    "generation_config.json": {"bos_token_id": 1, "pad_token_id": 0},
    "tokenizer_config.json": {"pad_token": "<|pad|>"},
}


def test_a_checkpoint_is_exported_bit_for_bit(world):
    for name, step in (("run", 96), ("run", 104)):
        run("model.convert", "export", name, f"out/{step}", "--step", str(step))
        assert weights_hash(f"out/{step}") == EXPECTED["run"]["weights"][f"{name}{step}"]
    run("model.convert", "export", "imported", "out/imported", "--tokenizer", "bytes")
    assert weights_hash("out/imported") == EXPECTED["run"]["weights"]["run104"]
    run("model.convert", "export", "lora", "out/lora")
    assert_close_weights("out/lora", "exported/lora4")
    for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        stored = Path("exported/run104", name)
        assert stored.exists() == Path("out/104", name).exists()
        if stored.exists():  # what these files say since: begin of text and the padding token
            now, before = read(Path("out/104", name)), read(stored)
            added = {key: now.pop(key) for key in {*now} - {*before}}
            assert added == ADDED_TO_EXPORTS.get(name, {})
            before |= {"eos_token_id": 1} if name == "generation_config.json" else {}
            assert now == before


def test_training_goes_on_from_a_checkpoint(world):
    stored, attempts = losses("run"), read("run/goodput.json")["sittings"]
    shutil.rmtree("run/checkpoints/104")
    done = run("train", *config("train"))
    assert "going on from step 96" in done.err
    assert sorted(path.name for path in Path("run/checkpoints").iterdir() if path.name.isdigit()) == ["104", "96"]
    run("model.convert", "export", "run", "out", "--step", "104")
    assert_close_weights("out", "exported/run104")  # the optimizer's state was restored, too
    assert losses("run") == pytest.approx(stored, abs=1e-4)
    first, second = read("run/goodput.json")["sittings"]
    assert first == attempts[0]
    assert (second["first_step"], second["last_step"]) == (96, 104)
    assert read("run/summary.json")["goodput"]["sittings"] == 2


def test_a_changed_field_of_an_earlier_run_is_named_with_both_values(world):
    def files():
        return {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}

    before = files()
    for field, value, former in (
        ("model.num_layers", "5", "\\d+"),
        ("optimizer.learning_rate", "0.5", "[0-9.e-]+"),
        ("train.batch_size", "3", "\\d+"),
    ):
        with pytest.raises(AssertionError, match=rf"{field}={value} \(was {former}\)"):
            run("train", *config("train"), f"--config.{field}={value}")
    assert files() == before


def test_the_page_of_a_finished_run_is_written_from_its_files(world):
    before = (Path("run/metrics.jsonl").read_text(), Path("run/samples.jsonl").read_text())
    done = run("train", *config("train"))
    assert "going on from step 104" in done.err
    assert done.out.splitlines()[-1] == "run/report.html"
    page = html.unescape(Path("run/report.html").read_text())
    for name in ("web", "talk", "varied", "lean", "dull"):
        assert name in page
    assert Path("run/metrics.jsonl").read_text().startswith(before[0])
    assert Path("run/samples.jsonl").read_text() == before[1]
    for sample in lines("run/samples.jsonl"):
        assert sample["text"] in page
    first, last = (
        next(line["eval/loss"] for line in rows if "eval/loss" in line)
        for rows in (lines("run/metrics.jsonl"), lines("run/metrics.jsonl")[::-1])
    )
    assert f"{first:.3g}" in page
    assert f"{last:.3g}" in page
    assert first > last + 2


def test_adapters_are_trained_on_beside_the_same_model(world):
    stored = losses("lora")
    shutil.rmtree("lora/checkpoints/4")
    done = run("train", *config("lora"))
    assert "going on from step 2" in done.err
    assert losses("lora") == pytest.approx(stored, abs=1e-4)
    run("model.convert", "export", "lora", "out")
    assert_close_weights("out", "exported/lora4")


def test_a_run_writes_the_same_text(world):
    words = ("--config.model.checkpoint=run", "--config.prompt=The ", "--config.max_tokens=16")
    settings = ("--config", str(ROOT / "configs" / "generate_text.py"))
    run("generate_text", *settings, *words, "--config.temperature=1.0", "--config.output=said.jsonl")
    assert lines("said.jsonl")[0]["text"] == EXPECTED["run"]["text"]


# Synthesis


def answer_of(counter: list[int]):
    """Usable answers, each of its own words."""

    def answer(stage, samples, payload):
        counter.append(1)
        asked = payload["schema"]["properties"]
        options = {"persona": "persona" in asked, "topics": "topics_used" in asked}
        return write(subject_of(payload["user"]), random.Random(f"later {len(counter)}"), **options)

    return answer


def test_an_interrupted_synthesis_goes_on_and_pays_nothing_twice(world):
    expected, stored = EXPECTED["synthesis"], {path: path.read_bytes() for path in committed_rounds()}
    assert len([path for path in stored if path.suffix == ".json"]) == expected["committed_rounds"]
    calls: list[int] = []
    with serve(answer_of(calls)) as server:
        url = f"--config.generators[0].base_url={server.openai_url}"
        done = run("generate", *config("generate"), url)
        assert server.attempts == expected["calls_to_complete"]
        again = run("generate", *config("generate"), url)
        assert server.attempts == expected["calls_to_complete"]
    assert done.out == again.out == "synthesis/report.html\n"
    assert {path: path.read_bytes() for path in stored} == stored
    assert not Path("synthesis/rounds/open.json").exists()
    assert sum(read(path)["documents"] for path in Path("synthesis/rounds").glob("0*.json")) == expected["documents"]
    prepared = ("--config.corpus.source=synthesis/documents/*.jsonl.zst", "--config.output_dir=component")
    run("mixtures.prepare", *config("tokens"), *prepared)
    splits = read("component/manifest.json")["splits"]
    assert sum(split["documents"] for split in splits.values()) == expected["documents"]
    page = Path("synthesis/report.html").read_text()
    assert "answer" in page
    assert page.count("<section") >= 5


def committed_rounds() -> list[Path]:
    """Files of rounds that are finished, without the ledger."""
    folders = [Path("synthesis", name) for name in ("documents", "rejects", "rounds")]
    return sorted(path for folder in folders for path in folder.glob("0*"))


def test_the_grammar_writes_the_same_text(world):
    def texts():
        return {path.name: gzip.decompress(path.read_bytes()) for path in Path("text").glob("[dlvw]*.gz")}

    stored = texts()
    assert set(stored) == {f"{name}.jsonl.gz" for name in ("dull", "lean", "varied", "web")}
    assert all("stands already" in line for line in run("generate", *config("text")).err.splitlines())
    for name in stored:
        Path("text", name).unlink()
    run("generate", *config("text"))
    assert texts() == stored


# Evaluation


def sample_likelihoods(folder: str) -> list[float]:
    """Every log-likelihood in an evaluation's samples."""
    likelihoods = []
    for path in sorted(Path(folder, "samples").glob("*.jsonl.gz")):
        for line in gzip.decompress(path.read_bytes()).splitlines():
            likelihoods += [float(answer[0][0]) for answer in json.loads(line)["resps"]]
    return likelihoods


def without_bounds(value):
    """Figures without their intervals, which end at 0 and 1 by now."""
    if isinstance(value, dict):
        return {name: without_bounds(item) for name, item in value.items() if name not in ("low", "high")}
    return value


def test_an_evaluation_asks_no_request_again(world):
    stored = read("evaluation/results.json")
    [requests] = Path("evaluation/requests").glob("*.jsonl")
    before, likelihoods = requests.read_bytes(), sample_likelihoods("evaluation")
    run("evaluate", *config("evaluate"))
    again = read("evaluation/results.json")
    assert requests.read_bytes() == before
    for part in ("tasks", "average"):
        assert without_bounds(again[part]) == without_bounds(stored[part])
    assert again["data"] == stored["data"]
    for name in ("weights_sha256", "tokenizer_hash", "parameters", "max_length"):
        assert again["model"][name] == stored["model"][name]
    assert sample_likelihoods("evaluation") == likelihoods
    assert set(again["held_out"]) == {"web", "talk", "varied", "lean"}
    for name, loss in stored["held_out"].items():
        assert flat(again["held_out"][name]) == pytest.approx(flat(loss), rel=1e-4)
    assert "<html" in Path("evaluation/report.html").read_text()


def test_an_evaluation_is_compared_with_a_stored_one_and_takes_stored_answers(world):
    shutil.copytree("evaluation", "other")
    [requests] = Path("other/requests").glob("*.jsonl")
    head, *answers = lines(requests)
    lowered = [[key, [nats - 1000, greedy]] for key, (nats, greedy) in answers]
    requests.write_text("".join(json.dumps(line) + "\n" for line in [head, *lowered]))
    words = ("--config.output_dir=other", "--config.compare_with=evaluation", "--config.held_out=False")
    run("evaluate", *config("evaluate"), *words)
    wanted = [value - 1000 for value in sample_likelihoods("evaluation")]
    assert sample_likelihoods("other") == pytest.approx(wanted)
    comparison = read("other/results.json")["comparison"]
    assert comparison["model"]["weights_sha256"] == read("evaluation/results.json")["model"]["weights_sha256"]
    assert set(comparison["tasks"]) == set(read("evaluation/results.json")["tasks"])


# Studies


def test_a_study_runs_no_finished_step_again(world):
    """Under changed code too: the steps are kept, and the command says that they were made by other code."""
    stored = read("study/analysis.json")
    steps = {path.name for path in Path("study/steps").iterdir()}
    listed = run("study", *config("study"), "--config.dry_run=True").out.splitlines()
    states = {key: state for state, key in (line.split()[:2] for line in listed)}
    assert set(states) == steps
    assert set(states.values()) <= {"stands", "stale"}
    done = run("study", *config("study"))
    assert not re.search(r"step \d+ of \d+", done.err)
    assert {path.name for path in Path("study/steps").iterdir()} == steps
    assert not [name for name in rewritten(world / "study" / "steps") if not name.endswith("/lock")]
    stale = [key for key, state in states.items() if state == "stale"]
    assert bool(stale) == ("are kept as they are; --config.stale=again makes them again" in done.err)
    again = read("study/analysis.json")
    assert again["runs"] == stored["runs"]
    assert again["densities"] == stored["densities"]
    for part in ("relations", "effects"):  # figures that so few recipes do not allow are withheld since
        now, before = flat(again[part]), flat(stored[part])
        both = {key: now[key] for key in now if key in before}
        assert len(both) > len(before) / 2
        assert both == pytest.approx({key: before[key] for key in both}, rel=1e-6, abs=1e-9, nan_ok=True)
    assert "<html" in Path("study/report.html").read_text()


def test_a_study_page_is_drawn_from_its_analysis(world):
    shutil.rmtree("study/steps")
    assert run("study.page", "study").out == "study/report.html\n"
    assert "earlier" in Path("study/report.html").read_text()
