r"""Which baseline metrics tell a corpus of low diversity from a diverse one at equal size and length: a page and a
table.

    python scripts/checks/compare_metrics.py LOW.jsonl.gz DIVERSE.jsonl.gz [LOW DIVERSE ...] --output runs/twins \
        [--draws 10]

Each pair is measured by itself: the same number of documents in every draw, and once more cut to the same number of
words. `right` means that the 95 % interval of the difference lies wholly on the diverse corpus's side, `wrong` on the
other; the numbers are that difference over its half-width. With five corpora or more the page also says how far the
metrics agree.
"""

import argparse
import logging
from pathlib import Path
import sys

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from diversity_jax.corpus import Corpus, open_corpus
from diversity_jax.metrics import MetricsConfig, MetricsReport, chosen_metrics, measure
from diversity_jax.report.pages import metrics as metrics_page


def named(path: str) -> str:
    return Path(path).name.split(".")[0]


def texts_of(path: str, documents: int | None) -> Corpus | list[str]:
    """The corpus, or the texts of a seeded sample of it."""
    corpus = open_corpus(path)
    return corpus if documents is None else [document.text for document in corpus.sample(documents, seed=0)]


def word(reach: float | None) -> str:
    """`right`, `wrong` or `not decided`, by a difference in half-widths; the first corpus is the less diverse."""
    if reach is None:
        return "-"
    says = "not decided" if abs(reach) <= 1 else "wrong" if reach > 0 else "right"
    return f"{says} ({-reach:+.1f})"


def markdown(pairs: list[tuple[MetricsReport, MetricsReport]]) -> str:
    """One row a metric, two columns a pair: whole documents, and equal length."""
    heads = [f"{pair[0].corpus['name']}: {kind}" for pair in pairs for kind in ("whole", "equal length")]
    lines = [f"| metric | {' | '.join(heads)} |", f"|---|{'---|' * len(heads)}"]
    for rows in zip(*(metrics_page.separations(*pair) for pair in pairs), strict=True):
        cells = [word(value) for row in rows for value in (row.full_length, row.equal_length)]
        lines.append(f"| {rows[0].title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measures, prints the table, and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpora", nargs="+", help="files, LOW and DIVERSE in turn")
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--metrics", default="all")
    parser.add_argument("--embedder", default="tfidf")
    parser.add_argument("--clusters", type=int, help="of K-means; one per ten documents by default")
    parser.add_argument(
        "--documents", type=int, help="measure a random sample of so many documents of each; all by default"
    )
    parser.add_argument(
        "--dependence", action="store_true", help="print too how each figure moves with size and length"
    )
    parser.add_argument("--output", default="runs/twins")
    flags = parser.parse_args()
    if len(flags.corpora) % 2:
        parser.error("give an even number of corpora: LOW and DIVERSE in turn")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    config = MetricsConfig(
        draws=flags.draws, embedder=flags.embedder, dependence=flags.dependence, clusters=flags.clusters
    )
    measured: dict[str, MetricsReport] = {}
    pairs = list(zip(flags.corpora[0::2], flags.corpora[1::2], strict=True))
    for pair in pairs:
        measured |= measure(
            {named(path): texts_of(path, flags.documents) for path in pair},
            chosen_metrics(flags.metrics, config),
            config,
        )
    names = [(named(low), named(diverse)) for low, diverse in pairs]
    for name, scorecard in measured.items():
        scorecard.save(Path(flags.output) / name / "scorecard.json")
    print(markdown([(measured[low], measured[diverse]) for low, diverse in names]))
    print(metrics_page.write(flags.output, measured, names))


if __name__ == "__main__":
    main()
