"""Forecasts of the compute and cost of the paper's grids at each model size, from their configurations: docs/study.md's
table.

    python scripts/checks/plan_studies.py
"""

from pathlib import Path
import sys

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from diversity_jax.core import config  # noqa: E402
from diversity_jax.study.config import StudyConfig, plan  # noqa: E402
from diversity_jax.study.cost_forecast import StepCosts, costs_by_kind  # noqa: E402
from diversity_jax.study.graph import StepStore  # noqa: E402

TRAINED = ("topics_by_generations", "templates", "generators", "ratio")
SIZES = ("350M", "1.4B", "7B")
HEAD = (
    "| study, model | steps | models trained | tokens, fine-tuning too | FLOPs | {} | generator calls | judge "
    "calls | dollars |"
)


def row(name: str, only: str, title: str) -> tuple[str, list[str]]:
    """One study's line, and the names of the machines that hours are counted for."""
    words = ["--config", str(ROOT / f"configs/studies/{name}.py"), *([f"--config.only={only}"] if only else [])]
    study = config.parse(words, StudyConfig)
    store = StepStore(ROOT / "no such folder")
    results = costs_by_kind(study, plan(study, store).steps, store)
    parts = {kind: results.get(kind, StepCosts()) for kind in ("generate", "score", "train", "sft")}
    flops = parts["train"].flops + parts["sft"].flops
    hours = [_hours(machine.hours(flops)) if flops else "" for machine in study.assumed.machines]
    tokens = (parts["train"].tokens + parts["sft"].tokens) / 1e9
    dollars = sum(need.llm.dollars for need in results.values())
    unpriced = "".join(f" + {model.split(':')[1]}" for need in results.values() for model in need.unpriced)
    cells = [
        title,
        str(sum(need.steps for need in results.values())),
        str(parts["train"].steps),
        f"{tokens:,.0f} B" if tokens else "",
        f"{flops:.2g}" if flops else "",
        *hours,
        f"{parts['generate'].llm.calls:,.0f}" if parts["generate"].llm.calls else "",
        f"{parts['score'].llm.calls:,.0f}",
        f"{dollars:,.0f}{unpriced}",
    ]
    return f"| {' | '.join(cells)} |", [machine.name for machine in study.assumed.machines]


def _hours(amount: float) -> str:
    return f"{amount:,.0f} h" if amount >= 20 else f"{amount:.1f} h"


def main() -> None:
    """Prints the table."""
    lines = [row(name, f"model={size}", f"{name}, {size}") for name in TRAINED for size in SIZES]
    lines.append(row("agent", "", "agent"))
    names = lines[0][1]
    print(HEAD.format(" | ".join(names)))
    print("|---|" + "---:|" * (7 + len(names)))
    print("\n".join(line for line, _ in lines))


if __name__ == "__main__":
    main()
