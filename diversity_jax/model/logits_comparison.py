"""How far two implementations of a model are apart: relative to the spread of the logits, and in what they predict.

An absolute bound fails right models: rounding grows with the logits, which real models have up to 45 and more.
"""

from dataclasses import dataclass
import os

import numpy as np

from diversity_jax.core.errors import InputError
from diversity_jax.model.checkpoint_io.hugging_face import import_hugging_face

TOLERANCE = 1e-3  # of the relative difference of two right implementations in float32; seen: up to 1e-4


@dataclass(frozen=True, kw_only=True)
class LogitsComparison:
    """Two implementations' logits for the same tokens."""

    tokens: int  # positions compared
    largest: float  # absolute difference of two logits
    spread: float  # standard deviation of the logits over the vocabulary, mean of all positions
    same_argmax: float  # share of positions where both find the same token the likeliest, or the same two as likely
    kl_nats: float  # Kullback-Leibler divergence of the predictions, the largest of all positions

    @property
    def relative(self) -> float:
        """The largest difference in parts of the spread."""
        return self.largest / self.spread if self.spread else float("inf")

    @property
    def is_same(self) -> bool:
        """Whether rounding explains the difference."""
        return self.relative <= TOLERANCE and self.same_argmax == 1

    def __str__(self) -> str:
        return (
            f"largest difference {self.largest:.1e}, {self.relative:.1e} of the logits' spread {self.spread:.3g}; same "
            f"likeliest token at {self.same_argmax:.2%} of {self.tokens:,} positions; KL up to {self.kl_nats:.1e} nats"
        )


def compare_logits(ours_NxV: np.ndarray, theirs_NxV: np.ndarray) -> LogitsComparison:
    """Compares float32 logits of N positions; numbers that are not finite count as infinitely far apart."""
    ours, theirs = (np.asarray(x, np.float64) for x in (ours_NxV, theirs_NxV))
    if not np.all(np.isfinite(ours)) or not np.all(np.isfinite(theirs)):
        return LogitsComparison(tokens=len(ours), largest=np.inf, spread=1.0, same_argmax=0.0, kl_nats=np.inf)
    largest, spread = float(np.max(np.abs(ours - theirs))), float(np.mean(np.std(theirs, axis=-1)))
    log_p, log_q = (x - np.logaddexp.reduce(x, axis=-1, keepdims=True) for x in (theirs, ours))
    # Where theirs has two logits as near as the two implementations are, either may be the larger.
    chosen = np.take_along_axis(theirs, np.argmax(ours, axis=-1)[:, None], axis=-1)[:, 0]
    return LogitsComparison(
        tokens=len(ours),
        largest=largest,
        spread=spread,
        same_argmax=float(np.mean(theirs.max(axis=-1) - chosen <= 2 * largest * (largest < spread * TOLERANCE))),
        kl_nats=float(np.max(np.sum(np.exp(log_p) * (log_p - log_q), axis=-1))),
    )


def compare_with_transformers(folder: str | os.PathLike, *, length: int = 64) -> LogitsComparison:
    """Our float32 logits and transformers', of a Hugging Face folder, for the same 2 x `length` random tokens.

    Raises:
      InputError: transformers or torch is not installed, or the folder holds no model that can be read.
    """
    try:
        import torch
        from transformers import AutoModelForCausalLM
    except ImportError as error:
        raise InputError(f"this needs transformers and torch ({error}); install diversity_jax[hf]") from None
    import jax

    from diversity_jax.model.llama import logits

    config, params = import_hugging_face(folder, compute_dtype="float32", scan_layers=True)
    shape = (2, min(length, config.max_length))
    tokens_BxL = np.random.default_rng(0).integers(0, config.vocab_size, shape, dtype=np.int32)
    with jax.default_matmul_precision("highest"):
        ours = np.asarray(jax.jit(logits, static_argnums=0)(config, params, tokens_BxL))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        theirs = model(torch.from_numpy(tokens_BxL).long()).logits.float().numpy()
    return compare_logits(*(x.reshape(-1, config.vocab_size) for x in (ours, theirs)))
