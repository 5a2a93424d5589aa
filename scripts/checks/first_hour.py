"""Runs a new user's first thirty commands, which must work, and thirty wrong ones, each of which must end in one line.

    python scripts/checks/first_hour.py FOLDER [--only wrong]

Runs in FOLDER, with small text files that it writes there. Prints each command with its CPU seconds and last line, and
at the end what failed; status 1 where anything did.
"""

import json
from pathlib import Path
import shlex
import subprocess
import sys

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from scripts.child_times import ChildTimes

WORDS = ("ferry tide sailor", "court bank tax", "bee clover spring")
WORDS += ("baker dough oven", "engine brake oil", "aria violin hall")
STEPS = """--help
score --help
score --help agent.
train --help train.
help evaluate
--version
completion bash
score a.jsonl -n 100 -o s1
score a.jsonl b.jsonl -n 100 -o s2
score a.jsonl -n 100 -o s1
score texts -n 50 --output-dir s3
score a.jsonl -n 50 --dry-run
score a.jsonl --judge openai:gpt-5-mini --dry-run
measure a.jsonl b.jsonl --baseline.draws 3 -m lexical -o m1
measure a.jsonl -m mtld,vendi --baseline.draws 3 -o m2
prepare a.jsonl -o p1 -l 64
build mixtures/small --mixture.components[0].corpus.max_documents 300 -n 100 -o x1
show x1
show x1 --rows 500 --samples 1
export --mixture x1 --to parquet --output_dir e1
train a.jsonl -s 20 -o t1
train a.jsonl -s 20 -o t1
train quickstart --prepared x1 --mixture none --train.steps 5 -o t2
generate-text t1 "The "
generate-text t1 "The " -n 8 --temperature 0.8 --samples 2
generate-text t1 --prompts-file prompts.txt -o answers.jsonl
convert export t1 hf1
evaluate --help model.
compile --help
study studies/smoke --dry-run
tokenizer --vocab-size 400 --sample-characters 200000 -o tok.model""".splitlines()
WRONG = """scor a.jsonl
score nowhere.jsonl
score a.jsonl --judge offlne
score a.jsonl --judge openai
score a.txt -o w0
score a.jsonl --groupings 10
score a.jsonl --agent.groupngs 10
score a.jsonl --agent.groupings ten
score a.jsonl --agent.groupings 0
score a.jsonl --output-dir
score a.jsonl -x
score b.jsonl -o s1
score broken.jsonl -o w1
score empty.jsonl -o w2
score a.jsonl --text-field body -o w3
score s1 -o w4
score a.jsonl --help agnt.
measure a.jsonl -m mtdl
measure a.jsonl -m perplexity
audit a.jsonl --judge oracle
train
train nowhere.jsonl
train quickstart --train.stps 3
train score
train t1/report.html
evaluate s1
evaluate
generate-text s1 hello
generate-text t1 "The " --top-p 2
serve x1
show s1
convert export s1 w5
compile llama_7b --topology v9:1
build a.jsonl
study studies/tiny --seed 3
completion tcsh""".splitlines()


def prepare(folder: Path) -> None:
    """Small files of text, good and bad."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, words in (("a", WORDS), ("b", WORDS[:2])):
        lines = [f"On day {day} the {word} came by, number {day * 7 % 11}." for day in range(60) for word in words]
        (folder / f"{name}.jsonl").write_text("\n".join(json.dumps({"text": line}) for line in lines))
    (folder / "a.txt").write_text("\n".join(f"A line about the {word}." for word in WORDS * 20))
    (folder / "texts").mkdir(exist_ok=True)
    for number, word in enumerate(WORDS * 4):
        (folder / "texts" / f"{number}.txt").write_text(f"Page {number} is about the {word}.")
    (folder / "prompts.txt").write_text("The \nOn day ")
    (folder / "broken.jsonl").write_text('{"text": "one"}\n{"text": \n')
    (folder / "empty.jsonl").write_text("")


def run(line: str, folder: Path) -> tuple[int, str, str, float]:
    """Status, standard output, standard error and CPU seconds of one command."""
    command = [sys.executable, "-m", "diversity_jax", *shlex.split(line)]
    with ChildTimes() as times:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=900)
    return done.returncode, done.stdout, done.stderr, times.cpu_seconds


def main() -> int:
    """Runs all steps."""
    folder, failed = Path(sys.argv[1]), []
    prepare(folder)
    for line in [] if "wrong" in sys.argv else STEPS:
        status, out, err, seconds = run(line, folder)
        last = (out.strip() or err.strip() or "(nothing)").splitlines()[-1]
        print(f"{'ok  ' if status == 0 else 'FAIL'} {seconds:6.1f} s  {line}\n              {last[:150]}", flush=True)
        failed += [line] if status else []
    for line in WRONG:
        status, out, err, seconds = run(line, folder)
        errors = [each for each in err.splitlines() if each.startswith("error: ")]
        good = status == 2 and (len(errors) == 1 or out.startswith("usage")) and "Traceback" not in err
        shown = (errors or [err or out])[-1][:190]
        print(f"{'ok  ' if good else 'FAIL'} {seconds:6.1f} s  {line}\n              {shown}", flush=True)
        failed += [] if good else [line]
    print(f"{len(failed)} failed: {failed}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
