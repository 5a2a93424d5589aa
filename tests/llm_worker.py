"""A process that sends numbered questions, to be run beside another one or killed: `python -m tests.llm_worker
SETTINGS_JSON`.

Settings: `url`, `first`, `last`, `config` (of EngineConfig), `budget` (of BudgetConfig), `model`. Prints `ready` when
it starts to ask, and at the end one JSON line: outcomes by kind, a hash of all answers, attempts.
"""

import asyncio
from collections import Counter
import json
import subprocess
import sys
from typing import Any

from diversity_jax.core.files import content_hash
from diversity_jax.llm import BudgetConfig, CallFailed, Engine, EngineConfig, Request

MODEL = "openai:gpt-4o-mini"


def question(number: int) -> Request:
    """The question with this number."""
    return Request(
        stage="propose_criteria",
        system="Repeat the number.",
        user=f"number {number}",
        schema=None,
        max_output_tokens=50,
    )


def number_of(user: str) -> int:
    """The number in a question's user message."""
    return int(user.rsplit(" ", 1)[1])


def key_of(number: int) -> str:
    """The response cache's key of a question."""
    return question(number).key(*MODEL.split(":"))


async def _ask(settings: dict[str, Any]) -> dict[str, Any]:
    config = EngineConfig(progress="off", backoff_seconds=0.02, **settings["config"])
    engine = Engine(
        settings.get("model", MODEL),
        base_url=settings["url"],
        config=config,
        budget=BudgetConfig(**settings.get("budget", {})),
    )
    async with engine:
        print("ready", flush=True)
        calls = [engine.complete(question(number)) for number in range(settings["first"], settings["last"])]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
    kinds = Counter(
        o.reason if isinstance(o, CallFailed) else type(o).__name__ if isinstance(o, Exception) else "answered"
        for o in outcomes
    )
    answers = [
        [o.text, o.prompt_tokens, o.completion_tokens, o.cost_usd] for o in outcomes if not isinstance(o, Exception)
    ]
    return {
        "kinds": kinds,
        "answers": content_hash(answers),
        "attempts": engine.stats.attempts,
        "cached": engine.stats.cached,
    }


def start(**settings: Any) -> subprocess.Popen:
    """Starts a worker and waits until it asks."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.llm_worker", json.dumps(settings)], stdout=subprocess.PIPE, text=True
    )
    if process.stdout.readline() != "ready\n":
        raise RuntimeError("the worker did not start")
    return process


def result(process: subprocess.Popen) -> dict[str, Any]:
    """What a worker printed at its end."""
    output, _ = process.communicate(timeout=120)
    return json.loads(output)


if __name__ == "__main__":
    print(json.dumps(asyncio.run(_ask(json.loads(sys.argv[1])))))
