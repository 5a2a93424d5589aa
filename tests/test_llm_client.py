"""What passes between those who ask and the engine."""

import subprocess
import sys

import pytest

from diversity_jax.core.errors import InputError
from diversity_jax.core.files import content_hash
from diversity_jax.llm import CallFailed, EngineConfig, Request


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
    ],
)
def test_a_bad_setting_names_field_and_value(field, value):
    with pytest.raises(InputError, match=rf"engine\.{field}: .*{value}"):
        EngineConfig(**{field: value})


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
