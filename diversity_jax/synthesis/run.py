"""Runs a generation: prepares topics, personas and arms, then generates rounds until the grid or budget is used up."""

import asyncio
from collections.abc import Mapping
import contextlib
import dataclasses
import functools
import itertools
import logging
import math
from typing import Any

from diversity_jax.core.config import plain_for_keys
from diversity_jax.core.errors import InputError
from diversity_jax.core.event_loop import run_to_end
from diversity_jax.core.formats import counted
from diversity_jax.llm import (
    BudgetConfig,
    CostForecast,
    Engine,
    PlannedCalls,
    StillRunning,
    estimate_tokens,
    forecast,
    parse_model,
    price_of,
    require_cap,
)
from diversity_jax.llm.response_cache import ResponseCacheFile
from diversity_jax.synthesis.arms import Arm, Cell, GenerationGrid
from diversity_jax.synthesis.config import SynthesisConfig
from diversity_jax.synthesis.feedback import Feedback
from diversity_jax.synthesis.generate_round import RoundGenerator
from diversity_jax.synthesis.steering import allocate_documents
from diversity_jax.synthesis.store import Store
from diversity_jax.synthesis.templates import Template, load_template
from diversity_jax.synthesis.topic_expansion import TopicExpander, load_personas, load_topics

_logger = logging.getLogger(__name__)
_FORECAST_PROMPTS = 50
# Settings that may change between processes without changing the component.
_NOT_CONTENT = (
    *("output_dir", "engine", "budget", "batch", "dry_run", "completion_tokens_expected"),
    *("judge_base_url", "judge_endpoint"),
)


def run(config: SynthesisConfig) -> Store | None:
    """Generates until the grid, the requested number of documents or the budget is used up; None after a dry run.

    In the folder of an earlier process it continues after the last committed round.

    Raises:
      InputError: bad settings or files, or no generator with usable answers.
    """
    return run_to_end(_run(config))


async def _run(config: SynthesisConfig) -> Store | None:
    if not config.generators:
        raise InputError("generators: is empty; name at least one, such as openai:gpt-4o-mini")
    templates = {template.name: template for template in map(load_template, config.grid.templates)}
    store = Store(config.output_dir)
    async with contextlib.AsyncExitStack() as stack:
        engines = await _open_engines(config, stack)
        expander = TopicExpander(next(iter(engines.values())), config)
        if not config.dry_run:
            store.check_settings(_content_settings(config, templates))
        addresses = [each.base_url for each in config.generators]
        prices = [price_of(*parse_model(each.model), each.base_url, config.budget) for each in config.generators]
        if not config.topics.source and any(price.output for price in prices):
            # Topics are paid for before there is a forecast.
            require_cap(CostForecast(dollars=math.inf), config.budget, addresses)
        topics = await load_topics(config, expander, store)
        uses_personas = any("personas" in template.used for template in templates.values())
        personas = await load_personas(config, expander, store) if uses_personas else []
        grid = GenerationGrid(config, templates, topics, personas)
        expected, line = _forecast(config, grid)
        _logger.info("forecast: %s", line)
        if config.dry_run:
            return None
        require_cap(expected, config.budget, addresses)
        generator = RoundGenerator(grid, engines, config)
        await _Rounds(config, store, grid, generator, Feedback(config, grid, expander, stack)).run()
    return store


async def _open_engines(config: SynthesisConfig, stack: contextlib.AsyncExitStack) -> dict[str, Engine]:
    """An engine for every generator, by label; one response cache and one cap for all."""
    several = len(config.generators) > 1 and config.engine.progress == "auto"
    progress = "lines" if several else config.engine.progress
    engines = {}
    for generator in config.generators:
        engine = Engine(
            generator.model,
            base_url=generator.base_url,
            endpoint=generator.endpoint,
            config=dataclasses.replace(config.engine_for(generator), progress=progress),
            budget=config.budget,
            role="generator",
        )
        if not (config.dry_run and config.topics.source):  # then no model is needed
            await stack.enter_async_context(engine)
        engines[generator.label] = engine
    return engines


def _content_settings(config: SynthesisConfig, templates: Mapping[str, Template]) -> dict[str, Any]:
    """The settings that determine a component's content, as JSON."""
    settings = {name: value for name, value in plain_for_keys(config).items() if name not in _NOT_CONTENT}
    del settings["grid"]["documents"]
    settings["generators"] = [
        {"model": generator.model, "name": generator.label, "weight": generator.weight}
        | ({"body": generator.endpoint.body} if generator.endpoint.body else {})
        for generator in config.generators
    ]
    settings["templates"] = {name: template.hash for name, template in templates.items()}
    return settings


def _forecast(config: SynthesisConfig, grid: GenerationGrid) -> tuple[CostForecast, str]:
    """The forecast of the full grid, from prompts of some of its cells; and a line for people."""
    arms, grid_topics = grid.arms.values(), grid.grid_topics
    documents = sum(min(grid_topics, arm.topics or grid_topics) for arm in arms) * config.grid.generations_per_topic
    documents = min(documents, config.grid.documents or documents)
    per_arm = -(-_FORECAST_PROMPTS // len(arms))
    cells = [cell for arm in arms for cell in itertools.islice(grid.cells(arm), per_arm)]
    requests = [grid.request(cell, ())[0] for cell in cells]
    prompt_tokens = sum(estimate_tokens(request.system) + estimate_tokens(request.user) for request in requests)
    weights = {label: each.weight if config.grid.mixed else 1.0 for label, each in grid.generators.items()}
    costs = {}
    for each in config.generators:
        plan = PlannedCalls(
            stage="generate",
            calls=round(documents * weights[each.label] / sum(weights.values())),
            prompt_tokens=prompt_tokens / len(requests),
            completion_tokens=config.completion_tokens_expected,
        )
        price = price_of(*parse_model(each.model), each.base_url, config.budget)
        price = price.times(config.engine_for(each).price_share)
        costs[each.label] = forecast([plan], price, config.budget)
    shown = "; ".join(f"{label}: {cost}" for label, cost in costs.items())
    total = functools.reduce(CostForecast.__add__, costs.values())
    return total, f"{counted(documents, 'document')} without redraws; {shown}"


class _Rounds:
    """The rounds of a run."""

    def __init__(
        self, config: SynthesisConfig, store: Store, grid: GenerationGrid, generator: RoundGenerator, feedback: Feedback
    ):
        self._config, self._store, self._grid = config, store, grid
        self._generator, self._feedback = generator, feedback
        self._cursors = dict.fromkeys(grid.arms, 0)  # cells of the grid taken so far
        self._pending: list[Cell] = []  # cells to generate first: unanswered ones, and those of new topics
        self._documents = 0

    async def run(self) -> None:
        """Runs until the requested documents exist, the grid is done, every arm is stopped or the budget is spent.

        Raises:
          InputError: every generator is stopped.
        """
        if self._store.rounds:
            await self._restore()
        grid = self._config.grid
        while grid.documents is None or self._documents < grid.documents:
            size = grid.documents_per_round
            cells = self._next_cells(size if grid.documents is None else min(size, grid.documents - self._documents))
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
            self._generator.check_any_left()

    async def _restore(self) -> None:
        """Restores the rounds of earlier processes."""
        await asyncio.to_thread(self._generator.restore, self._store.documents())
        await self._feedback.restore(self._store)
        last = self._store.rounds[-1]
        self._cursors |= last["cursors"]
        self._pending = [Cell(**cell) for cell in last["pending"]]
        self._documents = sum(summary["documents"] for summary in self._store.rounds)

    def _next_cells(self, size: int) -> list[Cell]:
        """The next round's cells: pending ones, then new ones in the arms' shares."""
        self._feedback.stop_arms_without_generator(self._generator.stopped)
        pending = [cell for cell in self._pending if self._feedback.is_wanted(cell)]
        cells, self._pending = pending[:size], pending[size:]
        while len(cells) < size and (shares := self._feedback.shares(len(self._store.rounds))):
            counts = allocate_documents(shares, self._feedback.dollars_each(), size - len(cells))
            for arm in self._grid.arms.values():
                if counts.get(arm.name):
                    cells += self._grid_cells(arm, counts[arm.name])
        return cells

    def _grid_cells(self, arm: Arm, count: int) -> list[Cell]:
        """The next `count` cells of an arm whose topics are not covered; stops the arm where there are fewer."""
        chosen: list[Cell] = []
        for cell in self._grid.cells(arm, self._cursors[arm.name]):
            if len(chosen) == count:
                return chosen
            self._cursors[arm.name] += 1
            if not self._feedback.is_covered(cell):
                chosen.append(cell)
        if len(chosen) < count:
            self._feedback.finish_arm(arm.name)
        return chosen

    async def _round(self, cells: list[Cell]) -> str | None:
        """Generates, measures and commits a round; returns why no further one can follow, or None."""
        number, avoid = len(self._store.rounds), self._feedback.avoid
        interrupted = self._store.open_round(number)
        with contextlib.ExitStack() as stack:
            failures = None
            if interrupted:
                failures = ResponseCacheFile(self._config.cache_path, run="", caps=BudgetConfig(), replay=True)
                stack.callback(failures.close)
            result = await self._generator.generate(cells, avoid=avoid, round_number=number, failures=failures)
        for label, why in result.stopped.items():
            _logger.warning("%s is stopped: %s", label, why)
        new_cells, summary = await self._feedback.measure_round(result, number)
        self._pending = result.pending + new_cells + self._pending
        self._documents += len(result.documents)
        summary |= {
            "round": number,
            "documents": len(result.documents),
            "cursors": self._cursors,
            "pending": [dataclasses.asdict(cell) for cell in self._pending],
            "given_up": result.given_up,
            "outcomes": {label: dict(counts) for label, counts in result.outcomes.items()},
            "attempts": dict(result.attempts),
            "dollars_by_arm": dict(result.dollars),
            "paid_dollars": result.paid,
            "tokens": dict(result.tokens),
            "stopped_generators": result.stopped,
            "ended": result.ended,
        }
        self._store.commit(summary, result.documents, result.rejects)
        _logger.info("round %d: %s", number, self._feedback.round_line(result, self._documents))
        return result.ended
