"""JSON schema in Gemini's dialect."""

import pytest

from diversity_jax.core.errors import InputError
from diversity_jax.llm.providers.google_genai import gemini_schema
from tests.llm_answers import json_schema


def test_what_gemini_knows_is_kept_and_the_rest_left_away():
    schema = {
        "$schema": "x",
        "title": "clusters",
        "type": "object",
        "additionalProperties": False,
        "required": ["clusters"],
        "properties": {
            "clusters": {
                "type": "array",
                "minItems": 1,
                "items": {
                    "type": "object",
                    "properties": {
                        "cluster": {"type": "integer", "minimum": 1, "description": "from 1"},
                        "valid": {"type": "integer", "enum": [0, 1]},
                        "kind": {"type": "string", "enum": ["a", "b"]},
                        "fixed": {"const": "c", "type": "string"},
                        "maybe": {"type": ["string", "null"]},
                        "other": {"anyOf": [{"type": "number"}, {"type": "null"}]},
                    },
                },
            }
        },
    }
    cluster = {
        "cluster": {"type": "INTEGER", "description": "from 1"},
        "valid": {"type": "INTEGER"},
        "kind": {"type": "STRING", "enum": ["a", "b"], "format": "enum"},
        "fixed": {"type": "STRING", "enum": ["c"], "format": "enum"},
        "maybe": {"type": "STRING", "nullable": True},
        "other": {"type": "NUMBER", "nullable": True},
    }
    assert gemini_schema(schema) == {
        "type": "OBJECT",
        "required": ["clusters"],
        "properties": {
            "clusters": {"type": "ARRAY", "minItems": 1, "items": {"type": "OBJECT", "properties": cluster}}
        },
    }


def test_references_are_written_out():
    schema = {
        "type": "object",
        "properties": {"a": {"$ref": "#/$defs/pair"}, "b": {"$ref": "#/$defs/pair"}},
        "$defs": {"pair": {"type": "array", "items": {"$ref": "#/$defs/word"}}, "word": {"type": "string"}},
    }
    pair = {"type": "ARRAY", "items": {"type": "STRING"}}
    assert gemini_schema(schema)["properties"] == {"a": pair, "b": pair}


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#/$defs/a", "$defs": {"a": {"type": "array", "items": {"$ref": "#/$defs/a"}}}},
        {"$ref": "#/$defs/missing"},
        {"anyOf": [{"type": "string"}, {"type": "integer"}]},
        {"type": ["string", "integer"]},
    ],
)
def test_what_gemini_cannot_express_is_refused(schema):
    with pytest.raises(InputError, match=r"Request\.schema"):
        gemini_schema(schema)


def test_both_sdks_carry_it_to_the_server():
    """See test_llm_engine for the calls; here the server's reading of both forms is the schema again."""
    schema = {"type": "object", "properties": {"a": {"type": "array", "items": {"type": "string"}}}, "required": ["a"]}
    assert json_schema(gemini_schema(schema)) == schema
