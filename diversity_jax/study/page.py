"""The page of a study, drawn from what stands in its folder, so that it can be drawn again without computing anything.

python -m diversity_jax.study.page FOLDER       writes FOLDER/report.html and FOLDER/figures again
"""

from collections.abc import Sequence
from pathlib import Path

from diversity_jax.core import cli
from diversity_jax.core.errors import InputError
from diversity_jax.core.files import is_remote, read_json
from diversity_jax.report.pages import study as report
from diversity_jax.study.analysis import FORMAT_VERSION


def draw(folder: Path) -> Path:
    """Draws `report.html` and `figures/` from `analysis.json` and `run.json`.

    Raises:
      InputError: one of the two is not there, or another version of this package wrote it.
    """
    path = folder / "analysis.json"
    analysis = read_json(path)
    if analysis.get("format_version") != FORMAT_VERSION:
        raise InputError(
            f"{path}: another version of this package wrote it; run the study again, steps that stand are not repeated"
        )
    return report.write(folder, analysis)


def main(folders: Sequence[str]) -> None:
    """Draws the page of each folder again and prints its path."""
    for folder in folders:
        if is_remote(folder):
            raise InputError(f"{folder}: is in a bucket; copy analysis.json and run.json to a folder, and name that")
        print(draw(Path(folder)))


if __name__ == "__main__":
    cli.run_plain(main, __doc__)
