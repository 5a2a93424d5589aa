"""How much smaller documents become when they are compressed together: bytes of UTF-8 over compressed bytes.

Documents are joined by a line feed in the order given. That order matters: gzip looks back 32 KiB, some 25 documents of 200 words, and so
sees repetition only between near neighbours; give documents in random order (as corpora are drawn here) or the ratio measures how they
were sorted. xz looks back 8 MiB, zstd here 128 MiB.

Every figure is deterministic: the same on any number of cores. The `diversity` package compresses gzip's output a second time, joins
by spaces and uses level 9; the second pass changes its ratio by a fraction of a per cent.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
import itertools
import lzma
import os
import zlib

from diversity_jax.errors import InputError

ALGORITHMS = ("gzip", "xz", "zstd")
_GZIP_BLOCK_BYTES = 1 << 20
_GZIP_WINDOW_BYTES = 1 << 15
_GZIP_FRAME_BYTES = 18  # header and trailer of one member without a name
_XZ_DICTIONARY_BYTES = 8 << 20
_XZ_BLOCK_BYTES = 3 * _XZ_DICTIONARY_BYTES
_ZSTD_WINDOW_LOG = 27
_ZSTD_LEVEL = 3


def compression_ratio(texts: Sequence[str], algorithm: str = "gzip", *, threads: int | None = None) -> float | None:
    """Original bytes over compressed bytes; None where there is nothing to compress.

    Args:
      texts: documents, in the order in which they are to be compressed.
      algorithm: `gzip` (level 6; blocks of 1 MiB that know the 32 KiB before them, as pigz makes), `xz` (preset 1 with the 8 MiB
        dictionary of preset 6: five times as fast, a tenth larger; blocks of 24 MiB, as `xz --threads`), or `zstd` (level 3 with
        long-distance matching over 128 MiB).
      threads: compress at once; None for as many as there are cores.

    Source: "compression ratio" of Shaib et al., "Standardizing the measurement of text diversity" (2024).

    Raises:
      InputError: an unknown algorithm.
    """
    compressors = {"gzip": _gzip_bytes, "xz": _xz_bytes, "zstd": _zstd_bytes}
    if algorithm not in compressors:
        raise InputError(f"compression {algorithm!r}: choose one of {', '.join(ALGORITHMS)}")
    if not any(texts):
        return None
    sizes = [0]

    def counted() -> Iterator[bytes]:
        for block in _encoded(texts, _XZ_BLOCK_BYTES if algorithm == "xz" else _GZIP_BLOCK_BYTES):
            sizes[0] += len(block)
            yield block

    compressed = compressors[algorithm](counted(), threads or os.cpu_count() or 1)
    return sizes[0] / compressed


def encode(text: str) -> bytes:
    """UTF-8; a lone surrogate, which has no UTF-8, as the three bytes it would have."""
    return text.encode("utf-8", "surrogatepass")


def _encoded(texts: Sequence[str], block_bytes: int) -> Iterator[bytes]:
    """The documents, joined, in blocks of exactly `block_bytes`, the last one shorter."""
    held = bytearray()
    for number, text in enumerate(texts):
        if number:
            held += b"\n"
        for start in range(0, max(len(text), 1), _XZ_BLOCK_BYTES):
            held += encode(text[start : start + _XZ_BLOCK_BYTES])
            while len(held) >= block_bytes:
                yield bytes(memoryview(held)[:block_bytes])
                del held[:block_bytes]
    if held:
        yield bytes(held)


def _in_order(work, items: Iterator, threads: int) -> int:
    """The sum of `work` over items, a few at a time, so that they are never all in memory."""
    total = 0
    with ThreadPoolExecutor(threads) as pool:
        while some := list(itertools.islice(items, 2 * threads)):
            total += sum(pool.map(work, some))
    return total


def _gzip_bytes(blocks: Iterator[bytes], threads: int) -> int:
    def pairs() -> Iterator[tuple[bytes, bytes]]:
        before = b""
        for block in blocks:
            yield before, block
            before = block[-_GZIP_WINDOW_BYTES:]

    def deflated(pair: tuple[bytes, bytes]) -> int:
        before, block = pair
        settings = {"level": 6, "wbits": -15, "memLevel": 8}
        stream = zlib.compressobj(**settings, zdict=before) if before else zlib.compressobj(**settings)
        return len(stream.compress(block)) + len(stream.flush(zlib.Z_SYNC_FLUSH if len(block) == _GZIP_BLOCK_BYTES else zlib.Z_FINISH))

    return _GZIP_FRAME_BYTES + _in_order(deflated, pairs(), threads)


def _xz_bytes(blocks: Iterator[bytes], threads: int) -> int:
    """Blocks as streams of their own: 32 bytes each more than blocks of one stream."""
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 1, "dict_size": _XZ_DICTIONARY_BYTES}]
    return _in_order(lambda block: len(lzma.compress(block, filters=filters)), blocks, threads)


def _zstd_bytes(blocks: Iterator[bytes], threads: int) -> int:
    """One frame. Its jobs are cut by size alone, so that one thread and many give the same bytes."""
    import zstandard

    parameters = zstandard.ZstdCompressionParameters.from_level(
        _ZSTD_LEVEL, window_log=_ZSTD_WINDOW_LOG, enable_ldm=True, threads=threads, write_checksum=False
    )
    stream = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    total = sum(len(stream.compress(block)) for block in blocks)
    return total + len(stream.flush())
