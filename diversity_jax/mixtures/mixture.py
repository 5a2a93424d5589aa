"""A built mixture: `mixture.json`, with its components, their shares, and the decisions behind them."""

from collections import Counter
from collections.abc import Mapping, Sequence
import dataclasses
from dataclasses import dataclass, field
from fractions import Fraction
import os
from pathlib import Path
import re
from typing import Any, Self

from diversity_jax.core.errors import InputError
from diversity_jax.core.files import (
    content_hash,
    join_path,
    parent_folder,
    read_json,
    relative_path,
    resolve_path,
    write_json,
)
from diversity_jax.core.json_fields import from_json
from diversity_jax.core.stores import is_remote
from diversity_jax.mixtures.config import SHARES_OF
from diversity_jax.mixtures.loader import Loader
from diversity_jax.mixtures.schedule import read_share
from diversity_jax.prepare.manifest import Manifest, VocabularyInfo
from diversity_jax.prepare.rows import CACHE_GB
from diversity_jax.tokenizers.base import Tokenizer
from diversity_jax.tokenizers.document_start import DOCUMENT_STARTS, Boundaries

FORMAT_VERSION = 1


def mixture_file(path: str | os.PathLike) -> Path | str:
    """The path of a `mixture.json`, given that or its folder.

    Raises:
      InputError: the path is empty.
    """
    if not os.fspath(path).strip():
        raise InputError(f"mixture {os.fspath(path)!r}: is no path; name the folder of a built mixture")
    is_file = os.fspath(path).endswith(".json") if is_remote(path) else not os.path.isdir(path)
    return (os.fspath(path) if is_remote(path) else Path(path)) if is_file else join_path(path, "mixture.json")


@dataclass(frozen=True, kw_only=True)
class MixtureComponent:
    """One component of a built mixture.

    Attributes:
      share_asked: before the gate and epoch limits, of what the mixture's `shares_of` counts, exact.
      share_granted: after them, of the mixture's rows, exact.
      decision: the gate's decision as JSON: action, reason, policy, figures, scorecard and its hash.
      manifest: the prepared rows; None for a component that was rejected.
      part_of: the requested component that this is a part of, if that is a mixture itself.
    """

    name: str
    kind: str
    share_asked: Fraction
    share_granted: Fraction
    decision: Mapping[str, Any]
    manifest: Manifest | None
    part_of: str | None = None

    @property
    def prepared(self) -> Manifest:
        """The manifest of a component that has rows."""
        if self.manifest is None:
            raise ValueError(f"component {self.name!r} was rejected, so none of its rows were prepared")
        return self.manifest


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """The content of `mixture.json`, which training and SeqIO codebases read.

    Attributes:
      name: of the SeqIO mixture.
      components: all that were asked for, rejected ones too.
      folder: of `mixture.json`.
      shares_of: what the shares asked for count: as in `MixtureConfig`, or `rows` in files of version 0.1.
      asked: the mixture's configuration as JSON; gate: for each requested component, in order, what its share was
        computed from. From these two alone `replay` recomputes every decision.
      nested: built mixtures that are components of this one: name, folder and content hash of each.
      code: version of this project and hash of its source.
      repeat_shuffle: every epoch of a component's rows after the first has an order of its own.
      document_start: which token begins a document, one of `DOCUMENT_STARTS`; document_start_id: its id. None in files
        older than these fields (see `tokenizers.document_start`).
    """

    name: str
    components: tuple[MixtureComponent, ...]
    sequence_length: int
    seed: int
    vocabulary: VocabularyInfo
    folder: Path | str
    shares_of: str = "tokens"
    asked: Mapping[str, Any] = field(default_factory=dict)
    gate: Sequence[Mapping[str, Any]] = ()
    nested: Sequence[Mapping[str, str]] = ()
    code: Mapping[str, str] = field(default_factory=dict)
    repeat_shuffle: bool = False
    document_start: str | None = None
    document_start_id: int | None = None

    def boundaries(self, *, attend_across_documents: bool) -> Boundaries:
        """Where documents begin in rows of text, for attention, loss and evaluation."""
        start, end = (self.document_start, self.document_start_id), self.vocabulary.end_of_text_id
        return Boundaries.of(*start, end, attend_across_documents=attend_across_documents)

    @property
    def repeat_seed(self) -> int | None:
        """Seed of the orders of later epochs; None where all epochs have that of the first."""
        return self.seed if self.repeat_shuffle else None

    @property
    def taken(self) -> tuple[MixtureComponent, ...]:
        """Components with a share, in order: a batch's `component` is an index into these."""
        return tuple(component for component in self.components if component.share_granted)

    @property
    def unit(self) -> str:
        """What shares asked for count, in the plural, for users."""
        return SHARES_OF.get(self.shares_of, self.shares_of)

    def counted_shares(self, rows: Mapping[str, float]) -> dict[str, float]:
        """Shares of what `shares_of` counts of rows, given by component."""
        stored, per_row = Counter[str](), {}
        for part in self.taken:
            stored[part.part_of or part.name] += part.prepared.splits["train"].rows
        for part in self.taken:
            train, total_rows = part.prepared.splits["train"], stored[part.part_of or part.name]
            units = {"tokens": train.tokens, "examples": train.documents, "epochs": train.rows / total_rows}
            per_row[part.name] = units.get(self.shares_of, train.rows) / train.rows
        total = sum(rows[name] * units for name, units in per_row.items() if name in rows) or 1
        return {name: rows[name] * units / total for name, units in per_row.items() if rows.get(name)}

    @property
    def as_asked(self) -> tuple[MixtureComponent, ...]:
        """The components with the granted share in the unit of the asked one, to be compared with it."""
        granted = self.counted_shares({part.name: float(part.share_granted) for part in self.taken})
        shares = {name: Fraction(share).limit_denominator(10**9) for name, share in granted.items()}
        return tuple(
            dataclasses.replace(part, share_granted=shares.get(part.name, Fraction(0))) for part in self.components
        )

    @property
    def train_rows(self) -> int:
        """Rows of all components with a share, each once."""
        return sum(part.prepared.splits["train"].rows for part in self.taken)

    @property
    def content_hash(self) -> str:
        """SHA-256 of what training depends on: granted shares, manifests, order of epochs, and document start."""
        parts = [[part.name, str(part.share_granted), part.prepared.content_hash] for part in self.taken]
        newer: dict[str, Any] = {"repeat_seed": self.repeat_seed} if self.repeat_shuffle else {}
        if self.document_start is not None:
            newer["document_start"] = [self.document_start, self.document_start_id]
        return content_hash([parts, newer] if newer else parts)  # hashes of older files stay as they were

    def loader(self, *, batch_size: int, split: str = "train", cache_gb: float = CACHE_GB) -> Loader:
        """Batches of this mixture; arguments as `Loader`."""
        shares = [component.share_granted for component in self.taken]
        manifests = [component.prepared for component in self.taken]
        return Loader(
            manifests, shares, batch_size=batch_size, split=split, repeat_seed=self.repeat_seed, cache_gb=cache_gb
        )

    def only(self, component: MixtureComponent) -> Self:
        """This mixture with the rows of one component alone."""
        return dataclasses.replace(self, components=(dataclasses.replace(component, share_granted=Fraction(1)),))

    def save(self) -> Path | str:
        """Writes `mixture.json` into `folder`."""
        path = join_path(self.folder, "mixture.json")
        write_json(
            path,
            {
                "version": FORMAT_VERSION,
                "name": self.name,
                "sequence_length": self.sequence_length,
                "seed": self.seed,
                "repeat_shuffle": self.repeat_shuffle,
                "document_start": self.document_start,
                "document_start_id": self.document_start_id,
                "vocabulary": {**vars(self.vocabulary), "files": list(self.vocabulary.files)},
                "content_hash": self.content_hash,
                "shares_of": self.shares_of,
                "asked": dict(self.asked),
                "gate": list(self.gate),
                "ingredients": list(self.nested),
                "code": dict(self.code),
                "components": [self._component_json(component) for component in self.components],
            },
        )
        return path

    def _component_json(self, component: MixtureComponent) -> dict[str, Any]:
        manifest = component.manifest
        return {
            "name": component.name,
            "kind": component.kind,
            "share_asked": float(component.share_asked),
            "share_granted": float(component.share_granted),
            "share_asked_exact": str(component.share_asked),
            "share_granted_exact": str(component.share_granted),
            "decision": dict(component.decision),
            "part_of": component.part_of,
            "manifest": relative_path(join_path(manifest.folder, "manifest.json"), self.folder) if manifest else None,
            "manifest_hash": manifest.content_hash if manifest else None,
            "train_rows": manifest.splits["train"].rows if manifest else 0,
        }

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Reads `mixture.json` (or the folder that holds it) and the manifests it names.

        Raises:
          InputError: no such file, not a mixture, its shares or a manifest changed since it was built, or its
            components were prepared with different tokenizers or sequence lengths.
        """
        path = mixture_file(path)
        value = read_json(path)
        try:
            if value["version"] != FORMAT_VERSION:
                raise InputError(f"{path}: format {value['version']} is not {FORMAT_VERSION}; build the mixture again")
            if type(value["sequence_length"]) is not int or type(value["seed"]) is not int:
                raise ValueError("sequence_length or seed is no whole number")
            if value.get("shares_of", "rows") not in ("rows", *SHARES_OF):
                raise ValueError(f"shares_of {value['shares_of']!r}")
            if value.get("document_start") not in (None, *DOCUMENT_STARTS):
                raise ValueError(f"document_start {value['document_start']!r}")
            mixture = cls(
                components=tuple(_component(parent_folder(path), part) for part in value["components"]),
                vocabulary=from_json(VocabularyInfo, value["vocabulary"], f"{path}: vocabulary"),
                folder=parent_folder(path),
                nested=value["ingredients"],
                # Fields that older files lack.
                shares_of=value.get("shares_of", "rows"),
                repeat_shuffle=value.get("repeat_shuffle", False),
                document_start=value.get("document_start"),
                document_start_id=value.get("document_start_id"),
                **{name: value[name] for name in ("name", "sequence_length", "seed", "asked", "gate", "code")},
            )
            recorded = value["content_hash"]
        except InputError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
            raise InputError(f"{path}: is not a built mixture ({error!r}); build it again") from None
        for component in mixture.taken:
            about, start = f"mixture {mixture.name!r}: component {component.name!r}", mixture.document_start
            check_rows(
                about,
                component.prepared,
                tokenizer=mixture.vocabulary,
                sequence_length=mixture.sequence_length,
                document_start=(start, mixture.document_start_id),
            )
        if mixture.content_hash != recorded:
            raise InputError(f"{path}: its shares or manifests were changed after it was built; build it again")
        return mixture


def check_rows(
    about: str,
    manifest: Manifest,
    *,
    tokenizer: VocabularyInfo | Tokenizer,
    sequence_length: int,
    document_start: tuple[str | None, int | None],
) -> None:
    """Checks that prepared rows fit a mixture.

    Args:
      about: begins the error message.
      tokenizer, sequence_length, document_start: the mixture's; of the last also its id.

    Raises:
      InputError: they have another tokenizer, length, or, for rows of text, another begin-of-text token.
    """
    if manifest.vocabulary.hash != tokenizer.hash:
        infos = (manifest.vocabulary, tokenizer)
        theirs, ours = (f"({info.kind}, {info.size:,} ids, {info.hash[:8]})" for info in infos)
        raise InputError(
            f"{about} was prepared with another tokenizer {theirs} than the mixture's {ours}; prepare all with one"
        )
    if manifest.sequence_length != sequence_length:
        lengths = f"{manifest.sequence_length:,} tokens, the mixture's {sequence_length:,}"
        raise InputError(f"{about} has rows that predict {lengths}; prepare all with one sequence_length")
    setting, start_id = document_start
    wanted, prepared_with = start_id if setting == "bos" else None, manifest.begin_of_text_id
    if not manifest.chat and wanted != prepared_with:
        rows, mixture = (
            ("without a begin-of-text token" if each is None else f"with begin-of-text id {each}")
            for each in (prepared_with, wanted)
        )
        raise InputError(
            f"{about} was prepared {rows}, the mixture's document_start={setting!r} is {mixture}; "
            "prepare all with one document_start"
        )


def _component(folder: Path | str, value: Mapping[str, Any]) -> MixtureComponent:
    if not re.fullmatch(r"\w[\w.]*", value["name"], re.ASCII):
        raise ValueError(f"component name {value['name']!r}")
    # It may be outside the mixture's folder: in `components_dir`, or in another mixture's folder.
    path = resolve_path(folder, value["manifest"]) if value["manifest"] else None
    if path and os.path.basename(path) != "manifest.json":
        raise ValueError(f"manifest {value['manifest']!r}")
    share = read_share(value["share_granted_exact"])
    if not 0 <= share <= 1 or (share and path is None):
        raise ValueError(f"component {value['name']}: share {share} of {path}")
    manifest = Manifest.load(path) if path else None
    if manifest and manifest.content_hash != value["manifest_hash"]:
        raise InputError(f"{path}: was changed after the mixture was built; restore it, or build the mixture again")
    return MixtureComponent(
        share_asked=read_share(value["share_asked_exact"]),
        share_granted=share,
        manifest=manifest,
        **{name: value[name] for name in ("name", "kind", "decision", "part_of")},
    )
