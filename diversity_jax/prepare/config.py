"""Configuration of preparation: which documents are left out, how conversations are written, how rows are made."""

import dataclasses
from dataclasses import dataclass, field

from diversity_jax.core.config import ADDED, check_kinds, check_least
from diversity_jax.core.errors import InputError
from diversity_jax.corpus import CorpusConfig
from diversity_jax.tokenizers.base import check_special_text
from diversity_jax.tokenizers.document_start import check_setting


@dataclass(frozen=True, kw_only=True)
class Filtering:
    """Documents to leave out. Everything is off by default; language and length filters are left to other tools.

    Contaminated documents are left out first, then copies of those that remain.

    Attributes:
      exact_duplicates: leave out a document whose text is, character for character, that of an earlier one.
      near_duplicates: leave out a document whose estimated Jaccard similarity with an earlier one that is kept is at
        least this, such as 0.8; None: compare exact copies only. Exact copies are then left out too.
      shingle_words: words in a shingle; similarity is that of the sets of shingles, without case and punctuation.
      permutations: of the MinHash; the standard error of a similarity s is sqrt(s * (1 - s) / permutations).
      decontaminate: evaluation files (JSONL, also .gz, .zst) or patterns of such; a document that shares `ngram_words`
        words in a row with one of their items is left out.
      ngram_words: words in an n-gram.
    """

    exact_duplicates: bool = False
    near_duplicates: float | None = None
    shingle_words: int = 5
    permutations: int = 128
    decontaminate: tuple[str, ...] = ()
    ngram_words: int = 13

    def __post_init__(self) -> None:
        if self.near_duplicates is not None and not 0.1 <= self.near_duplicates <= 1:
            raise InputError(
                f"hygiene.near_duplicates {self.near_duplicates}: give a similarity from 0.1 to 1, or None"
            )
        check_least(self, "hygiene.", shingle_words=1, permutations=16, ngram_words=2)
        if isinstance(self.decontaminate, str):
            raise InputError(
                f"hygiene.decontaminate {self.decontaminate!r}: give a tuple of files: put a comma after it"
            )

    @property
    def removes_copies(self) -> bool:
        """Whether documents have to be compared with each other, which takes a second reading."""
        return self.exact_duplicates or self.near_duplicates is not None


Hygiene = Filtering  # its name in older configuration files


@dataclass(frozen=True, kw_only=True)
class Chat:
    """How conversations become text; every component of instruction data in a mixture is written the same way.

    Attributes:
      template: a Jinja chat template: a `.jinja` file, a `tokenizer_config.json`, a folder with either, or `tokenizer`
        for the one in the vocabulary's folder; None: the project's own (`chat_template.OWN_TEMPLATE`).
      system_prompt: put first in every conversation that has no system message, in training and afterwards.
    """

    template: str | None = None
    system_prompt: str | None = None

    def __post_init__(self) -> None:
        for name in ("template", "system_prompt"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, str) and value.strip()):
                raise InputError(f"chat.{name} {value!r}: give a text that is not empty, or None")


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """Settings of a preparation; rows are a function of text, tokenizer and these.

    Attributes:
      name: of the component.
      kind: `real` or `synthetic`.
      sequence_length: tokens a row predicts; a row holds one more.
      seed: of the row permutation and of the choice of held-out documents.
      validation_share: share of documents held out, in [0, 1), chosen by a hash of their text: copies stay together.
      chat: documents are conversations, made of records by `corpus.conversations`: they are packed into rows without
        being cut, and only answers are targets of the loss. None: text.
      special_text: how a special token's text, such as `</s>`, in a document or a message is read: `plain`, as letters;
        `special`, as the token; `refuse`: it is an error. Documents with such text are counted. The special tokens that
        a template writes are always tokens. None: `plain`; a component older than this setting stays as it is.
      document_start: which token begins a document: `none`, `end_of_text` (of the document before), `bos` (the
        tokenizer's own, written into the rows); `auto`: `bos` where the tokenizer's makers put it before every text,
        else `end_of_text`.
      piece_characters: text is tokenised in chunks of about so many characters, each by one process.
      shard_bytes: approximate size of a shard of rows, which one process holds in memory while rows are permuted.
    """

    name: str
    kind: str
    sequence_length: int
    seed: int = 0
    validation_share: float = 0.0
    hygiene: Filtering = field(default_factory=Filtering)
    chat: Chat | None = None
    piece_characters: int = 8_000_000
    shard_bytes: int = 64 << 20
    special_text: str | None = field(default=None, metadata=ADDED)
    document_start: str = field(default="auto", metadata=ADDED)

    def __post_init__(self) -> None:
        check_special_text(self.special_text)
        check_setting(self.document_start, "preparation.document_start")
        check_kinds(self, "")
        if self.sequence_length < 1:
            raise InputError(f"sequence_length {self.sequence_length}: give at least 1 token")
        if not 0 <= self.validation_share < 1:
            raise InputError(f"validation_share {self.validation_share}: give a share of at least 0 and below 1")
        for name in ("piece_characters", "shard_bytes"):
            if getattr(self, name) < 1000:
                raise InputError(f"{name} {getattr(self, name)}: give at least 1000")


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """What `python -m diversity_jax.mixtures.prepare` does.

    Attributes:
      output_dir: where the component goes; `gs://` and other fsspec URLs with a runner.
      corpus: where the text comes from.
      preparation: how it becomes rows.
      vocabulary: `bytes`, a SentencePiece `.model`, a `tokenizer.json`, or a folder with one.
      end_of_text: token that ends a document, if the tokenizer has none of the usual names.
      processes: on this machine; None for one a core.
      runner: of Apache Beam (DirectRunner, DataflowRunner, FlinkRunner, SparkRunner, ...); None for this machine's
        processes.
      runner_options: for Beam, such as ("--project=P", "--region=R", "--temp_location=gs://B/tmp").
    """

    output_dir: str
    corpus: CorpusConfig
    preparation: Preparation
    vocabulary: str = "bytes"
    end_of_text: str | None = None
    processes: int | None = None
    runner: str | None = None
    runner_options: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.corpus, str):
            object.__setattr__(self, "corpus", CorpusConfig(source=self.corpus))
        if self.corpus.conversations is not None and self.preparation.chat is None:
            object.__setattr__(self, "preparation", dataclasses.replace(self.preparation, chat=Chat()))
        if self.corpus.conversations is None and self.preparation.chat is not None:
            raise InputError("preparation.chat is set, but corpus.conversations is None; set it too")
        if self.processes is not None and self.processes < 1:
            raise InputError(f"processes {self.processes}: give at least 1, or None for one a core")
