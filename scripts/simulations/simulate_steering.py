#!/usr/bin/env python
"""Gain from steering generation and rate of its wrong stops, on generators whose diversity is known.

    python scripts/simulations/simulate_steering.py --seeds=20
    python scripts/simulations/simulate_steering.py --null_runs=400

1. Six arms, one of them rich: effective clusters per dollar of the steered run over those of even spending of the same
   dollars.
2. Prices: the richest arm costs most, and a plainer one pays better a dollar.
3. Wrong stops: arms whose true gain lies a little ABOVE the setting when they are looked at; a stop is then wrong.
4. The paper's shape: topics, generations per topic, styles, personas.
"""

import argparse
import math
from pathlib import Path
import sys

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from diversity_jax.synthesis.config import SteeringConfig
from diversity_jax.synthesis.steering import effective_clusters
from tests.simulated_steering import SimulatedArm, SimulatedWriter, arm_over, simulate, true_gain


def one_rich_arm(seed: int) -> list[SimulatedArm]:
    """Five arms over 8 to 12 clusters of their own and one over 400; the order is drawn."""
    draw = np.random.default_rng(seed + 1000)
    arms = [
        arm_over(f"poor {n}", np.arange(20 * n, 20 * n + 8 + n), exponent=float(draw.uniform(0.2, 0.8)))
        for n in range(5)
    ]
    arms.append(arm_over("rich", np.arange(1000, 1400), exponent=float(draw.uniform(0.0, 0.3))))
    return [arms[position] for position in draw.permutation(len(arms))]


def dear_and_cheap(seed: int) -> list[SimulatedArm]:
    """Arms over 400 clusters at 10 cents a document and over 200 others at half a cent, and three poor arms."""
    arms = [arm_over(f"poor {n}", np.arange(20 * n, 20 * n + 10), exponent=0.5) for n in range(3)]
    arms += [
        arm_over("dear", np.arange(1000, 1400), dollars=0.1),
        arm_over("cheap", np.arange(2000, 2200), dollars=0.005),
    ]
    return [arms[position] for position in np.random.default_rng(seed).permutation(len(arms))]


def against_even(name: str, arms_of, best: str, seeds: int, dollars: float) -> None:
    """Prints ratios over seeds, and how often the best arm got most."""
    config = SteeringConfig(arms=("style",), min_gain_per_dollar=0.5)
    ratios, wins, wrong, ended = [], 0, 0, []
    for seed in range(seeds):
        arms = arms_of(seed)
        steered = simulate(arms, config, dollars=dollars, round_dollars=dollars / 15, seed=seed)
        even = simulate(arms, config, dollars=dollars, round_dollars=dollars / 15, seed=seed, steered=False)
        ratios.append(steered.clusters_per_dollar / even.clusters_per_dollar)
        wins += max(steered.documents, key=steered.documents.get) == best
        wrong += len(steered.wrong_stops)
        ended.append(steered.dollars / dollars)
    spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
    print(
        f"{name:16} effective clusters per dollar over even spending: mean {np.mean(ratios):.2f} ({spread}) over "
        f"{seeds} seeds"
    )
    print(
        f"{'':16} best arm got most documents in {wins} of {seeds}; wrong stops {wrong}; dollars spent "
        f"{np.mean(ended):.0%} of the cap"
    )


def wrong_stops(runs: int, above: float, alpha: float = 0.05) -> None:
    """Prints how often a run stops any arm whose gain is really above the setting.

    Four equal arms over the same 60 clusters; the setting is a little below the gain that they truly have after eight
    rounds, so that every later look is at arms near it, and nothing but chance can stop them until then.
    """
    arms = [arm_over(f"arm {n}", np.arange(60), exponent=0.3) for n in range(4)]
    off = SteeringConfig(arms=("style",), min_gain_per_dollar=-1e9, alpha=alpha)
    probe = simulate(arms, off, dollars=8.0, round_dollars=1.0, seed=12345)
    setting = true_gain(arms[0], probe.labels, 25) / above
    config = SteeringConfig(arms=("style",), min_gain_per_dollar=setting, alpha=alpha)
    bad = sum(
        bool(simulate(arms, config, dollars=20.0, round_dollars=1.0, seed=seed).wrong_stops) for seed in range(runs)
    )
    error = math.sqrt(max(bad, 1)) / runs
    print(f"gain {above:.2f}x the setting after 8 of 20 rounds: any wrong stop in {bad} of {runs} runs = "
          f"{bad / runs:.1%} "
          f"(+-{error:.1%}), stated {alpha:.0%}")  # fmt: skip


def shape() -> None:
    """Prints effective clusters by topics and generations per topic, for each template."""
    writer = SimulatedWriter()
    generations = (1, 3, 10, 20, 30)
    print(f"{'effective clusters':30}{'topics':>8}" + "".join(f"{f'G={number}':>8}" for number in generations))
    for template in ("topic", "topic_styles", "topic_styles_persona", "multi_topic_styles_persona"):
        for topics in (100, 300):
            effective = (effective_clusters(writer.write(template, topics, number, seed=0)) for number in generations)
            print(f"{template:30}{topics:8}" + "".join(f"{value:8.0f}" for value in effective))


def main():
    """Runs all four."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--null_runs", type=int, default=200)
    flags = parser.parse_args()
    against_even("one rich arm", one_rich_arm, "rich", flags.seeds, 30.0)
    against_even("dear and cheap", dear_and_cheap, "cheap", flags.seeds, 30.0)
    for above in (1.02, 1.2):
        wrong_stops(flags.null_runs, above)
    shape()


if __name__ == "__main__":
    main()
