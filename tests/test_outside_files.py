"""Files from others, damaged or hostile: each is read, or refused in one line, in bounded time and memory."""

import bz2
import gzip
import io
import json
import lzma
from pathlib import Path
import tarfile
import time
import zlib

import numpy as np
import pytest
import tokenizers
import zstandard

from diversity_jax.cluster_agent import Scorecard
from diversity_jax.cluster_agent.text_cleaning import clean_text
from diversity_jax.core import compression
from diversity_jax.core.errors import InputError
from diversity_jax.core.files import content_hash, read_json
from diversity_jax.core.json_fields import Fields, from_json, read_fields
from diversity_jax.core.run_info import RunInfo
from diversity_jax.core.words import count_words
from diversity_jax.corpus import open_corpus
from diversity_jax.corpus.readers.installed_packages import docstrings, prose
from diversity_jax.embedders import _read_vectors
from diversity_jax.evaluation.run import read_prompts
from diversity_jax.evaluation.tasks import read_items
from diversity_jax.llm.providers.outcomes import read_error
from diversity_jax.metrics import MetricsReport
from diversity_jax.mixtures.mixture import Mixture
from diversity_jax.mixtures.replay import replay
from diversity_jax.prepare import decontaminate
from diversity_jax.prepare.manifest import Manifest, VocabularyInfo, describe, prepared_tokenizer
from diversity_jax.synthesis.topics import read_topics
from diversity_jax.tokenizers.tokenizer import load_tokenizer
from diversity_jax.training import log as training_log
from tests.changed_json import changed

GOLDEN = Path(__file__).parent / "golden" / "written_by_fdaef38"
EVERY = 37  # of the changed files, so many are left out between two that are tried


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    folder = tmp_path_factory.mktemp("samples")
    for name in ("prepared", "mixture", "score", "evaluation", "inputs"):
        with tarfile.open(GOLDEN / f"{name}.tar.gz") as packed:
            packed.extractall(folder, filter="data")
    return folder


def _read_manifest(path: Path) -> None:
    manifest = Manifest.load(path)
    manifest.check_sizes()
    describe(manifest)
    prepared_tokenizer(manifest)


def _read_mixture(path: Path) -> None:
    Mixture.load(path)
    replay(path)


READERS = {
    "byte_pairs/manifest.json": _read_manifest,
    "mixture/mixture.json": _read_mixture,
    "score_llm/dull/scorecard.json": Scorecard.load,
    "metrics/scorecard.json": MetricsReport.load,
    "metrics/run.json": RunInfo.load,
}


@pytest.mark.parametrize("name", READERS)
def test_wrong_values_of_every_field_are_one_line_or_read(samples, name):
    path = samples / name
    original = path.read_text()
    lines = []
    for number, (what, value) in enumerate(changed(json.loads(original))):
        if number % EVERY:
            continue
        if isinstance(value, dict) and "content_hash" in value and "scorecard" in name:  # who changes it can do that
            value["content_hash"] = content_hash({key: part for key, part in value.items() if key != "content_hash"})
        path.write_text(json.dumps(value))
        try:
            READERS[name](path)
        except InputError as error:
            lines.append(str(error))
        except Exception as error:
            raise AssertionError(f"{what}: {error!r}") from error
    path.write_text(original)
    READERS[name](path)
    assert len(lines) > 1
    assert not [line for line in lines if "\n" in line or len(line) > 1000]


def test_fields_are_read_by_their_types():
    good = {"kind": "bytes", "size": 259, "end_of_text_id": 1, "hash": "ab", "files": []}
    assert from_json(VocabularyInfo, good, "f.json").files == ()
    for change, words in (
        ({"size": -(2**70)}, "f.json: size is -1180591620717411303424; expected a whole number"),
        ({"size": True}, "f.json: size is true; expected a whole number"),
        ({"files": [3]}, r"f.json: files\[0\] is 3; expected text"),
        ({"other": 1}, "f.json: has a field 'other' that is not known here"),
    ):
        with pytest.raises(InputError, match=words):
            from_json(VocabularyInfo, good | change, "f.json")
    with pytest.raises(InputError, match=r"f.json: has no field 'hash'"):
        from_json(VocabularyInfo, {key: good[key] for key in good if key != "hash"}, "f.json")


LONG = {
    "roles": (prose, "A word " + "{}" + " is here.", ":"),
    "links": (prose, "A word " + "{}" + " is here.", "[a]("),
    "spaces after a quote": (prose, "A `" + "{}" + "b. is of the words.", " "),
    "arrows": (prose, "The a of it is in the b {} of the words.", "a("),
    "docstrings": (lambda text: list(docstrings(text)), "{}", '# a\n"""b"""\n'),
    "comments before docstrings": (
        lambda text: list(docstrings(text + '"""b"""\n' * (len(text) // 10))),
        "{}",
        "# a\n",
    ),
    "an error page": (lambda text: read_error(500, {}, text), "{}", "<script"),
    "marks": (lambda text: clean_text(text, len(text)), "{}", "<|a"),
    "brackets": (lambda text: count_words(text), "{}", "{\u4e2d"),
}


@pytest.mark.parametrize("name", LONG)
def test_twice_the_text_takes_twice_as_long(name):
    read, form, part = LONG[name]

    def seconds(characters: int) -> float:
        text = form.replace("{}", part * (characters // len(part)), 1)
        began = time.process_time()
        read(text)
        return time.process_time() - began

    seconds(1000)
    few, many = (min(seconds(size) for _ in range(3)) for size in (20_000, 160_000))
    assert many < 0.05 or many < 24 * few, f"8 times the text took {many / few:.0f} times as long"


def test_a_deep_outline_of_topics_is_read_in_linear_time(tmp_path):
    def seconds(lines: int) -> float:
        path = tmp_path / f"{lines}.txt"
        path.write_text("\n".join(" " * min(number, 400) + f"name{number}" for number in range(lines)))
        (tmp_path / "deep.jsonl").write_text(json.dumps({"outline": _nested(min(lines, 270) // 3)}))
        began = time.process_time()
        topics = list(read_topics(str(path), leaves_only=False))
        assert len(topics) == lines
        assert max(len(topic.path) for topic in topics) == 5
        assert len(list(read_topics(str(tmp_path / "deep.jsonl"), leaves_only=False))) == min(lines, 270) // 3
        return time.process_time() - began

    few, many = (min(seconds(lines) for _ in range(3)) for lines in (1000, 8000))
    assert many < 24 * few


def _nested(levels: int) -> list:
    outline: list = []
    for number in range(levels):
        outline = [{"name": f"level {number}", "children": outline}]
    return outline


BAD_JSON = (
    b"[" * 100_000,
    b"[" * 400 + b"]" * 400,
    b"9" * 5000,
    b'{"text": "\\ud800"}',
    b"\xff",
    b"{",
    b'{"a": 1} more',
)


@pytest.mark.parametrize(
    "read",
    [
        read_json,
        read_prompts,
        lambda path: read_items(path, lambda item: None),
        lambda path: list(read_topics(str(path))),
        lambda path: list(decontaminate._items(str(path))),
        training_log.read,
        lambda path: list(open_corpus(str(path))),
    ],
)
@pytest.mark.parametrize("number", range(len(BAD_JSON)))
def test_what_no_json_is_to_others_is_one_line_for_every_reader(tmp_path, read, number):
    path = tmp_path / "file.jsonl"
    path.write_bytes(BAD_JSON[number] + b"\n")
    with pytest.raises(InputError) as error:
        read(str(path) if read is read_prompts else path)
    assert str(error.value).isprintable()
    assert "file.jsonl" in str(error.value)


@pytest.mark.parametrize("ending", [".gz", ".bz2", ".xz", ".zst"])
def test_a_small_compressed_file_does_not_fill_memory(tmp_path, ending, monkeypatch):
    packed = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstandard.compress}[ending]
    size = 20 << 20
    path = tmp_path / f"a.jsonl{ending}"
    path.write_bytes(packed(b"x" * size) + packed(b"\n{}"))
    lengths = [len(block) for block in compression.read_blocks(str(path))]
    assert sum(lengths) == size + 3
    assert ending == ".zst" or max(lengths) <= 1 << 20
    monkeypatch.setattr(compression, "MOST_DOCUMENT_BYTES", size - 1)
    path.rename(tmp_path / f"a.txt{ending}")
    for name in (f"a.txt{ending}", f"b.jsonl{ending}"):
        path = (tmp_path / f"a.txt{ending}").rename(tmp_path / name)
        with pytest.raises(InputError, match=rf"{name}: holds (a line of )?more than 19 MiB"):
            list(open_corpus(str(path)))
        path.rename(tmp_path / f"a.txt{ending}")


def test_an_xz_file_that_asks_for_gigabytes_is_refused(tmp_path):
    compressed, header = lzma.compress(b"{}"), bytes.fromhex("0200210128000000")  # LZMA2 with a dictionary of 4 GiB
    (tmp_path / "a.jsonl.xz").write_bytes(
        compressed[:12] + header + zlib.crc32(header).to_bytes(4, "little") + compressed[24:]
    )
    with pytest.raises(InputError, match="Memory usage limit"):
        list(open_corpus(str(tmp_path / "a.jsonl.xz")))


def _saved(value) -> bytes:
    file = io.BytesIO()
    np.save(file, value, allow_pickle=True)
    return file.getvalue()


@pytest.mark.parametrize(
    "content",
    [b"", b"PK\x03\x04 no archive", _saved(np.array([{}])), _saved(np.ones((2, 3))), _saved(np.ones(3, np.float32)),
     _saved(np.ones((2, 3), np.float32)).replace(b"(2, 3)", b"(2, 3" + b"0" * 11 + b")").replace(b" " * 11, b"", 1)],
    ids=["empty", "archive", "pickle", "float64", "flat", "claim"],
)  # fmt: skip
def test_vectors_of_others_are_what_they_should_be(tmp_path, content):
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.npy: is no file of 2 vectors, or a damaged one"):
        _read_vectors(tmp_path / "a.npy", 2)


def test_a_line_of_an_error_moves_no_terminal_and_can_be_printed():
    error = InputError("a\x1b[2J name\x07 of \ud800 ünïcode\nand more")
    assert str(error) == "a\\x1b[2J name\\x07 of \\ud800 ünïcode and more"


def test_objects_are_read_by_the_types_of_the_fields_that_are_needed(tmp_path):
    path = tmp_path / "run.json"
    for content, words in (
        ("[1]", "run.json: is a list; expected an object"),
        ('{"settings": "x"}', "run.json: settings is text; expected an object"),
        ("{}", "run.json: settings is none; expected an object"),
    ):
        path.write_text(content)
        with pytest.raises(InputError, match=words):
            read_fields(path, settings=Fields)
    assert read_fields(path, settings=Fields | None) == {"settings": None}


def test_a_sentencepiece_model_without_pieces_is_refused(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(b"")
    with pytest.raises(InputError, match="without pieces"):
        load_tokenizer(str(tmp_path / "tokenizer.model"))


def test_a_tokenizer_whose_pattern_gives_up_is_one_line(tmp_path):
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "</s>": 1, "?": 2}, unk_token="?"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex(r"(a+)+$"), "isolated")
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    read = load_tokenizer(str(tmp_path / "tokenizer.json"))
    assert read.encode_each(["a"]) == [[0]]
    with pytest.raises(InputError, match=r"tokenizer\.json: its own rules fail on a text \(.*limit"):
        read.encode_each(["a" * 50 + "!"])
