"""Sampling: an answer's settings, and the compiled functions that score, filter and choose tokens.

Shape legend: B rows, L length, V vocabulary, D hidden, W words of 32 bits that hold one bit for each id.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from diversity_jax.core.errors import InputError
from diversity_jax.model.cache import BlockReads, Cache, cached_hidden_states, decode_step
from diversity_jax.model.config import LlamaConfig
from diversity_jax.model.llama import Params, head_weight

MAX_TOP_LOGPROBS = 20
INT32_MAX = 2**31 - 1
TOP = ("top_tokens", "top_logprobs")  # results for the likeliest tokens, besides `tokens` and `logprobs` of the chosen


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """One answer's settings.

    Attributes:
      max_tokens: longest answer; 0: none, for the log-probabilities of the prompt alone.
      min_tokens: before so many tokens neither end of text nor a stop text ends the answer.
      temperature: 0 is greedy.
      top_k: only this many of the likeliest tokens; 0: all.
      top_p: only the likeliest tokens that make up this share of the probability; 1: all.
      seed: equal seeds, prompts and settings give equal answers, independent of the rest of the batch.
      stop: texts at which the answer ends; they are not part of it.
      ignore_end: continue after end of text (for measuring speed).
      top_logprobs: how many of the likeliest tokens are reported beside each chosen one; None: no log-probabilities.
      prompt_logprobs: report them of the prompt's tokens too, from the second on.
    """

    max_tokens: int = 64
    min_tokens: int = 0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    ignore_end: bool = False
    top_logprobs: int | None = None
    prompt_logprobs: bool = False

    def __post_init__(self) -> None:
        shown = self.top_logprobs
        for name, valid, expected in (
            ("max_tokens", 0 <= self.max_tokens <= INT32_MAX, f"from 0 to {INT32_MAX}"),
            ("min_tokens", 0 <= self.min_tokens <= self.max_tokens, f"from 0 to max_tokens={self.max_tokens}"),
            ("temperature", 0 <= self.temperature <= 100, "from 0 (greedy) to 100"),
            ("top_k", 0 <= self.top_k <= INT32_MAX, f"from 0 (all tokens) to {INT32_MAX}"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("top_logprobs", 0 <= (shown or 0) <= MAX_TOP_LOGPROBS, f"from 0 to {MAX_TOP_LOGPROBS}"),
            ("prompt_logprobs", shown is not None or not self.prompt_logprobs, "False where top_logprobs is None"),
            ("stop", all(self.stop), "texts that are not empty"),
        ):
            if not valid:
                raise InputError(f"{name}={getattr(self, name)}: must be {expected}")

    @property
    def filtered(self) -> bool:
        """Whether top-k or top-p restricts the choice."""
        return self.temperature > 0 and (self.top_k > 0 or self.top_p < 1)


def _reported(logits_BxV: jax.Array, tokens_B: jax.Array, size: int, with_top: bool) -> dict[str, jax.Array]:
    """Log-probabilities of tokens, before temperature and filters, and with `with_top` the likeliest of `size` ids."""
    normaliser_B = jax.nn.logsumexp(logits_BxV, axis=-1)
    out = {"logprobs": jnp.take_along_axis(logits_BxV, tokens_B[:, None], axis=-1)[:, 0] - normaliser_B}
    if with_top:
        logprobs, tokens = jax.lax.top_k(logits_BxV[:, :size], min(MAX_TOP_LOGPROBS, size))
        out |= dict(zip(TOP, (tokens, logprobs - normaliser_B[:, None]), strict=True))
    return out


def score_prompt(
    config: LlamaConfig,
    mesh: Mesh,
    vocabulary_size: int,
    params: Params,
    cache: Cache,
    tokens_BxL: jax.Array,
    following_BxL: jax.Array,
    positions_B: jax.Array,
    blocks_B: jax.Array,
    reads: BlockReads,
    *,
    with_top: bool,
) -> tuple[dict[str, jax.Array], Cache]:
    """Log-probabilities, BxL, of the token after each position, and the cache with `tokens_BxL` added.

    Args:
      following_BxL: ids of the tokens after each position.
      tokens_BxL, positions_B, blocks_B, reads: as `cached_hidden_states`.
    """
    arrays = tokens_BxL, positions_B, blocks_B, reads
    hidden_BxLxD, cache = cached_hidden_states(config, params, cache, *arrays, mesh=mesh)
    head_DxV = head_weight(config, params)

    def score(row: tuple[jax.Array, jax.Array]) -> dict[str, jax.Array]:  # row by row, since logits are large
        logits_LxV = jnp.einsum("ld,dv->lv", row[0], head_DxV, preferred_element_type=jnp.float32)
        return _reported(logits_LxV, row[1], vocabulary_size, with_top)

    return jax.lax.map(score, (hidden_BxLxD, following_BxL)), cache


def decode_tokens(
    config: LlamaConfig,
    mesh: Mesh,
    vocabulary_size: int,
    stop_ids: tuple[int, ...],
    params: Params,
    cache: Cache,
    tokens_B: jax.Array,
    positions_B: jax.Array,
    blocks_NxB: jax.Array,
    reads: BlockReads,
    settings: dict[str, jax.Array],
    allowed_BxW: jax.Array | None,
    *,
    with_top: bool,
) -> tuple[dict[str, Any], Cache]:
    """Decodes N tokens of every row.

    Ids beyond the tokenizer's, which pad the model's vocabulary, are never chosen.

    Args:
      tokens_B, positions_B: the last token of each sequence, not yet in the cache, and its position.
      blocks_NxB: the block that each token is written to.
      reads: the blocks that the rows attend to, up to the last of these tokens.
      settings: as `sample_tokens`; `end_from` int32 B: at positions before it, none of `stop_ids` may follow.
      allowed_BxW: uint32; bit i of a row is set where id i may be the FIRST of the row's tokens. The others are sampled
        without constraint, and the caller takes those that its constraint accepts. None: every id may follow.
    """
    V = config.vocab_size
    real_V = jnp.arange(V) < vocabulary_size
    ends_V = jnp.zeros(V, bool).at[jnp.array(stop_ids, jnp.int32)].set(True)
    first_BxV = None if allowed_BxW is None else _unpacked(allowed_BxW, V)

    def one_step(carry: tuple[Cache, jax.Array, jax.Array], item: tuple[jax.Array, jax.Array]) -> tuple[Any, Any]:
        (cache, tokens_B, positions_B), (first, blocks_B) = carry, item
        logits_BxV, cache = decode_step(config, params, cache, tokens_B, positions_B, blocks_B, reads, mesh=mesh)
        early_Bx1 = (positions_B < settings["end_from"])[:, None]
        possible_BxV = real_V & ~(early_Bx1 & ends_V)
        if first_BxV is not None:
            possible_BxV &= first_BxV | ~first
        chosen_B = sample_tokens(jnp.where(possible_BxV, logits_BxV, -jnp.inf), positions_B, settings)
        out = {"tokens": chosen_B, **_reported(logits_BxV, chosen_B, vocabulary_size, with_top)}
        return (cache, chosen_B, positions_B + 1), out

    steps = jnp.arange(len(blocks_NxB)) == 0, blocks_NxB
    (cache, _, _), out = jax.lax.scan(one_step, (cache, tokens_B, positions_B), steps)
    return out, cache


def _unpacked(bits_BxW: jax.Array, size: int) -> jax.Array:
    """Bits as booleans, B x `size`; ids beyond the words are False."""
    flags = (bits_BxW[:, :, None] >> jnp.arange(32, dtype=jnp.uint32)) & 1
    flags = flags.reshape(len(bits_BxW), -1)[:, :size].astype(bool)
    return jnp.pad(flags, ((0, 0), (0, size - flags.shape[1])))


def sample_tokens(logits_BxV: jax.Array, positions_B: jax.Array, settings: dict[str, jax.Array]) -> jax.Array:
    """The next token of each sequence, int32 B.

    Randomness is a function of (seed, position), independent of the batch.

    Args:
      logits_BxV: float32.
      positions_B: position of each sequence's last token.
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
    """-inf for tokens outside the top k or the smallest set of likeliest tokens with probability top-p."""
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
