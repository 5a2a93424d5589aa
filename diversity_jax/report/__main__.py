"""Write a page over all runs of a folder: losses on common axes, scores, evaluations, and links to each run's page.

    python -m diversity_jax.report runs/
    python -m diversity_jax.report runs/ --every 30

Runs that are still in progress are included. `--every SECONDS` repeats this until it is interrupted. Prints the path of
`index.html`.
"""

import argparse
from collections.abc import Sequence
import time

from diversity_jax.core import cli
from diversity_jax.core.errors import InputError

_USAGE = "it takes FOLDER [--every SECONDS]"


def main(argv: Sequence[str]) -> None:
    """Writes the page once, or every `--every` seconds."""
    parser = argparse.ArgumentParser(prog="diversity-jax report", exit_on_error=False, add_help=False)
    parser.add_argument("folder", nargs="?")
    parser.add_argument("--every", type=float)
    try:
        arguments, unknown = parser.parse_known_args(argv)
    except argparse.ArgumentError as error:
        raise InputError(f"{' '.join(argv)}: is not understood ({error}); {_USAGE}") from None
    if unknown or arguments.folder is None or (arguments.every is not None and not arguments.every > 0):
        raise InputError(f"{' '.join(argv)}: is not understood; {_USAGE}")
    from diversity_jax.report.pages import runs

    print(runs.write(arguments.folder), flush=True)
    while arguments.every is not None:
        time.sleep(arguments.every)
        runs.write(arguments.folder)


if __name__ == "__main__":
    cli.run_plain(main, __doc__)
