"""Batch APIs: a round's requests are submitted once and their answers written to the response cache.

A batch is known by a tag, the hash of its requests. It is searched in `batches.json` and then, in case a process was
killed before it wrote there, at the provider; it is submitted only where neither knows the tag.
"""

import asyncio
from collections.abc import Collection, Mapping, Sequence
import dataclasses
import logging
from pathlib import Path
import time
from typing import Any

from diversity_jax.core.errors import InputError
from diversity_jax.core.files import content_hash, read_json, write_json
from diversity_jax.llm import CallFailed, Price, Request, parse_model, price_of
from diversity_jax.llm.budget import Amount, most_it_can_use
from diversity_jax.llm.providers.base import Reply, Transient
from diversity_jax.llm.providers.batch import BatchProvider, open_batches
from diversity_jax.llm.response_cache import ResponseCache
from diversity_jax.llm.types import CachedFailure, CachedResponse
from diversity_jax.synthesis.arms import Cell, Material
from diversity_jax.synthesis.config import GeneratorConfig, SynthesisConfig

_logger = logging.getLogger(__name__)
_ATTEMPTS = 8
_FIRST_PAUSE_SECONDS = 0.5


class StillRunning(Exception):
    """A batch is not answered within the configured wait; the same command collects it later."""


def generator_price(generator: GeneratorConfig, config: SynthesisConfig) -> Price:
    """The price of a generator's tokens, with the discount of its batches."""
    price = price_of(*parse_model(generator.model), generator.base_url, config.budget)
    share = config.batch.price_share if generator.batch else 1.0
    return dataclasses.replace(price, input=price.input * share, output=price.output * share)


class Batches:
    """The batches of one component; false, and without effect, where no generator uses batches."""

    def __init__(self, config: SynthesisConfig):
        self._config, self._path = config, Path(config.output_dir) / "batches.json"
        self._generators = [generator for generator in config.generators if generator.batch]

    def __bool__(self) -> bool:
        return bool(self._generators)

    async def fetch(
        self, material: Material, cells: Sequence[Cell], avoid: Sequence[str], stopped: Collection[str]
    ) -> None:
        """Writes answers of the cells' present attempts to the cache; requests that a batch leaves out are sent live.

        Raises:
          StillRunning: it takes longer than `batch.wait_seconds`.
          InputError: the provider refuses the batch.
        """
        for generator in self._generators:
            name = parse_model(generator.model)
            own_cells = [cell for cell in cells if material.generator_for(cell, stopped) == generator.label]
            requests = [material.request(cell, avoid)[0] for cell in own_cells]
            if requests:
                await self._fetch_from(generator, {request.key(*name): request for request in requests})

    async def _fetch_from(self, generator: GeneratorConfig, requests: Mapping[str, Request]) -> None:
        tag = f"diversity-{content_hash(sorted(requests))[:40]}"
        state = self._states().get(tag, {})
        if state.get("state") in ("collected", "failed"):
            return
        cache = ResponseCache(self._config.cache_path, run=self._config.engine.run, caps=self._config.budget)
        provider = open_batches(generator.model, base_url=generator.base_url)
        try:
            missing = {key: request for key, request in requests.items() if not await cache.find(key)}
            name = state.get("name") or await _with_retries(provider.find, tag)
            if name is None:
                affordable = self._within_budget(generator, missing, cache.spent_before)
                if not affordable:
                    return
                name = await _with_retries(provider.submit, tag, list(affordable.items()))
                _logger.info("%s: batch %s of %s requests handed in", generator.label, name, f"{len(affordable):,}")
            self._record_state(tag, generator, name, "submitted")
            answered = await self._wait(provider, generator, name)
            if answered:
                answers = await _with_retries(provider.collect, name)
                await self._store_answers(answers, missing, generator, cache)
            self._record_state(tag, generator, name, "collected" if answered else "failed")
        finally:
            await provider.close()
            await cache.close()

    def _within_budget(
        self, generator: GeneratorConfig, requests: Mapping[str, Request], spent: Amount
    ) -> dict[str, Request]:
        """The first requests that cannot pass the cap whatever the length of their answers."""
        price = generator_price(generator, self._config)
        affordable: dict[str, Request] = {}
        for key, request in requests.items():
            spent = spent.plus(most_it_can_use(request, price))
            if spent.passes(self._config.budget):
                break
            affordable[key] = request
        return affordable

    async def _wait(self, provider: BatchProvider, generator: GeneratorConfig, name: str) -> bool:
        """Whether the batch was answered, at least in part; False where all of it failed, which costs nothing."""
        began, config = time.monotonic(), self._config.batch
        while (batch := await _with_retries(provider.poll, name)).state == "running":
            if config.wait_seconds is not None and time.monotonic() - began >= config.wait_seconds:
                raise StillRunning(
                    f"{generator.label}: batch {name} is still running ({batch.detail}); run the same command again "
                    "to collect it"
                )
            await asyncio.sleep(config.poll_seconds)
        if batch.state == "failed":
            _logger.warning(
                "%s: batch %s failed (%s); its requests are asked one by one", generator.label, name, batch.detail
            )
        return batch.state == "done"

    async def _store_answers(
        self,
        answers: Mapping[str, Reply | CallFailed],
        missing: Mapping[str, Request],
        generator: GeneratorConfig,
        cache: ResponseCache,
    ) -> None:
        """Writes answers that the cache does not have yet, with their costs."""
        price, model = generator_price(generator, self._config), parse_model(generator.model)[1]
        commits = []
        for key, request in missing.items():
            answer = answers.get(key)
            if answer is None:
                continue
            prompt, completion = answer.prompt_tokens, answer.completion_tokens
            dollars = price.cost(prompt, completion)
            usage: dict[str, Any] = {"prompt_tokens": prompt, "completion_tokens": completion, "dollars": dollars}
            outcome: CachedResponse | CachedFailure
            if isinstance(answer, CallFailed):
                outcome = CachedFailure(stage=request.stage, reason=answer.reason, detail=answer.detail, **usage)
            else:
                outcome = CachedResponse(stage=request.stage, text=answer.text, model=model, **usage)
            commits.append(cache.commit(key, Amount(dollars, prompt + completion, 1), outcome))
        await asyncio.gather(*commits)
        if unanswered := len(missing) - len(commits):
            _logger.warning(
                "%s: %d requests came back without an answer; they are asked one by one", generator.label, unanswered
            )

    def _states(self) -> dict[str, dict[str, str]]:
        """Name and state of every batch, by tag."""
        return read_json(self._path) if self._path.exists() else {}

    def _record_state(self, tag: str, generator: GeneratorConfig, name: str, state: str) -> None:
        write_json(self._path, self._states() | {tag: {"generator": generator.label, "name": name, "state": state}})


async def _with_retries(call: Any, *arguments: Any) -> Any:
    """A call of a batch provider, repeated after passing failures.

    Raises:
      InputError: it keeps failing.
    """
    for attempt in range(_ATTEMPTS):
        try:
            return await call(*arguments)
        except Transient as error:
            if attempt + 1 == _ATTEMPTS:
                raise InputError(f"batch: {error.detail}; run again to go on") from None
            await asyncio.sleep((error.retry_after_seconds or 0) + _FIRST_PAUSE_SECONDS * 2**attempt)
