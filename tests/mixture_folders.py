"""Builds small mixtures for tests from made-up text."""

from collections import Counter
from collections.abc import Iterator, Mapping
from fractions import Fraction
import hashlib
from pathlib import Path
import random
from typing import ClassVar

from diversity_jax.corpus import Document
from diversity_jax.mixtures.mixture import Mixture, MixtureComponent
from diversity_jax.prepare.config import Preparation
from diversity_jax.prepare.pipeline import prepare
from diversity_jax.tokenizers.tokenizer import load_tokenizer


class MadeCorpus:
    """Documents of a given length about one word, the same every time."""

    rejected: ClassVar[Counter[str]] = Counter()

    def __init__(self, word: str, words: int, documents: int = 300):
        self.name, self.word, self.words, self.documents = f"made:{word}", word, words, documents

    def __iter__(self) -> Iterator[Document]:
        for i in range(self.documents):
            source = random.Random(f"{self.word}{i}")
            text = " ".join(f"{self.word}{source.randrange(1000)}" for _ in range(self.words))
            yield Document(id=f"{self.word}:{i}", text=text)

    def fingerprint(self) -> str:
        return hashlib.sha256(f"{self.word} {self.words} {self.documents}".encode()).hexdigest()


def file_hashes(folder: Path) -> dict[str, str]:
    """Hash of every file below a folder, by its name."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def build_mixture(
    folder: Path,
    shares: Mapping[str, Fraction],
    *,
    name: str = "made",
    words: Mapping[str, int] | None = None,
    sequence_length: int = 32,
    documents: int = 300,
    vocabulary: str = "bytes",
    repeat_shuffle: bool = False,
    shard_bytes: int = 64 << 20,
) -> Path:
    """A mixture of made components, ungated; returns its folder."""
    tokenizer = load_tokenizer(vocabulary)
    components = []
    for part, share in shares.items():
        sizes = {"sequence_length": sequence_length, "shard_bytes": shard_bytes}
        settings = Preparation(name=part, kind="real", validation_share=0.1, **sizes)
        corpus = MadeCorpus(part, (words or {}).get(part, 50), documents)
        manifest = prepare(corpus, tokenizer, folder / "components" / part, settings)
        decision = {"action": "ungated", "reason": "made for a test"}
        components.append(
            MixtureComponent(
                name=part, kind="real", share_asked=share, share_granted=share, decision=decision, manifest=manifest
            )
        )
    mixture = Mixture(
        name=name,
        components=tuple(components),
        sequence_length=sequence_length,
        seed=0,
        vocabulary=manifest.vocabulary,
        folder=folder,
        repeat_shuffle=repeat_shuffle,
    )
    mixture.save()
    return folder
