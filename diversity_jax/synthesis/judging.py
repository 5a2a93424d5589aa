"""The cluster-agent as the steering's measure: a judge, and criteria proposed from what has been written."""

from collections.abc import Sequence
import contextlib
import dataclasses
from pathlib import Path
import random
from types import SimpleNamespace
from typing import Any

from diversity_jax.cluster_agent import Judge, LlmJudge, OfflineJudge, propose_criteria
from diversity_jax.llm import Engine
from diversity_jax.storage import content_hash
from diversity_jax.synthesis.clusters import JudgedClusters
from diversity_jax.synthesis.settings import SynthesisConfig


class _Texts:
    """Texts as a corpus that can be drawn from."""

    name = "documents so far"

    def __init__(self, texts: Sequence[str]):
        self._texts = texts

    def __len__(self) -> int:
        return len(self._texts)

    def sample(self, size: int, *, seed: int) -> list[Any]:
        """Without replacement, all where there are no more."""
        places = random.Random(seed).sample(range(len(self)), min(size, len(self)))
        return [SimpleNamespace(id=str(place), text=self._texts[place]) for place in places]

    def fingerprint(self) -> str:
        """Of all texts."""
        return content_hash(list(self._texts))


async def open_clusters(config: SynthesisConfig, texts: Sequence[str], stack: contextlib.AsyncExitStack) -> JudgedClusters:
    """Enters the judge of a configuration and lets it propose criteria from the texts at hand.

    Raises:
      InputError: an unknown judge, a missing key, or no criteria.
    """
    judge: Judge
    if config.judge == "offline":
        judge = OfflineJudge(list(texts), seed=config.seed)
    else:
        ledger = config.engine.ledger or str(Path(config.output_dir) / "ledger.sqlite")
        engine = dataclasses.replace(config.engine, ledger=ledger, progress="off")
        judge = await stack.enter_async_context(
            LlmJudge(Engine(config.judge, base_url=config.judge_base_url, config=engine, budget=config.budget))
        )
    proposed = await propose_criteria([_Texts(texts)], judge, config.agent)
    return JudgedClusters(judge, proposed.criteria, config.agent)
