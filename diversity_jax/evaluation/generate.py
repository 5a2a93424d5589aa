"""Text out of tokens as they come: whole characters only, ended at a stop text, and nothing shown that a stop text may
still take back.

Answers from a model: a cache of slots that requests enter and leave as they come and end (continuous batching), sharded
  over a mesh.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
import functools
import threading
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
import numpy as np

from diversity_jax.core.errors import InputError
from diversity_jax.evaluation.load_model import LanguageModel
from diversity_jax.evaluation.prefix_packing import row_length
from diversity_jax.evaluation.sampling import MAX_TOP_LOGPROBS, Sampling, choose
from diversity_jax.model.config import LlamaConfig
from diversity_jax.model.decode import Cache, decode_step, empty_cache, prefill
from diversity_jax.model.llama import Params
from diversity_jax.model.sharding import spec

_BROKEN = "\ufffd"  # what an unfinished character decodes to


class TextStream:
    """The text of one answer, growing.

    Args:
      decode: ids to text.
      stop: texts that end the answer and are left out of it.

    Attributes:
      text: everything so far; final once `stopped`, or after `finish`.
      stopped: a stop text has been met.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stop: Sequence[str] = ()):
        self._decode, self._stop = decode, tuple(stop)
        self._longest = max(map(len, stop), default=0)
        self._ids: list[int] = []
        self._window, self._read, self._sent = (
            0,
            0,
            0,
        )  # tokens decoded together with new ones; tokens read; characters handed out
        self.text = ""
        self.stopped = False

    def add(self, token: int) -> None:
        """One more token. Only the last few are decoded again, since how a token reads depends on its neighbours."""
        self._ids.append(token)
        self._read_new(last=False)

    def finish(self) -> None:
        """No more tokens: an unfinished character shows as it is."""
        if not self.stopped:
            self._read_new(last=True)

    def _read_new(self, last: bool) -> None:
        whole = self._decode(self._ids[self._window :])
        if whole.endswith(_BROKEN) and not last:
            return
        known = len(self._decode(self._ids[self._window : self._read]))
        before = len(self.text)
        self.text += whole[known:]
        self._window, self._read = self._read, len(self._ids)
        places = [
            place for text in self._stop if (place := self.text.find(text, max(0, before - self._longest + 1))) >= 0
        ]
        if places:
            self.text, self.stopped = self.text[: min(places)], True

    def take(self, *, last: bool = False) -> str:
        """What is new and certain; with `last`, all that is left."""
        end = len(self.text) if last or self.stopped else len(self.text) - self._doubtful()
        new = self.text[self._sent : end]
        self._sent = max(self._sent, end)
        return new

    def _doubtful(self) -> int:
        """Characters at the end that may begin a stop text."""
        for length in range(min(self._longest - 1, len(self.text)), 0, -1):
            if any(text.startswith(self.text[-length:]) for text in self._stop):
                return length
        return 0


_PIECES = (32, 128, 512)  # tokens of a prompt read at once; a last piece is padded to the least that holds it
_SMALLEST_SPAN = 128


@dataclass(frozen=True, kw_only=True)
class TokenLogprob:
    """A chosen token's log-probability in nats (of the model, before temperature and filters), and the likeliest
    tokens' at its place.

    `before` is the token that it follows, on which its spelling may depend.
    """

    token: int
    before: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One finished answer.

    Attributes:
      text: without its stop text and end-of-text token.
      tokens: all ids generated, the ones that ended it among them.
      finish_reason: `stop` (a stop text or end of text) or `length`.
      logprobs: one a token where they were asked for.
    """

    text: str
    tokens: tuple[int, ...]
    finish_reason: str
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(kw_only=True, eq=False)
class Request:
    """A prompt on its way through the generator.

    `on_progress` is called by the thread that runs the generator, after new tokens and once more when `answer` is there
    or it `failed`; set `cancelled` to be forgotten.
    """

    prompt: list[int]
    sampling: Sampling
    stream: TextStream
    on_progress: Callable[["Request"], None] = lambda request: None
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    answer: Answer | None = None
    cancelled: bool = False
    failed: bool = False


class Generator:
    """Runs many answers at once in `slots` places of one cache.

    Args:
      slots: answers that grow together; rounded up to a multiple of the devices that share the rows.
      steps: tokens decoded in one call of the compiled program; what a finished answer has too much is thrown away.
    """

    def __init__(self, model: LanguageModel, *, slots: int = 16, steps: int = 8):
        config, mesh = model.config, model.mesh
        devices = mesh.shape["data"] * mesh.shape["fsdp"]
        self.model, self.slots, self._steps = model, -(-slots // devices) * devices, steps
        self.max_length = config.max_length
        self._capacity = -(-(config.max_length + steps) // _PIECES[-1]) * _PIECES[-1]
        self._place = NamedSharding(mesh, spec("batch", None, "kv_heads", None))
        ids = model.tokenizer.vocabulary.size
        self._prefill = jax.jit(functools.partial(prefill, config), static_argnames="span_tokens", donate_argnums=1)
        self._decode = jax.jit(
            functools.partial(_decode, config, ids, steps),
            static_argnames=("span_tokens", "with_top"),
            donate_argnums=1,
        )
        self._cache: Cache | None = None
        self._waiting: deque[Request] = deque()
        self._lock = threading.Lock()
        self._running: list[Request | None] = [None] * self.slots

    def check(self, prompt: Sequence[int], sampling: Sampling) -> None:
        """Refuses what does not fit.

        Raises:
          InputError: an empty prompt, an id outside the vocabulary, or more tokens than the model's context.
        """
        if not prompt:
            raise InputError("the prompt is empty; give at least one token")
        if min(prompt) < 0 or max(prompt) >= self.model.config.vocab_size:
            raise InputError(
                f"the prompt holds an id outside the model's vocabulary of {self.model.config.vocab_size:,}"
            )
        if len(prompt) + sampling.max_tokens > self.max_length:
            raise InputError(
                f"the prompt has {len(prompt):,} tokens and asks for up to {sampling.max_tokens:,} more; "
                f"the model's context holds {self.max_length:,}: shorten the prompt or lower max_tokens"
            )

    def submit(
        self, prompt: Sequence[int], sampling: Sampling, on_progress: Callable[[Request], None] = lambda request: None
    ) -> Request:
        """Puts a prompt in line; safe from any thread. `step` does the work.

        Raises:
          InputError: as `check`.
        """
        self.check(prompt, sampling)
        request = Request(
            prompt=list(prompt),
            sampling=sampling,
            stream=TextStream(self.model.tokenizer.decode, sampling.stop),
            on_progress=on_progress,
        )
        with self._lock:
            self._waiting.append(request)
        return request

    @property
    def load(self) -> int:
        """Requests waiting or running."""
        return len(self._waiting) + sum(request is not None for request in self._running)

    def generate(self, prompts: Sequence[Sequence[int]], sampling: Sampling | Sequence[Sampling]) -> list[Answer]:
        """Answers to all prompts, in order.

        Raises:
          InputError: a prompt does not fit; nothing is generated then.
        """
        settings = [sampling] * len(prompts) if isinstance(sampling, Sampling) else list(sampling)
        for prompt, one in zip(prompts, settings, strict=True):
            self.check(prompt, one)
        requests = [self.submit(prompt, one) for prompt, one in zip(prompts, settings, strict=True)]
        while any(request.answer is None for request in requests):
            self.step()
        return [request.answer for request in requests]

    def step(self) -> bool:
        """Lets waiting prompts in, and grows every running answer by up to `steps` tokens; False where there was
        nothing to do.
        """
        with jax.set_mesh(self.model.mesh):
            self._admit()
            running = [(slot, request) for slot, request in enumerate(self._running) if request is not None]
            if not running:
                return False
            out = self._decode_running(running)
        for slot, request in running:
            self._take_tokens(slot, request, out)
        return True

    def abandon(self) -> None:
        """After an exception in `step`: gives up every request and the cache, which may be half written."""
        with self._lock:
            given_up = [*self._waiting, *(request for request in self._running if request is not None)]
            self._waiting.clear()
        self._running = [None] * self.slots
        self._cache = None
        for request in given_up:
            request.failed = True
            request.on_progress(request)

    def _admit(self) -> None:
        if self._cache is None:
            make = functools.partial(empty_cache, self.model.config, self.slots, self._capacity)
            self._cache = jax.jit(make, out_shardings=self._place)()
        for slot in range(self.slots):
            if self._running[slot] is not None and self._running[slot].cancelled:
                self._running[slot] = None
            while self._running[slot] is None and self._waiting:
                with self._lock:
                    request = self._waiting.popleft()
                if not request.cancelled:
                    self._read_prompt(slot, request.prompt)
                    self._running[slot] = request

    def _read_prompt(self, slot: int, prompt: Sequence[int]) -> None:
        """All but the last token go into the cache; that one is decoded first."""
        for start in range(0, len(prompt) - 1, _PIECES[-1]):
            piece = prompt[start : min(start + _PIECES[-1], len(prompt) - 1)]
            padded = np.zeros(next(size for size in _PIECES if size >= len(piece)), np.int32)
            padded[: len(piece)] = piece
            span = self._span(start + len(padded))
            self._cache = self._prefill(
                self.model.params, self._cache, padded, np.int32(slot), np.int32(start), span_tokens=span
            )

    def _span(self, tokens: int) -> int:
        return min(row_length(tokens, _SMALLEST_SPAN), self._capacity)

    def _decode_running(self, running: Sequence[tuple[int, Request]]) -> dict[str, np.ndarray]:
        settings = {
            "temperature": np.zeros(self.slots, np.float32),
            "top_k": np.zeros(self.slots, np.int32),
            "top_p": np.ones(self.slots, np.float32),
            "seed": np.zeros(self.slots, np.uint32),
        }
        tokens, positions = np.zeros(self.slots, np.int32), np.zeros(self.slots, np.int32)
        for slot, request in running:
            tokens[slot] = (request.tokens or request.prompt)[-1]
            positions[slot] = len(request.prompt) + len(request.tokens) - 1
            for name, values in settings.items():
                values[slot] = (
                    getattr(request.sampling, name) & 0xFFFFFFFF if name == "seed" else getattr(request.sampling, name)
                )
        wants_top = any(request.sampling.top_logprobs for _, request in running)
        span = self._span(int(positions.max()) + self._steps)
        out, self._cache = self._decode(
            self.model.params, self._cache, tokens, positions, settings, span_tokens=span, with_top=wants_top
        )
        return jax.device_get(out)

    def _take_tokens(self, slot: int, request: Request, out: dict[str, np.ndarray]) -> None:
        sampling = request.sampling
        for step in range(self._steps):
            token = int(out["tokens"][step, slot])
            before = (request.tokens or request.prompt)[-1]
            request.tokens.append(token)
            if sampling.top_logprobs is not None:
                request.logprobs.append(_logprob(out, step, slot, sampling.top_logprobs, before))
            ended = token in self.model.tokenizer.stop_ids and not sampling.ignore_end
            if not ended:
                request.stream.add(token)
            if ended or request.stream.stopped or len(request.tokens) >= sampling.max_tokens:
                request.stream.finish()
                request.answer = Answer(
                    text=request.stream.text,
                    tokens=tuple(request.tokens),
                    finish_reason="stop" if ended or request.stream.stopped else "length",
                    logprobs=tuple(request.logprobs),
                )
                self._running[slot] = None
                break
        request.on_progress(request)


def _logprob(out: dict[str, np.ndarray], step: int, slot: int, top: int, before: int) -> TokenLogprob:
    pairs = ()
    if top:
        pairs = tuple(
            zip(
                out["top_tokens"][step, slot, :top].tolist(),
                out["top_logprobs"][step, slot, :top].tolist(),
                strict=True,
            )
        )
    return TokenLogprob(
        token=int(out["tokens"][step, slot]), before=before, logprob=float(out["logprobs"][step, slot]), top=pairs
    )


def _decode(
    config: LlamaConfig,
    ids: int,
    steps: int,
    params: Params,
    cache: Cache,
    tokens_B: jax.Array,
    positions_B: jax.Array,
    settings: dict[str, jax.Array],
    *,
    span_tokens: int,
    with_top: bool,
) -> tuple[dict[str, Any], Cache]:
    """`steps` tokens of every slot. Ids beyond the tokenizer's, which pad the model's vocabulary, are never chosen."""

    def one(carry, _):
        cache, tokens_B, positions_B = carry
        logits_BxV, cache = decode_step(config, params, cache, tokens_B, positions_B, span_tokens=span_tokens)
        logits_BxV = jnp.where(jnp.arange(config.vocab_size) < ids, logits_BxV, -jnp.inf)
        chosen_B = choose(logits_BxV, positions_B, settings)
        logprobs_BxV = jax.nn.log_softmax(logits_BxV, axis=-1)
        out = {"tokens": chosen_B, "logprobs": jnp.take_along_axis(logprobs_BxV, chosen_B[:, None], axis=-1)[:, 0]}
        if with_top:
            out["top_logprobs"], out["top_tokens"] = jax.lax.top_k(
                logprobs_BxV, min(MAX_TOP_LOGPROBS, config.vocab_size)
            )
        return (cache, chosen_B, positions_B + 1), out

    (cache, _, _), out = jax.lax.scan(one, (cache, tokens_B, positions_B), length=steps)
    return out, cache
