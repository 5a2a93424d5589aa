"""Formats of other trainers, for `fuzz_files.py`: as `fuzz_formats.py` has the project's own."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
import sys

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from tests.mixture_folders import build_mixture  # noqa: E402

Format = tuple[Path, Callable[[], object]]


def _tokens(folder: Path, to: str, name: str, source: str) -> Format:
    """A small export in one of the formats that are imported too, and its import."""
    from diversity_jax.mixtures.exchange.export import ExportRequest, export
    from diversity_jax.mixtures.exchange.token_files import open_token_set
    from diversity_jax.mixtures.mixture import Mixture

    root = folder / "exported"
    mixture = Mixture.load(build_mixture(folder / "mixture", {"made": Fraction(1)}, documents=30))
    export(mixture, root, ExportRequest(to=to, rows=40))

    def read() -> None:
        found = open_token_set(str(root / source))
        found.fingerprint()
        for ids, lengths in found.blocks(1000):
            assert len(ids) == lengths.sum()

    return root / name, read


def megatron_index(folder: Path) -> Format:
    """The index of a Megatron set."""
    return _tokens(folder, "megatron", "data/train.idx", "data/train")


def megatron_tokens(folder: Path) -> Format:
    """The ids of a Megatron set."""
    return _tokens(folder, "megatron", "data/train.bin", "data/train")


def mds_index(folder: Path) -> Format:
    """The index of an MDS set."""
    return _tokens(folder, "mds", "data/index.json", "data")


def mds_shard(folder: Path) -> Format:
    """A shard of an MDS set."""
    return _tokens(folder, "mds", "data/shard.00000.mds", "data")


def levanter_ledger(folder: Path) -> Format:
    """The ledger of a Levanter cache."""
    return _tokens(folder, "levanter", "data/train/shard_ledger.json", "data/train")


def levanter_array(folder: Path) -> Format:
    """The metadata of an array in a Levanter cache."""
    return _tokens(folder, "levanter", "data/train/part-00000/input_ids/offsets/zarr.json", "data/train")


def levanter_chunk(folder: Path) -> Format:
    """Ids in a Levanter cache."""
    return _tokens(folder, "levanter", "data/train/part-00000/input_ids/data/c/0", "data/train")


def array_record(folder: Path) -> Format:
    """An ArrayRecord file of examples."""
    return _tokens(folder, "array_record", "data/train-00000-of-00001.arrayrecord", "data")


def datatrove_index(folder: Path) -> Format:
    """Where documents end in a datatrove file."""
    from diversity_jax.mixtures.exchange.token_files import open_token_set

    np.arange(600).astype("<u2").tofile(folder / "set.ds")
    np.array([100, 350, 600]).astype("<u8").tofile(folder / "set.ds.index")
    return folder / "set.ds.index", lambda: list(open_token_set(str(folder / "set.ds")).blocks(200))


def export_record(folder: Path) -> Format:
    """The record of an export."""
    from diversity_jax.mixtures.exchange.export import verify

    path, _ = _tokens(folder, "mds", "export.json", "data")
    return path, lambda: verify(path.parent)


EXCHANGE = (
    *(megatron_index, megatron_tokens, mds_index, mds_shard, levanter_ledger, levanter_array, levanter_chunk),
    *(array_record, datatrove_index, export_record),
)
