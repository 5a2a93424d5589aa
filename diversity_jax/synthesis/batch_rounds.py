"""Rounds through batch APIs: handed in once, waited for over restarts, collected into the ledger, where the round finds
its answers.

A batch is known by a tag, the hash of what it asks. It is looked for in `batches.json` and then, in case a process was
killed before it could write there, at the provider; only a tag that nobody knows is handed in.
"""

import asyncio
from collections.abc import Mapping, Sequence
import logging
from pathlib import Path
import time
from typing import Any

from diversity_jax.core.errors import InputError
from diversity_jax.core.files import content_hash, read_json, write_json
from diversity_jax.llm import CallFailed, Request, parse_model, price_of
from diversity_jax.llm.budget import Amount, most_it_can_use
from diversity_jax.llm.providers.base import Reply, Transient
from diversity_jax.llm.providers.batch import BatchProvider, open_batches
from diversity_jax.llm.response_cache import ResponseCache
from diversity_jax.llm.response_cache_file import CachedFailure, CachedResponse
from diversity_jax.synthesis.arms import Cell
from diversity_jax.synthesis.config import GeneratorConfig, SynthesisConfig
from diversity_jax.synthesis.generate_round import Producer

_logger = logging.getLogger(__name__)
_ATTEMPTS = 8
_FIRST_PAUSE_SECONDS = 0.5


class StillRunning(Exception):
    """A batch is not answered within the time the command was to wait; run it again to go on."""


class Batches:
    """The batches of one component; nothing happens where no generator asks for them."""

    def __init__(self, config: SynthesisConfig, folder: Path, ledger: str):
        self._config, self._path, self._ledger_path = config, folder / "batches.json", ledger
        self._generators = [one for one in config.generators if one.batch]

    @property
    def used(self) -> bool:
        """Whether any generator is asked in batches."""
        return bool(self._generators)

    async def fetch(
        self, producer: Producer, cells: Sequence[Cell], avoid: Sequence[str], stopped: Mapping[str, str]
    ) -> None:
        """Answers of the cells' present attempts into the ledger. What a batch does not answer is asked for live
        afterwards.

        Raises:
          StillRunning: it takes longer than `batch.wait_seconds`.
          InputError: the provider refuses the batch.
        """
        for generator in self._generators:
            name = parse_model(generator.model)
            mine = [cell for cell in cells if producer.label_of(cell, stopped) == generator.label]
            requests = {request.key(*name): request for request in (producer.request(cell, avoid)[0] for cell in mine)}
            if requests:
                await self._fetch_from(generator, requests)

    async def _fetch_from(self, generator: GeneratorConfig, requests: Mapping[str, Request]) -> None:
        tag = f"diversity-{content_hash(sorted(requests))[:40]}"
        states = read_json(self._path) if self._path.exists() else {}
        if states.get(tag, {}).get("state") in ("collected", "failed"):
            return
        ledger = ResponseCache(self._ledger_path, run=self._config.engine.run, caps=self._config.budget)
        provider = open_batches(generator.model, base_url=generator.base_url)
        try:
            missing = {key: request for key, request in requests.items() if not await ledger.find(key)}
            name = states.get(tag, {}).get("name") or await _patiently(provider.find, tag)
            if name is None:
                fitting = self._within_budget(generator, missing, ledger.spent_before)
                if not fitting:
                    return
                name = await _patiently(provider.submit, tag, list(fitting.items()))
                _logger.info("%s: batch %s of %s requests handed in", generator.label, name, f"{len(fitting):,}")
            self._note(tag, generator, name, "submitted")
            if await self._wait(provider, generator, name):
                await self._settle(await _patiently(provider.collect, name), missing, generator, ledger)
                self._note(tag, generator, name, "collected")
            else:
                self._note(tag, generator, name, "failed")
        finally:
            await provider.close()
            await ledger.close()

    def _within_budget(
        self, generator: GeneratorConfig, requests: Mapping[str, Request], spent: Amount
    ) -> dict[str, Request]:
        """The first requests that cannot pass the cap whatever they are answered."""
        budget, share = self._config.budget, self._config.batch.price_share
        price = price_of(*parse_model(generator.model), generator.base_url, budget)
        fitting = {}
        for key, request in requests.items():
            most = most_it_can_use(request, price)
            spent = spent.plus(Amount(most.dollars * share, most.tokens, most.calls))
            if spent.passes(budget):
                break
            fitting[key] = request
        return fitting

    async def _wait(self, provider: BatchProvider, generator: GeneratorConfig, name: str) -> bool:
        """Whether the batch was answered, at least in part; False where it failed as a whole, which costs nothing."""
        began, settings = time.monotonic(), self._config.batch
        while (found := await _patiently(provider.poll, name)).state == "running":
            if settings.wait_seconds is not None and time.monotonic() - began >= settings.wait_seconds:
                raise StillRunning(
                    f"{generator.label}: batch {name} is still running ({found.detail}); run the same command again "
                    "to collect it"
                )
            await asyncio.sleep(settings.poll_seconds)
        if found.state == "failed":
            _logger.warning(
                "%s: batch %s failed (%s); its requests are asked one by one", generator.label, name, found.detail
            )
        return found.state == "done"

    async def _settle(
        self,
        answers: Mapping[str, Reply | CallFailed],
        missing: Mapping[str, Request],
        generator: GeneratorConfig,
        ledger: ResponseCache,
    ) -> None:
        """Writes answers that the ledger does not have yet, with what they cost."""
        provider, model = parse_model(generator.model)
        price = price_of(provider, model, generator.base_url, self._config.budget)
        settled = []
        for key, request in missing.items():
            answer = answers.get(key)
            if answer is None:
                continue
            dollars = price.cost(answer.prompt_tokens, answer.completion_tokens) * self._config.batch.price_share
            counts: dict[str, Any] = {
                "prompt_tokens": answer.prompt_tokens,
                "completion_tokens": answer.completion_tokens,
                "dollars": dollars,
            }
            outcome: CachedResponse | CachedFailure
            if isinstance(answer, CallFailed):
                outcome = CachedFailure(stage=request.stage, reason=answer.reason, detail=answer.detail, **counts)
            else:
                outcome = CachedResponse(stage=request.stage, text=answer.text, model=model, **counts)
            spent = Amount(dollars, answer.prompt_tokens + answer.completion_tokens, 1)
            settled.append(ledger.commit(key, spent, outcome))
        await asyncio.gather(*settled)
        if len(settled) < len(missing):
            _logger.warning(
                "%s: %d requests came back without an answer; they are asked one by one",
                generator.label,
                len(missing) - len(settled),
            )

    def _note(self, tag: str, generator: GeneratorConfig, name: str, state: str) -> None:
        states = read_json(self._path) if self._path.exists() else {}
        write_json(self._path, states | {tag: {"generator": generator.label, "name": name, "state": state}})


async def _patiently(call: Any, *arguments: Any) -> Any:
    """A call of a batch provider, again after passing failures.

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
