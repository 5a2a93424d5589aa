"""Reads exports with the trainers they are made for and compares every row with ours.

    python scripts/checks/read_exports.py --write /tmp/exports                        # in this project's environment
    /path/to/peer/bin/python scripts/checks/read_exports.py --read /tmp/exports mds   # in one that has the peer

The first makes three small mixtures, of text, of conversations with text, and in a vocabulary of 70,000, exports them
to every format, and stores the rows that the training loader gives. The second reads each export through the peer's own
classes and compares. Peers: grain, datasets, mds, litdata, megatron, levanter, maxtext, seqio (needs the packages of
these names).
"""

import argparse
import asyncio
from fractions import Fraction
import importlib
import json
from pathlib import Path
import sys
from typing import ClassVar

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
LENGTH = 64
MIXTURES = {"text": 700, "turns": 700, "large": 685}  # rows; of the last, with ids of 4 bytes, one is left for a shard


def write(folder: Path) -> None:
    """The mixtures, their exports, and `expected.npz` of each."""
    sys.path.insert(0, str(ROOT))
    from diversity_jax.corpus import CorpusConfig
    from diversity_jax.mixtures.exchange.export import FORMATS, ExportRequest, export
    from diversity_jax.mixtures.loader import as_arrays
    from diversity_jax.mixtures.mixture import Mixture
    from tests.mixture_folders import build_mixture
    from tests.sft_folders import build_components, write_examples, write_text

    shares = {"prose": Fraction(3, 5), "code": Fraction(2, 5)}
    text = Mixture.load(build_mixture(folder / "mixtures" / "text", shares, sequence_length=LENGTH, shard_bytes=20_000))
    sources = {
        "turns": CorpusConfig(source=str(write_examples(folder / "a.jsonl", 600)), conversations="alpaca"),
        "text": CorpusConfig(source=str(write_text(folder / "b.jsonl", 300))),
    }
    fields = {"sequence_length": LENGTH, "document_start": "end_of_text"}
    turns = build_components(folder / "mixtures" / "turns", sources, {"turns": 0.75, "text": 0.25}, **fields)
    large = Mixture.load(_build_large(folder))
    for (name, rows), mixture in zip(MIXTURES.items(), (text, turns, large), strict=True):
        boundaries = mixture.boundaries(attend_across_documents=True)
        np.savez(folder / f"{name}.npz", **as_arrays(mixture.loader(batch_size=rows).batch(0), boundaries))
        for to, known in FORMATS.items():
            without = name == "turns" and "loss_mask" not in known.names
            request = ExportRequest(to=to, rows=rows, shard_mb=0.02, without_masks=without)
            export(mixture, folder / name / to, request)
    request = ExportRequest(to="megatron", per_component=True, shard_mb=0.02)
    export(text, folder / "text" / "megatron_blend", request)


def _build_large(folder: Path) -> Path:
    """A mixture of text in a vocabulary of 70,000 words."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    from diversity_jax.corpus import CorpusConfig
    from diversity_jax.mixtures import builder
    from diversity_jax.mixtures.config import Component, MixtureConfig

    made = Tokenizer(models.WordLevel({f"w{i}": i for i in range(69_999)} | {"<|endoftext|>": 69_999}, unk_token="w0"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.add_special_tokens(["<|endoftext|>"])
    (folder / "vocabulary").mkdir()
    made.save(str(folder / "vocabulary" / "tokenizer.json"))
    draw = np.random.default_rng(0)
    documents = [" ".join(f"w{i}" for i in draw.integers(0, 69_999, draw.integers(20, 300))) for _ in range(600)]
    (folder / "large.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    part = Component(name="words", kind="real", corpus=CorpusConfig(source=str(folder / "large.jsonl")), share=1)
    config = MixtureConfig(
        name="large", components=(part,), vocabulary=str(folder / "vocabulary"), sequence_length=LENGTH
    )
    builder.build(config, folder / "mixtures" / "large", lambda corpora: {})
    return folder / "mixtures" / "large"


def _examples(records):
    try:
        from tensorflow.core.example.example_pb2 import Example
    except ImportError:
        sys.path.insert(0, str(ROOT))
        from diversity_jax.mixtures.exchange.examples import example_features

        return [example_features(bytes(record)) for record in records]
    rows = [Example.FromString(bytes(record)).features.feature for record in records]
    return [{name: np.array(value.int64_list.value) for name, value in row.items()} for row in rows]


def grain(folder: Path) -> dict[str, np.ndarray]:
    """`grain.ArrayRecordDataSource`, as MaxText opens it too, indexed as Grain's samplers do."""
    from grain import sources

    source = sources.ArrayRecordDataSource(sorted(map(str, (folder / "array_record" / "data").glob("*"))))
    rows = _examples(source[i] for i in range(len(source)))
    names = {"targets": "tokens", "targets_loss_weights": "loss_mask", "targets_segment_ids": "segment_ids"}
    names |= {"targets_positions": "positions"}
    return {names[name]: np.stack([row[name] for row in rows]) for name in rows[0] if name in names}


def datasets(folder: Path) -> dict[str, np.ndarray]:
    """`load_dataset` of the Parquet files, streamed, and `load_from_disk` of the Arrow ones."""
    library = importlib.import_module("datasets")
    names = {"input_ids": "tokens", "loss_mask": "loss_mask", "segment_ids": "segment_ids", "position_ids": "positions"}
    mapped = library.load_from_disk(str(folder / "arrow" / "data"))
    streamed = list(library.load_dataset(str(folder / "parquet"), split="train", streaming=True))
    arrays = {new: np.array(mapped[name]) for name, new in names.items() if name in mapped.column_names}
    for name, new in names.items():
        if new in arrays:
            np.testing.assert_array_equal(arrays[new], np.array([row[name] for row in streamed]))
    return arrays


def mds(folder: Path) -> dict[str, np.ndarray]:
    """`streaming.StreamingDataset`, which compares the checksums of its index."""
    from streaming import StreamingDataset

    data = StreamingDataset(local=str(folder / "mds" / "data"), shuffle=False, batch_size=1, validate_hash="sha256")
    rows = [data[i] for i in range(len(data))]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0] if name != "component"}


def litdata(folder: Path) -> dict[str, np.ndarray]:
    """`litdata.StreamingDataset`, with its `TokensLoader` where rows are tokens alone."""
    library = importlib.import_module("litdata")
    path = folder / "litdata" / "data"
    is_plain = json.loads((path / "index.json").read_text())["config"]["item_loader"] == "TokensLoader"
    loader = library.TokensLoader(block_size=LENGTH + 1) if is_plain else None
    data = library.StreamingDataset(str(path), item_loader=loader, shuffle=False)
    rows = [data[i] for i in range(len(data))]
    if is_plain:
        return {"tokens": np.stack([row.numpy() for row in rows])}
    return {name: np.stack([np.asarray(row[name]) for row in rows]) for name in rows[0]}


def megatron(folder: Path) -> dict[str, np.ndarray]:
    """`IndexedDataset`; and of components the `GPTDataset`s blended by the weights of the blend file."""
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    data = IndexedDataset(str(folder / "megatron" / "data" / "train"))
    assert data.document_indices.tolist() == list(range(len(data) + 1))
    if (folder / "megatron_blend").exists():
        _megatron_blend(folder / "megatron_blend")
    return {"tokens": np.stack([data[i] for i in range(len(data))])}


def _megatron_blend(folder: Path) -> None:
    """Every sample of Megatron's blend is one of our rows, and shares are the weights."""
    from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
    from megatron.core.datasets.indexed_dataset import IndexedDataset
    import torch

    words = (folder / "blend_train.txt").read_text().split()
    weights, paths = [float(word) for word in words[::2]], [str(folder / word) for word in words[1::2]]

    class Tokenizer:
        unique_identifiers: ClassVar = {"class": "made"}
        eod, pad, vocab_size = 0, -1, 1000

    config = GPTDatasetConfig(
        random_seed=1,
        sequence_length=LENGTH + 1,
        blend=(paths, weights),
        split="1,0,0",
        path_to_cache=str(folder / "cache"),
        tokenizer=Tokenizer(),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
        add_extra_token_to_sequence=False,  # a row has L + 1 tokens already
        mid_level_dataset_surplus=0.005,
    )
    torch.distributed.is_initialized = lambda: False
    train, _, _ = BlendedMegatronDatasetBuilder(GPTDataset, [400, 0, 0], lambda: True, config).build()
    rows = [{row.tobytes() for row in map(np.array, IndexedDataset(path))} for path in paths]
    counts = [0] * len(paths)
    for i in range(400):
        sample = np.asarray(train[i]["tokens"]).astype(np.uint16).tobytes()
        counts[next(number for number, known in enumerate(rows) if sample in known)] += 1
    print(f"  blended: {counts} of 400 samples, each a row, asked {weights}")
    assert max(abs(count - 400 * weight) for count, weight in zip(counts, weights, strict=True)) <= 1


def levanter(folder: Path) -> dict[str, np.ndarray]:
    """`TreeCache`, and `TokenSeqDataset` over it, which is what training reads."""
    from levanter.data.text.datasets import TokenSeqDataset
    from levanter.store.cache import TreeCache

    path = str(folder / "levanter" / "data" / "train")
    exemplar = {"input_ids": np.zeros(0, np.int32)}
    has_weights = Path(path, "part-00000", "loss_weights").exists()
    if has_weights:
        exemplar["loss_weights"] = np.zeros(0, np.float32)
    cache = TreeCache.load(path, exemplar)
    rows = cache.get_batch_sync(list(range(len(cache))))
    arrays = {"tokens": np.stack([row["input_ids"] for row in rows])}
    sequences = TokenSeqDataset(cache, LENGTH + 1, "loss_weights" if has_weights else None)
    batch = asyncio.run(sequences.get_batch(list(range(len(cache)))))
    np.testing.assert_array_equal(np.stack([row["input_ids"] for row in batch]), arrays["tokens"])
    if has_weights:
        arrays["loss_mask"] = np.stack([np.append(0, row["loss_weights"][:-1]) for row in rows])
    return arrays


def maxtext(folder: Path) -> dict[str, np.ndarray]:
    """MaxText's own opening of ArrayRecord files and parser of examples; file by file, since it lists them unsorted."""
    from maxtext.input_pipeline import grain_data_processing, input_pipeline_utils

    rows = []
    for path in sorted((folder / "array_record" / "data").glob("*.arrayrecord")):
        data = grain_data_processing.get_datasets(str(path), "arrayrecord", False, 0, 1, 1, 0, 1, 0, 1, 1, 1)
        data = data.map(input_pipeline_utils.ParseFeatures(["targets"], False))
        data = data.map(input_pipeline_utils.Rekey({name: "targets" for name in ("inputs", "targets_")}))
        rows += [row["inputs"] for row in data]
    return {"tokens": np.stack(rows)}


def seqio(folder: Path) -> dict[str, np.ndarray]:
    """`seqio.TFExampleDataSource`, TensorFlow's reader and parser; file by file, since it interleaves them."""
    library, tf = importlib.import_module("seqio"), importlib.import_module("tensorflow")
    names = {"targets": "tokens", "targets_loss_weights": "loss_mask", "targets_segment_ids": "segment_ids"}
    names |= {"targets_positions": "positions"}
    columns = json.loads((folder / "tfrecord" / "export.json").read_text())["columns"]
    features = {name: tf.io.FixedLenFeature([tokens], tf.int64) for name, (_, tokens) in columns.items()}
    rows = list[dict[str, np.ndarray]]()
    for path in sorted((folder / "tfrecord" / "data").glob("train.tfrecord-*")):
        source = library.TFExampleDataSource({"train": str(path)}, features)
        rows += source.get_dataset(split="train", shuffle=False).as_numpy_iterator()
    return {new: np.stack([row[name] for row in rows]) for name, new in names.items() if name in features}


PEERS = {peer.__name__: peer for peer in (grain, datasets, mds, litdata, megatron, levanter, maxtext, seqio)}


def read(folder: Path, peer: str) -> None:
    """Compares what a peer reads with what the training loader gives."""
    for name in MIXTURES:
        expected, arrays = np.load(folder / f"{name}.npz"), PEERS[peer](folder / name)
        for array, values in arrays.items():
            first = 1 if (peer, array) == ("levanter", "loss_mask") else 0  # it has no weight for a row's first token
            np.testing.assert_array_equal(values[:, first:], expected[array][:, first:])
        print(f"{peer}: {name}: {len(arrays['tokens'])} rows, {', '.join(arrays)}: the same")


def main() -> None:
    """Writes, or reads with one peer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path)
    parser.add_argument("--read", type=Path)
    parser.add_argument("peers", nargs="*", choices=[*PEERS, []])
    options = parser.parse_args()
    if options.write:
        write(options.write)
    for peer in options.peers:
        read(options.read, peer)


if __name__ == "__main__":
    main()
