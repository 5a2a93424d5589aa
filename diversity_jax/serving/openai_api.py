"""Requests in OpenAI's form: read strictly, refused with OpenAI's error bodies.

Answers in OpenAI's form: whole, and as the chunks of a stream.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
import itertools
import secrets
from typing import Any

from diversity_jax.core.errors import InputError
from diversity_jax.evaluation.generate import Answer, TokenLogprob
from diversity_jax.evaluation.load_model import LanguageModel
from diversity_jax.evaluation.sampling import MAX_TOP_LOGPROBS, Sampling
from diversity_jax.tokenizers.tokenizer import ModelTokenizer

MAX_CHOICES = 128
MAX_STOPS = 16


class Refused(Exception):
    """A request that gets an error: HTTP status, OpenAI's `type` and `code`, and the parameter at fault."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    def body(self) -> dict[str, Any]:
        """As OpenAI's servers write it."""
        kind = (
            "server_error"
            if self.status >= 500
            else "rate_limit_error"
            if self.status == 429
            else "invalid_request_error"
        )
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


@dataclass(frozen=True, kw_only=True)
class Ask:
    """A request, ready for the generator.

    Attributes:
      prompts: token ids of each prompt; one for a chat.
      sampling: settings of each choice of one prompt; choice n has the seed after choice n - 1's.
      chat: conversation, or bare completion.
      stream, usage_in_stream: server-sent events, and whether the last one counts tokens.
      echo: completions begin with their prompt.
    """

    prompts: tuple[tuple[int, ...], ...]
    texts: tuple[str, ...]
    sampling: tuple[Sampling, ...]
    chat: bool
    stream: bool
    usage_in_stream: bool
    echo: bool


# Fields that change what is answered and are not supported; values that change nothing are let pass.
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
}


def read_ask(body: Any, model: LanguageModel, name: str, *, chat: bool) -> Ask:
    """Reads a request.

    Raises:
      Refused: malformed (400), an unknown model (404), or longer than the context (400).
    """
    if not isinstance(body, Mapping):
        raise Refused(400, f"the body is {type(body).__name__}; expected a JSON object")
    asked = _value(body, "model", str, required=True)
    if asked != name:
        raise Refused(
            404, f"the model {asked!r} does not exist; this server has {name!r}", param="model", code="model_not_found"
        )
    for field, harmless in _UNSUPPORTED.items():
        if body.get(field) not in harmless:
            raise Refused(
                400, f"{field} is not supported by this server; leave it out", param=field, code="unsupported_parameter"
            )
    _check_format(body.get("response_format"))
    choices = _value(body, "n", int, 1)
    if not 1 <= choices <= MAX_CHOICES:
        raise Refused(400, f"n={choices}: must be from 1 to {MAX_CHOICES}", param="n")
    prompts, texts = _chat_prompt(body, model) if chat else _prompts(body, model)
    options = _value(body, "stream_options", dict, {})
    return Ask(
        prompts=prompts,
        texts=texts,
        sampling=_sampling(body, model, max(map(len, prompts)), choices, chat=chat),
        chat=chat,
        stream=_value(body, "stream", bool, False),
        usage_in_stream=bool(options.get("include_usage")),
        echo=_value(body, "echo", bool, False) and not chat,
    )


def _value(
    body: Mapping[str, Any], name: str, kind: type | tuple[type, ...], default: Any = None, *, required: bool = False
) -> Any:
    """A field of the right type; null stands for the default."""
    value = body.get(name)
    if value is None:
        if required:
            raise Refused(400, f"{name} is missing", param=name, code="missing_required_parameter")
        return default
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        expected = " or ".join(one.__name__ for one in kinds)
        raise Refused(400, f"{name} is {type(value).__name__}; expected {expected}", param=name, code="invalid_type")
    return value


def _check_format(wanted: Any) -> None:
    kind = wanted.get("type") if isinstance(wanted, Mapping) else wanted
    if kind not in (None, "text"):
        raise Refused(
            400,
            (
                f"response_format {kind!r} is not supported: answers are not constrained to a schema here; put the schema "
                "into the prompt"
            ),
            param="response_format",
            code="unsupported_parameter",
        )


def _chat_prompt(body: Mapping[str, Any], model: LanguageModel) -> tuple[tuple[tuple[int, ...], ...], tuple[str, ...]]:
    messages = _value(body, "messages", list, required=True)
    flat = [_flat_message(message) for message in messages]
    try:
        text, ids = model.encode_chat(flat)
    except InputError as error:
        raise Refused(400, str(error), param="messages") from None
    return (tuple(ids),), (text,)


def _flat_message(message: Any) -> Any:
    """Text parts joined; anything else as it is, for the check that follows."""
    if not isinstance(message, Mapping) or not isinstance(message.get("content"), list):
        return message
    parts = message["content"]
    if not all(
        isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str) for part in parts
    ):
        raise Refused(400, "messages: only text can be read here", param="messages", code="unsupported_parameter")
    return {**message, "content": "".join(part["text"] for part in parts)}


def _prompts(body: Mapping[str, Any], model: LanguageModel) -> tuple[tuple[tuple[int, ...], ...], tuple[str, ...]]:
    """A text, several, ids, or several lists of ids."""
    given = _value(body, "prompt", (str, list), required=True)
    several: Sequence[Any] = (
        [given] if isinstance(given, str) or (given and all(isinstance(one, int) for one in given)) else given
    )
    if not several:
        raise Refused(400, "prompt is empty", param="prompt")
    if len(several) > MAX_CHOICES:
        raise Refused(400, f"{len(several):,} prompts in one request; at most {MAX_CHOICES}", param="prompt")
    prompts, texts = [], []
    for one in several:
        if isinstance(one, str):
            ids = model.tokenizer.encode(one) or [model.tokenizer.prefix_id]
            texts.append(one)
        elif (
            isinstance(one, list)
            and one
            and all(isinstance(token, int) and not isinstance(token, bool) for token in one)
        ):
            if min(one) < 0 or max(one) >= model.tokenizer.vocabulary.size:
                raise Refused(
                    400, f"prompt: ids must be from 0 to {model.tokenizer.vocabulary.size - 1:,}", param="prompt"
                )
            ids = one
            texts.append(model.tokenizer.decode(one))
        else:
            raise Refused(
                400, "prompt: expected a text, a list of texts, a list of ids or a list of lists of ids", param="prompt"
            )
        prompts.append(tuple(ids))
    return tuple(prompts), tuple(texts)


def _sampling(
    body: Mapping[str, Any], model: LanguageModel, longest: int, choices: int, *, chat: bool
) -> tuple[Sampling, ...]:
    room = model.config.max_length - longest
    most = _value(body, "max_completion_tokens", int) if chat else None
    most = (
        most if most is not None else _value(body, "max_tokens", int, max(room, 1) if chat else min(16, max(room, 1)))
    )
    if most < 1:
        raise Refused(400, f"max_tokens={most}: must be at least 1", param="max_tokens")
    if most > room:
        raise Refused(
            400,
            f"this model's context holds {model.config.max_length:,} tokens; the prompt has {longest:,} and asks for "
            f"{most:,} more: "
            "shorten the prompt or lower max_tokens",
            param="messages" if chat else "prompt",
            code="context_length_exceeded",
        )
    stop = _value(body, "stop", (str, list), [])
    stop = [stop] if isinstance(stop, str) else stop
    if len(stop) > MAX_STOPS or not all(isinstance(text, str) for text in stop):
        raise Refused(400, f"stop: expected a text or up to {MAX_STOPS} of them", param="stop")
    seed = _value(body, "seed", int)
    seed = secrets.randbits(31) if seed is None else seed
    settings = {
        "max_tokens": most,
        "temperature": float(_value(body, "temperature", (int, float), 1.0)),
        "top_p": float(_value(body, "top_p", (int, float), 1.0)),
        "top_k": max(0, _value(body, "top_k", int, 0)),
        "stop": tuple(text for text in stop if text),
        "ignore_end": _value(body, "ignore_eos", bool, False),
        "top_logprobs": _top_logprobs(body, chat=chat),
    }
    return _checked(lambda: tuple(Sampling(seed=seed + number, **settings) for number in range(choices)))


def _top_logprobs(body: Mapping[str, Any], *, chat: bool) -> int | None:
    name = "top_logprobs" if chat else "logprobs"
    count = _value(body, name, int)
    if count is not None and not 0 <= count <= MAX_TOP_LOGPROBS:
        raise Refused(400, f"{name}={count}: must be from 0 to {MAX_TOP_LOGPROBS}", param=name)
    if not chat:
        return count
    wanted = _value(body, "logprobs", bool, False)
    if count is not None and not wanted:
        raise Refused(400, f"top_logprobs={count}: needs logprobs to be true", param="top_logprobs")
    return count or 0 if wanted else None


def _checked(make: Callable[[], Any]) -> Any:
    try:
        return make()
    except InputError as error:
        raise Refused(400, str(error), param=str(error).partition("=")[0].partition(":")[0]) from None


@dataclass(frozen=True, kw_only=True)
class Envelope:
    """What all parts of one answer carry."""

    identity: str
    created: int
    model: str
    chat: bool

    def wrap(
        self, choices: Sequence[Mapping[str, Any]], *, chunk: bool = False, usage: Mapping[str, int] | None = None
    ) -> dict[str, Any]:
        """A whole answer, or one chunk of a stream."""
        kind = ("chat.completion.chunk" if chunk else "chat.completion") if self.chat else "text_completion"
        body = {
            "id": self.identity,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "choices": list(choices),
        }
        return body if usage is None else {**body, "usage": usage}


def usage(ask: Ask, answers: Sequence[Answer | None]) -> dict[str, int]:
    """Tokens read and written; a prompt counts once however many choices it has."""
    read = sum(map(len, ask.prompts))
    written = sum(len(answer.tokens) for answer in answers if answer)
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def whole_choice(tokenizer: ModelTokenizer, ask: Ask, index: int, answer: Answer) -> dict[str, Any]:
    """One choice of an answer given at once."""
    logprobs = _logprobs(tokenizer, ask, answer.logprobs)
    if ask.chat:
        message = {"role": "assistant", "content": answer.text, "refusal": None}
        return {"index": index, "message": message, "finish_reason": answer.finish_reason, "logprobs": logprobs}
    prompt = ask.texts[index // len(ask.sampling)] if ask.echo else ""
    return {"index": index, "text": prompt + answer.text, "finish_reason": answer.finish_reason, "logprobs": logprobs}


def chunk_choice(
    tokenizer: ModelTokenizer,
    ask: Ask,
    index: int,
    text: str,
    *,
    first: bool,
    logprobs: Sequence[TokenLogprob] = (),
    reason: str | None = None,
) -> dict[str, Any]:
    """One choice's part of a stream."""
    found = _logprobs(tokenizer, ask, logprobs) if logprobs else None
    if ask.chat:
        delta = ({"role": "assistant"} if first else {}) | ({"content": text} if text or first else {})
        return {"index": index, "delta": delta, "finish_reason": reason, "logprobs": found}
    prompt = ask.texts[index // len(ask.sampling)] if ask.echo and first else ""
    return {"index": index, "text": prompt + text, "finish_reason": reason, "logprobs": found}


def _logprobs(tokenizer: ModelTokenizer, ask: Ask, found: Sequence[TokenLogprob]) -> dict[str, Any] | None:
    if ask.sampling[0].top_logprobs is None:
        return None
    if ask.chat:
        entries = [
            {"token": word, "logprob": one.logprob, "bytes": _bytes(word)} for word, one in _words(tokenizer, found)
        ]
        tops = [
            [{"token": word, "logprob": nats, "bytes": _bytes(word)} for word, nats in _top(tokenizer, one)]
            for one in found
        ]
        return {"content": [{**entry, "top_logprobs": top} for entry, top in zip(entries, tops, strict=True)]}
    words = [word for word, _ in _words(tokenizer, found)]
    likeliest = [dict(reversed(_top(tokenizer, one))) for one in found]  # of tokens that read alike, the likeliest
    return {
        "tokens": words,
        "token_logprobs": [one.logprob for one in found],
        "top_logprobs": likeliest if ask.sampling[0].top_logprobs else None,
        "text_offset": list(itertools.accumulate(map(len, words[:-1]), initial=0))[: len(words)],
    }


def _words(tokenizer: ModelTokenizer, found: Sequence[TokenLogprob]) -> list[tuple[str, TokenLogprob]]:
    return [(_word(tokenizer, one.before, one.token), one) for one in found]


def _top(tokenizer: ModelTokenizer, one: TokenLogprob) -> list[tuple[str, float]]:
    return [(_word(tokenizer, one.before, token), nats) for token, nats in one.top]


def _word(tokenizer: ModelTokenizer, before: int, token: int) -> str:
    """What a token adds to the text: alone, some tokenizers would leave out the space that it begins with."""
    known, both = tokenizer.decode([before]), tokenizer.decode([before, token])
    return both[len(known) :] if both.startswith(known) else tokenizer.decode([token])


def _bytes(word: str) -> list[int]:
    return list(word.encode(errors="replace"))
