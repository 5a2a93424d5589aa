"""The grid: topics x generations per topic, traversed by each arm in a seeded order of its own."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
import hashlib
import itertools
import random

from diversity_jax.core.errors import InputError
from diversity_jax.synthesis.config import GeneratorConfig, GridConfig
from diversity_jax.synthesis.templates import Seeds, Template
from diversity_jax.synthesis.topics import Topic


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A way to write.

    Attributes:
      name: the parts that tell it from other arms, joined by ` x `.
      template: its template's name.
      generator: label of its generator, or None where generators share the grid.
      style: its style, or None where one is drawn for each document.
      topics: number of topics that it writes on, the first ones; None for all.
    """

    name: str
    template: str
    generator: str | None
    style: str | None
    topics: int | None


def make_arms(
    grid: GridConfig, templates: Mapping[str, Template], generators: Sequence[GeneratorConfig], by: Sequence[str]
) -> list[Arm]:
    """All arms of a grid.

    Args:
      by: dimensions that tell arms apart beyond templates, generators (unless they share the grid) and topic counts,
        which always do.
    """
    labels: Sequence[str | None] = [None] if grid.mixed else [generator.label for generator in generators]
    counts: Sequence[int | None] = grid.topic_counts or [None]
    arms = []
    for template, label, count in itertools.product(templates.values(), labels, counts):
        for style in grid.styles if "style" in by and "style" in template.used else [None]:
            parts = [
                template.name,
                label if len(labels) > 1 else None,
                style,
                f"{count} topics" if len(counts) > 1 else None,
            ]
            name = " x ".join(filter(None, parts))
            arms.append(Arm(name=name, template=template.name, generator=label, style=style, topics=count))
    return arms


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A point of the grid: the arm that writes, the topic's number, and the generation on this topic.

    `attempt` counts draws of the cell from 0.
    """

    arm: str
    topic: int
    generation: int
    attempt: int = 0

    @property
    def key(self) -> str:
        """Its name in seeds and document ids."""
        return f"{self.arm}|{self.topic}|{self.generation}"


def cells_of(arm: Arm, topics: int, generations: int, seed: int, start: int = 0) -> Iterator[Cell]:
    """The arm's cells from number `start` on: every (topic, generation) once, in an order set by its name and seed."""
    topics = min(topics, arm.topics or topics)
    total = topics * generations
    order = _Permutation(total, f"{seed} {arm.name}")
    for index in range(start, total):
        generation, topic = divmod(order[index], topics)
        yield Cell(arm=arm.name, topic=topic, generation=generation)


class _Permutation:
    """A permutation of range(total) in constant memory: four Feistel rounds, repeated until the value is in range.

    Cycle walking, after Black and Rogaway, Ciphers with Arbitrary Finite Domains (2002).
    """

    def __init__(self, total: int, seed: str):
        half = max(1, ((total - 1).bit_length() + 1) // 2)
        self._total, self._half, self._mask = total, half, (1 << half) - 1
        digest = hashlib.sha256(seed.encode()).digest()
        self._keys = [int.from_bytes(digest[8 * turn : 8 * turn + 8], "big") | 1 for turn in range(4)]

    def __getitem__(self, index: int) -> int:
        while True:
            left, right = index >> self._half, index & self._mask
            for key in self._keys:
                mixed = (right + key) * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
                mixed = (mixed ^ mixed >> 29) * key & 0xFFFFFFFFFFFFFFFF
                left, right = right, left ^ (mixed >> 37 & self._mask)
            index = left << self._half | right
            if index < self._total:
                return index


@dataclass(frozen=True, kw_only=True)
class Material:
    """What cells are filled with.

    Attributes:
      topics: all of them; those beyond `grid_topics` were added during the run and have cells of their own.
      grid_topics: number of topics of the grid.
      personas: all of them.
      templates: by name.
      generators: by label.
      grid: the settings.
      personas_shown: readers offered in one generation.
      seed: of every draw.
    """

    topics: list[Topic]
    grid_topics: int
    personas: Sequence[str]
    templates: Mapping[str, Template]
    generators: Mapping[str, GeneratorConfig]
    grid: GridConfig
    personas_shown: int
    seed: int

    def __post_init__(self):
        for template in self.templates.values():
            if "personas" in template.used and not self.personas:
                raise InputError(
                    f"personas: there are none, and template {template.name} offers some; set personas.source or "
                    "personas.documents, or choose a template without"
                )

    def seeds(self, cell: Cell, arm: Arm, avoid: Sequence[str]) -> Seeds:
        """What the cell's present attempt is made from; another attempt draws anew."""
        draw = random.Random(f"seeds {self.seed} {cell.key} {cell.attempt}")
        used, topic = self.templates[arm.template].used, self.topics[cell.topic]
        style = arm.style or draw.choice(self.grid.styles) if "style" in used else None
        offered = min(self.personas_shown, len(self.personas)) if "personas" in used else 0
        return Seeds(
            style=style,
            personas=tuple(draw.sample(self.personas, offered)) if offered else (),
            topics=(topic, *(self._other_topics(cell.topic, draw) if "topics" in used else ())),
            avoid=tuple(name for name in avoid if name not in topic.path),
        )

    def _other_topics(self, topic: int, draw: random.Random) -> list[Topic]:
        """Topics that may be combined with one: neighbours in the file, which lie in one subtree, and any other."""
        count = min(self.grid.topics_shown, len(self.topics)) - 1
        reach = 4 * self.grid.topics_shown
        nearby = [
            other for other in range(max(0, topic - reach), min(len(self.topics), topic + reach + 1)) if other != topic
        ]
        chosen = dict.fromkeys(draw.sample(nearby, min(max(count - 1, 0), len(nearby))))
        while len(chosen) < count:
            other = draw.randrange(len(self.topics))
            if other != topic:
                chosen[other] = None
        return [self.topics[other] for other in chosen]

    def generator_for(self, cell: Cell, arm: Arm, stopped: Mapping[str, str]) -> str | None:
        """Label of the cell's generator: the arm's, or one drawn by weight; None where all candidates are stopped."""
        labels = [label for label in ([arm.generator] if arm.generator else self.generators) if label not in stopped]
        if not labels:
            return None
        draw = random.Random(f"generator {self.seed} {cell.key}")
        return draw.choices(labels, [self.generators[label].weight for label in labels])[0]
