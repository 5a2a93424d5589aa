"""Compressed files: recognised by their ending, read in blocks and lines, whatever store they lie in."""

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


def compression(path: str) -> str | None:
    """The ending of `COMPRESSED` that a name has; None where it has none."""
    return next((ending for ending in COMPRESSED if path.lower().endswith(ending)), None)


def expected_bytes(path: str) -> int:
    """Decompressed size of a file, estimated from its size: text compresses to about a third."""
    return file_bytes(path) * (3 if compression(path) else 1)


def read_blocks(path: str) -> Iterator[bytes]:
    """Content of a file in blocks of about 1 MiB, decompressed when its name ends as `COMPRESSED` has it.

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
        return lzma.LZMADecompressor()
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
        while data:
            try:
                block = decompressor.decompress(data)
            except Exception as error:  # zlib.error and zstandard.ZstdError share no parent below Exception
                kind = COMPRESSED[compression(path) or ""]
                where = f"damaged near byte {read_bytes}" if begun else f"not a {kind} file in spite of its name"
                raise InputError(f"{path}: is {where} ({error}); fetch or write it again") from None
            begun = True
            if block:
                yield block
            if not decompressor.eof:
                break
            data = decompressor.unused_data.lstrip(b"\0")  # tape-style zero padding may stand between and after members
            decompressor = _new_decompressor(path)
            begun = bool(data)
    if begun:
        raise InputError(f"{path}: ends early at byte {read_bytes}: it was cut off; fetch or write it again")


def read_lines(path: str) -> Iterator[list[bytes]]:
    """Lines of a file without their newline, a list for every block; a line may be longer than any block."""
    line_parts: list[bytes] = []
    for block in read_blocks(path):
        lines = block.split(b"\n")
        line_parts.append(lines[0])
        if len(lines) > 1:
            lines[0] = b"".join(line_parts)
            line_parts = [lines.pop()]
            yield lines
    if last := b"".join(line_parts):
        yield [last]
