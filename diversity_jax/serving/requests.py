"""Reads and checks OpenAI-compatible requests; unsupported fields that would change the answer are refused by name."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
import secrets
import time
from typing import Annotated, Any, ClassVar, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import from_json

from diversity_jax.core.errors import InputError
from diversity_jax.core.json_text import read_tool_call
from diversity_jax.evaluation.load_model import LanguageModel
from diversity_jax.evaluation.sampling import INT32_MAX, MAX_TOP_LOGPROBS, Sampling
from diversity_jax.serving import constraints
from diversity_jax.serving.access import RequestRefused, shown
from diversity_jax.serving.constraints import Constraint, Grammars

MAX_CHOICES = 128
MAX_STOPS = 16
_DEFAULT_COMPLETION_TOKENS = 16  # OpenAI's default for completions; a chat may fill the context
# Accepted fields that have no effect here: bookkeeping, caching, scheduling.
NO_EFFECT = {
    *("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"),
    *("prediction", "priority", "parallel_tool_calls", "request_id", "cache_salt", "guided_decoding_backend"),
    "spaces_between_special_tokens",
}
# Unsupported fields that would change the answer -> the values that are accepted, since they have no effect.
REFUSED: dict[str, tuple[Any, ...]] = {
    "suffix": ("",),
    "best_of": (1,),
    "logit_bias": ({},),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "repetition_penalty": (1,),
    "length_penalty": (1,),
    "min_p": (0,),
    "typical_p": (1,),
    "use_beam_search": (False,),
    "prompt_logprobs": (),
    "stop_token_ids": ([],),
    "allowed_token_ids": ([],),
    "bad_words": ([],),
    "logits_processors": ([],),
    "include_stop_str_in_output": (False,),
    "skip_special_tokens": (False,),
    "add_special_tokens": (True,),
    "truncate_prompt_tokens": (),
    "return_token_ids": (False,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "audio": (),
    "modalities": (["text"],),
    "reasoning_effort": ("none",),
    "verbosity": (),
    "web_search_options": (),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "documents": ([],),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
    "mm_processor_kwargs": ({},),
    "guided_whitespace_pattern": (),
    "structural_tag": (),
}
_EXPECTED = {f"{name}_type": name for name in ("int", "float", "bool", "list", "dict")} | {"string_type": "str"}
_STOP_CHARACTERS = 256  # each new token is compared with every prefix of every stop text

B = TypeVar("B", bound=BaseModel)
Count = Annotated[int, Field(ge=0, le=INT32_MAX)]
TokenIds = Annotated[list[Count], Field(fail_fast=True)]  # one error, not one for each item


class StreamOptions(BaseModel):
    """Additional content of a stream."""

    model_config = ConfigDict(strict=True, extra="forbid")

    include_usage: bool = False
    include_obfuscation: bool = False


class RequestBody(BaseModel):
    """Fields of completion and chat requests."""

    model_config = ConfigDict(strict=True, extra="forbid")
    refused: ClassVar[Mapping[str, tuple[Any, ...]]] = REFUSED

    model: str
    n: int = Field(default=1, ge=1, le=MAX_CHOICES)
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    max_tokens: Count | None = None
    min_tokens: Count = 0
    temperature: float = Field(default=1.0, ge=0, le=100, allow_inf_nan=False)
    top_p: float = Field(default=1.0, gt=0, le=1, allow_inf_nan=False)
    top_k: int = Field(default=0, ge=-1, le=INT32_MAX, description="-1 or 0: all tokens")
    seed: int | None = Field(default=None, ge=-(2**63), le=2**63 - 1)
    stop: str | Annotated[list[str], Field(max_length=MAX_STOPS, fail_fast=True)] = Field(
        default=[], description=f"a text or up to {MAX_STOPS} of them, each of at most {_STOP_CHARACTERS} characters"
    )
    ignore_eos: bool = False


class CompletionBody(RequestBody):
    """`/v1/completions`."""

    prompt: (
        str
        | TokenIds
        | Annotated[list[str | Annotated[TokenIds, Field(min_length=1)]], Field(max_length=MAX_CHOICES, fail_fast=True)]
    ) = Field(description=f"a text, a list of ids, or a list of up to {MAX_CHOICES} texts or lists of ids")
    echo: bool = False
    logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP_LOGPROBS)

    def token_limit(self, available: int) -> int:
        """Most tokens of an answer, of the `available` ones in the context."""
        if self.max_tokens == 0 and not self.echo:
            raise RequestRefused(400, "max_tokens=0 needs echo to be true", param="max_tokens")
        limit = min(_DEFAULT_COMPLETION_TOKENS, max(available, 1))
        return limit if self.max_tokens is None else self.max_tokens

    def logprobs_per_token(self) -> int | None:
        """`Sampling.top_logprobs`."""
        return self.logprobs


class ChatBody(RequestBody):
    """`/v1/chat/completions`."""

    refused: ClassVar[Mapping[str, tuple[Any, ...]]] = REFUSED | {"echo": (False,)}

    messages: list[Any]
    max_completion_tokens: Count | None = None
    logprobs: bool = False
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP_LOGPROBS)

    def token_limit(self, available: int) -> int:
        """Most tokens of an answer, of the `available` ones in the context."""
        name = "max_tokens" if self.max_completion_tokens is None else "max_completion_tokens"
        limit = getattr(self, name)
        if limit == 0:
            raise RequestRefused(400, f"{name}=0: a chat needs at least 1", param=name)
        return max(available, 1) if limit is None else limit

    def logprobs_per_token(self) -> int | None:
        """`Sampling.top_logprobs`."""
        if self.top_logprobs is not None and not self.logprobs:
            raise RequestRefused(400, "top_logprobs needs logprobs to be true", param="top_logprobs")
        return self.top_logprobs or 0 if self.logprobs else None


class Prompt(NamedTuple):
    """A prompt's token ids and its text."""

    ids: tuple[int, ...]
    text: str


@dataclass(frozen=True, kw_only=True)
class ApiRequest:
    """A request, ready for the generator.

    Attributes:
      prompts: exactly one for a chat.
      sampling: settings of each choice of one prompt, with consecutive seeds.
      constraint: of each answer, at its beginning; to be copied.
      head: fields of the complete answer and of every chunk.
    """

    body: CompletionBody | ChatBody
    prompts: tuple[Prompt, ...]
    sampling: tuple[Sampling, ...]
    constraint: Constraint | None
    head: Mapping[str, Any]

    @property
    def chat(self) -> bool:
        """Whether this is a chat request."""
        return isinstance(self.body, ChatBody)

    @property
    def echo(self) -> bool:
        """Whether each choice begins with its prompt."""
        return isinstance(self.body, CompletionBody) and self.body.echo

    def prompt_of(self, choice: int) -> Prompt:
        return self.prompts[choice // len(self.sampling)]


def parse_json(data: bytes) -> Any:
    """The value of a request's body.

    Raises:
      RequestRefused: the body is not JSON, or holds NaN, a lone surrogate or more than 200 levels.
    """
    try:
        return from_json(data, allow_inf_nan=False)
    except ValueError as error:
        raise RequestRefused(400, f"the body is not JSON ({error})") from None


def read_request(value: Any, model: LanguageModel, grammars: Grammars, *, chat: bool) -> ApiRequest:
    """Reads the JSON of a request; a field that is null has its default.

    Raises:
      RequestRefused: the request is malformed (400), longer than the context (400), or for another model (404).
    """
    body_type: type[ChatBody | CompletionBody] = ChatBody if chat else CompletionBody
    body = read_body(value, body_type)
    if body.model != model.name:
        message = f"the model {shown(body.model)} does not exist; this server has {model.name!r}"
        raise RequestRefused(404, message, param="model", code="model_not_found")
    grammar = constraints.read_grammar(value)
    prompts = (chat_prompt(body.messages, model),) if isinstance(body, ChatBody) else _prompts(body.prompt, model)
    sampling = _sampling(body, model.config.max_length, max(len(prompt.ids) for prompt in prompts))
    try:
        constraint = None if grammar is None else grammars.compile(grammar)
    except InputError as error:
        param = next(name for name in constraints.FIELDS if value.get(name) is not None)
        raise RequestRefused(400, f"{param}: {error}", param=param) from None
    identity = f"{'chatcmpl' if chat else 'cmpl'}-{secrets.token_hex(12)}"
    head = {"id": identity, "created": int(time.time()), "model": model.name}
    return ApiRequest(body=body, prompts=prompts, sampling=sampling, constraint=constraint, head=head)


def read_body(value: Any, body_type: type[B]) -> B:
    """Reads the fields of a request, except those that constrain the answer.

    Raises:
      RequestRefused: a field is invalid; the message names the first one.
    """
    if not isinstance(value, Mapping):
        raise RequestRefused(400, f"the body is {type(value).__name__}; expected a JSON object")
    refused, given = getattr(body_type, "refused", {}), {}
    for name, item in value.items():
        if item is None:
            continue
        if name in body_type.model_fields:
            given[name] = item
        elif name in refused and item not in refused[name]:
            message = f"{name} is not supported by this server; leave it out"
            raise RequestRefused(400, message, param=name, code="unsupported_parameter")
        elif name not in refused and name not in NO_EFFECT and name not in constraints.FIELDS:
            message = f"the field {shown(name)} is not known to this server; leave it out"
            raise RequestRefused(400, message, param=name[:80], code="unknown_parameter")
    try:
        return body_type.model_validate(given)
    except ValidationError as error:
        raise _refusal(error, body_type) from None


def _refusal(error: ValidationError, body_type: type[BaseModel]) -> RequestRefused:
    """An error about the first invalid field; pydantic reports one error for each type of a union."""
    first, *others = error.errors(include_url=False)
    name, value = str(first["loc"][0]), first["input"]
    errors = [first, *(other for other in others if other["loc"][0] == name)]
    types = [detail["type"] for detail in errors]
    if first["type"] == "missing":
        return RequestRefused(400, f"{name} is missing", param=name, code="missing_required_parameter")
    if set(types) <= _EXPECTED.keys() and all(detail["input"] is value for detail in errors):
        expected = " or ".join(dict.fromkeys(_EXPECTED[kind] for kind in types))
        message = f"{name} is {type(value).__name__}; expected {expected}"
        return RequestRefused(400, message, param=name, code="invalid_type")
    if len(errors) > 1 and (description := body_type.model_fields[name].description):
        return RequestRefused(400, f"{name}: expected {description}", param=name)
    return RequestRefused(400, f"{name}={shown(value)}: {first['msg']}", param=name)


def chat_prompt(messages: list[Any], model: LanguageModel) -> Prompt:
    """The prompt of a conversation.

    Raises:
      RequestRefused: the messages are invalid, or the model's template refuses them.
    """
    template = model.tokenizer.chat_template or ""
    try:
        text, ids = model.encode_chat([_read_message(i, message, template) for i, message in enumerate(messages)])
    except InputError as error:
        raise RequestRefused(400, str(error), param="messages") from None
    return Prompt(tuple(ids), text)


def _read_message(number: int, message: Any, template: str) -> Any:
    """A message in the form that templates read; `encode_chat` refuses what is no message.

    Text parts are joined. The role `developer` becomes `system` for templates that do not know it. Tool calls are
    accepted if the template writes them, with their arguments parsed.
    """
    if not isinstance(message, Mapping):
        return message
    read, where = {key: item for key, item in message.items() if item is not None}, f"messages[{number}]"
    if read.get("role") == "developer" and "developer" not in template:
        read["role"] = "system"
    if isinstance(parts := read.get("content"), list):
        given = [part.get("text") for part in parts if isinstance(part, Mapping) and part.get("type") == "text"]
        texts = [text for text in given if isinstance(text, str)]
        if len(texts) < len(parts):
            problem = f"{where}.content: only parts of type text can be read here"
            raise RequestRefused(400, problem, param="messages", code="unsupported_parameter")
        read["content"] = "".join(texts)
    if calls := read.get("tool_calls"):
        if "tool_calls" not in template:
            problem = f"{where}.tool_calls: this model's chat template has no place for calls of tools"
            raise RequestRefused(400, problem, param="messages", code="unsupported_parameter")
        read |= {"content": read.get("content", ""), "tool_calls": [_read_call(where, call) for call in calls]}
    return read


def _read_call(where: str, call: Any) -> Any:
    try:
        return read_tool_call(call)
    except (TypeError, KeyError, ValueError, RecursionError):
        problem = f"{where}.tool_calls: expected functions with name and arguments, which are JSON as text"
        raise RequestRefused(400, problem, param="messages") from None


def _prompts(given: str | list[int] | list[str | list[int]], model: LanguageModel) -> tuple[Prompt, ...]:
    single = isinstance(given, str) or isinstance(next(iter(given), None), int)
    several: Sequence[Any] = [given] if single else given
    if not several:
        raise RequestRefused(400, "prompt is empty", param="prompt")
    try:
        return tuple(
            Prompt(tuple(model.tokenizer.encode_prompt(prompt)), prompt)
            if isinstance(prompt, str)
            else Prompt(tuple(prompt), decode(prompt, model, "prompt"))
            for prompt in several
        )
    except InputError as error:
        raise RequestRefused(400, f"prompt: {error}", param="prompt") from None


def decode(ids: Sequence[int], model: LanguageModel, param: str) -> str:
    """Text of a client's ids.

    Raises:
      RequestRefused: an id is outside the tokenizer's vocabulary.
    """
    size = model.tokenizer.vocabulary.size
    if ids and max(ids) >= size:
        raise RequestRefused(400, f"{param}: ids must be from 0 to {size - 1:,}", param=param)
    return model.tokenizer.decode(ids)


def _sampling(body: CompletionBody | ChatBody, max_length: int, prompt_tokens: int) -> tuple[Sampling, ...]:
    max_tokens = body.token_limit(max_length - prompt_tokens)
    if prompt_tokens + max_tokens > max_length:
        asked = f"the prompt has {prompt_tokens:,} and asks for {max_tokens:,} more"
        message = f"this model's context holds {max_length:,} tokens; {asked}: shorten the prompt or lower max_tokens"
        param = "messages" if isinstance(body, ChatBody) else "prompt"
        raise RequestRefused(400, message, param=param, code="context_length_exceeded")
    seed = secrets.randbits(31) if body.seed is None else body.seed
    stop = tuple(text for text in ([body.stop] if isinstance(body.stop, str) else body.stop) if text)
    if any(len(text) > _STOP_CHARACTERS for text in stop):
        raise RequestRefused(400, f"stop: at most {_STOP_CHARACTERS} characters each", param="stop")
    top_logprobs = body.logprobs_per_token()
    try:
        return tuple(
            Sampling(
                max_tokens=max_tokens,
                min_tokens=body.min_tokens,
                temperature=body.temperature,
                top_p=body.top_p,
                top_k=max(0, body.top_k),
                stop=stop,
                ignore_end=body.ignore_eos,
                top_logprobs=top_logprobs,
                prompt_logprobs=isinstance(body, CompletionBody) and body.echo and top_logprobs is not None,
                seed=seed + number,
            )
            for number in range(body.n)
        )
    except InputError as error:
        raise RequestRefused(400, str(error), param=str(error).partition("=")[0].partition(":")[0]) from None
