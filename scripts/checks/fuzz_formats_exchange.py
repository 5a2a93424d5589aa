"""Formats of other trainers that `fuzz_files.py` damages, in the form of `fuzz_formats.py`."""

from collections.abc import Callable
from fractions import Fraction
import functools
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
        tokens = open_token_set(str(root / source))
        tokens.fingerprint()
        for ids, lengths in tokens.blocks(1000):
            assert len(ids) == lengths.sum()

    return root / name, read


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


# Of each file that is damaged: the format of its export, its path there, and the set that is opened.
_EXPORTED = {
    "megatron_index": ("megatron", "data/train.idx", "data/train"),
    "megatron_tokens": ("megatron", "data/train.bin", "data/train"),
    "mds_index": ("mds", "data/index.json", "data"),
    "mds_shard": ("mds", "data/shard.00000.mds", "data"),
    "levanter_ledger": ("levanter", "data/train/shard_ledger.json", "data/train"),
    "levanter_array": ("levanter", "data/train/part-00000/input_ids/offsets/zarr.json", "data/train"),
    "levanter_chunk": ("levanter", "data/train/part-00000/input_ids/data/c/0", "data/train"),
    "array_record": ("array_record", "data/train-00000-of-00001.arrayrecord", "data"),
}
EXCHANGE: dict[str, Callable[[Path], Format]] = {
    **{
        name: functools.partial(_tokens, to=to, name=path, source=source)
        for name, (to, path, source) in _EXPORTED.items()
    },
    "datatrove_index": datatrove_index,
    "export_record": export_record,
}
