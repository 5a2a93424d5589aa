"""Documents as vectors, by what `baseline.embedder` names.

tfidf             TF-IDF and truncated SVD, fitted to the corpora of a run together (latent semantic analysis)
st:NAME_OR_PATH   a sentence-transformers model (pip install sentence-transformers)
openai:MODEL      an OpenAI-compatible `/v1/embeddings` endpoint; keys come from OPENAI_API_KEY and nowhere else
llama:FOLDER      mean of the last hidden states of a Llama: a training run, an import, or a Hugging Face folder
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
import hashlib
import logging
import os
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from diversity_jax.core.errors import InputError
from diversity_jax.core.files import writing
from diversity_jax.metrics.text import Vocabulary, Words

log = logging.getLogger(__name__)

_ROWS = 20_000
_TERMS = 50_000
_CACHED_TEXTS = 2048


class Embedder(Protocol):
    """What turns documents into vectors: `label` names it on cards, `cost_usd` was paid so far."""

    label: str
    cost_usd: float

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """float32 [documents, D]; a document without content may be zero."""
        ...


class TfidfSvd:
    """TF-IDF of folded words, then truncated SVD.

    Term weights are (1 + log count) * log((1 + documents) / (1 + documents with the term)) + 1, rows of length 1; the
    50,000 terms in most documents are used. Two corpora can only be compared in a space fitted to both.
    """

    cost_usd = 0.0

    def __init__(self, texts: Sequence[str], *, dimensions: int = 256, seed: int = 0):
        from sklearn.utils.extmath import randomized_svd

        draw = np.random.default_rng([seed, 0x7F])
        if len(texts) > _ROWS:
            texts = [texts[i] for i in np.sort(draw.choice(len(texts), _ROWS, replace=False))]
        self._vocabulary = Vocabulary("folded")
        counts = self._counts(self._vocabulary.encode(texts), len(self._vocabulary))
        document_counts = np.bincount(counts.indices, minlength=counts.shape[1])
        self._columns = np.sort(np.argsort(-document_counts, kind="stable")[:_TERMS])
        self._idf = np.log((1 + len(texts)) / (1 + document_counts[self._columns])) + 1
        self._terms = len(self._vocabulary)
        matrix = self._weighted(counts)
        rank = min(dimensions, min(matrix.shape) - 1)
        if rank < 1:
            self._directions = np.eye(matrix.shape[1], 1, dtype=np.float32)
        else:
            _, _, directions = randomized_svd(matrix, rank, n_iter=3, random_state=seed)
            self._directions = np.ascontiguousarray(directions.T, np.float32)
        self.label = f"tfidf ({self._directions.shape[1]} dimensions, fitted here)"

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """float32 [documents, D]."""
        parts = [np.zeros((0, self._directions.shape[1]), np.float32)]
        for start in range(0, len(texts), _ROWS):
            counts = self._counts(self._vocabulary.encode(texts[start : start + _ROWS]), self._terms)
            parts.append((self._weighted(counts) @ self._directions).astype(np.float32))
        return np.concatenate(parts)

    @staticmethod
    def _counts(words: Words, terms: int) -> Any:
        """Sparse counts [documents, terms]; words that came after the fit are left out."""
        from scipy.sparse import csr_array

        known = words.ids < terms
        cells = (words.document_of_word()[known], words.ids[known])
        return csr_array((np.ones(len(cells[0]), np.float32), cells), shape=(words.documents, max(terms, 1)))

    def _weighted(self, counts: Any) -> Any:
        matrix = counts.tocsc()[:, self._columns].tocsr()
        matrix.data = 1 + np.log(matrix.data)
        matrix.data *= self._idf[matrix.indices].astype(np.float32)
        norms = np.sqrt(matrix.multiply(matrix).sum(1))
        matrix.data /= np.repeat(np.maximum(norms, 1e-12), np.diff(matrix.indptr)).astype(np.float32)
        return matrix


class SentenceTransformer:
    """A sentence-transformers model, by name or by the path of its folder."""

    cost_usd = 0.0

    def __init__(self, name: str, *, batch: int = 64):
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
        self._batch, self.label = batch, f"st:{name}"

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """float32 [documents, D]."""
        return np.asarray(self._model.encode(list(texts), batch_size=self._batch, show_progress_bar=False), np.float32)


class OpenAIEmbedder:
    """An OpenAI-compatible embeddings endpoint.

    Answers are stored in `cache`, some thousand documents a file, so that nothing is paid twice. Spending is counted
    from the usage the server reports; a request that could pass `max_dollars` is refused before it is sent.
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        cache: Path | None = None,
        dollars_per_million_tokens: float = 0.0,
        max_dollars: float | None = None,
        batch: int = 64,
        in_flight: int = 8,
        timeout_seconds: float = 60.0,
    ):
        import openai

        if base_url is None and not os.environ.get("OPENAI_API_KEY"):
            raise InputError(
                f"embedder openai:{model}: OPENAI_API_KEY is not set, and no base_url names a server of your own"
            )
        key = os.environ.get("OPENAI_API_KEY") or "none"
        self._client = openai.OpenAI(base_url=base_url, api_key=key, max_retries=5, timeout=timeout_seconds)
        self._model, self._cache, self._batch, self._in_flight = model, cache, batch, in_flight
        self._price, self._most = dollars_per_million_tokens, max_dollars
        self.label, self.cost_usd = f"openai:{model}", 0.0

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """float32 [documents, D]. Documents without a character that is not white space are not sent; they become
        zeros.

        Raises:
          InputError: the server refused, answered nonsense, or the money is used up.
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
            return np.load(path)
        vectors = self._ask_all(texts)
        with writing(path) as file:
            np.save(file, vectors)
        return vectors

    def _ask_all(self, texts: Sequence[str]) -> np.ndarray:
        with_content = [number for number, text in enumerate(texts) if text.strip()]
        batches = [with_content[start : start + self._batch] for start in range(0, len(with_content), self._batch)]
        with ThreadPoolExecutor(self._in_flight) as pool:
            answers = list(pool.map(lambda batch: self._ask([texts[number] for number in batch]), batches))
        vectors = np.zeros((len(texts), answers[0].shape[1] if answers else 0), np.float32)
        for batch, answer in zip(batches, answers, strict=True):
            if answer.shape[1] != vectors.shape[1]:
                raise self._error(f"answered vectors of {vectors.shape[1]} and of {answer.shape[1]} dimensions")
            vectors[batch] = answer
        return vectors

    def _ask(self, texts: list[str]) -> np.ndarray:
        import openai

        # A token is at least one byte, so this is a bound that no answer passes.
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
        entries = sorted(getattr(answer, "data", None) or [], key=lambda entry: entry.index)
        if [entry.index for entry in entries] != list(range(len(texts))):
            raise self._error(f"asked for {len(texts)} vectors, {len(entries)} came; is it an embeddings model?")
        lengths = {len(entry.embedding) for entry in entries}
        if len(lengths) != 1:
            raise self._error(f"answered vectors of different lengths {sorted(lengths)}")
        return np.array([entry.embedding for entry in entries], np.float32)

    def _error(self, reason: str) -> InputError:
        return InputError(f"embedder {self.label}: {reason}")


class LlamaEmbedder:
    """Mean of a Llama's last hidden states over the tokens of a document's beginning.

    Args:
      folder: a training run, what `model.convert import` wrote, or a Hugging Face folder.
      encode: texts to (ids of all end to end, how many each text has): a tokenizer's `encode_batch`.
      context_tokens: of each document; None for the model's `max_length`.
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
        from diversity_jax.metrics.perplexity import batches

        result = np.zeros((len(texts), self._config.hidden_size), np.float32)
        for start in range(0, len(texts), _CACHED_TEXTS):
            ids, lengths = self._encode(texts[start : start + _CACHED_TEXTS])
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
