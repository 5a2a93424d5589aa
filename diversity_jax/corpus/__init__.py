"""Text corpora: files, SeqIO tasks, TFDS builders and installed packages, read as documents."""

from typing import TYPE_CHECKING

from diversity_jax.core import lazy

if TYPE_CHECKING:
    from diversity_jax.corpus.document import Corpus as Corpus
    from diversity_jax.corpus.document import CorpusConfig as CorpusConfig
    from diversity_jax.corpus.document import Document as Document
    from diversity_jax.corpus.sources import open_corpus as open_corpus
else:
    __getattr__ = lazy.exports(__name__)
