"""Build a mixture that any SeqIO codebase can import: score, gate, prepare, write mixture.json, register.

    python -m diversity_jax.mixtures.build --config configs/mixtures/small.py
    python -m diversity_jax.mixtures.build --config configs/mixtures/paper_4_to_1.py \\
        --config.output_dir=/data/paper_4_to_1

Run it again to resume: finished scorecards and prepared components are used again. Codebases that train on the mixture
name its folder in DIVERSITY_JAX_MIXTURES.
"""

import logging
from pathlib import Path

from diversity_jax.core import cli
from diversity_jax.core.buckets import public_name, writes_to
from diversity_jax.mixtures.config import BuildConfig

log = logging.getLogger(__name__)


@writes_to("output_dir")
def main(config: BuildConfig) -> None:
    """Builds and registers the mixture, writes its page, and prints its folder, last."""
    from diversity_jax.mixtures.builder import build_configured
    from diversity_jax.mixtures.replay import inspect_mixture
    from diversity_jax.report.pages import mixture as page

    build_configured(config)
    folder = Path(config.output_dir)
    log.info("page: %s", public_name(page.write(inspect_mixture(folder), folder)))
    print(public_name(folder))


if __name__ == "__main__":
    cli.run(main, BuildConfig, __doc__)
