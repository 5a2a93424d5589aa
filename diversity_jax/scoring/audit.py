"""Audit of a judge: its exam, and the effect of prompt injections on its figures of given corpora."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
import logging
from pathlib import Path
from typing import Any

from diversity_jax.cluster_agent import (
    Audit,
    ExamResult,
    audit,
    cached_exam,
    exam_folder,
    examine,
    judge_kind,
    open_judge,
    plan_calls,
    plan_exam,
)
from diversity_jax.core.artifacts import exclusive_lock
from diversity_jax.core.errors import InputError
from diversity_jax.core.files import write_json
from diversity_jax.corpus import Corpus
from diversity_jax.llm import PlannedCalls, require_cap
from diversity_jax.scoring.config import ScoreConfig
from diversity_jax.scoring.forecast import price_calls
from diversity_jax.scoring.run import open_corpora

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class AuditResult:
    """The result of an audit.

    Attributes:
      injections: by name of the corpus; empty where none is named.
      failures: by name of the corpus, why an unfit judge gave no figures.
    """

    exam: ExamResult
    injections: Mapping[str, Audit] = field(default_factory=dict)
    failures: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Exam and injections, nested."""
        injections = {name: injection.to_json() for name, injection in self.injections.items()}
        return {"exam": self.exam.to_json(), "injections": injections, "failures": dict(self.failures)}


def run_audit(config: ScoreConfig) -> AuditResult | None:
    """Examines the judge of a configuration, scores its corpora with injections, and writes `audit.json`; a dry run
    prints the forecast and returns None.

    Raises:
      InputError: a corpus cannot be read, the judge cannot be opened, calls would be paid for without a cap, or a run
        ended before it was done.
    """
    kind, output_dir = judge_kind(config.judge), Path(config.output_dir)
    corpora = open_corpora(config) if config.corpus or config.corpora else {}
    kind.check(config, not config.forecast_only)
    cache = output_dir / "ledger.sqlite"
    judge = open_judge(config, cache)
    cached = cached_exam(judge, config.agent, exam_folder(config, cache))
    planned = _plan(config, list(corpora.values()), with_exam=cached is None) if kind.is_llm else []
    cost = price_calls(config, planned) if planned else None
    log.info("%s, %s: %s", judge.label, "examined before" if cached else "with exam", cost or "nothing to pay")
    if config.dry_run:
        return None
    if cost:
        require_cap(cost, config.budget, [config.judge_base_url])
    with exclusive_lock(output_dir / ".score.lock", f"config.output_dir: {{holder}} is scoring in {output_dir}; wait"):
        exam = cached or examine(judge, config.agent, exam_folder(config, cache))
        injections, failures = _attack(config, corpora, cache, exam)
        result = AuditResult(exam=exam, injections=injections, failures=failures)
        write_json(output_dir / "audit.json", result.to_json())
    return result


def _plan(config: ScoreConfig, corpora: Sequence[Corpus], *, with_exam: bool) -> list[PlannedCalls]:
    """The calls of an audit: the exam's, and those of scoring each corpus without and with injections."""
    planned = plan_exam(config.agent) if with_exam else []
    for corpus in corpora:
        clean = plan_calls([corpus], config.agent)
        planned += [*clean, *(calls for calls in clean if calls.stage in ("cluster_samples", "verify_clusters"))]
    return planned


def _attack(
    config: ScoreConfig, corpora: Mapping[str, Corpus], cache: Path, exam: ExamResult
) -> tuple[dict[str, Audit], dict[str, str]]:
    """The audit of each corpus; and for those that an unfit judge could not score the reason."""
    injections, failures = {}, {}
    for name, corpus in corpora.items():
        judge = open_judge(config, cache)
        try:
            injections[name] = audit(corpus, judge, config.agent, share=config.hostile_share)
        except InputError as error:
            if exam.verdict.judge != "unfit":
                raise
            failures[name] = str(error)
    return injections, failures
