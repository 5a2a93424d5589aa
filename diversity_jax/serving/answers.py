"""Answers in OpenAI's form: whole, or chunk by chunk as a stream."""

from collections.abc import Mapping, Sequence
from typing import Any

from diversity_jax.evaluation.generation_request import GeneratedText, TokenLogprob
from diversity_jax.serving.requests import ApiRequest
from diversity_jax.tokenizers.tokenizer import ModelTokenizer


def envelope(request: ApiRequest, choices: Sequence[Mapping[str, Any]], *, chunk: bool = False) -> dict[str, Any]:
    """A complete answer, or one chunk of a stream."""
    kind = ("chat.completion.chunk" if chunk else "chat.completion") if request.chat else "text_completion"
    return {**request.head, "object": kind, "choices": list(choices)}


def usage(request: ApiRequest, answers: Sequence[GeneratedText | None]) -> dict[str, int]:
    """Tokens read and written; a prompt counts once however many choices it has."""
    prompt = sum(len(each.ids) for each in request.prompts)
    completion = sum(len(answer.tokens) for answer in answers if answer)
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


class ChoiceWriter:
    """Writes one choice, at once or in parts of a stream; it knows what of it was written before."""

    def __init__(self, tokenizer: ModelTokenizer, request: ApiRequest, index: int):
        self._tokenizer, self._request, self._index = tokenizer, request, index
        self.begun = False
        self._offset = 0  # characters of the tokens whose log-probabilities were written

    def write(
        self, text: str, logprobs: Sequence[TokenLogprob], finished: GeneratedText | None, *, chunk: bool = False
    ) -> dict[str, Any]:
        """The choice with what is new of it."""
        first, self.begun = not self.begun, True
        body: dict[str, Any]
        if self._request.chat and chunk:
            body = {"delta": ({"role": "assistant"} if first else {}) | ({"content": text} if text or first else {})}
        elif self._request.chat:
            body = {"message": {"role": "assistant", "content": text, "refusal": None}}
        else:
            body = {"text": (self._request.prompt_of(self._index).text if self._request.echo and first else "") + text}
        asked = self._request.sampling[0].top_logprobs is not None
        listed = self._logprobs(logprobs, first) if asked and (logprobs or first) else None
        reason = finished.finish_reason if finished else None
        return {"index": self._index, **body, "finish_reason": reason, "logprobs": listed}

    def _logprobs(self, logprobs: Sequence[TokenLogprob], first: bool) -> dict[str, Any]:
        tokenizer, sampling = self._tokenizer, self._request.sampling[0]
        texts = [token_text(tokenizer, chosen.before, chosen.token) for chosen in logprobs]
        tops = [
            [(token_text(tokenizer, chosen.before, token), nats) for token, nats in chosen.top] for chosen in logprobs
        ]
        if self._request.chat:
            content = [
                _chat_logprob(text, chosen.logprob) | {"top_logprobs": [_chat_logprob(*pair) for pair in top]}
                for text, chosen, top in zip(texts, logprobs, tops, strict=True)
            ]
            return {"content": content, "refusal": None}
        # Of tokens that read alike, the likeliest counts. The chosen one is shown whether it is among them or not.
        likeliest: list[dict[str, float] | None] = [
            {text: chosen.logprob, **dict(reversed(top))}
            for text, chosen, top in zip(texts, logprobs, tops, strict=True)
        ]
        values: list[float | None] = [chosen.logprob for chosen in logprobs]
        if first and sampling.prompt_logprobs:  # nothing stands before a prompt's first token
            texts.insert(0, tokenizer.decode(self._request.prompt_of(self._index).ids[:1]))
            values.insert(0, None)
            likeliest.insert(0, None)
        offsets = []
        for text in texts:
            offsets.append(self._offset)
            self._offset += len(text)
        top = likeliest if sampling.top_logprobs else None
        return {"tokens": texts, "token_logprobs": values, "top_logprobs": top, "text_offset": offsets}


def _chat_logprob(text: str, logprob: float) -> dict[str, Any]:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode(errors="replace"))}


def token_text(tokenizer: ModelTokenizer, before: int, token: int) -> str:
    """What a token adds to the text: decoded alone, some tokenizers leave out the space that it begins with."""
    known, both = tokenizer.decode([before]), tokenizer.decode([before, token])
    return both[len(known) :] if both.startswith(known) else tokenizer.decode([token])
