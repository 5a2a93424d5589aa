"""Where text comes from: files, SeqIO tasks, TFDS builders and the documentation of installed packages, all as
documents.
"""

from diversity_jax.corpus.document import Corpus, CorpusConfig, Document
from diversity_jax.corpus.sources import open_corpus

__all__ = ["Corpus", "CorpusConfig", "Document", "open_corpus"]
