"""Draws the page of a finished study again, from analysis.json and run.json alone.

python -m diversity_jax.study.page FOLDER        draws FOLDER/report.html and FOLDER/figures anew
"""

from diversity_jax.core import cli
from diversity_jax.report.pages.study import draw_again

if __name__ == "__main__":
    cli.run_plain(draw_again, __doc__)
