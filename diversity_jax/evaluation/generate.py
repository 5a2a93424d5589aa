"""Generation: continuous batching of answers in the slots of one sharded key-value cache."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import jax
from jax.sharding import NamedSharding
import numpy as np

from diversity_jax.core.errors import InputError
from diversity_jax.evaluation.load_model import LanguageModel
from diversity_jax.evaluation.loglikelihood import row_length
from diversity_jax.evaluation.sampling import TOP, Sampling, decode_tokens, score_prompt
from diversity_jax.evaluation.text_stream import TextStream
from diversity_jax.model.decode import Cache, empty_cache, prefill
from diversity_jax.model.sharding import spec

_PREFILL_TOKENS = (32, 128, 512)  # compiled lengths of a prompt's chunks; the last chunk is padded to the next of them


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
    """A prompt in the generator; set `cancelled` to free its slot.

    The generator's thread calls `on_progress` after new tokens, the last time with an `answer` or a `failure` set.
    A failure is an `InputError` where the request itself is at fault.
    """

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

    def fail(self, failure: Exception) -> None:
        """Ends it without an answer."""
        self.failure = failure
        self.on_progress(self)


class Generator:
    """Generates many answers at once in `slots` of one cache.

    Args:
      slots: answers generated together; rounded up to a multiple of the devices that share the rows.
      steps: tokens decoded in one call of the compiled program; tokens after the end of an answer are discarded.
    """

    def __init__(self, model: LanguageModel, *, slots: int = 16, steps: int = 8):
        config, mesh = model.config, model.mesh
        devices = mesh.shape["data"] * mesh.shape["fsdp"]
        self.model, self.slots, self._steps = model, -(-slots // devices) * devices, steps
        largest = _PREFILL_TOKENS[-1]
        self._capacity = -(-(config.max_length + steps) // largest) * largest  # positions of the cache
        size = model.tokenizer.vocabulary.size
        self._words = -(-size // 32)

        def read(*args: Any, **static: Any) -> Cache:
            return prefill(config, *args, **static, mesh=mesh)[1]

        compiled = partial(jax.jit, donate_argnums=1)
        self._prefill = compiled(read, static_argnames="span_tokens")
        scoring = partial(score_prompt, config, mesh, size)
        self._score_prompt = compiled(scoring, static_argnames=("span_tokens", "with_top"))
        stop_ids = tuple(sorted(i for i in model.tokenizer.stop_ids if i < config.vocab_size))
        decoding = partial(decode_tokens, config, mesh, size, stop_ids)
        self._decode = compiled(decoding, static_argnames=("steps", "span_tokens", "with_top"))
        sharding = NamedSharding(mesh, spec("batch", None, "kv_heads", None))
        self._empty_cache = jax.jit(partial(empty_cache, config, self.slots, self._capacity), out_shardings=sharding)
        self._cache: Cache | None = None
        self._waiting: deque[GenerationRequest] = deque()  # filled by any thread, emptied by the generator's alone
        self._running: dict[int, GenerationRequest] = {}  # by slot

    def _request(self, prompt: Sequence[int], sampling: Sampling, **fields: Any) -> GenerationRequest:
        config = self.model.config
        if not prompt:
            raise InputError("the prompt is empty; give at least one token")
        if min(prompt) < 0 or max(prompt) >= config.vocab_size:
            raise InputError(f"the prompt holds an id outside the model's vocabulary of {config.vocab_size:,}")
        if len(prompt) + sampling.max_tokens > config.max_length:
            raise InputError(
                f"the prompt has {len(prompt):,} tokens and asks for up to {sampling.max_tokens:,} more; "
                f"the model's context holds {config.max_length:,}: shorten the prompt or lower max_tokens"
            )
        stream = TextStream(self.model.tokenizer.decode, sampling.stop, min_tokens=sampling.min_tokens)
        return GenerationRequest(prompt=list(prompt), sampling=sampling, stream=stream, **fields)

    def submit(
        self,
        prompt: Sequence[int],
        sampling: Sampling,
        on_progress: Callable[[GenerationRequest], None],
        constraint: TokenConstraint | None = None,
    ) -> GenerationRequest:
        """Queues a prompt; safe from any thread. `step` does the work.

        Raises:
          InputError: an empty prompt, an id outside the vocabulary, or more tokens than the model's context.
        """
        request = self._request(prompt, sampling, on_progress=on_progress, constraint=constraint)
        self._waiting.append(request)
        return request

    @property
    def load(self) -> int:
        """Requests waiting or running."""
        return len(self._waiting) + len(self._running)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling | Sequence[Sampling],
        *,
        name: Callable[[int], str] = "prompt {}".format,
    ) -> list[GeneratedText]:
        """Answers to all prompts, in order.

        Args:
          name: of a prompt by its number from 0, for an error.

        Raises:
          InputError: as `submit`, and nothing is generated then; or the first prompt that has no answer, since the
            model's log-probabilities are not finite.
        """
        settings = [sampling] * len(prompts) if isinstance(sampling, Sampling) else sampling
        requests = [self._request(*pair) for pair in zip(prompts, settings, strict=True)]
        self._waiting.extend(requests)
        while self.step():
            pass
        for number, request in enumerate(requests):
            if request.failure is not None:
                raise InputError(f"{name(number)}: {request.failure}") from request.failure
        return [request.answer for request in requests if request.answer is not None]

    def step(self, *, admit: bool = True) -> bool:
        """Admits waiting prompts and extends running answers by up to `steps` tokens; False if there is no request."""
        if admit:
            self._admit()
        if not self._running:
            return bool(self._waiting)
        out = self._decode_running()
        for slot, request in list(self._running.items()):
            self._take_tokens(slot, request, {name: value[:, slot] for name, value in out.items()})
        return True

    def abandon(self, failure: Exception, *, waiting: bool = False) -> None:
        """After an exception in `step`: fails what ran, and with `waiting` what waits; drops the cache, which may be
        half written.
        """
        failed = list(self._running.values())
        self._running.clear()
        self._cache = None
        while waiting and self._waiting:
            failed.append(self._waiting.popleft())
        for request in failed:
            request.fail(failure)

    def restart(self) -> None:
        """Makes the cache anew and generates one token, before any request that waits; raises what that raises."""
        self._cache = self._empty_cache()
        request = self._request([self.model.tokenizer.prefix_id] * 2, Sampling(max_tokens=1))
        self._running[0] = request
        self._read_prompt(0, request)
        self.step(admit=False)

    def _admit(self) -> None:
        self._cache = self._cache or self._empty_cache()
        for slot in range(self.slots):
            if slot in self._running and self._running[slot].cancelled:
                del self._running[slot]
            while slot not in self._running and self._waiting:
                request = self._waiting.popleft()
                if request.cancelled:
                    continue
                self._running[slot] = request  # before anything can fail, so that no request is lost
                self._read_prompt(slot, request)
                if any(np.isnan(one.logprob) for one in request.logprobs):
                    self._fail(slot, _not_a_number("a token of the prompt"))
                elif request.sampling.max_tokens == 0:
                    self._finish(slot, request, "length")
                    request.on_progress(request)
                break

    def _read_prompt(self, slot: int, request: GenerationRequest) -> None:
        """Puts all but the last token into the cache; that one is decoded first."""
        prompt, sampling = request.prompt, request.sampling
        for start in range(0, len(prompt) - 1, _PREFILL_TOKENS[-1]):
            end = min(start + _PREFILL_TOKENS[-1], len(prompt) - 1)
            padded = np.zeros((2, next(size for size in _PREFILL_TOKENS if size >= end - start)), np.int32)
            padded[:, : end - start] = prompt[start:end], prompt[start + 1 : end + 1]
            span = self._span(start + padded.shape[1])
            place = np.int32(slot), np.int32(start)
            if not sampling.prompt_logprobs:
                self._cache = self._prefill(self.model.params, self._cache, padded[0], *place, span_tokens=span)
                continue
            out, self._cache = self._score_prompt(
                self.model.params, self._cache, *padded, *place, span_tokens=span, with_top=bool(sampling.top_logprobs)
            )
            out = jax.device_get(out)
            for i in range(end - start):
                before, token = prompt[start + i : start + i + 2]
                request.logprobs.append(_token_logprob(before, token, out, i, sampling.top_logprobs or 0))

    def _span(self, tokens: int) -> int:
        """Positions that attention reads: a power of two, so that few programs are compiled."""
        return min(row_length(tokens), self._capacity)

    def _decode_running(self) -> dict[str, np.ndarray]:
        types = {"temperature": np.float32, "top_k": np.int32, "top_p": np.float32, "seed": np.uint32}
        settings = {name: np.full(self.slots, getattr(Sampling, name), dtype) for name, dtype in types.items()}
        settings["end_from"] = np.zeros(self.slots, np.int32)
        allowed = self._allowed()
        # Tokens drawn ahead are wasted where constraints refuse them; where others run, nothing is saved by fewer.
        single = bool(self._running) and all(request.single_steps for request in self._running.values())
        tokens, positions = np.zeros(self.slots, np.int32), np.zeros(self.slots, np.int32)
        for slot, request in self._running.items():
            tokens[slot] = (request.tokens or request.prompt)[-1]
            positions[slot] = len(request.prompt) + len(request.tokens) - 1
            for name in ("temperature", "top_k", "top_p"):
                settings[name][slot] = getattr(request.sampling, name)
            settings["seed"][slot] = request.sampling.seed & 0xFFFFFFFF
            settings["end_from"][slot] = len(request.prompt) + request.sampling.min_tokens - 1
        with_top = any(request.sampling.top_logprobs for request in self._running.values())
        span = self._span(int(positions.max()) + self._steps)
        arguments = self.model.params, self._cache, tokens, positions, settings, allowed
        steps = 1 if single else self._steps
        out, self._cache = self._decode(*arguments, steps=steps, span_tokens=span, with_top=with_top)
        return jax.device_get(out)

    def _allowed(self) -> np.ndarray | None:
        """Bits of the ids that may be next in each slot; None where no answer is constrained, since that is faster."""
        allowed = np.full((self.slots, self._words), 0xFFFFFFFF, np.uint32)
        for slot, request in list(self._running.items()):
            if request.constraint is not None:
                try:
                    request.constraint.fill(allowed[slot])
                except InputError as error:
                    self._fail(slot, error)
        return allowed if any(request.constraint for request in self._running.values()) else None

    def _take_tokens(self, slot: int, request: GenerationRequest, out: dict[str, np.ndarray]) -> None:
        sampling, constraint = request.sampling, request.constraint
        tokens = out["tokens"].tolist()
        if constraint is not None and not np.isnan(out["logprobs"][0]):
            try:
                tokens = _accepted(request, constraint, tokens)
            except InputError as error:
                self._fail(slot, error)
                return
        for step, token in enumerate(tokens):
            if np.isnan(out["logprobs"][step]):
                self._fail(slot, _not_a_number(f"token {len(request.tokens)} of the answer"))
                return
            if (shown := sampling.top_logprobs) is not None:
                before = (request.tokens or request.prompt)[-1]
                request.logprobs.append(_token_logprob(before, token, out, step, shown))
            request.tokens.append(token)
            ended = token in self.model.tokenizer.stop_ids and not sampling.ignore_end
            if not ended:
                request.stream.add(token)
            ended |= constraint is not None and constraint.finished and step == len(tokens) - 1
            if ended or request.stream.stopped or len(request.tokens) >= sampling.max_tokens:
                self._finish(slot, request, "stop" if ended or request.stream.stopped else "length")
                break
        request.on_progress(request)

    def _fail(self, slot: int, failure: Exception) -> None:
        self._running.pop(slot).fail(failure)

    def _finish(self, slot: int, request: GenerationRequest, reason: str) -> None:
        request.stream.finish()
        request.answer = GeneratedText(
            text=request.stream.text,
            tokens=tuple(request.tokens),
            finish_reason="stop" if request.stream.stopped else reason,
            logprobs=tuple(request.logprobs),
        )
        del self._running[slot]


def _not_a_number(what: str) -> ArithmeticError:
    return ArithmeticError(
        f"{what} has a log-probability that is not a number, so no text of this model can be trusted; look at its "
        "weights, or at model.compute_dtype"
    )


def _accepted(request: GenerationRequest, constraint: TokenConstraint, tokens: list[int]) -> list[int]:
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


def _token_logprob(before: int, token: int, out: dict[str, np.ndarray], place: int, shown: int) -> TokenLogprob:
    # The likeliest are not computed where no request shows them.
    likeliest = [out[name][place, :shown].tolist() for name in TOP] if shown else [[], []]
    top = tuple(zip(*likeliest, strict=True))
    return TokenLogprob(token=token, before=before, logprob=float(out["logprobs"][place]), top=top)
