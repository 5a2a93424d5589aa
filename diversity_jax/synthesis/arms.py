"""The grid of topics x generations per topic, its arms and their order, and the requests of its cells."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
import hashlib
import itertools
import random

from diversity_jax.core.errors import InputError
from diversity_jax.llm import Request
from diversity_jax.synthesis.config import SynthesisConfig
from diversity_jax.synthesis.templates import Seeds, Template
from diversity_jax.synthesis.topics import Topic

_MOST_ATTEMPTS = 1000  # replicate of a request = generation * this + attempt


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A combination of template, generator, style and number of topics.

    Attributes:
      name: the parts in which arms differ, joined by ` x `.
      template: its template's name.
      generator: label of its generator, or None where generators share the grid.
      style: its style, or None where each document draws one.
      topics: number of its topics, the first ones; None for all.
    """

    name: str
    template: str
    generator: str | None
    style: str | None
    topics: int | None


def make_arms(config: SynthesisConfig, templates: Mapping[str, Template]) -> list[Arm]:
    """Arms by template, topic count, generator (unless the grid is shared) and style (where steering compares it)."""
    grid = config.grid
    labels: Sequence[str | None] = [None] if grid.mixed else [generator.label for generator in config.generators]
    counts: Sequence[int | None] = grid.topic_counts or [None]
    arms = []
    for template, label, count in itertools.product(templates.values(), labels, counts):
        by_style = "style" in config.steering.arms and "style" in template.used
        for style in grid.styles if by_style else [None]:
            label_part = label if len(labels) > 1 else None
            count_part = f"{count} topics" if len(counts) > 1 else None
            name = " x ".join(filter(None, [template.name, label_part, style, count_part]))
            arms.append(Arm(name=name, template=template.name, generator=label, style=style, topics=count))
    return arms


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A point of the grid: arm, number of the topic, and number of the generation on it; `attempt` counts from 0."""

    arm: str
    topic: int
    generation: int
    attempt: int = 0

    @property
    def key(self) -> str:
        """Its name, from which seeds and document ids are made."""
        return f"{self.arm}|{self.topic}|{self.generation}"


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


class GenerationGrid:
    """Topics, personas, arms and generators, from which the requests of cells are made.

    Attributes:
      topics: all of them; those from number `grid_topics` on were added during the run and are not in the grid.
      arms: by name; generators: by label.

    Raises:
      InputError: a template needs personas, and there are none.
    """

    def __init__(
        self,
        config: SynthesisConfig,
        templates: Mapping[str, Template],
        topics: Sequence[Topic],
        personas: Sequence[str],
    ):
        for template in templates.values():
            if "personas" in template.used and not personas:
                raise InputError(
                    f"personas: there are none, and template {template.name} offers some; set personas.source or "
                    "personas.documents, or choose a template without"
                )
        self.topics, self.grid_topics = list(topics), len(topics)
        self.arms = {arm.name: arm for arm in make_arms(config, templates)}
        self.generators = {generator.label: generator for generator in config.generators}
        self._config, self._templates, self._personas = config, templates, personas

    def cells(self, arm: Arm, start: int = 0) -> Iterator[Cell]:
        """The arm's cells of the grid from number `start` on, in a pseudo-random order of its own."""
        topics = min(self.grid_topics, arm.topics or self.grid_topics)
        total = topics * self._config.grid.generations_per_topic
        order = _Permutation(total, f"{self._config.seed} {arm.name}")
        for index in range(start, total):
            generation, topic = divmod(order[index], topics)
            yield Cell(arm=arm.name, topic=topic, generation=generation)

    def request(self, cell: Cell, avoid: Sequence[str]) -> tuple[Request, Seeds, Template]:
        """The request of a cell's current attempt, its seeds and its template; `avoid` names subjects."""
        config, template = self._config, self._templates[self.arms[cell.arm].template]
        seeds = self._seeds(cell, template, avoid)
        request = template.request(
            seeds,
            replicate=cell.generation * _MOST_ATTEMPTS + cell.attempt,
            max_output_tokens=config.max_output_tokens,
            temperature=config.temperature,
            limits=config.schema_limits,
        )
        return request, seeds, template

    def _seeds(self, cell: Cell, template: Template, avoid: Sequence[str]) -> Seeds:
        draw = random.Random(f"seeds {self._config.seed} {cell.key} {cell.attempt}")
        topic, used = self.topics[cell.topic], template.used
        style = self.arms[cell.arm].style or draw.choice(self._config.grid.styles) if "style" in used else None
        offered = min(self._config.personas.shown, len(self._personas)) if "personas" in used else 0
        return Seeds(
            style=style,
            personas=tuple(draw.sample(self._personas, offered)) if offered else (),
            topics=(topic, *(self._other_topics(cell.topic, draw) if "topics" in used else ())),
            avoid=tuple(name for name in avoid if name not in topic.path),
        )

    def _other_topics(self, topic: int, draw: random.Random) -> list[Topic]:
        """Topics offered beside a topic: neighbours in the file, mostly of the same subtree, and a random one."""
        count = min(self._config.grid.topics_shown, len(self.topics)) - 1
        reach = 4 * self._config.grid.topics_shown
        nearby = [
            other for other in range(max(0, topic - reach), min(len(self.topics), topic + reach + 1)) if other != topic
        ]
        chosen = dict.fromkeys(draw.sample(nearby, min(max(count - 1, 0), len(nearby))))
        while len(chosen) < count:
            other = draw.randrange(len(self.topics))
            if other != topic:
                chosen[other] = None
        return [self.topics[other] for other in chosen]

    def generator_for(self, cell: Cell, stopped: Collection[str]) -> str | None:
        """The label of the cell's generator: its arm's, or one drawn by weight; None where all of them are stopped."""
        own = self.arms[cell.arm].generator
        labels = [label for label in ([own] if own else self.generators) if label not in stopped]
        if not labels:
            return None
        draw = random.Random(f"generator {self._config.seed} {cell.key}")
        return draw.choices(labels, [self.generators[label].weight for label in labels])[0]
