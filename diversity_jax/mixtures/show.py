"""Show a built mixture: composition, realised shares, decisions recomputed from its file, decoded rows; write its page.

    python -m diversity_jax.mixtures.show runs/mixtures/small
    python -m diversity_jax.mixtures.show runs/mixtures/small --rows 100000 --samples 3 --output /tmp/page

Reads mixture.json, manifests, scorecards and a few rows: no TensorFlow, no judge, no network.
"""

from collections.abc import Sequence

from diversity_jax.core import cli
from diversity_jax.core.buckets import public_name, published
from diversity_jax.core.errors import InputError

_USAGE = "usage: show MIXTURE_FOLDER [--rows N] [--samples N] [--output FOLDER]"


def main(argv: Sequence[str]) -> None:
    """Prints a mixture and writes its page; the page's path comes last."""
    parser = cli.ArgumentParser(_USAGE)
    parser.add_argument("mixture")
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--samples", type=int, default=2)
    parser.add_argument("--output")
    arguments = parser.parse_args(argv)
    if arguments.rows < 1 or arguments.samples < 0:
        wrong = f"--rows {arguments.rows} --samples {arguments.samples}"
        raise InputError(f"{wrong}: give at least 1 row, and 0 samples or more; {_USAGE}")
    from diversity_jax.mixtures.replay import describe, inspect_mixture
    from diversity_jax.report.pages import mixture as page

    view = inspect_mixture(arguments.mixture, rows=arguments.rows, samples=arguments.samples)
    print(describe(view), end="\n\n")
    with published(arguments.output or view.mixture.folder, "--output", skipped=lambda name: True) as folder:
        print(public_name(page.write(view, folder)))


if __name__ == "__main__":
    cli.run_plain(main, __doc__)
