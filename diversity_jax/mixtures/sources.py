"""What components are made from: text to prepare, or rows that are prepared already; and the mixture's tokenizer."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from fractions import Fraction
import logging
from pathlib import Path
import random

import numpy as np

from diversity_jax.core.config import plain_for_keys
from diversity_jax.core.errors import InputError
from diversity_jax.core.files import canonical_path, content_hash, exists, join_path, read_json, write_json
from diversity_jax.core.json_fields import Fields, read_fields
from diversity_jax.core.stores import is_remote
from diversity_jax.corpus import Corpus, CorpusConfig, Document, open_corpus
from diversity_jax.corpus.readers.seqio_tasks import find_provider
from diversity_jax.mixtures.config import TRAINED, Component, MixtureConfig
from diversity_jax.mixtures.exchange.token_files import TokenSet, open_token_set
from diversity_jax.mixtures.mixture import Mixture
from diversity_jax.mixtures.schedule import exact_shares
from diversity_jax.prepare.manifest import Manifest, prepared_tokenizer
from diversity_jax.prepare.rows import RowReader
from diversity_jax.tokenizers.sentence_piece import train_tokenizer
from diversity_jax.tokenizers.tokenizer import Tokenizer, load_tokenizer

log = logging.getLogger(__name__)

_BLOCK_ROWS = 256  # read at once
_CHARACTERS_PER_DOCUMENT = 200  # fewer than usual, so that enough documents are sampled for a number of characters

# Of a tokenizer that is trained on the mixture's own text, in characters of text and ids of the vocabulary:
_SAMPLE_CHARACTERS = 10_000_000  # trained on, at most
_LEAST_CHARACTERS = 100_000  # for less text, bytes are the better tokenizer
_CHARACTERS_PER_ID = 200  # so that even rare tokens occur some dozens of times
_SIZE_STEP, _LEAST_SIZE, _MOST_SIZE = 128, 512, 8192
_FIXED_IDS = 259  # bytes, and the three special ones
_COVERED = 0.9995  # share of the text whose characters are tokens, as `train_tokenizer` has it

Parts = Mapping[str, tuple[Fraction, Manifest]]
"""Prepared rows by name, with their shares of the component."""


@dataclass(frozen=True, kw_only=True)
class ComponentSource:
    """What a component is made from.

    Attributes:
      corpus: its text, for scoring and preparing.
      parts: rows that are prepared already; empty for text.
      mixture: name, folder and content hash of the built mixture that the parts are of.
      tokens: ids that another tool prepared, to be imported.
    """

    corpus: Corpus
    parts: Parts
    mixture: Mapping[str, str] | None = None
    tokens: TokenSet | None = None


def open_source(component: Component, name: str, folder: Path, tokenizer: Tokenizer) -> ComponentSource:
    """Opens what a component is made from.

    Args:
      name, folder, tokenizer: of the mixture that is being built.

    Raises:
      InputError: it cannot be opened or is empty, or the mixture would contain itself.
    """
    source = component.corpus.source
    try:
        if source.startswith("mixture:"):
            opened = _open_mixture(Mixture.load(source.removeprefix("mixture:")), name, folder)
        elif source.startswith("tokens:"):
            opened = _open_tokens(component, source.removeprefix("tokens:"), tokenizer)
        else:
            prepared = _open_registered(source, name, folder) if source.startswith("seqio:") else None
            if prepared is None:
                return ComponentSource(corpus=open_corpus(component.corpus), parts={})
            opened = prepared
        _refuse_settings_of_text(component.corpus, ["text_field"] if opened.tokens else [])
    except InputError as error:
        raise InputError(f"component {component.name!r}: {error}") from error
    return opened


def _refuse_settings_of_text(corpus: CorpusConfig, used: Sequence[str]) -> None:
    """Raises InputError if a setting other than `used` is not the default: prepared rows and tokens are taken whole."""
    for field in fields(CorpusConfig):
        if field.name not in ("source", *used) and (value := getattr(corpus, field.name)) != field.default:
            problem = f"is for text, and {corpus.source} is tokens already"
            raise InputError(f"corpus.{field.name}={value!r}: {problem}; take the setting out")


def _open_tokens(component: Component, path: str, tokenizer: Tokenizer) -> ComponentSource:
    """A component that this project prepared, or token ids that another tool did."""
    if exists(manifest_path := join_path(path, "manifest.json")):
        return _open_component(f"tokens:{path}", Manifest.load(manifest_path))
    column = component.corpus.text_field
    tokens = open_token_set(path, None if column == "text" else column)
    return ComponentSource(corpus=TokenCorpus(tokens, tokenizer), parts={}, tokens=tokens)


def _open_component(name: str, manifest: Manifest) -> ComponentSource:
    parts = {manifest.name: (Fraction(1), manifest)}
    return ComponentSource(corpus=PreparedCorpus(name, parts), parts=parts)


def _open_mixture(mixture: Mixture, name: str, folder: Path) -> ComponentSource:
    _refuse_cycle(mixture.folder, mixture.nested, folder, (name, mixture.name))
    parts = {part.name: (part.share_granted, part.prepared) for part in mixture.taken}
    identity = {"name": mixture.name, "folder": canonical_path(mixture.folder), "content_hash": mixture.content_hash}
    return ComponentSource(corpus=PreparedCorpus(f"mixture:{mixture.name}", parts), parts=parts, mixture=identity)


def _refuse_cycle(
    inner: Path | str, nested: Iterable[Mapping[str, str]], folder: Path | str, trail: tuple[str, ...]
) -> None:
    """Raises InputError if the mixture in `inner`, or one nested in it, is the one being built in `folder`.

    Args:
      trail: names of the mixtures from the one being built to the inner one.
    """
    if trail[-1] == trail[0] or canonical_path(inner) == canonical_path(folder):
        raise InputError(f"a cycle of mixtures: {' -> '.join(trail)}; a mixture cannot hold itself")
    for mixture in nested:
        path = join_path(mixture["folder"], "mixture.json")
        below = read_fields(path, ingredients=list[Fields])["ingredients"] if exists(path) else ()
        _refuse_cycle(mixture["folder"], below, folder, (*trail, mixture["name"]))


def _open_registered(source: str, name: str, folder: Path) -> ComponentSource | None:
    """The prepared rows of a registered SeqIO task or mixture; None where this project did not prepare it."""
    wanted, provider = source.removeprefix("seqio:").partition("@")[0], find_provider(source)
    if provider is None:
        return None
    from diversity_jax.core.tensorflow import seqio
    from diversity_jax.mixtures.registry import PreparedTask, ScheduledTask, registered_folder

    if (registered := registered_folder(wanted)) is not None:
        return _open_mixture(Mixture.load(registered), name, folder)
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
    return _open_component(wanted, prepared[0].manifest)


class PooledCorpus:
    """Several corpora as one corpus; documents are sampled from each in proportion to its share."""

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
        """Hash of the corpora and their shares."""
        parts = zip(self._corpora, self._shares, strict=True)
        return content_hash([[corpus.fingerprint(), str(share)] for corpus, share in parts])


def documents_in(
    row: np.ndarray, end_of_text_id: int, starts: np.ndarray | None = None, *, begin_of_text_id: int | None = None
) -> list[np.ndarray]:
    """Ids of the documents of a row, each with its end-of-text id; the first and last may be parts of documents.

    Args:
      begin_of_text_id: the token written before every document of text, which is left out.
      starts: bool, where the examples of a row of conversations begin; the row's padding is left out.
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


def _decoded(documents: Sequence[np.ndarray], tokenizer: Tokenizer, name: str) -> list[Document]:
    """The documents with text among these, called `NAME:0`, `NAME:1` and so on."""
    texts = [tokenizer.decode(ids.tolist()) for ids in documents]
    return [Document(id=f"{name}:{i}", text=text) for i, text in enumerate(texts) if text.strip()]


class PreparedCorpus:
    """The rows of prepared components as a corpus of the documents between end-of-text tokens.

    Documents that cross the end of a row are cut there.
    """

    def __init__(self, name: str, parts: Parts):
        self.name, self.rejected = name, Counter[str]()
        self._shares = exact_shares([share for share, _ in parts.values()])
        self._readers = [RowReader(manifest) for _, manifest in parts.values()]
        self._tokenizer = prepared_tokenizer(self._readers[0].manifest)

    def __iter__(self) -> Iterator[Document]:
        for reader in self._readers:
            for start in range(0, reader.rows, _BLOCK_ROWS):
                for documents in self._rows(reader, np.arange(start, min(start + _BLOCK_ROWS, reader.rows))):
                    yield from documents

    def _rows(self, reader: RowReader, numbers: np.ndarray) -> Iterator[list[Document]]:
        """The documents with text in each of these rows."""
        rows, manifest = reader.read(numbers), reader.manifest
        for i, number in enumerate(numbers.tolist()):
            starts, end_id = None if rows.starts is None else rows.starts[i], self._tokenizer.end_of_text_id
            documents = documents_in(rows.tokens[i], end_id, starts, begin_of_text_id=manifest.begin_of_text_id)
            yield _decoded(documents, self._tokenizer, f"{manifest.name}:{number}")

    def sample(self, size: int, *, seed: int) -> list[Document]:
        """One document from each of `size` random rows, or of all if there are fewer; parts in proportion to shares."""
        generator = np.random.default_rng(seed)
        parts = generator.choice(len(self._readers), size, p=[float(share) for share in self._shares])
        drawn = []
        for part, reader in enumerate(self._readers):
            wanted = min(int((parts == part).sum()), reader.rows)
            for documents in self._rows(reader, generator.permutation(reader.rows)[:wanted]):
                drawn += [documents[generator.integers(len(documents))]] if documents else []
        return [drawn[i] for i in generator.permutation(len(drawn))]

    def fingerprint(self) -> str:
        """Hash of the manifests and their shares."""
        parts = zip(self._readers, self._shares, strict=True)
        return content_hash([[reader.manifest.content_hash, str(share)] for reader, share in parts])


class TokenCorpus:
    """A set of token ids as a corpus of the documents between end-of-text ids, decoded by the set's vocabulary."""

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
          InputError: an id is not in the vocabulary.
        """
        ids = self._tokens.read(sequence, sequence + 1).astype(np.int64)
        if len(ids) and not 0 <= ids.min() <= ids.max() < self._tokenizer.size:
            wrong = f"sequence {sequence:,} has ids up to {ids.max()}, the vocabulary {self._tokenizer.size:,}"
            raise InputError(f"{self.name}: {wrong}; name the vocabulary that it was made with")
        documents = documents_in(ids, self._tokenizer.end_of_text_id, begin_of_text_id=self._begin)
        return _decoded(documents, self._tokenizer, f"{sequence}")

    def sample(self, size: int, *, seed: int) -> list[Document]:
        """One document from each of `size` random sequences, or of all if there are fewer."""
        generator, drawn = np.random.default_rng(seed), list[Document]()
        for sequence in generator.permutation(len(self._tokens.lengths))[: 2 * size].tolist():
            documents = self._documents(sequence)
            drawn += [documents[generator.integers(len(documents))]] if documents else []
            if len(drawn) == size:
                break
        return drawn

    def fingerprint(self) -> str:
        """Hash of all files of the set, and of the vocabulary."""
        return content_hash([self._tokens.fingerprint(), self._tokenizer.hash])


def sampled_texts(
    components: Sequence[Component], shares: Sequence[Fraction], *, characters: int, seed: int
) -> Iterator[str]:
    """Texts of random documents: from each component its share of `characters`, or all it has."""
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


def open_vocabulary(config: MixtureConfig, folder: str | Path) -> Tokenizer:
    """The mixture's tokenizer; for `trained` the one in the mixture's folder, trained unless it was from the same text.

    Raises:
      InputError: it cannot be read, or the folder of a tokenizer to be trained is not on a disk.
    """
    if config.vocabulary != TRAINED:
        return load_tokenizer(config.vocabulary, end_of_text=config.end_of_text)
    if is_remote(folder):
        remedy = "train one with diversity_jax.train_tokenizer, and name it"
        raise InputError(f"mixture.vocabulary={TRAINED!r}: needs a folder on a disk, not {folder}; {remedy}")
    record, text_hash = Path(folder) / "tokenizer.model.json", _text_hash(config)
    if not exists(record) or read_json(record).get("made_of") != text_hash:
        write_json(record, {"made_of": text_hash, "vocabulary": _train(config, Path(folder) / "tokenizer.model")})
    name = read_json(record)["vocabulary"]
    return load_tokenizer(name if name == "bytes" else str(join_path(folder, name)), end_of_text=config.end_of_text)


def _text_hash(config: MixtureConfig) -> str:
    """Hash of the settings that decide which text a tokenizer is trained on."""
    parts = [[part.corpus, part.share, part.kind] for part in config.components]
    return content_hash(plain_for_keys([parts, config.real_to_synthetic, config.shares_of, config.seed]))


def _train(config: MixtureConfig, path: Path) -> str:
    """Trains a tokenizer; returns its file's name, or `bytes` where there is too little text."""
    shares = config.shares_asked()
    log.info("%s: reading up to %s characters to make a tokenizer of", config.name, f"{_SAMPLE_CHARACTERS:,}")
    texts = list(sampled_texts(config.components, shares, characters=_SAMPLE_CHARACTERS, seed=config.seed))
    characters = sum(map(len, texts))
    if characters < _LEAST_CHARACTERS:
        log.info("%s: %s characters are too few for a tokenizer of their own: bytes", config.name, f"{characters:,}")
        return "bytes"
    size = _vocabulary_size(texts, characters)
    log.info("%s: training a tokenizer of %s ids on %s characters", config.name, f"{size:,}", f"{characters:,}")
    train_tokenizer(texts, path, vocab_size=size)
    return path.name


def _vocabulary_size(texts: Sequence[str], characters: int) -> int:
    """The size for this text: a multiple of 128, in proportion to the text and at least twice its different characters.

    Characters that make up the rarest 0.05 % of the text are not counted.
    """
    counts, covered, alphabet = Counter[str](), 0, 0
    for text in texts:
        counts.update(text)
    for _, count in counts.most_common():
        if covered >= _COVERED * characters:
            break
        covered, alphabet = covered + count, alphabet + 1
    wanted = min(max(characters // _CHARACTERS_PER_ID, _LEAST_SIZE), _MOST_SIZE)
    return -(-max(wanted, 2 * alphabet + _FIXED_IDS) // _SIZE_STEP) * _SIZE_STEP
