r"""Prepares one component: leaves out near copies and benchmark items, tokenises, packs rows and permutes them.

    python -m diversity_jax.mixtures.prepare --config configs/prepare.py
    python -m diversity_jax.mixtures.prepare --config configs/prepare.py --config.corpus.source='texts/*.jsonl.zst' \
        --config.vocabulary=tokenizer.json --config.output_dir=components/web

The first command prepares English prose of the installed packages as bytes, without near copies. Two cores, no
accelerator: 24 MB of text become 12,000 rows of 2,049 tokens in about two minutes, most of it extracting and comparing
the docstrings. `preparation.hygiene.decontaminate`, such as ("benchmarks/*.jsonl",), names evaluation files; documents
that overlap with them are left out.
"""

from diversity_jax.corpus import CorpusConfig
from diversity_jax.prepare.config import Filtering, Preparation, PrepareConfig


def get_config() -> PrepareConfig:
    """The configuration of `python -m diversity_jax.mixtures.prepare`."""
    return PrepareConfig(
        output_dir="runs/prepared/prose",
        corpus=CorpusConfig(source="installed_docs:prose"),
        vocabulary="bytes",
        preparation=Preparation(
            name="prose",
            kind="real",
            sequence_length=2048,
            validation_share=0.005,
            hygiene=Filtering(near_duplicates=0.8),
        ),
    )
