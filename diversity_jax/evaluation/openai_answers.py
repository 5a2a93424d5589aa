"""Answers in OpenAI's form: whole, and as the chunks of a stream."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
import itertools
from typing import Any

from diversity_jax.evaluation.generator import Answer, TokenLogprob
from diversity_jax.evaluation.openai_requests import Ask
from diversity_jax.evaluation.tokenizer import ModelTokenizer


@dataclass(frozen=True, kw_only=True)
class Envelope:
    """What all parts of one answer carry."""

    identity: str
    created: int
    model: str
    chat: bool

    def wrap(self, choices: Sequence[Mapping[str, Any]], *, chunk: bool = False, usage: Mapping[str, int] | None = None) -> dict[str, Any]:
        """A whole answer, or one chunk of a stream."""
        kind = ("chat.completion.chunk" if chunk else "chat.completion") if self.chat else "text_completion"
        body = {"id": self.identity, "object": kind, "created": self.created, "model": self.model, "choices": list(choices)}
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
        return {"content": [_entry(tokenizer, one.token, one.logprob) | {"top_logprobs": _top(tokenizer, one)} for one in found]}
    words = [tokenizer.decode([one.token]) for one in found]
    likeliest = [{tokenizer.decode([token]): nats for token, nats in one.top} for one in found]
    return {
        "tokens": words,
        "token_logprobs": [one.logprob for one in found],
        "top_logprobs": likeliest if ask.sampling[0].top_logprobs else None,
        "text_offset": list(itertools.accumulate(map(len, words[:-1]), initial=0))[: len(words)],
    }


def _top(tokenizer: ModelTokenizer, one: TokenLogprob) -> list[dict[str, Any]]:
    return [_entry(tokenizer, *pair) for pair in one.top]


def _entry(tokenizer: ModelTokenizer, token: int, logprob: float) -> dict[str, Any]:
    word = tokenizer.decode([token])
    return {"token": word, "logprob": logprob, "bytes": list(word.encode(errors="replace"))}
