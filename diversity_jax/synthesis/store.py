"""A component on disk: rounds of documents, each committed by a small file.

`documents/00007.jsonl.zst` and `rejects/00007.jsonl.zst` are written first, `rounds/00007.json` last: a round without
its JSON file is ignored and made again under the same name. `rounds/open.json` names the round in progress.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
import io
import itertools
import json
from pathlib import Path
from typing import Any

from diversity_jax.core.artifacts import ArtifactStore
from diversity_jax.core.compression import read_lines
from diversity_jax.core.errors import InputError
from diversity_jax.core.files import writing
from diversity_jax.core.json_text import parse_json

_OPEN = "rounds/open.json"


class Store:
    """The folder of a component; `rounds` are the summaries of the committed rounds, in order."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self._artifacts = ArtifactStore(folder)
        self.rounds: list[dict[str, Any]] = []
        while (summary := self._artifacts.record(f"rounds/{len(self.rounds):05}.json")) is not None:
            self.rounds.append(summary)

    @property
    def documents_pattern(self) -> str:
        """The component as a corpus source."""
        return str(self.folder / "documents" / "*.jsonl.zst")

    def check_settings(self, settings: Mapping[str, Any]) -> None:
        """Stores the settings that determine the component's content, or compares them with the stored ones.

        Raises:
          InputError: they differ; the message names the settings.
        """
        changed = self._artifacts.changed_settings("settings.json", settings)
        if changed is None:
            self._artifacts.commit("settings.json", settings)
        elif changed:
            raise InputError(
                f"{self.folder}: was begun with other settings ({', '.join(changed)}); choose another output_dir, or "
                "set them back"
            )

    def open_round(self, number: int) -> bool:
        """Marks a round as begun; returns whether an earlier process had begun and not committed it."""
        interrupted = self._artifacts.record(_OPEN) == {"round": number}
        if not interrupted:
            self._artifacts.commit(_OPEN, {"round": number})
        return interrupted

    def commit(
        self, summary: Mapping[str, Any], documents: Sequence[Mapping[str, Any]], rejects: Sequence[Mapping[str, Any]]
    ) -> None:
        """Writes a round and its record."""
        number = len(self.rounds)
        for name, records in (("documents", documents), ("rejects", rejects)):
            path = self.folder / name / f"{number:05}.jsonl.zst"
            if records:
                write_records(path, records)
            else:
                path.unlink(missing_ok=True)
        self._artifacts.commit(f"rounds/{number:05}.json", summary)
        self._artifacts.withdraw(_OPEN)
        self.rounds.append(dict(summary))

    def documents(self) -> Iterator[dict[str, Any]]:
        """All documents of committed rounds, in order."""
        return self._records("documents")

    def rejects(self) -> Iterator[dict[str, Any]]:
        """All rejected answers, in order."""
        return self._records("rejects")

    def _records(self, name: str) -> Iterator[dict[str, Any]]:
        for number in range(len(self.rounds)):
            path = self.folder / name / f"{number:05}.jsonl.zst"
            if path.exists():
                for line in itertools.chain.from_iterable(read_lines(str(path))):
                    yield parse_json(line, f"{path}")


def write_records(path: str | Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Writes records as Zstandard-compressed JSON Lines, atomically."""
    import zstandard

    with writing(path) as file, zstandard.ZstdCompressor(level=6).stream_writer(file, closefd=False) as compressed:
        lines = io.TextIOWrapper(compressed, encoding="utf-8")
        for record in records:
            lines.write(json.dumps(record, ensure_ascii=False) + "\n")
        lines.flush()
        lines.detach()
