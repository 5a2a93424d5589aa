"""Generation: sampling of tokens, and continuous batching of answers in the slots of one sharded key-value cache."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
import numpy as np

from diversity_jax.core.errors import InputError
from diversity_jax.evaluation.load_model import LanguageModel
from diversity_jax.evaluation.loglikelihood import row_length
from diversity_jax.model.config import LlamaConfig
from diversity_jax.model.decode import Cache, decode_step, empty_cache, prefill
from diversity_jax.model.llama import Params
from diversity_jax.model.sharding import spec

MAX_TOP_LOGPROBS = 20
_REPLACEMENT = "\ufffd"  # what the bytes of an unfinished character decode to
_PREFILL_TOKENS = (32, 128, 512)  # compiled lengths of a prompt's chunks; the last chunk is padded to the next of them
_TOP = ("top_tokens", "top_logprobs")  # of the likeliest tokens, beside `tokens` and `logprobs` of the chosen ones


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """One answer's settings.

    Attributes:
      max_tokens: longest answer.
      temperature: 0 is greedy.
      top_k: only so many likeliest tokens; 0: all.
      top_p: the likeliest tokens that hold this share of the probability; 1: all.
      seed: equal seeds, prompts and settings give equal answers, whatever else is generated beside them.
      stop: texts at which the answer ends; they are not part of it.
      ignore_end: go on after end of text (for measuring speed).
      top_logprobs: how many of the likeliest tokens are reported beside each chosen one; None: no log-probabilities.
    """

    max_tokens: int = 64
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    ignore_end: bool = False
    top_logprobs: int | None = None

    def __post_init__(self) -> None:
        for name, valid, expected in (
            ("max_tokens", self.max_tokens >= 1, "at least 1"),
            ("temperature", 0 <= self.temperature <= 100, "from 0 (greedy) to 100"),
            ("top_k", self.top_k >= 0, "at least 0 (0: all tokens)"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("top_logprobs", 0 <= (self.top_logprobs or 0) <= MAX_TOP_LOGPROBS, f"from 0 to {MAX_TOP_LOGPROBS}"),
            ("stop", all(self.stop), "texts that are not empty"),
        ):
            if not valid:
                raise InputError(f"{name}={getattr(self, name)}: must be {expected}")


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
      logprobs: of each token, where `Sampling.top_logprobs` is not None.
    """

    text: str
    tokens: tuple[int, ...]
    finish_reason: str
    logprobs: tuple[TokenLogprob, ...] = ()


class TextStream:
    """The text of one answer while its tokens arrive: complete characters only, ended before a stop text.

    Args:
      decode: ids to text.
      stop: texts that end the answer and are left out of it.

    Attributes:
      text: everything so far; final once `stopped`, or after `finish`.
      stopped: a stop text has been met.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stop: Sequence[str] = ()):
        self.text, self.stopped = "", False
        self._decode, self._stop = decode, tuple(stop)
        self._longest_stop = max(map(len, stop), default=0)
        self._ids: list[int] = []
        self._window_start, self._ids_read = 0, 0  # tokens from the start of the window are decoded with new ones
        self._characters_taken = 0

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
        search_from = max(0, len(self.text) - self._longest_stop + 1)
        self.text += window[known:]
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


@dataclass(kw_only=True, eq=False)
class GenerationRequest:
    """A prompt in the generator; set `cancelled` to free its slot.

    The generator's thread calls `on_progress` after new tokens, the last time with an `answer` or `failed` set.
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
        largest = _PREFILL_TOKENS[-1]
        self._capacity = -(-(config.max_length + steps) // largest) * largest  # positions of the cache
        self._prefill = jax.jit(partial(prefill, config, mesh=mesh), static_argnames="span_tokens", donate_argnums=1)
        decode = partial(_decode, config, mesh, model.tokenizer.vocabulary.size, steps)
        self._decode = jax.jit(decode, static_argnames=("span_tokens", "with_top"), donate_argnums=1)
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
        stream = TextStream(self.model.tokenizer.decode, sampling.stop)
        return GenerationRequest(prompt=list(prompt), sampling=sampling, stream=stream, **fields)

    def submit(
        self, prompt: Sequence[int], sampling: Sampling, on_progress: Callable[[GenerationRequest], None]
    ) -> GenerationRequest:
        """Queues a prompt; safe from any thread. `step` does the work.

        Raises:
          InputError: an empty prompt, an id outside the vocabulary, or more tokens than the model's context.
        """
        request = self._request(prompt, sampling, on_progress=on_progress)
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
          InputError: as `submit`; nothing is generated then.
        """
        settings = [sampling] * len(prompts) if isinstance(sampling, Sampling) else sampling
        requests = [self._request(*pair) for pair in zip(prompts, settings, strict=True)]
        self._waiting.extend(requests)
        while self.step():
            pass
        return [request.answer for request in requests if request.answer is not None]

    def step(self) -> bool:
        """Admits waiting prompts and extends running answers by up to `steps` tokens; False if there is no request."""
        self._admit()
        if not self._running:
            return False
        out = self._decode_running()
        for slot, request in list(self._running.items()):
            self._take_tokens(slot, request, out)
        return True

    def abandon(self) -> None:
        """After an exception in `step`: fails every request and drops the cache, which may be half written."""
        failed = list(self._running.values())
        self._running.clear()
        self._cache = None
        while self._waiting:
            failed.append(self._waiting.popleft())
        for request in failed:
            request.failed = True
            request.on_progress(request)

    def _admit(self) -> None:
        self._cache = self._cache or self._empty_cache()
        for slot in range(self.slots):
            if slot in self._running and self._running[slot].cancelled:
                del self._running[slot]
            while slot not in self._running and self._waiting:
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
        return min(row_length(tokens), self._capacity)

    def _decode_running(self) -> dict[str, np.ndarray]:
        types = {"temperature": np.float32, "top_k": np.int32, "top_p": np.float32, "seed": np.uint32}
        settings = {name: np.full(self.slots, getattr(Sampling, name), dtype) for name, dtype in types.items()}
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
            if (number := sampling.top_logprobs) is not None:
                before, logprob = (request.tokens or request.prompt)[-1], float(out["logprobs"][step, slot])
                # The likeliest are not computed where no running request shows them.
                likeliest = [out[name][step, slot, :number].tolist() for name in _TOP] if number else [[], []]
                top = tuple(zip(*likeliest, strict=True))
                request.logprobs.append(TokenLogprob(token=token, before=before, logprob=logprob, top=top))
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
            out |= dict(zip(_TOP, jax.lax.top_k(logprobs_BxV, most)[::-1], strict=True))
        return (cache, chosen_B, positions_B + 1), out

    (cache, _, _), out = jax.lax.scan(one_step, (cache, tokens_B, positions_B), length=steps)
    return out, cache


def sample_tokens(logits_BxV: jax.Array, positions_B: jax.Array, settings: dict[str, jax.Array]) -> jax.Array:
    """The next token of each sequence, int32 B.

    Randomness is a function of (seed, position) alone, so neither the batch nor its order plays a part.

    Args:
      logits_BxV: float32.
      positions_B: position of the token before.
      settings: `temperature`, `top_p` float32 B; `top_k` int32 B; `seed` uint32 B.
    """
    temperature_B, top_k_B, top_p_B = (settings[name] for name in ("temperature", "top_k", "top_p"))
    greedy_B = jnp.argmax(logits_BxV, axis=-1).astype(jnp.int32)

    def sampled_B() -> jax.Array:
        scaled_BxV = logits_BxV / jnp.maximum(temperature_B, 1e-6)[:, None]
        filtered = jnp.any((top_k_B > 0) | (top_p_B < 1))
        scaled_BxV = jax.lax.cond(filtered, lambda x: _filter(x, top_k_B, top_p_B), lambda x: x, scaled_BxV)
        keys_B = jax.vmap(lambda seed, position: jax.random.fold_in(jax.random.key(seed), position))(
            settings["seed"], positions_B
        )
        # The Gumbel-max trick: the argmax of logits plus Gumbel noise is a sample of their softmax.
        noise_BxV = jax.vmap(lambda key: jax.random.gumbel(key, logits_BxV.shape[1:]))(keys_B)
        return jnp.where(temperature_B > 0, jnp.argmax(scaled_BxV + noise_BxV, axis=-1).astype(jnp.int32), greedy_B)

    return jax.lax.cond(jnp.any(temperature_B > 0), sampled_B, lambda: greedy_B)


def _filter(scaled_BxV: jax.Array, top_k_B: jax.Array, top_p_B: jax.Array) -> jax.Array:
    """-inf for tokens outside the top k or the smallest likeliest set that holds top-p; the likeliest always stays."""
    V = scaled_BxV.shape[-1]
    order_BxV = jnp.argsort(-scaled_BxV, axis=-1)
    sorted_BxV = jnp.take_along_axis(scaled_BxV, order_BxV, axis=-1)
    rank_V = jnp.arange(V)
    within_k_BxV = rank_V < jnp.where(top_k_B > 0, top_k_B, V)[:, None]
    shares_BxV = jax.nn.softmax(jnp.where(within_k_BxV, sorted_BxV, -jnp.inf), axis=-1)
    before_BxV = jnp.cumsum(shares_BxV, axis=-1) - shares_BxV
    keep_BxV = within_k_BxV & ((before_BxV < top_p_B[:, None]) | (rank_V == 0))
    rows_Bx1 = jnp.arange(scaled_BxV.shape[0])[:, None]
    filtered_BxV = jnp.where(keep_BxV, sorted_BxV, -jnp.inf)
    return jnp.full_like(scaled_BxV, -jnp.inf).at[rows_Bx1, order_BxV].set(filtered_BxV)
