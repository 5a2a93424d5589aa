"""From a mixture asked for to a mixture on disk: measure, decide, prepare, write."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
import logging
from pathlib import Path
import random

from diversity_jax.cluster_agent import Scorecard
from diversity_jax.corpus import Corpus, Document, open_corpus
from diversity_jax.errors import InputError
from diversity_jax.mixtures.component import Component, MixtureConfig, regrant, token_shares
from diversity_jax.mixtures.gate import Decision, decide
from diversity_jax.mixtures.manifest import Manifest
from diversity_jax.mixtures.mixture import Mixture, MixtureComponent
from diversity_jax.mixtures.prepare import Preparation, prepare
from diversity_jax.mixtures.vocabulary import load_tokenizer
from diversity_jax.storage import content_hash

log = logging.getLogger(__name__)

Scorer = Callable[[Mapping[str, Corpus]], Mapping[str, Scorecard]]
"""Scores corpora under the same criteria, so that their figures may be compared."""


class PooledCorpus:
    """Several corpora seen as one: documents are drawn from each in proportion to its share."""

    def __init__(self, corpora: Sequence[Corpus], shares: Sequence[Fraction]):
        self.name = " + ".join(corpus.name for corpus in corpora)
        self._corpora, self._shares = corpora, [share / sum(shares) for share in shares]

    def __iter__(self) -> Iterator[Document]:
        for corpus in self._corpora:
            yield from corpus

    def sample(self, size: int, *, seed: int) -> list[Document]:
        """About size * share documents of each corpus, uniformly within it, in random order."""
        generator = random.Random(seed)
        wanted = generator.choices(range(len(self._corpora)), [float(share) for share in self._shares], k=size)
        drawn = [corpus.sample(wanted.count(i), seed=seed + i) if i in wanted else [] for i, corpus in enumerate(self._corpora)]
        documents = [document for part in drawn for document in part]
        generator.shuffle(documents)
        return documents

    def fingerprint(self) -> str:
        """Of the corpora and their shares."""
        parts = zip(self._corpora, self._shares, strict=True)
        return content_hash([[corpus.fingerprint(), str(share)] for corpus, share in parts])


def build(config: MixtureConfig, folder: str | Path, score: Scorer) -> Mixture:
    """Builds a mixture in `folder`; what stands there already and was made from the same things is used again.

    Writes `scorecards/NAME.json` for every component scored, `components/NAME/` with the prepared rows of every one that
    the gate takes, and last `mixture.json`.

    Raises:
      InputError: a corpus cannot be read, a policy names a reference that is not there, or the gate rejects everything.
    """
    folder = Path(folder)
    tokenizer = load_tokenizer(config.vocabulary, end_of_text=config.end_of_text)
    corpora = {component.name: open_corpus(component.corpus) for component in config.components}
    shares = token_shares(config.components, config.real_to_synthetic)
    scorecards = dict(score(_to_score(config.components, shares, corpora)))
    for name, scorecard in scorecards.items():
        scorecard.save(folder / "scorecards" / f"{name}.json")
    decisions = [decide(component, scorecards) for component in config.components]
    for component, decision in zip(config.components, decisions, strict=True):
        log.info("gate: %-10s %-12s %s", decision.action, component.name, decision.reason)
    granted = regrant(config.components, shares, [decision.factor for decision in decisions])
    components = []
    for component, asked, share, decision in zip(config.components, shares, granted, decisions, strict=True):
        manifest = _prepare(component, corpora[component.name], tokenizer, config, folder) if share else None
        components.append(
            MixtureComponent(
                name=component.name,
                kind=component.kind,
                share_asked=asked,
                share_granted=share,
                decision=_decision_json(decision, component, scorecards),
                manifest=manifest,
            )
        )
    mixture = Mixture(
        name=config.name,
        components=tuple(components),
        sequence_length=config.sequence_length,
        seed=config.seed,
        vocabulary=next(component.manifest.vocabulary for component in components if component.manifest),
        folder=folder,
    )
    mixture.save()
    return mixture


def _to_score(components: Sequence[Component], shares: Sequence[Fraction], corpora: Mapping[str, Corpus]) -> dict[str, Corpus]:
    """Components that a policy needs a figure of, and the pooled real text where it is a reference."""
    references = {reference for component in components for reference in component.policy.min_ratio_to}
    needed = {component.name: corpora[component.name] for component in components if _is_scored(component, references)}
    if "real" in references:
        real = [(component, share) for component, share in zip(components, shares, strict=True) if component.kind == "real" and share]
        if not real:
            raise InputError("a policy asks for a ratio to 'real', but no real component has a share; name another component")
        needed["real"] = PooledCorpus([corpora[component.name] for component, _ in real], [share for _, share in real])
    return needed


def _is_scored(component: Component, references: set[str]) -> bool:
    if component.name in references:
        return True
    return not component.policy.ungated and (component.kind == "synthetic" or not component.policy.is_empty)


def _prepare(component: Component, corpus: Corpus, tokenizer, config: MixtureConfig, folder: Path) -> Manifest:
    settings = Preparation(
        name=component.name,
        kind=component.kind,
        sequence_length=config.sequence_length,
        seed=config.seed,
        validation_share=config.validation_share,
    )
    manifest = prepare(corpus, tokenizer, folder / "components" / component.name, settings)
    found = manifest.splits["train"]
    log.info(
        "prepared: %-10s %11s tokens in %s rows of %s", component.name, f"{found.tokens:,}", f"{found.rows:,}", f"{manifest.row_tokens:,}"
    )
    return manifest


def _decision_json(decision: Decision, component: Component, scorecards: Mapping[str, Scorecard]) -> dict:
    """A decision as `mixture.json` keeps it: where its scorecard lies, and the figure it turned on."""
    ratios = [finding for finding in decision.findings if finding.figure.startswith("ratio_to:")]
    turned_on = min(ratios, key=lambda finding: finding.value / finding.required, default=None)
    return {
        **decision.to_json(),
        "scorecard": f"scorecards/{component.name}.json" if component.name in scorecards else None,
        "reference": turned_on.figure.removeprefix("ratio_to:") if turned_on else None,
        "ratio": {"value": turned_on.value, "low": turned_on.low, "high": turned_on.high} if turned_on else None,
    }
