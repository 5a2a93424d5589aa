"""Corpus files in every format that is read, written by hand or by the format's own library."""

import gzip
import json
import tempfile

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

TEXTS = ["one plain line", "two\nlines", 'quoted "text" and \\ slash', "ünïcödé, 漢字, 😀", "x" * 3_000_000, "the last"]


def jsonl_bytes(texts, **extra):
    return b"".join(json.dumps({"text": text, "n": n, **extra}).encode() + b"\n" for n, text in enumerate(texts))


def example_bytes(features):
    """A serialised tf.train.Example, written by hand."""

    def varint(value):
        out = b""
        while value > 0x7F:
            out, value = out + bytes([value & 0x7F | 0x80]), value >> 7
        return out + bytes([value])

    def field(number, data):
        return varint(number << 3 | 2) + varint(len(data)) + data

    feature_map = b""
    for name, value in features.items():
        values = (
            field(1, field(1, value)) if isinstance(value, bytes) else field(3, field(1, varint(value % (1 << 64))))
        )
        feature_map += field(1, field(1, name.encode()) + field(2, values))
    return field(1, feature_map)


def tfrecord_bytes(records):
    from diversity_jax.core.tensorflow import tf

    with tempfile.NamedTemporaryFile() as file:
        with tf.io.TFRecordWriter(file.name) as writer:
            for data in records:
                writer.write(data)
        return file.read()


def write_as(ending, folder, texts):
    path = folder / f"corpus{ending}"
    if ending.startswith(".jsonl"):
        data = jsonl_bytes(texts)
    elif ending == ".parquet":
        pq.write_table(
            pa.table({"text": texts, "n": range(len(texts)), "vector": [[1.0]] * len(texts)}), path, row_group_size=2
        )
        return path
    elif ending.lower().endswith((".arrow", ".feather")):
        made = pa.ipc.new_stream if "stream" in ending else pa.ipc.new_file
        table = pa.table({"vector": [[1.0]] * len(texts), "text": texts, "n": range(len(texts))})
        with path.open("wb") as file, made(file, table.schema) as writer:
            writer.write_table(table, max_chunksize=2)
        return path
    else:
        data = tfrecord_bytes([example_bytes({"text": text.encode(), "n": n}) for n, text in enumerate(texts)])
    if ending.endswith(".gz"):
        data = gzip.compress(data)
    if ending.endswith(".zst"):
        data = zstandard.compress(data)
    path.write_bytes(data)
    return path
