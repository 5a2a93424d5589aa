"""Every command block of the README runs as written, in its order, in one folder."""

import json
import os
from pathlib import Path
import re
import subprocess
import sys

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINES = 120
SET_UP = "scripts/quickstart"  # the block that makes the environment these tests run in
SUBJECTS = (
    "a ferry left the harbour",
    "the court fined a bank",
    "bees found the blossom",
    "the baker kneaded dough",
    "the glacier lost its snout",
    "a quartet tuned its strings",
    "the vaccine was approved",
    "the keeper saved a penalty",
)


def test_the_readme_is_short():
    assert len(README.splitlines()) <= LINES


def test_every_block_runs(tmp_path, monkeypatch):
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    for name, subjects in (("a", 8), ("b", 2)):  # the reader's own text
        texts = [f"Report {n}: {SUBJECTS[n % subjects]} before the evening came, as was expected." for n in range(400)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "diversity-jax"
    command.write_text(f'#!/bin/sh\nexec {sys.executable!r} -m diversity_jax "$@"\n')
    command.chmod(0o755)
    compiler = ("XLA_FLAGS", "JAX_DISABLE_MOST_OPTIMIZATIONS")  # users' own, unlike other tests'
    for variable in ("OPENAI_API_KEY", "GEMINI_API_KEY", "GOOGLE_API_KEY", *compiler):
        monkeypatch.delenv(variable, raising=False)
    path = os.pathsep.join([str(command.parent), str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": path, "DIVERSITY_JAX_MIXTURES": "runs/small"}
    blocks = [(kind, text) for kind, text in BLOCK.findall(README) if SET_UP not in text]
    assert len(blocks) >= 5
    for kind, text in blocks:
        program = ["bash", "-euo", "pipefail", "-c", text] if kind == "bash" else [sys.executable, "-c", text]
        ended = subprocess.run(program, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert ended.returncode == 0, f"{text}\n{ended.stdout[-2000:]}\n{ended.stderr[-2000:]}"
    assert (tmp_path / "runs" / "mine" / "report.html").exists()
