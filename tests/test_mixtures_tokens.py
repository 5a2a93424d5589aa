"""Token sets that others prepared as components of a mixture: Megatron's, datatrove's, Levanter's, MDS, ArrayRecord."""

from fractions import Fraction
import json
import shutil
import struct

import numpy as np
import pytest
from tokenizers import Tokenizer, models

from diversity_jax.core.errors import InputError
from diversity_jax.corpus import CorpusConfig
from diversity_jax.mixtures.builder import build
from diversity_jax.mixtures.config import Component, GatePolicy, MixtureConfig
from diversity_jax.mixtures.exchange.examples import example_features, examples
from diversity_jax.mixtures.exchange.export import ExportRequest, export
from diversity_jax.mixtures.exchange.format import Column
from diversity_jax.mixtures.exchange.token_files import open_token_set
from diversity_jax.mixtures.exchange.token_import import import_tokens
from diversity_jax.mixtures.mixture import Mixture
from diversity_jax.mixtures.sources import TokenCorpus, open_source
from diversity_jax.prepare.config import Filtering, Preparation
from diversity_jax.prepare.manifest import Manifest
from diversity_jax.prepare.rows import RowReader
from diversity_jax.tokenizers.tokenizer import load_tokenizer
from tests.mixture_folders import MadeCorpus, build_mixture

LENGTH = 32
TOKENIZER = load_tokenizer("bytes")
EOT = TOKENIZER.end_of_text_id


def documents(count=200, *, ended=True):
    """Texts of different length, and their ids."""
    texts = [document.text[: 40 + 7 * i % 150] for i, document in enumerate(MadeCorpus("pine", 40, count))]
    return texts, [np.array([*TOKENIZER.encode_batch([text])[0], *([EOT] if ended else [])]) for text in texts]


def megatron(folder, sequences, dtype="uint16"):
    """As IndexedDatasetBuilder writes it."""
    folder.mkdir(exist_ok=True)
    np.concatenate(sequences).astype(dtype).tofile(folder / "set.bin")
    lengths = np.array([len(ids) for ids in sequences], np.int32)
    pointers = (np.cumsum(lengths) - lengths).astype(np.int64) * np.dtype(dtype).itemsize
    code = {"uint16": 8, "int32": 4, "int64": 5}[dtype]
    head = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, code, len(lengths), len(lengths) + 1)
    bounds = np.arange(len(lengths) + 1, dtype=np.int64)
    (folder / "set.idx").write_bytes(head + lengths.tobytes() + pointers.tobytes() + bounds.tobytes())
    return folder / "set"


def datatrove(folder, sequences):
    folder.mkdir(exist_ok=True)
    np.concatenate(sequences).astype("<u2").tofile(folder / "set.ds")
    np.cumsum([len(ids) for ids in sequences]).astype("<u8").tofile(folder / "set.ds.index")
    return folder / "set.ds"


def mds(folder, sequences):
    """Of documents of any length, as llm-foundry's bytes of int64, with a text column before it."""
    folder.mkdir(exist_ok=True)
    samples = [
        np.array([3, 8 * len(ids)], np.uint32).tobytes() + b"abc" + ids.astype("<i8").tobytes() for ids in sequences
    ]
    bounds = np.cumsum([4 * (len(samples) + 2), *map(len, samples)]).astype(np.uint32)
    data = np.uint32(len(samples)).tobytes() + bounds.tobytes() + b"".join(samples)
    (folder / "shard.00000.mds").write_bytes(data)
    shard = {"column_names": ["name", "tokens"], "column_encodings": ["str", "bytes"], "column_sizes": [None, None]}
    shard |= {"format": "mds", "compression": None, "samples": len(samples), "version": 2, "zip_data": None}
    shard["raw_data"] = {"basename": "shard.00000.mds", "bytes": len(data), "hashes": {}}
    (folder / "index.json").write_text(json.dumps({"version": 2, "shards": [shard]}))
    return folder


def imported(path, folder, *, link=True, tokenizer=TOKENIZER, length=LENGTH, **fields):
    settings = Preparation(
        name="theirs", kind="real", sequence_length=length, **{"document_start": "end_of_text"} | fields
    )
    return import_tokens(open_token_set(str(path)), tokenizer, folder, settings, link=link)


def stream(manifest, split="train"):
    """All rows in the order in which they were cut, sorted by content: for comparing sets of rows."""
    reader = RowReader(manifest, split)
    return sorted(map(bytes, np.ascontiguousarray(reader.read(np.arange(reader.rows)).tokens)))


def cut(sequences, length=LENGTH):
    ids = np.concatenate(sequences)
    rows = ids[: len(ids) // (length + 1) * (length + 1)].reshape(-1, length + 1)
    return sorted(map(bytes, np.ascontiguousarray(rows, np.int32)))


@pytest.mark.parametrize("write", [megatron, datatrove, mds])
@pytest.mark.parametrize("ended", [True, False])
def test_rows_are_the_documents_end_to_end(tmp_path, write, ended):
    texts, sequences = documents(ended=ended)
    path = write(tmp_path / "set", sequences)
    manifest = imported(path, tmp_path / "component")
    assert stream(manifest) == cut(documents()[1])
    assert bool(manifest.linked) == (ended and write is not mds)
    assert manifest.statistics["documents"] in (len(texts), len(texts) - 1)  # the last may lie in the tokens dropped
    assert imported(path, tmp_path / "component") == Manifest.load(tmp_path / "component" / "manifest.json")
    corpus = TokenCorpus(open_token_set(str(path)), TOKENIZER)
    assert [document.text for document in corpus] == texts
    drawn = corpus.sample(20, seed=1)
    assert len({document.id for document in drawn}) == 20
    assert {document.text for document in drawn} <= set(texts)


def test_a_linked_set_is_not_copied(tmp_path):
    _, sequences = documents(2000)
    path = megatron(tmp_path / "set", sequences, "int32")
    manifest = imported(path, tmp_path / "component", validation_share=0.1)
    stored = sum(file.stat().st_size for file in (tmp_path / "component").rglob("*.offsets*"))
    rows = sum(split.rows for split in manifest.splits.values())
    assert stored == 12 * rows
    assert not list((tmp_path / "component").rglob("*.bin"))
    copied = imported(path, tmp_path / "copied", link=False, validation_share=0.1)
    for split in ("train", "validation"):
        readers = [RowReader(each, split) for each in (manifest, copied)]
        rows = [reader.read(np.arange(reader.rows)).tokens for reader in readers]
        assert (rows[0] == rows[1]).all()
        assert not (rows[0] == np.sort(rows[0], axis=0)).all()  # permuted
    held = manifest.splits["validation"].documents / manifest.statistics["documents"]
    assert 0.05 < held < 0.15
    with open(tmp_path / "set" / "set.bin", "r+b") as file:
        file.seek(4 * 5000)
        file.write(b"\7")
    reader = RowReader(manifest)
    with pytest.raises(InputError, match=r"is damaged \(checksum\)"):
        reader.read(np.arange(reader.rows))
    (tmp_path / "set" / "set.bin").rename(tmp_path / "set" / "elsewhere.bin")
    with pytest.raises(InputError, match=r"was linked to .*set.bin of .* bytes, which is not there any more"):
        RowReader(manifest)


def test_held_out_documents_are_whole(tmp_path):
    texts, sequences = documents(1000)
    manifest = imported(megatron(tmp_path / "set", sequences), tmp_path / "component", validation_share=0.2)
    held = b"".join(stream(manifest, "validation"))
    train = b"".join(stream(manifest))
    of = [np.asarray(ids[:24], np.int32).tobytes() for ids in sequences]  # two words and more are its own
    both = [text for text, begin in zip(texts, of, strict=True) if begin in held and begin in train]
    assert not both
    assert sum(begin in held for begin in of) > 100


@pytest.mark.parametrize(("count", "share"), [(1000, 0.05), (1000, 0.5), (50, 0.005)])
def test_documents_shorter_than_a_row_are_held_out_and_few_tokens_are_lost(tmp_path, count, share):
    sequences = documents(count)[1]
    manifest = imported(
        megatron(tmp_path / "set", sequences), tmp_path / "component", validation_share=share, length=255
    )
    tokens = {split: part.tokens for split, part in manifest.splits.items()}
    total = sum(map(len, sequences))
    assert sum(tokens.values()) > total * 0.93
    assert tokens.get("validation", 0) / total == pytest.approx(share, rel=0.3, abs=0.005)


@pytest.mark.parametrize("to", ["megatron", "mds", "array_record", "levanter"])
def test_what_was_exported_comes_back(tmp_path, to):
    mixture = Mixture.load(build_mixture(tmp_path / "m", {"oak": Fraction(1)}, sequence_length=LENGTH, documents=60))
    export(mixture, tmp_path / "out", ExportRequest(to=to, shard_mb=0.01))
    path = tmp_path / "out" / "data" / {"megatron": "train.bin", "levanter": "train"}.get(to, "")
    manifest = imported(path, tmp_path / "component", document_start="end_of_text")
    original = mixture.taken[0].prepared
    assert stream(manifest) == stream(original)
    assert manifest.splits["train"].rows == original.splits["train"].rows


def test_tokens_and_text_in_one_mixture(tmp_path, caplog):
    _, sequences = documents(400)
    path = megatron(tmp_path / "set", sequences)
    (tmp_path / "text.jsonl").write_text(
        "".join(json.dumps({"text": f"words {i} of text " * 9}) + "\n" for i in range(200))
    )
    ungated = GatePolicy(ungated=True)
    prepared = build_mixture(tmp_path / "m", {"oak": Fraction(1)}, sequence_length=LENGTH, documents=60)
    sources = {"theirs": (f"tokens:{path}", 0.5), "text": (str(tmp_path / "text.jsonl"), 0.25)}
    sources["ours"] = (f"tokens:{prepared / 'components' / 'oak'}", 0.25)
    components = tuple(
        Component(name=name, kind="real", corpus=source, share=share, policy=ungated)
        for name, (source, share) in sources.items()
    )
    fields = {"sequence_length": LENGTH, "processes": 1, "validation_share": 0.1}
    config = MixtureConfig(name="both", components=components, **fields)
    mixture = build(config, tmp_path / "both", lambda corpora: {})
    batch = Mixture.load(tmp_path / "both").loader(batch_size=1000).batch(0)
    assert np.bincount(batch.component).tolist() == [500, 250, 250]
    theirs = mixture.taken[0].prepared
    assert theirs.linked
    ours = Component(name="ours", kind="real", corpus=sources["ours"][0], policy=ungated)
    filtered = MixtureConfig(name="x", components=(ours,), hygiene=Filtering(exact_duplicates=True), **fields)
    build(filtered, tmp_path / "x", lambda corpora: {})
    assert "are prepared already and taken as they are" in caplog.text

    from diversity_jax.mixtures.seqio_rows import passes_of, rows_of

    expected = RowReader(theirs).read(np.arange(theirs.splits["train"].rows)).tokens
    assert (np.stack([row["targets"] for row in rows_of(theirs, "train").as_numpy_iterator()]) == expected).all()
    two = np.stack([row["targets"] for row in passes_of(theirs, 5, 2, "train").as_numpy_iterator()])
    assert (two[: len(expected)] == expected).all()
    assert sorted(map(bytes, two[len(expected) :])) == sorted(map(bytes, expected))


def test_a_set_of_another_vocabulary_is_refused(tmp_path):
    _, sequences = documents(100)
    too_large = [*sequences, np.array([5, 70_000, EOT])]
    with pytest.raises(InputError, match="id 70000 in sequence 100 is none of the vocabulary's 259"):
        imported(megatron(tmp_path / "large", too_large, "int32"), tmp_path / "a")
    others = [np.append(ids[:-1], 7) for ids in sequences]
    with pytest.raises(InputError, match=f"end-of-text, {EOT}; 100 % of its sequences end with 7; set end_of_text"):
        imported(megatron(tmp_path / "other", others), tmp_path / "b")
    packed = [np.full(33, 9) for _ in range(20)]
    with pytest.raises(InputError, match="none of its documents ends with the vocabulary's end-of-text"):
        imported(megatron(tmp_path / "packed", packed), tmp_path / "c")
    with pytest.raises(InputError, match="3 tokens do not fill one row of 33"):
        imported(megatron(tmp_path / "short", [np.array([5, 6, EOT])]), tmp_path / "d")
    path = megatron(tmp_path / "set", sequences)
    with pytest.raises(InputError, match="hygiene looks at text"):
        imported(path, tmp_path / "e", hygiene=Filtering(exact_duplicates=True))
    imported(path, tmp_path / "f")
    with pytest.raises(InputError, match="holds a component of another set or settings"):
        imported(path, tmp_path / "f", seed=1)
    assert not [folder for folder in "abcde" if (tmp_path / folder).exists()]


def records(path, features):
    """Examples of these features, each [examples, numbers]."""
    from array_record.python.array_record_module import ArrayRecordWriter

    columns = [Column(array=name, name=name, dtype="int32", tokens=ids.shape[1]) for name, ids in features.items()]
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for example in examples(features, tuple(columns)):
        writer.write(example)
    writer.close()
    return path


def test_what_would_be_trained_on_unawares_is_refused(tmp_path):
    ids = np.random.default_rng(0).integers(3, 200, (50, 2, LENGTH))
    ids[:, :, 9] = EOT
    path = records(tmp_path / "a.arrayrecord", {"inputs": ids[:, 0], "targets": ids[:, 1]})
    with pytest.raises(InputError, match="record 0: has inputs, which would be lost; set corpus"):
        open_token_set(str(path))
    np.testing.assert_array_equal(open_token_set(str(path), "targets").read(0, 50), ids[:, 1].reshape(-1))
    path = records(tmp_path / "b.arrayrecord", {"targets": ids[:, 1], "targets_loss_weights": ids[:, 0] % 2})
    with pytest.raises(InputError, match="has targets_loss_weights, which prepared tokens cannot keep"):
        open_token_set(str(path), "targets")
    path = records(tmp_path / "s.arrayrecord", {"targets": ids[:, 1], "targets_segmentation": ids[:, 0]})
    with pytest.raises(InputError, match="has targets_segmentation, which would be lost"):
        open_token_set(str(path))
    path = datatrove(tmp_path / "cut", [np.repeat(each, 2) for each in ids[:, 0]])
    np.cumsum(np.full(50, LENGTH)).astype("<u8").tofile(f"{path}.index")
    assert open_token_set(str(path)).flat.dtype == "uint32"
    for setting in ({"max_documents": 9}, {"conversations": "auto"}, {"split": "test"}, {"every_task": True}):
        corpus = CorpusConfig(source=f"tokens:{path}", **setting)
        with pytest.raises(InputError, match=f"corpus.{next(iter(setting))}=.* is tokens already; take the setting"):
            open_source(Component(name="x", kind="real", corpus=corpus), "m", tmp_path, TOKENIZER)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    path.with_name("set.ds.metadata").write_text("gpt2|4\n1600\n1.6 KT")
    with pytest.raises(InputError, match="has 2 bytes an id by its size, but not by set"):
        open_token_set(str(path))
    ids[::2, 1, 20:] = 0
    padded = records(tmp_path / "c.arrayrecord", {"targets": ids[:, 1]})
    with pytest.raises(InputError, match="50 % of its sequences end with 0 over and over, which is padding"):
        imported(padded, tmp_path / "padded")
    (tmp_path / "splits").mkdir()
    for name in ("c4-train.array_record-00000-of-00001", "c4-validation.array_record-00000-of-00001"):
        records(tmp_path / "splits" / name, {"targets": ids[:, 0]})
    with pytest.raises(InputError, match="splits: has files of train, validation; give each a folder"):
        open_token_set(str(tmp_path / "splits"))


def test_documents_that_begin_with_end_of_text_get_no_second_one(tmp_path):
    sequences = [np.append(EOT, ids) for ids in documents(ended=False)[1]]
    manifest = imported(megatron(tmp_path / "set", sequences), tmp_path / "component")
    assert stream(manifest) == cut(sequences)
    assert manifest.linked


def test_an_end_of_text_that_their_type_cannot_hold(tmp_path):
    words = {f"w{i}": i for i in range(69_999)} | {"<|endoftext|>": 69_999}
    made = Tokenizer(models.WordLevel(words, unk_token="w0"))
    made.add_special_tokens(["<|endoftext|>"])
    made.save(str(tmp_path / "tokenizer.json"))
    sequences = [np.random.default_rng(i).integers(0, 60_000, 20 + i % 7) for i in range(40)]
    manifest = imported(
        megatron(tmp_path / "set", sequences), tmp_path / "component", tokenizer=load_tokenizer(str(tmp_path))
    )
    assert stream(manifest) == cut([np.append(ids, 69_999) for ids in sequences])


def test_examples_are_read_as_the_library_reads_them():
    from diversity_jax.core.tensorflow import tf

    values = {"targets": [0, 1, 127, 128, 16383, 16384, 2**40, -1], "empty": [], "other": [3]}
    features = {name: tf.train.Feature(int64_list=tf.train.Int64List(value=ids)) for name, ids in values.items()}
    features["text"] = tf.train.Feature(bytes_list=tf.train.BytesList(value=[b"abc"]))
    features_read = example_features(tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString())
    assert {name: ids.tolist() for name, ids in features_read.items()} == {
        name: ids for name, ids in values.items() if ids
    }


def put(at, kind, value):
    """Writes a number over bytes of a file."""
    return lambda data: data[:at] + struct.pack(kind, value) + data[at + struct.calcsize(kind) :]


def field(*path, value):
    """Sets a field of a JSON file."""

    def change(data):
        document = part = json.loads(data)
        for name in path[:-1]:
            part = part[name]
        part[path[-1]] = value
        return json.dumps(document).encode()

    return change


SHARD = ("shards", 0)
LEDGER = "train/shard_ledger.json"
ZARR = "train/part-00000/input_ids/{}/zarr.json"
# What is exported, its file that somebody changed, how, and what is said. 40 rows of 33 tokens.
HOSTILE = {
    "no index at all": ("megatron", "train.idx", lambda data: b"x" * len(data), "is not an index of Megatron's"),
    "an index cut short": ("megatron", "train.idx", lambda data: data[:100], "claims 40 sequences in 100 bytes"),
    "2**60 sequences": ("megatron", "train.idx", put(18, "<Q", 1 << 60), "claims 1,152,921,504,606,846,976 sequences"),
    "floating point": ("megatron", "train.idx", put(17, "B", 7), "has version 1 and type 7"),
    "a length below 0": ("megatron", "train.idx", put(38, "<i", -33), "contradict each other"),
    "a sequence elsewhere": ("megatron", "train.idx", put(202, "<q", 1 << 40), "does not describe the 2,640 bytes"),
    "a document before it": ("megatron", "train.idx", put(522, "<q", 39), "contradict each other"),
    "tokens cut short": ("megatron", "train.bin", lambda data: data[:-1], "does not describe the 2,639 bytes"),
    "no tokens": ("megatron", "train.bin", None, "no such file; fetch the set whole"),
    "a shard outside": (
        "mds",
        "index.json",
        field(*SHARD, "raw_data", "basename", value="../../x"),
        "is not the name of",
    ),
    "10**12 samples": (
        "mds",
        "index.json",
        field(*SHARD, "samples", value=10**12),
        "said to hold 1000000000000 samples",
    ),
    "pickled samples": ("mds", "index.json", field(*SHARD, "column_encodings", 1, value="pkl"), "'tokens' is pkl"),
    "a column below 0": ("mds", "index.json", field(*SHARD, "column_sizes", 1, value=-66), "damaged|longer than their"),
    "compressed": ("mds", "index.json", field(*SHARD, "compression", value="zstd"), "shards that are compressed"),
    "a sample outside": ("mds", "shard.00000.mds", put(4, "<I", 1 << 31), "samples that lie outside it"),
    "a shard cut short": ("mds", "shard.00000.mds", lambda data: data[:-9], "samples that lie outside it"),
    "a part outside": ("levanter", LEDGER, field("finished_shards", 0, value="../.."), "is not the name of"),
    "unfinished": ("levanter", LEDGER, field("is_finished", value=False), "is an unfinished cache"),
    "10**15 rows": ("levanter", LEDGER, field("total_num_rows", value=10**15), "claims 1000000000000000 rows"),
    "fewer ends": ("levanter", ZARR.format("offsets"), field("shape", 0, value=9), "claims 40 rows"),
    "fewer tokens": ("levanter", ZARR.format("data"), field("shape", 0, value=9), "end before they begin"),
    "bytes flipped": ("levanter", "train/part-00000/input_ids/data/c/0", lambda data: data[::-1], "cannot be read"),
    "records cut short": ("array_record", "train-00000-of-00001.arrayrecord", lambda data: data[:-70000], "damaged"),
    "no records": (
        "array_record",
        "train-00000-of-00001.arrayrecord",
        lambda data: b"x" * len(data),
        "claims 0 records",
    ),
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    mixture = Mixture.load(build_mixture(folder / "m", {"oak": Fraction(1)}, sequence_length=LENGTH, documents=60))
    for to in {to for to, *_ in HOSTILE.values()}:
        export(mixture, folder / to, ExportRequest(to=to, rows=40))
    return folder


@pytest.mark.parametrize("what", HOSTILE)
def test_a_damaged_or_hostile_set_is_one_line(exported, tmp_path, what):
    to, name, change, words = HOSTILE[what]
    shutil.copytree(exported / to / "data", tmp_path / "set")
    path = tmp_path / "set" / {"megatron": "train", "levanter": "train"}.get(to, "")

    def read():
        for ids, lengths in open_token_set(str(path)).blocks(1000):
            assert len(ids) == lengths.sum()

    read()
    data = (tmp_path / "set" / name).read_bytes()
    (tmp_path / "set" / name).unlink()
    if change:
        (tmp_path / "set" / name).write_bytes(change(data))
    with pytest.raises(InputError, match=words) as caught:
        read()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000
