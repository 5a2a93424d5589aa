"""State of one generation request: prompt, settings, constraint, tokens so far and the answer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from diversity_jax.core.errors import InputError
from diversity_jax.evaluation.sampling import TOP, Sampling

_REPLACEMENT = "\ufffd"  # the bytes of an incomplete character decode to it


class TextStream:
    """Detokenizes one answer as its tokens arrive: complete characters only, cut before the first stop text.

    Args:
      decode: ids to text.
      stop: texts that end the answer and are not part of it.
      min_tokens: stop texts within this many first tokens are ignored.

    Attributes:
      text: the text so far; final once `stopped`, or after `finish`.
      stopped: whether a stop text was found.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stop: Sequence[str] = (), *, min_tokens: int = 0):
        self.text, self.stopped = "", False
        self._decode, self._stop, self._min_tokens = decode, tuple(stop), min_tokens
        self._longest_stop = max(map(len, stop), default=0)
        self._ids: list[int] = []
        self._window_start, self._ids_read = 0, 0  # new tokens are decoded with those of the window
        self._characters_taken, self._stop_from = 0, 0

    def add(self, token: int) -> None:
        """Adds a token. The last few are decoded again with it, since a token's text depends on its neighbours."""
        self._ids.append(token)
        self._read_new(last=False)

    def finish(self) -> None:
        """Ends the text; an incomplete character becomes U+FFFD."""
        if not self.stopped:
            self._read_new(last=True)

    def _read_new(self, last: bool) -> None:
        window = self._decode(self._ids[self._window_start :])
        if window.endswith(_REPLACEMENT) and not last:
            return
        known = len(self._decode(self._ids[self._window_start : self._ids_read]))
        search_from = max(self._stop_from, len(self.text) - self._longest_stop + 1)
        self.text += window[known:]
        if len(self._ids) < self._min_tokens:
            search_from = self._stop_from = len(self.text)
        self._window_start, self._ids_read = self._ids_read, len(self._ids)
        stops = [start for text in self._stop if (start := self.text.find(text, search_from)) >= 0]
        if stops:
            self.text, self.stopped = self.text[: min(stops)], True

    def take(self, *, last: bool = False) -> str:
        """New text since the last call, without a possible beginning of a stop text; with `last`, all of it."""
        end = len(self.text)
        if not last and not self.stopped:
            lengths = range(min(self._longest_stop - 1, end), 0, -1)
            end -= next((n for n in lengths if any(stop.startswith(self.text[-n:]) for stop in self._stop)), 0)
        new = self.text[self._characters_taken : end]
        self._characters_taken = max(self._characters_taken, end)
        return new


@dataclass(frozen=True, kw_only=True)
class TokenLogprob:
    """Log-probability in nats of a chosen token, before temperature and filters, and (token, nats) of the likeliest.

    `before` is the preceding token, on which the token's text may depend.
    """

    token: int
    before: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, kw_only=True)
class GeneratedText:
    """One finished answer.

    Attributes:
      text: without stop text and end-of-text token.
      tokens: all generated ids, including those of the stop text or end of text.
      finish_reason: `stop` (a stop text or end of text) or `length`.
      logprobs: of each token, where `Sampling.top_logprobs` is not None; with `Sampling.prompt_logprobs`, those of the
        prompt's tokens from the second on come first.
    """

    text: str
    tokens: tuple[int, ...]
    finish_reason: str
    logprobs: tuple[TokenLogprob, ...] = ()


class TokenConstraint(Protocol):
    """A restriction of one answer's tokens. An `InputError` that a method raises fails the answer."""

    @property
    def finished(self) -> bool:
        """Whether only the end can follow."""

    def fill(self, bits_W: np.ndarray) -> None:
        """Sets bit i of these uint32 words where id i may follow, and clears the others."""

    def accept(self, tokens: Sequence[int]) -> int:
        """Advances by the longest allowed prefix of `tokens`; returns its length."""


@dataclass(kw_only=True, eq=False)
class GenerationRequest:
    """A prompt in the generator; set `cancelled` to release its slot and blocks.

    The generator's thread calls `on_progress` after new tokens, the last time with an `answer` or a `failure` set.
    A failure is an `InputError` where the request itself is at fault.

    Attributes:
      number: requests are served in the order of their numbers.
      single_steps: number of next calls that decode one token only, after a constraint refused sampled tokens.
      refusals: such calls in a row.
      shard, blocks: row shard that holds its keys and values, and their blocks there, in order.
      cached: tokens whose keys and values are in the cache.
    """

    number: int
    prompt: list[int]
    sampling: Sampling
    stream: TextStream
    constraint: TokenConstraint | None = None
    on_progress: Callable[["GenerationRequest"], None] = lambda request: None
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    answer: GeneratedText | None = None
    cancelled: bool = False
    failure: Exception | None = None
    single_steps: int = 0
    refusals: int = 0
    shard: int = 0
    blocks: list[int] = field(default_factory=list)
    cached: int = 0

    @property
    def known(self) -> list[int]:
        """The prompt and the tokens generated so far; the last token is not in the cache."""
        return self.prompt + self.tokens

    @property
    def length(self) -> int:
        """Number of `known` tokens."""
        return len(self.prompt) + len(self.tokens)

    @property
    def is_prefilled(self) -> bool:
        """Whether all `known` tokens but the last are in the cache."""
        return self.cached == self.length - 1

    @property
    def longest(self) -> int:
        """Most tokens of prompt and answer."""
        return len(self.prompt) + self.sampling.max_tokens

    @property
    def scoring(self) -> bool | None:
        """Whether prefill reports the likeliest tokens' log-probabilities; None: it reports no log-probabilities."""
        needs_scores = self.sampling.prompt_logprobs and not self.tokens  # else they are known, or not asked for
        return bool(self.sampling.top_logprobs) if needs_scores else None

    def fail(self, failure: Exception) -> None:
        """Ends the request without an answer."""
        self.failure = failure
        self.on_progress(self)


def not_a_number(what: str) -> ArithmeticError:
    return ArithmeticError(
        f"{what} has a log-probability that is not a number, so no text of this model can be trusted; look at its "
        "weights, or at model.compute_dtype"
    )


def accepted_tokens(request: GenerationRequest, constraint: TokenConstraint, tokens: list[int]) -> list[int]:
    """The longest prefix of the sampled tokens that a constraint allows.

    Only the first token was sampled under the constraint. A later one that it allows equals the one that the same noise
    would have given under the constraint, except with top-k or top-p, which count ids that are not allowed.

    Raises:
      InputError: no token is allowed, so that the answer cannot continue.
    """
    sampled = tokens[:1] if request.sampling.filtered else tokens
    accepted = sampled[: constraint.accept(sampled)]
    if not accepted:
        problem = "what the grammar asks for next cannot be written with this tokenizer, or only after min_tokens"
        raise InputError(problem)
    request.single_steps = max(0, request.single_steps - 1)
    if len(tokens) > 1:
        request.refusals = 0 if len(accepted) == len(tokens) else min(request.refusals + 1, 5)
        request.single_steps = 2**request.refusals - 1
    return accepted


def token_logprob(before: int, token: int, out: dict[str, np.ndarray], index: int, shown: int) -> TokenLogprob:
    # The likeliest are not computed where no request shows them.
    likeliest = [out[name][index, :shown].tolist() for name in TOP] if shown else [[], []]
    top = tuple(zip(*likeliest, strict=True))
    return TokenLogprob(token=token, before=before, logprob=float(out["logprobs"][index]), top=top)
