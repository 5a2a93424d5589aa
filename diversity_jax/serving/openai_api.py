"""OpenAI's protocol: requests read strictly and refused with OpenAI's error bodies, answers as they or as a stream."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
import itertools
import secrets
import time
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from diversity_jax.core.errors import InputError
from diversity_jax.evaluation.generate import MAX_TOP_LOGPROBS, GeneratedText, Sampling, TokenLogprob
from diversity_jax.evaluation.load_model import LanguageModel
from diversity_jax.tokenizers.tokenizer import ModelTokenizer

MAX_CHOICES = 128
MAX_STOPS = 16
_DEFAULT_COMPLETION_TOKENS = 16  # of OpenAI's completions; a chat may fill the context
# Fields that change the answer and are not supported, with the values that change nothing.
_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "suffix": (None, ""),
    "best_of": (None, 1),
    "logit_bias": (None, {}),
    "presence_penalty": (None, 0),
    "frequency_penalty": (None, 0),
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "functions": (None, []),
    "audio": (None,),
    "modalities": (None, ["text"]),
    "response_format": (None, "text", {"type": "text"}),  # answers are not constrained to a schema here
}
_EXPECTED = {f"{name}_type": name for name in ("int", "float", "bool", "list", "dict")} | {"string_type": "str"}


class RequestRefused(Exception):
    """A request that gets an error: HTTP status, OpenAI's `type` and `code`, and the parameter at fault."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    def body(self) -> dict[str, Any]:
        """As OpenAI's servers write it."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        kind = "rate_limit_error" if self.status == 429 else kind
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


class _Body(BaseModel):
    """Fields of both kinds of requests. Other fields, which clients send for other servers, are ignored."""

    model_config = ConfigDict(strict=True, extra="ignore")

    model: str
    n: int = Field(default=1, ge=1, le=MAX_CHOICES)
    stream: bool = False
    stream_options: dict[str, Any] = {}
    max_tokens: int | None = Field(default=None, ge=1)
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: str | Annotated[list[str], Field(max_length=MAX_STOPS)] = Field(
        default=[], description=f"a text or up to {MAX_STOPS} of them"
    )
    ignore_eos: bool = False


class _CompletionBody(_Body):
    prompt: str | list[int] | list[str | Annotated[list[int], Field(min_length=1)]] = Field(
        description="a text, a list of texts, a list of ids or a list of lists of ids"
    )
    echo: bool = False
    logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP_LOGPROBS)

    def token_limit(self, available: int) -> int:
        """The longest answer."""
        return self.max_tokens or min(_DEFAULT_COMPLETION_TOKENS, max(available, 1))

    def logprobs_per_token(self) -> int | None:
        """`Sampling.top_logprobs`."""
        return self.logprobs


class _ChatBody(_Body):
    messages: list[Any]
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool = False
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP_LOGPROBS)

    def token_limit(self, available: int) -> int:
        """The longest answer."""
        return self.max_completion_tokens or self.max_tokens or max(available, 1)

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
      prompts: one for a chat.
      sampling: settings of each choice of one prompt; choice n has the seed after choice n - 1's.
      head: what all parts of the answer carry.
    """

    body: _CompletionBody | _ChatBody
    prompts: tuple[Prompt, ...]
    sampling: tuple[Sampling, ...]
    head: Mapping[str, Any]

    @property
    def chat(self) -> bool:
        """A conversation, not a text to complete."""
        return isinstance(self.body, _ChatBody)

    def answer(self, choices: Sequence[Mapping[str, Any]], *, chunk: bool = False) -> dict[str, Any]:
        """A complete answer, or one chunk of a stream."""
        kind = ("chat.completion.chunk" if chunk else "chat.completion") if self.chat else "text_completion"
        return {**self.head, "object": kind, "choices": list(choices)}

    def usage(self, answers: Sequence[GeneratedText | None]) -> dict[str, int]:
        """Tokens read and written; a prompt counts once however many choices it has."""
        prompt = sum(len(each.ids) for each in self.prompts)
        completion = sum(len(answer.tokens) for answer in answers if answer)
        return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def read_request(value: Any, model: LanguageModel, name: str, *, chat: bool) -> ApiRequest:
    """Reads the JSON of a request; null stands for a field's default.

    Raises:
      RequestRefused: malformed (400), an unknown model (404), or longer than the context (400).
    """
    if not isinstance(value, Mapping):
        raise RequestRefused(400, f"the body is {type(value).__name__}; expected a JSON object")
    for field, harmless in _UNSUPPORTED.items():
        if value.get(field) not in harmless:
            message = f"{field} is not supported by this server; leave it out"
            raise RequestRefused(400, message, param=field, code="unsupported_parameter")
    body_type: type[_ChatBody | _CompletionBody] = _ChatBody if chat else _CompletionBody
    try:
        body = body_type.model_validate({key: item for key, item in value.items() if item is not None})
    except ValidationError as error:
        raise _refusal(error, body_type) from None
    if body.model != name:
        message = f"the model {body.model!r} does not exist; this server has {name!r}"
        raise RequestRefused(404, message, param="model", code="model_not_found")
    prompts = _chat_prompt(body.messages, model) if isinstance(body, _ChatBody) else _prompts(body.prompt, model)
    sampling = _sampling(body, model.config.max_length, max(len(prompt.ids) for prompt in prompts))
    identity = f"{'chatcmpl' if chat else 'cmpl'}-{secrets.token_hex(12)}"
    head = {"id": identity, "created": int(time.time()), "model": name}
    return ApiRequest(body=body, prompts=prompts, sampling=sampling, head=head)


def _refusal(error: ValidationError, body_type: type[_Body]) -> RequestRefused:
    """The first field at fault, in one line; a field of several types has one error for each."""
    first, *others = error.errors(include_url=False)
    name, value = str(first["loc"][0]), first["input"]
    errors = [first, *(other for other in others if other["loc"][0] == name)]
    if first["type"] == "missing":
        return RequestRefused(400, f"{name} is missing", param=name, code="missing_required_parameter")
    if all(each["type"] in _EXPECTED and each["input"] is value for each in errors):
        expected = " or ".join(dict.fromkeys(_EXPECTED[each["type"]] for each in errors))
        message = f"{name} is {type(value).__name__}; expected {expected}"
        return RequestRefused(400, message, param=name, code="invalid_type")
    if description := body_type.model_fields[name].description:
        return RequestRefused(400, f"{name}: expected {description}", param=name)
    return RequestRefused(400, f"{name}={value}: {first['msg']}", param=name)


def _chat_prompt(messages: list[Any], model: LanguageModel) -> tuple[Prompt]:
    try:
        text, ids = model.encode_chat([_with_joined_text(message) for message in messages])
    except InputError as error:
        raise RequestRefused(400, str(error), param="messages") from None
    return (Prompt(tuple(ids), text),)


def _with_joined_text(message: Any) -> Any:
    """A message whose parts of text are joined; any other as it is, since `encode_chat` checks it."""
    if not isinstance(message, Mapping) or not isinstance(message.get("content"), list):
        return message
    parts = message["content"]
    given = [part.get("text") for part in parts if isinstance(part, Mapping) and part.get("type") == "text"]
    texts = [text for text in given if isinstance(text, str)]
    if len(texts) < len(parts):
        message = "messages: only text can be read here"
        raise RequestRefused(400, message, param="messages", code="unsupported_parameter")
    return {**message, "content": "".join(texts)}


def _prompts(given: str | list[int] | list[str | list[int]], model: LanguageModel) -> tuple[Prompt, ...]:
    single = isinstance(given, str) or isinstance(next(iter(given), None), int)
    several: Sequence[Any] = [given] if single else given
    if not 0 < len(several) <= MAX_CHOICES:
        problem = f"{len(several):,} prompts in one request; at most {MAX_CHOICES}" if several else "prompt is empty"
        raise RequestRefused(400, problem, param="prompt")
    tokenizer, prompts = model.tokenizer, []
    for prompt in several:
        if isinstance(prompt, str):
            prompts.append(Prompt(tuple(tokenizer.encode(prompt) or [tokenizer.prefix_id]), prompt))
        elif min(prompt) < 0 or max(prompt) >= tokenizer.vocabulary.size:
            message = f"prompt: ids must be from 0 to {tokenizer.vocabulary.size - 1:,}"
            raise RequestRefused(400, message, param="prompt")
        else:
            prompts.append(Prompt(tuple(prompt), tokenizer.decode(prompt)))
    return tuple(prompts)


def _sampling(body: _CompletionBody | _ChatBody, max_length: int, prompt_tokens: int) -> tuple[Sampling, ...]:
    max_tokens = body.token_limit(max_length - prompt_tokens)
    if prompt_tokens + max_tokens > max_length:
        asked = f"the prompt has {prompt_tokens:,} and asks for {max_tokens:,} more"
        message = f"this model's context holds {max_length:,} tokens; {asked}: shorten the prompt or lower max_tokens"
        param = "messages" if isinstance(body, _ChatBody) else "prompt"
        raise RequestRefused(400, message, param=param, code="context_length_exceeded")
    seed = secrets.randbits(31) if body.seed is None else body.seed
    stop = [body.stop] if isinstance(body.stop, str) else body.stop
    try:
        return tuple(
            Sampling(
                max_tokens=max_tokens,
                temperature=body.temperature,
                top_p=body.top_p,
                top_k=max(0, body.top_k),
                stop=tuple(text for text in stop if text),
                ignore_end=body.ignore_eos,
                top_logprobs=body.logprobs_per_token(),
                seed=seed + number,
            )
            for number in range(body.n)
        )
    except InputError as error:
        raise RequestRefused(400, str(error), param=str(error).partition("=")[0].partition(":")[0]) from None


def choice(
    tokenizer: ModelTokenizer,
    request: ApiRequest,
    index: int,
    text: str,
    logprobs: Sequence[TokenLogprob],
    finished: GeneratedText | None,
    *,
    chunk: bool = False,
    first: bool = True,
) -> dict[str, Any]:
    """One choice of an answer given at once, or its part of one chunk of a stream, maybe the first."""
    body: dict[str, Any]
    if request.chat and chunk:
        body = {"delta": ({"role": "assistant"} if first else {}) | ({"content": text} if text or first else {})}
    elif request.chat:
        body = {"message": {"role": "assistant", "content": text, "refusal": None}}
    else:
        echo = isinstance(request.body, _CompletionBody) and request.body.echo and first
        body = {"text": (request.prompts[index // len(request.sampling)].text if echo else "") + text}
    shown = _logprobs(tokenizer, request, logprobs) if logprobs else None
    reason = finished.finish_reason if finished else None
    return {"index": index, **body, "finish_reason": reason, "logprobs": shown}


def _logprobs(tokenizer: ModelTokenizer, request: ApiRequest, logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
    texts = [token_text(tokenizer, chosen.before, chosen.token) for chosen in logprobs]
    tops = [[(token_text(tokenizer, chosen.before, token), nats) for token, nats in chosen.top] for chosen in logprobs]
    if request.chat:
        content = [
            _chat_logprob(text, chosen.logprob) | {"top_logprobs": [_chat_logprob(*pair) for pair in top]}
            for text, chosen, top in zip(texts, logprobs, tops, strict=True)
        ]
        return {"content": content}
    return {
        "tokens": texts,
        "token_logprobs": [chosen.logprob for chosen in logprobs],
        # Of tokens that read alike, the likeliest counts.
        "top_logprobs": [dict(reversed(top)) for top in tops] if request.sampling[0].top_logprobs else None,
        "text_offset": list(itertools.accumulate(map(len, texts[:-1]), initial=0)),
    }


def _chat_logprob(text: str, logprob: float) -> dict[str, Any]:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode(errors="replace"))}


def token_text(tokenizer: ModelTokenizer, before: int, token: int) -> str:
    """What a token adds to the text: decoded alone, some tokenizers leave out the space that it begins with."""
    known, both = tokenizer.decode([before]), tokenizer.decode([before, token])
    return both[len(known) :] if both.startswith(known) else tokenizer.decode([token])
