"""One door to language models: providers, one asynchronous engine, a ledger of paid answers, a hard budget."""

from diversity_jax.llm.budget import BudgetConfig, Price, price_of
from diversity_jax.llm.client import CallFailed, Completion, Request, Schema
from diversity_jax.llm.engine import Engine
from diversity_jax.llm.forecasting import Forecast, PlannedCalls, Tokens, forecast
from diversity_jax.llm.providers import parse_model
from diversity_jax.llm.settings import EngineConfig, Stats
from diversity_jax.llm.tokens import estimate_tokens

__all__ = [
    "BudgetConfig",
    "CallFailed",
    "Completion",
    "Engine",
    "EngineConfig",
    "Forecast",
    "PlannedCalls",
    "Price",
    "Request",
    "Schema",
    "Stats",
    "Tokens",
    "estimate_tokens",
    "forecast",
    "parse_model",
    "price_of",
]
