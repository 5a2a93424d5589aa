"""Which documents each grouping shows, in which order and under which ids: a pure function of corpus and seed.

Grouping i is the same whatever N is and in whatever order groupings finish; so a longer run begins with a shorter one's
calls, and a ledger answers them. Documents are drawn in chunks that grow, so that neither is a whole corpus held nor is
it read often.
"""

import asyncio
from collections.abc import Sequence
import contextlib
from dataclasses import dataclass, replace
import random
from typing import Any, Protocol
import weakref

from diversity_jax.cluster_agent.canaries import FOREIGN, Canary, plant
from diversity_jax.cluster_agent.config import AgentConfig
from diversity_jax.cluster_agent.text_cleaning import child_seed, choose, clean_text, random_ids, random_order
from diversity_jax.cluster_agent.types import Sample
from diversity_jax.core.errors import InputError
from diversity_jax.llm.undisturbed import quick_turns

_CHUNK_GROUPINGS = (200, 400, 800, 1600)  # then 2,000 each
_LAST_CHUNK_GROUPINGS = 2000


class Drawable(Protocol):
    """What is needed of a corpus."""

    def sample(self, size: int, *, seed: int) -> Sequence[Any]:
        """`size` documents with `id` and `text`, drawn without replacement; fewer only where there are no more."""

    def fingerprint(self) -> str:
        """Hash of the content."""


@dataclass(frozen=True, kw_only=True)
class Planned:
    """One grouping before it is judged; `samples` in the order shown, planted ones among them."""

    index: int
    criteria_set: int
    samples: tuple[Sample, ...]
    canary: Canary | None


class Drawing:
    """Deals out groupings in ascending order.

    `sampled` counts the different documents shown so far; `documents` is the size of the corpus once a draw has emptied
    it.
    """

    def __init__(
        self,
        corpus: Drawable,
        *,
        groupings: int,
        samples_per_grouping: int,
        canary_share: float,
        most_characters: int,
        seed: int,
        keep: bool = False,
    ):
        self._corpus = corpus
        self._keep = keep
        self._groupings = groupings
        self._k = samples_per_grouping
        self._canary_share = canary_share
        self._most_characters = most_characters
        self._seed = seed
        self._lock = asyncio.Lock()
        self._ahead: asyncio.Task | None = None
        self._preparing: asyncio.Task | None = None
        self._prepared: dict[int, Planned] = {}
        self._overtaken = False
        self._chunk = -1
        self._start = self._end = 0
        self._pool: list[tuple[str, str]] = []
        self._order: list[int] | None = None
        self._seen: set[str] = set()
        self.documents: int | None = None

    @property
    def sampled(self) -> int:
        """Different documents shown so far."""
        return len(self._seen)

    @classmethod
    def of(cls, corpus: Drawable, config: AgentConfig, *, keep: bool = False) -> "Drawing":
        """As a configuration has it. With `keep` the texts stay for the next that draws them; see `draw_texts`."""
        return cls(
            corpus,
            groupings=config.groupings,
            samples_per_grouping=config.samples_per_grouping,
            canary_share=config.canary_share,
            most_characters=config.max_characters,
            seed=config.seed,
            keep=keep,
        )

    def start(self, groupings: int, sets: int) -> "Drawing":
        """Begins to read the corpus and to lay out the first `groupings` for so many criteria `sets`, so that they can
        all go out at once when the criteria are there. Needs a running event loop.
        """
        if self._chunk < 0 and self._preparing is None:
            self._preparing = asyncio.create_task(self._prepare(min(groupings, self._groupings), sets))
        return self

    async def _prepare(self, groupings: int, sets: int) -> None:
        with contextlib.suppress(InputError):  # whoever asks for the grouping meets it again
            for index in range(groupings):
                planned = await self._laid_out(index, sets)
                if self._overtaken:
                    return
                for sample in planned.samples:
                    sample.line  # noqa: B018  the sample keeps it
                self._prepared[index] = planned
                await asyncio.sleep(0)  # answers of the calls that propose criteria go first

    async def plan(self, index: int, sets: int) -> Planned:
        """Grouping `index` of a run with so many criteria `sets`. The next chunk is drawn while this one is judged, so
        that judges do not wait for a corpus to be read.
        """
        planned = self._prepared.pop(index, None)
        if planned is None:
            self._overtaken = True
            planned = await self._laid_out(index, sets)
        elif planned.criteria_set != index % sets:  # fewer came about than were asked for
            planned = replace(planned, criteria_set=index % sets)
        self._seen.update(sample.document for sample in planned.samples if sample.document != FOREIGN)
        return planned

    async def _laid_out(self, index: int, sets: int) -> Planned:
        if index >= self._end:
            async with self._lock:
                while index >= self._end:
                    await self._next_chunk()
        return self._planned(index, sets)

    async def close(self) -> None:
        """Waits for a draw that nobody needs any more."""
        self._overtaken = True
        await asyncio.gather(*filter(None, (self._ahead, self._preparing)), return_exceptions=True)

    async def _next_chunk(self) -> None:
        chunk = self._chunk + 1
        size = _chunk_groupings(chunk)
        wanted = size * self._k
        if self.documents is None:
            self._pool, drawn = await (self._ahead or self._draw(chunk))
            self._ahead = None
            self.documents = drawn if drawn < wanted else None
        if len(self._pool) < self._k:
            raise InputError(
                f"corpus: has {len(self._pool)} documents with text and a grouping shows {self._k}; "
                "give a larger corpus or fewer samples_per_grouping"
            )
        self._chunk, self._start, self._end = chunk, self._end, self._end + size
        # A corpus smaller than a chunk is all there: every grouping draws from the whole of it, independently of the
        # others.
        generator = random.Random(child_seed(self._seed, "order", chunk))
        self._order = random_order(generator, wanted) if len(self._pool) >= wanted else None
        if self.documents is None and self._end < self._groupings:
            self._ahead = asyncio.create_task(self._draw(chunk + 1))

    async def _draw(self, chunk: int) -> tuple[list[tuple[str, str]], int]:
        seed = child_seed(self._seed, "pool", chunk)
        count = _chunk_groupings(chunk) * self._k
        with quick_turns:
            return await asyncio.to_thread(
                draw_texts, self._corpus, count, seed, self._most_characters, keep=self._keep
            )

    def _planned(self, index: int, sets: int) -> Planned:
        generator = random.Random(child_seed(self._seed, "grouping", index))
        if self._order is None:
            places = choose(generator, self._k, len(self._pool))
        else:
            first = (index - self._start) * self._k
            places = self._order[first : first + self._k]
        ids = random_ids(generator, self._k + 2)
        chosen = [self._pool[place] for place in places]
        samples = tuple(
            Sample(sample_id=i, text=text, document=document) for i, (document, text) in zip(ids, chosen, strict=False)
        )
        canary = None
        if generator.random() < self._canary_share:
            samples, canary = plant(samples, ids[self._k :], generator)
        return Planned(index=index, criteria_set=index % sets, samples=samples, canary=canary)


def _chunk_groupings(chunk: int) -> int:
    return _CHUNK_GROUPINGS[chunk] if chunk < len(_CHUNK_GROUPINGS) else _LAST_CHUNK_GROUPINGS


_kept: weakref.WeakKeyDictionary[Drawable, dict[tuple[int, int, int], tuple[list[tuple[str, str]], int]]] = (
    weakref.WeakKeyDictionary()
)


def draw_texts(
    corpus: Drawable, count: int, seed: int, most_characters: int, *, keep: bool = False
) -> tuple[list[tuple[str, str]], int]:
    """(document id, cleaned text) of `count` documents, those left out that are empty once cleaned; and how many were
    drawn.

    With `keep` it stays for the next who asks the same of this corpus: a forecast looks at what the run then shows, and
    reading may take long.
    """
    asked = (count, seed, most_characters)
    with contextlib.suppress(TypeError, KeyError):  # a corpus that cannot be a key, or was not asked before
        return _kept[corpus].pop(asked)
    documents = corpus.sample(count, seed=seed)
    texts = [(document.id, clean_text(document.text, most_characters)) for document in documents]
    found = [(name, text) for name, text in texts if text], len(documents)
    if keep:
        with contextlib.suppress(TypeError):
            _kept.setdefault(corpus, {})[asked] = found
    return found


def draw_proposals(
    texts: Sequence[tuple[str, str]], *, criteria_set: int, proposals: int, samples: int, seed: int
) -> list[tuple[Sample, ...]]:
    """Samples for each of one criteria set's proposals, drawn from `texts`."""
    found = []
    for number in range(proposals):
        generator = random.Random(child_seed(seed, "proposal", criteria_set, number))
        places = choose(generator, min(samples, len(texts)), len(texts))
        ids = random_ids(generator, len(places))
        found.append(
            tuple(Sample(sample_id=i, text=texts[p][1], document=texts[p][0]) for i, p in zip(ids, places, strict=True))
        )
    return found
