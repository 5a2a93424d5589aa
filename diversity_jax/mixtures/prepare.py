"""Prepare one component: turn documents into permuted rows of tokens that training and SeqIO read.

    python -m diversity_jax.mixtures.prepare --config configs/prepare.py --config.corpus.source='texts/*.jsonl.zst'
    python -m diversity_jax.mixtures.prepare --config configs/prepare.py --runner=DataflowRunner --project=P \\
        --region=R --temp_location=gs://B/tmp --config.output_dir=gs://B/web --config.corpus.source='gs://B/web/*.jsonl'

Without `--runner` it runs in this machine's processes. With it (DirectRunner, DataflowRunner, FlinkRunner, SparkRunner,
...) it runs on Apache Beam, and all flags but `--config...` are Beam's. Run the same command again to resume after a
stop.
"""

from collections.abc import Sequence

from diversity_jax.core import cli
from diversity_jax.core.files import join_path
from diversity_jax.corpus import open_corpus
from diversity_jax.prepare.config import PrepareConfig
from diversity_jax.prepare.manifest import describe
from diversity_jax.prepare.pipeline import prepare
from diversity_jax.tokenizers.tokenizer import load_tokenizer


def main(beam_flags: Sequence[str], config: PrepareConfig) -> None:
    """Prepares the component, and prints its statistics and, last, its manifest."""
    corpus, tokenizer = open_corpus(config.corpus), load_tokenizer(config.vocabulary, end_of_text=config.end_of_text)
    executor = None
    if config.runner:
        from diversity_jax.prepare.beam import BeamExecutor

        executor = BeamExecutor(config.corpus, config.runner, (*config.runner_options, *beam_flags))
    manifest = prepare(
        corpus, tokenizer, config.output_dir, config.preparation, processes=config.processes, executor=executor
    )
    print(describe(manifest))
    print(join_path(config.output_dir, "manifest.json"))


def split_flags(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """This command's flags and Beam's; `--runner` becomes `--config.runner`. Without a runner Beam has none."""
    ours, beams, rest = [], [], list(argv)
    while rest:
        flag = rest.pop(0)
        if flag.partition("=")[0] == "--runner":
            ours.append(flag.replace("--runner", "--config.runner", 1))
        elif flag.startswith("--config") or flag in ("-h", "--help"):
            ours.append(flag)
        else:
            beams.append(flag)
            continue
        if "=" not in flag and rest and flag.startswith("--") and flag != "--help":
            ours.append(rest.pop(0))
    return (ours, beams) if any(flag.startswith("--config.runner") for flag in ours) else (ours + beams, [])


if __name__ == "__main__":
    cli.run(main, PrepareConfig, __doc__, split_flags)
