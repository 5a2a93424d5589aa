"""Build a mixture that any SeqIO codebase can import: score what is not scored, gate, prepare, write mixture.json,
register.

    python -m diversity_jax.mixtures.build --config configs/mixtures/small.py
    python -m diversity_jax.mixtures.build --config configs/mixtures/paper_4_to_1.py \\
        --config.output_dir=/data/paper_4_to_1

Run again to go on: scorecards and prepared components that are there are used again. Codebases that train on the
mixture name its folder in DIVERSITY_JAX_MIXTURES.
"""

import logging
from pathlib import Path

from diversity_jax.core import cli
from diversity_jax.core.buckets import public_name, writes_to
from diversity_jax.mixtures.config import BuildConfig

log = logging.getLogger(__name__)


@writes_to("output_dir")
def main(config: BuildConfig) -> None:
    """Builds the mixture, registers it in this process to see that SeqIO accepts it, and prints its folder, last."""
    from diversity_jax.mixtures.builder import build
    from diversity_jax.mixtures.gate import undecided
    from diversity_jax.scoring.run import scorer
    from diversity_jax.synthesis.demo_grammar import write_demo_text

    folder = Path(config.output_dir)
    write_demo_text(config.grammar)
    mixture = build(config.mixture, folder, scorer(config, folder / "scorecards", undecided(config.mixture.components)))
    for component in mixture.components:
        asked, granted = float(component.share_asked), float(component.share_granted)
        log.info("shares: %-24s asked %7.3f %%  granted %7.3f %%", component.name, 100 * asked, 100 * granted)
    if config.register:
        from diversity_jax.mixtures.registry import register

        log.info("registered with SeqIO: %s", ", ".join(register(folder)))
    print(public_name(folder))


if __name__ == "__main__":
    cli.run(main, BuildConfig, __doc__)
