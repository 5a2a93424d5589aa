"""Rows exported to other trainers' formats are read back, by those trainers' readers or equivalents."""

import dataclasses
from fractions import Fraction
import itertools
import json

import numpy as np
import pytest

from diversity_jax.core.errors import InputError
from diversity_jax.corpus import CorpusConfig
from diversity_jax.mixtures import export as command
from diversity_jax.mixtures.exchange.export import FORMATS, ExportRequest, export, verify
from diversity_jax.mixtures.loader import as_arrays
from diversity_jax.mixtures.mixture import Mixture
from tests.mixture_folders import build_mixture
from tests.sft_folders import build_components, write_examples, write_text

LENGTH = 32
ROWS = 500
SHARES = {"prose": Fraction(3, 5), "code": Fraction(2, 5)}


@pytest.fixture(scope="module")
def mixture(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixture")
    return Mixture.load(build_mixture(folder, SHARES, sequence_length=LENGTH, documents=60, shard_bytes=8000))


@pytest.fixture(scope="module")
def conversations(tmp_path_factory):
    folder = tmp_path_factory.mktemp("conversations")
    sources = {
        "turns": CorpusConfig(source=str(write_examples(folder / "a.jsonl", 300)), conversations="alpaca"),
        "text": CorpusConfig(source=str(write_text(folder / "b.jsonl", 100))),
    }
    return build_components(folder / "mixture", sources, {"turns": 0.75, "text": 0.25}, sequence_length=96)


def written(mixture, folder, to, **fields):
    record = export(mixture, folder, ExportRequest(to=to, shard_mb=0.01, **fields))
    assert record["shards"]
    return folder / "data"


def array_record(folder):
    from array_record.python.array_record_module import ArrayRecordReader

    return _examples(
        record for path in sorted(folder.glob("*.arrayrecord")) for record in ArrayRecordReader(str(path)).read_all()
    )


def tfrecord(folder):
    from diversity_jax.core.tensorflow import tf

    paths = sorted(map(str, folder.glob("*.tfrecord-*")))
    return _examples(tf.data.TFRecordDataset(paths).as_numpy_iterator())


def _examples(records):
    from diversity_jax.core.tensorflow import tf

    rows = []
    for record in records:
        example = tf.train.Example.FromString(record)
        assert example.ByteSize() == len(record)  # as short as the library itself writes it
        rows.append({name: list(value.int64_list.value) for name, value in example.features.feature.items()})
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def parquet(folder):
    import datasets

    cache = str(folder.parent / "cache")
    dataset = datasets.load_dataset(str(folder.parent), split="train", cache_dir=cache)
    return {name: np.array(dataset[name]) for name in dataset.column_names}


def arrow(folder):
    import datasets

    dataset = datasets.load_from_disk(str(folder))
    return {name: np.array(dataset[name]) for name in dataset.column_names}


def megatron(folder, name="train"):
    """As megatron.core.datasets.indexed_dataset reads it."""
    index = (folder / f"{name}.idx").read_bytes()
    assert index[:17] == b"MMIDIDX\x00\x00" + (1).to_bytes(8, "little")
    dtype = {4: np.int32, 8: np.uint16}[index[17]]
    rows, documents = np.frombuffer(index, np.int64, 2, 18)
    lengths = np.frombuffer(index, np.int32, rows, 34)
    pointers = np.frombuffer(index, np.int64, rows, 34 + lengths.nbytes)
    assert np.frombuffer(index, np.int64, documents, 34 + lengths.nbytes + pointers.nbytes).tolist() == [
        *range(rows + 1)
    ]
    tokens = np.memmap(folder / f"{name}.bin", mode="r")
    parts = [np.frombuffer(tokens, dtype, *pair) for pair in zip(lengths, pointers, strict=True)]
    return {"tokens": np.stack(parts)}


def mds(folder):
    return _stored(folder, json.loads((folder / "index.json").read_text())["shards"])


def _stored(folder, shards):
    """As streaming.base.format.mds.reader reads it."""
    rows = []
    for shard in shards:
        data = (folder / shard["raw_data"]["basename"]).read_bytes()
        assert len(data) == shard["raw_data"]["bytes"]
        bounds = np.frombuffer(data, np.uint32, shard["samples"] + 1, 4)
        for begin, end in itertools.pairwise(bounds):
            sample, row = data[begin:end], {}
            columns = zip(shard["column_names"], shard["column_encodings"], shard["column_sizes"], strict=True)
            for name, encoding, size in columns:
                kind = encoding.split(":")
                row[name] = np.frombuffer(sample[:size], kind[1] if kind[0] == "ndarray" else kind[0])
                sample = sample[size:]
            rows.append(row)
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def litdata(folder):
    """As litdata.streaming.item_loader reads it."""
    about = json.loads((folder / "index.json").read_text())
    kinds = {"no_header_tensor:20": "uint16", "no_header_tensor:15": "int32"}
    kinds |= {"no_header_numpy:5": "uint16", "no_header_numpy:4": "uint8", "no_header_numpy:2": "int32"}
    dtypes = [np.dtype(kinds[name]) for name in about["config"]["data_format"]]
    rows = []
    for chunk in about["chunks"]:
        data = (folder / chunk["filename"]).read_bytes()
        bounds = np.frombuffer(data, np.uint32, chunk["chunk_size"] + 1, 4)
        items = [data[begin:end] for begin, end in itertools.pairwise(bounds)]
        if about["config"]["item_loader"] == "TokensLoader":
            rows += [[np.frombuffer(item, dtypes[0])] for item in items]
            continue
        for item in items:
            sizes, at = np.frombuffer(item, np.uint32, len(dtypes)), 4 * len(dtypes)
            parts = []
            for size, dtype in zip(sizes, dtypes, strict=True):
                parts.append(np.frombuffer(item[at : at + size], dtype))
                at += size
            rows.append(parts)
    context = json.loads(about["config"]["data_spec"])[1]["context"]
    names = json.loads(context) if context else ["tokens"]
    return {name: np.stack([row[i] for row in rows]) for i, name in enumerate(names)}


def levanter(folder):
    """As levanter.store reads it."""
    import tensorstore as ts

    shard_ledger = json.loads((folder / "train" / "shard_ledger.json").read_text())
    arrays = {name: [] for name in shard_ledger["field_counts"]}
    for part in shard_ledger["finished_shards"]:
        for name, rows in arrays.items():
            data, ends = (
                ts.open(
                    {
                        "driver": "zarr3",
                        "kvstore": {"driver": "file", "path": str(folder / "train" / part / name / array)},
                    }
                )
                .result()
                .read()
                .result()
                for array in ("data", "offsets")
            )
            assert ends[0] == shard_ledger["shard_rows"][part] == len(ends) - 1
            rows += np.split(data, ends[1:-1])
    return {name: np.stack(rows) for name, rows in arrays.items()}


READERS = {
    reader.__name__: reader for reader in (array_record, tfrecord, parquet, arrow, megatron, mds, litdata, levanter)
}


def test_every_format_is_read_here():
    assert READERS.keys() == FORMATS.keys()


@pytest.mark.parametrize("to", READERS)
def test_rows_come_back_in_the_order_of_the_mixture(mixture, tmp_path, to):
    folder = written(mixture, tmp_path / "out", to, rows=ROWS)
    expected = mixture.loader(batch_size=ROWS).batch(0)
    arrays = READERS[to](folder)
    assert (arrays[FORMATS[to].names["tokens"]] == expected.tokens).all()
    if "component" in FORMATS[to].names:
        assert (arrays["component"].reshape(-1) == expected.component).all()
    record = json.loads((tmp_path / "out" / "export.json").read_text())
    assert len(record["shards"]) > 2
    assert verify(tmp_path / "out")[0] == len(record["shards"])
    assert json.loads((tmp_path / "out" / "provenance" / "mixture.json").read_text())["name"] == "made"


@pytest.mark.parametrize("to", [name for name, known in FORMATS.items() if "loss_mask" in known.names])
def test_masks_segments_and_positions_go_along(conversations, tmp_path, to):
    folder = written(conversations, tmp_path / "out", to, rows=ROWS)
    boundaries = conversations.boundaries(attend_across_documents=True)
    expected = as_arrays(conversations.loader(batch_size=ROWS).batch(0), boundaries)
    arrays = READERS[to](folder)
    if to == "levanter":  # a weight stands at the token before
        assert (arrays["loss_weights"][:, :-1] == expected["loss_mask"][:, 1:]).all()
        return
    for array in ("loss_mask", "segment_ids", "positions"):
        assert (arrays[FORMATS[to].names[array]] == expected[array]).all(), array
    assert 0 < expected["loss_mask"].mean() < 1


def test_what_a_format_cannot_hold_is_refused(conversations, tmp_path):
    with pytest.raises(InputError, match=r"\.bin/\.idx cannot hold which tokens of conversations are answers"):
        written(conversations, tmp_path / "out", "megatron", rows=9)
    assert not (tmp_path / "out").exists()
    folder = written(conversations, tmp_path / "out", "megatron", rows=9, without_masks=True)
    assert (megatron(folder)["tokens"] == conversations.loader(batch_size=9).batch(0).tokens).all()


def test_documents_apart(mixture, tmp_path):
    folder = written(mixture, tmp_path / "out", "mds", rows=50, documents_apart=True)
    boundaries = mixture.boundaries(attend_across_documents=False)
    expected = as_arrays(mixture.loader(batch_size=50).batch(0), boundaries)
    arrays = mds(folder)
    assert (arrays["segment_ids"] == expected["segment_ids"]).all()
    assert arrays["segment_ids"].max() > 1
    assert (arrays["positions"] == expected["positions"]).all()


def test_components_apart_with_a_blend(mixture, tmp_path):
    folder = written(mixture, tmp_path / "out", "megatron", per_component=True)
    for part in mixture.taken:
        reader = mixture.only(part).loader(batch_size=part.prepared.splits["train"].rows)
        assert (megatron(folder / part.name)["tokens"] == reader.batch(0).tokens).all()
    words = (tmp_path / "out" / "blend_train.txt").read_text().split()
    assert words == ["0.6", "data/prose/train", "0.4", "data/code/train"]
    dealt = written(mixture, tmp_path / "dealt", "megatron", per_component=True, rows=ROWS, split="validation")
    assert len(megatron(dealt / "prose", "validation")["tokens"]) == 300


def test_a_component_without_held_out_rows_is_named_and_the_others_are_exported(mixture, tmp_path, caplog):
    prose, code = mixture.taken
    splits = {"train": code.prepared.splits["train"]}
    without = dataclasses.replace(code, manifest=dataclasses.replace(code.prepared, splits=splits))
    some = dataclasses.replace(mixture, components=(prose, without))
    folder = written(some, tmp_path / "out", "megatron", per_component=True, split="validation")
    assert (folder / "prose").is_dir()
    assert not (folder / "code").exists()
    assert "code has no validation rows" in caplog.text
    with pytest.raises(InputError, match="has no 'validation' rows"):
        written(some, tmp_path / "mixed", "megatron", split="validation")


def test_a_pass_sees_no_row_twice(mixture, tmp_path):
    folder = written(mixture, tmp_path / "out", "mds")
    component = mds(folder)["component"].reshape(-1)
    stored = [part.prepared.splits["train"].rows for part in mixture.taken]
    counts = np.bincount(component)
    assert (counts <= stored).all()
    more = mixture.loader(batch_size=1).schedule.counts(len(component) + 1)
    assert (more > stored).any()


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("to", FORMATS)
def test_a_stop_and_a_damaged_shard_end_in_the_same_files(mixture, tmp_path, to, monkeypatch, caplog):
    written(mixture, tmp_path / "whole", to, rows=ROWS)
    write, count = FORMATS[to].write, iter(range(100))

    def stops(*arguments):
        if next(count) == 2:
            raise KeyboardInterrupt
        return write(*arguments)

    monkeypatch.setattr(FORMATS[to], "write", stops, raising=False)
    with pytest.raises(KeyboardInterrupt):
        written(mixture, tmp_path / "stopped", to, rows=ROWS)
    assert not (tmp_path / "stopped" / "export.json").exists()
    written(mixture, tmp_path / "stopped", to, rows=ROWS)
    assert contents(tmp_path / "stopped") == contents(tmp_path / "whole")
    assert next(count) == len(json.loads((tmp_path / "whole" / "export.json").read_text())["shards"]) + 1

    record = json.loads((tmp_path / "whole" / "export.json").read_text())
    part = record["shards"][1]["pieces"][0]
    path = tmp_path / "stopped" / part["file"]
    data = bytearray(path.read_bytes())
    data[part["offset"] + part["bytes"] // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"is damaged \(checksum\); run the export again"):
        verify(tmp_path / "stopped")
    written(mixture, tmp_path / "stopped", to, rows=ROWS)
    assert "damaged since" in caplog.text
    assert contents(tmp_path / "stopped") == contents(tmp_path / "whole")


def test_files_that_no_export_recorded_and_a_damaged_index(mixture, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "old.parquet").write_text("theirs")
    with pytest.raises(InputError, match="data: holds files of no known export; choose another folder"):
        written(mixture, tmp_path, "parquet", rows=ROWS)
    (tmp_path / "data" / "old.parquet").unlink()
    data = written(mixture, tmp_path, "megatron", rows=ROWS)
    index = (data / "train.idx").read_bytes()
    (data / "train.idx").write_bytes(index[:-8] + bytes(8))
    with pytest.raises(InputError, match="idx: is damaged"):
        verify(tmp_path)
    (data / ".train.bin.x.partial").write_text("of a process that was killed")
    written(mixture, tmp_path, "megatron", rows=ROWS)
    assert (data / "train.idx").read_bytes() == index
    assert {path.name for path in data.iterdir()} == {"train.bin", "train.idx"}
    verify(tmp_path)


def test_the_command(mixture, tmp_path, capsys):
    arguments = ["--mixture", str(mixture.folder), "--to", "litdata", "--output_dir", str(tmp_path / "out")]
    command.main([*arguments, "--steps", "10", "--batch_size", "4"])
    assert capsys.readouterr().out == f"{tmp_path / 'out' / 'data'}\n"
    assert len(litdata(tmp_path / "out" / "data")["tokens"]) == 40
    command.main(["--verify", "--output_dir", str(tmp_path / "out")])
    for more, words in (
        (["--rows", "9"], "holds an export with other settings \\(rows\\)"),
        (["--steps", "9"], "--steps with --batch_size"),
        (["--rows", "0"], "--rows 0: give at least 1"),
        (["--to", "webdataset"], "is no known format; choose one of array_record"),
        (["--frob"], "--frob: is not understood"),
    ):
        with pytest.raises(InputError, match=words):
            command.main([*arguments, *more])
    with pytest.raises(InputError, match="--output_dir is missing"):
        command.main(["--mixture", "m", "--to", "mds", "--output_dir", ""])
    with pytest.raises(InputError, match="--mixture is missing"):
        command.main(["--to", "mds", "--output_dir", str(tmp_path)])
