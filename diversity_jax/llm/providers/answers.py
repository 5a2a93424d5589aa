"""Reads models' answers from responses in OpenAI's and Gemini's formats, and JSON from answers.

Servers differ in how they write texts, reasons for stopping and token counts. All forms are accepted, since an answer
has been paid for.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
import json
import re
from typing import Any, NamedTuple

# Servers' words for why a model stopped, in lower case. An answer with another word counts as complete; where it was
# cut it is not valid JSON, which is noticed later.
_CUT = re.compile("length|max.?tokens|max_output_tokens|token_limit|incomplete")
_REFUSED = re.compile(
    "content.?filter|safety|refus|recitation|prohibited|blocklist|spii|guardrail|sensitive|moderation|language"
)
_INTERRUPTED = re.compile(
    "error|abort|cancel|malformed|unexpected_tool|too_many_tool|insufficient_system|unavailable|timeout|overloaded|^other$"
)
_SHOWN_CHARACTERS = 80
_MOST = 1e12  # tokens or dollars; a larger count is an error of the server
# Parts of a content that are none of the answer's text.
_NO_TEXT = ("thinking", "redacted_thinking", "reasoning", "refusal", "reference", "tool_use", "tool_call", "image_url")


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Tokens as a server counted them; None where it reported no number.

    Attributes:
      prompt, completion: tokens; the completion includes reasoning.
      cached: prompt tokens from the server's cache.
      dollars: what the server says it bills, or 0.
    """

    prompt: int | None = None
    completion: int | None = None
    cached: int = 0
    dollars: float = 0.0


@dataclass(frozen=True, kw_only=True)
class ModelAnswer:
    """An answer as the server sent it.

    Attributes:
      text: the answer, without thoughts.
      thoughts: text of thoughts beside it, where the server sends them.
      ending: `complete`, `cut`, `refused`, `interrupted`, `none` (no answer at all) or `blocked` (the prompt was).
      word: the server's word for why it ended.
      served_by: the model and its version as the server names them.
    """

    text: str
    thoughts: str = ""
    ending: str
    word: str = ""
    usage: Usage = Usage()
    served_by: str = ""


def read_chat(value: Any) -> ModelAnswer:
    """Reads a chat completion in OpenAI's format; ValueError where it is none."""
    body = as_mapping(value)
    if "choices" not in body:
        raise ValueError("no choices")
    choices = body["choices"]
    usage, served_by = _chat_usage(as_mapping(body.get("usage"))), _served_by(body, "model", "system_fingerprint")
    if not isinstance(choices, list) or not choices:
        ending = "none" if isinstance(choices, list) else "interrupted"
        return ModelAnswer(text="", ending=ending, word="no choices", usage=usage, served_by=served_by)
    choice = as_mapping(choices[0])
    message = as_mapping(choice.get("message"))
    text = _text(message.get("content", choice.get("text")))
    thoughts = _text(message.get("reasoning_content") or message.get("reasoning"))
    word = _word(choice.get("finish_reason"))
    ending = _ending(word)
    if error := choice.get("error"):  # OpenRouter's report that the model behind it failed
        ending, word = "interrupted", _word(as_mapping(error).get("message") or error)[:_SHOWN_CHARACTERS]
    if message.get("refusal") and ending != "cut":
        ending, word = "refused", "refusal"
    return ModelAnswer(text=text, thoughts=thoughts, ending=ending, word=word, usage=usage, served_by=served_by)


def read_gemini(value: Any) -> ModelAnswer:
    """Reads a response of Gemini's `generateContent`; ValueError where it is none."""
    body = as_mapping(value)
    if not {"candidates", "promptFeedback", "usageMetadata"} & set(body):
        raise ValueError("no candidates")
    usage, served_by = _gemini_usage(as_mapping(body.get("usageMetadata"))), _served_by(body, "modelVersion")
    candidates = body.get("candidates")
    blocked = as_mapping(body.get("promptFeedback")).get("blockReason")
    if not isinstance(candidates, list) or not candidates:
        ending = "blocked" if blocked else "none"
        return ModelAnswer(text="", ending=ending, word=_word(blocked), usage=usage, served_by=served_by)
    candidate = as_mapping(candidates[0])
    parts = as_mapping(candidate.get("content")).get("parts")
    parts = [as_mapping(part) for part in parts] if isinstance(parts, list) else []
    text = "".join(_text(part.get("text")) for part in parts if not part.get("thought"))
    thoughts = "".join(_text(part.get("text")) for part in parts if part.get("thought"))
    word = _word(candidate.get("finishReason"))
    ending = _ending(word)
    return ModelAnswer(text=text, thoughts=thoughts, ending=ending, word=word, usage=usage, served_by=served_by)


def as_mapping(value: Any) -> Mapping[str, Any]:
    """A JSON object as it is; an empty one for any other value."""
    return value if isinstance(value, Mapping) else {}


def _text(content: Any) -> str:
    """Text of a content: a string, a list of parts (without those that are thoughts), or a JSON value as it is."""
    if content is None or isinstance(content, str):
        return content or ""
    if isinstance(content, list):
        return "".join(_text(part) for part in content)
    if isinstance(content, Mapping) and isinstance(content.get("type"), str | None) and "text" in content:
        return "" if _word(content.get("type")) in _NO_TEXT else _text(content["text"])
    if isinstance(content, Mapping) and content.get("type") in _NO_TEXT:
        return ""
    return json.dumps(content)


def _word(reason: Any) -> str:
    return "" if reason is None else str(reason).strip().lower()


def _ending(word: str) -> str:
    for ending, words in (("cut", _CUT), ("refused", _REFUSED), ("interrupted", _INTERRUPTED)):
        if words.search(word):
            return ending
    return "complete"


def _served_by(body: Mapping[str, Any], *names: str) -> str:
    return " ".join(body[name] for name in names if isinstance(body.get(name), str) and body[name])


def _chat_usage(usage: Mapping[str, Any]) -> Usage:
    details = as_mapping(usage.get("completion_tokens_details") or usage.get("output_tokens_details"))
    prompt_details = as_mapping(usage.get("prompt_tokens_details") or usage.get("input_tokens_details"))
    cached = (prompt_details.get("cached_tokens"), usage.get("prompt_cache_hit_tokens"), usage.get("cached_tokens"))
    return _usage(
        _first(usage, "prompt_tokens", "input_tokens"),
        _first(usage, "completion_tokens", "output_tokens"),
        _count(usage.get("total_tokens")),
        _count(details.get("reasoning_tokens")) or _count(usage.get("reasoning_tokens")),
        max(_count(number) or 0 for number in cached),
        _billed_dollars(usage),
        reasoning_is_separate=False,
    )


def _billed_dollars(usage: Mapping[str, Any]) -> float:
    """What a server says that it bills, or 0: a number, Perplexity's parts with their total, or OpenRouter's fee beside
    what the owner of the key pays to the provider.
    """
    cost = usage.get("cost")
    total = _number(as_mapping(cost).get("total_cost") if isinstance(cost, Mapping) else cost) or 0.0
    upstream = as_mapping(usage.get("cost_details")).get("upstream_inference_cost") if usage.get("is_byok") else None
    return total + (_number(upstream) or 0.0)


def _gemini_usage(usage: Mapping[str, Any]) -> Usage:
    return _usage(
        _count(usage.get("promptTokenCount")),
        _count(usage.get("candidatesTokenCount")),
        _count(usage.get("totalTokenCount")),
        _count(usage.get("thoughtsTokenCount")),
        _count(usage.get("cachedContentTokenCount")) or 0,
        0.0,
        reasoning_is_separate=True,
    )


def _usage(
    prompt: int | None,
    completion: int | None,
    total: int | None,
    reasoning: int | None,
    cached: int,
    dollars: float,
    *,
    reasoning_is_separate: bool,
) -> Usage:
    """Usage with the larger of contradicting counts: servers count reasoning tokens in the completion, beside it, or
    only in the total.
    """
    if reasoning and (reasoning_is_separate or reasoning > (completion or 0)):
        completion = (completion or 0) + reasoning
    if prompt is None and None not in (total, completion):
        prompt = max((total or 0) - (completion or 0), 0)
    if prompt is not None and total is not None:
        completion = max(completion or 0, total - prompt)
    return Usage(prompt=prompt, completion=completion, cached=min(cached, prompt or 0), dollars=dollars)


def _first(usage: Mapping[str, Any], *names: str) -> int | None:
    return next((count for name in names if (count := _count(usage.get(name))) is not None), None)


def _count(value: Any) -> int | None:
    number = _number(value)
    return None if number is None else int(number)


def _number(value: Any) -> float | None:
    """A number from 0 to `_MOST`, also one written as text; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if 0 <= number <= _MOST else None


_decoder = json.JSONDecoder(strict=False)  # line breaks inside strings are common, and do not make them ambiguous
_THOUGHTS_BEGIN, _THOUGHTS_END = "<think>", "</think>"
# Limits of the search for objects: braces tried, and text parsed without success, in lengths of the answer. Formulas
# and code in thoughts are full of braces.
_OBJECTS_TRIED, _LENGTHS_READ = 10_000, 20
# A comma before a closing bracket, which models without enforced schemas write; a string is matched whole and kept.
_TRAILING_COMMA = re.compile(r'("(?:[^"\\]|\\.)*")|,(?=\s*[}\]])', re.DOTALL)
_MOST_RANK = 3
_FIRST_NAME = re.compile(r'\{\s*"([^"\\]*)"\s*:')
_KINDS: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}


class JsonAnswer(NamedTuple):
    """An answer as JSON.

    Attributes:
      value: the object chosen by `read_json_answer`, or the text's JSON value of another type; None where there is
        none, or where it is cut off.
      fits_schema: whether the text is JSON alone and fits the schema, as every answer of a server that enforces
        schemas.
    """

    value: Any
    fits_schema: bool


def without_thoughts(text: str) -> str:
    """An answer without the thoughts that a reasoning model has written into it; empty where they do not end."""
    answer = text.rpartition(_THOUGHTS_END)[2]
    return "" if answer.lstrip().startswith(_THOUGHTS_BEGIN) else answer


def read_json_answer(text: str, schema: Mapping[str, Any] | None = None) -> JsonAnswer:
    """Reads the JSON of an answer, which may stand among other text.

    The value need not fit the schema: it is the last object that has all required properties, else the last that has
    one of the properties, else the last one.
    """
    schema = schema or {}
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return JsonAnswer(_last_object(_TRAILING_COMMA.sub(r"\1", text), schema), False)
    return JsonAnswer(value, fits(value, schema))


def fits(value: Any, schema: Mapping[str, Any]) -> bool:
    """Whether a value has the types, properties and enumerated values of a JSON schema; limits are not checked."""
    kinds = schema.get("type", ())
    if isinstance(kinds, str):
        if not _is_kind(value, kinds):
            return False
    elif kinds and not any(_is_kind(value, kind) for kind in kinds):
        return False
    if "enum" in schema and value not in schema["enum"]:
        return False
    if isinstance(value, dict):
        properties = schema.get("properties", {})
        if not all(name in value for name in schema.get("required", ())):
            return False
        if schema.get("additionalProperties", True) is False and not all(name in properties for name in value):
            return False
        return all(fits(item, properties[name]) for name, item in value.items() if name in properties)
    return not isinstance(value, list) or all(fits(item, schema.get("items", {})) for item in value)


def _is_kind(value: Any, kind: str) -> bool:
    return isinstance(value, _KINDS.get(kind, (object,))) and (kind == "boolean" or not isinstance(value, bool))


def _last_object(text: str, schema: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The answer's object in a text that is not JSON alone; see `read_json_answer`."""
    answer_begins = text.rfind(_THOUGHTS_END)  # objects that end before are thoughts
    best, best_rank = None, 1
    names = schema.get("properties", {})
    for start, end, value in _objects(text):
        if end <= answer_begins:
            continue
        if value is None:
            # An answer that is cut off: drafts before it do not count, nor do its parts; a complete one after it does.
            first = _FIRST_NAME.match(text, start)
            if first and (not names or first.group(1) in names):
                best, best_rank = None, _MOST_RANK
            continue
        rank = 1 + any(name in value for name in names)
        rank += rank == 2 and all(name in value for name in schema.get("required", ()))
        if value and rank >= best_rank:
            best, best_rank = value, rank
    return best


def _objects(text: str) -> Iterator[tuple[int, int, Mapping[str, Any] | None]]:
    """Start, end and value of the outermost objects in a text; the value of one that is cut off is None."""
    start, left = text.find("{"), _LENGTHS_READ * len(text)
    for _ in range(_OBJECTS_TRIED):
        if start < 0 or left < 0:
            return
        try:
            value, end = _decoder.raw_decode(text, start)
            yield start, end, value
        except (ValueError, RecursionError) as error:
            read = error.pos - start if isinstance(error, json.JSONDecodeError) else len(text) - start
            left -= read
            yield start, start + max(read, 1), None
            end = start + 1
        start = text.find("{", end)
