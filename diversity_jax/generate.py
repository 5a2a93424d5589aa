"""Make a synthetic component with language models: topics, personas and styles in, checked documents out, steered by their diversity.

    python -m diversity_jax.generate --config configs/generate.py --config.topics.source=topics.txt \\
        --config.generators[0].model=openai:gpt-4o-mini --config.budget.max_dollars=5 --config.dry_run=True

Writes documents/*.jsonl.zst, which is a component for a mixture, rejects/, rounds/ and report.html to output_dir; run again it goes on.
The same command writes the demo text of `configs/quickstart_text.py`, which needs no model; what stands already is left alone.
"""

import logging
from pathlib import Path
import sys

from diversity_jax import entry_point
from diversity_jax.config import GenerateConfig

log = logging.getLogger(__name__)


def main(config: GenerateConfig) -> None:
    """Writes demo text that is not there yet, then generates; prints the page's path last."""
    _write_grammar(config)
    if config.generators:
        _generate(config)


def _write_grammar(config: GenerateConfig) -> None:
    """Equal settings give equal bytes."""
    from diversity_jax.synthesis.grammar import GENERATOR, write_component

    for component in config.grammar:
        if Path(component.path).exists():
            log.info("%s stands already", component.path)
            continue
        write_component(component.grammar, component.path)
        made = f"{component.grammar.documents:,} documents over {component.grammar.topics:,} topics"
        log.info("%s: %s (%s)", component.path, made, GENERATOR)


def _generate(config: GenerateConfig) -> None:
    from diversity_jax import run_record
    from diversity_jax.synthesis import page
    from diversity_jax.synthesis.run import run

    store = run(config)
    if store is None:
        return
    record = run_record.describe(sys.argv, config)
    record.save(config.output_dir)
    log.info("documents: %s", store.documents_pattern)
    print(page.write(store, record.facts()))


if __name__ == "__main__":
    entry_point.run(main, GenerateConfig, __doc__)
