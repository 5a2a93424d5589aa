"""The grid: topics x generations per topic, gone through by each arm in a seeded order of its own."""

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
      name: of what it is made of, joined by ` x `.
      template: its template's name.
      generator: label of its generator, or None where generators share the grid.
      style: its style, or None where one is drawn for each document.
      topics: it writes on the first so many topics only; None on all.
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
        styles = grid.styles if "style" in by and "style" in template.used else [None]
        for style in styles:
            parts = [
                template.name,
                label if len(labels) > 1 else None,
                style,
                f"{count} topics" if len(counts) > 1 else None,
            ]
            name = " x ".join(part for part in parts if part)
            arms.append(Arm(name=name, template=template.name, generator=label, style=style, topics=count))
    return arms


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One place of the grid: which arm writes on which topic for which time; `attempt` counts its draws from 0."""

    arm: str
    topic: int
    generation: int
    attempt: int = 0

    @property
    def key(self) -> str:
        """Its name in seeds and document ids."""
        return f"{self.arm}|{self.topic}|{self.generation}"


def cells_of(arm: Arm, topics: int, generations: int, seed: int, start: int = 0) -> Iterator[Cell]:
    """The arm's cells from number `start` on: every (topic, generation) once, in an order that its name and the seed
    decide.
    """
    topics = min(topics, arm.topics or topics)
    total = topics * generations
    order = Shuffled(total, f"{seed} {arm.name}")
    for place in range(start, total):
        generation, topic = divmod(order[place], topics)
        yield Cell(arm=arm.name, topic=topic, generation=generation)


class Shuffled:
    """A permutation of range(total) by place, without holding it: four Feistel rounds, walked until inside."""

    def __init__(self, total: int, seed: str):
        half = max(1, ((total - 1).bit_length() + 1) // 2)
        self._total, self._half, self._mask = total, half, (1 << half) - 1
        digest = hashlib.sha256(seed.encode()).digest()
        self._keys = [int.from_bytes(digest[8 * turn : 8 * turn + 8], "big") | 1 for turn in range(4)]

    def __getitem__(self, place: int) -> int:
        while True:
            left, right = place >> self._half, place & self._mask
            for key in self._keys:
                mixed = (right + key) * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
                mixed = (mixed ^ mixed >> 29) * key & 0xFFFFFFFFFFFFFFFF
                left, right = right, left ^ (mixed >> 37 & self._mask)
            place = left << self._half | right
            if place < self._total:
                return place


@dataclass(frozen=True, kw_only=True)
class Material:
    """What cells are filled with.

    Attributes:
      topics: all of them; those beyond `grid_topics` were sown on the way and are written on by cells of their own.
      grid_topics: topics of the grid.
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
        template, topic = self.templates[arm.template], self.topics[cell.topic]
        style = arm.style or draw.choice(self.grid.styles) if "style" in template.used else None
        offered = min(self.personas_shown, len(self.personas)) if "personas" in template.used else 0
        personas = tuple(draw.sample(self.personas, offered)) if offered else ()
        others = self._others(cell.topic, draw) if "topics" in template.used else ()
        shunned = tuple(name for name in avoid if name not in topic.path)
        return Seeds(topics=(topic, *others), style=style, personas=personas, avoid=shunned)

    def _others(self, topic: int, draw: random.Random) -> list[Topic]:
        """Other topics that may be combined with one: neighbours in the file, which lie in one subtree, and one from
        anywhere.
        """
        wanted = min(self.grid.topics_shown, len(self.topics)) - 1
        reach = 4 * self.grid.topics_shown
        near = [
            place for place in range(max(0, topic - reach), min(len(self.topics), topic + reach + 1)) if place != topic
        ]
        places = dict.fromkeys(draw.sample(near, min(max(wanted - 1, 0), len(near))))
        while len(places) < wanted:
            place = draw.randrange(len(self.topics))
            if place != topic:
                places[place] = None
        return [self.topics[place] for place in places]

    def generator_for(self, cell: Cell, arm: Arm, stopped: Mapping[str, str]) -> str | None:
        """Label of the generator that fills a cell: the arm's, or one drawn by weight among those that are not stopped;
        None if none is.
        """
        labels = [label for label in ([arm.generator] if arm.generator else self.generators) if label not in stopped]
        if not labels:
            return None
        draw = random.Random(f"generator {self.seed} {cell.key}")
        return draw.choices(labels, [self.generators[label].weight for label in labels])[0]
