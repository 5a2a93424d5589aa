"""An audit of a judge: the exam, and what hostile documents do to its figures of the corpora at hand."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
import logging
from pathlib import Path
from typing import Any

from diversity_jax.cluster_agent import (
    Audit,
    ExamResult,
    Judge,
    audit,
    cached_exam,
    exam_folder,
    examine,
    judge_kind,
    open_judge,
    plan_calls,
    plan_exam,
)
from diversity_jax.cluster_agent.exam_corpora import exam_corpora
from diversity_jax.core.errors import InputError
from diversity_jax.core.files import write_json
from diversity_jax.corpus import Corpus
from diversity_jax.llm import PlannedCalls, forecast, parse_model, price_of
from diversity_jax.scoring.config import ScoreConfig
from diversity_jax.scoring.run import open_corpora

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class AuditResult:
    """What an audit found.

    Attributes:
      injections: by the name of the corpus; empty where none is named.
      failures: by the same name, why an unfit judge gave nothing to compare.
    """

    exam: ExamResult
    injections: Mapping[str, Audit] = field(default_factory=dict)
    failures: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Exam and injections, nested."""
        injections = {name: found.to_json() for name, found in self.injections.items()}
        return {"exam": self.exam.to_json(), "injections": injections, "failures": dict(self.failures)}


def run_audit(config: ScoreConfig) -> AuditResult | None:
    """Examines the judge of a configuration, plants injections in its corpora, and writes `audit.json`; a dry run
    prints the forecast alone and returns None.

    Raises:
      InputError: a corpus cannot be read, the judge cannot be opened, or a run ended before it was done.
    """
    corpora = open_corpora(config) if config.corpus or config.corpora else {}
    cache = Path(config.output_dir) / "ledger.sqlite"
    judge = open_judge(config, list(exam_corpora().values()), cache)
    done = cached_exam(judge, config.agent, exam_folder(config, cache))
    log.info("%s", _forecast(config, list(corpora.values()), judge, done))
    if config.dry_run:
        return None
    exam = done or examine(judge, config.agent, exam_folder(config, cache))
    injections, failures = {}, {}
    for name, corpus in corpora.items():
        judge = open_judge(config, [corpus], cache)
        try:
            injections[name] = audit(corpus, judge, config.agent, share=config.hostile_share)
        except InputError as error:
            if exam.verdict.judge != "unfit":
                raise
            failures[name] = str(error)  # an unfit judge may give nothing usable; the page says so
    result = AuditResult(exam=exam, injections=injections, failures=failures)
    write_json(Path(config.output_dir) / "audit.json", result.to_json())
    return result


def _forecast(config: ScoreConfig, corpora: Sequence[Corpus], judge: Judge, done: ExamResult | None) -> str:
    """What the audit is expected to use, as a line."""
    examined = "examined before" if done else "with exam"
    if not judge_kind(config.judge).is_llm:
        return f"judge: {judge.label}, {examined}, nothing to pay"
    planned: list[PlannedCalls] = [] if done else plan_exam(config.agent)
    for corpus in corpora:  # once clean, and once with injections by the same criteria
        clean = plan_calls([corpus], config.agent)
        planned += [*clean, *(calls for calls in clean if calls.stage in ("cluster_samples", "verify_clusters"))]
    if not planned:
        return f"judge: {judge.label}, examined before, nothing to ask"
    price = price_of(*parse_model(config.judge), config.judge_base_url, config.budget)
    return f"forecast, {examined}: {forecast(planned, price, config.budget)} (judge: {config.judge})"
