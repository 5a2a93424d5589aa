"""Reads files in blocks and lines, decompressed according to the ending of their name, local or remote."""

import bz2
from collections.abc import Iterator
import lzma
from typing import Any
import zlib

from diversity_jax.core.errors import InputError
from diversity_jax.core.files import file_bytes, open_file

COMPRESSED = {".gz": "gzip", ".zst": "Zstandard", ".bz2": "bzip2", ".xz": "xz"}
"""Ending of a compressed file's name, in letters of any case, -> the format."""
_BLOCK_BYTES = 1 << 20
_LONGEST_WINDOW_BYTES = 1 << 31  # what `zstd --long=31` writes; a window takes as much memory as the file asks for
_COMPRESSED_BLOCK_BYTES = 1 << 17
_Zlib: Any = type(zlib.decompressobj())
_ZSTD_STEP_BYTES = 1 << 13  # four bytes may hold 128 KiB, and zstandard returns all that its input holds at once
MOST_DOCUMENT_BYTES = 1 << 28
"""Limit of a line, and of a compressed file that is read as one document; a small file may decompress to more."""


def compression(path: str) -> str | None:
    """The ending of `COMPRESSED` that a name has; None where it has none."""
    return next((ending for ending in COMPRESSED if path.lower().endswith(ending)), None)


def expected_bytes(path: str) -> int:
    """Decompressed size of a file, estimated from its size: text compresses to about a third."""
    return file_bytes(path) * (3 if compression(path) else 1)


def read_blocks(path: str) -> Iterator[bytes]:
    """A file's content in blocks of about 1 MiB, decompressed where its name has an ending of `COMPRESSED`.

    Raises:
      InputError: no such file; a compressed file is damaged, ends early or is not what its name says.
    """
    with open_file(path) as file:
        if compression(path):
            yield from _decompressed(path, file)
        else:
            while block := file.read(_BLOCK_BYTES):
                yield block


def _new_decompressor(path: str) -> Any:
    ending = compression(path)
    if ending == ".gz":
        return zlib.decompressobj(wbits=31)
    if ending == ".bz2":
        return bz2.BZ2Decompressor()
    if ending == ".xz":
        return lzma.LZMADecompressor(memlimit=_LONGEST_WINDOW_BYTES)
    try:
        import zstandard
    except ImportError:
        raise InputError(f"{path}: needs the package zstandard; install it or decompress the file") from None
    return zstandard.ZstdDecompressor(max_window_size=_LONGEST_WINDOW_BYTES).decompressobj()


def _decompressed(path: str, file: Any) -> Iterator[bytes]:
    """Blocks of a compressed stream of one or several members, as `cat a.gz b.gz` makes them."""
    decompressor, begun, read_bytes = _new_decompressor(path), False, 0
    while data := file.read(_COMPRESSED_BLOCK_BYTES):
        read_bytes += len(data)
        rest: bytes | None = data
        while rest is not None:
            try:
                block, rest = _decompress_some(decompressor, rest)
            except Exception as error:  # zlib.error and zstandard.ZstdError share no parent below Exception
                kind = COMPRESSED[compression(path) or ""]
                where = f"damaged near byte {read_bytes}" if begun else f"not a {kind} file in spite of its name"
                raise InputError(f"{path}: is {where} ({error}); fetch or write it again") from None
            begun = True
            if block:
                yield block
            if decompressor.eof:
                rest = (rest or b"").lstrip(b"\0") or None  # tape-style zeros may stand between and after members
                decompressor = _new_decompressor(path)
                begun = rest is not None
    if begun:
        raise InputError(f"{path}: ends early at byte {read_bytes}: it was cut off; fetch or write it again")


def _decompress_some(decompressor: Any, data: bytes) -> tuple[bytes, bytes | None]:
    """Decompresses up to about 1 MiB; returns it and the data still to be decompressed or, after a member's end, what
    follows it; None where all data is used up.
    """
    if isinstance(decompressor, _Zlib):
        block = decompressor.decompress(data, _BLOCK_BYTES)
        return block, decompressor.unused_data if decompressor.eof else decompressor.unconsumed_tail or None
    if hasattr(decompressor, "needs_input"):  # of bz2 and lzma, which keep what they were given
        block = decompressor.decompress(data, _BLOCK_BYTES)
        if decompressor.eof:
            return block, decompressor.unused_data
        return block, None if decompressor.needs_input else b""
    block, rest = decompressor.decompress(data[:_ZSTD_STEP_BYTES]), data[_ZSTD_STEP_BYTES:]
    return block, decompressor.unused_data + rest if decompressor.eof else rest or None


def read_document(path: str) -> bytes:
    """A file's content, decompressed.

    Raises:
      InputError: it is compressed and holds more than `MOST_DOCUMENT_BYTES`.
    """
    blocks, size = [], 0
    for block in read_blocks(path):
        blocks.append(block)
        size += len(block)
        if size > MOST_DOCUMENT_BYTES and compression(path):
            raise InputError(f"{path}: holds more than {MOST_DOCUMENT_BYTES >> 20} MiB as one document; split it")
    return b"".join(blocks)


def read_lines(path: str) -> Iterator[list[bytes]]:
    """Lines of a file without their newline, a list for every block; a line may be longer than a block.

    Raises:
      InputError: as `read_blocks`; or a line is longer than `MOST_DOCUMENT_BYTES`.
    """
    line_parts: list[bytes] = []
    size = 0
    for block in read_blocks(path):
        lines = block.split(b"\n")
        line_parts.append(lines[0])
        size += len(lines[0])
        if size > MOST_DOCUMENT_BYTES:
            raise InputError(
                f"{path}: holds a line of more than {MOST_DOCUMENT_BYTES >> 20} MiB; put each document on a line of "
                "its own"
            )
        if len(lines) > 1:
            lines[0] = b"".join(line_parts)
            line_parts = [lines.pop()]
            size = len(line_parts[0])
            yield lines
    if last := b"".join(line_parts):
        yield [last]
