"""How well a language model predicts documents: perplexity, bits per byte, and the gap between two models.

Every document is scored by itself: an end-of-text token, which a model saw between documents, and then its tokens, each
predicted once. A document longer than the context is read in overlapping windows: each starts a stride after the one
before and scores only the tokens that are new in it, so every token has at least (context - stride) tokens before it;
stride 1 gives each the full context.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from diversity_jax.core.errors import InputError
from diversity_jax.core.json_fields import read_fields
from diversity_jax.embedders import batches
from diversity_jax.metrics.registry import DocumentFeatures, Figures, Nats, StageSettings, stage

_TEXTS = 1024


class CausalModel(Protocol):
    """A model that predicts tokens: its name in reports, its longest input, the token before every document."""

    label: str
    context_tokens: int
    first_token: int

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Ids of all texts, concatenated [tokens], and the number of each text's tokens [texts]."""
        ...

    def nats(self, inputs_BxL: np.ndarray, targets_BxL: np.ndarray) -> np.ndarray:
        """-log p(target | inputs up to its position) of every position: float32 [B, L]."""
        ...


def perplexity_gap(small: Nats, large: Nats) -> float | None:
    """|perplexity under the smaller model - under the larger|. Paper (arXiv 2410.15226): GPT-2-L and GPT-2-XL."""
    first, second = small.perplexity(), large.perplexity()
    return None if first is None or second is None else abs(first - second)


def windows(length: int, context: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """(start, end, first scored) of every window over `length` predictions, each of which one window scores.

    Prediction i reads the inputs from its window's start to i.
    """
    start, scored = 0, 0
    while scored < length:
        end = min(start + context, length)
        yield start, end, scored
        scored = end
        # The last window reads as far back as the context allows.
        start = max(0, min(start + stride, length - context))


def document_nats(
    texts: Sequence[str], model: CausalModel, *, stride: int | None = None, batch_tokens: int = 8192
) -> Nats:
    """Scores every token of every document.

    Args:
      stride: tokens between windows of a document longer than the context; None for half the context, 1 for the exact
        figure.
      batch_tokens: of a batch on the device, which has at least one window.

    Raises:
      InputError: a stride outside 1 to the context.
    """
    context = model.context_tokens
    stride = stride or max(1, context // 2)
    if not 1 <= stride <= context:
        raise InputError(f"stride={stride}: expected 1 to the context, {context} tokens")
    nats, tokens = np.zeros(len(texts)), np.zeros(len(texts), np.int64)
    for begin in range(0, len(texts), _TEXTS):
        ids, lengths = model.encode(texts[begin : begin + _TEXTS])
        tokens[begin : begin + len(lengths)] = lengths
        rows, owners = [], []
        for number, text_ids in enumerate(np.split(np.asarray(ids, np.int64), np.cumsum(lengths)[:-1])):
            tokens_of_text = np.concatenate([[model.first_token], text_ids])
            for start, end, first in windows(len(text_ids), context, stride):
                rows.append(tokens_of_text[start : end + 1])
                owners.append((begin + number, first - start))
        for numbers, tokens_BxL, mask_BxL in batches(rows, batch_tokens, extra=1):
            scores_BxL = model.nats(tokens_BxL[:, :-1], tokens_BxL[:, 1:])
            for row, number in enumerate(numbers.tolist()):
                owner, skip = owners[number]
                nats[owner] += scores_BxL[row, skip : int(mask_BxL[row].sum()) - 1].sum(dtype=np.float64)
    sizes = np.array([len(text.encode("utf-8", "surrogatepass")) for text in texts], np.int64)
    return Nats(nats=nats, tokens=tokens, utf8_bytes=sizes)


class JaxLlama:
    """A checkpoint of this project, or a Llama in a Hugging Face folder, on JAX's default device.

    Args:
      folder: a training run, what `model.convert import` wrote, or a Hugging Face folder.
      encode, first_token: a tokenizer's `encode_batch`, and the token that texts began with in training.
      context_tokens: None for the model's `max_length`.
    """

    def __init__(self, folder: str, encode: Callable, first_token: int, *, context_tokens: int | None = None):
        from diversity_jax.model.convert import read_model

        config, self._params = read_model(folder)
        self.encode, self.first_token = encode, first_token
        self.context_tokens = min(context_tokens or config.max_length, config.max_length)
        self._config, self._run = config, _token_nats(config)
        self.label = str(Path(folder).name)

    def nats(self, inputs_BxL: np.ndarray, targets_BxL: np.ndarray) -> np.ndarray:
        """float32 [B, L]."""
        size = self._config.vocab_size
        if max(inputs_BxL.max(initial=0), targets_BxL.max(initial=0)) >= size:
            raise InputError(f"{self.label}: the tokenizer has ids beyond the model's {size}; name its own")
        return np.asarray(self._run(self._params, inputs_BxL, targets_BxL))


def _token_nats(config: Any) -> Callable:
    import jax
    import jax.numpy as jnp

    from diversity_jax.model.llama import head_weight, hidden_states

    def row_nats(hidden_LxD, targets_L, head_DxV):
        logits_LxV = jnp.matmul(hidden_LxD, head_DxV, preferred_element_type=jnp.float32)
        target_logits_L = jnp.take_along_axis(logits_LxV, targets_L[:, None], axis=-1)[:, 0]
        return jax.nn.logsumexp(logits_LxV, axis=-1) - target_logits_L

    @jax.jit
    def run(params, inputs_BxL, targets_BxL):
        hidden_BxLxD = hidden_states(config, params, inputs_BxL)
        head_DxV = head_weight(config, params).astype(hidden_BxLxD.dtype)
        # A row at a time, so that the logits of the batch never exist together.
        return jax.lax.map(lambda row: row_nats(row[0], row[1], head_DxV), (hidden_BxLxD, targets_BxL))

    return run


class TransformersModel:
    """A Hugging Face causal model by path or name, through transformers and torch; on a GPU where torch has one."""

    def __init__(self, name: str, *, context_tokens: int | None = None):
        try:
            import torch
            from transformers import AutoModelForCausalLM, AutoTokenizer
        except ImportError:
            raise InputError(
                f"model {name}: transformers and torch are not installed; pip install 'diversity_jax[hf]'"
            ) from None
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(name)
            self._model = AutoModelForCausalLM.from_pretrained(name).eval()
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"model {name}: cannot be loaded ({' '.join(str(error).split())[:200]})") from None
        self._torch = torch
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._model.to(self._device)
        config = self._model.config
        own = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None) or 1024
        self.context_tokens = min(context_tokens or own, own)
        ids = (part for source in (self._tokenizer, config) for part in (source.bos_token_id, source.eos_token_id))
        first_token = next((token_id for token_id in ids if isinstance(token_id, int)), None)
        if first_token is None:
            raise InputError(f"model {name}: neither its tokenizer nor its config names a begin- or end-of-text token")
        self.first_token, self.label = first_token, str(Path(name).name)

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Ids without special tokens, and the number of each text's."""
        clean = [text.encode("utf-8", "replace").decode() for text in texts]
        rows = self._tokenizer(clean, add_special_tokens=False, verbose=False)["input_ids"]
        lengths = np.array([len(row) for row in rows], np.int64)
        return np.concatenate([np.asarray(row, np.int64) for row in rows]), lengths

    def nats(self, inputs_BxL: np.ndarray, targets_BxL: np.ndarray) -> np.ndarray:
        """float32 [B, L]."""
        torch = self._torch
        with torch.no_grad():
            inputs = torch.as_tensor(inputs_BxL, dtype=torch.long, device=self._device)
            logits_BxLxV = self._model(inputs).logits.float()
            targets_BL = torch.as_tensor(targets_BxL, dtype=torch.long, device=self._device).reshape(-1)
            flat = torch.nn.functional.cross_entropy(logits_BxLxV.flatten(0, 1), targets_BL, reduction="none")
        return flat.reshape(targets_BxL.shape).cpu().numpy()


def is_own_llama(folder: str) -> bool:
    """Whether a folder is a training run, an import, or a Hugging Face folder of a Llama, which need no torch."""
    from diversity_jax.model.convert import model_folder

    path = model_folder(folder)
    if (path / "run.json").exists() or (path / "model.json").exists():
        return True
    return (path / "config.json").exists() and read_fields(path / "config.json").get("model_type") == "llama"


@stage(
    "perplexity",
    "perplexity",
    "nats",
    {
        "perplexity": ("Perplexity", 1, "under baseline.model", "model"),
        "bits_per_byte": ("Bits per byte", 1, "under baseline.model", "model"),
        "perplexity_gap": (
            "Perplexity gap",
            1,
            "between baseline.model and baseline.larger_model",
            "model",
            "larger_model",
        ),
    },
)
def _perplexity(sample: DocumentFeatures, settings: StageSettings) -> Figures:
    values: Figures = {"perplexity": sample.nats.perplexity(), "bits_per_byte": sample.nats.bits_per_byte()}
    return values | ({"perplexity_gap": perplexity_gap(sample.nats, sample.larger_nats)} if sample.larger_nats else {})
