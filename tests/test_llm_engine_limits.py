"""The engine under rate limits, outages, budgets and cancellation, against a real server on loopback."""

import asyncio
from collections import Counter
import re
import sqlite3

import pytest

from diversity_jax.llm import BudgetConfig
from diversity_jax.llm.providers.outcomes import retry_after
from tests.llm_answers import tokens_of
from tests.llm_calls import (
    ask,
    engine_for,
    provider_keys,  # noqa: F401 - a fixture of every test
    request,
)
from tests.llm_server import Faults, serve


def test_retry_after_is_honoured():
    with serve(faults=Faults(too_many=1.0, retry_after_seconds=0.4)) as server:
        engine = engine_for(server)

        async def run():
            async with engine:
                call = asyncio.create_task(engine.complete(request()))
                await asyncio.sleep(0.35)
                early = server.attempts
                server.faults = Faults()
                await call
                return early

        assert asyncio.run(run()) == 1
        assert server.attempts == 2


def test_a_server_that_wants_to_be_left_alone_for_long_ends_the_run_at_once():
    with serve(faults=Faults(too_many=1.0, retry_after_seconds=86_400)) as server:
        outcomes = ask(engine_for(server), [request(number) for number in range(3)])
    assert {outcome.reason for outcome in outcomes} == {"stalled"}
    assert "86400 s" in str(outcomes[0])


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "2"}, 2.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "1500", "retry-after": "9"}, 1.5),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "1e20"}, 366 * 86_400.0),
        ({}, None),
    ],
)
def test_every_form_of_retry_after_is_read(headers, seconds):
    assert retry_after(headers) == seconds


def test_concurrency_adapts_to_the_servers_limit():
    with serve(latency_seconds=0.02, faults=Faults(max_concurrent=12)) as server:
        engine = engine_for(server, max_in_flight=200, backoff_seconds=0.01)
        outcomes = ask(engine, [request(number) for number in range(900)])
        refused = server.statuses["too_many"]
    assert all(not isinstance(outcome, Exception) for outcome in outcomes)
    assert 6 <= engine.limit <= 18
    # The first burst has to fail; after it few calls are turned away.
    assert refused < 200 + 0.35 * 900


def test_stray_429s_do_not_throttle_a_run():
    with serve(faults=Faults(too_many=0.04), latency_seconds=0.01) as server:
        engine = engine_for(server, max_in_flight=64)
        ask(engine, [request(number) for number in range(600)])
        assert server.statuses["too_many"] > 10
    assert engine.limit >= 32  # one halving at most; halved at each, it would end below 5


@pytest.mark.parametrize(
    ("faults", "said_before"),
    [
        (Faults(error_503=1.0), "server: 503"),
        (Faults(garbled_http=1.0), "garbled: .* sent something that is no answer of a model: "),
        (Faults(too_many=1.0), None),
        (Faults(hanging=1.0), None),
    ],
)
def test_a_stalled_run_stops_with_a_reason(faults, said_before, caplog):
    with serve(faults=faults) as server:
        engine = engine_for(server, stall_seconds=0.6, deadline_seconds=1.0, max_attempts=50)
        outcomes = ask(engine, [request(number) for number in range(40)])
    assert {outcome.reason for outcome in outcomes} == {"stalled"}
    assert outcomes[0].ends_run
    assert "openai:model" in str(outcomes[0])
    early = [line for line in caplog.messages if re.search(f"answered none of its last calls .{said_before}", line)]
    assert len(early) == bool(said_before)


def test_a_server_that_comes_back_costs_no_call():
    with serve(faults=Faults(error_503=1.0)) as server:
        engine = engine_for(server, max_attempts=4, stall_seconds=30)

        async def run():
            async with engine:
                calls = asyncio.gather(
                    *(engine.complete(request(number)) for number in range(60)), return_exceptions=True
                )
                await asyncio.sleep(1.0)
                server.faults = Faults()
                return await calls

        outcomes = asyncio.run(run())
    assert sum(isinstance(outcome, Exception) for outcome in outcomes) == 0


def test_a_run_with_a_third_of_its_calls_failing_ends_with_every_call_accounted_for(tmp_path):
    each = 0.033
    names = (
        "too_many",
        "error_500",
        "error_503",
        "dropped",
        "hanging",
        "garbled_http",
        "truncated",
        "refused",
        "empty",
    )
    with serve(faults=Faults(**dict.fromkeys(names, each), seed=3), latency_seconds=0.01) as server:
        engine = engine_for(server, deadline_seconds=1.5, max_in_flight=64, ledger=str(tmp_path / "ledger.sqlite"))
        outcomes = ask(engine, [request(number) for number in range(500)])
        kinds = Counter(getattr(outcome, "reason", "answered") for outcome in outcomes)
        assert kinds["answered"] == len(server.answered)
        for reason in ("truncated", "refused"):
            assert kinds[reason] == server.statuses[reason] > 0
        assert kinds["empty"] < server.statuses["empty"]  # an empty answer is asked for once more
    assert kinds["gave_up"] <= 1
    assert (engine.stats.done, engine.stats.failed) == (kinds["answered"], 500 - kinds["answered"])


@pytest.mark.parametrize("cap", [{"max_calls": 70}, {"max_tokens": 3000}, {"max_dollars": 0.003}])
@pytest.mark.parametrize("faults", [Faults(), Faults(error_500=0.1, dropped=0.1, truncated=0.1, seed=4)])
def test_the_cap_is_used_up_and_never_passed(cap, faults, tmp_path, caplog):
    with serve(faults=faults, latency_seconds=0.01) as server:
        prices = tmp_path / "prices.json"
        prices.write_text('{"models": {"openai": {"model": {"input": 1.0, "output": 10.0}}}}')
        budget = BudgetConfig(prices=str(prices), **cap)
        config = {"max_in_flight": 16, "ledger": str(tmp_path / "ledger.sqlite")}
        outcomes = ask(
            engine_for(server, budget=budget, **config),
            [request(number, max_output_tokens=20) for number in range(300)],
        )
        again = ask(
            engine_for(server, budget=budget, **config),
            [request(number, max_output_tokens=20) for number in range(300)],
        )
    tokens = server.prompt_tokens + server.completion_tokens
    dollars = (server.prompt_tokens * 1.0 + server.completion_tokens * 10.0) / 1e6
    used = {"max_calls": server.attempts, "max_tokens": tokens, "max_dollars": dollars}
    [(name, limit)] = cap.items()
    assert (0.8 if faults == Faults() else 0.2) * limit < used[name] <= limit
    for results in (outcomes, again):
        kinds = Counter(getattr(outcome, "reason", "answered") for outcome in results)
        assert kinds["budget"] > 0
        assert kinds["answered"] > 0
    # A run that has reached its cap still gets what it has paid for, and asks nothing.
    assert sum(getattr(outcome, "cached", False) for outcome in again) == sum(
        hasattr(outcome, "text") for outcome in outcomes
    )
    assert f"budget.{name}" in caplog.text


def test_lost_calls_that_are_answered_later_do_not_end_a_run_far_below_its_cap(tmp_path):
    cap, length = 40_000, 400
    with serve(lambda *_: "word " * 100, faults=Faults(hanging=0.3, seed=2), latency_seconds=0.01) as server:
        budget = BudgetConfig(max_tokens=cap)
        engine = engine_for(
            server, budget=budget, ledger=str(tmp_path / "l.sqlite"), max_in_flight=8, deadline_seconds=0.15
        )
        asked = {"schema": None, "max_output_tokens": length}
        requests = [request(n, user="some words " * 40 + str(n), urgent=n % 3 == 0, **asked) for n in range(500)]
        outcomes = ask(engine, requests)
    answered = sum(hasattr(outcome, "text") for outcome in outcomes)
    hung, used = server.statuses["hanging"], server.prompt_tokens + server.completion_tokens
    assert hung > 0.2 * answered
    # What hung counts as an answer of twice its length at most. Set aside at the most it can use, four times as much,
    # it would end the run at half of this.
    assert 0.85 * cap < used + hung * (used / answered + tokens_of("word " * 100)) <= 1.05 * cap
    assert engine.stats.spent.tokens <= cap
    assert {getattr(outcome, "reason", "answered") for outcome in outcomes} == {"answered", "budget"}


def test_cancelling_counts_what_may_have_been_billed_and_leaves_no_reservation(tmp_path):
    cache = tmp_path / "ledger.sqlite"
    with serve(latency_seconds=5) as server:
        engine = engine_for(server, ledger=str(cache))

        async def run():
            async with engine:
                calls = [asyncio.create_task(engine.complete(request(number))) for number in range(3)]
                while server.attempts < 3:
                    await asyncio.sleep(0.01)
                calls[0].cancel()
                raise RuntimeError("the program ends")

        with pytest.raises(RuntimeError, match="the program ends"):
            asyncio.run(run())
    rows = sqlite3.connect(cache)
    assert rows.execute("SELECT count(*) FROM claims").fetchone() == (0,)
    assert rows.execute("SELECT lost, calls FROM spent").fetchall() == [(1, 3)]
