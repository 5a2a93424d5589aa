"""The examples of CONTRIBUTING.md work as they are written there."""

import json
import os
from pathlib import Path
import re
import subprocess
import sys

import pytest

ROOT = Path(__file__).resolve().parents[1]
SECTIONS = {
    "Add a metric": ("diversity_jax.metrics.lexical", ["configs/metrics.py", "--config.metrics=longest_document"]),
    "Add a judge": ("diversity_jax.cluster_agent.registry", ["configs/score.py", "--config.judge=headlines"]),
    "Add a source of text": ("diversity_jax.corpus.sources", ["configs/score.py"]),
}


@pytest.fixture
def corpus(tmp_path):
    """Thirty short documents of three subjects, as JSON Lines and as reStructuredText files."""
    subjects = (
        "The tide leaves shells on the sand",
        "A baker folds the dough twice",
        "Rails cool under the night train",
    )
    texts = [f"{subject}, and note {number} says why." for number in range(10) for subject in subjects]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (tmp_path / "rst").mkdir()
    for number, text in enumerate(texts):
        (tmp_path / "rst" / f"{number}.rst").write_text(text)
    return tmp_path


@pytest.mark.parametrize("title", SECTIONS)
def test_an_example_works_as_it_is_written(title, corpus):
    section = (ROOT / "CONTRIBUTING.md").read_text().split(f"## {title}\n")[1].split("\n## ")[0]
    code = re.search(r"```python\n(.*?)```", section, re.DOTALL)[1]
    module, (config, *words) = SECTIONS[title]
    source = corpus / "rst" / "*.rst" if title == "Add a source of text" else corpus / "texts.jsonl"
    arguments = ["--config", config, *words, f"--config.corpus={source}", f"--config.output_dir={corpus / 'out'}"]
    if config == "configs/score.py":
        arguments += ["--config.agent.groupings=20", "--config.agent.criteria_sets=2"]
    program = (
        f"import sys, {module} as module\n"
        f"exec(compile({code!r}, 'CONTRIBUTING.md', 'exec'), vars(module))\n"
        "from diversity_jax import score\n"
        "from diversity_jax.core import cli\n"
        "cli.run(score.main, score.ScoreConfig, score.__doc__)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    scorecard = json.loads((corpus / "out" / "scorecard.json").read_text())
    if title == "Add a metric":
        assert scorecard["metrics"]["longest_document"]["value"] >= 10
    elif title == "Add a judge":
        assert scorecard["judge"] == "headlines (no LLM)"
        assert "first 80 characters" in (corpus / "out" / "report.html").read_text()
    else:
        assert scorecard["corpus"]["documents"] == 30
