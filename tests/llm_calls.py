"""An engine and requests to it for tests whose provider is a server on loopback."""

import asyncio

import pytest

from diversity_jax.llm import BudgetConfig, Engine, EngineConfig, Request

KEY = "sk-secret-0123456789abcdef"
SCHEMA = {
    "type": "object",
    "properties": {"word": {"type": "string"}, "score": {"type": "integer"}},
    "required": ["word", "score"],
    "additionalProperties": False,
}


@pytest.fixture(autouse=True)
def provider_keys(monkeypatch):
    for variable in ("OPENAI_API_KEY", "GEMINI_API_KEY"):
        monkeypatch.setenv(variable, KEY)
    for variable in ("OPENAI_BASE_URL", "GOOGLE_API_KEY"):
        monkeypatch.delenv(variable, raising=False)


def request(number: int = 0, **changes) -> Request:
    fields = {
        "stage": "propose_criteria",
        "system": "Say a word.",
        "user": f"number {number}",
        "schema": SCHEMA,
        "max_output_tokens": 200,
    }
    return Request(**fields | changes)


def engine_for(server, provider: str = "openai", *, budget: BudgetConfig = BudgetConfig(), **config) -> Engine:
    settings = {"backoff_seconds": 0.02, "deadline_seconds": 5.0, "progress": "off"} | config
    url = server.openai_url if provider == "openai" else server.gemini_url
    return Engine(f"{provider}:model", base_url=url, config=EngineConfig(**settings), budget=budget)


def ask(engine: Engine, requests: list[Request]) -> list:
    """Completions, or the exceptions in their place."""

    async def run():
        async with engine:
            return await asyncio.gather(*(engine.complete(r) for r in requests), return_exceptions=True)

    return asyncio.run(run())
