"""Trackers get losses, shares and scores; one that fails or is missing costs a line and not the run."""

import contextlib
import dataclasses
from fractions import Fraction
import importlib.util
import json
import logging
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from diversity_jax.core.errors import InputError
from diversity_jax.core.process import TERMINATED, end_at_once
from diversity_jax.mixtures.mixture import Mixture
from diversity_jax.model import LLAMA, MeshConfig
from diversity_jax.training import trackers
from diversity_jax.training.config import OptimizerConfig, TrainConfig
from diversity_jax.training.log import MetricWriter
from diversity_jax.training.loop import train
from tests import example_run
from tests.json_lines import json_lines
from tests.mixture_folders import build_mixture

MODEL = LLAMA["llama_tiny"](num_layers=1, hidden_size=32, intermediate_size=64, num_heads=2)


class Notes(trackers.Tracker):
    """Keeps what it is given in a file of the run's folder."""

    def __init__(self, run):
        run.ids.setdefault("notes", "first")
        self._file = (run.folder / "notes.jsonl").open("a")
        self._file.write(json.dumps({"settings": dict(run.settings)}) + "\n")

    def write(self, step, figures):
        self._file.write(json.dumps({"step": step, **figures}) + "\n")

    def close(self, outcome):
        self._file.write(json.dumps({"outcome": outcome}) + "\n")
        self._file.close()


class Failing(trackers.Tracker):
    """A tracker whose server stops answering."""

    def write(self, step, figures):
        raise ConnectionError("the server went away")

    def close(self, outcome):
        raise AssertionError("it was given up")


def mixture(folder):
    """Two components, of which one was scored."""
    build_mixture(folder, {"a": Fraction(1, 4), "b": Fraction(3, 4)}, sequence_length=16, documents=60)
    mixture = Mixture.load(folder)
    first, second = mixture.components
    decision = {**first.decision, "effective_clusters": {"value": 7.5, "low": 5.0, "high": 9.0}}
    return dataclasses.replace(mixture, components=(dataclasses.replace(first, decision=decision), second))


def run(rows, folder, steps, names, **fields):
    fields = {"batch_size": 8, "log_every": 2, "eval_batches": 1, "checkpoint_every": 2, "tensorboard": False} | fields
    config = TrainConfig(steps=steps, trackers=names, compilation_cache=str(folder.parent / "programs"), **fields)
    return train(rows, MODEL, OptimizerConfig(schedule="constant"), config, MeshConfig(), folder)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of six steps in two attempts, shown by trackers of which one fails."""
    folder = tmp_path_factory.mktemp("trackers")

    kind = trackers.TrackerKind(open=Notes, modules=(), extra="", is_remote=False)
    added = {"notes": kind, "failing": dataclasses.replace(kind, open=lambda run: Failing(), is_remote=True)}
    with pytest.MonkeyPatch.context() as patch:
        for name, tracker in added.items():
            patch.setitem(trackers.TRACKERS, name, tracker)
        rows = mixture(folder / "rows")
        for steps in (4, 6):
            run(rows, folder / "run", steps, ("notes", "failing"), allow_changed=("train.steps",))
    return folder / "run"


def test_losses_shares_and_scores_are_shown(finished):
    records = json_lines(finished / "notes.jsonl")
    assert records[0]["settings"]["train.batch_size"] == 8
    assert records[1] == {
        **{"step": 0, "mixture/share_asked/a": 0.25, "mixture/share_granted/a": 0.25, "mixture/share_asked/b": 0.75},
        **{"mixture/share_granted/b": 0.75, "mixture/effective_clusters/a": 7.5},
        **{"mixture/effective_clusters_low/a": 5.0, "mixture/effective_clusters_high/a": 9.0},
    }
    trained = [line for line in records if "loss" in line]
    assert [line["step"] for line in trained] == [2, 4, 6]
    assert all({"loss/a", "loss/b", "learning_rate", "tokens_per_second"} <= set(line) for line in trained)
    assert all(line["share/a"] == 0.25 and line["share/b"] == 0.75 for line in trained)
    assert {line["step"] for line in records if "eval/a/loss" in line} == {0, 4, 6}


def test_a_run_that_goes_on_is_the_same_run_for_its_trackers(finished):
    assert json.loads((finished / "trackers.json").read_text()) == {"notes": "first"}
    assert sum("settings" in line for line in json_lines(finished / "notes.jsonl")) == 2


def test_trackers_hear_how_an_attempt_ended(finished, tmp_path, monkeypatch):
    ends = [line["outcome"] for line in json_lines(finished / "notes.jsonl") if "outcome" in line]
    assert ends == ["finished", "finished"]

    def outcome(end, before="failed"):
        heard = []
        with contextlib.suppress(KeyboardInterrupt, OSError), MetricWriter(tmp_path) as writer:
            writer.show_on([SimpleNamespace(close=heard.append)])
            writer.outcome = before
            end()
        return heard[0]

    def fail(error):
        raise error

    assert outcome(lambda: fail(OSError())) == "failed"
    assert outcome(lambda: fail(KeyboardInterrupt())) == "interrupted"
    assert outcome(lambda: fail(KeyboardInterrupt()), before="finished") == "finished"
    assert outcome(lambda: None, before="interrupted") == "interrupted"
    monkeypatch.setattr(os, "_exit", lambda status: None)
    monkeypatch.setattr(logging, "shutdown", lambda: None)
    assert outcome(lambda: end_at_once(1)) == "failed"
    assert outcome(lambda: end_at_once(TERMINATED)) == "interrupted"
    wandb, mlflow, told = object.__new__(trackers.WeightsAndBiases), object.__new__(trackers.MLflow), []
    wandb._run, mlflow._id = SimpleNamespace(finish=told.append), "run"
    mlflow._client = SimpleNamespace(set_terminated=lambda run, status: told.append(status))
    for end in ("finished", "failed", "interrupted"):
        wandb.close(end)
        mlflow.close(end)
    assert told == [0, "FINISHED", 1, "FAILED", 255, "KILLED"]


def test_where_one_tracker_cannot_be_opened_the_others_are_closed_and_known_again(tmp_path, monkeypatch):
    kind = trackers.TrackerKind(open=Notes, modules=(), extra="", is_remote=False)
    monkeypatch.setitem(trackers.TRACKERS, "notes", kind)
    monkeypatch.setitem(trackers.TRACKERS, "refusing", dataclasses.replace(kind, open=lambda run: 1 / 0))
    with pytest.raises(InputError, match="refusing: cannot be opened"):
        trackers.open_trackers(["notes", "refusing"], tmp_path, {})
    assert json_lines(tmp_path / "notes.jsonl")[-1] == {"outcome": "failed"}
    assert json.loads((tmp_path / "trackers.json").read_text()) == {"notes": "first"}


def test_a_tracker_that_fails_does_not_stop_the_run(finished, caplog):
    assert json.loads((finished / "summary.json").read_text())["steps"] == 6
    tracker = trackers._ThreadedTracker("mlflow", Failing())
    tracker.write(1, {"loss": 1.0})
    tracker._thread.join(5)
    tracker.write(2, {"loss": 1.0})
    tracker.close("finished")
    (record,) = caplog.records
    expected = "mlflow: gets no more of this run (ConnectionError: the server went away); metrics.jsonl has it all"
    assert record.getMessage() == expected


def test_empty_settings_are_shown_and_infinity_is_no_number_for_mlflow():
    assert trackers._flat({"a": [], "b": {"c": {}, "d": [1, []]}}) == {"a": [], "b.c": {}, "b.d.0": 1, "b.d.1": []}
    sent, tracker = [], object.__new__(trackers.MLflow)
    tracker._id, tracker._metric = "run", lambda name, value, *_: (name, value)
    tracker._client = SimpleNamespace(log_batch=lambda _, metrics: sent.extend(metrics))
    tracker.write(1, {"loss": float("inf"), "rows": 8.0})
    assert str(sent) == "[('loss', nan), ('rows', 8.0)]"


def test_what_cannot_be_shown_is_one_line_before_anything_is_done(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="wandbb: is unknown; choose of tensorboard, wandb, mlflow"):
        trackers.check_installed(["wandbb"])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"needs the package wandb; pip install 'diversity_jax\[wandb\]', or leave it"):
        trackers.check_installed(["wandb"])
    with pytest.raises(InputError, match=r"needs the package clu; .*, or set train.tensorboard=False"):
        trackers.check_installed(TrainConfig().all_trackers)
    monkeypatch.undo()

    def refuses(run):
        raise OSError("no server\nat this address")

    kind = trackers.TrackerKind(open=refuses, modules=(), extra="")
    monkeypatch.setitem(trackers.TRACKERS, "refusing", kind)
    with pytest.raises(InputError, match=r"refusing: cannot be opened \(OSError: no server at this address\)"):
        trackers.open_trackers(["refusing"], tmp_path, {})
    assert not list(tmp_path.iterdir())


def test_nothing_is_sent_unless_asked():
    assert TrainConfig().all_trackers == ("tensorboard",)
    assert TrainConfig(tensorboard=False, trackers="wandb").all_trackers == ("wandb",)
    assert TrainConfig(allow_changed="steps").allow_changed == ("steps",)


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_the_real_trackers_show_them_without_a_network(name):
    pytest.importorskip(name)
    script = os.path.join(os.path.dirname(__file__), "..", "scripts", "checks", "trackers.py")
    subprocess.run([sys.executable, script, name], check=True)


def test_a_score_without_an_upper_bound_shows_its_other_figures(tmp_path):
    mixture = example_run.write_mixture(tmp_path, groupings=20)
    first, *others = mixture.components
    open_above = {"effective_clusters": {"value": 45.0, "low": 3.29, "high": None}, "ratio": None}
    first = dataclasses.replace(first, decision={**first.decision, **open_above})
    figures = trackers.mixture_figures(dataclasses.replace(mixture, components=(first, *others)))
    shown = {name: value for name, value in figures.items() if name.endswith(f"/{first.name}")}
    assert shown == {
        f"mixture/share_asked/{first.name}": float(first.share_asked),
        f"mixture/share_granted/{first.name}": float(first.share_granted),
        f"mixture/effective_clusters/{first.name}": 45.0,
        f"mixture/effective_clusters_low/{first.name}": 3.29,
    }
