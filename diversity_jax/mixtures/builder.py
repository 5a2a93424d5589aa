"""From a mixture asked for to a mixture on disk: measure, decide, prepare, write."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
import logging
from pathlib import Path
import random
from typing import Any

import diversity_jax
from diversity_jax.cluster_agent import Scorecard
from diversity_jax.core.errors import InputError
from diversity_jax.core.files import content_hash, file_hash
from diversity_jax.corpus import Corpus, Document
from diversity_jax.mixtures.config import KINDS, Component, MixtureConfig
from diversity_jax.mixtures.gate import Decision, Measurement, decide, measure
from diversity_jax.mixtures.mixture import Mixture, MixtureComponent
from diversity_jax.mixtures.replay import config_to_json, replay, standing
from diversity_jax.mixtures.shares import Stock, grant, part_shares, row_shares, train_rows
from diversity_jax.mixtures.sources import Ingredient, open_ingredient
from diversity_jax.prepare.manifest import Manifest
from diversity_jax.prepare.pipeline import Preparation, prepare
from diversity_jax.tokenizers.tokenizer import Tokenizer, load_tokenizer

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
        drawn = [
            corpus.sample(wanted.count(i), seed=seed + i) if i in wanted else []
            for i, corpus in enumerate(self._corpora)
        ]
        documents = [document for part in drawn for document in part]
        generator.shuffle(documents)
        return documents

    def fingerprint(self) -> str:
        """Of the corpora and their shares."""
        parts = zip(self._corpora, self._shares, strict=True)
        return content_hash([[corpus.fingerprint(), str(share)] for corpus, share in parts])


def build(config: MixtureConfig, folder: str | Path, score: Scorer) -> Mixture:
    """Builds a mixture in `folder`; what stands there already and was made from the same things is used again.

    Writes `scorecards/NAME.json` for every component scored, `components/NAME/` with the prepared rows of every one
    that the gate takes, and last `mixture.json`.

    Raises:
      InputError: a corpus cannot be read, a scorecard is of other data, a policy names a reference that is not there,
        the mixture would hold itself, or a share has nowhere to go.
    """
    folder = Path(folder)
    tokenizer = load_tokenizer(config.vocabulary, end_of_text=config.end_of_text)
    opened = {component.name: open_ingredient(component, config.name, folder) for component in config.components}
    for component in config.components:
        _check_parts(component, opened[component.name], tokenizer, config)
    corpora = {name: ingredient.corpus for name, ingredient in opened.items()}
    shares = config.shares_asked()
    scorecards = _score(config.components, shares, corpora, score)
    for name, scorecard in scorecards.items():
        scorecard.save(folder / "scorecards" / f"{name}.json")
    measured = [measure(component, scorecards) for component in config.components]
    decisions = [decide(component, found) for component, found in zip(config.components, measured, strict=True)]
    for component, decision in zip(config.components, decisions, strict=True):
        log.info("gate: %-10s %-12s %s", decision.action, component.name, decision.reason)
    parts = [
        _parts(component, opened[component.name], tokenizer, config, folder) if share and decision.factor else {}
        for component, share, decision in zip(config.components, shares, decisions, strict=True)
    ]
    mixture = _compose(config, folder, opened, shares, measured, decisions, parts)
    mixture.save()
    replay(folder)
    _warn_of_changed_ratio(config, mixture)
    return mixture


Parts = Mapping[str, tuple[Fraction, Manifest]]


def _compose(
    config: MixtureConfig,
    folder: Path,
    opened: Mapping[str, Ingredient],
    shares: Sequence[Fraction],
    measured: Sequence[Measurement | None],
    decisions: Sequence[Decision],
    parts: Sequence[Parts],
) -> Mixture:
    """Grants shares and puts the mixture together with all that they rest on."""
    rows = [tuple((part, manifest.splits["train"].rows) for part, manifest in one.values()) for one in parts]
    standings = [standing(*one) for one in zip(decisions, measured, rows, strict=True)]
    stock = [[Stock.of(part, manifest) for part, manifest in one.values()] for one in parts]
    shares = row_shares(config.shares_of, shares, stock)
    granted = grant(config.components, shares, standings, train_rows(config.train_tokens, config.sequence_length))
    components, gate = [], []
    found = zip(
        config.components, shares, measured, decisions, parts, part_shares(granted, standings), stock, strict=True
    )
    for component, asked, measurement, decision, inside, divided, stocked in found:
        names = list(inside) or [component.name]
        for name, share in zip(names, divided, strict=True):
            part, manifest = inside.get(name, (Fraction(1), None))
            components.append(
                MixtureComponent(
                    name=name,
                    kind=component.kind,
                    share_asked=asked * part,
                    share_granted=share,
                    decision=_decision_json(decision, component, measurement),
                    manifest=manifest,
                    part_of=component.name if opened[component.name].parts else None,
                )
            )
        gate.append(
            {
                "name": component.name,
                "measured": measurement and measurement.to_json(),
                "decision": {"action": decision.action, "factor": decision.factor, "reason": decision.reason},
                "rows": [[str(one.share), one.rows] for one in stocked],
                "contents": [[one.tokens, one.documents] for one in stocked],
                "parts": names,
            }
        )
    _refuse_one_name_twice(config, components)
    return Mixture(
        name=config.name,
        components=tuple(components),
        sequence_length=config.sequence_length,
        seed=config.seed,
        vocabulary=next(component.manifest.vocabulary for component in components if component.manifest),
        folder=folder,
        asked=config_to_json(config),
        gate=gate,
        ingredients=[one.mixture for one in opened.values() if one.mixture],
        code=code_version(),
    )


def _refuse_one_name_twice(config: MixtureConfig, components: Sequence[MixtureComponent]) -> None:
    names = [component.name for component in components]
    for name in names:
        if names.count(name) > 1:
            raise InputError(
                f"mixture {config.name!r}: a part of a mixture inside it and another component are both named "
                f"{name!r}; rename one"
            )


def _warn_of_changed_ratio(config: MixtureConfig, mixture: Mixture) -> None:
    """Says loudly where freed shares went to the other kind, so that real:synthetic is not what was asked for."""
    for kind in KINDS:
        asked, granted = (
            float(sum(share for component, share in found if component.kind == kind))
            for found in (
                [(component, component.share_asked) for component in mixture.components],
                [(component, component.share_granted) for component in mixture.components],
            )
        )
        if abs(asked - granted) > 2e-5:
            log.warning("shares: %s text gets %.4g of the tokens instead of the %.4g asked for", kind, granted, asked)


def _score(
    components: Sequence[Component], shares: Sequence[Fraction], corpora: Mapping[str, Corpus], score: Scorer
) -> dict[str, Scorecard]:
    """Scorecards of all that a policy needs a figure of: those that were given, and the rest scored under one ruler."""
    given = {
        component.name: _given(component, corpora[component.name]) for component in components if component.scorecard
    }
    wanted = {name: corpus for name, corpus in _to_score(components, shares, corpora).items() if name not in given}
    return {**given, **score(wanted)}


def _given(component: Component, corpus: Corpus) -> Scorecard:
    scorecard = Scorecard.load(component.scorecard)
    if scorecard.corpus["fingerprint"] != corpus.fingerprint():
        raise InputError(
            f"component {component.name!r}: {component.scorecard} is a scorecard of other data "
            f"({scorecard.corpus['name']}) than "
            f"{component.corpus.source}; score this corpus, or leave scorecard out"
        )
    return scorecard


def _to_score(
    components: Sequence[Component], shares: Sequence[Fraction], corpora: Mapping[str, Corpus]
) -> dict[str, Corpus]:
    """Components that a policy needs a figure of, and the pooled real text where it is a reference."""
    references = {reference for component in components for reference in component.policy.min_ratio_to}
    needed = {component.name: corpora[component.name] for component in components if _is_scored(component, references)}
    if "real" in references:
        real = [
            (component, share)
            for component, share in zip(components, shares, strict=True)
            if component.kind == "real" and share
        ]
        if not real:
            raise InputError(
                "a policy asks for a ratio to 'real', but no real component has a share; name another component"
            )
        needed["real"] = PooledCorpus([corpora[component.name] for component, _ in real], [share for _, share in real])
    return needed


def _is_scored(component: Component, references: set[str]) -> bool:
    if component.name in references:
        return True
    return not component.policy.ungated and (component.kind == "synthetic" or not component.policy.is_empty)


def _check_parts(component: Component, ingredient: Ingredient, tokenizer: Tokenizer, config: MixtureConfig) -> None:
    """Refuses rows prepared before that cannot stand beside those of this mixture, before anything is scored."""
    for name, (_, manifest) in ingredient.parts.items():
        if manifest.vocabulary.hash != tokenizer.hash:
            raise InputError(
                f"component {component.name!r}: its rows ({name}) were prepared with another tokenizer "
                f"({manifest.vocabulary.kind}, "
                f"{manifest.vocabulary.size:,} ids) than this mixture's ({tokenizer.kind}, {tokenizer.size:,} ids); "
                "prepare all with one"
            )
        if manifest.sequence_length != config.sequence_length:
            raise InputError(
                f"component {component.name!r}: its rows ({name}) predict {manifest.sequence_length:,} tokens, this "
                "mixture's "
                f"{config.sequence_length:,}; give all mixtures one sequence_length"
            )


def _parts(
    component: Component, ingredient: Ingredient, tokenizer: Tokenizer, config: MixtureConfig, folder: Path
) -> Parts:
    """The prepared rows of a component: those of the mixture that it is, or prepared now."""
    if ingredient.parts:
        return {f"{component.name}_{name}": part for name, part in ingredient.parts.items()}
    return {component.name: (Fraction(1), _prepare(component, ingredient.corpus, tokenizer, config, folder))}


def _prepare(component: Component, corpus: Corpus, tokenizer, config: MixtureConfig, folder: Path) -> Manifest:
    settings = Preparation(
        name=component.name,
        kind=component.kind,
        sequence_length=config.sequence_length,
        seed=config.seed,
        validation_share=config.validation_share,
        hygiene=config.hygiene,
        chat=config.chat if component.corpus.conversations else None,
    )
    into = Path(config.components_dir) if config.components_dir else folder / "components"
    manifest = prepare(corpus, tokenizer, into / component.name, settings, processes=config.processes)
    found = manifest.splits["train"]
    log.info(
        "prepared: %-10s %11s tokens in %s rows of %s",
        component.name,
        f"{found.tokens:,}",
        f"{found.rows:,}",
        f"{manifest.row_tokens:,}",
    )
    if manifest.chat:
        said = manifest.statistics
        fill, targets = 100 * said["fill"], 100 * said["target_tokens"] / found.tokens
        log.info(
            "conversations: %-10s %11s, rows filled to %.1f %%, %.1f %% of tokens are answers",
            component.name,
            f"{found.documents:,}",
            fill,
            targets,
        )
    return manifest


def _decision_json(decision: Decision, component: Component, measurement: Measurement | None) -> dict[str, Any]:
    """A decision as `mixture.json` keeps it: where its scorecard lies, and the figure it turned on."""
    ratios = [finding for finding in decision.findings if finding.figure.startswith("ratio_to:")]
    turned_on = min(ratios, key=lambda finding: finding.value / finding.required, default=None)
    return {
        **decision.to_json(),
        "scorecard": f"scorecards/{component.name}.json" if measurement else None,
        "reference": turned_on.figure.removeprefix("ratio_to:") if turned_on else None,
        "ratio": {"value": turned_on.value, "low": turned_on.low, "high": turned_on.high} if turned_on else None,
    }


def code_version() -> dict[str, str]:
    """This project's version, and a hash of its source files."""
    package = Path(diversity_jax.__file__).parent
    sources = {str(path.relative_to(package)): file_hash(path) for path in sorted(package.rglob("*.py"))}
    return {"version": diversity_jax.__version__, "source_sha256": content_hash(sources)}
