"""The six stages over HTTP, with a server that knows the labels and with one that fails."""

import asyncio
import json
from pathlib import Path
import random
import signal
import subprocess
import sys
import time

import jsonschema
import pytest

from diversity_jax.cluster_agent import AgentConfig, LlmJudge, Scorecard, score_corpus
from diversity_jax.cluster_agent.llm import schema_of, system_of, user_of
from diversity_jax.cluster_agent.types import STAGES, Cluster, CriteriaSet, Criterion, Sample, Task
from diversity_jax.core.errors import InputError
from diversity_jax.llm import BudgetConfig, Engine, EngineConfig
from tests.kills import kills
from tests.llm_answers import fill, label_oracle, samples_in
from tests.llm_server import Faults, serve, serve_process
from tests.simulated_corpus import LabelledCorpus, even_corpus

SAMPLES = tuple(
    Sample(sample_id=f"k{i}a", text=f'text {i}\nwith a line and a "quote"', document=str(i)) for i in range(4)
)
CRITERIA = CriteriaSet(
    metadata=(Criterion(name="subject", definition="d", guidance="g"),),
    metrics=(Criterion(name="depth", levels=("a",) * 5),),
)
PROPOSALS = (("subject", ("what it is about", "its field")), ("form", ("prose or code",)))


def task_of(stage, **changes):
    """A task of any stage, with content that fits it."""
    content = {
        "propose_criteria": {"samples": SAMPLES},
        "summarize_metadata": {"proposals": PROPOSALS},
        "summarize_metrics": {"proposals": PROPOSALS},
        "define_criteria": {"criteria": CRITERIA},
        "cluster_samples": {"samples": SAMPLES, "criteria": CRITERIA},
        "verify_clusters": {
            "samples": SAMPLES,
            "criteria": CRITERIA,
            "clusters": (Cluster(sample_ids=("k0a", "k1a"), reasoning="both"),),
        },
    }[stage]
    settings = {"replicate": 0, "criteria_set": 0, "criteria_count": 3, "reasoning_words": 10}
    return Task(stage=stage, **{**settings, **content, **changes})


def oracle(stage, samples, payload):
    """Knows the topic of every text of a `LabelledCorpus`; for servers in a process of their own."""
    return label_oracle({sample["text"]: LabelledCorpus.label_of(sample["text"]) for sample in samples})(
        stage, samples, payload
    )


def engine_for(server, budget=BudgetConfig(), **settings):
    """An engine that asks a test server."""
    return Engine(
        "openai:oracle", base_url=server.openai_url, config=EngineConfig(progress="off", **settings), budget=budget
    )


@pytest.mark.parametrize("limits", [False, True])
@pytest.mark.parametrize("stage", STAGES)
def test_schemas_are_closed_and_their_emptiest_answer_fits(stage, limits):
    schema = schema_of(task_of(stage, schema_limits=limits))
    jsonschema.Draft202012Validator.check_schema(schema)
    text = json.dumps(schema)
    assert text.count('"type": "object"') == text.count('"additionalProperties": false') == text.count('"required"')
    assert ("maxLength" in text) == limits
    if not limits:
        jsonschema.validate(fill(schema), schema)
    bare = schema_of(task_of(stage, reasoning_words=0, schema_limits=limits))
    assert ("reasoning" in json.dumps(bare)) is False or stage not in ("cluster_samples", "verify_clusters")


@pytest.mark.parametrize("stage", ["propose_criteria", "cluster_samples", "verify_clusters"])
def test_samples_stand_in_the_user_message_one_json_object_a_line(stage):
    user = user_of(task_of(stage))
    assert samples_in(user) == [{"sample_id": s.sample_id, "text": s.text} for s in SAMPLES]
    assert not any(sample.text in system_of(task_of(stage)) for sample in SAMPLES)


@pytest.mark.parametrize("stage", ["cluster_samples", "verify_clusters"])
def test_criteria_stand_at_the_top_and_are_equal_in_all_groupings(stage):
    system = system_of(task_of(stage))
    assert system.index('"subject"') < system.index("Grouping the samples")
    assert system == system_of(task_of(stage, replicate=7, samples=SAMPLES[:2]))


def test_a_repair_shows_the_earlier_answer_as_one_line_of_data():
    task = task_of("cluster_samples", problem="sample ids in no cluster: k3a", previous='{"clusters":\n[]}')
    last = user_of(task).splitlines()[-1]
    assert json.dumps(task.previous) in last
    assert "k3a" in user_of(task)
    assert user_of(task) != user_of(task_of("cluster_samples"))


@pytest.mark.parametrize("truth", [5, 50])
def test_over_http_the_score_holds_the_truth(truth):
    corpus = even_corpus(truth, 20_000)
    with serve(oracle) as server:
        config = AgentConfig(groupings=250, proposals=2, verify_share=1.0)
        scorecard = score_corpus(corpus, LlmJudge(engine_for(server)), config)
    assert scorecard.effective_clusters.low < truth < scorecard.effective_clusters.high
    assert scorecard.calls == sum(server.answered.values()) == config.forecast_calls()
    assert scorecard.verdict.judge == "fit"
    assert scorecard.tokens == {"prompt": server.prompt_tokens, "completion": server.completion_tokens}
    assert scorecard.judge == "openai:oracle"


def test_with_three_calls_in_ten_failing_the_run_ends_and_counts():
    corpus = even_corpus(20, 20_000)
    rates = {
        "too_many": 0.05,
        "error_500": 0.04,
        "error_503": 0.04,
        "dropped": 0.04,
        "garbled": 0.05,
        "truncated": 0.04,
        "refused": 0.04,
    }
    with serve(oracle, faults=Faults(**rates, seed=3)) as server:
        engine = engine_for(server, backoff_seconds=0.01, deadline_seconds=5.0)
        scorecard = score_corpus(corpus, LlmJudge(engine), AgentConfig(groupings=250, proposals=4))
    assert scorecard.groupings + scorecard.dropped_groupings == 250
    assert set(scorecard.drops) == {"truncated", "refused"} | (set(scorecard.drops) & {"garbled", "gave_up"})
    assert scorecard.effective_clusters.low < 20 < scorecard.effective_clusters.high
    assert scorecard.repairs > 0


def test_a_server_that_knows_nothing_is_one_clear_line():
    corpus = even_corpus(5, 2000)
    with (
        serve(lambda stage, samples, payload: fill(payload["schema"])) as server,
        pytest.raises(InputError, match="none of 20 groupings") as caught,
    ):
        score_corpus(corpus, LlmJudge(engine_for(server)), AgentConfig(groupings=20, proposals=2))
    assert "\n" not in str(caught.value)


def test_a_replay_needs_no_server_and_gives_the_same_bytes(tmp_path):
    corpus = even_corpus(20, 5000)
    cache = str(tmp_path / "ledger.sqlite")
    config = AgentConfig(groupings=120, proposals=2)
    with serve(oracle, faults=Faults(refused=0.05, garbled=0.05)) as server:
        first = score_corpus(
            corpus, LlmJudge(engine_for(server, ledger=cache)), config, groupings_path=tmp_path / "a.jsonl"
        )
    engine = Engine(
        "openai:oracle",
        base_url=server.openai_url,
        config=EngineConfig(progress="off", ledger=cache, offline_replay=True),
    )
    again = score_corpus(corpus, LlmJudge(engine), config, groupings_path=tmp_path / "b.jsonl")
    assert again.to_json() == first.to_json()
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()


WORKER = """
import sys
from diversity_jax.cluster_agent import AgentConfig, LlmJudge, score_corpus
from tests.simulated_corpus import even_corpus
from diversity_jax.llm import BudgetConfig, Engine, EngineConfig
port, folder = sys.argv[1:]
config = EngineConfig(progress="off", ledger=f"{folder}/ledger.sqlite", max_in_flight=16)
engine = Engine("openai:oracle", base_url=f"http://127.0.0.1:{port}/v1", config=config)
corpus = even_corpus(20, 5000)
agent = AgentConfig(groupings=300, proposals=2)
scorecard = score_corpus(corpus, LlmJudge(engine), agent, groupings_path=f"{folder}/groupings.jsonl")
scorecard.save(f"{folder}/scorecard.json")
"""


def test_killed_at_random_moments_it_goes_on_where_it_was(tmp_path):
    times = kills(2)
    root = Path(__file__).resolve().parents[1]

    def start(folder, port):
        folder.mkdir(exist_ok=True)
        return subprocess.Popen([sys.executable, "-c", WORKER, str(port), str(folder)], cwd=root)

    generator = random.Random(0)
    with serve_process("tests.test_cluster_agent_llm:oracle", latency_seconds=0.02) as server:
        assert start(tmp_path / "whole", server.port).wait(120) == 0
        before = server.stats()
        for _ in range(times):
            process = start(tmp_path / "killed", server.port)
            time.sleep(0.5 + generator.random())
            process.send_signal(signal.SIGKILL)
            process.wait(30)
        assert start(tmp_path / "killed", server.port).wait(120) == 0
        after = server.stats()
    for name in ("scorecard.json", "groupings.jsonl"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert Scorecard.load(tmp_path / "killed" / "scorecard.json").groupings == 300
    # Every request is one of the uninterrupted run's; only those that were in flight at a kill are asked again.
    assert set(after["answered"]) == set(before["answered"])
    repeated = sum(after["answered"].values()) - 2 * sum(before["answered"].values())
    assert 0 <= repeated <= times * (16 + 1)


def test_what_a_cap_allows_goes_into_whole_groupings():
    config = AgentConfig(groupings=300, proposals=2, criteria_sets=2, verify_share=1.0)
    proposing, cap = 2 * (2 + 3), 130
    with serve(oracle) as server:
        judge = LlmJudge(engine_for(server, BudgetConfig(max_calls=cap), max_in_flight=16))
        scorecard = score_corpus(even_corpus(10, 3000), judge, config)
        assert server.attempts <= cap
    calls = 2 + config.recheck_share  # of a whole grouping
    assert 0.75 * (cap - proposing) / calls <= scorecard.groupings <= (cap - proposing) / 2


def test_judges_that_need_entering_may_be_entered_by_the_caller():
    corpus = even_corpus(5, 2000)

    async def main(server):
        from diversity_jax.cluster_agent import score_corpus_async

        async with LlmJudge(engine_for(server)) as judge:
            return await score_corpus_async(corpus, judge, AgentConfig(groupings=30, proposals=2))

    with serve(oracle) as server:
        assert asyncio.run(main(server)).groupings == 30
