"""Every behaviour of `llm_behaviours`: how the run ends, its messages, and what it paid."""

import dataclasses
import re
import sqlite3

import pytest

from diversity_jax.core.errors import InputError
from diversity_jax.llm import CallFailed
from tests.llm_behaviours import BEHAVIOURS, GEMINI_BEHAVIOURS
from tests.llm_played_server import (
    DOCUMENTS,
    KEY,
    SECRET,
    Behaviour,
    Played,
    always,
    chat,
    first_time,
    play,
    refusal,
    right,
    sometimes,
)


@pytest.fixture(autouse=True)
def _keys(monkeypatch):
    for variable in ("OPENAI_API_KEY", "GEMINI_API_KEY"):
        monkeypatch.setenv(variable, KEY)
    monkeypatch.setenv("TEAM_SECRET", SECRET)
    monkeypatch.delenv("GOOGLE_API_KEY", raising=False)


def check(behaviour: Behaviour, played: Played) -> None:
    assert all(hasattr(outcome, "text") or isinstance(outcome, (CallFailed, InputError)) for outcome in played.outcomes)
    assert all(right(outcome.text) for outcome in played.outcomes if hasattr(outcome, "text"))
    assert played.attempts <= behaviour.attempts
    if behaviour.ends is None:
        assert played.end is None
        assert played.failed == behaviour.failed
        assert played.answered == DOCUMENTS - sum(behaviour.failed.values())
    else:
        assert re.search(behaviour.ends, played.end or "")
        assert "\n" not in played.end
        # What is dear is never done in vain: a run that is ended keeps what it was answered.
        assert played.answered * behaviour.bill == pytest.approx(played.billed)
    assert played.spent >= played.billed * (1 - 1e-9)
    assert played.billed <= behaviour.budget.get("max_dollars", float("inf"))
    messages = "\n".join(played.messages)
    if behaviour.says is not None:
        assert re.search(behaviour.says, messages)
    for secret in (KEY, SECRET):
        assert secret not in messages


@pytest.mark.parametrize("behaviour", BEHAVIOURS, ids=lambda behaviour: behaviour.title)
def test_a_server_as_it_really_behaves(behaviour):
    check(behaviour, play(behaviour))


@pytest.mark.parametrize("provider", ["gemini", "google-genai"])
@pytest.mark.parametrize("behaviour", GEMINI_BEHAVIOURS, ids=lambda behaviour: behaviour.title)
def test_a_gemini_server_as_it_really_behaves(behaviour, provider):
    behaviour = dataclasses.replace(behaviour, provider=provider, base="")
    check(behaviour, play(behaviour))


def test_a_run_whose_last_calls_are_always_turned_away_finishes_every_time(tmp_path):
    refused = always(*range(12))
    behaviour = Behaviour(title="", respond=sometimes(refused, (403, b"<h1>Forbidden</h1>")))
    cache = str(tmp_path / "ledger.sqlite")
    for attempts in (28 + 3 * 12, 3 * 12):
        played = play(behaviour, cache)
        assert (played.end, played.answered, dict(played.failed)) == (None, 28, {"rejected": 12})
        assert played.attempts == attempts


@pytest.mark.parametrize(
    ("response", "says"),
    [
        (
            (307, b"", {"location": "https://elsewhere.example/v1?key=abcdefgh"}),
            r"redirected to https://elsewhere\.example/v1\)",
        ),
        (refusal(400, "The prompt was filtered", "content_filter"), "^judge: the content filter .* refuses every call"),
    ],
)
def test_what_ends_a_run_of_refused_calls_says_why(response, says):
    played = play(Behaviour(title="", respond=lambda asked: response), documents=120)
    assert re.search(says, played.end)


@pytest.mark.parametrize(
    "message",
    [
        "Input should be 'text' or 'json_object', input: json_schema, loc: response_format",
        "response_format value as json_schema is enabled only for api versions 2024-08-01-preview and later",
        "output_format.schema: For 'array' type, 'minItems' values other than 0 or 1 are not supported",
        "No endpoints found that can handle the requested parameters.",
    ],
)
def test_a_format_is_left_out_in_whatever_words_it_is_refused(message):
    def respond(asked):
        wanted = asked.body.get("response_format", {}).get("type")
        return refusal(400, message) if wanted == "json_schema" else (200, chat())

    played = play(Behaviour(title="", respond=respond), documents=5)
    assert (played.answered, played.attempts) == (5, 10)
    assert "does not take json_schema" in played.messages[0]


def test_an_answer_that_broke_the_format_is_asked_for_again():
    failed = refusal(400, "Failed to generate JSON. Please adjust your prompt.", "json_validate_failed")
    played = play(Behaviour(title="", respond=sometimes(first_time(2), failed)), documents=5)
    assert (played.answered, played.attempts) == (5, 6)


def test_what_is_no_answer_is_quoted():
    page = b'data: {"choices": \xff}'
    played = play(Behaviour(title="", respond=lambda asked: (200, page), config={"max_attempts": 1}), documents=1)
    assert 'sent something that is no answer of a model: data: {"choices"' in played.messages[-1]


def test_a_key_that_was_withdrawn_ends_a_run_that_was_answered_before(tmp_path):
    cache = str(tmp_path / "ledger.sqlite")
    play(Behaviour(title="", respond=lambda asked: (200, chat())), cache, documents=30)
    withdrawn = refusal(401, "Incorrect API key provided", "invalid_api_key")
    played = play(Behaviour(title="", respond=lambda asked: withdrawn), cache)
    assert "does not accept the API key" in played.end
    assert played.answered == 30


def test_what_a_server_does_not_take_is_asked_of_it_once_for_a_response_cache(tmp_path):
    stingy = next(behaviour for behaviour in BEHAVIOURS if behaviour.title == "none of these")
    cache = str(tmp_path / "ledger.sqlite")
    first = play(stingy, cache, documents=10)
    second = play(stingy, cache, port=first.port)
    assert first.attempts > 10
    assert (second.attempts, second.answered) == (30, 40)
    assert not any("does not take" in line for line in second.messages)


# By run: the same twice, a new version twice, another model, and the first one beside that one's answers.
_SERVED = [tuple(served.split()) for served in ("a 1", "a 1", "a 2", "a 2", "b 1", "a 1")]


def test_another_model_behind_the_same_name_is_said_once_and_noted(tmp_path):
    cache = str(tmp_path / "ledger.sqlite")

    def served(model: str, fingerprint: str) -> Behaviour:
        return Behaviour(title="", respond=lambda asked: (200, chat(model=model, system_fingerprint=fingerprint)))

    lines_of = []
    for number, names in enumerate(_SERVED):
        played = play(served(*names), cache, documents=10 * (number + 1))
        lines_of.append([line for line in played.messages if "is now answered by" in line])
    assert [len(lines) for lines in lines_of] == [0, 0, 1, 0, 1, 1]
    assert "answered by a 2; answers in" in lines_of[2][0]
    assert "answered by b 1; answers in" in lines_of[4][0]
    assert "are of b 1" in lines_of[5][0]
    notes = sqlite3.connect(cache).execute("SELECT value FROM notes WHERE kind = 'answered by' ORDER BY value")
    assert [value for (value,) in notes] == ["a 1", "a 2", "b 1"]


def test_another_model_is_seen_by_the_servers_list_though_every_answer_is_at_hand(tmp_path):
    cache = str(tmp_path / "ledger.sqlite")
    lines_of = []
    for listed in (
        {"root": "/models/a", "created": 1},
        {"root": "/models/a", "created": 2},
        {"root": "/models/b"},
        None,
    ):
        played = play(Behaviour(title="", respond=lambda asked: (200, chat()), listed=listed), cache, documents=5)
        lines_of.append([line for line in played.messages if "is now listed as" in line])
    assert played.attempts == 0
    assert [len(lines) for lines in lines_of] == [0, 0, 1, 0]
    assert "/models/b" in lines_of[2][0]
    assert "/models/a" in lines_of[2][0]


def test_cached_prompt_tokens_cost_what_the_price_table_says(tmp_path):
    table = tmp_path / "prices.json"
    table.write_text('{"models": {"openai": {"model": {"input": 10, "output": 40, "cached_input": 1}}}}')
    usage = {"prompt_tokens": 100, "completion_tokens": 20, "prompt_tokens_details": {"cached_tokens": 80}}
    budget = {"prices": str(table), "input_price": None, "output_price": None}
    played = play(Behaviour(title="", respond=lambda asked: (200, chat(usage=usage)), budget=budget))
    assert played.spent == pytest.approx(40 * (20 * 10 + 80 * 1 + 20 * 40) / 1e6)
