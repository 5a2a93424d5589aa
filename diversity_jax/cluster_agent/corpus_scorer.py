"""Judges the groupings of one corpus, and makes its scorecard, with a verdict on the judge."""

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
import json
from typing import IO, Any

from diversity_jax.cluster_agent import estimators, examination, uncertainty
from diversity_jax.cluster_agent.canaries import CanaryResult, ErrorRates, corrected, without_misplacement
from diversity_jax.cluster_agent.cluster import JudgedGrouping, judge_grouping
from diversity_jax.cluster_agent.config import VERIFIED_EXPECTED, VERIFIED_FIRST, AgentConfig
from diversity_jax.cluster_agent.criteria import ProposedCriteria
from diversity_jax.cluster_agent.embedding_judge import CorpusReading, EmbeddingJudge
from diversity_jax.cluster_agent.estimators import verification_share
from diversity_jax.cluster_agent.examination import PartitionTraits, Recheck
from diversity_jax.cluster_agent.groupings import Groupings
from diversity_jax.cluster_agent.ruler import VectorCache, default_ruler
from diversity_jax.cluster_agent.sampling import GroupingSampler, PlannedGrouping, draw_texts, drawn_samples
from diversity_jax.cluster_agent.scorecard import STOPPED, Scorecard
from diversity_jax.cluster_agent.text_cleaning import child_seed
from diversity_jax.cluster_agent.types import CallTotals, Judge, RunEnded, SampledCorpus, describe_failures
from diversity_jax.cluster_agent.verdict import JudgeEvidence, NothingUsable, UnusableScore, verdict
from diversity_jax.core import files
from diversity_jax.core.formats import counted

# Groupings are started a few at a time, because preparing hundreds of prompts first would delay the first requests.
_BEGIN_AT_ONCE = 32
_BEGIN_SECONDS = 0.005
_LARGE_SHARE_DROPPED = 0.1  # of the groupings, from which a warning says that the figures may be biased


@dataclass(frozen=True, kw_only=True)
class ScoringProgress:
    """Groupings `done` of `total`, `dropped` among them, and dollars of the answers so far."""

    corpus: str
    done: int
    total: int
    dropped: int
    cost_usd: float


class CorpusScorer:
    """Judges groupings of one corpus; `extend` may be called repeatedly, with growing numbers of groupings.

    Groupings finish in any order and are entered in the order of sampling. So nothing depends on the order of answers:
    not the file, the examples, the sums of dollars, or where a run stops.

    Args:
      progress: called after every grouping.
      lines: file of groupings.jsonl.
      observe: called with every judged grouping, also dropped ones.
      sampler: draws the groupings, where one has been started before.

    Attributes:
      ended: why no further call can succeed; None while calls can.
      entered: groupings entered so far; usage: their calls.
    """

    def __init__(
        self,
        corpus: SampledCorpus,
        judge: Judge,
        config: AgentConfig,
        proposed: ProposedCriteria,
        *,
        progress: Callable[[ScoringProgress], None] | None = None,
        lines: IO[str] | None = None,
        observe: Callable[[JudgedGrouping], None] | None = None,
        sampler: GroupingSampler | None = None,
    ):
        self._corpus, self._judge, self._config, self._proposed = corpus, judge, config, proposed
        self._progress, self._lines, self._observe = progress, lines, observe
        self._sampler = sampler or GroupingSampler(corpus, config)
        self._name = str(getattr(corpus, "name", "corpus"))
        self._begun = 0
        self._waiting: dict[int, JudgedGrouping] = {}
        self.ended: str | None = None
        self.entered = 0
        self.usage = CallTotals()
        self._rows: list[dict[str, Any]] = []  # by columns of `Groupings`
        self._features = RulerFeatures(corpus, config) if config.control_variate else None
        self._feature_means: dict[str, Any] = {}
        self._canaries: list[CanaryResult] = []
        self._traits: list[PartitionTraits] = []
        self._rechecks: list[Recheck] = []
        self._drops: Counter[str] = Counter()
        self._first_details: dict[str, str] = {}  # of the drops, by reason
        self._cluster_sizes: Counter[int] = Counter()
        self._invalid_clusters = 0
        self._examples: list[dict[str, Any]] = []
        self._unusable_answer = ""
        self._reading = CorpusReading(judge) if isinstance(judge, EmbeddingJudge) else None
        self._prices: list[tuple[float, float]] = []  # of clustering and verifying, of verified groupings
        self._share, self._share_chosen = 1.0, asyncio.Event()

    async def extend(self, until: int) -> None:
        """Judges groupings up to number `until`; stops where no further call can succeed, and sets `ended`."""
        if self._reading and not self._begun:
            words = await self._reading.choose(self._name, await self._sampler.first_texts(), self._config)
            self._config = replace(self._config, reading_words=words)
        in_flight = until if getattr(self._judge, "gathers_calls", False) else self._config.in_flight
        at_once = getattr(self._judge, "groupings_at_once", None) or in_flight
        workers = min(at_once, in_flight, until - self._begun)
        try:
            async with asyncio.TaskGroup() as group:
                for number in range(1, workers + 1):
                    group.create_task(self._work(until))
                    if number % _BEGIN_AT_ONCE == 0 and self._begun < until:
                        await asyncio.sleep(_BEGIN_SECONDS)
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        if self.ended:  # enter the finished groupings behind unfinished ones
            for index in sorted(self._waiting):
                self._enter(self._waiting.pop(index))
        if self._features and self._rows:
            documents = count_documents(self._corpus, self._sampler.documents)
            self._feature_means = await self._features.of_the_corpus(documents)

    async def _work(self, until: int) -> None:
        criteria = self._proposed.criteria
        while self._begun < until and self.ended is None:
            index = self._begun
            self._begun += 1
            planned = await self._sampler.plan(index, len(criteria.sets))
            try:
                self._waiting[index] = await judge_grouping(
                    planned, self._judge, criteria, self._config, self._verified_share
                )
            except RunEnded as ended:
                self.ended = str(ended)
                self._share_chosen.set()
            while (following := self._waiting.pop(self.entered, None)) is not None:
                self._enter(following)

    async def _verified_share(self, index: int) -> float:
        """Share of the groupings to verify: all of the first ones, and of the others the share that is cheapest by
        these (`estimators.verification_share`), or in batches, which do not wait for them, the expected share.
        """
        if self._config.verify_share is not None or not self._config.verify or index < VERIFIED_FIRST:
            return self._config.verified_share
        if getattr(self._judge, "gathers_calls", False):
            return VERIFIED_EXPECTED
        await self._share_chosen.wait()
        return self._share

    def _choose_verified_share(self) -> None:
        prices = [sum(of_one_call) for of_one_call in zip(*self._prices, strict=True)]
        if len(self._rows) and prices:
            self._share = verification_share(self.groupings, *prices)
        self._share_chosen.set()

    def _enter(self, judged: JudgedGrouping) -> None:
        self.entered += 1
        self.usage.add(judged.usage)
        if judged.canary:
            self._canaries.append(judged.canary)
        if judged.traits:
            self._traits.append(judged.traits)
        if judged.recheck:
            self._rechecks.append(judged.recheck)
        if judged.dropped:
            self._drops[judged.dropped] += 1
            self._first_details.setdefault(judged.dropped, judged.detail)
            self._unusable_answer = self._unusable_answer or judged.answer
        else:
            features = {"features": self._features.of(judged.planned)} if self._features else {}
            self._rows.append(judged.row() | features)
            if self._reading:
                self._reading.enter([sample.text for sample in drawn_samples(judged.planned)])
            for cluster in judged.clusters:
                self._cluster_sizes[len(cluster.sample_ids)] += cluster.valid
                self._invalid_clusters += not cluster.valid
            if len(self._examples) < self._config.examples:
                self._examples.append(judged.example())
        if any(judged.prices):
            self._prices.append(judged.prices)
        if self.entered == VERIFIED_FIRST:
            self._choose_verified_share()
        if self._lines is not None:
            self._lines.write(json.dumps(judged.to_json(), ensure_ascii=False) + "\n")
        if self._observe:
            self._observe(judged)
        if self._progress:
            dropped, cost, total = sum(self._drops.values()), self.usage.cost_usd, self._config.groupings
            self._progress(
                ScoringProgress(corpus=self._name, done=self.entered, total=total, dropped=dropped, cost_usd=cost)
            )

    @property
    def groupings(self) -> Groupings:
        """The usable groupings entered so far."""
        rows, of_the_corpus = self._rows, self._feature_means
        if not of_the_corpus:  # before the first `extend` has ended
            rows = [{name: value for name, value in row.items() if name != "features"} for row in rows]
        return Groupings.of_rows(self._config.samples_per_grouping, rows, **of_the_corpus)

    async def scorecard(self) -> Scorecard:
        """The scorecard of the groupings entered so far.

        Raises:
          NothingUsable: not one of them was usable.
        """
        await self._sampler.close()
        documents = count_documents(self._corpus, self._sampler.documents)
        groupings, config, proposed = self.groupings, self._config, self._proposed
        rates = ErrorRates.of(self._canaries)
        evidence = self._evidence(groupings, rates)
        if not len(groupings):
            raise NothingUsable(self._unusable(evidence))
        different = documents and round(1 / (1 / documents + self._sampler.copies))  # Kish's effective sample size
        collision = estimators.collision(groupings, documents=different)
        k = config.samples_per_grouping
        clusters = estimators.invert(without_misplacement(collision, rates, k))
        correction, refusal = corrected(groupings, rates) if config.correct_judge_error else (None, None)
        ceiling = rates.ceiling and rates.ceiling["low"]
        of_documents = without_misplacement(estimators.collision(groupings), rates, k)
        ceilings = [float(most) for most in (different, ceiling) if most]
        return Scorecard(
            effective_clusters=estimators.at_most(clusters, min(ceilings)) if ceilings else clusters,
            cluster_score=estimators.cluster_score(groupings),
            clusters_per_sample=estimators.clusters_per_sample(groupings),
            collision=collision,
            effective_clusters_corrected=correction,
            effective_clusters_of_corpus=estimators.in_a_corpus_of(documents, of_documents) if documents else None,
            groupings=len(groupings),
            dropped_groupings=sum(self._drops.values()),
            invalid_clusters=self._invalid_clusters,
            repairs=self._total_usage().repairs,
            criteria=proposed.criteria.to_json(),
            criteria_hash=proposed.criteria.hash,
            criteria_origin=proposed.criteria.origin,
            ruler=judge_settings_hash(self._judge, config),
            corpus=self._corpus_facts(documents) | ({"different": different} if different != documents else {}),
            seed=config.seed,
            series=groupings,
            cluster_sizes={str(size): count for size, count in sorted(self._cluster_sizes.items())},
            convergence=estimators.convergence(groupings, documents=different),
            examples=self._examples,
            warnings=[*self._warnings(groupings, rates), *filter(None, [refusal])],
            consistency=evidence.consistency,
            drift=evidence.drift,
            **self._common_fields(evidence),
            **(self._reading.fields() if self._reading else {}),
        )

    def _total_usage(self) -> CallTotals:
        return CallTotals.of([self._proposed.usage, self.usage])

    def _common_fields(self, evidence: JudgeEvidence) -> dict[str, Any]:
        """The fields that `Scorecard` and `UnusableScore` share."""
        usage = self._total_usage()
        return {
            "judge": self._judge.label,
            "prompt_version": self._judge.prompt_version,
            "parameters": self._config.parameters(),
            "drops": dict(sorted(self._drops.items())),
            "canaries": evidence.rates.to_json(),
            "checks": evidence.checks,
            "verdict": verdict(evidence),
            "calls": usage.calls,
            "tokens": {"prompt": usage.prompt_tokens, "completion": usage.completion_tokens},
            "cost_usd": usage.cost_usd,
        }

    def _corpus_facts(self, documents: int | None) -> dict[str, Any]:
        return {
            "name": self._name,
            "fingerprint": self._corpus.fingerprint(),
            "documents": documents,
            "sampled": self._sampler.sampled,
        }

    def _evidence(self, groupings: Groupings, rates: ErrorRates) -> JudgeEvidence:
        k, theta, half_width = self._config.samples_per_grouping, None, None
        if len(groupings):
            measured = estimators.collision(groupings)
            theta = measured.value
            half_width = measured.high / theta - 1 if measured.low and measured.high else None
        return JudgeEvidence(
            groupings=self.entered,
            drops=dict(self._drops),
            rates=rates,
            collision=theta,
            relative_half_width=half_width,
            consistency=examination.consistency(self._rechecks),
            drift=examination.drift(self._rechecks, k),
            checks=examination.partition_checks(self._traits, k, self._sampler.drawn_from),
            exam=getattr(self._judge, "exam", None),
            is_embedding_judge=self._reading is not None,
        )

    def _unusable(self, evidence: JudgeEvidence) -> UnusableScore:
        return UnusableScore(
            corpus=self._corpus_facts(count_documents(self._corpus, self._sampler.documents)),
            groupings=self.entered,
            details={reason: self._first_details.get(reason, "") for reason in sorted(self._drops)},
            ended=self.ended,
            example_answer=self._unusable_answer,
            **self._common_fields(evidence),
        )

    def _warnings(self, groupings: Groupings, rates: ErrorRates) -> list[str]:
        warnings, entered, dropped = list(self._proposed.warnings), self.entered, sum(self._drops.values())
        warnings += self._reading.remarks if self._reading else []
        if self.ended:
            warnings.append(f"{STOPPED} {entered} of {counted(self._config.groupings, 'grouping')}: {self.ended}")
        if dropped > _LARGE_SHARE_DROPPED * entered:
            why = describe_failures(self._drops, {})  # without details, which differ from run to run
            lost = f"{dropped} of {counted(entered, 'grouping')} were dropped ({why})"
            warnings.append(f"{lost}; the others may not be representative")
        pairs = int(groupings.pairs.sum())
        if pairs < estimators.FEWEST_PAIRS:
            together = counted(pairs, "pair")
            warnings.append(f"only {together} of samples grouped together: a lower bound, not an estimate")
        if not rates.shown and not self._reading:
            warnings.append(
                "no canaries: nothing is known of this judge's mistakes, and hostile documents go unnoticed"
            )
        top = rates.ceiling and rates.ceiling["low"]
        if top and estimators.effective_clusters(groupings).value > top:
            most = counted(round(top), "effective cluster")
            warnings.append(f"the canaries cannot show that this judge tells apart more than {most}")
        if len(self._proposed.criteria.sets) < 3 < self._config.criteria_sets:
            warnings.append("fewer than 3 criteria sets were proposed: the interval is very wide")
        return warnings


def judge_settings_hash(judge: Judge, config: AgentConfig) -> str:
    """Hash of what two scores must share to be compared: judge, wording, and how texts are shown."""
    shown = {"max_characters": config.max_characters, "verify": config.verify}
    return files.content_hash([judge.label, judge.prompt_version, dict(judge.identity), shown])


def count_documents(corpus: Any, drawn: int | None = None) -> int | None:
    """Number of documents of a corpus: its length; where it has none, `drawn`, the size of a draw of all documents, or
    its attribute `records`; otherwise None.
    """
    try:
        return len(corpus)
    except TypeError:
        return getattr(corpus, "records", None) if drawn is None else drawn


_WORDS = 100  # read of a text: more takes time and hardly explains more of T's variance


class RulerFeatures:
    """Features of the control variate (see `uncertainty`): from similarities of texts by the default ruler, for each
    grouping, and their means over all pairs of the corpus.

    Raises:
      InputError: the ruler's vectors are not installed.
    """

    def __init__(self, corpus: SampledCorpus, config: AgentConfig):
        self._corpus, self._config, self._ruler = corpus, config, default_ruler()
        self._vectors = VectorCache(self._ruler)
        self._of_the_corpus: dict[str, Any] | None = None

    def of(self, planned: PlannedGrouping) -> list[float]:
        """Features [F] of one grouping's drawn samples."""
        texts = [sample.text for sample in drawn_samples(planned)]
        return uncertainty.features(self._vectors.embed_at(texts, (_WORDS,))[:, 0]).tolist()

    async def of_the_corpus(self, documents: int | None) -> dict[str, Any]:
        """`feature_means` and `feature_means_covariance` of `Groupings`; computed once, in another thread."""
        if self._of_the_corpus is None:
            means, covariance = await asyncio.to_thread(self._read, documents)
            self._of_the_corpus = {"feature_means": means, "feature_means_covariance": covariance}
        return self._of_the_corpus

    def _read(self, documents: int | None) -> tuple[Any, Any]:
        seed, most = child_seed(self._config.seed, "control variate"), uncertainty.EXACT_DOCUMENTS
        texts, drawn = draw_texts(self._corpus, most, seed, self._config.max_characters)
        vectors = self._ruler.embed([text for _, text in texts], _WORDS)
        # A stream of unknown length is taken to be far larger than the draw.
        of_corpus = documents if documents is not None else drawn if drawn < most else 1000 * drawn
        return uncertainty.corpus_means(vectors, of_corpus if of_corpus > drawn else None)
