"""A built mixture: `mixture.json`, with its prepared components, the shares granted and the decisions behind them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
import os
from pathlib import Path
from typing import Any, Self

from diversity_jax.core.errors import InputError
from diversity_jax.core.files import content_hash, read_json, write_json
from diversity_jax.mixtures.loader import Loader
from diversity_jax.prepare.manifest import Manifest, VocabularyInfo

FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class MixtureComponent:
    """One component of a built mixture.

    Attributes:
      name, kind: as asked for.
      share_asked, share_granted: exact token shares before and after the gate.
      decision: the gate's decision as JSON: action, reason, policy, figures, scorecard and its hash.
      manifest: the prepared rows; None for a component that was rejected.
      part_of: the requested component that this is a part of, where that is a mixture itself.
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
        """The manifest of a component that was taken."""
        if self.manifest is None:
            raise ValueError(f"component {self.name!r} was rejected, so none of its rows were prepared")
        return self.manifest


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """What training and SeqIO codebases read.

    Attributes:
      name: of the SeqIO mixture.
      components: all that were asked for, rejected ones too.
      sequence_length: tokens a row predicts.
      seed: of the row permutations.
      vocabulary: the tokenizer's identity.
      folder: where `mixture.json` lies.
      asked: the mixture's configuration as JSON; gate: what each requested component's share rests on, in order. From
        these two alone `replay` repeats every decision.
      nested: built mixtures that are components of this one: name, folder and content hash of each.
      code: version of this project and hash of its source.
    """

    name: str
    components: tuple[MixtureComponent, ...]
    sequence_length: int
    seed: int
    vocabulary: VocabularyInfo
    folder: Path
    asked: Mapping[str, Any] = field(default_factory=dict)
    gate: Sequence[Mapping[str, Any]] = ()
    nested: Sequence[Mapping[str, str]] = ()
    code: Mapping[str, str] = field(default_factory=dict)

    @property
    def taken(self) -> tuple[MixtureComponent, ...]:
        """Components with a share, in order: the ones a loader's `component` index counts."""
        return tuple(component for component in self.components if component.share_granted)

    @property
    def train_rows(self) -> int:
        """Rows of all components with a share, each once."""
        return sum(part.prepared.splits["train"].rows for part in self.taken)

    @property
    def content_hash(self) -> str:
        """SHA-256 of what the rows depend on: shares granted, and every component's manifest."""
        return content_hash([[part.name, str(part.share_granted), part.prepared.content_hash] for part in self.taken])

    def loader(self, *, batch_size: int, split: str = "train") -> Loader:
        """Batches of this mixture."""
        shares = [component.share_granted for component in self.taken]
        return Loader([component.prepared for component in self.taken], shares, batch_size=batch_size, split=split)

    def save(self) -> Path:
        """Writes `mixture.json` into `folder`."""
        path = self.folder / "mixture.json"
        write_json(
            path,
            {
                "version": FORMAT_VERSION,
                "name": self.name,
                "sequence_length": self.sequence_length,
                "seed": self.seed,
                "vocabulary": {**vars(self.vocabulary), "files": list(self.vocabulary.files)},
                "content_hash": self.content_hash,
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
            "manifest": os.path.relpath(Path(manifest.folder, "manifest.json"), self.folder) if manifest else None,
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
        path = Path(path)
        path = path / "mixture.json" if path.is_dir() else path
        value = read_json(path)
        try:
            if value["version"] != FORMAT_VERSION:
                raise InputError(
                    f"{path}: format {value['version']}, this code reads {FORMAT_VERSION}; build the mixture again"
                )
            mixture = cls(
                name=value["name"],
                components=tuple(_component(path.parent, part) for part in value["components"]),
                sequence_length=value["sequence_length"],
                seed=value["seed"],
                vocabulary=VocabularyInfo(**{**value["vocabulary"], "files": tuple(value["vocabulary"]["files"])}),
                folder=path.parent,
                asked=value["asked"],
                gate=value["gate"],
                nested=value["ingredients"],
                code=value["code"],
            )
            recorded = value["content_hash"]
        except InputError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
            raise InputError(f"{path}: is not a built mixture ({error!r}); build it again") from None
        mixture.check_alike()
        if mixture.content_hash != recorded:
            raise InputError(
                f"{path}: its shares or manifests were changed after it was built; build the mixture again"
            )
        return mixture

    def check_alike(self) -> None:
        """Refuses components of different tokenizers or sequence lengths: they cannot fill rows of one mixture."""
        for component in self.taken:
            manifest = component.prepared
            if manifest.vocabulary.hash != self.vocabulary.hash:
                theirs, ours = (
                    f"({info.kind}, {info.size:,} ids, {info.hash[:8]})"
                    for info in (manifest.vocabulary, self.vocabulary)
                )
                raise InputError(
                    f"mixture {self.name!r}: component {component.name!r} was prepared with another tokenizer {theirs} "
                    f"than the mixture's {ours}; prepare all components with one"
                )
            if manifest.sequence_length != self.sequence_length:
                raise InputError(
                    f"mixture {self.name!r}: component {component.name!r} has rows of {manifest.sequence_length:,} "
                    f"tokens to predict, the mixture {self.sequence_length:,}; prepare all components with one "
                    "sequence_length"
                )


def _component(folder: Path, value: Mapping[str, Any]) -> MixtureComponent:
    path = Path(os.path.normpath(folder / value["manifest"])) if value["manifest"] else None
    manifest = Manifest.load(path) if path else None
    if manifest and manifest.content_hash != value["manifest_hash"]:
        raise InputError(
            f"{path}: was changed after the mixture was built; restore it, or prepare the component and build the "
            "mixture again"
        )
    return MixtureComponent(
        name=value["name"],
        kind=value["kind"],
        share_asked=Fraction(value["share_asked_exact"]),
        share_granted=Fraction(value["share_granted_exact"]),
        decision=value["decision"],
        manifest=manifest,
        part_of=value["part_of"],
    )
