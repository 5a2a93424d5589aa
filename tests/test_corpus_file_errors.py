"""Corpus files that are damaged, cut, misnamed or of the wrong fields: each is one line that says where."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from diversity_jax.core.errors import InputError
from diversity_jax.corpus import CorpusConfig, open_corpus
from tests.corpus_writers import TEXTS, example_bytes, jsonl_bytes, tfrecord_bytes, write_as


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
