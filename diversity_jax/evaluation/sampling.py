"""How the next token is chosen (greedy, temperature, top-k, top-p), and the text of an answer as its tokens arrive."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from diversity_jax.core.errors import InputError

MAX_TOP_LOGPROBS = 20
_REPLACEMENT = "\ufffd"  # what the bytes of an unfinished character decode to


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
        if self.max_tokens < 1:
            raise InputError(f"max_tokens={self.max_tokens}: must be at least 1")
        if not 0 <= self.temperature <= 100:
            raise InputError(f"temperature={self.temperature}: must be from 0 (greedy) to 100")
        if self.top_k < 0:
            raise InputError(f"top_k={self.top_k}: must be at least 0 (0: all tokens)")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p={self.top_p}: must be above 0 and at most 1")
        if self.top_logprobs is not None and not 0 <= self.top_logprobs <= MAX_TOP_LOGPROBS:
            raise InputError(f"top_logprobs={self.top_logprobs}: must be from 0 to {MAX_TOP_LOGPROBS}")
        if any(not text for text in self.stop):
            raise InputError("stop: holds an empty text; leave it out")


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
    """-inf for tokens outside the top k, or outside the smallest likeliest set that holds top-p; the likeliest always
    stays.
    """
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
        self._decode, self._stop = decode, tuple(stop)
        self._longest_stop = max(map(len, stop), default=0)
        self._ids: list[int] = []
        self._window_start, self._ids_read = 0, 0  # tokens from the start of the window are decoded with new ones
        self._characters_taken = 0
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
