"""Write the pages of finished studies again, from analysis.json and run.json alone.

    python -m diversity_jax.study.page FOLDER

Writes FOLDER/report.html and FOLDER/figures, and prints the page's path.
"""

from collections.abc import Sequence
from pathlib import Path

from diversity_jax.core import cli


def main(folders: Sequence[str]) -> None:
    """Writes the page of each folder and prints its path."""
    from diversity_jax.study.analysis import draw

    for folder in folders:
        print(draw(Path(folder)))


if __name__ == "__main__":
    cli.run_plain(main, __doc__)
