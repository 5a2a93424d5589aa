"""How the next token is chosen: greedy, temperature, top-k, top-p; each sequence by its own settings and its own
randomness.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from diversity_jax.core.errors import InputError

MAX_TOP_LOGPROBS = 20


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """One answer's settings.

    Attributes:
      max_tokens: longest answer.
      temperature: 0 is greedy.
      top_k: only so many likeliest tokens; 0: all.
      top_p: the likeliest tokens that hold this share of the probability; 1: all.
      seed: equal seeds, prompts and settings give equal answers, whoever else is being served.
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

    def __post_init__(self):
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


def choose(logits_BxV: jax.Array, positions_B: jax.Array, settings: dict[str, jax.Array]) -> jax.Array:
    """The next token of each sequence, int32 B.

    Randomness is a function of (seed, position) alone, so neither the batch nor its order plays a part.

    Args:
      logits_BxV: float32.
      positions_B: position of the token before.
      settings: `temperature`, `top_p` float32 B; `top_k` int32 B; `seed` uint32 B.
    """
    greedy_B = jnp.argmax(logits_BxV, axis=-1).astype(jnp.int32)

    def sampled():
        temperature_Bx1 = jnp.maximum(settings["temperature"], 1e-6)[:, None]
        scaled_BxV = logits_BxV / temperature_Bx1
        filtered = (settings["top_k"] > 0) | (settings["top_p"] < 1)
        kept_BxV = jax.lax.cond(
            jnp.any(filtered), lambda x: _filter(x, settings["top_k"], settings["top_p"]), lambda x: x, scaled_BxV
        )
        keys_B = jax.vmap(lambda seed, position: jax.random.fold_in(jax.random.key(seed), position))(
            settings["seed"], positions_B
        )
        noise_BxV = jax.vmap(lambda key: jax.random.gumbel(key, logits_BxV.shape[1:]))(keys_B)
        return jnp.where(
            settings["temperature"] > 0, jnp.argmax(kept_BxV + noise_BxV, axis=-1).astype(jnp.int32), greedy_B
        )

    return jax.lax.cond(jnp.any(settings["temperature"] > 0), sampled, lambda: greedy_B)


def _filter(scaled_BxV: jax.Array, top_k_B: jax.Array, top_p_B: jax.Array) -> jax.Array:
    """-inf for tokens outside the top k, or outside the smallest likeliest set that holds top-p; the likeliest always
    stays.
    """
    V = scaled_BxV.shape[-1]
    order_BxV = jnp.argsort(-scaled_BxV, axis=-1)
    sorted_BxV = jnp.take_along_axis(scaled_BxV, order_BxV, axis=-1)
    rank_V = jnp.arange(V)
    within_k = rank_V < jnp.where(top_k_B > 0, top_k_B, V)[:, None]
    masked_BxV = jnp.where(within_k, sorted_BxV, -jnp.inf)
    shares_BxV = jax.nn.softmax(masked_BxV, axis=-1)
    before_BxV = jnp.cumsum(shares_BxV, axis=-1) - shares_BxV
    keep_BxV = within_k & ((before_BxV < top_p_B[:, None]) | (rank_V == 0))
    rows = jnp.arange(scaled_BxV.shape[0])[:, None]
    return jnp.full_like(scaled_BxV, -jnp.inf).at[rows, order_BxV].set(jnp.where(keep_BxV, sorted_BxV, -jnp.inf))
