"""One door to every source of text."""

from diversity_jax.corpus.document import Corpus, CorpusConfig
from diversity_jax.corpus.files import open_files
from diversity_jax.errors import InputError
from diversity_jax.storage import list_files


def open_corpus(config: CorpusConfig | str) -> Corpus:
    """Opens a corpus and reads its first document, so that what cannot work says so at once.

    Args:
      config: what to open; a text alone is a source with default settings.

    Raises:
      InputError: there is nothing there, it holds no document, the text field is wrong, or the first record is broken.
    """
    if isinstance(config, str):
        config = CorpusConfig(source=config)
    corpus = _open(config)
    next(iter(corpus))
    return corpus


def _open(config: CorpusConfig) -> Corpus:
    kind, colon, name = config.source.partition(":")
    if not colon or name.startswith("//"):
        return open_files(config)
    if kind == "installed_docs":
        from diversity_jax.corpus.installed_docs import open_installed_docs

        return open_installed_docs(config, name)
    if kind == "seqio":
        from diversity_jax.corpus.seqio_task import open_seqio_task

        return open_seqio_task(config, name)
    if kind == "tfds":
        from diversity_jax.corpus.tfds_builder import open_tfds_builder

        return open_tfds_builder(config, name)
    if len(kind) > 1 and kind.isidentifier() and not list_files(config.source):
        known = "a path, a URL, or one of seqio:TASK, tfds:NAME, installed_docs:prose, installed_docs:code"
        raise InputError(f"{config.source}: neither a file nor a known kind of source; expected {known}")
    return open_files(config)
