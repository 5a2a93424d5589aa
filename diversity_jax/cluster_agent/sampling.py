"""Draws the samples of groupings: documents, order and sample ids, a pure function of corpus and seed.

Grouping i does not depend on N or on the order in which groupings finish; so a longer run begins with the calls of a
shorter one, which the response cache answers. Documents are drawn in growing chunks, so that a large corpus is neither
held in memory nor read often.
"""

import asyncio
from collections import Counter
from collections.abc import Sequence
import contextlib
from dataclasses import dataclass, replace
import functools
import random
import weakref

from diversity_jax.cluster_agent.canaries import FOREIGN, Canary, plant
from diversity_jax.cluster_agent.config import AgentConfig
from diversity_jax.cluster_agent.text_cleaning import child_seed, choose, clean_text, random_ids, random_order
from diversity_jax.cluster_agent.types import Sample, SampledCorpus
from diversity_jax.core.errors import InputError
from diversity_jax.core.formats import counted

_CHUNK_GROUPINGS = (200, 400, 800, 1600)  # then 2,000 each
_LAST_CHUNK_GROUPINGS = 2000

_Texts = list[tuple[str, str]]  # document id, cleaned text


@dataclass(frozen=True, kw_only=True)
class PlannedGrouping:
    """One grouping before it is judged; `samples` in the order shown, with planted ones."""

    index: int
    criteria_set: int
    samples: tuple[Sample, ...]
    canary: Canary | None


class GroupingSampler:
    """Draws the samples of groupings; `plan` them in ascending order.

    Args:
      store: store drawn texts for the next sampler of this corpus; see `draw_texts`.

    Attributes:
      documents: size of the corpus, once a draw has taken all of it; None before.
      copies: share of the pairs of documents that have the same text, in the first draw.
    """

    def __init__(self, corpus: SampledCorpus, config: AgentConfig, *, store: bool = False):
        self._corpus, self._config, self._store = corpus, config, store
        self._lock = asyncio.Lock()
        self._next_draw: asyncio.Task[tuple[_Texts, int]] | None = None
        self._preparing: asyncio.Task[None] | None = None
        self._prepared: dict[int, PlannedGrouping] = {}
        self._stop_preparing = False
        self._chunk = -1
        self._start = self._end = 0
        self._pool: _Texts = []
        self._order: list[int] | None = None
        self._seen: set[str] = set()
        self.documents: int | None = None
        self.copies = 0.0

    @property
    def sampled(self) -> int:
        """Different documents shown so far."""
        return len(self._seen)

    @property
    def drawn_from(self) -> int:
        """Number of documents with text that groupings are now drawn from; 0 before the first chunk."""
        return len(self._pool)

    def start(self) -> "GroupingSampler":
        """Prepares the first groupings in the background, while criteria are proposed; needs a running event loop."""
        if self._chunk < 0 and self._preparing is None:
            self._preparing = asyncio.create_task(self._prepare(min(self._config.in_flight, self._config.groupings)))
        return self

    async def _prepare(self, groupings: int) -> None:
        with contextlib.suppress(InputError):  # raised again when the grouping is asked for
            for index in range(groupings):
                planned = await self._make(index, self._config.criteria_sets)
                if self._stop_preparing:
                    return
                for sample in planned.samples:
                    sample.line  # noqa: B018  computes the cached property
                self._prepared[index] = planned
                await asyncio.sleep(0)  # gives way to answers of the calls that propose criteria

    async def plan(self, index: int, sets: int) -> PlannedGrouping:
        """Grouping `index` of a run with so many criteria `sets`."""
        planned = self._prepared.pop(index, None)
        if planned is None:
            self._stop_preparing = True
            planned = await self._make(index, sets)
        elif planned.criteria_set != index % sets:  # fewer sets were made than asked for
            planned = replace(planned, criteria_set=index % sets)
        self._seen.update(sample.document for sample in planned.samples if sample.document != FOREIGN)
        return planned

    async def first_texts(self) -> list[str]:
        """Texts of the first chunk, before any grouping is planned: all of a corpus or a random sample."""
        async with self._lock:
            if self._chunk < 0:
                await self._take_next_chunk()
            return [text for _, text in self._pool]

    async def close(self) -> None:
        """Ends background work, and waits for a draw under way."""
        self._stop_preparing = True
        await asyncio.gather(*filter(None, (self._next_draw, self._preparing)), return_exceptions=True)

    async def _take_next_chunk(self) -> None:
        """Takes the next chunk, and begins to draw the one after it, so that judging need not wait for the corpus."""
        chunk, k = self._chunk + 1, self._config.samples_per_grouping
        size = _chunk_groupings(chunk)
        wanted = size * k
        if self.documents is None:
            self._pool, drawn = await (self._next_draw or self._draw(chunk))
            self._next_draw = None
            self.documents = drawn if drawn < wanted else None
        if chunk == 0:
            sizes, count = Counter(text for _, text in self._pool).values(), len(self._pool)
            self.copies = sum(size * (size - 1) for size in sizes) / max(1, count * (count - 1))
        if len(self._pool) < k:
            name = getattr(self._corpus, "name", "corpus")
            has = f"has {counted(len(self._pool), 'document')} with text and a grouping shows {k}"
            raise InputError(f"{name}: {has}; give a larger corpus, or a smaller agent.samples_per_grouping")
        self._chunk, self._start, self._end = chunk, self._end, self._end + size
        # Without an order (a corpus smaller than the chunk) every grouping draws from all documents, independently.
        generator = random.Random(child_seed(self._config.seed, "order", chunk))
        self._order = random_order(generator, wanted) if len(self._pool) >= wanted else None
        if self.documents is None and self._end < self._config.groupings:
            self._next_draw = asyncio.create_task(self._draw(chunk + 1))

    async def _draw(self, chunk: int) -> tuple[_Texts, int]:
        seed = child_seed(self._config.seed, "pool", chunk)
        count = _chunk_groupings(chunk) * self._config.samples_per_grouping
        characters = self._config.max_characters
        return await asyncio.to_thread(draw_texts, self._corpus, count, seed, characters, store=self._store)

    async def _make(self, index: int, sets: int) -> PlannedGrouping:
        if index >= self._end:
            async with self._lock:
                while index >= self._end:
                    await self._take_next_chunk()
        k = self._config.samples_per_grouping
        generator = random.Random(child_seed(self._config.seed, "grouping", index))
        canary = generator.random() < self._config.canary_share
        if self._order is None:
            rows = choose(generator, k, len(self._pool))
        else:
            first = (index - self._start) * k
            rows = self._order[first : first + k]
        return _deal(index, index % sets, [self._pool[row] for row in rows], self._config.seed, canary, generator)


def _deal(
    index: int, criteria_set: int, texts: _Texts, seed: int, with_canary: bool, generator: random.Random
) -> PlannedGrouping:
    """A grouping of `texts`, in their order, with planted ones.

    All groupings of the same size have the same set of ids, so that servers compile one schema of their answers; each
    assigns them at random, so that no text can name a sample's id.
    """
    pool = _ids(seed, len(texts) + 2 * with_canary)
    ids = [pool[position] for position in random_order(generator, len(pool))]
    samples, canary = _samples(texts, ids), None
    if with_canary:
        samples, canary = plant(samples, ids[len(texts) :], generator)
    return PlannedGrouping(index=index, criteria_set=criteria_set, samples=samples, canary=canary)


@functools.cache
def _ids(seed: int, count: int) -> list[str]:
    return random_ids(random.Random(child_seed(seed, "ids")), count)


def drawn_samples(planned: PlannedGrouping) -> list[Sample]:
    """A grouping's samples without planted ones, in the order shown."""
    planted = {planned.canary.copy, planned.canary.foreign} if planned.canary else set()
    return [sample for sample in planned.samples if sample.sample_id not in planted]


def half_of(planned: PlannedGrouping, config: AgentConfig) -> tuple[PlannedGrouping, dict[str, str]]:
    """A random half of a grouping's drawn samples, to be judged again: with other ids, in another order, with another
    canary where the grouping has one; and the samples' ids in the grouping, by their new ones.
    """
    generator = random.Random(child_seed(config.seed, "recheck", planned.index))
    drawn = drawn_samples(planned)
    chosen = [drawn[row] for row in random_order(generator, len(drawn))[: max(2, len(drawn) // 2)]]
    texts = [(sample.document, sample.text) for sample in chosen]
    half = _deal(planned.index, planned.criteria_set, texts, config.seed, planned.canary is not None, generator)
    ids = [sample.sample_id for sample in drawn_samples(half)]
    return half, dict(zip(ids, (sample.sample_id for sample in chosen), strict=True))


def _chunk_groupings(chunk: int) -> int:
    return _CHUNK_GROUPINGS[chunk] if chunk < len(_CHUNK_GROUPINGS) else _LAST_CHUNK_GROUPINGS


def _samples(texts: Sequence[tuple[str, str]], ids: Sequence[str]) -> tuple[Sample, ...]:
    shown = zip(ids, texts, strict=False)
    return tuple(Sample(sample_id=i, text=text, document=document) for i, (document, text) in shown)


_stored_draws: weakref.WeakKeyDictionary[SampledCorpus, dict[tuple[int, int, int], tuple[_Texts, int]]] = (
    weakref.WeakKeyDictionary()
)


def draw_texts(
    corpus: SampledCorpus, count: int, seed: int, most_characters: int, *, store: bool = False
) -> tuple[_Texts, int]:
    """(document id, cleaned text) of `count` documents, without those that are empty once cleaned; and the number
    drawn.

    With `store` the result is stored for the next call with the same arguments, since a forecast draws the samples that
    the run then shows, and reading may take long.
    """
    key = (count, seed, most_characters)
    with contextlib.suppress(TypeError, KeyError):  # a corpus that cannot be a key, or nothing is stored
        return _stored_draws[corpus].pop(key)
    documents = corpus.sample(count, seed=seed)
    texts = [(document.id, clean_text(document.text, most_characters)) for document in documents]
    result = [(name, text) for name, text in texts if text], len(documents)
    if store:
        with contextlib.suppress(TypeError):
            _stored_draws.setdefault(corpus, {})[key] = result
    return result


def draw_proposals(
    texts: Sequence[tuple[str, str]], *, criteria_set: int, proposals: int, samples: int, seed: int
) -> list[tuple[Sample, ...]]:
    """The samples for each proposal of a criteria set, drawn from `texts`."""
    drawn = []
    for number in range(proposals):
        generator = random.Random(child_seed(seed, "proposal", criteria_set, number))
        rows = choose(generator, min(samples, len(texts)), len(texts))
        ids = random_ids(generator, len(rows))
        drawn.append(_samples([texts[row] for row in rows], ids))
    return drawn
