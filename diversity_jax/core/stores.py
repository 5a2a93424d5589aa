"""Object stores through fsspec: schemes, file systems, and errors in one line each; and what a folder holds.

`contents` recognises the folders that commands write, for the message to a user who gives one to the wrong command.
"""

from collections.abc import Iterator, Sequence
import contextlib
import errno
import io
import os
import re
from typing import Any

from diversity_jax.core.errors import InputError


class StoreError(InputError):
    """A disk, store or process failed; the input is not at fault, and a later run continues from the finished work."""


class DiskFull(StoreError):
    """A file could not be written because the disk or store is full."""


_REMOTE = re.compile(r"^[a-zA-Z][a-zA-Z0-9+.-]+://")
STORES = {"gs": "gcsfs", "gcs": "gcsfs", "s3": "s3fs", "s3a": "s3fs", "az": "adlfs", "abfs": "adlfs", "abfss": "adlfs"}
"""Schemes of the object stores that commands can write to -> the package that fsspec needs."""


def is_remote(path: str | os.PathLike) -> bool:
    """Whether `path` is a URL such as `gs://bucket/file`, which fsspec reads, and not a local path."""
    return bool(_REMOTE.match(os.fspath(path)))


def _scheme(url: str | os.PathLike) -> str:
    return os.fspath(url).partition("://")[0]


def remote(url: str | os.PathLike) -> tuple[Any, str]:
    """fsspec's file system of a URL, and the path in it. Cached listings are dropped: other processes write there.

    Raises:
      InputError: the scheme is not known, or its package is not installed.
    """
    import fsspec

    try:
        filesystem, inside = fsspec.core.url_to_fs(os.fspath(url))
    except ImportError as error:
        raise _not_installed(os.fspath(url), url, error) from None
    except ValueError as error:
        known = ", ".join(f"{scheme}://" for scheme in ("gs", "s3", "az"))
        raise InputError(f"{url}: cannot be read ({' '.join(str(error).split())}); use {known} or a path") from None
    filesystem.invalidate_cache()
    return filesystem, inside


def check_store(path: str | os.PathLike | None, field: str) -> None:
    """Refuses a URL that is no folder of a supported object store; uses no network.

    Raises:
      InputError: the scheme is not supported, or its package is not installed; the message names the field.
    """
    if path is None or not is_remote(path):
        return
    if _scheme(path) not in STORES:
        raise InputError(
            f"{field}={path}: {_scheme(path)}:// cannot be used here; give gs://, s3:// or az://, or a local folder"
        )
    import fsspec

    try:
        fsspec.get_filesystem_class(_scheme(path))
    except ImportError as error:
        raise _not_installed(f"{field}={path}", path, error) from None


def _not_installed(where: str, url: str | os.PathLike, error: ImportError) -> InputError:
    package = STORES.get(_scheme(url))
    return InputError(f"{where}: {f'needs the package {package}; pip install {package}' if package else error}")


_STORE_MODULES = {"aiobotocore", "aiohttp", "azure", "botocore", "fsspec", "gcsfs", "google", "requests", "s3fs"}
_STORE_MODULES |= {"httpcore", "httpcore2", "httpx", "httpx2", "huggingface_hub"}
_FULL = ("507", "Insufficient Storage", "StorageFull", "QuotaExceeded")


@contextlib.contextmanager
def store_errors(url: str | os.PathLike, *, written: bool = False) -> Iterator[None]:
    """Replaces errors of a store's client by one line that names the file; those of local paths are unchanged.

    Raises:
      InputError: the file or bucket is not there, or access is denied.
      DiskFull: the store has no space left.
      StoreError: anything else, after the client's own retries.
      FileExistsError: as the client raises it.
    """
    try:
        yield
    except (InputError, FileExistsError):
        raise
    except Exception as error:
        module = type(error).__module__.partition(".")[0]
        refused = isinstance(error, ValueError) and str(error).startswith("Bad Request")
        if not is_remote(url) or not (isinstance(error, OSError) or module in _STORE_MODULES or refused):
            raise
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        denied = isinstance(error, PermissionError) or reason.startswith("Forbidden") or "AccessDenied" in reason
        if written and (denied or isinstance(error, FileNotFoundError)):
            raise InputError(
                f"{url}: cannot be written ({reason}); check that the bucket is there and your access to it"
            ) from None
        if denied:
            raise InputError(f"{url}: may not be read ({reason}); check your access to it") from None
        if isinstance(error, FileNotFoundError):
            raise InputError(f"{url}: no such file; check the path") from None
        if getattr(error, "errno", None) == errno.ENOSPC or any(word in reason for word in _FULL):
            raise DiskFull(
                f"{url}: the store is full ({reason}); free space or choose another, then run again"
            ) from None
        what = "written" if written else "read"
        raise StoreError(
            f"{url}: could not be {what} ({reason}); nothing is lost: see to the network and the store, and run again"
        ) from error


class RemoteFile(io.RawIOBase):
    """The bytes of a remote file, with errors in one line; ending before its size is an error too."""

    def __init__(self, file: Any, url: str):
        self._file, self._url = file, url

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readinto(self, buffer: Any) -> int:
        with store_errors(self._url):
            data = self._file.read(len(buffer))
        if not data and len(buffer) and (self._file.size or 0) > self._file.tell():
            missing = f"ended after {self._file.tell():,} of {self._file.size:,} bytes"
            raise StoreError(f"{self._url}: {missing}; see to the network and the store, and run again")
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


# (description, files or folders that are all in such a folder); the first that fits describes a folder.
_KINDS: Sequence[tuple[str, Sequence[str]]] = (
    ("a training run", ("run.json", "checkpoints")),
    ("a training run without a checkpoint", ("run.json", "mixture")),
    ("a study", ("analysis.json",)),
    ("a study that is not finished", ("steps", "run.json")),
    ("an evaluation", ("results.json", "run.json")),
    ("an audit of a judge", ("audit.json",)),
    ("a generated component, whose text is documents/*.jsonl.zst", ("documents", "rounds")),
    ("a built mixture", ("mixture.json",)),
    ("a prepared component", ("manifest.json",)),
    ("a scoring", ("scoring.json",)),
    ("a scoring", ("scorecard.json",)),
    ("an imported model", ("model.json",)),
    ("a Hugging Face model", ("config.json",)),
)


def contents(folder: str | os.PathLike) -> str | None:
    """A description of a local folder that a command of this project wrote; None for others and for remote ones."""
    if is_remote(folder) or not os.path.isdir(folder):
        return None
    return next((what for what, names in _KINDS if all(os.path.exists(os.path.join(folder, n)) for n in names)), None)


def refuse_other_than_model(folder: str | os.PathLike, field: str = "") -> None:
    """Refuses a folder that a command wrote and that holds no model.

    Raises:
      InputError: it does; `field`, which ends in an equals sign, begins the message.
    """
    kind = contents(folder)
    if kind is not None and not kind.endswith(" model") and not kind.startswith("a training run"):
        wanted = "give a training run's folder, or a model's"
        raise InputError(f"{field}{folder}: holds {kind}, not a model; {wanted}")


def refuse_as_text(folder: str | os.PathLike) -> None:
    """Refuses a folder that a command wrote and that holds no text.

    Raises:
      InputError: it does; the message names what it holds.
    """
    kind = contents(folder)
    if kind is not None and not kind.endswith((" model", " component")):  # others have such files beside text, too
        raise InputError(f"{folder}: holds {kind}, not text; name files with text")


def but_holds(folder: str | os.PathLike) -> str:
    """The end of a message about a missing file, such as `; the folder holds a scoring`; empty where unknown."""
    kind = contents(folder)
    return f"; the folder holds {kind}" if kind else ""
