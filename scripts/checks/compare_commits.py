"""CPU seconds of whole commands under two checkouts of this project, side by side in one run.

    git worktree add /tmp/before COMMIT
    python scripts/checks/compare_commits.py --base /tmp/before --new . --repeats 3
    python scripts/checks/compare_commits.py --base /tmp/before --new . --cases score,prepare --repeats 5

Each command runs as users start it, in a fresh folder, with PYTHONPATH set to one checkout or the other. The two take
turns (base, new, base, new, ...), so that a busy machine slows both. Counted is user plus system time of the command
and all processes it waits for; the least of the repeats is shown. Compiled programs are cached between the repeats of
one side, so that only the first repeat compiles.

Cases: `quickstart` (demo text, then `train` on `configs/quickstart.py`), `score` (the offline judge), `prepare` (one
component, near copies left out), `evaluate` (four-way questions and held-out rows, on a model that base trains
beforehand). The text is English prose of the installed packages, drawn once by base's code with a fixed seed. The last
column tells whether both sides gave the same result.
"""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
import hashlib
import json
import os
from pathlib import Path
import random
import shutil
import subprocess
import sys
import tempfile

SIDES = ("base", "new")
_DRAW = """
import json, sys
from diversity_jax.corpus import CorpusConfig, open_corpus
counts = {name: int(count) for name, _, count in (word.partition("=") for word in sys.argv[1:])}
most = max(counts.values())
corpus = open_corpus(CorpusConfig(source="installed_docs:prose", max_documents=most + most // 2))
documents = corpus.sample(most, seed=0)
for name, count in counts.items():
    with open(f"{name}.jsonl", "w", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": document.text}) + "\\n" for document in documents[:count])
"""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A case that is timed.

    Attributes:
      commands: command lines after `python -m diversity_jax.`, run one after the other in the same folder; `{configs}`
        stands for the checkout's folder of configurations, `{shared}` for that of documents, items and the model.
      result: what came out, as text, given the folder that the commands ran in.
    """

    commands: tuple[tuple[str, ...], ...]
    result: Callable[[Path], str]


def cases(options: argparse.Namespace) -> dict[str, Case]:
    """All cases by name."""
    quick = ("{configs}/quickstart.py", f"--config.train.steps={options.steps}")
    return {
        "quickstart": Case(
            commands=(
                ("generate", "--config", "{configs}/quickstart_text.py"),
                ("train", "--config", *quick, "--config.output_dir=runs/quickstart"),
            ),
            result=_last_loss,
        ),
        "score": Case(
            commands=(
                (
                    *("score", "--config", "{configs}/score.py", "--config.corpus={shared}/score.jsonl"),
                    "--config.output_dir=score",
                ),
            ),
            result=lambda folder: str(_read(folder / "score" / "scorecard.json")["effective_clusters"]),
        ),
        "prepare": Case(
            commands=(
                (
                    *("mixtures.prepare", "--config", "{configs}/prepare.py", "--config.output_dir=component"),
                    "--config.corpus.source={shared}/prepare.jsonl",
                ),
            ),
            result=_rows,
        ),
        "evaluate": Case(
            commands=(
                (
                    *("evaluate", "--config", "{configs}/evaluate_paper.py", "--config.output_dir=evaluation"),
                    *("--config.model.checkpoint={shared}/model", "--config.data_dir={shared}/benchmarks"),
                    *("--config.tasks=hellaswag", "--config.held_out=True"),
                ),
            ),
            result=_outcomes,
        ),
    }


def _read(path: Path):
    return json.loads(path.read_text())


def _last_loss(folder: Path) -> str:
    lines = (folder / "runs" / "quickstart" / "metrics.jsonl").read_text().splitlines()
    return f"held-out loss {[row['eval/loss'] for row in map(json.loads, lines) if 'eval/loss' in row][-1]:.4f}"


def _rows(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted((folder / "component").glob("*.bin")):
        digest.update(path.read_bytes())
    return f"rows {digest.hexdigest()[:12]}"


def _outcomes(folder: Path) -> str:
    measured = _read(folder / "evaluation" / "results.json")
    accuracy = measured["tasks"]["hellaswag"]["metrics"]["acc_norm"]["value"]
    losses = ", ".join(f"{loss['nats_per_token']:.4f}" for loss in measured["held_out"].values())
    return f"accuracy {accuracy:.4f}, held-out loss {losses}"


class Bench:
    """Runs commands under either checkout.

    Args:
      folder: for everything that is written.
      checkouts: by side.
    """

    def __init__(self, folder: Path, checkouts: Mapping[str, Path]):
        self.folder, self.checkouts = folder, checkouts
        self.shared = folder / "shared"
        self.shared.mkdir()

    def python(self, side: str, words: list[str], folder: Path) -> float:
        """CPU seconds of one Python process and the processes it waited for; stops this script if it fails."""
        environment = {
            **os.environ,
            "PYTHONPATH": str(self.checkouts[side]),
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": str(self.folder / f"programs-{side}"),
            "XDG_CACHE_HOME": str(self.folder / f"cache-{side}"),
        }
        log = self.folder / "log.txt"
        with log.open("w") as file:
            process = subprocess.Popen([sys.executable, *words], cwd=folder, env=environment, stdout=file, stderr=file)
            _, status, used = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            sys.exit(f"{side}: {' '.join(words)}\n{log.read_text()[-5000:]}")
        return used.ru_utime + used.ru_stime

    def module(self, side: str, words: tuple[str, ...], folder: Path) -> float:
        """CPU seconds of one of the package's modules."""
        paths = {"configs": self.checkouts[side] / "configs", "shared": self.shared}
        name, *rest = (word.format(**paths) for word in words)
        return self.python(side, ["-m", f"diversity_jax.{name}", *rest], folder)

    def time(self, case: Case, side: str) -> tuple[float, str]:
        """CPU seconds of a case in a fresh folder, and its result."""
        folder = self.folder / "work"
        folder.mkdir()
        try:
            seconds = sum(self.module(side, words, folder) for words in case.commands)
            return seconds, case.result(folder)
        finally:
            shutil.rmtree(folder)


def write_shared(bench: Bench, options: argparse.Namespace, chosen: list[str]) -> None:
    """Documents, and for `evaluate` a model of 1.1 million parameters and questions."""
    counts = {"score": options.documents, "prepare": options.prepare_documents, "evaluate": 10 * options.items}
    wanted = [f"{name}={count}" for name, count in counts.items() if name in chosen]
    if wanted:
        bench.python("base", ["-c", _DRAW, *wanted], bench.shared)
    if "evaluate" not in chosen:
        return
    texts = [json.loads(line)["text"] for line in (bench.shared / "evaluate.jsonl").read_text().splitlines()]
    write_questions(bench.shared / "benchmarks", texts, options.items)
    words = (
        *("train", "--config", "{configs}/llama_tiny.py", "--config.output_dir=model", "--config.train.steps=20"),
        *("--config.mixture.components[0].corpus.source={shared}/evaluate.jsonl", "--config.mixture.vocabulary=bytes"),
        *("--config.model.vocab_size=384", "--config.train.tensorboard=False", "--config.train.sample_prompts=()"),
    )
    bench.module("base", words, bench.shared)


def write_questions(folder: Path, texts: list[str], items: int) -> None:
    """Questions in HellaSwag's form: which of four passages continues a document's beginning."""
    draw, parts = random.Random(0), [text.split() for text in texts]
    parts = [words for words in parts if len(words) >= 40]
    folder.mkdir()
    with (folder / "hellaswag_validation.jsonl").open("w", encoding="utf-8") as file:
        for number in range(min(items, len(parts))):
            others = draw.sample([other for other in range(len(parts)) if other != number], 3)
            label = draw.randrange(4)
            order = [*others[:label], number, *others[label:]]
            endings = [" ".join(parts[other][24:40]) for other in order]
            beginning = " ".join(parts[number][:24])
            item = {"activity_label": "Text", "ctx_a": beginning, "ctx_b": "", "endings": endings, "label": label}
            file.write(json.dumps(item) + "\n")


def compare(bench: Bench, name: str, case: Case, repeats: int) -> dict:
    """Times a case on both sides in turn and prints its line."""
    seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    results: dict[str, str] = {}
    for _ in range(repeats):
        for side in SIDES:
            used, results[side] = bench.time(case, side)
            seconds[side].append(used)
    least = {side: min(measured) for side, measured in seconds.items()}
    output = "same" if results["base"] == results["new"] else f"differs: {results['base']} | {results['new']}"
    ratio = least["new"] / least["base"]
    print(f"{name:<12} {least['base']:>8.2f} {least['new']:>8.2f} {ratio:>7.3f}  {output}", flush=True)
    return {"seconds": seconds, "ratio": ratio, "results": results}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--base", type=Path, required=True, help="the checkout that is compared with")
    parser.add_argument("--new", type=Path, required=True, help="the checkout in question")
    parser.add_argument("--cases", default="quickstart,score,prepare,evaluate", help="joined by commas")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each side; the first one compiles")
    parser.add_argument("--steps", type=int, default=60, help="training steps of the quickstart, which itself does 300")
    parser.add_argument("--documents", type=int, default=2000, help="that are scored")
    parser.add_argument("--prepare-documents", type=int, default=12_000)
    parser.add_argument("--items", type=int, default=100, help="questions of the evaluation")
    parser.add_argument("--json", type=Path, help="a file for every measured figure")
    return parser.parse_args()


def main() -> None:
    """Times all cases asked for."""
    options = _options()
    known, chosen = cases(options), options.cases.split(",")
    if unknown := set(chosen) - set(known):
        sys.exit(f"--cases: {', '.join(sorted(unknown))} is unknown; choose among {', '.join(known)}")
    checkouts = {"base": options.base.resolve(), "new": options.new.resolve()}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder).resolve(), checkouts)
        write_shared(bench, options, chosen)
        print(f"least CPU seconds of {options.repeats} runs of each side, base {options.base}, new {options.new}")
        print(f"{'case':<12} {'base':>8} {'new':>8} {'new/base':>8}  result", flush=True)
        measured = {name: compare(bench, name, known[name], options.repeats) for name in chosen}
    if options.json:
        options.json.write_text(json.dumps(measured, indent=1) + "\n")


if __name__ == "__main__":
    main()
