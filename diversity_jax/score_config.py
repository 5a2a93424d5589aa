"""The configuration of a scoring run. Apart from the others, because it needs neither JAX nor a model and a scoring starts at once."""

from dataclasses import dataclass, field

from diversity_jax.cluster_agent import AgentConfig
from diversity_jax.corpus import CorpusConfig
from diversity_jax.errors import InputError
from diversity_jax.llm import BudgetConfig, EngineConfig
from diversity_jax.metrics import MetricsConfig, chosen_metrics


@dataclass(frozen=True, kw_only=True)
class NamedCorpus:
    """A corpus and the name it is shown under."""

    name: str
    corpus: CorpusConfig


@dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """What `python -m diversity_jax.score` measures.

    Attributes:
      output_dir: for scorecard.json, groupings.jsonl, report.html and the ledger of paid answers.
      corpus: a source, or several joined by commas: see `CorpusConfig.source`.
      corpora: more, each with a name and settings of its own.
      text_field: the key that holds the text, for sources named in `corpus`.
      judge, judge_base_url, agent, engine, budget: as in a training run; judge `none` asks nobody, for the baseline metrics alone.
      metrics: baseline metrics to measure beside: `all`, `lexical`, `embedding`, `perplexity`, or names joined by commas; none by default.
      baseline: how they are measured.
      dry_run: print the forecast of calls, tokens and dollars, and stop.
      hostile_share: share of documents that `python -m diversity_jax.audit` makes hostile.
    """

    output_dir: str = "runs/score"
    corpus: str | None = None
    corpora: tuple[NamedCorpus, ...] = ()
    text_field: str = "text"
    judge: str = "offline"
    judge_base_url: str | None = None
    agent: AgentConfig = field(default_factory=AgentConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    metrics: str = ""
    baseline: MetricsConfig = field(default_factory=MetricsConfig)
    dry_run: bool = False
    hostile_share: float = 0.01

    def __post_init__(self):
        chosen_metrics(self.metrics, self.baseline)
        if self.judge == "none" and not self.metrics:
            raise InputError("config.judge=none and no config.metrics: nothing to do; add --config.metrics=all, or name a judge")
