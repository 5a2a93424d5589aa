"""Judges with one known fault each, over texts with known labels, which canaries, exam and verdict have to detect."""

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
import random
from typing import Any

from diversity_jax.cluster_agent.exam_corpora import exam_corpora, neighbour_of
from diversity_jax.cluster_agent.text_cleaning import child_seed
from diversity_jax.cluster_agent.types import Cluster, JudgeAnswer, Sample, Task

_BLOCK = 4  # neighbours in the list that the judge who goes by position puts together


class FaultyJudge:
    """Knows every text's label and makes one kind of mistake; answers depend on nothing but the call and `seed`.

    Args:
      fault: a name in `FAULTS`.
      label_of: label of a text as it is shown (cleaned and cut); a text from nowhere should be its own label.
      style_of: what the judge who groups by style goes by.
      labels: all labels, neighbours side by side, for those that merge them in twos or fours.
      rate: of the faults that have one.
      verifier: "honest" (names the samples without the label of most), "yes" or "no" (to all clusters).
    """

    prompt_version = "faulty-1"

    def __init__(
        self,
        fault: str,
        label_of: Callable[[str], Hashable],
        *,
        style_of: Callable[[str], Hashable] = len,
        labels: Sequence[Hashable] = (),
        rate: float = 0.05,
        verifier: str = "honest",
        seed: int = 0,
    ):
        self.label = f"{fault} {rate:g}, {verifier} verifier"
        self.fault, self.label_of, self.style_of, self.rate = fault, label_of, style_of, rate
        self.number_of = {label: number for number, label in enumerate(labels)}
        self.calls = 0
        self._verifier, self._seed = verifier, seed

    @property
    def identity(self) -> dict[str, Any]:
        """The fault and its rate."""
        return {"fault": self.label, "seed": self._seed}

    def expect(self, calls: int) -> None:
        """Nothing to prepare."""

    async def ask(self, task: Task) -> JudgeAnswer:
        """Answers any stage."""
        self.calls += 1
        if task.stage == "cluster_samples":
            return JudgeAnswer(value={"clusters": self._clusters(task)})
        if task.stage == "verify_clusters":
            text_of = {sample.sample_id: sample.text for sample in task.samples}
            checked = [self._check(number, cluster, text_of) for number, cluster in enumerate(task.clusters, start=1)]
            return JudgeAnswer(value={"validation": checked})
        items = [{"name": "label", "definition": "the known label", "guidance": "equal labels belong together"}]
        return JudgeAnswer(value={"metadata": items, "metrics": items})

    def _clusters(self, task: Task) -> list[dict[str, Any]]:
        ids = [sample.sample_id for sample in task.samples]
        generator = random.Random(child_seed(self._seed, task.replicate, *ids))
        groups: dict[Hashable, list[str]] = {}
        for sample_id, key in zip(ids, FAULTS[self.fault](self, task.samples, generator), strict=True):
            groups.setdefault(key, []).append(sample_id)
        return [{"cluster": number, "sample_ids": group} for number, group in enumerate(groups.values(), start=1)]

    def _check(self, number: int, cluster: Cluster, text_of: dict[str, str]) -> dict[str, Any]:
        labels = {sample_id: self.label_of(text_of[sample_id]) for sample_id in cluster.sample_ids}
        usual, _ = Counter(labels.values()).most_common(1)[0]
        misplaced = {
            "honest": [sample_id for sample_id, label in labels.items() if label != usual],
            "yes": [],
            "no": list(labels)[1:],
        }[self._verifier]
        return {"cluster": number, "valid": int(not misplaced), "misplaced": misplaced}


_Fault = Callable[[FaultyJudge, Sequence[Sample], random.Random], list[Hashable]]


def _labels(judge: FaultyJudge, samples: Sequence[Sample]) -> list[Hashable]:
    return [judge.label_of(sample.text) for sample in samples]


def _errors(judge: FaultyJudge, samples: Sequence[Sample], generator: random.Random) -> list[Hashable]:
    """Each sample is put with another one, drawn at random, in a share `rate` of the cases."""
    labels = _labels(judge, samples)
    return [generator.choice(labels) if generator.random() < judge.rate else label for label in labels]


def _at_most(count: int) -> _Fault:
    """Further labels are spread over the first `count`."""

    def keys(judge: FaultyJudge, samples: Sequence[Sample], generator: random.Random) -> list[Hashable]:
        labels = _labels(judge, samples)
        number = {label: index for index, label in enumerate(dict.fromkeys(labels))}
        return [number[label] % count for label in labels]

    return keys


def _other(judge: FaultyJudge, samples: Sequence[Sample], generator: random.Random) -> list[Hashable]:
    """Samples that are like no other are put together, each in a share `rate` of the cases."""
    labels = _labels(judge, samples)
    counts = Counter(labels)
    return ["other" if counts[label] == 1 and generator.random() < judge.rate else label for label in labels]


def _merged(size: int) -> _Fault:
    """Merges clusters whose labels are consecutive numbers, `size` at a time."""

    def keys(judge: FaultyJudge, samples: Sequence[Sample], generator: random.Random) -> list[Hashable]:
        labels = _labels(judge, samples)
        return [judge.number_of[label] // size if label in judge.number_of else label for label in labels]

    return keys


FAULTS: dict[str, _Fault] = {
    "none": lambda judge, samples, generator: _labels(judge, samples),
    "errors": _errors,
    **{f"at most {count}": _at_most(count) for count in (2, 5, 10, 15)},
    "other": _other,
    "style": lambda judge, samples, generator: [judge.style_of(sample.text) for sample in samples],
    "twos": _merged(2),
    "fours": _merged(4),
    "position": lambda judge, samples, generator: [index // _BLOCK for index in range(len(samples))],
    "length": lambda judge, samples, generator: [len(sample.text).bit_length() for sample in samples],
    "splits all": lambda judge, samples, generator: [sample.sample_id for sample in samples],
    "merges all": lambda judge, samples, generator: [0 for _ in samples],
}


def exam_judge(fault: str, **options: Any) -> FaultyJudge:
    """A judge with a fault that knows the texts of the exam."""
    labels, styles = {}, {}
    for corpus in exam_corpora().values():
        labels |= dict(zip(corpus.texts, corpus.labels, strict=True))
        styles |= dict(zip(corpus.texts, corpus.styles, strict=True))
    neighbours = [label for pair in neighbour_of().items() for label in pair]
    return FaultyJudge(
        fault,
        lambda text: labels.get(text, text),
        style_of=lambda text: styles.get(text, "plain"),
        labels=list(dict.fromkeys(neighbours)),
        **options,
    )
