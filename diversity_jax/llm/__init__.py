"""Language models: providers, one asynchronous engine, a cache of paid answers, and a budget with caps."""

from typing import TYPE_CHECKING

from diversity_jax.core import lazy

if TYPE_CHECKING:
    from diversity_jax.llm.batching import StillRunning
    from diversity_jax.llm.budget import BudgetConfig, Price, price_of
    from diversity_jax.llm.cost_forecast import (
        CostForecast,
        PlannedCalls,
        Stats,
        Tokens,
        estimate_tokens,
        forecast,
        require_cap,
    )
    from diversity_jax.llm.engine import Engine
    from diversity_jax.llm.providers.answers import read_json_answer
    from diversity_jax.llm.providers.registry import parse_model
    from diversity_jax.llm.types import (
        BatchConfig,
        CallFailed,
        Completion,
        EndpointConfig,
        EngineConfig,
        Request,
        Schema,
    )
else:
    __getattr__ = lazy.exports(__name__)

__all__ = [
    "BatchConfig",
    "BudgetConfig",
    "CallFailed",
    "Completion",
    "CostForecast",
    "EndpointConfig",
    "Engine",
    "EngineConfig",
    "PlannedCalls",
    "Price",
    "Request",
    "Schema",
    "Stats",
    "StillRunning",
    "Tokens",
    "estimate_tokens",
    "forecast",
    "parse_model",
    "price_of",
    "read_json_answer",
    "require_cap",
]
