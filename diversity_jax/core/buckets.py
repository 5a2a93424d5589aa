"""Bucket folders for code that works on a disk: a local folder mirrored to the bucket, and local copies of files.

Logs that grow line by line, databases and pages are written to a local folder. Each file is uploaded when it has
changed, oldest first, so that the files that a record names exist before the record.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
import contextlib
import dataclasses
from dataclasses import dataclass
import functools
import hashlib
import logging
import os
from pathlib import Path
import shutil
import sqlite3
import tempfile
import threading
import time
from typing import Any, TypeVar

from diversity_jax.core.artifacts import exclusive_lock, locked_folder
from diversity_jax.core.errors import InputError
from diversity_jax.core.files import (
    is_inner_name,
    join_path,
    local_folder,
    make_folder,
    read_json,
    remove_tree,
    user_cache,
    write_json,
    writing,
)
from diversity_jax.core.stores import StoreError, check_store, is_remote, remote, store_errors

C = TypeVar("C")
log = logging.getLogger(__name__)

_THREADS = 8  # transfers release the interpreter lock
_PUSH_SECONDS = 30.0  # between uploads of what has changed
_COPY_BYTES = 8 << 20
_LOCAL_ONLY = (".partial", ".lock", "-wal", "-shm", "-journal")


def cache_folder() -> Path:
    """The folder of local copies of buckets: `DIVERSITY_JAX_CACHE`, else under XDG_CACHE_HOME or ~/.cache."""
    given = os.environ.get("DIVERSITY_JAX_CACHE")
    return Path(given or user_cache("buckets"))


@dataclass(frozen=True, kw_only=True)
class RemoteFileInfo:
    """One file of a bucket's folder; `version` changes when it is written again."""

    bytes: int
    version: str


def remote_tree(url: str) -> dict[str, RemoteFileInfo]:
    """All files below a URL, by their names relative to it; empty where there are none.

    Raises:
      InputError: a name, such as `x/../../y`, would lead out of the folder of a copy.
    """
    filesystem, inside = remote(url)
    inside = inside.rstrip("/")
    with store_errors(url):
        try:
            listing = filesystem.find(inside, detail=True)
        except FileNotFoundError:
            return {}
        for name, info in listing.items():
            if info.get("size") is None and not name.endswith("/"):  # as in listings of HTTP servers
                info["size"] = filesystem.size(name)
    tree = {
        name[len(inside) + 1 :]: _file_info(info)
        for name, info in listing.items()
        if name.startswith(f"{inside}/") and not name.endswith("/")
    }
    if outside := next((name for name in tree if not is_inner_name(name)), None):
        raise InputError(f"{url}: holds {outside[:80]!r}, which is not the name of a file in a folder; remove it there")
    return tree


def _file_info(info: Mapping[str, Any]) -> RemoteFileInfo:
    version = next((info[key] for key in ("generation", "ETag", "etag", "md5Hash", "mtime") if info.get(key)), "")
    return RemoteFileInfo(bytes=int(info.get("size") or 0), version=str(version))


def _download(url: str, name: str, info: RemoteFileInfo, folder: Path) -> None:
    """Copies one file of a bucket's folder into `folder`, atomically."""
    filesystem, inside = remote(join_path(url, name))
    with writing(folder / name) as target, store_errors(join_path(url, name)):
        with filesystem.open(inside, "rb", block_size=_COPY_BYTES, cache_type="readahead") as source:
            shutil.copyfileobj(source, target, _COPY_BYTES)
        got = target.tell()
    if got != info.bytes:
        (folder / name).unlink()
        raise StoreError(f"{url}/{name}: ended after {got:,} of {info.bytes:,} bytes; run again")


def _in_threads(work: Callable[[str], None], names: Iterable[str]) -> None:
    with ThreadPoolExecutor(_THREADS) as threads:
        for done in [threads.submit(work, name) for name in names]:
            done.result()


def _url_hash(url: str) -> str:
    return hashlib.sha256(url.rstrip("/").encode()).hexdigest()[:16]


def local_copy(path: str | os.PathLike, wanted: Callable[[str], bool] = lambda name: True) -> Path:
    """A local path as it is; for a URL, a copy of the file or folder on this machine's disk.

    Files that were copied before and have not changed in the bucket are not copied again.

    Args:
      wanted: which files of a folder, by their names relative to it.

    Raises:
      InputError: there is nothing at the URL.
      StoreError: it could not be read to its end.
    """
    if not is_remote(path):
        return Path(path)
    url = os.fspath(path).rstrip("/")
    root = cache_folder() / "copies" / _url_hash(url)
    folder = root / url.rsplit("/", 1)[-1]
    tree = remote_tree(url)
    if not tree:
        filesystem, inside = remote(url)
        with store_errors(url):
            info = filesystem.info(inside)
            if info.get("type") == "directory":
                raise InputError(f"{url}: the folder is empty")
            source, name, folder = url.rpartition("/")[0], url.rpartition("/")[2], root
            tree = {name: _file_info(info)}
    else:
        source, name = url, ""
    chosen = {key: info for key, info in tree.items() if name or wanted(key)}
    with exclusive_lock(root / ".copying", f"{url}: {{holder}} is copying it; wait", wait_seconds=600):
        index_path = root / ".index.json"
        index = read_json(index_path) if index_path.exists() else {}
        stale = [
            key
            for key, info in chosen.items()
            if index.get(key) != dataclasses.asdict(info) or not (folder / key).exists()
        ]
        for key in {*index} - {*tree}:
            (folder / key).unlink(missing_ok=True)
        _in_threads(lambda key: _download(source, key, chosen[key], folder), stale)
        unchanged = {key: value for key, value in index.items() if key in tree and key not in chosen}
        write_json(index_path, unchanged | {key: dataclasses.asdict(info) for key, info in chosen.items()})
    return folder / name if name else folder


def staging_folder(url: str | os.PathLike, process: int = 0) -> Path:
    """The local folder that a process mirrors to a bucket's while it writes to it."""
    return cache_folder() / "published" / f"{_url_hash(os.fspath(url))}-{process}"


_PUBLISHED: dict[str, str] = {}
"""Local folder -> URL of the bucket's folder that it is mirrored to; temporary file -> what it holds."""


def set_public_name(path: str, name: str) -> None:
    """Makes `public_name` name a temporary file by what it holds."""
    _PUBLISHED[path] = name


def public_name(text: str | os.PathLike) -> str:
    """A path or message in which mirrored local folders are replaced by the URL of their bucket's folder, and temporary
    files by what they hold.
    """
    name = os.fspath(text)
    for local, url in _PUBLISHED.items():
        name = name.replace(local, url)
    return name


class Mirror:
    """A local folder whose files are uploaded to a bucket's as they change.

    Args:
      url: the bucket's folder.
      folder: the local one; files that a killed process of this machine left there are used if the bucket is unchanged.
      skipped: names of files in the bucket that are neither fetched nor removed.
    """

    def __init__(self, url: str, folder: Path, skipped: Callable[[str], bool]):
        self.url, self.folder, self._skipped = url.rstrip("/"), folder, skipped
        self._index_path = folder.parent / f"{folder.name}.index.json"
        self._index: dict[str, Any] = {}
        self._lock, self._ended, self._last_seconds = threading.Lock(), threading.Event(), 0.0
        self._thread = threading.Thread(target=self._keep_pushing, name="upload", daemon=True)

    def pull(self) -> None:
        """Fetches the bucket's files, unless they are still those that this machine last uploaded."""
        tree = {
            name: info
            for name, info in remote_tree(self.url).items()
            if not (name.endswith(_LOCAL_ONLY) or self._skipped(name))
        }
        known = read_json(self._index_path) if self._index_path.exists() else None
        versions = {name: info.version for name, info in tree.items()}
        if known is None or {name: file["version"] for name, file in known.items()} != versions:
            remove_tree(self.folder)
            _in_threads(lambda name: _download(self.url, name, tree[name], self.folder), tree)
            known = {name: {"version": info.version, **self._stamp(name)} for name, info in tree.items()}
        make_folder(self.folder)
        self._index = known
        write_json(self._index_path, self._index)

    def _stamp(self, name: str) -> dict[str, int]:
        status = (self.folder / name).stat()
        return {"bytes": status.st_size, "changed": status.st_mtime_ns}

    def start(self) -> None:
        """Uploads from now on, in a thread."""
        self._thread.start()

    def _keep_pushing(self) -> None:
        while not self._ended.wait(max(_PUSH_SECONDS, 10 * self._last_seconds)):
            try:
                self.push()
            except Exception as error:  # the network may be back at the next time; the last push raises
                log.warning("%s: could not be brought up to date (%s)", self.url, " ".join(str(error).split())[:200])

    def push(self) -> None:
        """Uploads what has changed, and removes from the bucket what was removed here.

        Raises:
          StoreError: the store failed; what is not uploaded stays in the local folder.
        """
        began = time.monotonic()
        with self._lock:
            stamps = {}
            for path in self.folder.rglob("*"):
                name = path.relative_to(self.folder).as_posix()
                with contextlib.suppress(FileNotFoundError):  # written and renamed meanwhile
                    if path.is_file() and not name.endswith(_LOCAL_ONLY):
                        stamps[name] = self._stamp(name)
            for name, stamp in sorted(stamps.items(), key=lambda item: item[1]["changed"]):
                known = self._index.get(name)
                if known is None or {key: known[key] for key in stamp} != stamp:
                    self._upload(name, stamp)
            # A folder's listing may miss a file that is being replaced, hence the second look.
            for name in [each for each in self._index if each not in stamps and not (self.folder / each).exists()]:
                remove_tree(str(join_path(self.url, name)))
                del self._index[name]
                write_json(self._index_path, self._index)
        self._last_seconds = time.monotonic() - began

    def _upload(self, name: str, stamp: Mapping[str, int]) -> None:
        url, path = str(join_path(self.url, name)), self.folder / name
        with contextlib.ExitStack() as resources:
            if path.suffix == ".sqlite":  # a copy of a database that is being written to would be torn
                path = resources.enter_context(_snapshot(path))
            try:
                source = resources.enter_context(open(path, "rb"))
            except FileNotFoundError:
                return
            with writing(url) as target:
                shutil.copyfileobj(source, target, _COPY_BYTES)
        filesystem, inside = remote(url)
        with store_errors(url):
            version = _file_info(filesystem.info(inside)).version
        self._index[name] = {"version": version, **stamp}
        write_json(self._index_path, self._index)

    def close(self, *, last_push: bool = True) -> None:
        """Ends the thread, and uploads the rest.

        Raises:
          StoreError: the store failed.
        """
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()
        if last_push:
            self.push()


@contextlib.contextmanager
def _snapshot(path: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / path.name
        with (
            contextlib.closing(sqlite3.connect(path)) as source,
            contextlib.closing(sqlite3.connect(copy)) as target,
        ):
            source.backup(target)
        yield copy


@contextlib.contextmanager
def published(
    folder: str | os.PathLike,
    field: str,
    *,
    process: int = 0,
    skipped: Callable[[str], bool] = lambda name: False,
    mirrors: list[Mirror] | None = None,
) -> Iterator[Path]:
    """The local folder to write to: a local one itself; for a bucket's, one that is mirrored to it.

    Process 0 locks the bucket's folder, against processes of all machines, until everything is uploaded.

    Args:
      field: as users write it.
      process: number of this process among those of one run; only process 0 fetches files.
      skipped: names of files in the bucket that are neither fetched nor removed.
      mirrors: receives the `Mirror` of a bucket's folder, for uploads at a given moment.

    Raises:
      InputError: the folder cannot be written to, or another process is writing to it.
      StoreError: the store failed; the message says where the files are that could not be uploaded.
    """
    if not is_remote(folder):
        yield local_folder(folder, field)
        return
    check_store(folder, field)
    url = os.fspath(folder).rstrip("/")
    local = staging_folder(url, process)
    with contextlib.ExitStack() as resources:
        if not process:
            resources.enter_context(locked_folder(url))
        holder = f"{field}={url}: {{holder}} of this machine is writing to it; wait for it"
        resources.enter_context(exclusive_lock(local.parent / f"{local.name}.lock", holder))
        mirror = Mirror(url, local, skipped if not process else lambda name: True)
        if process:
            remove_tree(local)
        mirror.pull()
        _PUBLISHED[str(local)] = url
        resources.callback(_PUBLISHED.pop, str(local))
        if mirrors is not None:
            mirrors.append(mirror)
        mirror.start()
        try:
            yield local
        except BaseException as raised:
            if isinstance(raised, InputError):
                raised.args = (public_name(str(raised)), *raised.args[1:])
            with contextlib.suppress(Exception):  # the first error is the one to report
                mirror.close()
            raise
        try:
            mirror.close()
        except InputError as error:
            raise StoreError(
                f"{error}; what is not there yet is in {local}, and goes there by the same command"
            ) from None


@contextlib.contextmanager
def published_file(path: str | os.PathLike) -> Iterator[Path]:
    """The local file to write: a local path itself; for a URL, one that is uploaded at the end."""
    if not is_remote(path):
        yield Path(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder) / os.fspath(path).rsplit("/", 1)[-1]
        yield local
        with open(local, "rb") as source, writing(path) as target:
            shutil.copyfileobj(source, target, _COPY_BYTES)


def writes_to(field: str) -> Callable[[Callable[[C], Any]], Callable[[C], Any]]:
    """Decorates a command whose configuration names, as `field`, the folder it writes to: it may lie in a bucket."""

    def decorate(command: Callable[[C], Any]) -> Callable[[C], Any]:
        @functools.wraps(command)
        def run(config: C) -> Any:
            folder = getattr(config, field)
            if not is_remote(folder):
                local_folder(folder, field)
                return command(config)
            with published(folder, field) as local:
                return command(dataclasses.replace(config, **{field: str(local)}))  # type: ignore[type-var]

        return run

    return decorate
