"""Bytes of a file in blocks, decompressed on the way; lines out of blocks."""

from collections.abc import Iterator
from typing import Any
import zlib

from diversity_jax.errors import InputError
from diversity_jax.storage import file_bytes, open_file

COMPRESSED = (".gz", ".zst")
_BLOCK_BYTES = 1 << 20
_COMPRESSED_BLOCK_BYTES = 1 << 17


def expected_bytes(path: str) -> int:
    """About how much a file holds, decompressed, from its size alone: text shrinks to about a third."""
    return file_bytes(path) * (3 if path.endswith(COMPRESSED) else 1)


def read_blocks(path: str) -> Iterator[bytes]:
    """Content of a file in blocks of about 1 MiB, decompressed when its name ends in `.gz` or `.zst`.

    Raises:
      InputError: no such file; a compressed file is damaged, ends early or is not what its name says.
    """
    with open_file(path) as file:
        if path.endswith(COMPRESSED):
            yield from _decompressed(path, file)
        else:
            while block := file.read(_BLOCK_BYTES):
                yield block


def _new_decompressor(path: str) -> Any:
    if path.endswith(".gz"):
        return zlib.decompressobj(wbits=31)
    try:
        import zstandard
    except ImportError:
        raise InputError(f"{path}: reading .zst needs the package zstandard; install it or decompress the file") from None
    return zstandard.ZstdDecompressor().decompressobj()


def _decompressed(path: str, file: Any) -> Iterator[bytes]:
    """A stream may hold several members one after the other, as `cat a.gz b.gz` makes them."""
    decompressor, begun, read_bytes = _new_decompressor(path), False, 0
    while data := file.read(_COMPRESSED_BLOCK_BYTES):
        read_bytes += len(data)
        while data:
            try:
                block = decompressor.decompress(data)
            except Exception as error:  # zlib.error and zstandard.ZstdError share no parent below Exception
                kind = "gzip" if path.endswith(".gz") else "Zstandard"
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
        raise InputError(f"{path}: ends early at byte {read_bytes}: the compressed stream is cut off; fetch or write it again")


def read_whole(path: str) -> bytes:
    """The whole, decompressed content of a file."""
    return b"".join(read_blocks(path))


def read_lines(path: str) -> Iterator[list[bytes]]:
    """Lines of a file without their newline, a list for every block; a line may be longer than any block."""
    pieces: list[bytes] = []
    for block in read_blocks(path):
        lines = block.split(b"\n")
        pieces.append(lines[0])
        if len(lines) > 1:
            lines[0] = b"".join(pieces)
            pieces = [lines.pop()]
            yield lines
    if last := b"".join(pieces):
        yield [last]
