"""Judges the groupings of one corpus, and puts the figures on a scorecard with a verdict on the judge."""

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
from diversity_jax.cluster_agent.ruler import default_ruler
from diversity_jax.cluster_agent.sampling import GroupingSampler, PlannedGrouping, draw_texts, drawn_samples
from diversity_jax.cluster_agent.scorecard import STOPPED, Scorecard
from diversity_jax.cluster_agent.text_cleaning import child_seed
from diversity_jax.cluster_agent.types import CallTotals, Judge, RunEnded, SampledCorpus, describe_failures
from diversity_jax.cluster_agent.verdict import Evidence, NothingUsable, UnusableScore, verdict
from diversity_jax.core import files

# Groupings are begun a few at a time: preparing hundreds of prompts first would delay the first requests.
_BEGIN_AT_ONCE = 32
_BEGIN_SECONDS = 0.005
_LARGE_SHARE_DROPPED = 0.1  # of the groupings; what remains may then be biased


@dataclass(frozen=True, kw_only=True)
class ScoringProgress:
    """Groupings `done` of `total`, of which `dropped` gave nothing; dollars of the answers used so far."""

    corpus: str
    done: int
    total: int
    dropped: int
    cost_usd: float


class CorpusScorer:
    """Judges groupings of one corpus; `extend` may be called again and again, with ever more groupings.

    Groupings finish in any order and are entered in the order of sampling, so nothing depends on which call came back
    first: not the file, the examples, the sums of dollars, or where a run stops.

    Args:
      progress: called after every grouping.
      lines: file of groupings.jsonl.
      observe: called with every judged grouping, also the dropped ones.
      sampler: draws the groupings, where it has been started before.

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
        self._prices: list[tuple[float, float]] = []  # of the two calls of verified groupings
        self._share, self._share_chosen = 1.0, asyncio.Event()

    async def extend(self, until: int) -> None:
        """Judges groupings up to number `until`. Where no further call can succeed it stops, and `ended` says why."""
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
        if self.ended:  # groupings that finished although an earlier one never will
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
        """Share of the groupings that are verified: all of the first, and of the others what these showed to be the
        cheapest; a batch does not wait for them.
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
        """All usable groupings entered so far."""
        rows, of_the_corpus = self._rows, self._feature_means
        if not of_the_corpus:  # not read before the first groupings are judged
            rows = [{name: value for name, value in row.items() if name != "features"} for row in rows]
        return Groupings.of_rows(self._config.samples_per_grouping, rows, **of_the_corpus)

    async def scorecard(self) -> Scorecard:
        """The figures of all groupings entered so far, and whether this judge's figures can be believed.

        Raises:
          NothingUsable: not one grouping was usable; it holds what was seen instead.
        """
        await self._sampler.close()
        documents = count_documents(self._corpus, self._sampler.documents)
        groupings, config, proposed = self.groupings, self._config, self._proposed
        rates, usage = ErrorRates.of(self._canaries), CallTotals()
        usage.add(proposed.usage)
        usage.add(self.usage)
        evidence = self._evidence(groupings, rates)
        if not len(groupings):
            raise NothingUsable(self._unusable(evidence, usage))
        different = documents and round(1 / (1 / documents + self._sampler.copies))  # Kish's effective sample size
        collision = estimators.collision(groupings, documents=different)
        k = config.samples_per_grouping
        clusters = estimators.invert(without_misplacement(collision, rates, k))
        correction, refusal = corrected(groupings, rates) if config.correct_judge_error else (None, None)
        ceiling = rates.ceiling and rates.ceiling["low"]
        exactly = without_misplacement(estimators.collision_of_documents(groupings), rates, k)
        ceilings = [float(most) for most in (different, ceiling) if most]
        return Scorecard(
            effective_clusters=estimators.at_most(clusters, min(ceilings)) if ceilings else clusters,
            cluster_score=estimators.cluster_score(groupings),
            clusters_per_sample=estimators.clusters_per_sample(groupings),
            collision=collision,
            effective_clusters_corrected=correction,
            effective_clusters_of_corpus=estimators.in_a_corpus_of(documents, exactly) if documents else None,
            groupings=len(groupings),
            dropped_groupings=sum(self._drops.values()),
            drops=dict(sorted(self._drops.items())),
            invalid_clusters=self._invalid_clusters,
            repairs=usage.repairs,
            criteria=proposed.criteria.to_json(),
            criteria_hash=proposed.criteria.hash,
            criteria_origin=proposed.criteria.origin,
            canaries=rates.to_json(),
            calls=usage.calls,
            tokens={"prompt": usage.prompt_tokens, "completion": usage.completion_tokens},
            cost_usd=usage.cost_usd,
            judge=self._judge.label,
            prompt_version=self._judge.prompt_version,
            ruler=judge_settings_hash(self._judge, config),
            parameters=config.parameters(),
            corpus=self._corpus_facts(documents) | ({"different": different} if different != documents else {}),
            seed=config.seed,
            series=groupings,
            cluster_sizes={str(size): count for size, count in sorted(self._cluster_sizes.items())},
            convergence=estimators.convergence(groupings, documents=different),
            examples=self._examples,
            warnings=[*self._warnings(groupings, rates), *filter(None, [refusal])],
            verdict=verdict(evidence),
            consistency=evidence.consistency,
            drift=evidence.drift,
            checks=evidence.checks,
            **(self._reading.fields() if self._reading else {}),
        )

    def _corpus_facts(self, documents: int | None) -> dict[str, Any]:
        return {
            "name": self._name,
            "fingerprint": self._corpus.fingerprint(),
            "documents": documents,
            "sampled": self._sampler.sampled,
        }

    def _evidence(self, groupings: Groupings, rates: ErrorRates) -> Evidence:
        k, theta, half_width = self._config.samples_per_grouping, None, None
        if len(groupings):
            measured = estimators.collision(groupings)
            theta = measured.value
            half_width = measured.high / theta - 1 if measured.low and measured.high else None
        return Evidence(
            groupings=self.entered,
            drops=dict(self._drops),
            rates=rates,
            collision=theta,
            relative_half_width=half_width,
            consistency=examination.consistency(self._rechecks),
            drift=examination.drift(self._rechecks, k),
            checks=examination.evidence_of(self._traits, k, self._sampler.drawn_from),
            exam=getattr(self._judge, "exam", None),
            by_ruler=self._reading is not None,
        )

    def _unusable(self, evidence: Evidence, usage: CallTotals) -> UnusableScore:
        return UnusableScore(
            judge=self._judge.label,
            prompt_version=self._judge.prompt_version,
            corpus=self._corpus_facts(count_documents(self._corpus, self._sampler.documents)),
            groupings=self.entered,
            drops=dict(sorted(self._drops.items())),
            details={reason: self._first_details.get(reason, "") for reason in sorted(self._drops)},
            ended=self.ended,
            example_answer=self._unusable_answer,
            canaries=evidence.rates.to_json(),
            checks=evidence.checks,
            verdict=verdict(evidence),
            parameters=self._config.parameters(),
            calls=usage.calls,
            tokens={"prompt": usage.prompt_tokens, "completion": usage.completion_tokens},
            cost_usd=usage.cost_usd,
        )

    def _warnings(self, groupings: Groupings, rates: ErrorRates) -> list[str]:
        warnings, entered, dropped = list(self._proposed.warnings), self.entered, sum(self._drops.values())
        warnings += self._reading.remarks if self._reading else []
        if self.ended:
            warnings.append(f"{STOPPED} {entered} of {self._config.groupings} groupings: {self.ended}")
        if dropped > _LARGE_SHARE_DROPPED * entered:
            why = describe_failures(self._drops, {})  # without details, which differ from run to run
            warnings.append(
                f"{dropped} of {entered} groupings were dropped ({why}); what remains may not be like what is missing"
            )
        pairs = int(groupings.pairs.sum())
        if pairs < estimators.FEWEST_PAIRS:
            warnings.append(f"only {pairs} pairs of samples were grouped together: a lower bound, not an estimate")
        if not rates.shown and not self._reading:
            warnings.append(
                "no canaries: nothing is known of this judge's mistakes, and hostile documents go unnoticed"
            )
        top = rates.ceiling and rates.ceiling["low"]
        if top and estimators.effective_clusters(groupings).value > top:
            warnings.append(
                f"the canaries cannot show that this judge tells apart more than {top:.0f} effective clusters"
            )
        if len(self._proposed.criteria.sets) < 3 < self._config.criteria_sets:
            warnings.append("fewer than 3 criteria sets came about: the interval is very wide")
        return warnings


def judge_settings_hash(judge: Judge, config: AgentConfig) -> str:
    """Hash of what two scores must share to be compared, besides criteria: judge, wording, and how texts are shown."""
    shown = {"max_characters": config.max_characters, "verify": config.verify}
    return files.content_hash([judge.label, judge.prompt_version, dict(judge.identity), shown])


def count_documents(corpus: Any, drawn: int | None = None) -> int | None:
    """Documents of a corpus: its length, else as many as a draw that emptied it found, else what it says; or None."""
    try:
        return len(corpus)
    except TypeError:
        return getattr(corpus, "records", None) if drawn is None else drawn


_WORDS = 100  # read of a text: more hardly changes what the similarities explain of a judge, and takes time


class RulerFeatures:
    """Features of the groupings of a corpus, and their means over all its pairs.

    Raises:
      InputError: the ruler's vectors are not installed.
    """

    def __init__(self, corpus: SampledCorpus, config: AgentConfig):
        self._corpus, self._config, self._ruler = corpus, config, default_ruler()
        self._of_the_corpus: dict[str, Any] | None = None

    def of(self, planned: PlannedGrouping) -> list[float]:
        """Features [F] of one grouping's drawn samples."""
        texts = [sample.text for sample in drawn_samples(planned)]
        return uncertainty.features(self._ruler.embed(texts, _WORDS)).tolist()

    async def of_the_corpus(self, documents: int | None) -> dict[str, Any]:
        """`feature_means` and `feature_means_covariance` of `Groupings`, computed once, in another thread."""
        if self._of_the_corpus is None:
            means, covariance = await asyncio.to_thread(self._read, documents)
            self._of_the_corpus = {"feature_means": means, "feature_means_covariance": covariance}
        return self._of_the_corpus

    def _read(self, documents: int | None) -> tuple[Any, Any]:
        seed, most = child_seed(self._config.seed, "control variate"), uncertainty.EXACT_DOCUMENTS
        texts, drawn = draw_texts(self._corpus, most, seed, self._config.max_characters)
        vectors = self._ruler.embed([text for _, text in texts], _WORDS)
        # Of a stream whose length is not known, what was drawn is a part of something far larger.
        of_corpus = documents if documents is not None else drawn if drawn < most else 1000 * drawn
        return uncertainty.corpus_means(vectors, of_corpus if of_corpus > drawn else None)
