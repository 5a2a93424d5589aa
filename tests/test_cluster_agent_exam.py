"""The exam: judges without faults pass, and each faulty judge fails with the right reason."""

import dataclasses
import json

import pytest

from diversity_jax.cluster_agent import AgentConfig
from diversity_jax.cluster_agent.embedding_judge import EmbeddingJudge
from diversity_jax.cluster_agent.exam import GROUPINGS, cached_exam, exam_calls, exam_path, examine
from diversity_jax.cluster_agent.exam_result import HALF, ExamResult
from diversity_jax.cluster_agent.types import JudgeAnswer
from diversity_jax.core.errors import InputError
from tests.faulty_judges import exam_judge

CONFIG = AgentConfig(samples_per_grouping=10)


@pytest.mark.parametrize("k", [5, 10, 40])
def test_a_judge_that_knows_the_labels_reads_the_truth(tmp_path, k):
    result = examine(exam_judge("none"), AgentConfig(samples_per_grouping=k), tmp_path)
    assert result.verdict.judge == "fit"
    assert result.verdict.reasons == ()
    assert all(reading.reading.value == pytest.approx(reading.truth) for reading in result.readings)
    assert {reading.corpus for reading in result.readings} == set(GROUPINGS) - ({HALF} if k < 6 else set())


@pytest.mark.parametrize("rate", [0.01, 0.02, 0.05])
@pytest.mark.parametrize("verifier", ["honest", "yes"])
def test_a_judge_that_errs_at_random_passes(tmp_path, rate, verifier):
    for seed in range(3):
        judge = exam_judge("errors", rate=rate, verifier=verifier, seed=seed)
        assert examine(judge, CONFIG, tmp_path).verdict.judge == "fit"


@pytest.mark.parametrize(
    ("fault", "verdicts", "reason"),
    [
        ("at most 5", {"unfit"}, "of the pairs of unrelated subjects"),
        ("other", {"unfit"}, "of the pairs of unrelated subjects"),
        ("style", {"unfit"}, "sets apart 100 % of the pairs of one subject in two styles"),
        ("twos", {"doubtful", "unfit"}, "puts together 100 % of the pairs of neighbouring subjects"),
        ("fours", {"unfit"}, "12 subjects in pairs of neighbours read as 3"),
        ("position", {"unfit"}, "sets apart"),
        ("length", {"unfit"}, "of the pairs of unrelated subjects"),
        ("splits all", {"unfit"}, "no grouping was usable of 9 of 9 corpora"),
        ("merges all", {"unfit"}, "no grouping was usable of 9 of 9 corpora"),
    ],
)
def test_a_faulty_judge_does_not_pass_and_is_told_why(tmp_path, fault, verdicts, reason):
    verdict = examine(exam_judge(fault, rate=1.0, verifier="yes"), CONFIG, tmp_path).verdict
    assert verdict.judge in verdicts
    assert reason in " | ".join(verdict.reasons)


def test_a_judge_that_merges_more_when_shown_more_is_told_so(tmp_path):
    class Coarse(type(exam_judge("none"))):
        def _clusters(self, task):
            self.fault = "fours" if len(task.samples) > 15 else "none"
            return super()._clusters(task)

    judge = exam_judge("none", verifier="yes")
    judge.__class__ = Coarse
    verdict = examine(judge, AgentConfig(samples_per_grouping=20), tmp_path).verdict
    assert any("at K = 20 and 10" in reason for reason in verdict.reasons)


def test_a_second_exam_is_free_and_equal(tmp_path):
    judge = exam_judge("errors", rate=0.1)
    result = examine(judge, CONFIG, tmp_path)
    asked = judge.calls
    assert 150 < asked <= exam_calls(CONFIG) + judge.calls // 10
    assert examine(judge, CONFIG, tmp_path) == result == cached_exam(judge, CONFIG, tmp_path)
    assert judge.calls == asked
    assert ExamResult.from_json(json.loads(json.dumps(result.to_json())), "here") == result
    assert cached_exam(judge, AgentConfig(samples_per_grouping=9), tmp_path) is None
    assert cached_exam(exam_judge("errors", rate=0.2), CONFIG, tmp_path) is None


@pytest.mark.parametrize("content", ["{}", "[]", "not JSON", '{"version": 99}', '{"version": 1, "readings": [{}]}'])
def test_a_damaged_result_is_refused_by_name(tmp_path, content):
    judge = exam_judge("none")
    path = exam_path(judge, CONFIG, tmp_path)
    path.write_text(content)
    with pytest.raises(InputError, match=path.name):
        examine(judge, CONFIG, tmp_path)
    assert judge.calls == 0


def test_an_exam_that_the_budget_ends_leaves_nothing(tmp_path):
    class Poor(type(exam_judge("none"))):
        async def ask(self, task):
            if self.calls > 100:
                return JudgeAnswer(value=None, failure="budget", detail="budget.max_calls is spent", ends_run=True)
            return await super().ask(task)

    judge = exam_judge("none")
    judge.__class__ = Poor
    with pytest.raises(InputError, match=r"budget\.max_calls is spent"):
        examine(judge, CONFIG, tmp_path / "exams")
    assert not list(tmp_path.iterdir())


def test_an_embedding_judge_is_examined_by_ratios_and_may_refuse_a_language(tmp_path):
    result = examine(EmbeddingJudge(), CONFIG, tmp_path)
    assert result.verdict.judge in ("fit", "doubtful")
    assert result.scale > 2
    reasons = " | ".join(result.verdict.reasons)
    assert "times the number of subjects" in reasons
    assert "refuses 6 subjects in 13 languages" in reasons
    [refused] = [reading for reading in result.readings if reading.corpus == "languages"]
    assert result.graded(refused) == "refused"


def test_a_ruler_whose_readings_do_not_follow_the_truth_is_unfit(tmp_path):
    result = examine(exam_judge("position", verifier="yes"), AgentConfig(canary_share=0.0), tmp_path)
    assert dataclasses.replace(result, relative=True).verdict.judge == "unfit"
