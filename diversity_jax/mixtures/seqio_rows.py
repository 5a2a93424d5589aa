"""Prepared rows for SeqIO: read from disk by `tf.data`, with decoder features, and tokenizers as its vocabularies.

Importing this module imports seqio and TensorFlow.
"""

from collections.abc import Iterable, Sequence
import logging
import os
from typing import Any

import numpy as np

from diversity_jax.core.errors import InputError
from diversity_jax.core.tensorflow import seqio, tf
from diversity_jax.mixtures.loader import epoch_shuffle
from diversity_jax.prepare.manifest import Manifest, prepared_tokenizer
from diversity_jax.prepare.rows import ID_BITS, START
from diversity_jax.tokenizers.document_start import Boundaries
from diversity_jax.tokenizers.tokenizer import ByteTokenizer, SentencePieceTokenizer, Tokenizer

log = logging.getLogger(__name__)


def seqio_vocabulary(tokenizer: Tokenizer) -> seqio.Vocabulary:
    """The tokenizer as SeqIO's own vocabulary class where there is one, else as a `TokenizerVocabulary`.

    Ids are the tokenizer's own: none is shifted or reserved, not even id 0. SeqIO's converters weight the loss by
    `targets > 0`; a codebase whose tokenizer uses id 0 for text has to weight by position instead.
    """
    if isinstance(tokenizer, ByteTokenizer):
        return seqio.ByteVocabulary()
    if isinstance(tokenizer, SentencePieceTokenizer) and tokenizer.ends_with_eos:
        return seqio.SentencePieceVocabulary(tokenizer.files[0])
    return TokenizerVocabulary(tokenizer)


class TokenizerVocabulary(seqio.Vocabulary):
    """A tokenizer as a `seqio.Vocabulary`, with the same ids, also in a tf.data graph."""

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


DECODER_FEATURES = (
    "decoder_input_tokens",
    "decoder_target_tokens",
    "decoder_loss_weights",
    "decoder_positions",
    "decoder_segment_ids",
)
"""What `decoder_features` adds to a row; other mixtures get them by `passthrough_features`."""

_VOCABULARIES: dict[str, Any] = {}
"""By hash of the tokenizer, so that a vocabulary that several components share is read once."""


def features_of(manifest: Manifest, derived: Sequence[str] = ()) -> dict[str, Any]:
    """The feature `targets`, and those of `DECODER_FEATURES` that are to be registered."""
    info = manifest.vocabulary
    if info.hash not in _VOCABULARIES:
        tokenizer = prepared_tokenizer(manifest)
        _VOCABULARIES[info.hash] = seqio_vocabulary(tokenizer)
        if (zero := tokenizer.zero_in_rows()) is not None:
            log.warning(
                "%s: id 0 of its vocabulary is %r, which rows hold, and SeqIO takes for padding: its packing drops a "
                "token for each, its loss weights leave them out. Use the registered names that end in _packed and "
                "PrePackedLMFeatureConverter",
                *(manifest.name, zero),
            )
    options = {"add_eos": False, "dtype": tf.int32, "rank": 1}
    tokens = seqio.Feature(vocabulary=_VOCABULARIES[info.hash], required=True, **options)
    derived_tokens = seqio.Feature(vocabulary=_VOCABULARIES[info.hash], required=False, **options)
    numbers = seqio.Feature(vocabulary=seqio.PassThroughVocabulary(size=manifest.row_tokens), required=False, **options)
    return {"targets": tokens} | {name: derived_tokens if name.endswith("_tokens") else numbers for name in derived}


_PROBES = ("The cat sat; it rained.", " 12,345 = 3 * 4115\n\tx", "naïve Zürich 漢字 😀", "def f(x):\n    return x_1")


def features_like(name: str, manifest: Manifest) -> dict[str, Any]:
    """The features of a registered task or mixture, which prepared rows can have, too.

    Raises:
      InputError: there is none of that name; it has features that rows lack; or `targets` has other ids.
    """
    try:
        features = dict(seqio.get_mixture_or_task(name).output_features)
    except ValueError as error:
        problem = str(error).partition("\n")[0].rstrip(".")
        raise InputError(f"like={name!r}: {problem}; import the module that registers it") from None
    unknown = sorted(set(features) - {"inputs", "targets", *DECODER_FEATURES})
    if unknown or "targets" not in features:
        what = f"has {', '.join(unknown)}, which rows have not" if unknown else "has no feature 'targets'"
        raise InputError(f"like={name!r}: {what}; rows are one text, `targets`, with `inputs` empty")
    targets, tokenizer = features["targets"], prepared_tokenizer(manifest)
    vocabulary, about = targets.vocabulary, f"like={name!r}: its 'targets' are"
    if targets.rank != 1 or not targets.dtype.is_integer:
        raise InputError(f"{about} {targets.dtype.name} of rank {targets.rank}; rows are token ids of rank 1")
    if vocabulary == features_of(manifest)["targets"].vocabulary:
        return features
    if isinstance(vocabulary, seqio.PassThroughVocabulary):
        is_same = vocabulary.vocab_size >= tokenizer.size
    else:
        theirs = [list(vocabulary.encode(probe)) for probe in _PROBES]
        is_same = theirs == [tokenizer.encode_batch([probe])[0].tolist() for probe in _PROBES]
    if not is_same:
        ours = f"rows of {manifest.vocabulary.kind} ({tokenizer.size:,} ids)"
        raise InputError(f"{about} ids of {vocabulary}, not of {ours}; build the mixture with their tokenizer")
    return features


def matching_features(dataset: Any, output_features: Any) -> Any:
    """Rows with the types of the registered features, and empty `inputs` if that is one of them."""

    def match(example: dict[str, Any]) -> dict[str, Any]:
        empty = {"inputs": tf.zeros([0], output_features["inputs"].dtype)} if "inputs" in output_features else {}
        named = {
            name: tf.cast(example[name], output_features[name].dtype) for name in output_features if name != "inputs"
        }
        return {**example, **empty, **named}

    return dataset.map(match, num_parallel_calls=tf.data.AUTOTUNE)


def decoder_features(dataset: Any, sequence_length: Any = None, *, boundaries: Boundaries, row_tokens: int) -> Any:
    """Adds to each row what `seqio.PrePackedLMFeatureConverter` gives to a decoder; all int32 [sequence_length].

    `decoder_input_tokens` are the row's tokens but the last, `decoder_target_tokens` the one after each: nothing is
    shifted in, and no token is lost. `decoder_loss_weights` are one on every token that the trainer's loss counts
    (SeqIO's other converters take id 0 for padding), in conversations on every token of an answer;
    `decoder_segment_ids` count documents or conversations from 1, `decoder_positions` start at 0 in each. Beyond the
    row, if more tokens are requested, all are zero.
    """
    wanted = (sequence_length or {}).get("targets")
    length = row_tokens - 1 if wanted is None else wanted
    used = min(length, row_tokens - 1)

    def add(example: dict[str, Any]) -> dict[str, Any]:
        row = example["targets"]
        inputs = row[:used]
        if "starts" in example:
            begins, weights = example.pop("starts")[:used], example.pop("weights")[1 : used + 1]
        else:
            begins, weights = _text_features(row, boundaries)
            begins, weights = begins[:used], weights[1 : used + 1]
        segments = tf.cumsum(begins)
        derived = {
            "decoder_input_tokens": inputs,
            "decoder_target_tokens": row[1 : used + 1],
            "decoder_loss_weights": weights,
            "decoder_positions": tf.range(used) - tf.gather(tf.cast(tf.where(begins)[:, 0], tf.int32), segments - 1),
            "decoder_segment_ids": segments,
        }
        padded = {
            name: tf.ensure_shape(tf.pad(values, [[0, length - used]]), [length]) for name, values in derived.items()
        }
        return {**example, **padded}

    return dataset.map(add, num_parallel_calls=tf.data.AUTOTUNE)


def _text_features(row: Any, boundaries: Boundaries) -> tuple[Any, Any]:
    """`Boundaries.starts` and `targets` of a row as int32, computed by TensorFlow operations."""
    ends = row == boundaries.end_of_text_id
    begins = tf.concat([[False], ends[:-1]], 0)
    if boundaries.document_start == "bos":
        begins &= row == boundaries.start_id
    starts = ends if boundaries.document_start == "end_of_text" else begins
    starts = tf.concat([[True], starts[1:]], 0)
    targets = ~begins if boundaries.masks_targets else tf.ones_like(begins)
    return tf.cast(starts, tf.int32), tf.cast(targets, tf.int32)


def counted_tokens(decoded: str, example: Any = None, is_target: bool = False) -> Any:
    """`postprocess_fn`: for a target, its number of tokens but id 0, SeqIO's padding; for a prediction, itself."""
    return int(np.count_nonzero(example["targets"])) if is_target else decoded


def token_loss(targets: Sequence[int], scores: Sequence[float]) -> dict[str, float]:
    """Metric of held-out rows: mean loss in nats a token, and its exponential.

    Args:
      targets: tokens of each row; scores: log-likelihood of each row, summed over its tokens.
    """
    loss = -float(np.sum(scores)) / sum(targets)
    return {"loss": loss, "perplexity": float(np.exp(loss))}


def rows_of(manifest: Manifest, split: str, shuffle_files: bool = False, seed: int | None = None) -> "tf.data.Dataset":
    """Rows in the order on disk, read by TensorFlow operations, so that iterators can be checkpointed."""
    files = [os.path.join(manifest.folder, shard.file) for shard in manifest.splits[split].shards]
    if manifest.linked:
        return _parsed(manifest, _linked_rows(manifest, tf.data.FixedLengthRecordDataset(files, 8)))
    return _parsed(manifest, tf.data.FixedLengthRecordDataset(files, manifest.row_bytes))


def _linked_rows(manifest: Manifest, offsets: "tf.data.Dataset") -> "tf.data.Dataset":
    """Bytes of linked rows, given the offset of each in their file, in tokens."""
    width = manifest.row_bytes // manifest.row_tokens

    def row(offset: Any) -> Any:
        skipped = tf.io.decode_raw(offset, tf.int64)[0] * width
        rest = (manifest.linked["bytes"] - skipped) % manifest.row_bytes  # a file must hold complete records
        records = tf.data.FixedLengthRecordDataset(
            manifest.linked["file"], manifest.row_bytes, skipped, rest, buffer_size=manifest.row_bytes
        )
        return records.take(1)

    return offsets.flat_map(row)


def passes_of(
    manifest: Manifest,
    repeat_seed: int,
    epochs: int | None,
    split: str,
    shuffle_files: bool = False,
    seed: int | None = None,
) -> "tf.data.Dataset":
    """Rows of several epochs (None: endless), each in its own order; read by TensorFlow operations, too."""
    shards, order = manifest.splits[split].shards, epoch_shuffle(manifest, split, repeat_seed)
    assert order is not None  # a seed was given
    files = tf.constant([os.path.join(manifest.folder, shard.file) for shard in shards])
    starts = tf.constant(np.cumsum([0] + [shard.rows for shard in shards[:-1]]), tf.int64)
    record_bytes = 8 if manifest.linked else manifest.row_bytes

    def record(position: Any) -> Any:
        epoch = position // order.rows
        row = tf.while_loop(
            lambda row: row >= order.rows,
            lambda row: (order.permuted(row, epoch),),
            (order.permuted(position % order.rows, epoch),),
        )[0]
        shard = tf.searchsorted(starts, row[None], side="right")[0] - 1
        skipped = (row - starts[shard]) * record_bytes
        dataset = tf.data.FixedLengthRecordDataset(files[shard], record_bytes, skipped, buffer_size=record_bytes).take(
            1
        )
        return _linked_rows(manifest, dataset) if manifest.linked else dataset

    end = np.iinfo(np.int64).max if epochs is None else epochs * order.rows
    later = _parsed(manifest, tf.data.Dataset.range(order.rows, end).flat_map(record))
    return rows_of(manifest, split).concatenate(later)


def _parsed(manifest: Manifest, records: "tf.data.Dataset") -> "tf.data.Dataset":
    """Rows from their bytes on disk."""
    dtype = tf.uint16 if manifest.dtype == "uint16" else tf.int32  # ids fit, and TensorFlow decodes no uint32

    def parse_with_flags(record: Any) -> dict[str, Any]:
        row = tf.ensure_shape(tf.io.decode_raw(record, tf.int32), [manifest.row_tokens])
        starts = tf.cast(tf.bitwise.bitwise_and(row, int(START)) != 0, tf.int32)
        ids = tf.bitwise.bitwise_and(row, int(ID_BITS))
        return {"targets": ids, "starts": starts, "weights": tf.cast(row < 0, tf.int32)}  # the highest bit is TARGET

    def parse(record: Any) -> dict[str, Any]:
        row = tf.cast(tf.io.decode_raw(record, dtype), tf.int32)
        return {"targets": tf.ensure_shape(row, [manifest.row_tokens])}

    return records.map(parse_with_flags if manifest.chat else parse, num_parallel_calls=tf.data.AUTOTUNE)
