"""A ruler: vectors of texts that are fixed before any corpus is seen, so that what it reads does not depend on the
corpus, its size, or its neighbours in a run.

The shipped one is the mean of static token vectors: the table of 32,000 x 256 and the tokenizer in the wheel of
`wordllama` (MIT), read from its two files without importing it. Weights by token frequency and the removal of the
common component were measured and left out: docs/judges.md, "The shipped ruler".
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
import functools
import importlib.metadata
from pathlib import Path
from typing import Any

import numpy as np

from diversity_jax.core.errors import InputError

READING_LENGTHS = (5, 10, 20, 50, 100, 200)
"""Words that texts are cut to before they are compared; the similarity of mean vectors grows with length."""

PACKAGE, PACKAGE_VERSION = "wordllama", "0.4.0.post1"
_VECTORS, _TOKENIZER = "wordllama/weights/l2_supercat_256.safetensors", "tokenizers/l2_supercat_tokenizer_config.json"
_LONGEST_WORD = 40  # characters a word, of a text's beginning that is looked at for so many words
_MOST_CHARACTERS = 10_000  # read of a text where no number of words is given
_BATCH = 512


@dataclass(frozen=True, kw_only=True, eq=False)
class Ruler:
    """Texts to vectors whose products say how alike they are.

    Attributes:
      name: of the embedder, as errors and cards name it.
      identity: JSON value of all that the vectors depend on; figures of two rulers are never compared.
      vectors: texts to float [n, d] of any length; zero where there is nothing to read.
    """

    name: str
    identity: Mapping[str, Any]
    vectors: Callable[[Sequence[str]], np.ndarray]

    def embed(self, texts: Sequence[str], words: int | None = None) -> np.ndarray:
        """Unit vectors float32 [n, d] of the first `words` words of each text; a zero row where nothing can be read."""
        if words is not None:
            texts = [first_words(text, words) for text in texts]
        vectors = np.asarray(self.vectors([text[:_MOST_CHARACTERS] for text in texts]), np.float32)
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        return np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0)


def first_words(text: str, count: int) -> str:
    """The first `count` words of a text, one space between them."""
    return " ".join(text[: count * _LONGEST_WORD].split(None, count)[:count])


class StaticVectors:
    """Mean of the token vectors of a text, from a table and a tokenizer on disk."""

    def __init__(self, table: Path, tokenizer: Path):
        from safetensors import safe_open
        from tokenizers import Tokenizer

        with safe_open(table, "numpy") as file:
            (name,) = file.keys()
            self._table = file.get_tensor(name).astype(np.float32)
        self._tokenizer = Tokenizer.from_file(str(tokenizer))

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """float32 [n, d]."""
        result = np.zeros((len(texts), self._table.shape[1]), np.float32)
        for start in range(0, len(texts), _BATCH):
            batch = [text.encode("utf-8", "replace").decode() for text in texts[start : start + _BATCH]]
            encodings = self._tokenizer.encode_batch_fast(batch, add_special_tokens=False)
            for row, encoding in enumerate(encodings, start):
                if batch[row - start].strip():
                    result[row] = self._table[encoding.ids].mean(axis=0)
        return result


@functools.cache
def default_ruler() -> Ruler:
    """The ruler that is shipped: read once in a process.

    Raises:
      InputError: the package that holds its vectors is missing, or is another version.
    """
    hint = f"pip install --no-deps {PACKAGE}=={PACKAGE_VERSION}"
    try:
        package = importlib.metadata.distribution(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        raise InputError(f"judge offline: its word vectors are in a package that is not installed; {hint}") from None
    if package.version != PACKAGE_VERSION:
        has = f"reads the vectors of {PACKAGE} {PACKAGE_VERSION}, and {package.version} is installed"
        raise InputError(f"judge offline: {has}; {hint}")
    table = Path(str(package.locate_file(_VECTORS)))
    tokenizer = table.parents[1] / _TOKENIZER
    if missing := next((path for path in (table, tokenizer) if not path.exists()), None):
        raise InputError(f"judge offline: {missing} is missing; install the package again: {hint} --force-reinstall")
    identity = {"package": PACKAGE, "version": PACKAGE_VERSION, "vectors": table.stem, "unit": "words"}
    return Ruler(name=f"{PACKAGE} {PACKAGE_VERSION}", identity=identity, vectors=StaticVectors(table, tokenizer))
