"""Export the rows of a built mixture to the format that another trainer reads.

    python -m diversity_jax.mixtures.export --mixture runs/mixtures/small --to parquet --output_dir /data/small
    python -m diversity_jax.mixtures.export --mixture gs://B/mixture --to megatron --output_dir /data/m --per_component
    python -m diversity_jax.mixtures.export --verify --output_dir /data/small

Formats: array_record, levanter, megatron, parquet, arrow, mds, litdata, tfrecord (docs/export.md). Rows come in the
order and in the shares of the mixture: `--rows N`, or `--steps N --batch_size B`, or without either all that come
before any row is repeated. `--per_component` writes each component by itself, with its share as a weight, for formats
that mix. `--documents_apart` adds segments and positions, `--split validation` takes held-out rows, `--shard_mb` sets
the size of shards. Run it again to resume after a stop, or to write damaged shards again; `--verify` only checks them.
"""

import argparse
from collections.abc import Sequence
import logging

from diversity_jax.core import cli
from diversity_jax.core.buckets import public_name, published
from diversity_jax.core.errors import InputError
from diversity_jax.core.formats import counted
from diversity_jax.mixtures.exchange.export import ExportRequest, export, verify
from diversity_jax.mixtures.mixture import Mixture

log = logging.getLogger(__name__)

_USAGE = "usage: export --mixture FOLDER --to FORMAT --output_dir FOLDER [--rows N | --steps N --batch_size B] ..."


def main(argv: Sequence[str]) -> None:
    """Exports, and prints the folder of the data, last."""
    options = _parse(argv)
    with published(options.output_dir, "--output_dir") as folder:
        if options.verify:
            shards, size = verify(folder)
            log.info(
                "%s: %s (%.3g GB) as their checksums say", options.output_dir, counted(shards, "shard"), size / 1e9
            )
        else:
            names = ("to", "rows", "per_component", "split", "documents_apart", "without_masks", "shard_mb")
            given = {name: getattr(options, name) for name in names}
            if options.steps is not None:
                given["rows"] = options.steps * options.batch_size
            request = ExportRequest(**given)
            record = export(Mixture.load(options.mixture), folder, request)
            size = sum(part["bytes"] for shard in record["shards"] for part in shard["pieces"])
            rows, shards = sum(stream["rows"] for stream in record["streams"]), len(record["shards"])
            written = f"{counted(rows, 'row')} in {counted(shards, 'shard')}"
            log.info("%s: %s, %.3g GB", record["format"], written, size / 1e9)
        print(public_name(folder / "data"))


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = cli.ArgumentParser(_USAGE)
    for name in ("mixture", "to", "output_dir"):
        parser.add_argument(f"--{name}")
    for name in ("rows", "steps", "batch_size"):
        parser.add_argument(f"--{name}", type=int)
    for name in ("per_component", "documents_apart", "without_masks", "verify"):
        parser.add_argument(f"--{name}", action="store_true")
    parser.add_argument("--split", choices=("train", "validation"), default="train")
    parser.add_argument("--shard_mb", type=float, default=64.0)
    options = parser.parse_args(argv)
    wanted = ("output_dir",) if options.verify else ("mixture", "to", "output_dir")
    if missing := [name for name in wanted if not (getattr(options, name) or "").strip()]:
        raise InputError(f"--{missing[0]} is missing; {_USAGE}")
    if (options.steps is None) != (options.batch_size is None) or (options.steps and options.rows):
        raise InputError(f"--rows, or --steps with --batch_size: give one of the two; {_USAGE}")
    if options.steps is not None and min(options.steps, options.batch_size) < 1:
        raise InputError(f"--steps {options.steps} --batch_size {options.batch_size}: give at least 1; {_USAGE}")
    return options


if __name__ == "__main__":
    cli.run_plain(main, __doc__)
