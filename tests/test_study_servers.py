"""Servers that a study starts for its steps, and judges whose figures it leaves out."""

import dataclasses
import json
from pathlib import Path
import socket
import sys
import urllib.request

import pytest

from diversity_jax import score
from diversity_jax.core.errors import InputError
from diversity_jax.core.files import write_json
from diversity_jax.scoring.config import ScoreConfig
from diversity_jax.study import analysis
from diversity_jax.study import run as study_run
from diversity_jax.study.config import Factor, Level, Recipe, StudyConfig, plan
from diversity_jax.study.graph import Server, StepStore, answering, named_in
from diversity_jax.study.run import commands
from diversity_jax.synthesis.config import GenerateConfig, GeneratorConfig, TopicsConfig
from tests.test_study_graph import study

SERVE = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/v1/models" else 404)
        self.end_headers()
    def log_message(self, *arguments):
        pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def server(program=SERVE, **changes) -> Server:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return Server(
        **{"base_url": f"http://127.0.0.1:{port}/v1", "command": (sys.executable, "-c", program, str(port))} | changes
    )


def reachable(address: str) -> bool:
    try:
        return urllib.request.urlopen(f"{address}/models", timeout=5).status == 200
    except OSError:
        return False


def test_a_server_answers_while_it_is_needed_and_is_gone_afterwards():
    made = server()
    assert not reachable(made.base_url)
    with answering(made):
        assert reachable(made.base_url)
        other = server(base_url=made.base_url, command=("this program is not there",))
        with answering(other):  # who answers already is asked, and left running
            assert reachable(made.base_url)
        assert reachable(made.base_url)
    assert not reachable(made.base_url)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"program": "print('no such model'); raise SystemExit(3)"},
            "ended with status 3; it wrote last: no such model",
        ),
        ({"program": "import time; time.sleep(60)", "start_seconds": 0.2}, "does not answer after 0.2 s"),
        ({"command": ("no-such-server",)}, "no-such-server: No such file or directory"),
    ],
)
def test_a_server_that_does_not_come_up_is_one_line(changes, message):
    with pytest.raises(InputError, match=message), answering(server(**changes)):
        raise AssertionError("nobody answers there")


def test_a_step_needs_the_servers_whose_address_it_names():
    writer, judge = server(), server()
    config = GenerateConfig(
        topics=TopicsConfig(source="topics.txt"),
        generators=(GeneratorConfig(model="openai:it", base_url=writer.base_url),),
    )
    assert named_in(config, (writer, judge)) == [writer]
    assert named_in(ScoreConfig(corpus="a", judge="openai:it", judge_base_url=judge.base_url), (writer, judge)) == [
        judge
    ]


def test_figures_of_an_unfit_judge_are_left_out_with_its_reasons(tmp_path):
    recipe = Recipe(score=ScoreConfig(corpus="a"), second_score=ScoreConfig(corpus="a", judge="openai:it"))
    levels = (Level(name=1, set={"score.agent.seed": 1, "second_score.agent.seed": 1}),)
    made = StudyConfig(
        name="s",
        output_dir=str(tmp_path),
        factors=(Factor(name="f", levels=levels),),
        seed_fields=(),
        recipe=recipe,
        predictors=("effective_clusters", "second_score.effective_clusters", "second_score.metrics.length"),
    )
    store = StepStore(tmp_path / "steps")
    (run,) = plan(made, store).runs
    for number, (kind, verdict) in enumerate({"score": "doubtful", "second_score": "unfit"}.items()):
        folder = store.output(run.keys[kind])
        folder.mkdir(parents=True)
        scorecard = {
            "effective_clusters": {"value": 5.0 + number},
            "judge": kind,
            "verdict": {"judge": verdict, "reasons": [f"why {verdict}"]},
            "baseline": {"metrics": {"length": {"value": 7.0}}},
        }
        (folder / "scorecard.json").write_text(json.dumps(scorecard))
        store.commit(f"{run.keys[kind]}/done.json", {})
    (row,) = analysis.table(made, [run], store)
    assert row["diversity"] == {"effective_clusters": 5.0, "second_score.metrics.length": 7.0}
    verdicts = analysis.verdicts(made, [run], store)
    assert [(verdict["scoring"], verdict["verdict"], verdict["reasons"]) for verdict in verdicts] == [
        ("score", "doubtful", ["why doubtful"]),
        ("second_score", "unfit", ["why unfit"]),
    ]


def test_a_second_judge_that_gives_nothing_usable_is_a_result_and_no_failure(tmp_path, monkeypatch):
    def unusable(config):
        if config.judge == "openai:it":
            write_json(Path(config.output_dir, "scorecard.json"), {"unusable": "none of 4 groupings was usable"})
        raise InputError("none of 4 groupings was usable")

    monkeypatch.setattr(score, "main", unusable)
    run = commands(StudyConfig(name="s", output_dir="", factors=(), recipe=Recipe(score=ScoreConfig(corpus="a"))))
    judged = ScoreConfig(corpus="a", judge="openai:it", output_dir=str(tmp_path / "judged"))
    run["second_score"](judged)
    for kind, config in (
        ("score", judged),
        ("second_score", ScoreConfig(corpus="a", output_dir=str(tmp_path / "other"))),
    ):
        with pytest.raises(InputError):
            run[kind](config)


def test_a_study_of_which_a_step_failed_ends_with_status_1_after_its_page(tmp_path, monkeypatch):
    def judged(config):
        if "bad" in str(config.corpus):
            raise InputError("no text")

    written = []
    monkeypatch.setattr(score, "main", judged)
    monkeypatch.setattr(study_run, "_analyse", lambda *arguments: written.append(arguments[-1]))
    levels = tuple(Level(name=name, set={"score.corpus": f"{name}.jsonl"}) for name in ("good", "bad"))
    made = StudyConfig(
        name="s",
        output_dir=str(tmp_path),
        factors=(Factor(name="f", levels=levels),),
        seed_fields=(),
        recipe=Recipe(score=ScoreConfig(corpus="a")),
    )
    with pytest.raises(SystemExit) as ended:
        study_run.run(made)
    assert (ended.value.code, len(written[0].done), len(written[0].failed)) == (1, 1, 1)
    study_run.run(dataclasses.replace(made, only="f=good"))


def test_a_model_that_is_not_trained_is_judged_once_whatever_the_seeds(tmp_path):
    nothing = dict.fromkeys(("generate", "build", "train")) | {"evaluate.model.checkpoint": "runs/before"}
    levels = (*study().factors[0].levels, Level(name="none", set=nothing))
    planned = plan(study(factors=(Factor(name="topics", levels=levels),)), StepStore(tmp_path))
    assert [(run.levels["topics"], run.seed) for run in planned.runs if run.levels["topics"] in (3, "none")] == [
        (3, 0),
        (3, 1),
        ("none", 0),
    ]
