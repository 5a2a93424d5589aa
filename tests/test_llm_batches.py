"""A judge over batch APIs: the figures of live calls at half their price, and nothing paid twice."""

import asyncio
import contextlib
import json
import logging
import multiprocessing
import sqlite3
import time

import pytest

from diversity_jax.cluster_agent import AgentConfig, LlmJudge, Scorecard, score_corpus
from diversity_jax.core.errors import InputError
from diversity_jax.llm import BatchConfig, BudgetConfig, Engine, EngineConfig, Request, StillRunning
from tests.llm_answers import label_oracle, samples_in
from tests.llm_batch_server import BatchServer
from tests.simulated_corpus import LabelledCorpus, even_corpus

AGENT = AgentConfig(groupings=40, proposals=2, criteria_sets=2, in_flight=8)
CORPUS = even_corpus(10, 3000)


def answer(system, user, schema, stage):
    samples = samples_in(user)
    oracle = label_oracle({sample["text"]: LabelledCorpus.label_of(sample["text"]) for sample in samples})
    return json.dumps(oracle(stage, samples, {"system": system, "user": user, "schema": schema, "model": "m"}))


@pytest.fixture
def provider(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-0123456789")
    made = BatchServer(answer)
    yield made
    made.server.shutdown()


def engine_for(provider, cache=None, budget=BudgetConfig(), *, batch=True, **batches) -> Engine:
    batches = BatchConfig(**{"poll_seconds": 0.02, "gather_seconds": 0.1} | batches)
    config = EngineConfig(progress="off", ledger=cache, batch=batch, batches=batches)
    return Engine("openai:gpt-4o-mini", base_url=f"{provider.url}/v1", config=config, budget=budget)


def score(provider, *arguments, **settings) -> Scorecard:
    return score_corpus(CORPUS, LlmJudge(engine_for(provider, *arguments, **settings)), AGENT)


def test_a_judge_in_batches_says_what_it_says_live_at_half_the_price(provider, caplog):
    live = score(provider, batch=False)
    calls = provider.live
    with caplog.at_level(logging.INFO):
        batched = score(provider)
    assert batched.effective_clusters == live.effective_clusters
    assert batched.calls == live.calls == calls
    assert batched.cost_usd == pytest.approx(live.cost_usd / 2)
    assert provider.live == calls
    # All groupings go out together, though fewer are in flight live: proposals, summaries, guidance, clusters, checks.
    assert provider.submitted <= 8
    assert "may take up to 24 h" in caplog.text


def _child(provider, cache):
    logging.disable(logging.CRITICAL)
    score(provider, cache)


def test_killed_at_every_batch_it_collects_them_and_pays_nothing_twice(provider, tmp_path):
    cache = str(tmp_path / "ledger.sqlite")
    kills = 0
    while True:
        provider.ready, polls = False, provider.polls
        child = multiprocessing.get_context("fork").Process(target=_child, args=(provider, cache))
        child.start()
        while provider.polls < polls + 3 and child.is_alive():
            time.sleep(0.01)
        done = not child.is_alive()
        child.kill()
        child.join()
        if done or kills == 4:
            break
        kills += 1
        provider.ready = True  # what was handed in is done by the next start, which hands in the next step
        again = multiprocessing.get_context("fork").Process(target=_child, args=(provider, cache))
        again.start()
        submitted = provider.submitted
        while provider.submitted == submitted and again.is_alive():
            time.sleep(0.005)
        again.kill()
        again.join()
    provider.ready = True
    scorecard = score(provider, cache)
    assert kills > 0
    assert scorecard.effective_clusters == score(provider, batch=False).effective_clusters
    asked = [json.loads(line)["custom_id"] for file in list(provider.files.values()) for line in file.splitlines()]
    assert len(asked) == len(set(asked)) == scorecard.calls


def test_a_batch_that_takes_longer_than_it_may_is_one_line_and_collected_later(provider, tmp_path):
    cache = str(tmp_path / "ledger.sqlite")
    provider.ready = False
    with pytest.raises(StillRunning, match=r"^judge: batch batch-1 is still running.*run the same command again"):
        score(provider, cache, wait_seconds=0.05)
    provider.ready = True
    scorecard = score(provider, cache)
    assert (scorecard.groupings, provider.live) == (40, 0)
    # Without batches the answers that are under way are collected too, and only the rest is asked live.
    provider.ready = False
    with pytest.raises(StillRunning):
        score(provider, str(tmp_path / "other.sqlite"), wait_seconds=0.05)
    provider.ready, submitted = True, provider.submitted
    assert score(provider, str(tmp_path / "other.sqlite"), batch=False).groupings == 40
    assert provider.submitted == submitted
    assert 0 < provider.live < scorecard.calls


def test_a_server_without_batches_is_one_line_and_leaves_nothing_behind(provider, tmp_path):
    cache = str(tmp_path / "ledger.sqlite")
    url, provider.url_path = provider.url, "/nothing"
    with pytest.raises(InputError, match=r"^judge: .*refuses the batch \(404.*set batch=False") as caught:
        score(provider, cache)
    assert "\n" not in str(caught.value)
    with contextlib.closing(sqlite3.connect(cache)) as rows:
        assert rows.execute("SELECT count(*) FROM claims").fetchone() == (0,)
    provider.url_path = ""
    assert provider.url == url
    assert score(provider, cache, batch=False).groupings == 40


@pytest.mark.parametrize("field", ["temperature", "max_completion_tokens"])
def test_lines_refused_for_a_field_are_handed_in_again_without_it(provider, field, caplog):
    provider.refused = field
    scorecard = score(provider)
    assert (scorecard.groupings, scorecard.dropped_groupings, provider.live) == (40, 0, 0)
    assert sum("does not take" in record.message for record in caplog.records) == 1
    assert provider.submitted <= 9


def test_lines_refused_for_no_reason_that_can_be_mended_end_the_run(provider):
    provider.refused = "messages"
    with pytest.raises(InputError, match=r"^judge: .*rejects every call.*Unsupported parameter: 'messages'") as caught:
        score(provider)
    assert "\n" not in str(caught.value)
    assert provider.live == 0


def _without_three(lines):
    return lines[3:] if len(lines) > 3 else lines


def _three_failed(lines):
    response = {"status_code": 500, "body": {"error": {"message": "overloaded"}}}
    failed = [json.dumps({**json.loads(line), "response": response}) for line in lines[:3]]
    return [*failed, *lines[3:]] if len(lines) > 3 else lines


@pytest.mark.parametrize("fallback", ["live", "stop"])
@pytest.mark.parametrize(("state", "returned"), [("cancelled", _without_three), ("completed", _three_failed)])
def test_what_a_cancelled_or_partly_failed_batch_has_answered_is_kept_and_the_rest_falls_back(
    provider, state, returned, fallback
):
    provider.answer = lambda system, user, schema, stage: "{}"
    provider.state, provider.returned = state, returned
    engine = engine_for(provider, fallback=fallback)
    requests = [Request(stage="ask", system="", user=str(number), schema={}) for number in range(8)]

    async def ask():
        async with engine:
            return await asyncio.gather(*map(engine.complete, requests), return_exceptions=True)

    outcomes = asyncio.run(ask())
    live = 3 if fallback == "live" else 0
    assert sum(hasattr(outcome, "text") for outcome in outcomes) == 5 + live
    assert (provider.submitted, provider.live) == (1, live)
    assert engine.stats.spent.dollars == pytest.approx(engine.price.cost(100, 200) * (5 + 2 * live))


@pytest.mark.parametrize("cap", [{"max_calls": 60}, {"max_dollars": 0.005}])
def test_no_cap_is_passed_by_batches(provider, cap):
    engine = engine_for(provider, budget=BudgetConfig(**cap))
    scorecard = score_corpus(CORPUS, LlmJudge(engine), AGENT)
    spent = engine.stats.spent
    assert 0 < scorecard.groupings < 40
    assert spent.calls <= cap.get("max_calls", spent.calls)
    assert spent.dollars <= cap.get("max_dollars", spent.dollars)
