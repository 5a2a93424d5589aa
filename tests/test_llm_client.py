"""The interface between callers and the engine."""

import asyncio
import dataclasses
import subprocess
import sys

import jsonschema
import pytest

from diversity_jax.core.errors import InputError
from diversity_jax.core.files import content_hash
from diversity_jax.llm import CallFailed, EndpointConfig, Engine, EngineConfig, Request, read_json_answer
from diversity_jax.llm.providers.answers import fits
from diversity_jax.llm.providers.endpoint import Endpoint
from diversity_jax.llm.providers.registry import PROVIDERS


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("stage", "two words"),
        ("stage", ""),
        ("max_output_tokens", 0),
        ("temperature", -0.1),
        ("temperature", 2.5),
        ("replicate", -1),
    ],
)
def test_a_bad_request_names_field_and_value(field, value):
    with pytest.raises(InputError, match=rf"Request\.{field}: .*{value}"):
        Request(**{"stage": "s", "system": "", "user": "", "schema": None} | {field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_in_flight", 0),
        ("max_in_flight", 5000),
        ("max_attempts", 0),
        ("deadline_seconds", 0.0),
        ("stall_seconds", -1.0),
        ("progress", "loud"),
        ("ledger", "gs://bucket/ledger.sqlite"),
    ],
)
def test_a_bad_setting_names_field_and_value(field, value):
    with pytest.raises(InputError, match=rf"engine\.{field}: .*{value}"):
        EngineConfig(**{field: value})


def test_a_provider_without_key_variables_needs_no_key(monkeypatch):
    monkeypatch.setitem(PROVIDERS, "local", dataclasses.replace(PROVIDERS["openai"], key_variables=()))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert Endpoint("local:small", None, "judge").key == "none"
    with pytest.raises(InputError, match="openai:small needs an API key; set OPENAI_API_KEY"):
        Endpoint("openai:small", None, "judge")


@pytest.mark.parametrize(
    "schema", [None, {}, {"type": "object", "properties": {"b": {"enum": ["\u00fc", 1.5, True]}, "a": {}}}]
)
def test_the_key_is_the_hash_of_all_that_is_asked(schema):
    request = Request(
        stage="s_1",
        system='say "\u00fc"\n',
        user="\u2028\ud800",
        schema=schema,
        replicate=3,
        temperature=1,
        max_output_tokens=9,
    )
    asked = {
        "provider": "openai",
        "model": 'a"\u00e4',
        "decoding": {"temperature": 1.0, "max_output_tokens": 9},
        "schema": schema if schema is None else {"name": "s_1", "schema": schema},
        "system": request.system,
        "messages": [{"role": "user", "content": request.user}],
        "replicate": 3,
    }
    assert request.key("openai", 'a"\u00e4') == content_hash(asked)


def test_only_budget_and_stall_end_a_run():
    reasons = ("refused", "truncated", "empty", "rejected", "gave_up", "budget", "stalled")
    assert [reason for reason in reasons if CallFailed(reason, "why").ends_run] == ["budget", "stalled"]


def test_importing_the_room_imports_no_sdk_and_opens_nothing():
    heavy = (
        "openai",
        "google.generativeai",
        "google.genai",
        "httpx",
        "httpx2",
        "requests",
        "rich",
        "tensorflow",
        "jax",
        "numpy",
    )
    script = f"import sys, diversity_jax.llm; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "[]\n"


WHOLE = '{"clusters": [{"cluster": 1}]}'
LONGER = '{"clusters": [{"cluster": 1}, {"cluster": 2}, {"cluster": 3}]}'
CLUSTERS = {
    "type": "object",
    "properties": {
        "clusters": {
            "type": "array",
            "items": {"type": "object", "properties": {"cluster": {"type": "integer"}}, "required": ["cluster"]},
        }
    },
    "required": ["clusters"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("schema", [None, CLUSTERS])
@pytest.mark.parametrize(
    "text",
    [
        WHOLE,
        f"\n{WHOLE} ",
        f"```json\n{WHOLE}\n```",
        f"Here you are {{as wished}}:\n```\n{WHOLE}\n```\nDo ask {{}} again.",
        f"<think>{LONGER} or not</think>\n{WHOLE}",
        f"{LONGER} or not</think>{WHOLE}",
        f"Let me see. {LONGER} Too many; so the answer is\n\n{WHOLE}",
        f"{LONGER}\n{WHOLE}\nDone.",
        "\\frac{a}{b} is {3}, so " + WHOLE,
        '{"clusters": [{"cluster": 1,}\n,],}',
    ],
)
def test_the_object_that_stands_last_is_meant(text, schema):
    assert read_json_answer(text, schema) == ({"clusters": [{"cluster": 1}]}, text.strip() == WHOLE)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (f'{LONGER} {WHOLE} {{"confidence": 0.9}}', {"clusters": [{"cluster": 1}]}),
        (f'{{"clusters": [{{"cluster": 2}}, {{"clu... no: {WHOLE}', {"clusters": [{"cluster": 1}]}),
        ('{"clusters": [],\n"note": "two\nlines,}"}', {"clusters": [], "note": "two\nlines,}"}),
        (f'{LONGER} and in short {{"clusters": [{{"cluster": 1}}, {{"cluster"', None),
        ('Sure: {"clusters": [{"cluster": 1}, {"cluster": ', None),
        (f"<think>{LONGER}</think> I cannot say.", None),
        (f"[{WHOLE}", {"clusters": [{"cluster": 1}]}),
    ],
)
def test_with_a_schema_remarks_parts_and_drafts_of_an_answer_are_none(text, value):
    assert read_json_answer(text, CLUSTERS) == (value, False)


@pytest.mark.parametrize("text", ["Sure! {", "[1] 3", "", "[" * 100_000, "{" * 100_000, '{"a":' * 50_000])
@pytest.mark.parametrize("schema", [None, CLUSTERS])
def test_what_holds_no_object_is_no_answer(text, schema):
    assert read_json_answer(text, schema) == (None, False)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"clusters": [{"cluster": 1}]}, True),
        ({"clusters": []}, True),
        ({"clusters": {}}, False),
        ({"clusters": [{"cluster": "1"}]}, False),
        ({"clusters": [{"cluster": True}]}, False),
        ({"clusters": [{}]}, False),
        ({"clusters": [], "more": 1}, False),
        ({}, False),
    ],
)
def test_a_value_fits_a_schema_as_jsonschema_says(value, expected):
    assert jsonschema.Draft202012Validator(CLUSTERS).is_valid(value) is expected
    assert fits(value, CLUSTERS) is expected


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"body": '{"seed": NaN}'}, r"endpoint\.body: is not JSON \(it holds NaN\)"),
        ({"headers": ("no colon",)}, r"endpoint\.headers: item 0 is no header"),
        ({"headers": ("a: b", "c:")}, r"endpoint\.headers: item 1"),
        ({"body": "{"}, r"endpoint\.body: is not JSON"),
        ({"body": "[1]"}, r"endpoint\.body: is no JSON object"),
        ({"body": '{"messages": []}'}, r"endpoint\.body: messages is set by the request itself"),
        ({"body": '{"stream": true, "max_tokens": 5}'}, r"endpoint\.body: max_tokens, stream"),
    ],
)
def test_a_bad_endpoint_names_the_field(fields, says):
    with pytest.raises(InputError, match=says):
        EndpointConfig(**fields)


def test_a_header_whose_variable_is_not_set_is_one_line(monkeypatch):
    monkeypatch.delenv("MY_TEAM", raising=False)
    with pytest.raises(InputError, match="MY_TEAM is not set"):
        EndpointConfig(headers=("X-Team: ${MY_TEAM}",)).header_items()


def test_gemini_without_its_package_says_what_to_install(monkeypatch):
    monkeypatch.setenv("GEMINI_API_KEY", "none")
    monkeypatch.setitem(sys.modules, "google.generativeai", None)

    async def enter():
        async with Engine("gemini:gemini-2.5-flash"):
            pass

    with pytest.raises(InputError, match=r"pip install 'google-generativeai>=0.8.6' .* name the model google-genai:"):
        asyncio.run(enter())


@pytest.mark.parametrize("provider", ["gemini", "google-genai"])
@pytest.mark.parametrize("field", ["query", "key_header"])
def test_what_a_provider_cannot_pass_on_is_refused(provider, field, monkeypatch):
    monkeypatch.setenv("GEMINI_API_KEY", "none")

    async def enter():
        async with Engine(f"{provider}:gemini-2.5-flash", endpoint=EndpointConfig(**{field: "a=b"})):
            pass

    with pytest.raises(InputError, match=f"judge endpoint: {provider}:gemini-2.5-flash takes no {field}"):
        asyncio.run(enter())


def test_fields_of_the_body_make_other_questions():
    request = Request(stage="s", system="", user="", schema=None)
    keys = {
        Engine("openai:gpt-4o", endpoint=EndpointConfig(body=body)).key(request)
        for body in ("", "{}", '{"a": 1}', '{"a":1}', '{"a": 2}')
    }
    assert len(keys) == 3
    assert request.key("openai", "gpt-4o") in keys
