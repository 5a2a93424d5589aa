"""Settings of the cluster agent."""

from dataclasses import dataclass, field
from typing import Any

from diversity_jax.cluster_agent.text_cleaning import child_seed
from diversity_jax.cluster_agent.types import Task
from diversity_jax.core.config import ADDED, check_kinds, check_least
from diversity_jax.core.errors import InputError

READING_LENGTHS = (5, 7, 10, 15, 20, 30, 50, 70, 100, 140, 200)
"""Numbers of words of each text that an embedding judge may read."""

VERIFIED_FIRST = 40  # first groupings, all verified, from which the share of the others to verify is chosen
VERIFIED_EXPECTED = 0.25  # the share that is usually chosen; taken in batches, which do not wait for the first ones
_LARGEST = 2**31  # of `child_seed`, exclusive
# Settings that are not stored among a score's parameters: they do not change it, or are stored separately.
_NOT_PARAMETERS = ("seed", "in_flight", "examples", "criteria")


@dataclass(frozen=True, kw_only=True)
class AgentConfig:
    """Settings of a scoring, with the paper's symbols in brackets."""

    # Samples shown in one grouping [K]. Larger is cheaper for the same precision, until the judge merges too much (see
    # `drift`). 0 lets the run choose 40, 20 or 10: the most samples that this judge groups as it does half of them.
    samples_per_grouping: int = 10
    # Groupings, up to two calls each [N]. The paper's 5,000 give +-5 % up to about 150 effective clusters.
    groupings: int = 1000
    # Samples shown for one proposal of criteria [J].
    samples_per_proposal: int = 5
    # Proposals for EACH criteria set [M]; the paper's 100 are 5 sets of 20.
    proposals: int = 20
    # Metadata criteria of a set, and as many metrics [k].
    criteria_count: int = 4
    # Independent criteria sets [B]. With one, the interval does not include the variance due to the choice of criteria.
    criteria_sets: int = 5
    # Whether a second call verifies partitions; without it no cluster is invalid.
    verify: bool = True
    # Share of the groupings that are verified, drawn at random; figures of the others are corrected by the change that
    # verification makes to these. None lets the run choose.
    verify_share: float | None = field(default=None, metadata=ADDED)
    # Share of the groupings of which a random half is judged again: to measure how far the judge repeats itself, and
    # whether it groups the same pairs differently among fewer samples. Deterministic judges are not asked again.
    recheck_share: float = field(default=0.2, metadata=ADDED)
    # Reduce the variance of the figures by a control variate, the similarity of fixed word vectors: fewer groupings for
    # the same precision, and unbiased however good the vectors are.
    control_variate: bool = field(default=True, metadata=ADDED)
    # Share of the groupings in which canaries are planted: a duplicate and a foreign text. The others are cheaper by
    # two samples, but effects of hostile documents in them go unnoticed.
    canary_share: float = 1.0
    # Whether to report effective clusters corrected for the judge's errors on canaries too.
    correct_judge_error: bool = False
    # Seed of all random choices: documents, order, sample ids, canaries.
    seed: int = 0
    # File of criteria written by hand, or a scorecard.json whose criteria are used; None lets the judge propose.
    criteria: str | None = None
    # Longest reasoning asked for at a time, in words: reasoning is most of a judge's price. With 0 it gives partitions
    # only.
    reasoning_words: int = 15
    # Characters of a document that are shown, after cleaning.
    max_characters: int = 2000
    # Words of each document that an embedding judge reads; None takes a length that nine tenths of a corpus's documents
    # reach. Two corpora are compared at the smaller of their lengths.
    reading_words: int | None = field(default=None, metadata=ADDED)
    # Sampling temperature of language models; 0 is greedy.
    temperature: float = 0.0
    # Longest answer of a judge, in tokens.
    max_output_tokens: int = 4096
    # Put limits of lengths and the call's own sample ids into the schema. llama.cpp and vLLM enforce them, which stops
    # endless answers of weak models; OpenAI refuses such schemas.
    schema_limits: bool = False
    # Stop before `groupings` once the half-width of the 95 % interval is at most this share of the score; None: never.
    stop_at_relative_half_width: float | None = None
    # Groupings between two checks of that half-width.
    look_every: int = 100
    # Groupings that are judged concurrently; the engine limits calls separately.
    in_flight: int = 512
    # Groupings stored in the scorecard with texts and reasons.
    examples: int = 8

    def __post_init__(self):
        check_kinds(self, "agent.")
        least = {"groupings": 1, "samples_per_proposal": 1, "proposals": 1}
        least |= {"criteria_count": 1, "criteria_sets": 1, "seed": 0, "reasoning_words": 0, "max_characters": 20}
        least |= {"max_output_tokens": 16, "look_every": 1, "in_flight": 1, "examples": 0}
        check_least(self, "agent.", **least)
        for name in ("canary_share", "recheck_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"agent.{name}: is {getattr(self, name)}; expected a share, 0 to 1")
        if self.verify_share is not None and not 0 < self.verify_share <= 1:
            problem = f"is {self.verify_share}; expected a share above 0, at most 1"
            raise InputError(f"agent.verify_share: {problem}, or verify=False for none")
        half_width = self.stop_at_relative_half_width
        if half_width is not None and not 0 < half_width < 1:
            raise InputError(f"agent.stop_at_relative_half_width: is {half_width}; expected a share such as 0.05")
        if self.reading_words is not None and self.reading_words not in READING_LENGTHS:
            lengths = ", ".join(map(str, READING_LENGTHS))
            raise InputError(f"agent.reading_words: is {self.reading_words}; choose one of {lengths}, or None")
        if self.samples_per_grouping and not 2 <= self.samples_per_grouping <= 500:
            wrong = f"agent.samples_per_grouping: is {self.samples_per_grouping}"
            raise InputError(f"{wrong}; give at least 2 and at most 500, or 0 to let the run choose")

    def parameters(self) -> dict[str, Any]:
        """Settings that a score depends on, without criteria and seed, which are stored separately."""
        return {name: value for name, value in vars(self).items() if name not in _NOT_PARAMETERS}

    @property
    def verified_share(self) -> float:
        """Share of the groupings that are verified; of the first ones, where the run chooses that of the others."""
        return 0.0 if not self.verify else 1.0 if self.verify_share is None else self.verify_share

    def verifies(self, grouping: int, share: float | None = None) -> bool:
        """Whether a grouping is verified, where a `share` of them is (None: `verified_share`): a random choice that
        depends on seed and number only.
        """
        return self._chosen("verify", grouping, self.verified_share if share is None else share)

    def expects_verified(self, grouping: int) -> bool:
        """`verifies` for a forecast, before the run has chosen the share."""
        chosen = self.verify and self.verify_share is None and grouping >= VERIFIED_FIRST
        return self.verifies(grouping, VERIFIED_EXPECTED if chosen else None)

    def rechecks(self, grouping: int) -> bool:
        """Whether half of a grouping is judged again: a random choice as in `verifies`."""
        return self._chosen("recheck", grouping, self.recheck_share)

    def _chosen(self, what: str, grouping: int, share: float) -> bool:
        return share > 0 and child_seed(self.seed, what, grouping) < share * _LARGEST

    def forecast_calls(self, *, with_criteria: bool = False) -> int:
        """Calls of a run without repairs: B (M + 3) to propose criteria, unless they are given; and for each grouping
        one, with one more where it is verified and one where half of it is judged again.
        """
        proposing = 0 if with_criteria or self.criteria else self.criteria_sets * (self.proposals + 3)
        return proposing + sum(1 + self.expects_verified(i) + self.rechecks(i) for i in range(self.groupings))

    def task(self, stage: str, *, criteria_set: int, replicate: int, **content: Any) -> Task:
        """A task of `stage` with the settings that all stages share."""
        return Task(
            stage=stage,
            criteria_set=criteria_set,
            replicate=replicate,
            criteria_count=self.criteria_count,
            reasoning_words=self.reasoning_words,
            temperature=self.temperature,
            max_output_tokens=self.max_output_tokens,
            schema_limits=self.schema_limits,
            reading_words=self.reading_words,
            **content,
        )
