"""Measures how diverse a corpus is: a judge groups small random samples of it, and estimators give intervals."""

from typing import TYPE_CHECKING

from diversity_jax.core import lazy

if TYPE_CHECKING:
    from diversity_jax.cluster_agent.compare import (
        Draws,
        PairComparison,
        Undecided,
        clusters_at_its_look,
        compare_pairs,
        drift,
        score_draws,
        score_draws_async,
        score_in_looks,
        score_in_looks_async,
        score_until_decided,
        score_until_decided_async,
    )
    from diversity_jax.cluster_agent.config import AgentConfig
    from diversity_jax.cluster_agent.cost_forecast import pilot_calls, pilot_calls_async, plan_calls, plan_calls_async
    from diversity_jax.cluster_agent.criteria import Criteria, load_criteria, propose_criteria
    from diversity_jax.cluster_agent.embedding_judge import EmbeddingJudge
    from diversity_jax.cluster_agent.exam import cached_exam, examine, examine_async, plan_exam
    from diversity_jax.cluster_agent.exam_result import ExamResult
    from diversity_jax.cluster_agent.injection_audit import Audit, audit, audit_async
    from diversity_jax.cluster_agent.llm import LlmJudge
    from diversity_jax.cluster_agent.registry import JudgeSettings, exam_folder, judge_kind, judge_note, open_judge
    from diversity_jax.cluster_agent.score import (
        ScoringProgress,
        score_corpora,
        score_corpora_async,
        score_corpus,
        score_corpus_async,
        score_key,
    )
    from diversity_jax.cluster_agent.scorecard import Scorecard
    from diversity_jax.cluster_agent.sequential_test import Comparison
    from diversity_jax.cluster_agent.types import Judge, JudgeAnswer, Task
    from diversity_jax.cluster_agent.verdict import NothingUsable, UnusableScore, Verdict
    from diversity_jax.core.intervals import Estimate
else:
    __getattr__ = lazy.exports(__name__)

__all__ = [
    "AgentConfig",
    "Audit",
    "Comparison",
    "Criteria",
    "Draws",
    "EmbeddingJudge",
    "Estimate",
    "ExamResult",
    "Judge",
    "JudgeAnswer",
    "JudgeSettings",
    "LlmJudge",
    "NothingUsable",
    "PairComparison",
    "Scorecard",
    "ScoringProgress",
    "Task",
    "Undecided",
    "UnusableScore",
    "Verdict",
    "audit",
    "audit_async",
    "cached_exam",
    "clusters_at_its_look",
    "compare_pairs",
    "drift",
    "exam_folder",
    "examine",
    "examine_async",
    "judge_kind",
    "judge_note",
    "load_criteria",
    "open_judge",
    "pilot_calls",
    "pilot_calls_async",
    "plan_calls",
    "plan_calls_async",
    "plan_exam",
    "propose_criteria",
    "score_corpora",
    "score_corpora_async",
    "score_corpus",
    "score_corpus_async",
    "score_draws",
    "score_draws_async",
    "score_in_looks",
    "score_in_looks_async",
    "score_key",
    "score_until_decided",
    "score_until_decided_async",
]
