"""Make synthetic components, as a configuration lists them; what stands already is left alone.

Call it before the mixture that uses them is built:

    python -m diversity_jax.generate --config configs/quickstart_text.py
"""

import logging
from pathlib import Path

from diversity_jax import entry_point
from diversity_jax.config import GenerateConfig

log = logging.getLogger(__name__)


def main(config: GenerateConfig) -> None:
    """Writes every component that is not there yet; equal settings give equal bytes."""
    from diversity_jax.synthesis.grammar import GENERATOR, write_component

    for component in config.grammar:
        if Path(component.path).exists():
            log.info("%s stands already", component.path)
            continue
        write_component(component.grammar, component.path)
        made = f"{component.grammar.documents:,} documents over {component.grammar.topics:,} topics"
        log.info("%s: %s (%s)", component.path, made, GENERATOR)


if __name__ == "__main__":
    entry_point.run(main, GenerateConfig, __doc__)
