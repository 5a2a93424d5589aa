"""Settings of the cluster agent."""

from dataclasses import dataclass, field
from typing import Any

from diversity_jax.cluster_agent.text_cleaning import child_seed
from diversity_jax.cluster_agent.types import Task
from diversity_jax.core.config import ADDED
from diversity_jax.core.errors import InputError

READING_LENGTHS = (5, 7, 10, 15, 20, 30, 50, 70, 100, 140, 200)
"""Words of a text that an embedding judge may read."""

VERIFIED_FIRST = 40  # groupings, from which the share of the others that are verified is chosen
VERIFIED_EXPECTED = 0.25  # what is usually chosen; in batches, where nothing is known before the end, what is taken
_LARGEST = 2**31  # of `child_seed`, exclusive
# Settings that change how a score is computed but not what it is.
_NOT_PARAMETERS = ("seed", "in_flight", "examples", "criteria")


@dataclass(frozen=True, kw_only=True)
class AgentConfig:
    """How a corpus is scored. The paper's letters in brackets."""

    # Samples shown in one grouping [K]. Larger is cheaper for the same precision, until the judge coarsens (see
    # `drift`). 0 lets the run choose the most that this judge reads like half as many: 40, 20 or 10.
    samples_per_grouping: int = 10
    # Groupings, two calls each [N]. The paper's 5,000 hold +-5 % up to about 150 effective clusters.
    groupings: int = 1000
    # Samples shown for one proposal of criteria [J].
    samples_per_proposal: int = 5
    # Proposals for EACH criteria set [M]; the paper's 100 are 5 sets of 20.
    proposals: int = 20
    # Metadata criteria of a set, and as many metrics [k].
    criteria_count: int = 4
    # Independent criteria sets [B]. With one, the interval does not hold the chance of which criteria were found.
    criteria_sets: int = 5
    # Whether every partition is checked by a second call; without it no cluster is invalid.
    verify: bool = True
    # Share of the groupings whose clusters are checked, drawn at random; the others' figures are corrected by what the
    # checks of these changed. None lets the run choose.
    verify_share: float | None = field(default=None, metadata=ADDED)
    # Share of the groupings of which a random half is grouped a second time: how far the judge repeats itself, and
    # whether it reads the same pairs otherwise among fewer samples. Judges that cannot err at random are not asked.
    recheck_share: float = field(default=0.2, metadata=ADDED)
    # Take out of the figures the chance of which documents were drawn together, as far as fixed word vectors show
    # it: fewer groupings for the same certainty, whatever the vectors are worth.
    control_variate: bool = field(default=True, metadata=ADDED)
    # Share of the groupings in which a duplicate and a foreign text are planted. Less than 1 is cheaper by two samples
    # a grouping and lets that much of what hostile documents do pass.
    canary_share: float = 1.0
    # Whether to report effective clusters corrected for the judge's mistakes on canaries too.
    correct_judge_error: bool = False
    # Seed of every draw: documents, order, sample ids, canaries.
    seed: int = 0
    # File of criteria written by hand, or a scorecard.json whose criteria are taken over; None lets the judge propose.
    criteria: str | None = None
    # Longest reasoning asked for in one place, in words: most of what a judge is paid for. With 0 it says only which
    # belong together.
    reasoning_words: int = 15
    # Characters of a document that are shown, after cleaning.
    max_characters: int = 2000
    # Words of each document that an embedding judge reads; None: what nine tenths of a corpus's documents reach. Two
    # corpora are compared at the smaller of their numbers.
    reading_words: int | None = field(default=None, metadata=ADDED)
    # Decoding of judges that decode; 0 is greedy.
    temperature: float = 0.0
    # Longest answer that a judge may write.
    max_output_tokens: int = 4096
    # Send limits of lengths and the call's own sample ids with the schema. llama.cpp and vLLM enforce them, which keeps
    # weak models from writing without end; OpenAI refuses such schemas.
    schema_limits: bool = False
    # Stop before `groupings` once the half-width of the 95 % interval is at most this share of the score; None: never.
    stop_at_relative_half_width: float | None = None
    # Groupings between two looks at that half-width.
    look_every: int = 100
    # Groupings that are worked on at once; the engine behind a judge limits calls by itself.
    in_flight: int = 512
    # Groupings kept in the scorecard with texts and reasons.
    examples: int = 8

    def __post_init__(self):
        least = {"groupings": 1, "samples_per_proposal": 1, "proposals": 1}
        least |= {"criteria_count": 1, "criteria_sets": 1, "seed": 0, "reasoning_words": 0, "max_characters": 20}
        least |= {"max_output_tokens": 16, "look_every": 1, "in_flight": 1, "examples": 0}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise InputError(f"agent.{name}: is {getattr(self, name)}; give at least {bound}")
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
        """What a score depends on besides corpus, judge, criteria and seed."""
        return {name: value for name, value in vars(self).items() if name not in _NOT_PARAMETERS}

    @property
    def verified_share(self) -> float:
        """Share of the groupings that are verified; of the first ones, where the run chooses it for the rest."""
        return 0.0 if not self.verify else 1.0 if self.verify_share is None else self.verify_share

    def verifies(self, grouping: int, share: float | None = None) -> bool:
        """Whether the clusters of a grouping are checked, where they are in so large a share: a random choice that
        depends on seed and number alone.
        """
        return self._chosen("verify", grouping, self.verified_share if share is None else share)

    def expects_verified(self, grouping: int) -> bool:
        """The same for a forecast, before the run has chosen the share."""
        chosen = self.verify and self.verify_share is None and grouping >= VERIFIED_FIRST
        return self.verifies(grouping, VERIFIED_EXPECTED if chosen else None)

    def rechecks(self, grouping: int) -> bool:
        """Whether a half of a grouping is grouped again; likewise."""
        return self._chosen("recheck", grouping, self.recheck_share)

    def _chosen(self, what: str, grouping: int, share: float) -> bool:
        return share > 0 and child_seed(self.seed, what, grouping) < share * _LARGEST

    def forecast_calls(self, *, with_criteria: bool = False) -> int:
        """Calls of a run without repairs: B (M + 3), where the criteria are not given, and for each grouping one, with
        one more where it is verified and one where a half of it is judged again.
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
