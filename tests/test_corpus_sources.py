"""Sources of text: tables, folders, standard input, and datasets of the Hugging Face hub."""

import csv
import gzip
import io
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from diversity_jax.core.buckets import public_name
from diversity_jax.core.errors import InputError
from diversity_jax.corpus import CorpusConfig, open_corpus
from diversity_jax.corpus.readers.text import holds_json, spooled_input
from tests.hub_server import hub_server

TEXTS = ["plain", 'with "quotes", and commas', "two\nlines\n", "ünïcödé, 漢字\tand a tab", "x" * 200_000, "the last"]


def lines_of(texts):
    return "".join(json.dumps({"text": text}) + "\n" for text in texts)


def table(texts, separator=","):
    file = io.StringIO(newline="")
    writer = csv.writer(file, delimiter=separator)
    writer.writerow(["n", "text"])
    writer.writerows(enumerate(texts))
    return file.getvalue()


@pytest.mark.parametrize(("ending", "separator"), [(".csv", ","), (".csv", ";"), (".CSV", "|"), (".tsv", "\t")])
def test_tables_give_the_texts_that_were_written(tmp_path, ending, separator):
    path = tmp_path / f"a{ending}"
    path.write_bytes(b"\xef\xbb\xbf" + table(TEXTS, separator).encode())
    corpus = open_corpus(str(path))
    documents = list(corpus)
    assert [document.text for document in documents] == TEXTS
    assert [(document.id, document.meta) for document in documents][2] == (f"{path.name}:3", {"n": "2"})
    assert sorted(document.text for document in corpus.sample(9, seed=3)) == sorted(TEXTS)


def test_a_table_without_names_is_read_by_the_number_of_its_column(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text("1\tfirst\n2\tsecond\n")
    assert [d.text for d in open_corpus(CorpusConfig(source=str(path), text_field="2"))] == ["first", "second"]
    with pytest.raises(InputError, match=r"a.tsv: has no column '3'; set text_field to one of: 1, 2$"):
        open_corpus(CorpusConfig(source=str(path), text_field="3"))
    with pytest.raises(InputError, match=r"has no column 'text'; .* of a file without names .* a column's number"):
        open_corpus(str(path))
    with pytest.raises(InputError, match=r"a.tsv:1: the first row holds '1', which may be a name or a value; write"):
        open_corpus(CorpusConfig(source=str(path), text_field="1"))
    path.write_text("\t0\t1\n0\tx\tfirst\n")  # as pandas writes a frame without names
    assert [d.text for d in open_corpus(CorpusConfig(source=str(path), text_field="1"))] == ["first"]


def test_a_separator_inside_a_quoted_name_separates_nothing(tmp_path):
    (tmp_path / "a.csv").write_text('"text";"where, and when"\n"one; two";x\n')
    assert [document.text for document in open_corpus(str(tmp_path / "a.csv"))] == ["one; two"]


def test_conversations_are_read_from_columns(tmp_path):
    (tmp_path / "a.csv").write_text("instruction,output\nSay hello,Hello there\n")
    (document,) = open_corpus(CorpusConfig(source=str(tmp_path / "a.csv"), conversations="alpaca"))
    assert {"Say hello", "Hello there"} <= set(document.text.splitlines())


BROKEN_ROWS = [
    (b"7,one,two", r"a.csv:4: has 3 fields, not 2 as the first row; quote fields that hold ','"),
    (b'7,"quoted" badly', r"a.csv:4: cannot be read as a row .*; quotes inside a quoted field must be doubled"),
    (b"7,\xff\xfe", r"a.csv:4: is not UTF-8 at byte 1"),
]


@pytest.mark.parametrize(("row", "says"), BROKEN_ROWS)
def test_a_broken_row_is_named_by_its_line_and_may_be_left_out(tmp_path, row, says):
    path = tmp_path / "a.csv"
    path.write_bytes(b'n,text\n1,"two\nlines"\n' + row + b"\n2,good\n")
    with pytest.raises(InputError, match=says):
        list(open_corpus(str(path)))
    tolerant = open_corpus(CorpusConfig(source=str(path), max_broken_share=0.5))
    assert [document.text for document in tolerant] == ["two\nlines", "good"]
    assert sum(tolerant.rejected.values()) == 1


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "a.csv: holds no document"),
        (b"n,text\n", "a.csv: holds no document"),
        (b"text,text\n1,2\n", "has 2 columns 'text'; rename one"),
        ("n,text\n1,a".encode("utf-16"), "a.csv:1: is not UTF-8 at byte 0; it looks like UTF-16"),
        (b'n,text\n1,"never closed\n', "a.csv:2: cannot be read as a row"),
    ],
)
def test_a_table_that_cannot_be_read_is_one_line(tmp_path, content, says):
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(InputError, match=says):
        list(open_corpus(str(tmp_path / "a.csv")))


def test_a_folder_is_all_files_of_text_in_it_and_their_names_identify_it(tmp_path, caplog):
    caplog.set_level("INFO")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "b.md").write_text("a note")
    (tmp_path / "a.jsonl").write_text(lines_of(["one", "two"]))
    (tmp_path / "c.csv").write_text(table(["three"]))
    for name in ("README.md", "dataset_info.json", "picture.png", ".hidden.txt"):
        (tmp_path / name).write_text("{}")
    corpus = open_corpus(f"{tmp_path}/")
    assert [(d.id, d.text) for d in corpus] == [
        *(("a.jsonl:1", "one"), ("a.jsonl:2", "two"), ("c.csv:1", "three"), ("notes/b.md", "a note")),
    ]
    assert "reads a.jsonl, c.csv, notes/b.md; leaves out README.md, dataset_info.json, picture.png" in caplog.text
    before = corpus.fingerprint()
    (tmp_path / "c.csv").rename(tmp_path / "d.csv")
    assert open_corpus(str(tmp_path)).fingerprint() != before


def test_the_split_of_a_folder_is_read_where_all_names_say_one(tmp_path):
    for name in ("train-00000-of-00002", "train-00001-of-00002", "test"):
        (tmp_path / f"{name}.jsonl").write_text(lines_of([name]))
    assert [d.text for d in open_corpus(str(tmp_path))] == ["train-00000-of-00002", "train-00001-of-00002"]
    assert [d.text for d in open_corpus(CorpusConfig(source=str(tmp_path), split="test"))] == ["test"]
    with pytest.raises(InputError, match="has no split 'validation'; set split to one of: test, train"):
        open_corpus(CorpusConfig(source=str(tmp_path), split="dev"))
    (tmp_path / "stations.jsonl").write_text(lines_of(["stations"]))
    assert len(list(open_corpus(str(tmp_path)))) == 4


def test_an_empty_folder_and_one_of_pictures_say_so(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"is a folder without text; expected files in it that end in \.jsonl, \.csv"):
        open_corpus(str(tmp_path))


def test_folders_that_the_datasets_library_saved_are_read(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    rows = datasets.Dataset.from_dict({"text": [f"text {n}" for n in range(50)], "n": range(50)})
    rows.select(range(9, -1, -1)).save_to_disk(str(tmp_path / "one"), num_shards=2)
    datasets.DatasetDict(train=rows, test=rows.select([3])).save_to_disk(str(tmp_path / "many"))
    expected = [f"text {n}" for n in range(9, -1, -1)]
    for source in (str(tmp_path / "one"), f"hf:{tmp_path}/one"):
        assert [document.text for document in open_corpus(source)] == expected
    assert len(list(open_corpus(f"hf:{tmp_path}/many"))) == 50
    (only,) = open_corpus(CorpusConfig(source=str(tmp_path / "many"), split="test"))
    assert (only.text, only.meta) == ("text 3", {"n": 3})
    with pytest.raises(InputError, match="has no split 'dev'; set split to one of: train, test"):
        open_corpus(CorpusConfig(source=str(tmp_path / "many"), split="dev"))
    datasets.DatasetDict(train=rows.select([])).save_to_disk(str(tmp_path / "none"))
    (tmp_path / "none" / "train" / "state.json").write_text('{"_data_files": []}')  # as datasets 5 writes it
    with pytest.raises(InputError, match="train: holds no document, since the saved dataset has no rows"):
        open_corpus(str(tmp_path / "none"))
    (tmp_path / "one" / "data-00001-of-00002.arrow").unlink()
    with pytest.raises(InputError, match=r"data-00001-of-00002.arrow: no such file"):
        open_corpus(str(tmp_path / "one"))


_PROGRAM = """
import json, sys
from diversity_jax.core.errors import InputError
from diversity_jax.corpus import CorpusConfig, open_corpus

for arguments in json.loads(sys.argv[1]):
    try:
        corpus = open_corpus(CorpusConfig(**arguments))
        documents = [(document.id, document.text) for document in corpus]
        print(json.dumps([documents, corpus.fingerprint(), len(corpus.sample(2, seed=0))]))
    except InputError as error:
        print(json.dumps(str(error)))
"""


def opened_elsewhere(corpora, stdin=b"", **environment):
    """What a fresh process makes of each corpus: [documents, fingerprint, size of a sample], or its error."""
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, json.dumps(corpora)],
        input=stdin,
        capture_output=True,
        env={**os.environ, **environment},
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize(
    ("source", "stdin", "texts"),
    [
        ("-", lines_of(["one", "two"]), ["one", "two"]),
        ("-", "one\n\n  two\n", ["one", "  two"]),
        ("-:csv", "text,n\none,1\n", ["one"]),
        ("-:text", "one\ntwo\n", ["one\ntwo\n"]),
    ],
)
def test_standard_input_is_read_as_often_as_needed(source, stdin, texts):
    ((documents, _, drawn),) = opened_elsewhere([{"source": source}], stdin.encode())
    assert [text for _, text in documents] == texts
    assert drawn == min(2, len(texts))


@pytest.mark.parametrize(
    ("first", "is_json"),
    [("[", True), ('[{"text": 1}]', True), ('\ufeff[ {"text": 1}]', True), ("[Music]", False), ("[1] A note", False)],
)
def test_an_array_of_objects_is_no_text(tmp_path, first, is_json):
    path = tmp_path / "standard-input.jsonl"
    path.write_text(f"{first}\n")
    assert holds_json(str(path)) == is_json
    if is_json:
        with pytest.raises(InputError, match=r"one object a line, as jq -c '.\[\]' does"):
            open_corpus(str(path))


def test_errors_name_standard_input_and_not_its_temporary_file(monkeypatch):
    packed = SimpleNamespace(closed=False, isatty=lambda: False, buffer=io.BytesIO(gzip.compress(b"a text")))
    monkeypatch.setattr(sys, "stdin", packed)
    spooled_input.cache_clear()
    with pytest.raises(InputError) as caught:
        open_corpus("-:jsonl")
    spooled_input.cache_clear()
    message = public_name(str(caught.value))
    assert message.startswith("standard input:1: is not UTF-8 at byte 1; it looks like gzip (decompress it, or")


def test_standard_input_that_is_empty_or_of_an_unknown_kind_says_so():
    empty, unknown = opened_elsewhere([{"source": "-"}, {"source": "-:docx"}])
    assert empty == "-: holds no document; check the source and its settings"
    assert unknown.startswith("-:docx: expected one of -:jsonl, -:csv")


def parquet(texts):
    file = io.BytesIO()
    pq.write_table(pa.table({"text": texts, "n": range(len(texts))}), file)
    return file.getvalue()


REPOSITORIES = {
    "us/plain": {
        "README.md": b"---\nlicense: mit\n---\nA dataset.",
        "train.jsonl": lines_of([f"train {n}" for n in range(300)]).encode(),
        "test.jsonl": lines_of(["test"]).encode(),
    },
    "us/shards": {f"data/train-{n}-of-2.parquet": parquet([f"shard {n}", "more"]) for n in (0, 1)},
    "us/two": {
        "README.md": b"---\nconfigs:\n- {config_name: en, data_files: en/*}\n"
        b"- {config_name: de, data_files: de/*}\n---",
        "en/a.jsonl": lines_of(["English"]).encode(),
        "de/a.jsonl": lines_of(["Deutsch"]).encode(),
    },
}
HUB_ERRORS = {
    "hf:us/two": "hf:us/two: has several configurations; name one of: en, de, as hf:us/two:en",
    "hf:us/two:fr:train": "hf:us/two:fr:train: has no configuration 'fr'; name one of: en, de, as hf:us/two:en",
    "hf:us/plain:dev": "hf:us/plain:dev: has no split 'dev'; set split to one of: train, test",
    "hf:us/plain@v9": "hf:us/plain@v9: has no such revision; name a branch, tag or commit behind the @",
    "hf:us/missing": "hf:us/missing: no dataset of this name on the hub; check the name",
    "hf:gated/texts": "hf:gated/texts: is gated; accept its terms at http",
    "hf:a:b:c:d": "hf:a:b:c:d: expected hf:NAME, hf:NAME:CONFIG or hf:NAME:CONFIG:SPLIT",
    "hf://datasets/us/plain/none.jsonl": "hf://datasets/us/plain/none.jsonl: no such file",
}


def test_datasets_of_a_hub_are_streamed_and_wrong_names_are_one_line(tmp_path):
    pytest.importorskip("datasets")
    good = ["hf:us/plain", "hf:us/plain:test", "hf:us/plain@main", "hf:us/shards", "hf:us/two:de"]
    good += ["hf://datasets/us/plain/t*.jsonl", "hf://datasets/us/shards"]
    corpora = [{"source": source} for source in [*good, *HUB_ERRORS]]
    corpora.append({"source": "hf:us/plain", "text_field": "body"})
    with hub_server(REPOSITORIES) as endpoint:
        home = {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": endpoint}
        opened = opened_elsewhere(corpora, **home)
    texts = [[text for _, text in documents] for documents, _, _ in opened[: len(good)]]
    train = [f"train {n}" for n in range(300)]
    shards = ["shard 0", "more", "shard 1", "more"]
    assert texts == [train, ["test"], train, shards, ["Deutsch"], ["test", *train], shards]
    assert opened[3][0][2][0] == "us/shards/1:1"
    fingerprints = [fingerprint for _, fingerprint, _ in opened[: len(good)]]
    assert fingerprints[0] == fingerprints[2], "a branch and the commit it stands for are the same content"
    assert len(set(fingerprints)) == len(good) - 1
    for message, wanted in zip(opened[len(good) : -1], HUB_ERRORS.values(), strict=True):
        assert message.startswith(wanted)
    assert opened[-1] == "us/plain:1: has no field 'body'; set text_field to one of: text"


def test_a_hub_that_is_not_to_be_reached_and_a_missing_package_are_one_line(tmp_path):
    pytest.importorskip("datasets")
    (offline,) = opened_elsewhere([{"source": "hf:us/plain"}], HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path))
    assert offline.startswith("hf:us/plain: HF_HUB_OFFLINE forbids to reach the hub; unset it, or save it with")
    (tmp_path / "datasets.py").write_text("raise ImportError('No module named datasets')\n")
    path = f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    (missing,) = opened_elsewhere([{"source": "hf:us/plain"}], PYTHONPATH=path)
    needs = "needs the package datasets (No module named datasets); pip install 'diversity_jax[datasets]'"
    assert missing == f"hf:us/plain: {needs}"
