"""The tables of docs/study.md for a finished study: slopes, rank correlations, effects of factors, and times of its
steps.

    python scripts/checks/study_outcomes.py runs/studies/tiny
"""

from collections import defaultdict
from pathlib import Path
import sys

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from diversity_jax.core.files import read_json  # noqa: E402


def interval(item: dict, digits: int) -> str:
    """A value with its 95 % interval."""
    if item.get("low") is None or item.get("high") is None:
        return "not computed"
    value, low, high = (f"{item[name]:.{digits}f}".replace("-", "\u2212") for name in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


def relations(results: dict) -> None:
    """Each outcome over each diversity figure."""
    print(
        "| stage | outcome | figure | slope over its logarithm (95 %) | Spearman (95 %) | n "
        "|\n|---|---|---|---:|---:|---:|"
    )
    for item in results["relations"]:
        if "x" in item:
            gradient = interval(item["log_line"].get("slope", {}), 4)
            low, high = min(item["y"]), max(item["y"])
            name = f"{item['outcome']} ({low:.3g} to {high:.3g})"
            print(
                f"| {item['stage']} | {name} | {item['predictor']} | {gradient} | {interval(item['spearman'], 2)} | "
                f"{len(item['recipes'])} |"
            )


def factors(results: dict) -> None:
    """Terms with p below 0.05, and the means at their levels."""
    for item in results["effects"]:
        for term in item.get("terms", ()):
            if term["p"] is not None and term["p"] < 0.05:
                means = ", ".join(
                    f"{level['name']} {level['value']:.4g}" for level in item["levels"].get(term["name"], ())
                )
                share = f"{100 * term['share']:.0f} % of variance"
                print(f"{item['stage']} {item['outcome']}: {term['name']} p = {term['p']:.2g}, {share}; {means}")


def took(folder: Path) -> None:
    """Time of the steps by kind, from their records."""
    seconds: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for path in folder.glob("steps/*/done.json"):
        record = read_json(path)
        seconds[record["kind"]].append((record["seconds"], record["cpu_seconds"]))
    print("\n| step | number | seconds, added up | CPU seconds |\n|---|---:|---:|---:|")
    for kind, item in seconds.items():
        print(f"| {kind} | {len(item)} | {sum(wall for wall, _ in item):.0f} | {sum(cpu for _, cpu in item):.0f} |")


if __name__ == "__main__":
    if len(sys.argv) != 2 or not (Path(sys.argv[1]) / "analysis.json").exists():
        sys.exit(__doc__)
    study = read_json(Path(sys.argv[1]) / "analysis.json")
    relations(study)
    print()
    factors(study)
    took(Path(sys.argv[1]))
