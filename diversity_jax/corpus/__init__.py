"""Text corpora: files, SeqIO tasks, TFDS builders and installed packages, all read as documents."""

from diversity_jax.corpus.document import Corpus, CorpusConfig, Document
from diversity_jax.corpus.sources import open_corpus

__all__ = ["Corpus", "CorpusConfig", "Document", "open_corpus"]
