r"""Scores your own text, prepares it, trains a small model on it, and writes a page about all of this.

    python -m diversity_jax.train --config configs/my_text.py:texts.jsonl
    python -m diversity_jax.train --config configs/my_text.py:'notes/*.md' --config.train.steps=2000
    python -m diversity_jax.train --config configs/my_text.py:hf:roneneldan/TinyStories

After the colon: a file (.jsonl, .csv, .txt, .parquet, ...), a folder, a pattern, a URL, or a dataset of the Hugging
Face hub; docs/sources.md lists all. Component, mixture and folder are named after it. A tokenizer is trained on the
text (bytes are used for texts under 100,000 characters), and its size is the model's vocabulary.

Hardware: any machine with 2 cores and 3 GB of memory; no accelerator, no LLM.
"""

from pathlib import PurePosixPath
import re

from diversity_jax.cluster_agent import AgentConfig
from diversity_jax.corpus import CorpusConfig
from diversity_jax.mixtures.config import Component, GatePolicy, MixtureConfig
from diversity_jax.model import LLAMA
from diversity_jax.training.config import OptimizerConfig, TrainConfig
from diversity_jax.training.run import Config

TEXT = "texts.jsonl"  # the source of your text, unless the command names another after the colon


def name_of(source: str) -> str:
    """The name of a source's file or folder, in letters, digits and underscores."""
    path = PurePosixPath(source.rstrip("/*?.").removeprefix("hf:"))
    stem = path.name.partition(".")[0] if "*" not in path.name else path.parent.name
    return re.sub(r"\W+", "_", stem, flags=re.ASCII).strip("_") or "my_text"


def get_config(text: str = TEXT) -> Config:
    name = name_of(text)
    return Config(
        output_dir=f"runs/{name}",
        mixture=MixtureConfig(
            name=name,
            components=(
                Component(
                    name=name,
                    kind="real",
                    corpus=CorpusConfig(source=text, max_documents=20_000),
                    # The text is scored, and a warning given where it has fewer than two effective clusters.
                    policy=GatePolicy(min_effective_clusters=2, on_fail="warn"),
                ),
            ),
            vocabulary="trained",
            sequence_length=256,
            validation_share=0.02,
        ),
        agent=AgentConfig(groupings=1000, samples_per_grouping=10),
        model=LLAMA["llama_tiny"](),
        optimizer=OptimizerConfig(learning_rate=2e-3, warmup_steps=30),
        train=TrainConfig(
            steps=500,
            batch_size=16,
            log_every=10,
            eval_every=100,
            eval_batches=4,
            sample_every=250,
            sample_prompts=("The ", ""),
            checkpoint_every=250,
        ),
    )
