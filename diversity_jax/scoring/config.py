"""The configuration of a scoring run."""

from dataclasses import dataclass, field
import os
import re

from diversity_jax.cluster_agent import AgentConfig, judge_kind
from diversity_jax.core.config import ADDED, check_kinds
from diversity_jax.core.errors import InputError
from diversity_jax.corpus import CorpusConfig
from diversity_jax.llm import BudgetConfig, EndpointConfig, EngineConfig
from diversity_jax.metrics import MetricsConfig, chosen_metrics


def is_name(name: str) -> bool:
    """Whether a corpus may have this name, which may be a folder's."""
    return bool(re.fullmatch(r"\w[\w .+@-]{0,99}", name))


@dataclass(frozen=True, kw_only=True)
class NamedCorpus:
    """A corpus with its name in outputs."""

    name: str  # also of its folder, where there are several
    corpus: CorpusConfig

    def __post_init__(self):
        if not is_name(self.name):
            expected = "letters, digits and _ . + @ - or blanks, at most 100, with a letter or digit first"
            raise InputError(f"config.corpora: name {self.name[:120]!r} is to be a folder's too; use {expected}")


@dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """Settings of `python -m diversity_jax.score`.

    Attributes:
      output_dir: for scorecard.json, groupings.jsonl, report.html and the cache of paid answers.
      overwrite: replace the scores of other corpora in `output_dir`.
      corpus: a source, or several joined by commas (those in `{a,b}` aside): see `CorpusConfig.source`.
      corpora: further corpora, each with a name and settings.
      text_field: the key that holds the text, for sources named in `corpus`.
      judge: `offline` (word vectors, no LLM), `embedding:EMBEDDER`, `openai:MODEL`, `gemini:MODEL` or
        `google-genai:MODEL`; `none` measures baseline metrics only.
      judge_base_url: address of an OpenAI-compatible server, such as http://127.0.0.1:8000/v1.
      judge_endpoint: extra headers, query and body fields for this server.
      agent: how many groupings, of how many samples, by how many criteria.
      engine: how a language model is called.
      budget: caps on its cost.
      metrics: baseline metrics to measure too: `all`, `lexical`, `embedding`, `perplexity`, or names joined by
        commas; none by default.
      baseline: how they are measured.
      dry_run: print the forecast of calls, tokens and dollars, and stop.
      pilot_groupings: groupings of each corpus that are judged first, so that the forecast uses this judge's mean
        tokens; they are paid for once, and the run gets them from the cache. With `dry_run` it stops after them. 30 are
        enough for most judges.
      draws: score so many independent draws of each corpus too (the paper has 10) and report their spread; 0 is none.
      draw_size: documents of a draw; the paper has a million.
      drift_samples_per_grouping: score each corpus at this K too, and test whether the judge drifts, that is groups it
        differently; 0 is no test.
      until_decided: of two corpora, stop at the first of `looks` planned looks that decides which is more diverse,
        after at most `agent.groupings` groupings of each. The error `alpha` holds over all looks together.
      looks: planned looks of that test.
      alpha: two-sided error rate of that test, and of the test of drift.
      hostile_share: share of documents in which `python -m diversity_jax.audit` plants injections.
      exam_dir: folder of the results of judges' exams, for all runs; by default `exams` beside the cache of paid
        answers.
    """

    output_dir: str = "runs/score"
    overwrite: bool = field(default=False, metadata=ADDED)
    corpus: str | None = None
    corpora: tuple[NamedCorpus, ...] = ()
    text_field: str = "text"
    judge: str = "offline"
    judge_base_url: str | None = None
    judge_endpoint: EndpointConfig = field(default_factory=EndpointConfig, metadata=ADDED)
    agent: AgentConfig = field(default_factory=AgentConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    metrics: str = ""
    baseline: MetricsConfig = field(default_factory=MetricsConfig)
    dry_run: bool = False
    hostile_share: float = 0.01
    exam_dir: str | None = field(default=None, metadata=ADDED)
    pilot_groupings: int = 0
    draws: int = 0
    draw_size: int = 1_000_000
    drift_samples_per_grouping: int = 0
    until_decided: bool = False
    looks: int = 8
    alpha: float = 0.05

    @property
    def forecast_only(self) -> bool:
        """Whether no call is made and no folder read or written: a dry run without pilot groupings."""
        return self.dry_run and not self.pilot_groupings

    def __post_init__(self):
        check_kinds(self, "config.")
        if self.draws < 0 or self.draws == 1 or self.draw_size < 1 or self.pilot_groupings < 0:
            values = f"draws={self.draws}, draw_size={self.draw_size}, pilot_groupings={self.pilot_groupings}"
            raise InputError(f"config.{values}: give 2 draws or more of at least one document, or 0 for none")
        other, own = self.drift_samples_per_grouping, self.agent.samples_per_grouping
        if other and not 2 <= other != own:
            raise InputError(f"config.drift_samples_per_grouping: is {other}; give a K of 2 or more other than {own}")
        if self.looks < 1 or not 0 < self.alpha < 1:
            raise InputError(f"config.looks={self.looks}, alpha={self.alpha}: give at least 1, and a rate such as 0.05")
        names = [corpus.name for corpus in self.corpora]
        if len(set(names)) < len(names):
            raise InputError(f"config.corpora: two have one name ({', '.join(names)}); give each its own")
        chosen_metrics(self.metrics, self.baseline)
        if judge_kind(self.judge).open is None and not self.metrics:
            raise InputError("config.judge=none without config.metrics: nothing to do; name a judge, or metrics=all")


def named_corpora(config: ScoreConfig) -> dict[str, CorpusConfig]:
    """The corpora of a configuration by name, not opened.

    Raises:
      InputError: none is named.
    """
    named = {corpus.name: corpus.corpus for corpus in config.corpora}
    for source in _sources(config.corpus or ""):
        name = name_of_source(source)
        number = 2
        while name in named:
            name, number = f"{name_of_source(source)}_{number}", number + 1
        named[name] = CorpusConfig(source=source.strip(), text_field=config.text_field)
    if not named:
        raise InputError("config.corpus is not set; name a file, such as texts.jsonl.gz, or several with commas")
    return named


def _sources(corpus: str) -> list[str]:
    """Sources with commas between them; a comma in braces, or in the name of a file, divides none."""
    return [corpus] if os.path.exists(corpus) else [each for each in re.split(r",(?![^{}]*\})", corpus) if each.strip()]


def name_of_source(source: str) -> str:
    """A short name for a source: its file name without folders and endings."""
    stem = re.split(r"[/\\]", source.strip().rstrip("/"))[-1].split(".")[0]
    return re.sub(r"\W+", "_", stem).strip("_") or "corpus"
