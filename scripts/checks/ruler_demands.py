#!/usr/bin/env python3
"""The offline judge's figures on labelled corpora, whose truth is known: the tables of docs/judges.md.

    python scripts/checks/ruler_demands.py thresholds                      # the constants of cluster_agent/ruler.py
    nice python scripts/checks/ruler_demands.py size company copies length nested halves --results FILE.jsonl

Every score is stored in the results file, so that a stopped run can be resumed. Corpora come from the folder that tests
read (tests/shared_data.py). `--seeds` repeats the random draws.
"""

import argparse
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
import gzip
import itertools
import json
from pathlib import Path
import random
import sys

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from diversity_jax.cluster_agent import AgentConfig, EmbeddingJudge, Scorecard, score_corpora
from diversity_jax.cluster_agent.compare import compare
from diversity_jax.cluster_agent.ruler import default_ruler, measured_thresholds
from diversity_jax.core.words import first_words
from tests.shared_data import shared_file
from tests.simulated_corpus import ListCorpus

REAL, SYNTHETIC = "corpora_real", "corpora_synthetic"
SETS: dict[str, tuple[tuple[str, ...], str]] = {
    "intents (CLINC150)": ((f"{REAL}/clinc150_train",), "label"),
    "question types (TREC fine)": ((f"{REAL}/trec_questions",), "fine_label"),
    "newspaper sections (BBC)": ((f"{REAL}/bbc_news_lemmatised",), "label"),
    "courses (GPT-4 textbooks)": ((f"{SYNTHETIC}/textbooks_gpt4",), "course"),
    "prompts (LLM answers)": ((f"{SYNTHETIC}/llm_answers_20_prompts_low_diversity",), "label"),
    "chapters (LaTeX)": ((f"{REAL}/stacks_project_latex",), "label"),
    "novels": ((f"{REAL}/gutenberg_books", f"{REAL}/gutenberg_books_2"), "title"),
    "programming languages": ((f"{REAL}/code_java", f"{REAL}/code_csharp", f"{REAL}/code_python_tokens"), "label"),
    "question classes (TREC)": ((f"{REAL}/trec_questions",), "label"),
    "courses (GPT-3.5 textbooks)": ((f"{SYNTHETIC}/textbooks_gpt35",), "course"),
    "fields (Mistral textbooks)": ((f"{SYNTHETIC}/textbooks_mistral_10_fields",), "field"),
    "genres (Brown)": ((f"{REAL}/brown_by_genre",), "label"),
    "science or farming (ABC)": ((f"{REAL}/abc_news_science_rural",), "label"),
    "mathematics": ((f"{REAL}/math_competition",), "label"),
}
TUNED = tuple(SETS)[:8]
"""The threshold was chosen with these in view; the others were looked at afterwards."""
COUNTS = (1, 2, 5, 10, 20)
JUDGE = EmbeddingJudge()
Rows = list[tuple[str, str]]  # text, label


def rows_of(name: str) -> Rows:
    """Texts and labels of a set in a random order."""
    files, field = SETS[name]
    rows = []
    for file in files:
        with gzip.open(shared_file(f"{file}.jsonl.gz"), "rt") as lines:
            labelled = [(record["text"], str(record.get(field, file))) for record in map(json.loads, lines)]
        rows += labelled[:1264] if "code_" in file else labelled
    if "Brown" in name:  # whole texts of 2,000 words: pieces of 300
        words = [(text.split(), label) for text, label in rows]
        rows = [(" ".join(w[i : i + 300]), label) for w, label in words for i in range(0, len(w) - 250, 300)]
    random.Random(0).shuffle(rows)
    return rows


class Scores:
    """Scorecards by a name, from the results file where they are in it."""

    def __init__(self, path: Path):
        self._path = path
        lines = path.read_text().splitlines() if path.exists() else []
        self._stored = {line["key"]: line["card"] for line in map(json.loads, lines)}

    def __call__(self, key: str, texts: Sequence[str], *, k: int = 10, groupings: int = 1000) -> Scorecard:
        """The scorecard of texts alone."""
        return self.together({key: texts}, k=k, groupings=groupings)[0]

    def together(self, corpora: dict[str, Sequence[str]], *, k: int = 10, groupings: int = 1000) -> list[Scorecard]:
        """Scorecards of corpora scored in one run."""
        keys = {name: f"{name} | K={k} N={groupings} | {' + '.join(corpora)}" for name in corpora}
        if missing := [name for name, key in keys.items() if key not in self._stored]:
            config = AgentConfig(samples_per_grouping=k, groupings=groupings, examples=0)
            listed = {name: ListCorpus(texts, name) for name, texts in corpora.items()}
            scored = score_corpora(listed, JUDGE, config)
            with self._path.open("a") as file:
                for name in missing:
                    self._stored[keys[name]] = scored_json = scored[name].to_json()
                    file.write(json.dumps({"key": keys[name], "card": scored_json}) + "\n")
        return [Scorecard.from_json(self._stored[key], where=key) for key in keys.values()]


def shown(scorecard: Scorecard) -> str:
    """The figure with its interval."""
    estimate = scorecard.effective_clusters
    high = "any" if estimate.high is None else f"{estimate.high:.3g}"
    return f"{estimate.value:.3g} [{estimate.low:.3g}, {high}]"


def size(scores: Scores, seeds: int) -> Iterator[str]:
    """One population at growing sizes."""
    sizes = (200, 500, 1000, 2000, 7000)
    yield f"| corpus | words | {' | '.join(f'D = {d:,}' for d in sizes)} | decided of pairs |"
    yield f"|---|---:|{'---|' * len(sizes)}---:|"
    for name in SETS:
        texts = [text for text, _ in rows_of(name)]
        scorecards = [scores(f"{name} size {d}", texts[:d]) for d in sizes if d <= len(texts)]
        pairs = list(itertools.combinations(scorecards, 2))
        decided = sum(compare(a, b).decided for a, b in pairs)
        cells = [shown(scorecard) for scorecard in scorecards] + [""] * (len(sizes) - len(scorecards))
        yield f"| {name} | {scorecards[-1].reading_words} | {' | '.join(cells)} | {decided} of {len(pairs)} |"


def company(scores: Scores, seeds: int) -> Iterator[str]:
    """A corpus alone and beside another one."""
    yield "| corpus | alone | beside another | same bytes |"
    yield "|---|---|---|---|"
    for name, other in zip(SETS, [*SETS][1:] + [*SETS][:1], strict=True):
        texts, others = ([text for text, _ in rows_of(key)][:1000] for key in (name, other))
        alone = scores(f"{name} company", texts)
        beside = scores.together({f"{other} company": others, f"{name} company": texts})[1]
        yield f"| {name} | {shown(alone)} | {shown(beside)} | {alone.content_hash == beside.content_hash} |"


def copies(scores: Scores, seeds: int) -> Iterator[str]:
    """1,500 documents of which ever fewer are different."""
    yield "| corpus | 1,500 | 750 twice | 50 thirty times | 750 twice lower? | 50 thirty times lower? |"
    yield "|---|---|---|---|---|---|"
    for name in SETS:
        texts = [text for text, _ in rows_of(name)]
        if len(texts) >= 1500:
            scorecards = [scores(f"{name} {n} times {1500 // n}", texts[:n] * (1500 // n)) for n in (1500, 750, 50)]
            differences = [compare(scorecards[0], scorecard) for scorecard in scorecards[1:]]
            verdicts = [
                {"a": "yes", "b": "NO"}.get(difference.higher or "", f"undecided, {difference.ratio:.2f}")
                for difference in differences
            ]
            yield f"| {name} | {' | '.join(map(shown, scorecards))} | {' | '.join(verdicts)} |"


def length(scores: Scores, seeds: int) -> Iterator[str]:
    """The same population cut to 20, 50, 100 and 200 words, other documents of it at each length."""
    yield "| corpus | 20 words | 50 | 100 | 200 | decided, same documents | decided, other documents |"
    yield "|---|---|---|---|---|---:|---:|"
    lengths = (20, 50, 100, 200)
    for name in SETS:
        texts = [text for text, _ in rows_of(name)]
        if np.mean([len(text.split()) >= 50 for text in texts[:500]]) < 0.5:
            continue
        same: list[bool] = []
        other: list[bool] = []
        for seed in range(seeds):
            drawn = random.Random(seed).sample(texts, min(len(texts), 1000))
            half = len(drawn) // 2
            scorecards, others = (
                [
                    scores(f"{name} {which} {cut} {seed}", [first_words(t, cut) for t in part], groupings=500)
                    for cut in lengths
                ]
                for which, part in (("same", drawn[:half]), ("other", drawn[half:]))
            )
            same += [compare(a, b).decided for a, b in itertools.combinations(scorecards, 2)]
            other += [compare(a, b).decided for a, b in itertools.product(scorecards, others)]
        if not seeds:
            continue
        cells = " | ".join(map(shown, scorecards))
        yield f"| {name} | {cells} | {sum(same)} of {len(same)} | {sum(other)} of {len(other)} |"


def nested_texts(rows: Rows, seed: int) -> dict[int, list[str]]:
    """Texts of 1, 2, 5, 10 and 20 labels, each set of labels within the next, as many texts of each."""
    draw, by_label = random.Random(seed), defaultdict(list)
    for text, label in rows:
        by_label[label].append(text)
    labels = sorted(label for label, texts in by_label.items() if len(texts) >= 60)
    draw.shuffle(labels)
    counts = [count for count in COUNTS if count <= len(labels)]
    total = min(500, *(count * min(len(by_label[label]) for label in labels[:count]) for count in counts))
    nested = {}
    for count in counts:
        parts = [draw.sample(by_label[label], len(by_label[label])) for label in labels[:count]]
        nested[count] = [parts[n % count][n // count] for n in range(total)]
    return nested


def same_label_auc(rows: Rows, words: int) -> float:
    """Probability that two texts of one label are more alike than two of different ones."""
    texts, labels = [text for text, _ in rows[:1500]], np.array([label for _, label in rows[:1500]])
    vectors = default_ruler().embed(texts, words)
    upper = np.triu_indices(len(texts), 1)
    similar, same = (vectors @ vectors.T)[upper], (labels[:, None] == labels)[upper]
    apart = np.sort(similar[~same])
    return float((np.searchsorted(apart, similar[same]) / len(apart)).mean())


def nested(scores: Scores, seeds: int) -> Iterator[str]:
    """Subsets of ever more labels at one size."""
    header = " | ".join(map(str, COUNTS))
    yield f"| corpus | words | D | AUC | {header} | right | wrong | undecided | 2 from 20 | 10 from 20 |"
    yield f"|---|---:|---:|---:|{'---:|' * len(COUNTS)}---:|---:|---:|---:|---:|"
    sums = {True: [0, 0, 0], False: [0, 0, 0]}
    for name in SETS:
        rows, decisions, told, read = rows_of(name), [0, 0, 0], defaultdict(list), defaultdict(list)
        for seed in range(seeds):
            texts = nested_texts(rows, seed)
            scorecards = {n: scores(f"{name} nested {n} {seed}", part, groupings=500) for n, part in texts.items()}
            for count, scorecard in scorecards.items():
                read[count].append(scorecard.effective_clusters.value)
            for few, many in itertools.combinations(scorecards, 2):
                higher = compare(scorecards[few], scorecards[many]).higher
                decisions["ba".find(higher) if higher else 2] += 1
                told[few, many].append(higher == "b")
        sums[name in TUNED] = [a + b for a, b in zip(sums[name in TUNED], decisions, strict=True)]
        words, documents = scorecards[1].reading_words or 0, len(texts[1])
        cells = [f"{np.exp(np.mean(np.log(read[count]))):.3g}" if read[count] else "" for count in COUNTS]
        ratios = [f"{sum(told[pair])} of {len(told[pair])}" if told[pair] else "" for pair in ((2, 20), (10, 20))]
        auc = f"{same_label_auc(rows, words):.2f}"
        yield f"| {name} | {words} | {documents} | {auc} | {' | '.join([*cells, *map(str, decisions), *ratios])} |"
    for tuned, which in ((True, "first eight"), (False, "others")):
        right, wrong, undecided = sums[tuned]
        yield f"{which}: {right} right, {wrong} wrong ({wrong / sum(sums[tuned]):.1%}), {undecided} undecided"


def halves(scores: Scores, seeds: int) -> Iterator[str]:
    """Two random halves of one corpus, by all pairs of the documents: what groupings add to the error is left out."""
    yield "| documents of a half | corpora | decided |"
    yield "|---:|---:|---:|"
    for documents in (200, 700):
        decided: list[bool] = []
        corpora = 0
        for name in SETS:
            texts = [text for text, _ in rows_of(name)][:6000]
            if len(texts) < 2 * documents or "classes" in name:  # the same texts as the question types
                continue
            words, corpora = default_ruler().reading_length(texts[:2000]), corpora + 1
            vectors, threshold = default_ruler().embed(texts, words), default_ruler().thresholds[words]
            for seed in range(15 * seeds):
                order = np.random.default_rng(seed).permutation(len(texts))[: 2 * documents]
                a, b = (_log_collision(vectors[half], threshold) for half in (order[:documents], order[documents:]))
                decided.append(abs(a[0] - b[0]) > 1.96 * np.sqrt(a[1] + b[1]))
        yield f"| {documents} | {corpora} | {sum(decided)} of {len(decided)} ({np.mean(decided):.1%}) |"


def _log_collision(vectors: np.ndarray, threshold: float) -> tuple[float, float]:
    """Logarithm of the share of alike pairs, and the variance that the documents' sampling gives it."""
    alike, count = vectors @ vectors.T > threshold, len(vectors)
    degrees = alike.sum(axis=1) - 1.0
    theta = degrees.mean() / (count - 1)
    theta3 = (degrees * (degrees - 1)).mean() / ((count - 1) * (count - 2))
    variance = 4 * max(theta3 - theta**2, 0) / count + 2 * theta * (1 - theta) / (count * (count - 1))
    return float(np.log(theta)), float(variance / theta**2)


TABLES: dict[str, Callable[[Scores, int], Iterator[str]]] = {
    table.__name__: table for table in (size, company, copies, length, nested, halves)
}


def main() -> None:
    """Prints the tables that are named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="+", choices=["thresholds", *TABLES])
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--results", type=Path, default=Path("ruler_demands.jsonl"))
    flags = parser.parse_args()
    for name in flags.tables:
        print(f"\n## {name}", flush=True)
        if name == "thresholds":
            print(tuple(measured_thresholds(default_ruler().read, "shipped").values()))
            continue
        for line in TABLES[name](Scores(flags.results), flags.seeds):
            print(line, flush=True)


if __name__ == "__main__":
    main()
