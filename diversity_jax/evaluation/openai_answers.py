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
        entries = [{"token": word, "logprob": one.logprob, "bytes": _bytes(word)} for word, one in _words(tokenizer, found)]
        tops = [[{"token": word, "logprob": nats, "bytes": _bytes(word)} for word, nats in _top(tokenizer, one)] for one in found]
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
