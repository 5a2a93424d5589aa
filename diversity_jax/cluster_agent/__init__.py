"""Measures how diverse a corpus is: a judge groups small random samples of it, and estimators give intervals."""

from typing import TYPE_CHECKING

from diversity_jax.core import lazy

if TYPE_CHECKING:
    from diversity_jax.cluster_agent.compare import Draws as Draws
    from diversity_jax.cluster_agent.compare import PairComparison as PairComparison
    from diversity_jax.cluster_agent.compare import Undecided as Undecided
    from diversity_jax.cluster_agent.compare import clusters_at_its_look as clusters_at_its_look
    from diversity_jax.cluster_agent.compare import compare_pairs as compare_pairs
    from diversity_jax.cluster_agent.compare import drift as drift
    from diversity_jax.cluster_agent.compare import score_draws as score_draws
    from diversity_jax.cluster_agent.compare import score_draws_async as score_draws_async
    from diversity_jax.cluster_agent.compare import score_in_looks as score_in_looks
    from diversity_jax.cluster_agent.compare import score_in_looks_async as score_in_looks_async
    from diversity_jax.cluster_agent.compare import score_until_decided as score_until_decided
    from diversity_jax.cluster_agent.compare import score_until_decided_async as score_until_decided_async
    from diversity_jax.cluster_agent.config import AgentConfig as AgentConfig
    from diversity_jax.cluster_agent.cost_forecast import pilot_calls as pilot_calls
    from diversity_jax.cluster_agent.cost_forecast import pilot_calls_async as pilot_calls_async
    from diversity_jax.cluster_agent.cost_forecast import plan_calls as plan_calls
    from diversity_jax.cluster_agent.cost_forecast import plan_calls_async as plan_calls_async
    from diversity_jax.cluster_agent.criteria import Criteria as Criteria
    from diversity_jax.cluster_agent.criteria import load_criteria as load_criteria
    from diversity_jax.cluster_agent.criteria import propose_criteria as propose_criteria
    from diversity_jax.cluster_agent.embedding_judge import EmbeddingJudge as EmbeddingJudge
    from diversity_jax.cluster_agent.exam import cached_exam as cached_exam
    from diversity_jax.cluster_agent.exam import examine as examine
    from diversity_jax.cluster_agent.exam import examine_async as examine_async
    from diversity_jax.cluster_agent.exam import plan_exam as plan_exam
    from diversity_jax.cluster_agent.exam_result import ExamResult as ExamResult
    from diversity_jax.cluster_agent.injection_audit import Audit as Audit
    from diversity_jax.cluster_agent.injection_audit import audit as audit
    from diversity_jax.cluster_agent.injection_audit import audit_async as audit_async
    from diversity_jax.cluster_agent.llm import LlmJudge as LlmJudge
    from diversity_jax.cluster_agent.registry import JudgeSettings as JudgeSettings
    from diversity_jax.cluster_agent.registry import exam_folder as exam_folder
    from diversity_jax.cluster_agent.registry import judge_kind as judge_kind
    from diversity_jax.cluster_agent.registry import judge_note as judge_note
    from diversity_jax.cluster_agent.registry import open_judge as open_judge
    from diversity_jax.cluster_agent.score import ScoringProgress as ScoringProgress
    from diversity_jax.cluster_agent.score import score_corpora as score_corpora
    from diversity_jax.cluster_agent.score import score_corpora_async as score_corpora_async
    from diversity_jax.cluster_agent.score import score_corpus as score_corpus
    from diversity_jax.cluster_agent.score import score_corpus_async as score_corpus_async
    from diversity_jax.cluster_agent.score import score_key as score_key
    from diversity_jax.cluster_agent.scorecard import Scorecard as Scorecard
    from diversity_jax.cluster_agent.sequential_test import Comparison as Comparison
    from diversity_jax.cluster_agent.types import Judge as Judge
    from diversity_jax.cluster_agent.types import JudgeAnswer as JudgeAnswer
    from diversity_jax.cluster_agent.types import Task as Task
    from diversity_jax.cluster_agent.verdict import NothingUsable as NothingUsable
    from diversity_jax.cluster_agent.verdict import UnusableScore as UnusableScore
    from diversity_jax.cluster_agent.verdict import Verdict as Verdict
    from diversity_jax.core.intervals import Estimate as Estimate
else:
    __getattr__ = lazy.exports(__name__)
