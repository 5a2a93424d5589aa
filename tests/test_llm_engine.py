"""The engine against a real server on loopback, through each of the three SDKs."""

import asyncio
import logging
import socket

import pytest

from diversity_jax.core.errors import InputError
from diversity_jax.llm import CallFailed, Engine, EngineConfig
from tests.llm_calls import (
    KEY,
    ask,
    engine_for,
    provider_keys,  # noqa: F401 - a fixture of every test
    request,
)
from tests.llm_server import Faults, serve

PROVIDERS = ("openai", "gemini", "google-genai")


@pytest.mark.parametrize("provider", PROVIDERS)
def test_an_answer_arrives_whole_and_is_paid_once(provider, tmp_path):
    cache = str(tmp_path / "ledger.sqlite")
    with serve() as server:
        [first] = ask(engine_for(server, provider, ledger=cache), [request()])
        [second] = ask(engine_for(server, provider, ledger=cache), [request()])
        assert server.attempts == 1
    assert first.text == second.text == '{"word": "topic", "score": 1}'
    assert (first.cached, second.cached) == (False, True)
    assert (first.prompt_tokens, first.completion_tokens) == (server.prompt_tokens, server.completion_tokens)
    assert (second.prompt_tokens, second.cost_usd) == (first.prompt_tokens, first.cost_usd)


@pytest.mark.parametrize("provider", PROVIDERS)
def test_replay_needs_no_server_and_a_missing_answer_is_named(provider, tmp_path):
    cache = str(tmp_path / "ledger.sqlite")
    requests = [request(number) for number in range(4)]
    with serve(faults=Faults(refused=0.5, seed=1)) as server:
        before = ask(engine_for(server, provider, ledger=cache), requests)
    after = ask(engine_for(server, provider, ledger=cache, offline_replay=True), [*requests, request(99)])
    shown = [getattr(outcome, "text", str(outcome)) for outcome in before]
    assert shown == [getattr(outcome, "text", str(outcome)) for outcome in after[:-1]]
    assert any(isinstance(outcome, CallFailed) for outcome in before)
    assert isinstance(after[-1], InputError)
    assert "has no answer" in str(after[-1])


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("fault", ["too_many", "error_500", "error_503", "dropped", "hanging", "garbled_http"])
def test_passing_faults_are_tried_again(provider, fault):
    with serve(faults=Faults(**{fault: 0.4}, seed=1)) as server:
        deadline_seconds = 0.5 if fault == "hanging" else 20.0
        engine = engine_for(server, provider, deadline_seconds=deadline_seconds, max_attempts=12)
        outcomes = ask(engine, [request(number) for number in range(12)])
        assert server.statuses[fault] > 0
        assert fault == "hanging" or max(server.answered.values()) == 1
    assert all(outcome.text == '{"word": "topic", "score": 1}' for outcome in outcomes)


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize(("fault", "reason"), [("truncated", "truncated"), ("refused", "refused"), ("empty", "empty")])
def test_an_unusable_ending_is_a_failure_with_its_reason_and_never_an_answer(provider, fault, reason, tmp_path):
    cache = str(tmp_path / "ledger.sqlite")
    with serve(faults=Faults(**{fault: 1.0})) as server:
        [outcome] = ask(engine_for(server, provider, ledger=cache), [request()])
        assert isinstance(outcome, CallFailed)
        assert outcome.reason == reason
        assert not outcome.ends_run
        assert server.attempts == 1 + (fault == "empty")  # models give empty answers at random
        server.faults = Faults()
        [outcome] = ask(engine_for(server, provider, ledger=cache), [request()])
    assert outcome.text
    assert not outcome.cached


def test_what_a_failed_answer_used_up_is_counted():
    with serve(faults=Faults(truncated=1.0)) as server:
        engine = engine_for(server)
        [outcome] = ask(engine, [request()])
        assert outcome.prompt_tokens == server.prompt_tokens > 0
        assert engine.stats.spent.tokens == server.prompt_tokens + server.completion_tokens
    assert (engine.stats.failed, engine.stats.done) == (1, 0)


@pytest.mark.parametrize("provider", PROVIDERS)
def test_attempts_are_bounded(provider):
    with serve(faults=Faults(error_500=1.0)) as server:
        [outcome] = ask(engine_for(server, provider, max_attempts=3), [request()])
        assert server.attempts == 3
    assert outcome.reason == "gave_up"
    assert "500" in outcome.detail


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_wrong_key_is_one_line_without_the_key_and_is_not_tried_again(provider):
    with serve(required_key="another") as server:
        [first, *others] = ask(engine_for(server, provider, max_in_flight=1), [request(number) for number in range(20)])
        assert server.attempts == 1
    assert all(isinstance(outcome, InputError) for outcome in [first, *others])
    assert "API key" in str(first)
    assert "API_KEY" in str(first)
    assert KEY not in str(first)
    assert "\n" not in str(first)


@pytest.mark.parametrize("provider", PROVIDERS)
def test_an_unknown_model_is_one_line_and_is_not_tried_again(provider):
    with serve(model="another") as server:
        [outcome] = ask(engine_for(server, provider), [request()])
        assert server.attempts == 1
    assert isinstance(outcome, InputError)
    assert f"{provider}:model" in str(outcome)


@pytest.mark.parametrize("provider", PROVIDERS)
def test_an_unreachable_server_is_one_line(provider):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    engine = Engine(f"{provider}:model", base_url=address, config=EngineConfig(backoff_seconds=0.02, progress="off"))
    [outcome, *_] = ask(engine, [request(number) for number in range(5)])
    assert isinstance(outcome, InputError)
    assert "no server answers" in str(outcome)
    assert address in str(outcome)


@pytest.mark.parametrize(
    ("name", "url", "says"),
    [
        ("claude:x", None, "openai:MODEL"),
        ("openai:", None, "openai:MODEL"),
        ("openai:gpt-4o", "not an address", "is no address"),
        ("google-genai:gemini-2.0-flash", "not an address", "is no address"),
        ("gemini:gemini-2.0-flash", "not an address", "is no address"),
    ],
)
def test_bad_names_and_addresses_are_one_line(name, url, says):
    with pytest.raises(InputError, match=says):
        raise ask(Engine(name, base_url=url, config=EngineConfig(progress="off")), [request()])[0]


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_missing_key_is_one_line_that_names_the_variable(provider, monkeypatch):
    for variable in ("OPENAI_API_KEY", "GEMINI_API_KEY"):
        monkeypatch.delenv(variable)
    model = {"openai": "gpt-4o"}.get(provider, "gemini-2.0-flash")
    with pytest.raises(InputError, match="API_KEY in the environment"):
        ask(Engine(f"{provider}:{model}"), [request()])


def test_a_server_of_ones_own_needs_no_key(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    with serve() as server:
        [outcome] = ask(engine_for(server), [request()])
    assert outcome.text


def test_equal_requests_at_once_share_one_call_and_replicates_do_not():
    with serve(latency_seconds=0.05) as server:
        outcomes = ask(engine_for(server), [request(1)] * 5 + [request(1, replicate=number) for number in range(3)])
        assert server.attempts == 3
    assert len({outcome.text for outcome in outcomes}) == 1


@pytest.mark.parametrize(
    ("parameter", "instead"),
    [("response_format", "JSON schema"), ("max_tokens", "max_completion_tokens"), ("temperature", "own temperature")],
)
def test_a_parameter_the_server_does_not_take_is_left_away_from_then_on(parameter, instead, caplog):
    with serve(reject_parameters=(parameter,)) as server:
        outcomes = ask(engine_for(server, max_in_flight=1), [request(number) for number in range(6)])
        assert server.statuses == {"400": 1, "200": 6}
        body = server.bodies[-1][1].decode()
    assert all(outcome.text for outcome in outcomes)
    assert sum(instead in record.message or parameter in record.message for record in caplog.records) == 1
    if parameter == "response_format":
        assert '"response_format"' not in body
        assert "JSON schema, named propose_criteria" in body


def test_a_server_enforces_schemas_until_it_refuses_one_or_an_answer_breaks_one(caplog):
    async def run(engine):
        async with engine:
            before = engine.enforces_schema
            await engine.complete(request())
            after = engine.enforces_schema
            engine.report_broken_schema("propose_criteria")
            engine.report_broken_schema("propose_criteria")
            return before, after, engine.enforces_schema

    with caplog.at_level(logging.INFO), serve() as server:
        assert asyncio.run(run(engine_for(server))) == (True, True, False)
        assert sum("propose_criteria broke it" in record.message for record in caplog.records) == 1
        server.reject_parameters = ("response_format",)
        assert asyncio.run(run(engine_for(server))) == (True, False, False)


def test_a_single_rejected_call_fails_alone_and_a_wrong_setting_ends_the_run():
    with serve() as server:
        engine = engine_for(server, max_in_flight=1)

        async def run():
            async with engine:
                good = await engine.complete(request(0))
                server.reject_parameters = ("model",)
                bad = await asyncio.gather(
                    *(engine.complete(request(number)) for number in range(1, 9)), return_exceptions=True
                )
                server.reject_parameters = ()
                return good, bad, await engine.complete(request(20))

        good, bad, after = asyncio.run(run())
        assert good.text
        assert after.text
        assert {outcome.reason for outcome in bad} == {"rejected"}
        server.reject_parameters = ("model",)
        outcomes = ask(engine_for(server, max_in_flight=1), [request(number) for number in range(30, 60)])
    assert sum(isinstance(outcome, InputError) for outcome in outcomes) == 28
    assert "rejects every call" in str(outcomes[-1])


@pytest.mark.parametrize("provider", PROVIDERS)
def test_no_key_and_no_prompt_in_logs_response_cache_or_messages(provider, tmp_path, caplog, capfd):
    secret_text = "the quick brown fox jumps over the lazy dog " * 20
    cache = tmp_path / "ledger.sqlite"
    faults = Faults(error_500=0.2, too_many=0.2, dropped=0.1, garbled_http=0.1, refused=0.1, seed=2)
    with caplog.at_level(logging.INFO), serve(faults=faults) as server:
        requests = [request(number, system=secret_text, user=f"{secret_text} {number}") for number in range(30)]
        outcomes = ask(engine_for(server, provider, ledger=str(cache), max_attempts=2), requests)
        header = "authorization" if provider == "openai" else "x-goog-api-key"
        assert KEY in server.bodies[-1][0][header]
    assert any(isinstance(outcome, CallFailed) for outcome in outcomes)
    chained = [
        error for outcome in outcomes if isinstance(outcome, Exception) for error in (outcome, outcome.__cause__)
    ]
    captured = capfd.readouterr()
    written = b"".join(path.read_bytes() for path in tmp_path.iterdir()).decode("latin-1")
    for text in (caplog.text, captured.out, captured.err, written, *map(str, chained)):
        assert KEY not in text
        assert secret_text[:200] not in text
    assert "HTTP Request" not in caplog.text
