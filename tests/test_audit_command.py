"""`python -m diversity_jax.audit` with a judge on loopback: its requests, files and output, and what it refuses."""

import dataclasses
import json
import random

import pytest

from diversity_jax import audit, score
from diversity_jax.cluster_agent import AgentConfig, Scorecard, open_judge
from diversity_jax.cluster_agent.exam_corpora import exam_corpora
from diversity_jax.core.errors import InputError
from diversity_jax.llm import BudgetConfig, EngineConfig, PlannedCalls
from diversity_jax.scoring.config import ScoreConfig
from diversity_jax.scoring.forecast import price_calls
from tests.llm_answers import label_oracle
from tests.llm_server import serve

TEXTS = [
    f"topic{number % 4} " + " ".join(f"word{random.Random(number).randrange(99)}" for _ in range(40))
    for number in range(200)
]
LABELS = {text: text.split()[0] for text in TEXTS} | {
    text: label for corpus in exam_corpora().values() for text, label in zip(corpus.texts, corpus.labels, strict=True)
}


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-the-test")
    with serve(label_oracle(LABELS)) as running:
        yield running


def settings(server, folder, **changes):
    config = ScoreConfig(
        output_dir=str(folder),
        judge="openai:oracle",
        judge_base_url=server.openai_url,
        agent=AgentConfig(groupings=20, criteria_sets=2, proposals=2),
    )
    return dataclasses.replace(config, **changes)


def test_exam_and_injections_are_written_printed_and_not_asked_twice(server, tmp_path, capsys):
    corpus = tmp_path / "topics.jsonl"
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    config = settings(server, tmp_path / "out", corpus=str(corpus), hostile_share=0.3)
    audit.main(config)
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1] == str(tmp_path / "out" / "report.html")
    assert any(line.startswith("24 subjects ") and line.endswith("fit") for line in printed)
    assert "judge openai:oracle: fit" in printed
    value = json.loads((tmp_path / "out" / "audit.json").read_text())
    assert value["exam"]["verdict"] == {"judge": "fit", "reasons": []}
    assert value["injections"]["topics"]["moved"] == pytest.approx(0, abs=0.05)
    page = (tmp_path / "out" / "report.html").read_text()
    for phrase in ("is fit", "Truth and reading", "Mistakes by kind", "Hostile documents", "split_as_json"):
        assert phrase in page
    judge = open_judge(config, tmp_path / "out" / "ledger.sqlite")
    assert judge.exam.judge == "fit"
    asked = sum(server.stats()["answered"].values())
    elsewhere = settings(server, tmp_path / "again", exam_dir=str(tmp_path / "out" / "exams"))
    audit.main(elsewhere)
    assert sum(server.stats()["answered"].values()) == asked
    assert json.loads((tmp_path / "again" / "audit.json").read_text())["exam"] == value["exam"]


def test_a_dry_run_says_what_it_would_cost_and_asks_nothing(server, tmp_path, caplog):
    with caplog.at_level("INFO"):
        audit.main(settings(server, tmp_path, dry_run=True))
    assert "openai:oracle, with exam: " in caplog.text
    assert "prompt" in caplog.text
    assert not sum(server.stats()["answered"].values())
    assert not (tmp_path / "audit.json").exists()


def test_calls_in_batches_are_forecast_at_their_price():
    config = ScoreConfig(judge="openai:oracle", budget=BudgetConfig(input_price=1.0, output_price=2.0))
    planned = [PlannedCalls(stage="cluster_samples", calls=10, prompt_tokens=100_000, completion_tokens=50_000)]
    assert price_calls(config, planned).dollars == 2.0
    batched = dataclasses.replace(config, engine=EngineConfig(batch=True))
    assert price_calls(batched, planned).dollars == 1.0


def test_a_later_scoring_tells_of_the_exam_and_its_page_stays(server, tmp_path):
    corpus = tmp_path / "topics.jsonl"
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    config = settings(server, tmp_path / "out", corpus=str(corpus))
    score.main(config)
    path = tmp_path / "out" / "scorecard.json"
    assert "exam not taken" in Scorecard.load(path).verdict.reasons
    page = (tmp_path / "out" / "report.html").read_bytes()
    audit.main(dataclasses.replace(config, corpus=None))
    assert (tmp_path / "out" / "report.html").read_bytes() == page
    assert "is fit" in (tmp_path / "out" / "audit" / "report.html").read_text()
    score.main(config)
    assert "exam passed" in Scorecard.load(path).verdict.reasons


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"corpus": "nowhere.jsonl"}, "nowhere.jsonl"),
        ({"judge": "none", "metrics": "lexical"}, "judges nothing"),
        ({"budget": BudgetConfig(input_price=1.0, output_price=1.0)}, "budget.max_dollars"),
    ],
)
def test_what_cannot_be_audited_is_refused_before_anything_is_asked_or_written(server, tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        audit.main(settings(server, tmp_path, **changes))
    assert not sum(server.stats()["answered"].values())
    assert not list(tmp_path.iterdir())
