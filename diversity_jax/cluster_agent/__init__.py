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
        score_in_looks,
        score_until_decided,
    )
    from diversity_jax.cluster_agent.config import AgentConfig
    from diversity_jax.cluster_agent.cost_forecast import pilot_calls, plan_calls
    from diversity_jax.cluster_agent.criteria import Criteria, load_criteria, propose_criteria
    from diversity_jax.cluster_agent.embedding_judge import EmbeddingJudge
    from diversity_jax.cluster_agent.exam import cached_exam, examine, plan_exam
    from diversity_jax.cluster_agent.exam_result import ExamResult
    from diversity_jax.cluster_agent.injection_audit import Audit, audit
    from diversity_jax.cluster_agent.llm import LlmJudge
    from diversity_jax.cluster_agent.registry import JudgeSettings, exam_folder, judge_kind, open_judge
    from diversity_jax.cluster_agent.score import (
        ScoringProgress,
        score_corpora,
        score_corpus,
        score_corpus_async,
        score_key,
    )
    from diversity_jax.cluster_agent.scorecard import Scorecard
    from diversity_jax.cluster_agent.sequential_test import Comparison
    from diversity_jax.cluster_agent.types import Judge, JudgeAnswer
    from diversity_jax.cluster_agent.verdict import NothingUsable, UnusableScore
else:
    __getattr__ = lazy.exports(__name__)

__all__ = [
    "AgentConfig",
    "Audit",
    "Comparison",
    "Criteria",
    "Draws",
    "EmbeddingJudge",
    "ExamResult",
    "Judge",
    "JudgeAnswer",
    "JudgeSettings",
    "LlmJudge",
    "NothingUsable",
    "PairComparison",
    "Scorecard",
    "ScoringProgress",
    "Undecided",
    "UnusableScore",
    "audit",
    "cached_exam",
    "clusters_at_its_look",
    "compare_pairs",
    "drift",
    "exam_folder",
    "examine",
    "judge_kind",
    "load_criteria",
    "open_judge",
    "pilot_calls",
    "plan_calls",
    "plan_exam",
    "propose_criteria",
    "score_corpora",
    "score_corpus",
    "score_corpus_async",
    "score_draws",
    "score_in_looks",
    "score_key",
    "score_until_decided",
]
