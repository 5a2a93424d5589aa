"""Any tokenizer as a `seqio.Vocabulary`. Importing this module imports seqio and TensorFlow."""

from collections.abc import Iterable, Sequence

import numpy as np

from diversity_jax.core.tensorflow import seqio, tf
from diversity_jax.tokenizers.tokenizer import ByteTokenizer, SentencePieceTokenizer, Tokenizer


def seqio_vocabulary(tokenizer: Tokenizer) -> seqio.Vocabulary:
    """The tokenizer as SeqIO's own vocabulary class where there is one, else as a `TokenizerVocabulary`.

    Ids are the tokenizer's own: nothing is shifted or reserved, so that id 0 survives. SeqIO's converters weigh the
    loss by `targets > 0`; a codebase whose tokenizer uses id 0 for text has to weigh by position instead.
    """
    if isinstance(tokenizer, ByteTokenizer):
        return seqio.ByteVocabulary()
    if isinstance(tokenizer, SentencePieceTokenizer) and tokenizer.ends_with_eos:
        return seqio.SentencePieceVocabulary(tokenizer.files[0])
    return TokenizerVocabulary(tokenizer)


class TokenizerVocabulary(seqio.Vocabulary):
    """A tokenizer seen by SeqIO: the same ids in and out, also in a tf.data graph."""

    bos_id: int | None = None
    unk_id: int | None = None

    def __init__(self, tokenizer: Tokenizer):
        super().__init__(extra_ids=0)
        self.tokenizer = tokenizer

    @property
    def eos_id(self) -> int:
        return self.tokenizer.end_of_text_id

    @property
    def _base_vocab_size(self) -> int:
        return self.tokenizer.size

    def _encode(self, s: str) -> Sequence[int]:
        return self.tokenizer.encode_batch([s])[0].tolist()

    def _decode(self, ids: Iterable[int]) -> str:
        return self.tokenizer.decode(list(ids))

    def decode(self, ids: Iterable[int]) -> str:
        """Text up to the first end-of-text id."""
        ids = list(ids)
        return self._decode(ids[: ids.index(self.eos_id)] if self.eos_id in ids else ids)

    def _encode_tf(self, s: tf.Tensor) -> tf.Tensor:
        s = tf.convert_to_tensor(s)
        if s.shape.rank is not None and s.shape.rank > 0:
            flat, lengths = tf.numpy_function(self._encode_bytes, [s], (tf.int32, tf.int64))
            return tf.RaggedTensor.from_row_lengths(tf.ensure_shape(flat, [None]), tf.ensure_shape(lengths, [None]))
        return tf.ensure_shape(tf.numpy_function(lambda text: self._encode_bytes(text)[0], [s], tf.int32), [None])

    def _encode_bytes(self, texts: bytes | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        ids, lengths = self.tokenizer.encode_batch([text.decode() for text in np.asarray(texts, object).ravel()])
        return ids.astype(np.int32), lengths

    def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
        return tf.reshape(tf.numpy_function(self._decode_rows, [ids], tf.string), tf.shape(ids)[:-1])

    def _decode_rows(self, ids: np.ndarray) -> np.ndarray:
        return np.array([self.decode(row.tolist()) for row in np.atleast_2d(ids)], object)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TokenizerVocabulary) and other.tokenizer.hash == self.tokenizer.hash

    def __hash__(self) -> int:
        return hash(self.tokenizer.hash)
