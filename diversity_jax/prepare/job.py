"""What the processes of a preparation are sent: the job, once, and chunks of text."""

from collections.abc import Sequence
from dataclasses import dataclass

from diversity_jax.core.artifacts import ArtifactStore
from diversity_jax.prepare.config import Preparation
from diversity_jax.prepare.decontaminate import Benchmarks
from diversity_jax.prepare.packing import ChatFormat
from diversity_jax.tokenizers.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Consecutive documents of one unit of a corpus; `name` is unique and in the order of the corpus.

    Attributes:
      encoder: one of `tokenizers.encoders.ENCODERS`, but for `auto`, which would depend on what was encoded before.
    """

    name: str
    ids: Sequence[str]
    texts: Sequence[str]
    encoder: str = "reference"


@dataclass(frozen=True, kw_only=True)
class Job:
    """What every process needs to know: small enough to be sent to each once.

    Attributes:
      benchmarks: to screen documents with.
      folder: where the component goes; staging_dir: of intermediate files. Paths or URLs.
      dtype: of a token, `<u2` or `<u4`.
      chat: how conversations are written; None: documents are text.
      begin_of_text_id: written before every document; None: nothing.
      reference_from: chunks of this name and those after it are encoded by the reference; None: as `encoder_choice`
        says.
    """

    tokenizer: Tokenizer
    settings: Preparation
    benchmarks: Benchmarks | None
    folder: str
    staging_dir: str
    dtype: str
    chat: ChatFormat | None = None
    begin_of_text_id: int | None = None
    reference_from: str | None = None

    @property
    def added_tokens(self) -> int:
        """Tokens of a document of text beside its own: end-of-text, and what is written before it."""
        return 1 if self.begin_of_text_id is None else 2

    @property
    def row_tokens(self) -> int:
        """Tokens in a row."""
        return self.settings.sequence_length + 1

    @property
    def staging(self) -> ArtifactStore:
        """Intermediate files and their records."""
        return ArtifactStore(self.staging_dir)
