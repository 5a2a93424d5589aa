"""Text corpora: files, SeqIO tasks, TFDS builders and installed packages, read as documents."""

from typing import TYPE_CHECKING

from diversity_jax.core import lazy

if TYPE_CHECKING:
    from diversity_jax.corpus.document import Corpus, CorpusConfig, Document
    from diversity_jax.corpus.sources import open_corpus
else:
    __getattr__ = lazy.exports(__name__)

__all__ = ["Corpus", "CorpusConfig", "Document", "open_corpus"]
