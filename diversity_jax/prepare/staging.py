"""Staging directory of a preparation job: checksummed intermediate files, resume, exclusive lock.

It is `.preparing` inside the component's folder until the manifest is written. A file in it is finished when its record
(JSON, written after it) has its checksum; on a restart each is verified, and one that is damaged is made again.
"""

from collections.abc import Mapping
import contextlib
import logging
from pathlib import Path
from typing import Any

from diversity_jax.core.artifacts import ArtifactStore, exclusive_lock
from diversity_jax.core.files import is_remote, join_path, list_files, remove_tree
from diversity_jax.prepare.deduplicate import SIGNATURE_VERSION
from diversity_jax.prepare.manifest import SPLITS

NAME = ".preparing"
_REQUEST = "request.json"
_FORMAT = {"staging_format": 2, "signatures": SIGNATURE_VERSION}  # unfinished work of another format is made again
_LOCK_WAIT_SECONDS = 3.0  # the workers of a killed process take a moment to notice

log = logging.getLogger(__name__)


class Staging(ArtifactStore):
    """The staging directory of one component."""

    def __init__(self, component_folder: str | Path):
        super().__init__(join_path(component_folder, NAME))
        self._component_folder = component_folder

    def locked(self) -> contextlib.AbstractContextManager[int | None]:
        """Keeps other processes out; yields the lock's file descriptor, to be handed to worker processes.

        A remote folder is not locked: two preparations of the same request write the same files.

        Raises:
          FolderLocked: another process prepares this component.
        """
        if is_remote(self._component_folder):
            return contextlib.nullcontext()
        message = f"{self._component_folder}: is being prepared by {{holder}}; wait for it, or choose another folder"
        return exclusive_lock(self.path("lock"), message, wait_seconds=_LOCK_WAIT_SECONDS)

    def open(self, request: Mapping[str, Any]) -> None:
        """Resumes the unfinished work there if it was begun with the same request, else starts afresh and says so."""
        request = {**request, **_FORMAT}
        before = self.record(_REQUEST) or {}
        changed = self.changed_settings(_REQUEST, request)
        if changed == {}:
            self._remove_partial_files()
            return
        if changed:
            differences = ", ".join(f"{key} ({short(before.get(key))}, now {short(request[key])})" for key in changed)
            log.warning(
                "%s: the unfinished preparation there has another %s; starting afresh",
                self._component_folder,
                differences,
            )
        self.discard()
        self.commit(_REQUEST, request)

    def discard(self) -> None:
        """Removes all unfinished work, and shards that no manifest names; the lock stays."""
        self._remove_partial_files()
        for split in SPLITS:
            for path in list_files(join_path(self._component_folder, f"{split}-[0-9]*-of-[0-9]*.bin*")):
                remove_tree(path)
        self.clear()

    def close(self) -> None:
        """Removes the directory: its purpose is fulfilled, or cannot be."""
        remove_tree(self.folder)

    def _remove_partial_files(self) -> None:
        self.remove_partial()
        ArtifactStore(self._component_folder).remove_partial()


def short(value: Any) -> str:
    """A setting for a message: hashes are cut."""
    return value[:12] if isinstance(value, str) else str(value)
