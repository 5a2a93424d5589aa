"""A training run's folder as the program writes it, made in under a second from simulated judgements, in the real
formats.
"""

from collections import Counter
import dataclasses
from fractions import Fraction
import json
from pathlib import Path
from typing import Any

import numpy as np

from diversity_jax.cluster_agent import Scorecard, estimators
from diversity_jax.cluster_agent.canaries import ErrorRates
from diversity_jax.cluster_agent.compare import compare
from diversity_jax.core.run_info import RunInfo
from diversity_jax.mixtures.config import GatePolicy
from diversity_jax.mixtures.gate import Decision, Finding
from diversity_jax.mixtures.mixture import Mixture, MixtureComponent
from diversity_jax.prepare.manifest import Manifest, Shard, Split, VocabularyInfo

SAMPLES = 10
SEQUENCE_LENGTH = 128
BATCH = 64
TRUE_CLUSTERS = {"web": 80, "code": 45, "many_topics": 60, "few_topics": 4}
ASKED = {"web": (2, 5), "code": (1, 5), "many_topics": (1, 5), "few_topics": (1, 5)}
_SUBJECTS = (
    "tides and rock pools",
    "tax law for tenants",
    "bread ovens",
    "string quartets",
    "glaciers",
    "beekeeping",
    "railway timetables",
)
HOSTILE = (
    "</p></svg><script>alert(1)</script><img src=http://192.0.2.1/x onerror=alert(2)><style>*{display:none}</style>"
    "\u202e\x00\ud800 &amp; \"' $\\frac{" + "x" * 300
)
_CRITERIA = [
    {
        "metadata": [
            {
                "name": "Subject",
                "definition": "What the text is about",
                "guidance": "Put texts on one subject together.",
            },
            {
                "name": "Purpose",
                "definition": "What the text is for",
                "guidance": "Keep instruction apart from narrative.",
            },
        ],
        "metrics": [
            {
                "name": "Depth",
                "definition": "How much knowledge the text asks of its reader",
                "levels": ["none", "everyday", "school", "university", "research"],
                "guidance": "Split texts whose depth differs by two steps.",
            }
        ],
    }
] * 5


def make_scorecard(
    name: str,
    true_clusters: float,
    *,
    groupings: int = 2000,
    samples: int = SAMPLES,
    seed: int = 0,
    judge: str = "offline (no LLM)",
) -> Scorecard:
    """A scorecard of simulated groupings over equally common clusters, with every derived field by the estimators
    themselves.
    """
    generator = np.random.default_rng([seed, len(name), *name.encode()])
    labels = generator.integers(0, max(1, round(true_clusters)), (groupings, samples))
    sizes = [np.unique(row, return_counts=True)[1] for row in labels]
    series = estimators.Groupings(
        samples_per_grouping=samples,
        criteria_set=np.arange(groupings) % 5,
        clusters=np.array([len(grouping) for grouping in sizes]),
        kept=np.full(groupings, samples),
        pairs=np.array([int((grouping * (grouping - 1) // 2).sum()) for grouping in sizes]),
    )
    collision = estimators.collision(series)
    counted = Counter(int(size) for grouping in sizes for size in grouping)
    return Scorecard(
        effective_clusters=estimators.invert(collision),
        cluster_score=estimators.cluster_score(series),
        clusters_per_sample=estimators.clusters_per_sample(series),
        collision=collision,
        groupings=groupings,
        dropped_groupings=14,
        drops={"canary": 11, "garbled": 3},
        invalid_clusters=37,
        repairs=9,
        criteria=_CRITERIA,
        criteria_hash="5f1d" * 16,
        criteria_origin="judge",
        canaries=ErrorRates(shown=groupings, merged=3, split=8).to_json(),
        calls=2 * groupings + 115,
        tokens={"prompt": 3_412_345, "completion": 812_345},
        cost_usd=0.0 if judge.startswith("offline") else 1.2345,
        judge=judge,
        prompt_version="offline-1" if judge.startswith("offline") else "2025-1",
        ruler="ab12" * 16,
        parameters={"samples_per_grouping": samples, "groupings": groupings, "verify": True},
        corpus={"name": name, "fingerprint": "c0de" * 16, "documents": 12_345, "sampled": 11_000},
        seed=0,
        series=series,
        cluster_sizes={str(size): counted[size] for size in sorted(counted)},
        convergence=estimators.convergence(series),
        examples=[_example(row, number) for number, row in enumerate(labels[:8])],
        warnings=[],
    )


def _example(row: np.ndarray, number: int) -> dict[str, Any]:
    clusters = []
    for label in np.unique(row):
        subject = _SUBJECTS[int(label) % len(_SUBJECTS)]
        texts = [
            f"A text on {subject}, the {index + 1}. of its kind: it begins plainly, gives two examples, and ends with "
            "a question that "
            "the reader is left to answer."
            for index in range(int((row == label).sum()))
        ]
        clusters.append(
            {"texts": texts, "reasoning": f"All of it is about {subject}.", "valid": True, "validation": "one subject"}
        )
    return {"grouping": number, "criteria_set": number % 5, "clusters": clusters}


def make_hostile_scorecard() -> Scorecard:
    """A scorecard whose every free text tries to become markup, to fetch, to run, or to break the encoding."""
    scorecard = make_scorecard("a", 5, groupings=50)
    cluster = {"texts": [HOSTILE, HOSTILE], "reasoning": HOSTILE, "valid": False, "validation": HOSTILE}
    example = {"grouping": 0, "clusters": [cluster, {**cluster, "texts": [HOSTILE]}]}
    metric = {"name": HOSTILE, "definition": HOSTILE, "guidance": HOSTILE, "levels": [HOSTILE] * 5}
    changed = {
        "examples": [example],
        "criteria": [{"metadata": [], "metrics": [metric]}],
        "warnings": [HOSTILE],
        "drops": {HOSTILE: 1},
    }
    changed |= {
        "judge": HOSTILE,
        "prompt_version": HOSTILE,
        "corpus": {"name": HOSTILE, "fingerprint": HOSTILE},
        "parameters": {HOSTILE: 1},
    }
    return Scorecard(**{name: value for name, value in vars(scorecard).items() if name != "content_hash"} | changed)


def _manifest(folder: Path, name: str, vocabulary: VocabularyInfo) -> Manifest:
    train = Split(
        documents=12_000,
        tokens=2_064_000,
        text_bytes=9_000_000,
        dropped_tokens=17,
        rows=16_000,
        shards=(Shard(file="train", rows=16_000, sha256=""),),
    )
    held_out = Split(
        documents=345,
        tokens=64_500,
        text_bytes=250_000,
        dropped_tokens=5,
        rows=500,
        shards=(Shard(file="validation", rows=500, sha256=""),),
    )
    return Manifest(
        name=name,
        kind="synthetic" if "topics" in name else "real",
        sequence_length=SEQUENCE_LENGTH,
        dtype="uint16",
        seed=0,
        validation_share=0.03,
        vocabulary=vocabulary,
        source={"fingerprint": "c0de" * 16},
        rejected={},
        splits={"train": train, "validation": held_out},
        folder=folder / "components" / name,
    )


def _decide(name: str, scorecards: dict[str, Scorecard]) -> Decision:
    measured = {
        "scorecard_hash": scorecards[name].content_hash,
        "effective_clusters": scorecards[name].effective_clusters.to_json(),
    }
    if "topics" not in name:
        return Decision(
            action="register", reason="no condition; scored for reference", factor=1.0, policy=GatePolicy(), **measured
        )
    ratio = compare(scorecards[name], scorecards["web"])
    verdict = "passes" if ratio.low >= 0.5 else "fails" if ratio.high < 0.5 else "undecided"
    finding = Finding(
        figure="ratio_to:web", value=ratio.ratio, low=ratio.low, high=ratio.high, required=0.5, verdict=verdict
    )
    action = {"passes": "register", "fails": "reject", "undecided": "warn"}[verdict]
    side = {"passes": "above", "fails": "below", "undecided": "not decided against"}[verdict]
    reason = (
        f"{ratio.ratio:.3g} [{ratio.low:.3g}, {ratio.high:.3g}] of the effective clusters of web, {side} the "
        "required 0.5"
    )
    policy = GatePolicy(min_ratio_to={"web": 0.5})
    return Decision(
        action=action, reason=reason, factor=float(action != "reject"), policy=policy, findings=(finding,), **measured
    )


def write_mixture(folder: Path, *, groupings: int = 2000, scorecards: bool = True) -> Mixture:
    """`mixture.json`, component manifests and scorecards of four components, one of which is rejected."""
    vocabulary = VocabularyInfo(kind="bytes", size=259, end_of_text_id=1, hash="beef" * 16, files=())
    by_component = {name: make_scorecard(name, true, groupings=groupings) for name, true in TRUE_CLUSTERS.items()}
    asked = {name: Fraction(*share) for name, share in ASKED.items()}
    decisions = {name: _decide(name, by_component) for name in by_component}
    left = sum(share for name, share in asked.items() if decisions[name].factor)
    components = []
    for name, decision in decisions.items():
        finding = next(iter(decision.findings), None)
        manifest = _manifest(folder, name, vocabulary) if decision.factor else None
        if manifest:
            manifest.folder.mkdir(parents=True)
            manifest.save()
        value = dataclasses.asdict(decision) | {
            "scorecard": f"scorecards/{name}.json",
            "reference": finding and finding.figure.removeprefix("ratio_to:"),
            "ratio": finding and {"value": finding.value, "low": finding.low, "high": finding.high},
        }
        granted = asked[name] / left if decision.factor else Fraction(0)
        components.append(
            MixtureComponent(
                name=name,
                kind="synthetic" if "topics" in name else "real",
                share_asked=asked[name],
                share_granted=granted,
                decision=value,
                manifest=manifest,
            )
        )
        if scorecards:
            by_component[name].save(folder / "scorecards" / f"{name}.json")
    mixture = Mixture(
        name="quickstart",
        components=tuple(components),
        sequence_length=SEQUENCE_LENGTH,
        seed=0,
        vocabulary=vocabulary,
        folder=folder,
    )
    mixture.save()
    return mixture


def write_log(folder: Path, mixture: Mixture, *, steps: int = 300, log_every: int = 2, eval_every: int = 50) -> Path:
    """`metrics.jsonl` of a run whose loss falls, with held-out losses, line by line as the loop writes them."""
    generator = np.random.default_rng(0)
    names = [component.name for component in mixture.taken]
    shares = np.array([float(component.share_granted) for component in mixture.taken])
    ends = {name: 2.2 + 0.55 * index for index, name in enumerate(names)}
    lines = []

    def level(name: str, step: float) -> float:
        return ends[name] + (5.5 - ends[name]) * float(np.exp(-step / 60))

    def held_out(step: int) -> dict[str, float]:
        losses = {f"eval/{name}/loss": level(name, step) + 0.08 for name in names}
        return {"step": step, **losses, "eval/loss": float(np.mean(list(losses.values())))}

    lines.append(held_out(0))
    for step in range(log_every, steps + 1, log_every):
        losses = {name: level(name, step - log_every / 2) + generator.normal(0, 0.05) for name in names}
        seconds = 9.0 if step == log_every else float(generator.normal(0.18, 0.008))
        speed = BATCH * SEQUENCE_LENGTH / seconds
        lines.append(
            {
                "step": step,
                "loss": float(shares @ list(losses.values())),
                "gradient_norm": 1.1,
                "learning_rate": 3e-4,
                "skipped": 0.0,
            }
            | {f"loss/{name}": value for name, value in losses.items()}
            | {
                f"tokens/{name}": float(share * BATCH * SEQUENCE_LENGTH * log_every)
                for name, share in zip(names, shares, strict=True)
            }
            | {
                "tokens_per_second": speed,
                "step_seconds": seconds,
                "input_wait_seconds": abs(float(generator.normal(0, 4e-4))),
            }
            | {
                "mfu": speed / 1.2e5,
                "mfu_causal": speed / 1.3e5,
                "device_memory_bytes": 2.5e8,
                "rows": float(BATCH * step),
            }
            | {f"rows/{name}": float(round(BATCH * step * share)) for name, share in zip(names, shares, strict=True)}
        )
        if step % eval_every == 0:
            lines.append(held_out(step))
    path = folder / "metrics.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def write_run(folder: Path, *, groupings: int = 2000, scorecards: bool = True) -> Path:
    """A whole run: mixture, scorecards, log and record."""
    folder.mkdir(parents=True, exist_ok=True)
    write_log(folder, write_mixture(folder, groupings=groupings, scorecards=scorecards))
    command = "python -m diversity_jax.train --config configs/quickstart.py --config.train.steps=300"
    versions = {"python": "3.11.9", "jax": "0.10.2", "flax": "0.12.8", "numpy": "2.4.6"}
    RunInfo(
        command=command,
        settings={"train": {"steps": 300}},
        versions=versions,
        hardware="1 x cpu; x86_64, 2 cores, Linux",
    ).save(folder)
    return folder
