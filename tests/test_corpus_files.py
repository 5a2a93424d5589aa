"""Reading files: every format gives the same documents, in order, and every wrong input is one line that says where."""

import bz2
import gzip
import json
import lzma
import tempfile
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from diversity_jax.core.errors import InputError
from diversity_jax.corpus import CorpusConfig, Document, open_corpus
from tests.shared_data import shared_file

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


@pytest.mark.parametrize("ending", [".arrow", ".stream.arrow"])
def test_an_arrow_file_that_is_cut_short_or_has_no_text_says_so_in_a_line(tmp_path, ending):
    complete = write_as(ending, tmp_path, [f"text {n} " * 50 for n in range(300)])
    cut = tmp_path / f"cut{ending}"
    cut.write_bytes(complete.read_bytes()[: complete.stat().st_size // 2])
    with pytest.raises(InputError, match=r"cut.*: is not a whole Arrow IPC file \(") as error:
        list(open_corpus(str(cut)))
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="has no column 'body'; set text_field to one of: vector, text, n"):
        open_corpus(CorpusConfig(source=str(complete), text_field="body"))
    (tmp_path / "words.arrow").write_text("not Arrow at all, but a text that somebody named so")
    with pytest.raises(InputError, match="is not a whole Arrow IPC file"):
        open_corpus(str(tmp_path / "words.arrow"))


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


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("nowhere://bucket/a.jsonl", "cannot be read .*nowhere"),
        ("memory://corpus_nothing/a.jsonl", "no such file"),
        ("memory://corpus_nothing/*.jsonl", "no file matches"),
    ],
)
def test_wrong_urls_are_one_clear_line(url, says):
    with pytest.raises(InputError, match=says):
        open_corpus(url)


def test_an_unknown_kind_of_source_says_which_are_known():
    with pytest.raises(
        InputError, match=r"seqo:task: neither a file nor a known kind of source; expected .*seqio:TASK"
    ):
        open_corpus("seqo:task")


@pytest.mark.parametrize("ending", [".jsonl", ".parquet"])
def test_nested_text_fields_are_reached_with_dots(tmp_path, ending):
    path = tmp_path / f"nested{ending}"
    if ending == ".jsonl":
        path.write_text('{"message": {"body": "hello", "to": "you"}, "n": 1}\n')
    else:
        pq.write_table(pa.table({"message": [{"body": "hello", "to": "you"}], "n": [1]}), path)
    (document,) = open_corpus(CorpusConfig(source=str(path), text_field="message.body"))
    assert document.text == "hello"
    assert document.meta["n"] == 1


def test_dictionary_encoded_and_null_parquet_texts(tmp_path):
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"text": pa.array(["a", None, "a", "b"]).dictionary_encode()}), path)
    corpus = open_corpus(str(path))
    assert [document.text for document in corpus] == ["a", "a", "b"]
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


BROKEN_LINES = [
    (b'{"text": "unfinished', "not valid JSON"),
    (b'{"text": "a"} {"text": "b"}', "more after the JSON value, at column 14"),
    (b'["text"]', "not an object"),
    (b'{"text": "\xff\xfe"}', "not UTF-8 at byte 10"),
    (b'{"text": "a\\ud800b"}', "lone surrogate"),
    (b'{"body": "x", "meta": {"url": "y"}}', "set text_field to one of: body, meta.url"),
    (b'{"text": 12}', "holds a number, not text"),
    (b"[" * 100_000, "nested too deeply"),
]


@pytest.mark.parametrize(("line", "says"), BROKEN_LINES)
@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz"])
def test_a_broken_line_is_named_by_file_and_line(tmp_path, line, says, ending):
    path = tmp_path / f"a{ending}"
    data = jsonl_bytes(["one"]) + b"\n" + line + b"\n" + jsonl_bytes(["three"])
    path.write_bytes(gzip.compress(data) if ending.endswith(".gz") else data)
    corpus = open_corpus(str(path))
    for read in (lambda: list(corpus), lambda: corpus.sample(10, seed=1)):
        with pytest.raises(InputError) as caught:
            read()
        assert str(caught.value).startswith(f"{path}:3: ")
        assert says in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz"])
def test_a_tolerated_share_of_broken_lines_is_left_out_and_counted(tmp_path, ending):
    path = tmp_path / f"a{ending}"
    lines = [*(line for line, _ in BROKEN_LINES[:4]), *jsonl_bytes([f"good {n}" for n in range(16)]).splitlines()]
    path.write_bytes(gzip.compress(b"\n".join(lines)) if ending.endswith(".gz") else b"\n".join(lines))
    corpus = open_corpus(CorpusConfig(source=str(path), max_broken_share=0.2))
    assert len(list(corpus)) == 16
    assert corpus.rejected == {"not JSON": 2, "not an object": 1, "not UTF-8": 1}
    assert len(corpus.sample(20, seed=0)) == 16
    strict = CorpusConfig(source=str(path), max_broken_share=0.19)
    for read in (list, lambda corpus: corpus.sample(20, seed=0)):
        with pytest.raises(
            InputError,
            match=r"4 of 20 records are broken, more than max_broken_share=0\.19; the first: .*:1: is not valid",
        ):
            read(open_corpus(strict))


def test_a_wrong_field_says_which_fields_exist(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(jsonl_bytes(["x"], label="y"))
    pq.write_table(pa.table({"body": ["x"], "n": [1]}), tmp_path / "a.parquet")
    (tmp_path / "a.tfrecord").write_bytes(tfrecord_bytes([example_bytes({"body": b"x", "n": 3})]))
    for name, fields in (("a.jsonl", "text, n, label"), ("a.parquet", "body, n"), ("a.tfrecord", "body, n")):
        with pytest.raises(InputError, match=f"{name}.*set text_field to one of: {fields}$"):
            open_corpus(CorpusConfig(source=str(tmp_path / name), text_field="words"))
    for name in ("a.parquet", "a.tfrecord"):
        with pytest.raises(InputError, match="not text"):
            open_corpus(CorpusConfig(source=str(tmp_path / name), text_field="n"))


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("missing.jsonl", None, "no such file"),
        ("*.jsonl", None, "no file matches"),
        ("", None, "is a folder without text"),
        ("a.xlsx", b"x", "of no known kind; expected"),
        ("a.parquet.gz", b"x", "decompress"),
        ("empty.jsonl", b"", "holds no document;"),
        ("blank.jsonl", b'\n{"text": " "}\n', r"holds no document \(left out: 1 empty\)"),
        ("empty.txt", b"", "holds no document"),
        ("empty.tfrecord", b"", "holds no document"),
        ("array.json", b'[\n{"text": "a"}\n]', "array.json:1: is not valid JSON .* one object a line"),
        ("a.txt", b"ok \xff", "a.txt: is not UTF-8 at byte 3"),
        ("zipped.jsonl", gzip.compress(b"{}", mtime=0), "looks like gzip"),
        ("plain.jsonl.gz", b'{"text": "a"}', "not a gzip file in spite of its name"),
        ("plain.jsonl.zst", b'{"text": "a"}', "not a Zstandard file in spite of its name"),
        ("cut.jsonl.gz", gzip.compress(b'{"text": "a"}\n', mtime=0)[:12], "ends early at byte"),
        ("cut.jsonl.zst", zstandard.compress(b'{"text": "a"}\n')[:-3], "ends early at byte"),
        ("no.parquet", b'{"text": "a"}', "not a whole Parquet file"),
        ("empty.parquet", b"", "not a whole Parquet file"),
        ("no.tfrecord", b'{"text": "a and more"}', "no TFRecord at byte 0"),
        ("cut.tfrecord", lambda: tfrecord_bytes([b"abc"])[:-2], "ends inside the record at byte 0"),
        ("other.tfrecord", lambda: tfrecord_bytes([b"\xff\xff\xff"]), "other.tfrecord:1: is not a tf.train.Example"),
    ],
)
def test_wrong_input_is_one_clear_line(tmp_path, name, content, says):
    path = f"{tmp_path}/{name}"
    if content is not None:
        (tmp_path / name).write_bytes(content() if callable(content) else content)
    with pytest.raises(InputError, match=says) as caught:
        open_corpus(path)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_a_cut_parquet_file_is_one_clear_line(tmp_path):
    complete = write_as(".parquet", tmp_path, TEXTS).read_bytes()
    (tmp_path / "cut.parquet").write_bytes(complete[: len(complete) // 2])
    with pytest.raises(InputError, match="not a whole Parquet file"):
        open_corpus(f"{tmp_path}/cut.parquet")


def test_a_cut_or_damaged_stream_is_noticed_when_it_is_reached(tmp_path):
    for ending, damage in ((".jsonl.gz", -5), (".jsonl.zst", -5), (".tfrecord", -5)):
        path = write_as(ending, tmp_path, [f"text {n * 7919}" for n in range(5_000)])
        path.write_bytes(path.read_bytes()[:damage])
        for read in (lambda path: list(open_corpus(str(path))), lambda path: open_corpus(str(path)).sample(3, seed=0)):
            with pytest.raises(InputError, match="ends "):
                read(path)


def test_files_of_several_kinds_are_refused(tmp_path):
    write_as(".jsonl", tmp_path, ["a"])
    write_as(".parquet", tmp_path, ["a"])
    with pytest.raises(InputError, match="several kinds"):
        open_corpus(f"{tmp_path}/corpus*")


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ({"source": " "}, "corpus.source"),
        ({"max_documents": 0}, "corpus.max_documents=0: expected at least 1"),
        ({"max_broken_share": 1.0}, "corpus.max_broken_share"),
        ({"min_characters": 0}, "corpus.min_characters"),
    ],
)
def test_settings_are_checked(setting, says):
    with pytest.raises(InputError, match=says):
        CorpusConfig(**{"source": "a.jsonl", **setting})


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


def test_a_link_to_nothing_is_no_silent_loss(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "here"}))
    (tmp_path / "b.jsonl").symlink_to(tmp_path / "gone.jsonl")
    for source in ("*.jsonl", "b.jsonl"):
        with pytest.raises(InputError, match=r"b.jsonl: is a link to .*gone.jsonl, which is not there"):
            open_corpus(str(tmp_path / source))


@pytest.mark.parametrize(
    ("name", "remedy"), [("a.tar", "unpack it"), ("a.TAR.GZ", "unpack it"), ("a.zip", "unpack it")]
)
def test_files_that_cannot_be_read_say_what_to_do(tmp_path, name, remedy):
    (tmp_path / name).write_text("")
    with pytest.raises(InputError, match=remedy):
        open_corpus(str(tmp_path / name))


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
