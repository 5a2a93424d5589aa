"""Generation: many answers at once in the slots of one key-value cache, which prompts enter and leave as they come and
end (continuous batching), sharded over a mesh.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
import functools
import threading
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
import numpy as np

from diversity_jax.core.errors import InputError
from diversity_jax.evaluation.load_model import LanguageModel
from diversity_jax.evaluation.loglikelihood import row_length
from diversity_jax.evaluation.sampling import MAX_TOP_LOGPROBS, Sampling, TextStream, sample_tokens
from diversity_jax.model.config import LlamaConfig
from diversity_jax.model.decode import Cache, decode_step, empty_cache, prefill
from diversity_jax.model.llama import Params
from diversity_jax.model.sharding import spec

_PREFILL_TOKENS = (32, 128, 512)  # compiled lengths of a prompt's chunks; the last chunk is padded to the next of them
_SMALLEST_SPAN = 128  # positions of the cache that attention reads at least


@dataclass(frozen=True, kw_only=True)
class TokenLogprob:
    """A chosen token's log-probability in nats (of the model, before temperature and filters), and the likeliest
    tokens' in its stead.

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
      logprobs: one a token where `Sampling.top_logprobs` asks for them.
    """

    text: str
    tokens: tuple[int, ...]
    finish_reason: str
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(kw_only=True, eq=False)
class GenerationRequest:
    """A prompt on its way through the generator.

    `on_progress` is called by the thread that runs the generator, after new tokens and once more when `answer` is there
    or it `failed`; set `cancelled` to free its slot.
    """

    prompt: list[int]
    sampling: Sampling
    stream: TextStream
    on_progress: Callable[["GenerationRequest"], None] = lambda request: None
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    answer: GeneratedText | None = None
    cancelled: bool = False
    failed: bool = False


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
        self.max_length = config.max_length
        largest = _PREFILL_TOKENS[-1]
        self._capacity = -(-(config.max_length + steps) // largest) * largest  # positions of the cache
        self._prefill = jax.jit(
            functools.partial(prefill, config, mesh=mesh), static_argnames="span_tokens", donate_argnums=1
        )
        self._decode = jax.jit(
            functools.partial(_decode, config, mesh, model.tokenizer.vocabulary.size, steps),
            static_argnames=("span_tokens", "with_top"),
            donate_argnums=1,
        )
        self._empty_cache = jax.jit(
            functools.partial(empty_cache, config, self.slots, self._capacity),
            out_shardings=NamedSharding(mesh, spec("batch", None, "kv_heads", None)),
        )
        self._cache: Cache | None = None
        self._waiting: deque[GenerationRequest] = deque()
        self._lock = threading.Lock()
        self._running: dict[int, GenerationRequest] = {}  # by slot

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
        self,
        prompt: Sequence[int],
        sampling: Sampling,
        on_progress: Callable[[GenerationRequest], None] = lambda request: None,
    ) -> GenerationRequest:
        """Queues a prompt; safe from any thread. `step` does the work.

        Raises:
          InputError: as `check`.
        """
        self.check(prompt, sampling)
        stream = TextStream(self.model.tokenizer.decode, sampling.stop)
        request = GenerationRequest(prompt=list(prompt), sampling=sampling, stream=stream, on_progress=on_progress)
        with self._lock:
            self._waiting.append(request)
        return request

    @property
    def load(self) -> int:
        """Requests waiting or running."""
        return len(self._waiting) + len(self._running)

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling | Sequence[Sampling]
    ) -> list[GeneratedText]:
        """Answers to all prompts, in order.

        Raises:
          InputError: a prompt does not fit; nothing is generated then.
        """
        settings = [sampling] * len(prompts) if isinstance(sampling, Sampling) else sampling
        pairs = list(zip(prompts, settings, strict=True))
        for pair in pairs:
            self.check(*pair)
        requests = [self.submit(*pair) for pair in pairs]
        while self.step():
            pass
        return [request.answer for request in requests if request.answer is not None]

    def step(self) -> bool:
        """Admits waiting prompts, and extends every running answer by up to `steps` tokens; False if there is no
        request.
        """
        self._admit()
        if not self._running:
            return False
        out = self._decode_running()
        for slot, request in list(self._running.items()):
            self._take_tokens(slot, request, out)
        return True

    def abandon(self) -> None:
        """After an exception in `step`: fails every request and drops the cache, which may be half written."""
        with self._lock:
            failed = [*self._waiting, *self._running.values()]
            self._waiting.clear()
        self._running.clear()
        self._cache = None
        for request in failed:
            request.failed = True
            request.on_progress(request)

    def _admit(self) -> None:
        if self._cache is None:
            self._cache = self._empty_cache()
        for slot in range(self.slots):
            if slot in self._running and self._running[slot].cancelled:
                del self._running[slot]
            while slot not in self._running and self._waiting:
                with self._lock:
                    request = self._waiting.popleft()
                if not request.cancelled:
                    self._read_prompt(slot, request.prompt)
                    self._running[slot] = request

    def _read_prompt(self, slot: int, prompt: Sequence[int]) -> None:
        """Puts all but the last token into the cache; that one is decoded first."""
        for start in range(0, len(prompt) - 1, _PREFILL_TOKENS[-1]):
            chunk = prompt[start : min(start + _PREFILL_TOKENS[-1], len(prompt) - 1)]
            padded = np.zeros(next(size for size in _PREFILL_TOKENS if size >= len(chunk)), np.int32)
            padded[: len(chunk)] = chunk
            span = self._span(start + len(padded))
            self._cache = self._prefill(
                self.model.params, self._cache, padded, np.int32(slot), np.int32(start), span_tokens=span
            )

    def _span(self, tokens: int) -> int:
        """Positions that attention reads: a power of two, so that few programs are compiled."""
        return min(row_length(tokens, _SMALLEST_SPAN), self._capacity)

    def _decode_running(self) -> dict[str, np.ndarray]:
        settings = {
            "temperature": np.zeros(self.slots, np.float32),
            "top_k": np.zeros(self.slots, np.int32),
            "top_p": np.ones(self.slots, np.float32),
            "seed": np.zeros(self.slots, np.uint32),
        }
        tokens, positions = np.zeros(self.slots, np.int32), np.zeros(self.slots, np.int32)
        for slot, request in self._running.items():
            tokens[slot] = (request.tokens or request.prompt)[-1]
            positions[slot] = len(request.prompt) + len(request.tokens) - 1
            for name in ("temperature", "top_k", "top_p"):
                settings[name][slot] = getattr(request.sampling, name)
            settings["seed"][slot] = request.sampling.seed & 0xFFFFFFFF
        with_top = any(request.sampling.top_logprobs for request in self._running.values())
        span = self._span(int(positions.max()) + self._steps)
        out, self._cache = self._decode(
            self.model.params, self._cache, tokens, positions, settings, span_tokens=span, with_top=with_top
        )
        return jax.device_get(out)

    def _take_tokens(self, slot: int, request: GenerationRequest, out: dict[str, np.ndarray]) -> None:
        sampling = request.sampling
        for step in range(self._steps):
            token = int(out["tokens"][step, slot])
            if sampling.top_logprobs is not None:
                before = (request.tokens or request.prompt)[-1]
                request.logprobs.append(_logprob(out, (step, slot), sampling.top_logprobs, before))
            request.tokens.append(token)
            ended = token in self.model.tokenizer.stop_ids and not sampling.ignore_end
            if not ended:
                request.stream.add(token)
            if ended or request.stream.stopped or len(request.tokens) >= sampling.max_tokens:
                request.stream.finish()
                request.answer = GeneratedText(
                    text=request.stream.text,
                    tokens=tuple(request.tokens),
                    finish_reason="stop" if ended or request.stream.stopped else "length",
                    logprobs=tuple(request.logprobs),
                )
                del self._running[slot]
                break
        request.on_progress(request)


def _logprob(out: dict[str, np.ndarray], index: tuple[int, int], top: int, before: int) -> TokenLogprob:
    likeliest: tuple[tuple[int, float], ...] = ()
    if top:
        tokens, logprobs = (out[name][index][:top].tolist() for name in ("top_tokens", "top_logprobs"))
        likeliest = tuple(zip(tokens, logprobs, strict=True))
    return TokenLogprob(
        token=int(out["tokens"][index]), before=before, logprob=float(out["logprobs"][index]), top=likeliest
    )


def _decode(
    config: LlamaConfig,
    mesh: Mesh,
    vocabulary_size: int,
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

    def one_step(carry: tuple[Cache, jax.Array, jax.Array], _: None) -> tuple[Any, dict[str, jax.Array]]:
        cache, tokens_B, positions_B = carry
        logits_BxV, cache = decode_step(
            config, params, cache, tokens_B, positions_B, span_tokens=span_tokens, mesh=mesh
        )
        logits_BxV = jnp.where(jnp.arange(config.vocab_size) < vocabulary_size, logits_BxV, -jnp.inf)
        chosen_B = sample_tokens(logits_BxV, positions_B, settings)
        logprobs_BxV = jax.nn.log_softmax(logits_BxV, axis=-1)
        out = {"tokens": chosen_B, "logprobs": jnp.take_along_axis(logprobs_BxV, chosen_B[:, None], axis=-1)[:, 0]}
        if with_top:
            most = min(MAX_TOP_LOGPROBS, config.vocab_size)
            out["top_logprobs"], out["top_tokens"] = jax.lax.top_k(logprobs_BxV, most)
        return (cache, chosen_B, positions_B + 1), out

    (cache, _, _), out = jax.lax.scan(one_step, (cache, tokens_B, positions_B), length=steps)
    return out, cache
