"""Files, local or remote: opening, listing, removing, atomic writing, hashing, JSON, and paths."""

from collections.abc import Iterator
import contextlib
import errno
import glob
import hashlib
import io
import json
import os
from pathlib import Path
import shutil
import sys
from typing import IO, Any
import uuid

from diversity_jax.core.errors import InputError, without_secrets
from diversity_jax.core.json_text import parse_json
from diversity_jax.core.stores import DiskFull, RemoteFile, StoreError, but_holds, is_remote, remote, store_errors

_READ_BYTES = 1 << 20


def open_file(path: str | os.PathLike, mode: str = "rb") -> IO[Any]:
    """Opens a local path or any fsspec URL.

    Raises:
      InputError: there is no such file, it is a folder, or it may not be read.
    """
    try:
        if is_remote(path):
            filesystem, inside = remote(path)
            with store_errors(path):
                file = io.BufferedReader(RemoteFile(filesystem.open(inside, "rb"), os.fspath(path)), _READ_BYTES)
            return file if "b" in mode else io.TextIOWrapper(file, encoding="utf-8")
        return open(path, mode)
    except FileNotFoundError:
        remedy = but_holds(os.path.dirname(path)) or "; check the path"
        raise InputError(f"{path}: no such file{remedy}") from None
    except IsADirectoryError:
        raise InputError(f"{path}: is a folder; name a file or a pattern such as {path}/*") from None
    except PermissionError:
        raise InputError(f"{path}: may not be opened; check its permissions") from None


def list_files(pattern: str | os.PathLike) -> list[str]:
    """Files that match a path or glob pattern, local or remote, sorted by name; possibly none.

    Raises:
      InputError: a local match is a broken link.
    """
    pattern = os.fspath(pattern)
    if is_remote(pattern):
        filesystem, path = remote(pattern)
        with store_errors(pattern):
            try:
                return sorted(map(filesystem.unstrip_protocol, filesystem.glob(path)))
            except FileNotFoundError:  # no such bucket
                return []
    if os.path.isfile(pattern):
        return [pattern]
    matches = glob.glob(pattern, recursive=True)
    for path in matches:
        if os.path.islink(path) and not os.path.exists(path):
            raise InputError(f"{path}: is a link to {os.readlink(path)}, which is not there; mend or remove it")
    return sorted(filter(os.path.isfile, matches))


@contextlib.contextmanager
def disk_errors_named(path: str | os.PathLike) -> Iterator[None]:
    """Replaces the error of a full or read-only disk by one line that names the file that was being written.

    Raises:
      DiskFull: the block ran out of disk space.
      InputError: it may not write there.
    """
    try:
        yield
    except OSError as error:
        where = Path(path).parent
        is_refused = error.errno in (errno.EACCES, errno.EPERM, errno.EROFS)
        if is_refused and Path(error.filename or path).parent == where:  # not of a file that the block reads
            raise InputError(f"{where}: may not be written to ({error.strerror}); choose another folder") from None
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DiskFull(f"{path}: the disk is full; free space or choose another folder, then run again") from error


def free_bytes(path: str | os.PathLike) -> int:
    """Free disk space where a local path is, or would be; a huge number where a mount reports none."""
    usage = shutil.disk_usage(_nearest_folder(path))
    return usage.free if usage.total else sys.maxsize


def _nearest_folder(path: str | os.PathLike) -> Path:
    """The path itself, or the nearest folder above it that exists."""
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


def user_cache(name: str) -> Path:
    """The cache folder for one kind of file, under XDG_CACHE_HOME or ~/.cache; it need not exist."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "diversity_jax", name)


def local_folder(path: str | os.PathLike, field: str) -> Path:
    """The output folder that a configuration field names, checked; nothing is made yet.

    Args:
      field: as users write it.

    Raises:
      InputError: it is empty, is a file, may not be written to, or begins with a `~` that the shell left.
    """
    if not os.fspath(path).strip():
        raise InputError(f"{field} is empty; name a folder (. for the current one)")
    if Path(path).parts[:1] == ("~",):
        raise InputError(f"{field}={path}: ~ was not replaced by the shell; write {Path(path).expanduser()}")
    there = _nearest_folder(path)
    if not there.is_dir():
        raise InputError(f"{field}={path}: {there} is not a folder; choose another one")
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"{field}={path}: {there} may not be written to; choose another folder")
    return Path(path)


@contextlib.contextmanager
def writing(path: str | os.PathLike, mode: str = "wb") -> Iterator[IO[Any]]:
    """Opens a file for writing, atomically: it appears at `path` when it is complete.

    A local file is written beside `path`, synced and renamed; a remote one appears when its upload is committed.

    Raises:
      DiskFull: there is no space for it; the partial file has been removed.
      InputError: a remote folder or bucket is not there, or may not be written to.
    """
    with contextlib.ExitStack() as resources:
        if is_remote(path):
            file = resources.enter_context(_uploading(os.fspath(path)))
        else:
            file = resources.enter_context(open(resources.enter_context(path_to_write(Path(path))), "xb"))
        if "b" in mode:
            yield file
        else:
            text = io.TextIOWrapper(file, encoding="utf-8")
            yield text
            text.flush()
            text.detach()


@contextlib.contextmanager
def path_to_write(path: Path) -> Iterator[Path]:
    """A path for a local file, which is synced and renamed to `path` when the block ends without an error."""
    if path.is_dir():
        raise InputError(f"{path}: is a folder; name a file")
    # Random, since writers in containers that share a folder all have the same process id.
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:16]}.partial")
    with disk_errors_named(path):
        make_folder(path.parent)
        try:
            yield partial
            with open(partial, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


_WRITE_BYTES = 16 << 20  # sent at once; gcsfs waits for each block


@contextlib.contextmanager
def _uploading(url: str) -> Iterator[IO[bytes]]:
    filesystem, inside = remote(url)
    file = None
    with store_errors(url, written=True):
        try:
            # With autocommit, closing the file, also after an error, would publish what was written so far.
            file = filesystem.open(inside, "wb", autocommit=False, block_size=_WRITE_BYTES)
            filesystem.transaction.files.remove(file)  # fsspec would commit it with others at the end of a transaction
            yield file
            file.close()
            file.commit()
        except BaseException:
            if file is not None:
                with contextlib.suppress(Exception):  # the first error is the one to report
                    file.discard()
            raise


def create_file(url: str, content: bytes) -> bool:
    """Makes a remote file unless it exists, atomically among processes; returns whether it was made.

    Raises:
      InputError: the bucket is not there, or may not be written to.
    """
    filesystem, inside = remote(url)
    with store_errors(url, written=True):
        try:
            filesystem.pipe_file(inside, content, mode="create")
        except FileExistsError:
            return False
    return True


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Writes `value` as indented JSON with sorted keys; NaN and infinity are refused."""
    text = json.dumps(value, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False)
    with writing(path, "w") as file:
        file.write(text + "\n")


def read_text(path: str | os.PathLike) -> str:
    """Reads a text file.

    Raises:
      InputError: there is no such file, it may not be read, or it is not UTF-8.
    """
    with open_file(path) as file:
        data = file.read()
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 at byte {error.start}; convert the file") from None


def read_json(path: str | os.PathLike) -> Any:
    """Reads a JSON file.

    Raises:
      InputError: there is no such file, or it is not JSON; the message names file and line.
    """
    with open_file(path) as file:
        return parse_json(file.read(), f"{path}", number_lines=True)


# Encodes a JSON value as ASCII text that is the same for equal values.
canonical_json = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True).encode


def content_hash(value: Any) -> str:
    """SHA-256, in hexadecimal, of a JSON value in canonical form: equal values have equal hashes everywhere."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def file_bytes(path: str | os.PathLike) -> int:
    """Size of a file, local or remote."""
    if is_remote(path):
        filesystem, inside = remote(path)
        with store_errors(path):
            return filesystem.size(inside)
    return os.path.getsize(path)


def read_range(path: str | os.PathLike, start: int, size: int) -> bytes:
    """`size` bytes of a file from `start` on, local or remote, in one request.

    Raises:
      InputError: there is no such file, or it may not be read.
      StoreError: fewer bytes came.
    """
    if is_remote(path):
        filesystem, inside = remote(path)
        with store_errors(path):
            data = filesystem.cat_file(inside, start=start, end=start + size)
    else:
        with open_file(path) as file:
            file.seek(start)
            data = file.read(size)
    if len(data) != size:
        raise StoreError(f"{path}: gave {len(data):,} of {size:,} bytes from {start:,} on; run again")
    return data


def join_path(folder: str | os.PathLike, *names: str) -> Path | str:
    """`folder/name`, where the folder is local or a URL, which a `Path` would spoil."""
    return "/".join([os.fspath(folder).rstrip("/"), *names]) if is_remote(folder) else Path(folder, *names)


def relative_path(path: str | os.PathLike, folder: str | os.PathLike) -> str:
    """`path` relative to `folder`; unchanged where they are not on the same disk or in the same bucket.

    A password in a URL is left out: readers of the file log in with their own.
    """
    if is_remote(path) != is_remote(folder) or (is_remote(path) and _bucket(path) != _bucket(folder)):
        return without_secrets(os.fspath(path))
    return os.path.relpath(path, folder)


def resolve_path(folder: str | os.PathLike, name: str) -> Path | str:
    """The path or URL that `relative_path` turned into `name`."""
    if is_remote(name) or os.path.isabs(name):
        return name if is_remote(name) else Path(name)
    if not is_remote(folder):
        return Path(os.path.normpath(Path(folder, name)))
    scheme, _, inside = os.fspath(folder).partition("://")
    return f"{scheme}://{os.path.normpath(os.path.join(inside, name))}"


def _bucket(url: str | os.PathLike) -> list[str]:
    return os.fspath(url).split("/")[:3]


def canonical_path(path: str | os.PathLike) -> str:
    """An absolute path without links, or the URL without a slash at its end: equal for the same folder."""
    return os.fspath(path).rstrip("/") if is_remote(path) else str(Path(path).resolve())


def parent_folder(path: str | os.PathLike) -> Path | str:
    """The folder that a file or folder lies in, local or remote."""
    return os.fspath(path).rstrip("/").rpartition("/")[0] if is_remote(path) else Path(path).parent


def is_inner_name(name: Any) -> bool:
    """Whether a value is the relative path of a file, parts with `/` between them, that cannot lead out of a folder."""
    parts = name.split("/") if isinstance(name, str) else [""]
    plain = all(part not in ("", ".", "..") and part.isprintable() and len(part) < 256 for part in parts)
    return plain and "\\" not in name and not is_remote(name)


def path_inside(folder: str | os.PathLike, name: Any, where: str) -> Path | str:
    """`folder/name` for a name that was read from a file, which must not lead out of the folder.

    Links are followed. A model that the Hugging Face hub's cache holds consists of links into the `blobs` beside it.

    Args:
      where: the file and field that hold the name.

    Raises:
      InputError: it is no relative path, or leads out of the folder.
    """
    if not is_inner_name(name):
        raise InputError(f"{where}: {str(name)[:80]!r} is not the name of a file in {folder}; fetch or make it again")
    path = join_path(folder, name)
    if isinstance(path, Path):
        inside = Path(os.path.realpath(folder))
        allowed = [inside, inside.parents[1] / "blobs"] if inside.parent.name == "snapshots" else [inside]
        if not any(Path(os.path.realpath(path)).is_relative_to(root) for root in allowed):
            raise InputError(f"{where}: {path} is a link that leads out of the folder; put the file itself there")
    return path


def exists(path: str | os.PathLike) -> bool:
    """Whether there is a file or folder, local or remote.

    Raises:
      StoreError: the store could not be asked.
    """
    if not is_remote(path):
        return os.path.exists(path)
    filesystem, inside = remote(path)
    with store_errors(path):
        try:
            filesystem.info(inside)
        except FileNotFoundError:
            return False
    return True


def remove_tree(path: str | os.PathLike) -> None:
    """Removes a file or a folder with all it holds, local or remote; does nothing where there is none."""
    if is_remote(path):
        filesystem, inside = remote(path)
        with store_errors(path, written=True):
            if exists(path):
                filesystem.rm(inside, recursive=True)
    elif os.path.isdir(path):
        shutil.rmtree(path)
    else:
        Path(path).unlink(missing_ok=True)


def copy_tree(source: str | os.PathLike, target: str | os.PathLike) -> None:
    """Copies a folder within its bucket; the store copies the files."""
    filesystem, inside = remote(source)
    with store_errors(source):
        filesystem.copy(inside, remote(target)[1], recursive=True)


def file_hash(path: str | os.PathLike) -> str:
    """SHA-256, in hexadecimal, of a file's bytes."""
    file: Any
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
