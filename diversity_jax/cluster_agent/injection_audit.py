"""Audit of prompt injections: a corpus is scored clean, and with known injections planted in some of its documents.

The same groupings are judged by the same criteria both times, so that only the injections differ.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
import random
from types import SimpleNamespace
from typing import Any

from diversity_jax.cluster_agent.cluster import JudgedGrouping
from diversity_jax.cluster_agent.config import AgentConfig
from diversity_jax.cluster_agent.corpus_scorer import CorpusScorer
from diversity_jax.cluster_agent.estimators import effective_clusters
from diversity_jax.cluster_agent.exam_corpora import PLANTED_TEXTS
from diversity_jax.cluster_agent.groupings import Groupings
from diversity_jax.cluster_agent.score import blocking, prepared
from diversity_jax.cluster_agent.text_cleaning import child_seed
from diversity_jax.cluster_agent.types import Judge, SampledCorpus
from diversity_jax.core.errors import InputError
from diversity_jax.core.files import content_hash
from diversity_jax.core.formats import counted
from diversity_jax.core.intervals import Estimate

# By what each of them asks for; as real ones they use tokens of chat templates, hidden characters and broken JSON.
INJECTIONS: Mapping[str, str] = PLANTED_TEXTS["injections"]
_PLANTED_AT_CHARACTER = 200  # of a text, so that it is not cut away


class HostileCorpus:
    """A corpus with injections in about `share` of its documents, which the seed determines.

    Raises:
      InputError: a share outside 0 to 1, or no injection.
    """

    def __init__(self, corpus: SampledCorpus, *, share: float, injections: Mapping[str, str], seed: int):
        if not 0 < share <= 1 or not injections:
            number = len(injections)
            raise InputError(f"audit: share {share}, {number} injections; give a share such as 0.01, and an injection")
        self.name = f"{getattr(corpus, 'name', 'corpus')} (with injections)"
        self._corpus, self._share, self._injections, self._seed = corpus, share, dict(injections), seed

    def injection(self, document: str) -> str | None:
        """Name of the injection that is planted in a document, or None."""
        generator = random.Random(child_seed(self._seed, "hostile", document))
        hostile, which = generator.random() < self._share, int(generator.random() * len(self._injections))
        return list(self._injections)[which] if hostile else None

    def sample(self, size: int, *, seed: int) -> Sequence[Any]:
        """The corpus's sample, with injections in some documents."""
        return list(map(self._planted, self._corpus.sample(size, seed=seed)))

    def fingerprint(self) -> str:
        """Hash of the corpus's fingerprint and the planting."""
        return content_hash([self._corpus.fingerprint(), self._share, self._injections, self._seed])

    def _planted(self, document: Any) -> Any:
        name = self.injection(document.id)
        if name is None:
            return document
        before, after = document.text[:_PLANTED_AT_CHARACTER], document.text[_PLANTED_AT_CHARACTER:]
        return SimpleNamespace(id=document.id, text=f"{before}\n{self._injections[name]}\n{after}")


@dataclass(frozen=True, kw_only=True)
class Audit:
    """The effect of injections on a score.

    Attributes:
      share: of documents with an injection.
      groupings: judged each time; touched: those that showed at least one such document.
      clean, hostile: effective clusters without and with injections.
      undefended: with injections, and with the groupings that canaries discard.
      caught: touched groupings that the canaries discarded, by injection; shown: touched groupings by injection.
    """

    share: float
    groupings: int
    touched: int
    clean: Estimate
    hostile: Estimate
    undefended: Estimate
    shown: Mapping[str, int]
    caught: Mapping[str, int]

    @property
    def moved(self) -> float:
        """Relative change of the effective clusters."""
        return self.hostile.value / self.clean.value - 1

    @property
    def moved_undefended(self) -> float:
        """Relative change where nothing is discarded."""
        return self.undefended.value / self.clean.value - 1

    def to_json(self) -> dict[str, Any]:
        """All fields and the relative changes by name."""
        value = {name: part.to_json() if isinstance(part, Estimate) else part for name, part in vars(self).items()}
        return value | {"moved": self.moved, "moved_undefended": self.moved_undefended}

    def __str__(self) -> str:
        lines = [
            f"{self.share:.2%} hostile documents, in {self.touched} of {counted(self.groupings, 'grouping')}",
            f"effective clusters {self.clean.value:.4g} clean, {self.hostile.value:.4g} attacked ({self.moved:+.2%})",
            f"without canaries {self.undefended.value:.4g} ({self.moved_undefended:+.2%})",
        ]
        for name, count in self.shown.items():
            lines.append(f"  {name}: discarded {self.caught.get(name, 0)} of {count}")
        return "\n".join(lines)


async def audit_async(
    corpus: SampledCorpus,
    judge: Judge,
    config: AgentConfig,
    *,
    share: float = 0.01,
    injections: Mapping[str, str] = INJECTIONS,
) -> Audit:
    """Scores a corpus without and with injections: twice the calls of a scoring, less those in the response cache.

    Raises:
      InputError: as `score_corpus`; or a share outside 0 to 1.
    """
    attacked = HostileCorpus(corpus, share=share, injections=injections, seed=config.seed)
    config, proposed = await prepared([corpus], judge, config, scorings=2)
    judged: list[JudgedGrouping] = []  # of the attacked corpus, also the discarded ones
    scorers = (
        CorpusScorer(corpus, judge, config, proposed),
        CorpusScorer(attacked, judge, config, proposed.without_usage(), observe=judged.append),
    )
    scorecards = []
    for scorer in scorers:
        await scorer.extend(config.groupings)
        scorecards.append(await scorer.scorecard())
    shown: Counter[str] = Counter()
    caught: Counter[str] = Counter()
    touched = 0
    for grouping in judged:
        names = {name for sample in grouping.planned.samples if (name := attacked.injection(sample.document))}
        touched += bool(names)
        shown.update(names)
        caught.update(names if grouping.dropped == "canary" else ())
    all_partitions = Groupings.of_rows(
        config.samples_per_grouping, [grouping.row() for grouping in judged if grouping.clusters]
    )
    return Audit(
        share=share,
        groupings=config.groupings,
        touched=touched,
        clean=scorecards[0].effective_clusters,
        hostile=scorecards[1].effective_clusters,
        undefended=effective_clusters(all_partitions),
        shown=dict(sorted(shown.items())),
        caught=dict(sorted(caught.items())),
    )


audit = blocking(audit_async)
