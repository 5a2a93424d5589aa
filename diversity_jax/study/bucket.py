"""A folder in a bucket, with the one thing locks need: an object that is created only where there is none."""

from collections.abc import Mapping
import json
import logging
from pathlib import Path
import re
from typing import Any
import uuid

from diversity_jax.core.errors import InputError

_WHOLE_BYTES = 32 << 20  # files up to this size are read before they go up, so that one still growing goes up as it was
_UNFINISHED = re.compile(r"(^|/)\.|orbax-checkpoint-tmp|\.tmp($|/)")


def is_finished_file(name: str) -> bool:
    """Whether a path is none of those that are written first and renamed when whole."""
    return not _UNFINISHED.search(name)


class Bucket:
    """Objects under a URL, by fsspec.

    Raises:
      InputError: no package for the URL, no access, or a store that cannot refuse to overwrite.
    """

    def __init__(self, url: str):
        import fsspec

        self._url = url.rstrip("/")
        logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it logs the traceback of what it raises
        try:
            self.files, root = fsspec.core.url_to_fs(self._url)
        except (ImportError, ValueError) as error:
            raise InputError(f"output_dir={url}: {error}") from None
        self.root = root.rstrip("/")

    def check(self) -> None:
        """Refuses a store that lets two processes create the same object, or that cannot be reached."""
        name = f"records/probe-{uuid.uuid4().hex}"
        try:
            refused = self.create(name, {}) and not self.create(name, {})
            self.remove(name)
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise InputError(
                f"output_dir={self._url}: cannot be written to ({reason}); check bucket and keys"
            ) from None
        if not refused:
            raise InputError(
                f"output_dir={self._url}: this store cannot create a file only where there is none; use gs:// or a "
                "folder"
            )

    def url(self, name: str) -> str:
        """The full name of an object."""
        return f"{self._url}/{name}".rstrip("/")

    def create(self, name: str, value: Mapping[str, Any]) -> bool:
        """Writes JSON where there is no object; False where there is one that another call wrote."""
        value = {**value, "written_by": uuid.uuid4().hex}
        try:
            self.files.pipe_file(self._path(name), _json(value), mode="create")
        except Exception as error:
            if not _was_there(error):
                raise
            there = self.read(name)  # an answer that was lost on its way is asked for again, and then refused
            return there is not None and there.get("written_by") == value["written_by"]
        return True

    def write(self, name: str, value: Mapping[str, Any]) -> None:
        """Writes JSON, whatever is there."""
        self.files.pipe_file(self._path(name), _json(value))

    def read(self, name: str) -> dict[str, Any] | None:
        """JSON of an object; None where there is none."""
        try:
            return json.loads(self.files.cat_file(self._path(name)))
        except FileNotFoundError:
            return None

    def names(self, folder: str, *, within: bool = True) -> dict[str, Any]:
        """Objects in a folder, each with a mark that changes when it is written again; `within`: by the folders in
        it.
        """
        self.files.invalidate_cache()
        prefix = self._path(folder)
        try:
            objects = self.files.find(prefix, detail=True)
        except FileNotFoundError:
            return {}
        flat = {path.removeprefix(prefix).lstrip("/"): _mark(info) for path, info in objects.items()}
        if not within:
            return flat
        found: dict[str, dict[str, str]] = {}
        for path, mark in flat.items():
            inner, _, name = path.rpartition("/")
            found.setdefault(inner, {})[name] = mark
        return found

    def put(self, path: Path, name: str) -> int:
        """Puts a file up; its size. One that grows meanwhile goes up as far as it was, or, if large, not: then
        FileNotFoundError.
        """
        size = path.stat().st_size
        if size <= _WHOLE_BYTES:
            data = path.read_bytes()
            self.files.pipe_file(self._path(name), data)
            return len(data)
        self.files.put_file(str(path), self._path(name))
        if path.stat().st_size != size:
            raise FileNotFoundError(path)
        return size

    def get(self, name: str, path: Path) -> None:
        """Fetches a file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.files.get_file(self._path(name), str(path))

    def remove(self, name: str) -> None:
        """Removes an object, or all under a name; nothing where there is none."""
        try:
            self.files.invalidate_cache()
            self.files.rm(self._path(name), recursive=True)
        except FileNotFoundError:
            return

    def _path(self, name: str) -> str:
        return f"{self.root}/{name}"


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, indent=1, sort_keys=True, allow_nan=False).encode()


def _mark(info: Mapping[str, Any]) -> str:
    """What a store says of an object's last writing; stores name it differently."""
    names = ("generation", "etag", "ETag", "updated", "LastModified", "last_modified", "created", "mtime", "size")
    return " ".join(str(info[name]) for name in names if name in info)


def _was_there(error: Exception) -> bool:
    """Whether a write was refused because the object exists; gcsfs passes the store's own answer on."""
    return isinstance(error, FileExistsError) or str(getattr(error, "code", "")) == "412"
