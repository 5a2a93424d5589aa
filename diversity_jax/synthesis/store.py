"""A component on disk: rounds of documents, each written whole and then committed by one small file.

`documents/00007.jsonl.zst` and `rejects/00007.jsonl.zst` are written first, `rounds/00007.npz` next,
`rounds/00007.json` last: a round without its JSON file never happened, and what it left is written over by the same
round done again. `rounds/open.json` names the round that is being worked on.
"""

from collections.abc import Iterator, Mapping, Sequence
import io
import json
from pathlib import Path
from typing import Any

import numpy as np

from diversity_jax.core.errors import InputError
from diversity_jax.core.files import content_hash, read_json, read_lines, write_json, writing


class Store:
    """The folder of one component; `rounds` are the summaries of those committed, in order."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.rounds: list[dict[str, Any]] = []
        while (path := self._round(len(self.rounds))).exists():
            self.rounds.append(read_json(path))

    @property
    def documents_pattern(self) -> str:
        """The component as a corpus source."""
        return str(self.folder / "documents" / "*.jsonl.zst")

    def settle_settings(self, settings: Mapping[str, Any]) -> None:
        """Keeps what decides the component's content, or checks that it has not changed since.

        Raises:
          InputError: it has; the message names the settings.
        """
        path = self.folder / "settings.json"
        if not path.exists():
            write_json(path, settings)
            return
        before = read_json(path)
        changed = [name for name in settings if content_hash(before.get(name)) != content_hash(settings[name])]
        if changed:
            names = ", ".join(changed)
            raise InputError(
                f"{self.folder}: was begun with other settings ({names}); choose another output_dir, or set them back"
            )

    def open_round(self, number: int) -> bool:
        """Marks a round as begun; whether an earlier process had begun it and did not commit it."""
        path = self.folder / "rounds" / "open.json"
        interrupted = path.exists() and read_json(path) == {"round": number}
        if not interrupted:
            write_json(path, {"round": number})
        return interrupted

    def commit(
        self,
        summary: Mapping[str, Any],
        documents: Sequence[Mapping[str, Any]],
        rejects: Sequence[Mapping[str, Any]],
        arrays: Mapping[str, np.ndarray],
    ) -> None:
        """Writes a round and makes it count."""
        number = len(self.rounds)
        for name, records in (("documents", documents), ("rejects", rejects)):
            path = self.folder / name / f"{number:05}.jsonl.zst"
            if records:
                _write_records(path, records)
            else:
                path.unlink(missing_ok=True)
        with writing(self.folder / "rounds" / f"{number:05}.npz") as file:
            np.savez(file, **arrays)
        write_json(self._round(number), summary)
        (self.folder / "rounds" / "open.json").unlink(missing_ok=True)
        self.rounds.append(dict(summary))

    def documents(self) -> Iterator[dict[str, Any]]:
        """All documents of committed rounds, in order."""
        for number in range(len(self.rounds)):
            yield from self._records("documents", number)

    def rejects(self) -> Iterator[dict[str, Any]]:
        """All answers that were not used, in order."""
        for number in range(len(self.rounds)):
            yield from self._records("rejects", number)

    def arrays(self) -> dict[str, np.ndarray]:
        """What `commit` was given of every array, end to end."""
        parts: dict[str, list[np.ndarray]] = {}
        for number in range(len(self.rounds)):
            with np.load(self.folder / "rounds" / f"{number:05}.npz") as found:
                for name in found.files:
                    parts.setdefault(name, []).append(found[name])
        return {name: np.concatenate(arrays) for name, arrays in parts.items()}

    def _round(self, number: int) -> Path:
        return self.folder / "rounds" / f"{number:05}.json"

    def _records(self, name: str, number: int) -> Iterator[dict[str, Any]]:
        path = self.folder / name / f"{number:05}.jsonl.zst"
        if path.exists():
            for batch in read_lines(str(path)):
                yield from map(json.loads, batch)


def _write_records(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    import zstandard

    with writing(path) as file, zstandard.ZstdCompressor(level=6).stream_writer(file, closefd=False) as packed:
        lines = io.TextIOWrapper(packed, encoding="utf-8")
        for record in records:
            lines.write(json.dumps(record, ensure_ascii=False) + "\n")
        lines.flush()
        lines.detach()
