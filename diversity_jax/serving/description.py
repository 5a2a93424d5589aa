"""The server's OpenAPI 3.1 document, from the models that read requests, and its answers in OpenAI's format."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict
from pydantic.json_schema import models_json_schema

import diversity_jax
from diversity_jax.core.json_text import ROLES
from diversity_jax.evaluation.generation_request import GeneratedText, TokenLogprob
from diversity_jax.evaluation.load_model import LanguageModel
from diversity_jax.serving import constraints
from diversity_jax.serving.requests import ApiRequest, ChatBody, CompletionBody, TokenIds
from diversity_jax.tokenizers.tokenizer import ModelTokenizer

_SCHEMA = {"type": ["object", "boolean", "string"], "description": "a JSON schema, or its JSON as text"}
_TEXT = {"type": "string", "minLength": 1, "maxLength": constraints.MAX_GRAMMAR_CHARACTERS}
_CHOICE = {"type": "array", "minItems": 1, "items": {"type": "string", "minLength": 1}}
_FORMATS = [
    {"properties": {"type": {"const": "text"}}, "required": ["type"], "additionalProperties": False},
    {
        "properties": {"type": {"const": "json_object"}, "schema": _SCHEMA},
        "required": ["type"],
        "additionalProperties": False,
    },
    {
        "properties": {
            "type": {"const": "json_schema"},
            "json_schema": {
                "type": "object",
                "properties": {
                    "name": {"type": "string"},
                    "description": {"type": "string"},
                    "schema": _SCHEMA,
                    "strict": {"type": ["boolean", "null"]},
                },
                "required": ["schema"],
                "additionalProperties": False,
            },
        },
        "required": ["type", "json_schema"],
        "additionalProperties": False,
    },
]
_STRUCTURED = {"json": _SCHEMA, "regex": _TEXT, "choice": _CHOICE, "grammar": _TEXT, "json_object": {"type": "boolean"}}
_CONSTRAINTS = {
    "response_format": {"type": "object", "oneOf": _FORMATS},
    "structured_outputs": {"type": "object", "properties": _STRUCTURED, "additionalProperties": False},
    **dict.fromkeys(("guided_json", "json_schema"), _SCHEMA),
    **dict.fromkeys(("guided_regex", "regex", "guided_grammar", "grammar", "ebnf"), _TEXT),
    "guided_choice": _CHOICE,
}
_MESSAGE = {
    "type": "object",
    "properties": {
        "role": {"enum": list(ROLES)},
        "content": {
            "oneOf": [
                {"type": ["string", "null"]},
                {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
                        "required": ["type", "text"],
                    },
                },
            ]
        },
        "tool_calls": {"type": "array", "items": {"type": "object"}},
    },
    "required": ["role"],
}
_REFUSALS = {
    "400": "malformed, or not supported; the message says what",
    "401": "no key, or not this server's",
    "403": "Host or Origin is not this server's",
    "404": "no such path or model",
    "405": "not with this method",
    "408": "the body did not arrive in time",
    "413": "the body is too large",
    "415": "not application/json",
    "429": "too many requests; try again",
    "500": "the server failed",
    "503": "nothing can be generated at present",
}


class TokenizeBody(BaseModel):
    """`/tokenize`, compatible with vLLM."""

    model_config = ConfigDict(strict=True, extra="forbid")

    model: str | None = None
    prompt: str | None = None
    messages: list[Any] | None = None
    add_special_tokens: bool = True


class DetokenizeBody(BaseModel):
    """`/detokenize`."""

    model_config = ConfigDict(strict=True, extra="forbid")

    model: str | None = None
    tokens: TokenIds


def describe(model: LanguageModel, *, needs_key: bool) -> dict[str, Any]:
    """The OpenAPI document of a server of this model."""
    bodies = (CompletionBody, ChatBody, TokenizeBody, DetokenizeBody)
    _, schemas = models_json_schema(
        [(body, "validation") for body in bodies], ref_template="#/components/schemas/{model}"
    )
    components: dict[str, Any] = schemas["$defs"]
    for name in ("CompletionBody", "ChatBody"):
        components[name]["properties"] |= {"model": {"const": model.name}, **_CONSTRAINTS}
    for name in ("ChatBody", "TokenizeBody"):
        components[name]["properties"]["messages"] = {"type": "array", "minItems": 1, "items": _MESSAGE}
    fields = {name: {"type": ["string", "null"]} for name in ("message", "type", "param", "code")}
    error = {"type": "object", "properties": fields, "required": list(fields)}
    components["Error"] = {"type": "object", "properties": {"error": error}, "required": ["error"]}
    paths = {
        "/v1/completions": {"post": _operation("Continues texts", "CompletionBody", ["id", "choices"])},
        "/v1/chat/completions": {"post": _operation("Continues a conversation", "ChatBody", ["id", "choices"])},
        "/v1/models": {"get": _operation("The model", None, ["data"])},
        "/v1/models/{name}": {"get": _operation("The model, if that is its name", None, ["id"])},
        "/tokenize": {"post": _operation("Ids of a text", "TokenizeBody", ["tokens", "count"])},
        "/detokenize": {"post": _operation("Text of ids", "DetokenizeBody", ["prompt"])},
        "/tokenizer_info": {"get": _operation("Special tokens and the chat template", None, ["chat_template"])},
        "/openapi.json": {"get": _operation("This document", None, ["openapi"])},
        "/health": {"get": _operation("Whether answers can be expected", None, ["status", "load"], health=True)},
    }
    parameter = {"name": "name", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
    paths["/v1/models/{name}"]["get"]["parameters"] = [parameter]
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": f"diversity_jax: {model.name}", "version": diversity_jax.__version__},
        "paths": paths,
        "components": {"schemas": components},
    }
    if needs_key:
        components = document["components"] | {"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}}
        document |= {"components": components, "security": [{"key": []}]}
    return document


def _operation(summary: str, body: str | None, required: list[str], *, health: bool = False) -> dict[str, Any]:
    def content(schema: Mapping[str, Any]) -> dict[str, Any]:
        return {"application/json": {"schema": schema}}

    answer = {"type": "object", "required": required}
    answers: dict[str, Any] = content(answer)
    if body in ("CompletionBody", "ChatBody"):
        answers["text/event-stream"] = {}
    error = content({"$ref": "#/components/schemas/Error"})
    responses = {"200": {"description": summary, "content": answers}}
    responses |= {status: {"description": reason, "content": error} for status, reason in _REFUSALS.items()}
    if health:
        responses["503"] = {"description": _REFUSALS["503"], "content": answers}
    operation: dict[str, Any] = {"summary": summary, "responses": responses}
    if body:
        operation["requestBody"] = {"required": True, "content": content({"$ref": f"#/components/schemas/{body}"})}
    return operation


def envelope(request: ApiRequest, choices: Sequence[Mapping[str, Any]], *, chunk: bool = False) -> dict[str, Any]:
    """The JSON object of a complete answer, or of one chunk of a stream."""
    kind = ("chat.completion.chunk" if chunk else "chat.completion") if request.chat else "text_completion"
    return {**request.head, "object": kind, "choices": list(choices)}


def usage(request: ApiRequest, answers: Sequence[GeneratedText | None]) -> dict[str, int]:
    """Number of prompt and answer tokens; a prompt counts once for all its choices."""
    prompt = sum(len(prompt.ids) for prompt in request.prompts)
    completion = sum(len(answer.tokens) for answer in answers if answer)
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


class ChoiceWriter:
    """Formats one choice, complete or in chunks of a stream.

    Args:
      token_bytes: the bytes of an id, for tokens that are a part of a character; None for special ids.
    """

    def __init__(
        self,
        tokenizer: ModelTokenizer,
        request: ApiRequest,
        index: int,
        token_bytes: Callable[[int], bytes | None] = lambda token: None,
    ):
        self._tokenizer, self._request, self._index = tokenizer, request, index
        self._token_bytes = token_bytes
        self.begun = False
        self._offset = 0  # characters of the tokens whose log-probabilities were written

    def write(
        self, text: str, logprobs: Sequence[TokenLogprob], finished: GeneratedText | None, *, chunk: bool = False
    ) -> dict[str, Any]:
        """The choice with new text and log-probabilities, and the finished answer or None."""
        first, self.begun = not self.begun, True
        body: dict[str, Any]
        if self._request.chat and chunk:
            body = {"delta": ({"role": "assistant"} if first else {}) | ({"content": text} if text or first else {})}
        elif self._request.chat:
            body = {"message": {"role": "assistant", "content": text, "refusal": None}}
        else:
            body = {"text": (self._request.prompt_of(self._index).text if self._request.echo and first else "") + text}
        with_logprobs = self._request.sampling[0].top_logprobs is not None
        listed = self._logprobs(logprobs, first) if with_logprobs and (logprobs or first) else None
        reason = finished.finish_reason if finished else None
        return {"index": self._index, **body, "finish_reason": reason, "logprobs": listed}

    def _logprobs(self, logprobs: Sequence[TokenLogprob], first: bool) -> dict[str, Any]:
        tokenizer, sampling = self._tokenizer, self._request.sampling[0]
        if self._request.chat:
            content = [
                self._chat_logprob(chosen.before, chosen.token, chosen.logprob)
                | {"top_logprobs": [self._chat_logprob(chosen.before, *pair) for pair in chosen.top]}
                for chosen in logprobs
            ]
            return {"content": content, "refusal": None}
        texts = [token_text(tokenizer, chosen.before, chosen.token) for chosen in logprobs]
        tops = [
            [(token_text(tokenizer, chosen.before, token), nats) for token, nats in chosen.top] for chosen in logprobs
        ]
        # Of tokens with equal text the likeliest counts. The chosen token is always included.
        likeliest: list[dict[str, float] | None] = [
            {text: chosen.logprob, **dict(reversed(top))}
            for text, chosen, top in zip(texts, logprobs, tops, strict=True)
        ]
        values: list[float | None] = [chosen.logprob for chosen in logprobs]
        if first and sampling.prompt_logprobs:  # a prompt's first token has no log-probability
            texts.insert(0, tokenizer.decode(self._request.prompt_of(self._index).ids[:1]))
            values.insert(0, None)
            likeliest.insert(0, None)
        offsets = []
        for text in texts:
            offsets.append(self._offset)
            self._offset += len(text)
        top = likeliest if sampling.top_logprobs else None
        return {"tokens": texts, "token_logprobs": values, "top_logprobs": top, "text_offset": offsets}

    def _chat_logprob(self, before: int, token: int, logprob: float) -> dict[str, Any]:
        text = token_text(self._tokenizer, before, token)
        # Of a part of a character the text is empty or a replacement character; clients join the bytes.
        part = self._token_bytes(token) if not text or "\ufffd" in text else None
        return {
            "token": text,
            "logprob": logprob,
            "bytes": list(text.encode(errors="replace") if part is None else part),
        }


def token_text(tokenizer: ModelTokenizer, before: int, token: int) -> str:
    """The text that a token adds after `before`; decoded alone, some tokenizers drop its leading space."""
    text_before, both = tokenizer.decode([before]), tokenizer.decode([before, token])
    return both[len(text_before) :] if both.startswith(text_before) else tokenizer.decode([token])
