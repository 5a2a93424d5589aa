"""How many samples a judge is shown at once, where the run chooses: the most that it reads like half as many.

More samples at once are cheaper for the same certainty, until a judge begins to lump or to lose track of them. So the
first groupings of a run are judged at growing numbers, and each a second time in half: where the same pairs are read
otherwise, or many answers are unusable, the number before is taken.
"""

from collections.abc import Sequence
from dataclasses import replace
import itertools
import logging

from diversity_jax.cluster_agent import examination
from diversity_jax.cluster_agent.cluster import JudgedGrouping
from diversity_jax.cluster_agent.config import AgentConfig
from diversity_jax.cluster_agent.corpus_scorer import CorpusScorer, count_documents
from diversity_jax.cluster_agent.criteria import ProposedCriteria
from diversity_jax.cluster_agent.embedding_judge import EmbeddingJudge
from diversity_jax.cluster_agent.types import CallTotals, Judge, SampledCorpus

CANDIDATES = (40, 20, 10)
_GROUPINGS = 40  # judged twice at each number, over all corpora
_MOST_DROPPED = 0.2
_DOCUMENTS_A_SAMPLE = 5  # of the smallest corpus; otherwise every grouping would show much of it

log = logging.getLogger(__name__)


def candidates(corpora: Sequence[SampledCorpus]) -> list[int]:
    """Numbers of samples that the corpora are large enough for, the largest first."""
    sizes = [size for corpus in corpora if (size := count_documents(corpus)) is not None]
    fitting = [k for k in CANDIDATES if not sizes or k * _DOCUMENTS_A_SAMPLE <= min(sizes)]
    return fitting or [max(2, min([CANDIDATES[-1], *sizes]))]


def with_most_samples(config: AgentConfig, corpora: Sequence[SampledCorpus]) -> AgentConfig:
    """The configuration for what has to be known before the run chooses, such as a forecast: with the most samples."""
    return config if config.samples_per_grouping else replace(config, samples_per_grouping=candidates(corpora)[0])


async def with_chosen_samples(
    corpora: Sequence[SampledCorpus], judge: Judge, config: AgentConfig, proposed: ProposedCriteria
) -> tuple[AgentConfig, ProposedCriteria]:
    """The configuration with the number of samples, where that is left to the run; and the criteria, whose usage then
    holds the calls at numbers that were given up.
    """
    if config.samples_per_grouping:
        return config, proposed
    numbers = candidates(corpora)
    if isinstance(judge, EmbeddingJudge):  # free, and read alike at every number
        return replace(config, samples_per_grouping=min(CANDIDATES[-1], numbers[0])), proposed
    spent: dict[int, list[CallTotals]] = {}
    chosen = numbers[-1]
    for k in reversed(numbers[:-1]):  # a judge that coarsens between two numbers would not be seen by larger ones
        trial = replace(config, samples_per_grouping=k, recheck_share=1.0)
        judged: list[JudgedGrouping] = []
        each = min(config.groupings, -(-_GROUPINGS // len(corpora)))
        scorers = [CorpusScorer(one, judge, trial, proposed.without_usage(), observe=judged.append) for one in corpora]
        for scorer in scorers:
            await scorer.extend(each)
        spent[k] = [scorer.usage for scorer in scorers]
        if why := _why_not(judged, k):
            log.info("agent.samples_per_grouping: not %d, %s", k, why)
            break
        chosen = k
        if any(scorer.ended for scorer in scorers):
            break
    log.info("agent.samples_per_grouping: %d", chosen)
    spent.pop(chosen, None)  # these groupings are the run's own first ones
    usage = CallTotals()
    for used in (proposed.usage, *itertools.chain.from_iterable(spent.values())):
        usage.add(used)
    return replace(config, samples_per_grouping=chosen), replace(proposed, usage=usage)


def _why_not(judged: Sequence[JudgedGrouping], k: int) -> str | None:
    """Why a judge should be shown fewer than `k` samples; None where nothing speaks against them."""
    dropped = sum(grouping.dropped is not None for grouping in judged)
    if dropped > _MOST_DROPPED * len(judged):
        return f"{dropped} of {len(judged)} groupings were not usable"
    drift = examination.drift([grouping.recheck for grouping in judged if grouping.recheck], k)
    if drift is not None and drift["drifts"]:
        return f"the same pairs read {drift['relative']:+.0%} otherwise among {k // 2}"
    return None
