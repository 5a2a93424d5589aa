"""Plain text: one file is one document, whatever it holds."""

from collections.abc import Iterator

import numpy as np

from diversity_jax.core.files import expected_bytes, file_hash, read_blocks
from diversity_jax.corpus.document import Document, decode_utf8


class TextFile:
    """One document. Line ends become `\\n`, and a byte order mark is dropped."""

    def __init__(self, path: str, label: str):
        self._path = path
        self._label = label

    def batches(self) -> Iterator[list[bytes]]:
        yield [b"".join(read_blocks(self._path))]

    def decode(self, raw: bytes, position: int) -> Document:
        text = decode_utf8(raw, self._path).removeprefix("\ufeff")
        return Document(id=self._label, text=text.replace("\r\n", "\n").replace("\r", "\n"))

    def count(self) -> int:
        return 1

    def fetch(self, positions: np.ndarray) -> Iterator[bytes]:
        for _ in positions:
            yield b"".join(read_blocks(self._path))

    def expected_bytes(self) -> int:
        return expected_bytes(self._path)

    def content_hash(self) -> str:
        return file_hash(self._path)
