"""Reading corpus files: every format gives the same documents, in order."""

import bz2
import gzip
import json
import lzma
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from diversity_jax.core.errors import InputError
from diversity_jax.corpus import CorpusConfig, Document, open_corpus
from tests.corpus_writers import TEXTS, jsonl_bytes, write_as
from tests.shared_data import shared_file

ENDINGS = [".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet", ".tfrecord", ".tfrecord.gz", ".tfrecord-00000-of-00001"]
ENDINGS += [".arrow", ".stream.arrow", ".FEATHER"]


@pytest.mark.parametrize("ending", ENDINGS)
def test_every_format_gives_the_same_documents_in_order(tmp_path, ending):
    path = write_as(ending, tmp_path, TEXTS)
    corpus = open_corpus(str(path))
    documents = list(corpus)
    assert [document.text for document in documents] == TEXTS
    assert [document.id for document in documents] == [f"{path.name}:{n}" for n in range(1, len(TEXTS) + 1)]
    assert [document.meta for document in documents] == [{"n": n} for n in range(len(TEXTS))]
    assert list(corpus) == documents
    assert not corpus.rejected


@pytest.mark.parametrize("ending", ENDINGS)
def test_samples_do_not_depend_on_the_format(tmp_path, ending):
    texts = [f"text {n}" for n in range(300)]
    drawn = open_corpus(str(write_as(ending, tmp_path, texts))).sample(40, seed=5)
    (tmp_path / "other").mkdir()
    assert [d.text for d in drawn] == [
        d.text for d in open_corpus(str(write_as(".jsonl", tmp_path / "other", texts))).sample(40, seed=5)
    ]


def test_text_files_are_one_document_each_and_keep_their_order(tmp_path):
    (tmp_path / "b.txt").write_bytes(b"\xef\xbb\xbfsecond\r\n\r\nwith a gap")
    (tmp_path / "a.txt").write_text("first")
    documents = list(open_corpus(f"{tmp_path}/*.txt"))
    assert documents == [Document(id="a.txt", text="first"), Document(id="b.txt", text="second\n\nwith a gap")]


def test_files_of_equal_names_in_several_folders_keep_distinct_ids(tmp_path):
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "part.jsonl").write_bytes(jsonl_bytes([folder]))
    assert [document.id for document in open_corpus(f"{tmp_path}/*/part.jsonl")] == ["x/part.jsonl:1", "y/part.jsonl:1"]


def test_remote_files_are_read_through_fsspec():
    import fsspec

    with fsspec.open("memory://corpus_test/a.jsonl.gz", "wb") as file:
        file.write(gzip.compress(jsonl_bytes(["far away", "and back"])))
    with fsspec.open("memory://corpus_test/b.jsonl.gz", "wb") as file:
        file.write(gzip.compress(jsonl_bytes(["third"])))
    corpus = open_corpus("memory://corpus_test/*.jsonl.gz")
    assert [document.text for document in corpus] == ["far away", "and back", "third"]
    assert len(corpus.sample(2, seed=0)) == 2
    assert len(corpus.fingerprint()) == 64


@pytest.mark.parametrize("ending", [".jsonl", ".parquet"])
def test_nested_text_fields_are_reached_with_dots(tmp_path, ending):
    path = tmp_path / f"nested{ending}"
    if ending == ".jsonl":
        path.write_text('{"message": {"body": "hello", "to": "you"}, "n": 1}\n{"message": null, "n": 2}\n')
    else:
        pq.write_table(pa.table({"message": [{"body": "hello", "to": "you"}, None], "n": [1, 2]}), path)
    corpus = open_corpus(CorpusConfig(source=str(path), text_field="message.body"))
    (document,) = corpus
    assert document.text == "hello"
    assert document.meta["n"] == 1
    assert corpus.rejected == {"empty": 1}


@pytest.mark.parametrize("kind", [pa.dictionary(pa.int32(), pa.string()), pa.large_string(), pa.string_view()])
def test_kinds_of_text_columns_and_null_parquet_texts(tmp_path, kind):
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"text": pa.array(["a", None, "a", "b"], kind)}), path)
    corpus = open_corpus(str(path))
    assert [document.text for document in corpus] == ["a", "a", "b"]
    assert sorted(document.text for document in corpus.sample(9, seed=0)) == ["a", "a", "b"]
    assert corpus.rejected == {"empty": 1}


def test_blank_lines_and_byte_order_marks_are_no_records(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "a"}\r\n\r\n  \n{"text": "b"}')
    corpus = open_corpus(str(path))
    assert [(d.id, d.text) for d in corpus] == [("a.jsonl:1", "a"), ("a.jsonl:4", "b")]
    assert {d.id for d in corpus.sample(9, seed=0)} == {"a.jsonl:1", "a.jsonl:4"}
    assert not corpus.rejected


def test_short_and_empty_texts_are_left_out_and_counted(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(jsonl_bytes(["", "  \n", "ab", " ab ", "abc"]))
    corpus = open_corpus(CorpusConfig(source=str(path), min_characters=3))
    assert [document.text for document in corpus] == ["abc"]
    assert corpus.rejected == {"empty": 2, "too short": 2}


@pytest.mark.parametrize("compress", [gzip.compress, zstandard.compress])
def test_several_compressed_members_are_one_stream(tmp_path, compress):
    path = tmp_path / ("a.jsonl.gz" if compress is gzip.compress else "a.jsonl.zst")
    path.write_bytes(compress(jsonl_bytes(["a", "b"])) + compress(jsonl_bytes(["c"])))
    assert [document.text for document in open_corpus(str(path))] == ["a", "b", "c"]


def test_memory_does_not_grow_with_the_corpus(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(jsonl_bytes(["word " * 400] * 8000))
    corpus = open_corpus(str(path))
    tracemalloc.start()
    assert sum(1 for _ in corpus) == 8000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < path.stat().st_size / 2


def test_real_corpora_are_read_whole():
    path = shared_file("corpora_real/web_text.jsonl.gz")
    corpus = open_corpus(str(path))
    assert len(list(corpus)) == 1520
    assert len({document.id for document in corpus.sample(1000, seed=3)}) == 1000


def _long_window(data):
    settings = zstandard.ZstdCompressionParameters.from_level(3, window_log=28, enable_ldm=True)
    compressor = zstandard.ZstdCompressor(compression_params=settings).compressobj()
    return compressor.compress(data) + compressor.flush()


@pytest.mark.parametrize(
    ("name", "compress"),
    [
        ("a.jsonl.zst", _long_window),
        ("a.jsonl.bz2", bz2.compress),
        ("a.jsonl.xz", lzma.compress),
        ("A.JSONL.GZ", gzip.compress),
        ("A.JSONL", bytes),
        ("A.Json", bytes),
    ],
)
def test_files_as_they_come_give_the_same_documents(tmp_path, name, compress):
    lines = [json.dumps({"text": f"document {number} " * 40}) for number in range(300)]
    (tmp_path / name).write_bytes(compress("\n".join(lines).encode()))
    (tmp_path / "plain.jsonl").write_text("\n".join(lines))
    texts, wanted = (
        [document.text for document in open_corpus(str(tmp_path / each))] for each in (name, "plain.jsonl")
    )
    assert texts == wanted
    complete = (tmp_path / name).read_bytes()
    if len(name.split(".")) == 3:
        (tmp_path / name).write_bytes(complete[: len(complete) // 2])
        with pytest.raises(InputError, match=r"ends early at byte|damaged near byte"):
            list(open_corpus(str(tmp_path / name)))
        (tmp_path / name).write_bytes(b"no such format at all" * 9)
        with pytest.raises(InputError, match="in spite of its name"):
            open_corpus(str(tmp_path / name))


@pytest.mark.parametrize(
    ("source", "numbers"),
    [("part-{00..02}.jsonl", [0, 1, 2]), ("part-{00,02}.jsonl", [0, 2]), ("part-{0{0,1},02}.jsonl", [0, 1, 2])],
)
def test_braces_stand_for_what_shells_make_of_them(tmp_path, source, numbers):
    for number in range(4):
        (tmp_path / f"part-{number:02}.jsonl").write_text(json.dumps({"text": f"shard {number}"}))
    texts = [document.text for document in open_corpus(str(tmp_path / source))]
    assert texts == [f"shard {number}" for number in numbers]
    with pytest.raises(InputError, match=r"part-04.jsonl: no such file"):
        open_corpus(str(tmp_path / "part-{00..04}.jsonl"))
    (tmp_path / "part-{a,b}.jsonl").write_text(json.dumps({"text": "braces"}))
    assert [document.text for document in open_corpus(str(tmp_path / "part-{a,b}.jsonl"))] == ["braces"]


def test_columns_that_nobody_asked_for_do_not_stop_a_parquet_file(tmp_path):
    not_text = pa.Array.from_buffers(pa.string(), 2, pa.array([b"\xff", b"ok"]).buffers())
    columns = {
        "text": pa.array(["café", "b"], pa.string_view()),
        "day": pa.array([2**22, 1], pa.date32()),
        "time": pa.array([2**62, 5], pa.timestamp("us")),
        "name": not_text,
        "twice": pa.array([1, 2]),
    }
    table = pa.Table.from_arrays([*columns.values(), columns["twice"]], names=[*columns, "twice"])
    pq.write_table(table, tmp_path / "a.PARQUET")
    first, second = open_corpus(str(tmp_path / "a.PARQUET"))
    assert (first.text, first.meta) == ("café", {"day": None, "time": None, "name": None})
    assert second.meta["day"].isoformat() == "1970-01-02"
    assert second.meta["name"] == "ok"
    for field in ("twice", "day"):
        with pytest.raises(InputError, match="2 columns 'twice'" if field == "twice" else "not text"):
            open_corpus(CorpusConfig(source=str(tmp_path / "a.PARQUET"), text_field=field))
