"""The formats that rows are exported to, by the name that `--to` takes; a new one is one entry here."""

from collections.abc import Mapping

from diversity_jax.mixtures.exchange.arrow import Arrow, Parquet
from diversity_jax.mixtures.exchange.examples import ArrayRecord, TFRecord
from diversity_jax.mixtures.exchange.fixed import Levanter, LitData, Megatron, MosaicML
from diversity_jax.mixtures.exchange.format import Format

FORMATS: Mapping[str, Format] = {
    "array_record": ArrayRecord(),
    "levanter": Levanter(),
    "megatron": Megatron(),
    "parquet": Parquet(),
    "arrow": Arrow(),
    "mds": MosaicML(),
    "litdata": LitData(),
    "tfrecord": TFRecord(),
}
