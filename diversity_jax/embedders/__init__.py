"""Embedders, which turn documents into vectors for judges and metrics.

st:NAME_OR_PATH   a sentence-transformers model (pip install sentence-transformers)
openai:MODEL      an OpenAI-compatible `/v1/embeddings` endpoint; the key is in OPENAI_API_KEY
llama:FOLDER      mean of the last hidden states of a Llama
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
import hashlib
import os
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from diversity_jax.core.errors import InputError
from diversity_jax.core.files import writing
from diversity_jax.core.json_fields import Fields, read_fields

__all__ = [
    "Embedder",
    "LlamaEmbedder",
    "OpenAIEmbedder",
    "SentenceTransformer",
    "check_embedder",
    "is_paid",
    "open_embedder",
    "vocabulary_of",
]

_CACHED_TEXTS = 2048  # of a cache file; a change would invalidate paid vectors
_TEXTS = 1024  # tokenised at once by a Llama's tokenizer
_REQUEST_TEXTS, _REQUESTS_AT_ONCE, _TIMEOUT_SECONDS = 64, 8, 60.0  # of an OpenAI-compatible endpoint
_MODEL_TEXTS = 64  # of a batch of sentence-transformers


class Embedder(Protocol):
    """Turns documents into vectors. `label` names it on scorecards; `cost_usd` are dollars paid so far."""

    label: str
    cost_usd: float

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """float32 [documents, D]; zeros for a document without content where the embedder cannot embed it."""


@dataclass(frozen=True, kw_only=True)
class EmbedderKind:
    """A kind of embedder; an entry of `EMBEDDERS` adds one.

    Attributes:
      open: makes it from a model's name, the options of paid embedders, and the options of a Llama.
      is_paid: whether an API charges for its texts.
    """

    open: Callable[[str, dict[str, Any], dict[str, Any]], Embedder]
    is_paid: bool = False


def check_embedder(name: str, *, base_url: str | None = None) -> None:
    """InputError for a name that is no embedder's, or a missing API key."""
    kind, _, model = name.partition(":")
    if kind not in EMBEDDERS or not model:
        raise InputError(f"embedder {name}: expected st:NAME_OR_PATH, openai:MODEL or llama:FOLDER")
    if EMBEDDERS[kind].is_paid and base_url is None and not os.environ.get("OPENAI_API_KEY"):
        raise InputError(f"embedder {name}: OPENAI_API_KEY is not set, and no base_url names a server of your own")


def is_paid(name: str) -> bool:
    """Whether an API charges for an embedder's texts."""
    kind = EMBEDDERS.get(name.partition(":")[0])
    return kind is not None and kind.is_paid


def open_embedder(
    name: str,
    *,
    base_url: str | None = None,
    cache: Path | None = None,
    dollars_per_million_tokens: float = 0.0,
    max_dollars: float | None = None,
    vocabulary: str | None = None,
    context_tokens: int | None = None,
) -> Embedder:
    """The embedder of a name `KIND:MODEL`.

    Args:
      base_url, cache, dollars_per_million_tokens, max_dollars: of `openai:`, see `OpenAIEmbedder`.
      vocabulary, context_tokens: of `llama:`; None for the tokenizer in its folder and the model's `max_length`.

    Raises:
      InputError: another kind, or a model that cannot be opened.
    """
    check_embedder(name, base_url=base_url)
    kind, _, model = name.partition(":")
    paid = {"base_url": base_url, "cache": cache, "max_dollars": max_dollars}
    paid |= {"dollars_per_million_tokens": dollars_per_million_tokens}
    return EMBEDDERS[kind].open(model, paid, {"vocabulary": vocabulary, "context_tokens": context_tokens})


def vocabulary_of(folder: str, asked: str | None) -> str:
    """The tokenizer of a model's folder: `asked`, that of its run's mixture, or the files in the folder.

    Raises:
      InputError: none of the three.
    """
    if asked:
        return asked
    from diversity_jax.model.convert import model_folder

    copy = model_folder(folder)
    run = copy / "run.json"
    if run.exists():
        mixture = read_fields(run, settings=Fields)["settings"].get("mixture")
        if isinstance(mixture, dict) and mixture.get("vocabulary"):
            return str(mixture["vocabulary"])
    if any((copy / name).exists() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        return folder
    raise InputError(
        f"{folder}: names no tokenizer; put the tokenizer.json it was trained with there, or set baseline.vocabulary"
    )


class SentenceTransformer:
    """A sentence-transformers model, by name or by the path of its folder."""

    cost_usd = 0.0

    def __init__(self, name: str):
        try:
            from sentence_transformers import SentenceTransformer as Model
        except ImportError:
            raise InputError(
                f"embedder st:{name}: sentence-transformers is not installed; pip install sentence-transformers"
            ) from None
        try:
            self._model = Model(name)
        except (OSError, ValueError) as error:
            raise InputError(f"embedder st:{name}: cannot be loaded ({' '.join(str(error).split())[:200]})") from None
        self.label = f"st:{name}"

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """float32 [documents, D]."""
        vectors = self._model.encode(list(texts), batch_size=_MODEL_TEXTS, show_progress_bar=False)
        return np.asarray(vectors, np.float32)


class OpenAIEmbedder:
    """An OpenAI-compatible embeddings endpoint.

    Vectors are stored in the folder `cache`, so that nothing is paid twice. Cost is counted from the usage that the
    server reports; a request that could exceed `max_dollars` is refused before it is sent.
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        cache: Path | None = None,
        dollars_per_million_tokens: float = 0.0,
        max_dollars: float | None = None,
    ):
        import openai

        check_embedder(f"openai:{model}", base_url=base_url)
        key = os.environ.get("OPENAI_API_KEY") or "none"
        self._client = openai.OpenAI(base_url=base_url, api_key=key, max_retries=5, timeout=_TIMEOUT_SECONDS)
        self._model, self._cache, self._price, self._most = model, cache, dollars_per_million_tokens, max_dollars
        self.label, self.cost_usd = f"openai:{model}", 0.0

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """float32 [documents, D]; zeros for documents of white space, which are not sent.

        Raises:
          InputError: the server refused, its answer is malformed, or the request could exceed `max_dollars`.
        """
        parts = [self._cached(texts[start : start + _CACHED_TEXTS]) for start in range(0, len(texts), _CACHED_TEXTS)]
        sizes = {part.shape[1] for part in parts if part.shape[1]}
        if len(sizes) > 1:
            raise self._error(f"vectors of {sorted(sizes)} dimensions; empty the cache, another model answered before")
        size = sizes.pop() if sizes else 0
        return np.concatenate([part if part.shape[1] else np.zeros((len(part), size), np.float32) for part in parts])

    def _cached(self, texts: Sequence[str]) -> np.ndarray:
        if self._cache is None:
            return self._ask_all(texts)
        digest = hashlib.sha256(self._model.encode())
        for text in texts:
            digest.update(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest())
        path = Path(self._cache) / f"{digest.hexdigest()[:32]}.npy"
        if path.exists():
            return _read_vectors(path, len(texts))
        vectors = self._ask_all(texts)
        with writing(path) as file:
            np.save(file, vectors)
        return vectors

    def _ask_all(self, texts: Sequence[str]) -> np.ndarray:
        with_content = [number for number, text in enumerate(texts) if text.strip()]
        starts = range(0, len(with_content), _REQUEST_TEXTS)
        batches = [with_content[start : start + _REQUEST_TEXTS] for start in starts]
        with ThreadPoolExecutor(_REQUESTS_AT_ONCE) as pool:
            answers = list(pool.map(lambda batch: self._ask([texts[number] for number in batch]), batches))
        vectors = np.zeros((len(texts), answers[0].shape[1] if answers else 0), np.float32)
        for batch, answer in zip(batches, answers, strict=True):
            if answer.shape[1] != vectors.shape[1]:
                raise self._error(f"answered vectors of {vectors.shape[1]} and of {answer.shape[1]} dimensions")
            vectors[batch] = answer
        return vectors

    def _ask(self, texts: list[str]) -> np.ndarray:
        import openai

        # An upper bound, since a token has at least one byte.
        bound = sum(len(text.encode("utf-8", "replace")) for text in texts) * self._price / 1e6
        if self._most is not None and self.cost_usd + bound > self._most:
            spent = f"${self.cost_usd:.4f} spent"
            raise self._error(f"{spent}, and the next request could pass max_dollars={self._most:g}")
        texts = [text.encode("utf-8", "replace").decode() for text in texts]
        try:
            answer = self._client.embeddings.create(model=self._model, input=texts, encoding_format="float")
        except openai.APIStatusError as error:
            reason = " ".join(str(error.message).split())[:200]
            raise self._error(f"the server refused with status {error.status_code} ({reason})") from None
        except openai.APIConnectionError:
            address = self._client.base_url
            raise self._error(f"no server answers at {address}; start it, or check the address") from None
        except ValueError as error:
            raise self._error(f"answered something that is no JSON ({str(error)[:100]})") from None
        usage = getattr(answer, "usage", None)
        self.cost_usd += (getattr(usage, "total_tokens", 0) or 0) * self._price / 1e6
        records = sorted(getattr(answer, "data", None) or [], key=lambda record: record.index)
        if [record.index for record in records] != list(range(len(texts))):
            raise self._error(f"asked for {len(texts)} vectors, {len(records)} came; is it an embeddings model?")
        lengths = {len(record.embedding) for record in records}
        if len(lengths) != 1:
            raise self._error(f"answered vectors of different lengths {sorted(lengths)}")
        return np.array([record.embedding for record in records], np.float32)

    def _error(self, reason: str) -> InputError:
        return InputError(f"embedder {self.label}: {reason}")


def _read_vectors(path: Path, rows: int) -> np.ndarray:
    """Stored vectors float32 [rows, D]; the file is not trusted."""
    try:
        vectors = np.array(np.load(path, mmap_mode="r"))  # reads no more than the file holds
    except Exception:  # a damaged file raises errors of several parsers
        vectors = np.empty(0)
    if vectors.dtype != np.float32 or vectors.ndim != 2 or len(vectors) != rows:
        raise InputError(f"{path}: is no file of {rows} vectors, or a damaged one; remove it, and they are asked again")
    return vectors


class LlamaEmbedder:
    """Mean of a Llama's last hidden states over the tokens of a document's beginning.

    Args:
      folder: a training run, what `model.convert import` wrote, or a Hugging Face folder.
      encode: texts to (concatenated ids, number of ids of each text): a tokenizer's `encode_batch`.
      context_tokens: tokens read of each document; None for the model's `max_length`.
    """

    cost_usd = 0.0

    def __init__(self, folder: str, encode: Callable, *, context_tokens: int | None = None, batch_tokens: int = 8192):
        from diversity_jax.model.convert import read_model

        self._config, self._params = read_model(folder)
        self._encode, self._batch_tokens = encode, batch_tokens
        self._context = min(context_tokens or self._config.max_length, self._config.max_length)
        self._run = _mean_hidden(self._config)
        self.label = f"llama:{Path(folder).name}"

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """float32 [documents, D]."""
        result = np.zeros((len(texts), self._config.hidden_size), np.float32)
        for start in range(0, len(texts), _TEXTS):
            ids, lengths = self._encode(texts[start : start + _TEXTS])
            rows = [row[: self._context].astype(np.int32) for row in np.split(ids, np.cumsum(lengths)[:-1])]
            for numbers, tokens_BxL, mask_BxL in batches(rows, self._batch_tokens):
                result[start + numbers] = np.asarray(self._run(self._params, tokens_BxL, mask_BxL))[: len(numbers)]
        return result


def _mean_hidden(config: Any) -> Callable:
    import jax
    import jax.numpy as jnp

    from diversity_jax.model import hidden_states

    @jax.jit
    def run(params, tokens_BxL, mask_BxL):
        hidden_BxLxD = hidden_states(config, params, tokens_BxL).astype(jnp.float32)
        weights_BxLx1 = mask_BxL[..., None].astype(jnp.float32)
        return (hidden_BxLxD * weights_BxLx1).sum(1) / jnp.maximum(weights_BxLx1.sum(1), 1)

    return run


def batches(
    rows: Sequence[np.ndarray], batch_tokens: int, *, extra: int = 0
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Batches of rows of similar length, padded on the right: row numbers, tokens int32 and mask bool [B, L + extra].

    L is a power of two or three quarters of one, and B the most that `batch_tokens` allows at that L, so that few
    shapes are compiled; a batch that is not full ends with masked rows of zeros. Rows of at most `extra` tokens are
    left out.
    """
    lengths = [len(row) for row in rows]
    order = sorted((number for number, length in enumerate(lengths) if length > extra), key=lengths.__getitem__)
    while order:
        longest = _rounded(lengths[order[-1]] - extra)
        count = max(1, batch_tokens // longest)
        numbers, order = order[-count:], order[:-count]
        # The last, smaller batch is filled up, since otherwise its shape would be compiled too.
        tokens = np.zeros((count if count < 64 else _rounded(len(numbers)), longest + extra), np.int32)
        mask = np.zeros(tokens.shape, bool)
        for position, number in enumerate(numbers):
            tokens[position, : lengths[number]] = rows[number]
            mask[position, : lengths[number]] = True
        yield np.array(numbers), tokens, mask


def _rounded(length: int) -> int:
    power = max(16, 1 << max(0, length - 1).bit_length())
    return power * 3 // 4 if length <= power * 3 // 4 else power


def _open_llama(folder: str, *, vocabulary: str | None, context_tokens: int | None) -> LlamaEmbedder:
    from diversity_jax.tokenizers.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(vocabulary_of(folder, vocabulary))
    return LlamaEmbedder(folder, tokenizer.encode_batch, context_tokens=context_tokens)


EMBEDDERS: dict[str, EmbedderKind] = {
    "st": EmbedderKind(open=lambda model, of_paid, of_llama: SentenceTransformer(model)),
    "openai": EmbedderKind(open=lambda model, of_paid, of_llama: OpenAIEmbedder(model, **of_paid), is_paid=True),
    "llama": EmbedderKind(open=lambda model, of_paid, of_llama: _open_llama(model, **of_llama)),
}
