"""Files, local or remote: opening, listing, removing, writing whole or not at all, decompressing, hashing, JSON."""

import bz2
from collections.abc import Iterator
import contextlib
import errno
import glob
import hashlib
import io
import json
import lzma
import os
from pathlib import Path
import re
import shutil
import sys
from typing import IO, Any
import uuid
import zlib

from diversity_jax.core.errors import InputError


class DiskFull(InputError):
    """A file could not be written because there is no space left for it."""


_REMOTE = re.compile(r"^[a-zA-Z][a-zA-Z0-9+.-]+://")


def is_remote(path: str | os.PathLike) -> bool:
    """Whether `path` is a URL such as `gs://bucket/file`, which fsspec reads, and not a local path."""
    return bool(_REMOTE.match(os.fspath(path)))


def _remote(url: str | os.PathLike) -> tuple[Any, str]:
    """The file system of a URL, and the path in it. Cached listings are dropped: other processes write there too."""
    import fsspec

    filesystem, inside = fsspec.core.url_to_fs(os.fspath(url))
    filesystem.invalidate_cache()
    return filesystem, inside


def open_file(path: str | os.PathLike, mode: str = "rb") -> IO[Any]:
    """Opens a local path or any fsspec URL.

    Raises:
      InputError: there is no such file, it is a folder, or it may not be read.
    """
    try:
        if is_remote(path):
            filesystem, inside = _remote(path)
            return filesystem.open(inside, mode)
        return open(path, mode)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; check the path") from None
    except IsADirectoryError:
        raise InputError(f"{path}: is a folder; name a file or a pattern such as {path}/*") from None
    except PermissionError:
        raise InputError(f"{path}: may not be opened; check its permissions") from None
    except ImportError as error:
        raise InputError(f"{path}: {error}") from None


def list_files(pattern: str | os.PathLike) -> list[str]:
    """Files that match a path or glob pattern, local or remote, sorted by name; possibly none.

    Raises:
      InputError: a local match is a link to nothing, which would be missed in silence.
    """
    pattern = os.fspath(pattern)
    if is_remote(pattern):
        filesystem, path = _remote(pattern)
        try:
            return sorted(map(filesystem.unstrip_protocol, filesystem.glob(path)))
        except FileNotFoundError:  # no such bucket
            return []
    if os.path.isfile(pattern):
        return [pattern]
    found = glob.glob(pattern, recursive=True)
    for path in found:
        if os.path.islink(path) and not os.path.exists(path):
            raise InputError(f"{path}: is a link to {os.readlink(path)}, which is not there; mend or remove it")
    return sorted(filter(os.path.isfile, found))


@contextlib.contextmanager
def full_disk_named(path: str | os.PathLike) -> Iterator[None]:
    """Turns the error of a full disk into one line about the file that was being written.

    Raises:
      DiskFull: the block ran out of disk space.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DiskFull(f"{path}: the disk is full; free space or choose another folder, then run again") from error


def free_bytes(path: str | os.PathLike) -> int:
    """Space left where a local path is, or would be; a huge number where a mount does not tell."""
    usage = shutil.disk_usage(_nearest_folder(path))
    return usage.free if usage.total else sys.maxsize


def _nearest_folder(path: str | os.PathLike) -> Path:
    """The path itself, or the first above it that is there."""
    absolute = Path(path).absolute()
    return next(folder for folder in (absolute, *absolute.parents) if os.path.lexists(folder))


def make_folder(folder: str | os.PathLike) -> None:
    """Makes a local folder and those above it.

    Raises:
      InputError: the path is a file or leads through one, or the folder cannot be made there.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise InputError(f"{folder}: no folder can be made there ({error.strerror}); choose another one") from None


def local_folder(path: str | os.PathLike, field: str) -> Path:
    """The folder that a configuration field names to write to; nothing is made yet.

    Args:
      field: as users write it.

    Raises:
      InputError: it is a URL or a file, or may not be written to.
    """
    refuse_url(path, field)
    there = _nearest_folder(path)
    if not there.is_dir():
        raise InputError(f"{field}={path}: {there} is not a folder; choose another one")
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"{field}={path}: {there} may not be written to; choose another folder")
    return Path(path)


def refuse_url(path: str | os.PathLike | None, field: str) -> None:
    """Refuses a URL where a local or mounted folder is needed.

    Raises:
      InputError: it is one; the message names the field.
    """
    if path is not None and is_remote(path):
        scheme = os.fspath(path).partition("://")[0]
        raise InputError(
            f"{field}={path}: {scheme}:// cannot be used here; give a local folder, or mount the bucket (gcsfuse, "
            "mountpoint-s3) and name the folder in the mount"
        )


@contextlib.contextmanager
def writing(path: str | os.PathLike, mode: str = "wb") -> Iterator[IO[Any]]:
    """Opens a file that appears at `path` whole or not at all.

    A local one is written beside it, synced to disk and renamed; a remote one appears when its upload is committed.

    Raises:
      DiskFull: there is no space for it; the partial file has been removed.
      InputError: a remote folder or bucket is not there, or may not be written to.
    """
    with _uploading(os.fspath(path)) if is_remote(path) else _replacing(Path(path)) as file:
        if "b" in mode:
            yield file
        else:
            text = io.TextIOWrapper(file, encoding="utf-8")
            yield text
            text.flush()
            text.detach()


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[IO[bytes]]:
    if path.is_dir():
        raise InputError(f"{path}: is a folder; name a file")
    # Random, since writers in containers that share a folder all have the same process id.
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:16]}.partial")
    with full_disk_named(path):
        make_folder(path.parent)
        with _created(partial) as file:
            try:
                yield file
                file.flush()
                os.fsync(file.fileno())
                os.replace(partial, path)
            finally:
                partial.unlink(missing_ok=True)


def _created(path: Path) -> IO[bytes]:
    """A new file, never one that is there already, nor one that a link of this name leads to."""
    try:
        return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666), "wb")
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        raise InputError(f"{path.parent}: may not be written to ({error.strerror}); choose another folder") from None


@contextlib.contextmanager
def _uploading(url: str) -> Iterator[IO[bytes]]:
    filesystem, inside = _remote(url)
    file = None
    try:
        # With autocommit, closing the file, as `with` does after an error too, would publish what was written so far.
        file = filesystem.open(inside, "wb", autocommit=False)
        filesystem.transaction.files.remove(file)  # fsspec would commit it with others at the end of a transaction
        yield file
        file.close()
        file.commit()
    except BaseException as error:
        if file is not None:
            file.discard()
        if isinstance(error, FileNotFoundError | PermissionError):
            raise _unwritable(url, error) from None
        raise


def create_file(url: str, content: bytes) -> bool:
    """Makes a remote file unless there is one already, whoever else tries; whether it was made.

    Raises:
      InputError: the bucket is not there, or may not be written to.
    """
    filesystem, inside = _remote(url)
    try:
        filesystem.pipe_file(inside, content, mode="create")
    except FileExistsError:
        return False
    except (FileNotFoundError, PermissionError) as error:
        raise _unwritable(url, error) from None
    return True


def _unwritable(url: str, error: Exception) -> InputError:
    return InputError(f"{url}: cannot be written ({error}); check that the bucket is there and your access to it")


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Writes `value` as indented JSON with sorted keys; NaN and infinity are refused."""
    text = json.dumps(value, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False)
    with writing(path, "w") as file:
        file.write(text + "\n")


def read_json(path: str | os.PathLike) -> Any:
    """Reads a JSON file.

    Raises:
      InputError: there is no such file, or it is not JSON; the message names file and line.
    """
    with open_file(path) as file:
        data = file.read()
    try:
        return json.loads(data)
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 at byte {error.start}; expected JSON") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}: is not valid JSON ({error.msg})") from None


# A JSON value as text in ASCII, the same for equal values.
canonical_json = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True).encode


def content_hash(value: Any) -> str:
    """SHA-256, in hexadecimal, of a JSON value in canonical form: equal values have equal hashes everywhere."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def file_bytes(path: str | os.PathLike) -> int:
    """Size of a file, local or remote."""
    if is_remote(path):
        filesystem, inside = _remote(path)
        return filesystem.size(inside)
    return os.path.getsize(path)


def join_path(folder: str | os.PathLike, name: str) -> Path | str:
    """`folder/name`, where the folder is local or a URL, which a `Path` would spoil."""
    return f"{os.fspath(folder).rstrip('/')}/{name}" if is_remote(folder) else Path(folder) / name


def path_inside(folder: str | os.PathLike, name: Any, where: str) -> Path | str:
    """`folder/name` for a name that was read from a file, which must not lead out of the folder.

    Links are followed. A model that the Hugging Face hub's cache holds consists of links into the `blobs` beside it.

    Args:
      where: the file and field that the name stands in.

    Raises:
      InputError: it is no relative path, or leads out of the folder.
    """
    parts = name.split("/") if isinstance(name, str) else [""]
    plain = all(part not in ("", ".", "..") and part.isprintable() and len(part) < 256 for part in parts)
    if not plain or "\\" in name or is_remote(name):
        raise InputError(f"{where}: {str(name)[:80]!r} is not the name of a file in {folder}; fetch or make it again")
    path = join_path(folder, name)
    if isinstance(path, Path):
        inside = Path(os.path.realpath(folder))
        allowed = [inside, inside.parents[1] / "blobs"] if inside.parent.name == "snapshots" else [inside]
        if not any(Path(os.path.realpath(path)).is_relative_to(root) for root in allowed):
            raise InputError(f"{where}: {path} is a link that leads out of the folder; put the file itself there")
    return path


def exists(path: str | os.PathLike) -> bool:
    """Whether there is a file or folder, local or remote."""
    if is_remote(path):
        filesystem, inside = _remote(path)
        return filesystem.exists(inside)
    return os.path.exists(path)


def remove_tree(path: str | os.PathLike) -> None:
    """Removes a file or a folder with all it holds, local or remote; nothing where there is none."""
    if is_remote(path):
        filesystem, inside = _remote(path)
        if filesystem.exists(inside):
            filesystem.rm(inside, recursive=True)
    elif os.path.isdir(path):
        shutil.rmtree(path)
    else:
        Path(path).unlink(missing_ok=True)


def file_hash(path: str | os.PathLike) -> str:
    """SHA-256, in hexadecimal, of a file's bytes."""
    file: Any
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
