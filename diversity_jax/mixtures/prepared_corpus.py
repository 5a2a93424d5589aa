"""The text of rows that were prepared before, for judging them and for people."""

from collections import Counter
from collections.abc import Iterator, Sequence
from fractions import Fraction

import numpy as np

from diversity_jax.core.files import content_hash
from diversity_jax.corpus import Document
from diversity_jax.mixtures.schedule import exact_shares
from diversity_jax.prepare.manifest import Manifest, prepared_tokenizer
from diversity_jax.prepare.rows import RowReader

_BLOCK_ROWS = 256


def documents_in(row: np.ndarray, end_of_text_id: int, starts: np.ndarray | None = None) -> list[np.ndarray]:
    """The pieces of a row, each with the end-of-text id that ends it; the first and last may be parts of documents.

    Args:
      starts: bool, where the examples of a row of conversations begin; what the row is filled up with is left out.
    """
    if starts is not None and starts[0]:
        return [piece for piece in np.split(row, np.flatnonzero(starts)[1:]) if not (piece == end_of_text_id).all()]
    ends = np.flatnonzero(row == end_of_text_id) + 1
    return [piece for piece in np.split(row, ends) if len(piece)]


class PreparedCorpus:
    """The rows of prepared components seen as a corpus whose documents are the pieces between end-of-text tokens.

    Documents longer than what is left of a row were cut when the rows were made, and stay cut here.
    """

    def __init__(self, name: str, manifests: Sequence[Manifest], shares: Sequence[Fraction]):
        self.name, self.rejected = name, Counter()
        self._manifests, self._shares = manifests, exact_shares(shares)
        self._readers = [RowReader(manifest) for manifest in manifests]
        self._tokenizer = prepared_tokenizer(manifests[0])

    def __iter__(self) -> Iterator[Document]:
        for part, reader in enumerate(self._readers):
            for start in range(0, reader.rows, _BLOCK_ROWS):
                numbers = np.arange(start, min(start + _BLOCK_ROWS, reader.rows))
                for number, pieces in zip(numbers, self._pieces(reader, numbers), strict=True):
                    yield from self._documents(part, int(number), pieces)

    def _pieces(self, reader: RowReader, numbers: np.ndarray) -> Iterator[list[np.ndarray]]:
        found = reader.read_marked(numbers)
        starts = [None] * len(numbers) if found.starts is None else found.starts
        for row, begins in zip(found.tokens, starts, strict=True):
            yield documents_in(row, self._tokenizer.end_of_text_id, begins)

    def _documents(self, part: int, number: int, pieces: Sequence[np.ndarray]) -> Iterator[Document]:
        for place, piece in enumerate(pieces):
            text = self._tokenizer.decode(piece.tolist())
            if text.strip():
                yield Document(id=f"{self._manifests[part].name}:{number}:{place}", text=text)

    def sample(self, size: int, *, seed: int) -> list[Document]:
        """One document each of `size` random rows, or of all where there are fewer; parts in proportion to their
        shares.
        """
        generator = np.random.default_rng(seed)
        parts = generator.choice(len(self._readers), size, p=[float(share) for share in self._shares])
        drawn = []
        for part, reader in enumerate(self._readers):
            wanted = min(int((parts == part).sum()), reader.rows)
            numbers = generator.permutation(reader.rows)[:wanted]
            for number, pieces in zip(numbers, self._pieces(reader, numbers), strict=True):
                found = list(self._documents(part, int(number), pieces))
                drawn += [found[generator.integers(len(found))]] if found else []
        return [drawn[i] for i in generator.permutation(len(drawn))]

    def fingerprint(self) -> str:
        """Of the manifests and their shares."""
        return content_hash(
            [[manifest.content_hash, str(share)] for manifest, share in zip(self._manifests, self._shares, strict=True)]
        )
