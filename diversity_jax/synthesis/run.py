"""A whole run: seeds, arms, rounds, decisions, and the page at the end."""

import asyncio
from collections.abc import Iterator, Sequence
import contextlib
import dataclasses
import itertools
import logging
from pathlib import Path
import random
from typing import Any

from diversity_jax.core.errors import InputError
from diversity_jax.core.files import read_json, write_json
from diversity_jax.llm import BudgetConfig, Engine, PlannedCalls, estimate_tokens, forecast, parse_model, price_of
from diversity_jax.llm.response_cache_file import ResponseCacheFile
from diversity_jax.synthesis.arms import Arm, Cell, Material, cells_of, make_arms
from diversity_jax.synthesis.batch_rounds import Batches, StillRunning
from diversity_jax.synthesis.config import SynthesisConfig
from diversity_jax.synthesis.feedback import Loop
from diversity_jax.synthesis.generate_round import Producer, all_stopped
from diversity_jax.synthesis.near_duplicates import NearDuplicates
from diversity_jax.synthesis.steering import allot
from diversity_jax.synthesis.store import Store
from diversity_jax.synthesis.templates import load_template
from diversity_jax.synthesis.topic_deduplication import merge_topics
from diversity_jax.synthesis.topic_expansion import Grower, merge_personas, read_personas
from diversity_jax.synthesis.topics import Topic, read_topics, write_topics

_logger = logging.getLogger(__name__)
_FORECAST_PROMPTS = 50
# What may change from one process to the next without making another component.
_FREE = ("output_dir", "engine", "budget", "batch", "dry_run", "completion_tokens_expected", "judge_base_url")


def run(config: SynthesisConfig) -> Store | None:
    """Generates until the grid, the number of documents asked for or the budget is at its end; None after a dry run.

    Run again with the same folder it goes on where it stopped.

    Raises:
      InputError: bad settings or files, or no generator that gives anything usable.
    """
    return asyncio.run(run_async(config))


async def run_async(config: SynthesisConfig) -> Store | None:
    """`run` inside an event loop."""
    if not config.generators:
        raise InputError("generators: is empty; name at least one, such as openai:gpt-4o-mini")
    templates = {template.name: template for template in map(load_template, config.grid.templates)}
    store = Store(config.output_dir)
    async with contextlib.AsyncExitStack() as stack:
        engines = await _engines(config, stack)
        first = next(iter(engines.values()))
        grower = Grower(
            first,
            limits=config.schema_limits,
            temperature=min(config.temperature, 0.7),
            in_flight=config.engine.max_in_flight,
        )
        if not config.dry_run:
            store.settle_settings(_deciding(config, templates))
        topics = await _topics(config, grower, store)
        personas = await _personas(config, grower, store) if _needs_personas(templates) else []
        material = Material(
            topics=topics,
            grid_topics=len(topics),
            personas=personas,
            templates=templates,
            generators={generator.label: generator for generator in config.generators},
            grid=config.grid,
            personas_shown=config.personas.shown,
            seed=config.seed,
        )
        arms = make_arms(config.grid, templates, config.generators, config.steering.arms)
        _logger.info("forecast: %s", _forecast(config, material, arms))
        if config.dry_run:
            return None
        with contextlib.closing(_FailuresOnRecord(_ledger(config))) as failures:
            await _Rounds(config, store, material, arms, engines, grower, failures, stack).go()
    return store


def _ledger(config: SynthesisConfig) -> str:
    return config.engine.ledger or str(Path(config.output_dir) / "ledger.sqlite")


async def _engines(config: SynthesisConfig, stack: contextlib.AsyncExitStack) -> dict[str, Engine]:
    """An engine for every generator; one ledger and one cap for all."""
    Path(_ledger(config)).parent.mkdir(parents=True, exist_ok=True)
    several = len(config.generators) > 1 and config.engine.progress == "auto"
    engine = dataclasses.replace(
        config.engine, ledger=_ledger(config), progress="lines" if several else config.engine.progress
    )
    opened = {}
    for one in config.generators:
        made = Engine(one.model, base_url=one.base_url, config=engine, budget=config.budget, role="generator")
        opened[one.label] = made if config.dry_run and config.topics.source else await stack.enter_async_context(made)
    return opened


class _FailuresOnRecord:
    """Failures in the ledger, for rounds that are done again."""

    def __init__(self, path: str):
        self._path, self._file = path, None

    def find(self, keys: Sequence[str]) -> dict[str, Any]:
        """What the ledger knows of keys."""
        if self._file is None:
            self._file = ResponseCacheFile(self._path, run="", caps=BudgetConfig(), replay=True)
        return self._file.find(keys)

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()


def _deciding(config: SynthesisConfig, templates: dict) -> dict[str, Any]:
    """What a component's content depends on, as JSON."""
    value = {name: one for name, one in dataclasses.asdict(config).items() if name not in _FREE}
    value["grid"].pop("documents")
    value["generators"] = [{"model": one.model, "name": one.label, "weight": one.weight} for one in config.generators]
    value["templates"] = {name: template.hash for name, template in templates.items()}
    return _plain(value)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value


def _needs_personas(templates: dict) -> bool:
    return any("personas" in template.used for template in templates.values())


async def _topics(config: SynthesisConfig, grower: Grower, store: Store) -> list[Topic]:
    """The topics of an earlier process, or new ones, merged and in seeded order."""
    path, asked = store.folder / "topics.jsonl.zst", config.topics
    if path.exists():
        return list(read_topics(str(path)))
    if asked.source is not None:
        found = list(read_topics(asked.source, leaves_only=asked.leaves_only))
    elif config.dry_run:
        raise InputError("dry_run: topics that a generator makes cannot be forecast; give topics.source")
    elif asked.documents is not None:
        found = await grower.extract(asked, seed=config.seed)
    elif asked.root is not None:
        found = await grower.grow(asked)
    else:
        raise InputError(
            "topics: none of source, documents and root is set; give one, such as --config.topics.source=topics.txt"
        )
    merged = await asyncio.to_thread(merge_topics, found, near=asked.near_duplicate)
    if not merged.topics:
        failed = ", ".join(f"{reason} {count}" for reason, count in grower.account.failures.items())
        raise InputError(
            f"topics: there are none{f' ({failed})' if failed else ''}; check the source, or try another generator"
        )
    _logger.info("%s", merged)
    topics = merged.topics
    if asked.limit is not None and len(topics) > asked.limit:
        chosen = sorted(random.Random(f"topics {config.seed}").sample(range(len(topics)), asked.limit))
        topics = [topics[place] for place in chosen]
    if not config.dry_run:
        account = {
            "calls": grower.account.calls,
            "dollars": grower.account.dollars,
            "failures": dict(grower.account.failures),
        }
        counts = {name: getattr(merged, name) for name in ("read", "exact", "normalised", "near")}
        bare = sum(not topic.keywords for topic in topics)
        write_json(
            store.folder / "topics.json", {"kept": len(topics), "without_keywords": bare, **counts, "growing": account}
        )
        write_topics(path, topics)
    return topics


async def _personas(config: SynthesisConfig, grower: Grower, store: Store) -> list[str]:
    path, asked = store.folder / "personas.json", config.personas
    if path.exists():
        return read_json(path)
    if asked.source is not None:
        found = read_personas(asked)
    elif asked.documents is not None and not config.dry_run:
        found = await grower.personas(asked, seed=config.seed)
    else:
        found = []
    merged = await asyncio.to_thread(merge_personas, found)
    if not config.dry_run and merged:
        write_json(path, merged)
    return merged


def _forecast(config: SynthesisConfig, material: Material, arms: Sequence[Arm]) -> str:
    """Calls, tokens and dollars of the whole grid, from prompts that are really made."""
    per_arm = {arm.name: min(len(material.topics), arm.topics or len(material.topics)) for arm in arms}
    total = sum(per_arm.values()) * config.grid.generations_per_topic
    calls = min(total, config.grid.documents or total)
    producer = Producer(material, arms, {}, config, None)
    cells = [
        cell
        for arm in arms
        for cell in itertools.islice(_cells(material, arm, config), -(-_FORECAST_PROMPTS // len(arms)))
    ]
    made = [producer.request(cell, ())[0] for cell in cells]
    prompt_tokens = sum(estimate_tokens(one.system) + estimate_tokens(one.user) for one in made) / len(made)
    weights = {one.label: one.weight for one in config.generators}
    lines = []
    for one in config.generators:
        share = weights[one.label] / sum(weights.values()) if config.grid.mixed else 1 / len(weights)
        plan = PlannedCalls(
            stage="generate",
            calls=round(calls * share),
            prompt_tokens=prompt_tokens,
            completion_tokens=config.completion_tokens_expected,
        )
        price = price_of(*parse_model(one.model), one.base_url, config.budget)
        if one.batch:
            price = dataclasses.replace(
                price, input=price.input * config.batch.price_share, output=price.output * config.batch.price_share
            )
        lines.append(f"{one.label}: {forecast([plan], price, config.budget)}")
    return f"{calls:,} documents without redraws; " + "; ".join(lines)


def _cells(material: Material, arm: Arm, config: SynthesisConfig, start: int = 0) -> Iterator[Cell]:
    return cells_of(arm, material.grid_topics, config.grid.generations_per_topic, config.seed, start)


class _Rounds:
    """Round after round, until something is at its end."""

    def __init__(self, config, store: Store, material: Material, arms: Sequence[Arm], engines, grower, failures, stack):
        self._config, self._store, self._material, self._arms = config, store, material, arms
        self._failures, self._engines = failures, engines
        near = config.quality.near_duplicate
        self._duplicates = NearDuplicates(near) if near is not None else None
        self._producer = Producer(material, arms, engines, config, self._duplicates)
        self._loop = Loop(config, material, arms, grower, stack)
        self._batches = Batches(config, store.folder, _ledger(config))
        self._cursors = dict.fromkeys((arm.name for arm in arms), 0)
        self._extra: list[Cell] = []
        self._stopped: dict[str, str] = {}
        self._made = 0

    async def go(self) -> None:
        """Works until the documents asked for are there, the grid is done, every arm is stopped, or the budget is
        spent.
        """
        await self._restore()
        wanted = self._config.grid.documents
        while wanted is None or self._made < wanted:
            cells = self._plan(self._config.grid.documents_per_round if wanted is None else wanted - self._made)
            if not cells:
                _logger.info("the grid is done, or every arm is stopped")
                return
            try:
                ended = await self._round(cells)
            except StillRunning as waiting:
                _logger.info("%s", waiting)
                return
            if ended is not None:
                _logger.warning("%s", ended)
                return
            if all(label in self._stopped for label in self._engines):
                raise all_stopped(self._stopped)

    async def _restore(self) -> None:
        if not self._store.rounds:
            return
        arrays = self._store.arrays()
        if self._duplicates is not None:
            self._duplicates.extend(arrays["signatures"])
        await self._loop.restore(self._store, arrays["arms"])
        last = self._store.rounds[-1]
        self._cursors |= last["cursors"]
        self._extra = [Cell(**cell) for cell in last["pending"]]
        self._made = sum(one["documents"] for one in self._store.rounds)

    def _plan(self, most: int) -> list[Cell]:
        """The next round's cells: those left over, then new ones as the arms' shares say."""
        size = min(self._config.grid.documents_per_round, most)
        self._loop.retire_unfillable(self._stopped, self._material)
        left = [cell for cell in self._extra if self._loop.wants(cell)]
        cells, self._extra = left[:size], left[size:]
        while len(cells) < size and (shares := self._loop.shares(len(self._store.rounds))):
            counts = allot(shares, self._loop.dollars_each(), size - len(cells))
            for arm in self._arms:
                if counts.get(arm.name):
                    cells += self._next_cells(arm, counts[arm.name])
        return cells

    def _next_cells(self, arm: Arm, count: int) -> list[Cell]:
        start = self._cursors[arm.name]
        found: list[Cell] = []
        for cell in _cells(self._material, arm, self._config, start):
            if len(found) == count:
                break
            self._cursors[arm.name] += 1
            if not self._loop.skips(cell):
                found.append(cell)
        if len(found) < count:
            self._loop.finish(arm.name)
        return found

    async def _round(self, cells: list[Cell]) -> str | None:
        """Makes, measures and commits a round; why no further one can be, or None."""
        number = len(self._store.rounds)
        interrupted = self._store.open_round(number)
        avoid = self._loop.avoid
        known = self._failures if interrupted or self._batches.used else None
        await self._batches.fetch(self._producer, cells, avoid, self._stopped)
        done = await self._producer.produce(
            cells, avoid=avoid, stopped=self._stopped, round_number=number, failures=known
        )
        self._stopped |= done.stopped
        for label, why in done.stopped.items():
            _logger.warning("%s is stopped: %s", label, why)
        said = await self._loop.after(done, number)
        self._extra = done.pending + said.new_cells + self._extra
        self._made += len(done.documents)
        summary = {
            "round": number,
            "documents": len(done.documents),
            "cursors": self._cursors,
            "pending": [dataclasses.asdict(cell) for cell in self._extra],
            "given_up": done.given_up,
            "outcomes": {label: dict(counts) for label, counts in done.outcomes.items()},
            "attempts": dict(done.attempts),
            "dollars_by_arm": dict(done.dollars),
            "paid_dollars": done.paid,
            "tokens": dict(done.tokens),
            "stopped_generators": done.stopped,
            "ended": done.ended,
            **said.summary,
        }
        self._store.commit(summary, done.documents, done.rejects, self._loop.arrays(done))
        _logger.info("round %d: %s", number, self._loop.line(done, self._made))
        return done.ended
