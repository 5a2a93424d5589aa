r"""Your own text: measured, made into a mixture, and a small model trained on it, with one page about all of it.

    python -m diversity_jax.train --config configs/my_text.py:texts.jsonl
    python -m diversity_jax.train --config configs/my_text.py:'notes/*.md' --config.train.steps=2000
    python -m diversity_jax.train --config configs/my_text.py:hf:roneneldan/TinyStories

Behind the colon stands where the text is: a file (.jsonl, .csv, .txt, .parquet, ...), a folder, a pattern, a URL, or a
dataset of the Hugging Face hub; docs/sources.md lists all. The names of component, mixture and folder follow it. A
tokenizer is made from the text (bytes, where there are under 100,000 characters), and the model's vocabulary follows.

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

TEXT = "texts.jsonl"  # where your text is; what stands behind the colon of the command replaces it


def name_of(source: str) -> str:
    """A name of letters, digits and underscores for a source: that of its file or folder."""
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
                    # Has it scored, and warns where it says the same few things again and again.
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
