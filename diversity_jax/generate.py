"""Make a synthetic component with language models: checked documents from topics and personas, steered by diversity.

    python -m diversity_jax.generate --config configs/generate.py --config.topics.source=topics.txt \\
        --config.generators[0].model=openai:gpt-4o-mini --config.budget.max_dollars=5 --config.dry_run=True

Writes documents/*.jsonl.zst (a component for a mixture), rejects/, rounds/ and report.html to output_dir, where a later
run continues; and demo text, as in `configs/quickstart_text.py`.
"""

import contextlib
import logging
import sys

from diversity_jax.core import cli, run_info
from diversity_jax.core.artifacts import locked_folder
from diversity_jax.core.buckets import public_name, writes_to
from diversity_jax.core.errors import InputError
from diversity_jax.core.files import local_folder
from diversity_jax.synthesis.config import GenerateConfig
from diversity_jax.synthesis.store import Store


def main(config: GenerateConfig) -> None:
    """Writes demo text that does not exist yet, then generates; prints the page's path last."""
    from diversity_jax.synthesis.demo_grammar import write_demo_text

    write_demo_text(config.grammar)
    if config.generators:
        _generate(config)


@writes_to("output_dir")
def _generate(config: GenerateConfig) -> None:
    from diversity_jax.synthesis.run import run

    run_info.refuse_other_command(local_folder(config.output_dir, "output_dir"), "generators", "generated component")
    with contextlib.nullcontext() if config.dry_run else locked_folder(config.output_dir):
        begun = len(Store(config.output_dir).rounds)
        try:
            store = run(config)
        except InputError:
            if len((store := Store(config.output_dir)).rounds) > begun:  # the page shows which answers were refused
                _write_page(config, store)
            raise
        if store is not None:
            _write_page(config, store)


def _write_page(config: GenerateConfig, store: Store) -> None:
    from diversity_jax.report.pages import synthesis

    logging.getLogger(__name__).info("documents: %s", public_name(store.documents_pattern))
    (info := run_info.describe(sys.argv, config)).save(config.output_dir)
    print(public_name(synthesis.write(store, info.facts())))


if __name__ == "__main__":
    cli.run(main, GenerateConfig, __doc__)
