"""Component sources: text to be prepared, or rows of a mixture that was built before and are taken as they are.

The tokenizer of a mixture is one that is named, or one trained on text of these sources.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
import logging
from pathlib import Path
import random

import numpy as np

from diversity_jax.core.config import Fields, plain_for_keys, read_fields
from diversity_jax.core.errors import InputError
from diversity_jax.core.files import canonical_path, content_hash, exists, join_path, read_json, write_json
from diversity_jax.core.stores import is_remote
from diversity_jax.corpus import Corpus, Document, open_corpus
from diversity_jax.corpus.readers.seqio_tasks import find_provider
from diversity_jax.mixtures.config import TRAINED, Component, MixtureConfig, token_shares
from diversity_jax.mixtures.exchange.token_files import TokenSet, open_token_set
from diversity_jax.mixtures.mixture import Mixture
from diversity_jax.mixtures.schedule import exact_shares
from diversity_jax.prepare.manifest import Manifest, prepared_tokenizer
from diversity_jax.prepare.rows import RowReader
from diversity_jax.tokenizers.sentence_piece import train_tokenizer
from diversity_jax.tokenizers.tokenizer import Tokenizer, load_tokenizer

_BLOCK_ROWS = 256  # read at once
_CHARACTERS_PER_DOCUMENT = 200  # fewer than usual, so that enough documents are sampled for a number of characters

Parts = Mapping[str, tuple[Fraction, Manifest]]
"""Prepared rows by name, each with its share of the component."""


@dataclass(frozen=True, kw_only=True)
class ComponentSource:
    """What a component is made from.

    Attributes:
      corpus: its text, for scoring and preparing.
      parts: rows that are prepared already; empty for text.
      mixture: name, folder and content hash of the built mixture that they come from.
      tokens: a set that others prepared, to be imported.
    """

    corpus: Corpus
    parts: Parts
    mixture: Mapping[str, str] | None = None
    tokens: TokenSet | None = None


def open_source(component: Component, name: str, folder: Path, tokenizer: Tokenizer) -> ComponentSource:
    """Opens what a component is made from.

    Args:
      name: of the mixture that is being built; folder: where; tokenizer: its vocabulary.

    Raises:
      InputError: it cannot be opened or is empty, or the mixture would contain itself.
    """
    source = component.corpus.source
    try:
        if source.startswith("mixture:"):
            return _of_mixture(Mixture.load(source.removeprefix("mixture:")), name, folder)
        if source.startswith("tokens:"):
            return _of_tokens(component, source.removeprefix("tokens:"), tokenizer)
        if source.startswith("seqio:") and (prepared := _of_registered(source, name, folder)):
            return prepared
        return ComponentSource(corpus=open_corpus(component.corpus), parts={})
    except InputError as error:
        raise InputError(f"component {component.name!r}: {error}") from error


def _of_tokens(component: Component, path: str, tokenizer: Tokenizer) -> ComponentSource:
    """A component prepared before, or a set of others."""
    if exists(manifest_path := join_path(path, "manifest.json")):
        manifest = Manifest.load(manifest_path)
        parts = {manifest.name: (Fraction(1), manifest)}
        return ComponentSource(corpus=PreparedCorpus(f"tokens:{path}", parts), parts=parts)
    column = component.corpus.text_field
    tokens = open_token_set(path, None if column == "text" else column)
    return ComponentSource(corpus=TokenCorpus(tokens, tokenizer), parts={}, tokens=tokens)


def _of_mixture(mixture: Mixture, name: str, folder: Path) -> ComponentSource:
    _refuse_cycle(mixture.folder, mixture.nested, folder, (name, mixture.name))
    parts = {part.name: (part.share_granted, part.prepared) for part in mixture.taken}
    made_of = {"name": mixture.name, "folder": canonical_path(mixture.folder), "content_hash": mixture.content_hash}
    return ComponentSource(corpus=PreparedCorpus(f"mixture:{mixture.name}", parts), parts=parts, mixture=made_of)


def _refuse_cycle(
    inner: Path | str, nested: Iterable[Mapping[str, str]], folder: Path | str, trail: tuple[str, ...]
) -> None:
    """Raises where the mixture in `inner`, or one that it is made of, is the one being built in `folder`.

    Args:
      trail: names of the mixture being built, and those that lead to the inner one, which is last.
    """
    if trail[-1] == trail[0] or canonical_path(inner) == canonical_path(folder):
        raise InputError(f"a cycle of mixtures: {' -> '.join(trail)}; a mixture cannot hold itself")
    for made_of in nested:
        path = join_path(made_of["folder"], "mixture.json")
        below = read_fields(path, ingredients=list[Fields])["ingredients"] if exists(path) else ()
        _refuse_cycle(made_of["folder"], below, folder, (*trail, made_of["name"]))


def _of_registered(source: str, name: str, folder: Path) -> ComponentSource | None:
    """The prepared rows behind a registered SeqIO task or mixture; None where it was not prepared by this project."""
    wanted, provider = source.removeprefix("seqio:").partition("@")[0], find_provider(source)
    if provider is None:
        return None
    from diversity_jax.core.tensorflow import seqio
    from diversity_jax.mixtures.registry import PreparedTask, ScheduledTask, registered_folder

    if (registered := registered_folder(wanted)) is not None:
        return _of_mixture(Mixture.load(registered), name, folder)
    tasks = [provider] if isinstance(provider, seqio.Task) else provider.tasks
    prepared = [task for task in tasks if isinstance(task, PreparedTask | ScheduledTask)]
    if any(task.name.removesuffix("_exact").split(".")[0] == name for task in prepared):
        raise InputError(f"a cycle of mixtures: {name} -> {wanted} -> {name}; a mixture cannot hold itself")
    if not prepared:
        return None
    if len(tasks) > 1:
        raise InputError(
            f"{source}: mixes prepared rows ({prepared[0].name}) by examples; name its parts as components"
        )
    manifest = prepared[0].manifest
    parts = {manifest.name: (Fraction(1), manifest)}
    return ComponentSource(corpus=PreparedCorpus(wanted, parts), parts=parts)


class PooledCorpus:
    """Several corpora seen as one: documents are drawn from each in proportion to its share."""

    def __init__(self, corpora: Sequence[Corpus], shares: Sequence[Fraction]):
        self.name, self.rejected = " + ".join(corpus.name for corpus in corpora), Counter[str]()
        self._corpora, self._shares = corpora, [share / sum(shares) for share in shares]

    def __iter__(self) -> Iterator[Document]:
        for corpus in self._corpora:
            yield from corpus

    def sample(self, size: int, *, seed: int) -> list[Document]:
        """About size * share documents of each corpus, uniformly within it, in random order."""
        generator = random.Random(seed)
        wanted = generator.choices(range(len(self._corpora)), [float(share) for share in self._shares], k=size)
        documents = []
        for i, corpus in enumerate(self._corpora):
            if i in wanted:
                documents += corpus.sample(wanted.count(i), seed=seed + i)
        generator.shuffle(documents)
        return documents

    def fingerprint(self) -> str:
        """Of the corpora and their shares."""
        parts = zip(self._corpora, self._shares, strict=True)
        return content_hash([[corpus.fingerprint(), str(share)] for corpus, share in parts])


def documents_in(
    row: np.ndarray, end_of_text_id: int, starts: np.ndarray | None = None, *, begin_of_text_id: int | None = None
) -> list[np.ndarray]:
    """The documents of a row, each with its end-of-text id; the first and last may be parts of documents.

    Args:
      begin_of_text_id: what was written before every document of text, which is left out.
      starts: bool, where the examples of a row of conversations begin; what the row is filled up with is left out.
    """
    if starts is not None and starts[0]:
        examples = np.split(row, np.flatnonzero(starts)[1:])
        return [example for example in examples if not (example == end_of_text_id).all()]
    ends = np.flatnonzero(row == end_of_text_id) + 1
    documents = [
        document[1:] if begin_of_text_id is not None and document[:1].tolist() == [begin_of_text_id] else document
        for document in np.split(row, ends)
    ]
    return [document for document in documents if len(document)]


class PreparedCorpus:
    """The rows of prepared components seen as a corpus whose documents stand between end-of-text tokens.

    Documents longer than what is left of a row were cut when the rows were made, and stay cut here.
    """

    def __init__(self, name: str, parts: Parts):
        self.name, self.rejected = name, Counter[str]()
        self._shares = exact_shares([share for share, _ in parts.values()])
        self._readers = [RowReader(manifest) for _, manifest in parts.values()]
        self._tokenizer = prepared_tokenizer(self._readers[0].manifest)

    def __iter__(self) -> Iterator[Document]:
        for reader in self._readers:
            for start in range(0, reader.rows, _BLOCK_ROWS):
                for documents in self._decoded(reader, np.arange(start, min(start + _BLOCK_ROWS, reader.rows))):
                    yield from documents

    def _decoded(self, reader: RowReader, numbers: np.ndarray) -> Iterator[list[Document]]:
        """The documents with text in each of these rows."""
        rows = reader.read(numbers)
        for i, number in enumerate(numbers.tolist()):
            starts = None if rows.starts is None else rows.starts[i]
            begin = reader.manifest.begin_of_text_id
            parts = documents_in(rows.tokens[i], self._tokenizer.end_of_text_id, starts, begin_of_text_id=begin)
            texts = [self._tokenizer.decode(part.tolist()) for part in parts]
            yield [
                Document(id=f"{reader.manifest.name}:{number}:{position}", text=text)
                for position, text in enumerate(texts)
                if text.strip()
            ]

    def sample(self, size: int, *, seed: int) -> list[Document]:
        """One document each of `size` random rows, or all where there are fewer; parts in proportion to shares."""
        generator = np.random.default_rng(seed)
        parts = generator.choice(len(self._readers), size, p=[float(share) for share in self._shares])
        drawn = []
        for part, reader in enumerate(self._readers):
            wanted = min(int((parts == part).sum()), reader.rows)
            for documents in self._decoded(reader, generator.permutation(reader.rows)[:wanted]):
                drawn += [documents[generator.integers(len(documents))]] if documents else []
        return [drawn[i] for i in generator.permutation(len(drawn))]

    def fingerprint(self) -> str:
        """Of the manifests and their shares."""
        parts = zip(self._readers, self._shares, strict=True)
        return content_hash([[reader.manifest.content_hash, str(share)] for reader, share in parts])


class TokenCorpus:
    """A set of ids seen as a corpus: what stands between end-of-text ids, decoded by the vocabulary that made them."""

    def __init__(self, tokens: TokenSet, tokenizer: Tokenizer):
        self.name, self.rejected = f"tokens:{tokens.path}", Counter[str]()
        self._tokens, self._tokenizer = tokens, tokenizer
        self._begin = tokenizer.bos_id if tokenizer.bos_id != tokenizer.end_of_text_id else None

    def __iter__(self) -> Iterator[Document]:
        for number in range(len(self._tokens.lengths)):
            yield from self._documents(number)

    def _documents(self, sequence: int) -> list[Document]:
        """The documents with text in a sequence.

        Raises:
          InputError: an id is none of the vocabulary's.
        """
        ids = self._tokens.read(sequence, sequence + 1).astype(np.int64)
        if len(ids) and not 0 <= ids.min() <= ids.max() < self._tokenizer.size:
            wrong = f"sequence {sequence:,} has ids up to {ids.max()}, the vocabulary {self._tokenizer.size:,}"
            raise InputError(f"{self.name}: {wrong}; name the vocabulary that it was made with")
        parts = documents_in(ids, self._tokenizer.end_of_text_id, begin_of_text_id=self._begin)
        texts = [self._tokenizer.decode(part.tolist()) for part in parts]
        return [Document(id=f"{sequence}:{position}", text=text) for position, text in enumerate(texts) if text.strip()]

    def sample(self, size: int, *, seed: int) -> list[Document]:
        """One document each of `size` random sequences, or of all where there are fewer."""
        generator, drawn = np.random.default_rng(seed), list[Document]()
        for sequence in generator.permutation(len(self._tokens.lengths))[: 2 * size].tolist():
            documents = self._documents(sequence)
            drawn += [documents[generator.integers(len(documents))]] if documents else []
            if len(drawn) == size:
                break
        return drawn

    def fingerprint(self) -> str:
        """Of all files of the set, and of the vocabulary."""
        return content_hash([self._tokens.fingerprint(), self._tokenizer.hash])


def sampled_texts(
    components: Sequence[Component], shares: Sequence[Fraction], *, characters: int, seed: int
) -> Iterator[str]:
    """Random documents' texts, from each component its share of `characters`, or all it has."""
    for component, share in zip(components, shares, strict=True):
        budget = float(share) * characters
        if budget < 1:
            continue
        documents = max(1, int(budget // _CHARACTERS_PER_DOCUMENT))
        for document in open_corpus(component.corpus).sample(documents, seed=seed):
            if budget <= 0:
                break
            text = document.text[: int(budget) + 1]
            budget -= len(text)
            yield text


log = logging.getLogger(__name__)

_SAMPLE_CHARACTERS = 10_000_000
_LEAST_CHARACTERS = 100_000  # of less text bytes are the better tokenizer
_CHARACTERS_PER_PIECE = 200  # so that even rare pieces are seen some dozens of times
_STEP, _LEAST_PIECES, _MOST_PIECES = 128, 512, 8192
_FIXED_PIECES = 259  # bytes, and the three special ones
_COVERED = 0.9995  # share of the text whose characters are pieces, as `train_tokenizer` has it


def open_vocabulary(config: MixtureConfig, folder: str | Path) -> Tokenizer:
    """The mixture's tokenizer; with `trained` the one in the mixture's folder, which is made where there is none yet.

    Made once: a mixture that is built again in `folder` from the same components has the same tokenizer.

    Raises:
      InputError: it cannot be read, or the folder of a tokenizer to be trained is not on a disk.
    """
    if config.vocabulary != TRAINED:
        return load_tokenizer(config.vocabulary, end_of_text=config.end_of_text)
    if is_remote(folder):
        remedy = "train one with diversity_jax.train_tokenizer, and name it"
        raise InputError(f"mixture.vocabulary={TRAINED!r}: needs a folder on a disk, not {folder}; {remedy}")
    record, made_of = Path(folder) / "tokenizer.model.json", _made_of(config)
    if not exists(record) or read_json(record).get("made_of") != made_of:
        write_json(record, {"made_of": made_of, "vocabulary": _train(config, Path(folder) / "tokenizer.model")})
    name = read_json(record)["vocabulary"]
    return load_tokenizer(name if name == "bytes" else str(join_path(folder, name)), end_of_text=config.end_of_text)


def _made_of(config: MixtureConfig) -> str:
    parts = [[plain_for_keys(part.corpus), part.share, part.kind] for part in config.components]
    return content_hash([parts, config.real_to_synthetic, config.shares_of, config.seed])


def _train(config: MixtureConfig, path: Path) -> str:
    """Trains a tokenizer; returns its file's name, or `bytes` where there is too little text."""
    is_weight = config.shares_of == "epochs"
    shares = token_shares(config.components, config.real_to_synthetic, is_weight=is_weight)
    log.info("%s: reading up to %s characters to make a tokenizer of", config.name, f"{_SAMPLE_CHARACTERS:,}")
    texts = list(sampled_texts(config.components, shares, characters=_SAMPLE_CHARACTERS, seed=config.seed))
    characters = sum(map(len, texts))
    if characters < _LEAST_CHARACTERS:
        log.info("%s: %s characters are too few for a tokenizer of their own: bytes", config.name, f"{characters:,}")
        return "bytes"
    pieces = _pieces(texts, characters)
    log.info("%s: training a tokenizer of %s pieces on %s characters", config.name, f"{pieces:,}", f"{characters:,}")
    train_tokenizer(texts, path, vocab_size=pieces)
    return path.name


def _pieces(texts: Sequence[str], characters: int) -> int:
    """How many pieces suit so much text: a multiple of 128 that holds its characters and as many words and parts."""
    counts, covered, alphabet = Counter[str](), 0, 0
    for text in texts:
        counts.update(text)
    for _, count in counts.most_common():
        if covered >= _COVERED * characters:
            break
        covered, alphabet = covered + count, alphabet + 1
    wanted = min(max(characters // _CHARACTERS_PER_PIECE, _LEAST_PIECES), _MOST_PIECES)
    return -(-max(wanted, 2 * alphabet + _FIXED_PIECES) // _STEP) * _STEP
