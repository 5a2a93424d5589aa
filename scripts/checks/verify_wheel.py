"""Builds the wheel, installs it into empty environments, and scores, builds and trains with it from another folder.

    python scripts/checks/verify_wheel.py --python python3.11 --python python3.13
    python scripts/checks/verify_wheel.py --python python3.12 --resolve

Each environment gets the wheel and, without `--resolve`, the versions of requirements.lock; with it the installers
choose them by setup.py's bounds (pip tries hundreds of releases because of google-generativeai; uv takes seconds).
Nothing of this checkout is on the path. Needs uv, and the network. Prints one line a step, and ends with status 1 at
the first that fails.
"""

import argparse
import json
import os
from pathlib import Path
import subprocess
import sys
import tempfile
import time
import zipfile

ROOT = Path(__file__).resolve().parents[2]
_TEXTS = 300
_OWN_TEXT = tuple(f"--config.mixture.components[{number}].corpus.source=texts.jsonl" for number in (0, 1))
_TRAIN = (
    *("--config.train.steps=4", "--config.train.batch_size=4", "--config.train.eval_every=0"),
    *("--config.train.sample_prompts=()", "--config.train.tensorboard=False", "--config.agent.groupings=60"),
)


def run(words: list[str], folder: Path) -> str:
    """Standard output of a command in a folder, with nothing of this checkout on its path; exits if it fails."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environment |= {"JAX_PLATFORMS": "cpu", "XDG_CACHE_HOME": str(folder / "cache")}
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"failed: {' '.join(words)}\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    return done.stdout


def build_wheel(folder: Path) -> Path:
    """The wheel; its metadata and its configurations are looked at."""
    run(["uv", "build", "--quiet", "--wheel", "--out-dir", str(folder), str(ROOT)], folder)
    (wheel,) = folder.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    configs = {f"diversity_jax/{path.relative_to(ROOT)}" for path in (ROOT / "configs").rglob("*.py")}
    if missing := configs - names:
        sys.exit(f"failed: {wheel.name} lacks {', '.join(sorted(missing))}")
    print(f"{wheel.name}: {wheel.stat().st_size / 1e6:.1f} MB, {len(configs)} configurations", flush=True)
    return wheel


def install(python: str, wheel: Path, folder: Path, *, resolve: bool) -> Path:
    """An empty environment with the wheel; its Python."""
    run(["uv", "venv", "--quiet", "--python", python, str(folder / "venv")], folder)
    inside = folder / "venv" / "bin" / "python"
    pip = ["uv", "pip", "install", "--quiet", "--python", str(inside)]
    if resolve:
        run([*pip, f"{wheel}[eval,serve,report]"], folder)
    else:
        run([*pip, "--no-deps", "--require-hashes", "-r", str(ROOT / "requirements.lock")], folder)
        run([*pip, "--no-deps", str(wheel)], folder)
    return inside


def use(python: Path, folder: Path) -> None:
    """Scores, builds, trains and asks for help, in a folder that has no `configs`."""
    path = run([str(python), "-c", "import diversity_jax; print(diversity_jax.__file__)"], folder).strip()
    if not Path(path).is_relative_to(folder):
        sys.exit(f"failed: diversity_jax is that of {path}")
    with (folder / "texts.jsonl").open("w") as file:
        for number in range(_TEXTS):
            words = [f"{word}{number % 7}" for word in ("river", "stone", "music", "engine", "garden", "letter")]
            file.write(json.dumps({"text": f"Number {number} tells of {' and '.join(words)} " * 4}) + "\n")
    module = [str(python), "-m"]
    for words, made in (
        (["score", "--config", "configs/score.py", "--config.corpus=texts.jsonl"], "runs/score/report.html"),
        (["generate", "--config", "configs/quickstart_text.py"], "runs/quickstart/text/few_topics.jsonl.gz"),
        (["mixtures.build", "--config", "configs/mixtures/small.py", *_OWN_TEXT], "runs/mixtures/small/mixture.json"),
        (["train", "--config", "configs/quickstart.py", *_OWN_TEXT, *_TRAIN], "runs/quickstart/report.html"),
    ):
        began = time.monotonic()
        *_, last = ["done", *run([*module, f"diversity_jax.{words[0]}", *words[1:]], folder).splitlines()]
        if made and not (folder / made).exists():
            sys.exit(f"failed: {' '.join(words)} wrote no {made}")
        print(f"  {words[0]}: {last} ({time.monotonic() - began:.0f} s)", flush=True)
    run([str(python.parent / "diversity-jax-lm-eval"), "--help"], folder)
    planned = run([str(python.parent / "diversity-jax"), "study", "studies/smoke", "--dry-run"], folder)
    print(f"  study: {planned.splitlines()[-1]}", flush=True)


def main() -> None:
    """Builds once, and uses the wheel under each Python."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--python", action="append", required=True, help="an interpreter; may be given several times")
    parser.add_argument("--resolve", action="store_true", help="let uv choose versions within setup.py's bounds")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        wheel = build_wheel(Path(folder))
        for number, python in enumerate(options.python):
            scratch = Path(folder, str(number))
            scratch.mkdir()
            print(run([python, "--version"], scratch).strip(), flush=True)
            use(install(python, wheel, scratch, resolve=options.resolve), scratch)


if __name__ == "__main__":
    main()
