"""Constrained decoding with llguidance: answers that match a JSON schema, a regular expression or a grammar."""

from collections.abc import Callable, Mapping, Sequence
import json
import threading
from typing import Any

import numpy as np

from diversity_jax.core.errors import InputError
from diversity_jax.serving.access import RequestRefused
from diversity_jax.tokenizers.tokenizer import (
    ByteTokenizer,
    HuggingFaceTokenizer,
    ModelTokenizer,
    SentencePieceTokenizer,
)

MAX_GRAMMAR_CHARACTERS = 1 << 16  # about 2,000 properties, which take half a second to compile
# These limit a step of one answer to 0.1 s and a grammar to about 100 MB, a hundred times what usual ones need.
_LIMITS: dict[str, Any] = {
    "initial_lexer_fuel": 500_000,
    "step_lexer_fuel": 50_000,
    "step_max_items": 50_000,
    "max_lexer_states": 20_000,
    "max_grammar_size": 100_000,
    "verbose_errors": False,  # verbose ones quote the parser's state
}
# Allows indented JSON, but no endless white space.
_JSON_OPTIONS = {"whitespace_flexible": True, "whitespace_pattern": r" |\r?\n[ \t]{0,20}", "lenient": False}

# Names of the same constraints in several servers: `response_format` is OpenAI's, `structured_outputs` and `guided_*`
# are vLLM's, `json_schema` and `grammar` llama.cpp's, `regex` and `ebnf` SGLang's.
_KINDS = {
    "guided_json": "json",
    "guided_regex": "regex",
    "guided_choice": "choice",
    "guided_grammar": "grammar",
    "json_schema": "json",
    "regex": "regex",
    "grammar": "grammar",
    "ebnf": "grammar",
}
FIELDS = ("response_format", "structured_outputs", *_KINDS)


def read_grammar(value: Mapping[str, Any]) -> str | None:
    """The grammar of a request in llguidance's format; None where no field asks for one.

    Raises:
      RequestRefused: a constraint is malformed, not supported or too large, or there are several.
    """
    given = [name for name in FIELDS if value.get(name) is not None]
    kinds = [(name, *spec) for name in given if (spec := _read_field(name, value[name])) is not None]
    if not kinds:
        return None
    if len(kinds) > 1:
        names = " and ".join(name for name, _, _ in kinds)
        raise RequestRefused(400, f"{names} each constrain the answer; give one of them", param=kinds[1][0])
    name, kind, content = kinds[0]
    try:
        return _grammar(kind, content)
    except InputError as error:
        raise RequestRefused(400, f"{name}: {error}", param=name) from None


def _read_field(name: str, value: Any) -> tuple[str, Any] | None:
    """Kind and content of one field's constraint; None: no constraint."""
    if name in _KINDS:
        return _KINDS[name], value
    if (name, value) == ("response_format", "text"):
        return None
    if not isinstance(value, Mapping):
        example = ' such as {"type": "json_object"}' if name == "response_format" else ""
        raise RequestRefused(400, f"{name}: expected an object{example}", param=name)
    given = {key: item for key, item in value.items() if item is not None}
    if name == "structured_outputs":
        return _structured_outputs(given)
    kind, rest = given.pop("type", None), given
    if kind == "text" and not rest:
        return None
    if kind == "json_object" and rest.keys() <= {"schema"}:
        return "json", rest.get("schema", {"type": "object"})
    if kind == "json_schema" and rest.keys() <= {"schema"} and rest:
        return "json", rest["schema"]
    inner = rest.get("json_schema")
    if kind == "json_schema" and rest.keys() == {"json_schema"} and isinstance(inner, Mapping):
        if "schema" not in inner:
            raise RequestRefused(400, "response_format.json_schema.schema is missing", param="response_format")
        if not inner.keys() <= {"name", "description", "schema", "strict"}:
            raise RequestRefused(400, "response_format.json_schema: expected name, schema and strict", param=name)
        return "json", inner["schema"]
    message = "response_format: expected type text, json_object, or json_schema with json_schema.schema"
    raise RequestRefused(400, message, param="response_format", code="unsupported_parameter")


def _structured_outputs(given: Mapping[str, Any]) -> tuple[str, Any] | None:
    kinds = {"json": "json", "regex": "regex", "choice": "choice", "grammar": "grammar", "json_object": "json"}
    constraints = {key: item for key, item in given.items() if item is not False}
    if unknown := sorted(constraints.keys() - kinds.keys()):
        message = f"structured_outputs.{unknown[0][:80]} is not supported by this server; leave it out"
        raise RequestRefused(400, message, param="structured_outputs", code="unsupported_parameter")
    if len(constraints) > 1:
        raise RequestRefused(400, f"structured_outputs: give one of {', '.join(kinds)}", param="structured_outputs")
    if not constraints:
        return None
    [(name, content)] = constraints.items()
    return kinds[name], {"type": "object"} if name == "json_object" else content


def _grammar(kind: str, content: Any) -> str:
    import llguidance

    matcher = llguidance.LLMatcher
    if kind == "json":
        text = content if isinstance(content, str) else json.dumps(content)
        _check_length(text)
        try:
            schema = json.loads(text, object_hook=_without_default)
        except (ValueError, RecursionError):
            raise InputError("is no JSON schema; give an object, or its JSON as text") from None
        if not isinstance(schema, dict | bool):
            raise InputError(f"is {type(schema).__name__}; expected a JSON schema, which is an object")
        if schema is False:
            raise InputError("is false, which no value fits")
        text = "{}" if schema is True else json.dumps(schema)
        return _converted(matcher.grammar_from_json_schema, text, overrides=_JSON_OPTIONS)
    if kind == "choice":
        texts = content if isinstance(content, list) else []
        if not texts or not all(isinstance(text, str) and text for text in texts):
            raise InputError("expected a list of texts that are not empty")
        _check_length("".join(texts))
        literals = " | ".join(json.dumps(text, ensure_ascii=False) for text in texts)
        return _converted(matcher.grammar_from_lark, f"start: {literals}")
    if not isinstance(content, str) or not content.strip():
        raise InputError("expected a text that is not empty")
    _check_length(content)
    if kind == "regex":
        return _converted(matcher.grammar_from_regex, content)
    from llguidance.gbnf_to_lark import any_to_lark

    return _converted(lambda text: matcher.grammar_from_lark(any_to_lark(text)), content)


def _without_default(schema: dict[str, Any]) -> dict[str, Any]:
    """A JSON schema without `uniqueItems: false`, which demands nothing and which llguidance does not know."""
    return {name: part for name, part in schema.items() if name != "uniqueItems" or part is not False}


def _check_length(text: str) -> None:
    if len(text) > MAX_GRAMMAR_CHARACTERS:
        raise InputError(f"has {len(text):,} characters; at most {MAX_GRAMMAR_CHARACTERS:,}")


def _converted(convert: Callable[..., str], text: str, **options: Any) -> str:
    try:
        return convert(text, **options)
    except (Exception, RecursionError) as error:  # the converters raise several types
        raise InputError(_line(str(error) or type(error).__name__)) from None


def _line(text: str) -> str:
    """The library's error message in one line."""
    return " ".join(text.partition("<non-verbose/>")[0].split())[:200]


class Constraint:
    """An `evaluation.generation_request.TokenConstraint`: one answer's position in a grammar."""

    def __init__(self, matcher: Any):
        self._matcher = matcher

    @property
    def finished(self) -> bool:
        """Whether only the end can follow."""
        return self._matcher.is_stopped()

    def fill(self, bits_W: np.ndarray) -> None:
        """Sets bit i where id i may follow, and clears the others.

        Raises:
          InputError: the grammar became too complex, or requires text that this tokenizer cannot write.
        """
        self._matcher.unsafe_compute_mask_ptr(bits_W.ctypes.data, bits_W.nbytes)
        self._check()
        if not bits_W.any():
            raise InputError("the grammar allows nothing that this model's tokenizer can write; change it")

    def accept(self, tokens: Sequence[int]) -> int:
        """Advances by the longest allowed prefix of `tokens`; returns its length.

        Raises:
          InputError: the grammar became too complex.
        """
        taken = self._matcher.try_consume_tokens(list(tokens))
        self._check()
        return taken

    def _check(self) -> None:
        if self._matcher.is_error():
            reason = _line(self._matcher.get_error())
            raise InputError(f"the grammar cannot be followed further ({reason}); simplify it")

    def copy(self) -> "Constraint":
        """A constraint of another answer at the same position."""
        return Constraint(self._matcher.deep_copy())


class Grammars:
    """Compiles grammars for one tokenizer, which is loaded at the first use. Safe from any thread."""

    def __init__(self, tokenizer: ModelTokenizer):
        self._model_tokenizer, self._lock = tokenizer, threading.Lock()
        self._tokenizer: Any = None

    def compile(self, grammar: str) -> Constraint:
        """A constraint at the beginning of an answer.

        Raises:
          InputError: the grammar is invalid, not supported, or too complex.
        """
        import llguidance

        limits = llguidance.LLParserLimits(**_LIMITS)
        matcher = llguidance.LLMatcher(self._library_tokenizer(), grammar, log_level=0, limits=limits)
        constraint = Constraint(matcher)
        if matcher.is_error():
            raise InputError(_line(matcher.get_error()))
        constraint.fill(np.zeros(-(-self._model_tokenizer.vocabulary.size // 32), np.uint32))
        return constraint

    def token_bytes(self, token: int) -> bytes | None:
        """The bytes that an id adds to a text; None for special ids, and for tokenizers that cannot be read."""
        try:
            tokenizer = self._library_tokenizer()
        except InputError:
            return None
        return None if tokenizer.is_special_token(token) else tokenizer.decode_bytes([token])

    def _library_tokenizer(self) -> Any:
        with self._lock:
            self._tokenizer = self._tokenizer or _library_tokenizer(self._model_tokenizer)
            return self._tokenizer


class _VocabularyBytes:
    """A vocabulary in the interface of `llguidance.TokenizerWrapper`: the bytes of each id."""

    def __init__(self, vocabulary: ByteTokenizer | SentencePieceTokenizer):
        token_bytes = vocabulary.token_bytes()
        self.eos_token_id, self.bos_token_id = vocabulary.end_of_text_id, None
        self.special_token_ids = [i for i, text in enumerate(token_bytes) if text is None]
        self.tokens = [f"<special_{i}>".encode() if text is None else text for i, text in enumerate(token_bytes)]
        self._ids = {text: i for i, text in enumerate(token_bytes) if text}
        self._longest = max(map(len, self._ids))

    def __call__(self, text: str) -> list[int]:
        """Ids of exactly this text by longest match; SentencePiece itself would add a space before it."""
        data, ids, start = text.encode(), [], 0
        while start < len(data):
            ends = range(min(start + self._longest, len(data)), start, -1)
            end = next((end for end in ends if data[start:end] in self._ids), None)
            if end is None:
                break  # the library continues by bytes, and refuses what cannot be written
            ids.append(self._ids[data[start:end]])
            start = end
        return ids


def _library_tokenizer(tokenizer: ModelTokenizer) -> Any:
    import llguidance

    vocabulary = tokenizer.vocabulary
    ends = sorted(i for i in tokenizer.stop_ids if i < vocabulary.size)
    try:
        if isinstance(vocabulary, HuggingFaceTokenizer):
            return llguidance.LLTokenizer(vocabulary.to_json(), n_vocab=vocabulary.size, eos_token=ends)
        assert isinstance(vocabulary, ByteTokenizer | SentencePieceTokenizer)
        return llguidance.LLTokenizer(llguidance.TokenizerWrapper(_VocabularyBytes(vocabulary)), eos_token=ends)
    except ValueError as error:
        raise InputError(f"this model's tokenizer cannot be constrained ({_line(str(error))})") from None
