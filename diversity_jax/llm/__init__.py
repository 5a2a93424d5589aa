"""Language models: providers, one asynchronous engine, a cache of paid answers, and a budget with caps."""

from typing import TYPE_CHECKING

from diversity_jax.core import lazy

if TYPE_CHECKING:
    from diversity_jax.llm.batching import StillRunning as StillRunning
    from diversity_jax.llm.budget import BudgetConfig as BudgetConfig
    from diversity_jax.llm.budget import Price as Price
    from diversity_jax.llm.budget import price_of as price_of
    from diversity_jax.llm.cost_forecast import CostForecast as CostForecast
    from diversity_jax.llm.cost_forecast import PlannedCalls as PlannedCalls
    from diversity_jax.llm.cost_forecast import Stats as Stats
    from diversity_jax.llm.cost_forecast import Tokens as Tokens
    from diversity_jax.llm.cost_forecast import estimate_tokens as estimate_tokens
    from diversity_jax.llm.cost_forecast import forecast as forecast
    from diversity_jax.llm.cost_forecast import require_cap as require_cap
    from diversity_jax.llm.engine import Engine as Engine
    from diversity_jax.llm.providers.answers import read_json_answer as read_json_answer
    from diversity_jax.llm.providers.registry import parse_model as parse_model
    from diversity_jax.llm.types import BatchConfig as BatchConfig
    from diversity_jax.llm.types import CallFailed as CallFailed
    from diversity_jax.llm.types import Completion as Completion
    from diversity_jax.llm.types import EndpointConfig as EndpointConfig
    from diversity_jax.llm.types import EngineConfig as EngineConfig
    from diversity_jax.llm.types import Request as Request
    from diversity_jax.llm.types import Schema as Schema
else:
    __getattr__ = lazy.exports(__name__)
