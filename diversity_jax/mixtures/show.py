"""Look at a built mixture: composition, realised shares, its decisions repeated, decoded rows; and a page of it.

    python -m diversity_jax.mixtures.show runs/mixtures/small
    python -m diversity_jax.mixtures.show runs/mixtures/small --rows 100000 --samples 3 --output /tmp/page

Reads mixture.json, manifests, scorecards and a few rows: no TensorFlow, no judge, no network.
"""

import argparse
from collections.abc import Sequence

from diversity_jax.core import cli
from diversity_jax.core.buckets import public_name, published
from diversity_jax.core.errors import InputError

_USAGE = "usage: show MIXTURE_FOLDER [--rows N] [--samples N] [--output FOLDER]"


def main(argv: Sequence[str]) -> None:
    """Prints a mixture and writes its page; the page's path comes last."""
    parser = argparse.ArgumentParser(prog="diversity-jax show", exit_on_error=False)
    parser.add_argument("mixture")
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--samples", type=int, default=2)
    parser.add_argument("--output")
    try:
        arguments, unknown = parser.parse_known_args(argv)
    except argparse.ArgumentError as error:
        raise InputError(f"{error}; {_USAGE}") from None
    if unknown or arguments.rows < 1 or arguments.samples < 0:
        wrong = " ".join(unknown) or f"--rows {arguments.rows} --samples {arguments.samples}"
        raise InputError(f"{wrong}: is not understood; {_USAGE}")
    from diversity_jax.mixtures.replay import describe, inspect_mixture
    from diversity_jax.report.pages import mixture as page

    view = inspect_mixture(arguments.mixture, rows=arguments.rows, samples=arguments.samples)
    print(describe(view), end="\n\n")
    with published(arguments.output or view.mixture.folder, "--output", skipped=lambda name: True) as folder:
        print(public_name(page.write(view, folder)))


if __name__ == "__main__":
    cli.run_plain(main, __doc__)
