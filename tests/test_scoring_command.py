"""`python -m diversity_jax.score` with a judge on loopback that knows the labels: coverage, resuming, and the cap."""

import gzip
import json
import os
from pathlib import Path
import random
import subprocess
import sys
import time

import pytest

from tests.llm_server import Faults, serve

ROOT = Path(__file__).resolve().parents[1]
TRUE_CLUSTERS = 20


def by_topic(stage, samples, payload):
    """An oracle: one cluster a topic, which is the text's first word; a sample planted by the agent is known by its
    words alone.
    """
    from tests.llm_answers import label_oracle

    return label_oracle({sample["text"]: sample["text"].split()[0] for sample in samples})(stage, samples, payload)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """2,000 texts spread evenly over 20 topics."""
    path = tmp_path_factory.mktemp("corpus") / "topics.jsonl.gz"
    draw = random.Random(0)
    with gzip.open(path, "wt") as file:
        for number in range(2000):
            words = " ".join(f"word{draw.randrange(5000)}" for _ in range(30))
            file.write(json.dumps({"text": f"topic{number % TRUE_CLUSTERS} {words}"}) + "\n")
    return path


def start(corpus, url, output, **settings):
    values = {
        "corpus": corpus,
        "judge": "openai:oracle",
        "judge_base_url": url,
        "agent.samples_per_grouping": 10,
        "agent.groupings": 150,
        "agent.criteria_sets": 3,
        "agent.proposals": 2,
        "output_dir": output,
        **settings,
    }
    arguments = [f"--config.{name}={value}" for name, value in values.items()]
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "OPENAI_API_KEY": "sk-secret-of-the-test",
    }
    command = [sys.executable, "-m", "diversity_jax.score", "--config", "configs/score.py", *arguments]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process, code=0):
    out, err = process.communicate(timeout=300)
    assert process.returncode == code, err
    assert "sk-secret-of-the-test" not in out + err
    return out, err


def scorecard(output):
    return json.loads((output / "scorecard.json").read_text())


@pytest.fixture(scope="module")
def finished_run(corpus, tmp_path_factory):
    """The folder of an uninterrupted run."""
    output = tmp_path_factory.mktemp("whole")
    with serve(by_topic) as server:
        finish(start(corpus, server.openai_url, output))
    return output


def test_the_interval_holds_the_truth_and_the_files_are_there(finished_run):
    output = finished_run
    values = scorecard(output)
    assert values["effective_clusters"]["low"] < TRUE_CLUSTERS < values["effective_clusters"]["high"]
    for name in ("effective_clusters", "cluster_score", "clusters_per_sample", "collision"):
        assert set(values[name]) == {"value", "low", "high"}
    for name in (
        "groupings",
        "dropped_groupings",
        "invalid_clusters",
        "criteria",
        "criteria_hash",
        "canaries",
        "calls",
        "cost_usd",
    ):
        assert name in values
    assert set(values["tokens"]) == {"prompt", "completion"}
    assert {"fingerprint", "documents", "sampled"} <= set(values["corpus"])
    assert (values["judge"], values["groupings"], values["seed"]) == ("openai:oracle", 150, 0)
    groupings = (output / "groupings.jsonl").read_text().splitlines()
    assert len(groupings) == 150
    assert (output / "report.html").stat().st_size > 10_000
    assert b"sk-secret-of-the-test" not in b"".join(path.read_bytes() for path in output.rglob("*") if path.is_file())


@pytest.mark.slow
def test_killed_at_random_moments_nothing_is_paid_twice_and_the_scorecard_is_the_same(corpus, finished_run, tmp_path):
    draw = random.Random(3)
    with serve(by_topic, latency_seconds=0.05) as server:
        for _ in range(4):
            process = start(corpus, server.openai_url, tmp_path, **{"engine.max_in_flight": 8})
            time.sleep(draw.uniform(2.0, 4.5))
            process.kill()
            process.communicate()
        finish(start(corpus, server.openai_url, tmp_path, **{"engine.max_in_flight": 64}))
        answered = server.stats()["answered"].values()
    # What the server had sent to a process that was killed before it could write is asked again: at most what was in
    # flight.
    assert sum(answered) - len(answered) <= 4 * 8
    assert (tmp_path / "scorecard.json").read_bytes() == (finished_run / "scorecard.json").read_bytes()
    (tmp_path / "scorecard.json").unlink()
    finish(start(corpus, "http://127.0.0.1:9/v1", tmp_path, **{"engine.offline_replay": True}))
    assert (tmp_path / "scorecard.json").read_bytes() == (finished_run / "scorecard.json").read_bytes()


@pytest.mark.slow
def test_with_three_calls_in_ten_failing_the_estimate_stands_and_drops_are_counted(corpus, tmp_path):
    faults = Faults(
        too_many=0.05,
        error_500=0.04,
        error_503=0.04,
        dropped=0.05,
        hanging=0.02,
        garbled=0.05,
        truncated=0.03,
        refused=0.02,
    )
    with serve(by_topic, faults=faults) as server:
        finish(
            start(corpus, server.openai_url, tmp_path, **{"engine.deadline_seconds": 2, "engine.backoff_seconds": 0.05})
        )
    values = scorecard(tmp_path)
    assert values["effective_clusters"]["low"] < TRUE_CLUSTERS < values["effective_clusters"]["high"]
    assert values["groupings"] + values["dropped_groupings"] == 150
    assert values["dropped_groupings"] > 0


@pytest.mark.slow
def test_spending_stops_before_the_cap(corpus, tmp_path):
    with serve(by_topic) as server:
        process = start(corpus, server.openai_url, tmp_path, **{"budget.max_calls": 60})
        _, err = process.communicate(timeout=300)
        assert 0 < server.stats()["attempts"] <= 60
    assert "budget" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(("required_key", "words"), [("another-key", "key")])
def test_a_wrong_key_is_one_clear_line(corpus, tmp_path, required_key, words):
    with serve(by_topic, required_key=required_key) as server:
        _, err = finish(start(corpus, server.openai_url, tmp_path), code=2)
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert words in lines[0]
    assert "Traceback" not in err
    assert "RuntimeWarning" not in err


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_second_run_is_free_and_a_folder_keeps_what_it_holds(corpus, tmp_path):
    output, other = tmp_path / "scores", tmp_path / "other.jsonl"
    other.write_text("".join(json.dumps({"text": f"topic{number % 3} and {number}"}) + "\n" for number in range(100)))
    settings = {"agent.groupings": 12, "agent.criteria_sets": 1, "agent.proposals": 1}
    with serve(by_topic) as server:
        finish(start(corpus, server.openai_url, output, **settings))
        answered, before = server.stats()["attempts"], contents(output)
        out, err = finish(start(corpus, server.openai_url, output, **settings))
        assert out.strip() == str(output / "report.html")
        assert "scored before" in err
        _, err = finish(start(other, server.openai_url, output, **settings), code=2)
        assert "holds scores of other text" in err
        assert "config.overwrite" in err
        assert server.stats()["attempts"] == answered
        assert contents(output) == before
        finish(start(other, server.openai_url, output, overwrite=True, **settings))
        assert scorecard(output)["corpus"]["documents"] == 100


def test_a_run_that_would_pay_asks_for_a_cap_and_says_a_missing_key_first(corpus, tmp_path, monkeypatch):
    prices = {"budget.input_price": 1.0, "budget.output_price": 2.0}
    with serve(by_topic) as server:
        _, err = finish(start(corpus, server.openai_url, tmp_path / "scores", **prices), code=2)
        assert "error: budget.max_dollars: is not set, and this run is expected to cost $" in err
        assert "budget.unlimited=True" in err
        assert server.stats()["attempts"] == 0
    monkeypatch.setenv("OPENAI_API_KEY", "")
    settings = {"judge": "gemini:gemini-2.5-flash", "judge_base_url": None, **prices}
    _, err = finish(start(corpus, None, tmp_path / "scores", **settings), code=2)
    assert err.startswith("error: judge: gemini:gemini-2.5-flash needs an API key")
    assert not (tmp_path / "scores").exists()


def test_a_run_that_a_cap_stopped_goes_on_with_a_higher_one(corpus, tmp_path):
    settings = {"agent.groupings": 30, "agent.criteria_sets": 1, "agent.proposals": 1}
    with serve(by_topic) as server:
        finish(start(corpus, server.openai_url, tmp_path, **{**settings, "budget.max_calls": 40}))
        assert scorecard(tmp_path)["groupings"] < 30
        finish(start(corpus, server.openai_url, tmp_path, **{**settings, "budget.max_calls": 400}))
    assert scorecard(tmp_path)["groupings"] == 30
