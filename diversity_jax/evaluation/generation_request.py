"""One prompt while it is answered: its settings, what constrains it, its tokens so far and the answer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from diversity_jax.core.errors import InputError
from diversity_jax.evaluation.sampling import TOP, Sampling

_REPLACEMENT = "\ufffd"  # what the bytes of an unfinished character decode to


class TextStream:
    """The text of one answer while its tokens arrive: complete characters only, ended before a stop text.

    Args:
      decode: ids to text.
      stop: texts that end the answer and are left out of it.
      min_tokens: before so many, no text ends it.

    Attributes:
      text: everything so far; final once `stopped`, or after `finish`.
      stopped: a stop text has been met.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stop: Sequence[str] = (), *, min_tokens: int = 0):
        self.text, self.stopped = "", False
        self._decode, self._stop, self._min_tokens = decode, tuple(stop), min_tokens
        self._longest_stop = max(map(len, stop), default=0)
        self._ids: list[int] = []
        self._window_start, self._ids_read = 0, 0  # tokens from the start of the window are decoded with new ones
        self._characters_taken, self._stop_from = 0, 0

    def add(self, token: int) -> None:
        """One more token. Only the last few are decoded again, since how a token reads depends on its neighbours."""
        self._ids.append(token)
        self._read_new(last=False)

    def finish(self) -> None:
        """No more tokens: an unfinished character shows as it is."""
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
        """What is new and not the possible beginning of a stop text; with `last`, all that is left."""
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

    `before` is the token that it follows, on which its spelling may depend.
    """

    token: int
    before: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, kw_only=True)
class GeneratedText:
    """One finished answer.

    Attributes:
      text: without its stop text and end-of-text token.
      tokens: all ids generated, including the ones that ended it.
      finish_reason: `stop` (a stop text or end of text) or `length`.
      logprobs: of each token, where `Sampling.top_logprobs` is not None; of the prompt's tokens before them, from the
        second on, where `Sampling.prompt_logprobs` asks for them.
    """

    text: str
    tokens: tuple[int, ...]
    finish_reason: str
    logprobs: tuple[TokenLogprob, ...] = ()


class TokenConstraint(Protocol):
    """What one answer may consist of, token by token. Both methods may raise `InputError`: the answer fails by it."""

    @property
    def finished(self) -> bool:
        """Nothing can follow but the end."""

    def fill(self, bits_W: np.ndarray) -> None:
        """Sets bit i of these uint32 words where id i may be next, and clears the others."""

    def accept(self, tokens: Sequence[int]) -> int:
        """Takes the first tokens, as many as are allowed one after another; returns how many."""


@dataclass(kw_only=True, eq=False)
class GenerationRequest:
    """A prompt in the generator; set `cancelled` to free what it holds.

    Attributes:
      number: by which requests are served in turn.
      shard, blocks: the rows' part of the mesh that holds its keys and values, and their blocks there, in order.
      cached: tokens whose keys and values are in the cache.

    The generator's thread calls `on_progress` after new tokens, the last time with an `answer` or a `failure` set.
    A failure is an `InputError` where the request itself is at fault.
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
    single_steps: int = 0  # calls that draw one token only, after a constraint refused what was drawn freely
    refusals: int = 0  # in a row

    shard: int = 0
    blocks: list[int] = field(default_factory=list)
    cached: int = 0

    @property
    def known(self) -> list[int]:
        """The prompt and what follows it so far; its last token is not in the cache before it is decoded."""
        return self.prompt + self.tokens

    @property
    def length(self) -> int:
        """Tokens known."""
        return len(self.prompt) + len(self.tokens)

    @property
    def longest(self) -> int:
        """Tokens of the prompt and the longest answer."""
        return len(self.prompt) + self.sampling.max_tokens

    @property
    def scores_prompt(self) -> bool:
        """Log-probabilities of the prompt are wanted, and not known from an earlier reading."""
        return self.sampling.prompt_logprobs and not self.tokens

    @property
    def scoring(self) -> bool | None:
        """How a prompt is read: None: without log-probabilities, else whether with those of the likeliest tokens."""
        return bool(self.sampling.top_logprobs) if self.scores_prompt else None

    def fail(self, failure: Exception) -> None:
        """Ends it without an answer."""
        self.failure = failure
        self.on_progress(self)


def not_a_number(what: str) -> ArithmeticError:
    return ArithmeticError(
        f"{what} has a log-probability that is not a number, so no text of this model can be trusted; look at its "
        "weights, or at model.compute_dtype"
    )


def accepted_tokens(request: GenerationRequest, constraint: TokenConstraint, tokens: list[int]) -> list[int]:
    """The first of the tokens drawn, as many as a constraint allows.

    Only the first was drawn under it. One drawn freely that it allows is the one that would have been drawn under it,
    from the same noise; unless a filter counts the ids that are not allowed.

    Raises:
      InputError: none, so that the answer cannot go on.
    """
    drawn = tokens[:1] if request.sampling.filtered else tokens
    accepted = drawn[: constraint.accept(drawn)]
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
