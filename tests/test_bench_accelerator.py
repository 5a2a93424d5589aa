"""The accelerator's benchmark needs few files and no TensorFlow, and holds what it measured against its goals."""

import importlib.util
from pathlib import Path
import shutil
import subprocess
import sys

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def bench():
    specification = importlib.util.spec_from_file_location(
        "bench_accelerator", ROOT / "scripts" / "benchmarks" / "bench_accelerator.py"
    )
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_its_list_of_files_is_all_it_needs_and_has_no_tensorflow(tmp_path):
    def listed(folder):
        hide = "import sys; sys.modules.update(dict.fromkeys(['tensorflow', 'seqio', 'ml_collections', 'clu']))"
        run = (
            f"{hide}; sys.argv = ['bench', '--files']; import runpy; "
            "runpy.run_path('scripts/benchmarks/bench_accelerator.py', run_name='__main__')"
        )
        command = [
            sys.executable,
            "-S",
            "-c",
            f"import sys; sys.path[:0] = {[p for p in sys.path if 'site-packages' in p]}; {run}",
        ]
        return subprocess.run(
            command, cwd=folder, capture_output=True, text=True, check=True, timeout=120
        ).stdout.split()

    files = listed(ROOT)
    assert "diversity_jax/training/step.py" in files
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    assert listed(tmp_path) == files


def test_shares_of_the_peak_and_goals_come_from_the_fastest_tenth(bench):
    speed = (
        0.55 * 989e12 / 2.8053e9
    )  # tokens/s of 350M at an MFU of 55 %: 6 x 357.9M matrix parameters + 12 x 28 x 960 x 2048 FLOPs
    contestants = {
        name: {
            "tokens_per_second": {"fastest_tenth": rate, "median": rate},
            "peak_bytes": None,
            "first_losses": [11.0, 10.9, 10.8, 10.7],
        }
        for name, rate in {
            "diversity_jax": speed,
            "torch_llama_step --compile": speed / 1.05,
            "jax_llama_step": speed,
        }.items()
    }
    limits = {"device": "NVIDIA H200", "jax": "0", "peak": 989e12, "ceiling": 800e12, "products": {8192: 800e12}}
    found = bench.rows("350m", {"shape": bench.MODELS["350m"], "contestants": contestants}, limits)
    assert found[0]["mfu"] == pytest.approx(0.55, rel=0.01)
    assert found[0]["mfu_causal"] < found[0]["mfu"] < found[0]["of_ceiling"]
    verdicts = bench.goals(found)
    assert [verdict.rsplit(": ", 1)[1] for verdict in verdicts] == ["reached", "reached", "MISSED", "reached"]
    text = bench.table(limits, found, ["1p4b"])
    assert "- not measured: 1p4b" in text
    assert len({line.count("|") for line in text.splitlines() if line.startswith("|")}) == 1
