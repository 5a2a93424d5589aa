"""Builds a mixture: opens and scores its components, lets the gate decide, prepares their rows, allocates shares."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from dataclasses import dataclass
from fractions import Fraction
import logging
import os
from pathlib import Path
from typing import Any

import diversity_jax
from diversity_jax.cluster_agent import Scorecard
from diversity_jax.core.buckets import public_name
from diversity_jax.core.errors import InputError
from diversity_jax.core.files import content_hash, exists, file_hash, join_path, local_folder
from diversity_jax.core.json_fields import Fields, read_fields
from diversity_jax.core.run_info import plain
from diversity_jax.core.stores import is_remote
from diversity_jax.corpus import Corpus
from diversity_jax.mixtures.config import KINDS, BuildConfig, Component, MixtureConfig
from diversity_jax.mixtures.exchange.token_files import TokenSet
from diversity_jax.mixtures.exchange.token_import import import_tokens
from diversity_jax.mixtures.gate import Decision, Measurement, decide, measure, undecided
from diversity_jax.mixtures.mixture import Mixture, MixtureComponent, check_rows
from diversity_jax.mixtures.replay import gate_result, replay
from diversity_jax.mixtures.shares import AvailableRows, GateResult, granted_shares
from diversity_jax.mixtures.sources import ComponentSource, Parts, PooledCorpus, open_source, open_vocabulary
from diversity_jax.prepare.config import Filtering, Preparation
from diversity_jax.prepare.manifest import Manifest
from diversity_jax.prepare.pipeline import prepare
from diversity_jax.tokenizers.document_start import resolve, start_id
from diversity_jax.tokenizers.tokenizer import Tokenizer

_SHARE_TOLERANCE = 2e-5  # shares may be rounded to multiples of 1e-5 by the schedule

log = logging.getLogger(__name__)

DocumentStart = tuple[str | None, int | None]
"""`Mixture.document_start` and `document_start_id`."""
Scorer = Callable[[Mapping[str, Corpus]], Mapping[str, Scorecard]]
"""Scores corpora under the same criteria, so that their figures may be compared."""


@dataclass(frozen=True, kw_only=True)
class _GatedComponent:
    """A component with the gate's decision and its prepared rows; no rows where it is rejected or has no share."""

    component: Component
    source: ComponentSource
    measurement: Measurement | None
    decision: Decision
    parts: Parts

    @property
    def result(self) -> GateResult:
        """What `shares` needs of it."""
        rows = [
            AvailableRows(share=share, rows=train.rows, tokens=train.tokens, documents=train.documents)
            for share, manifest in self.parts.values()
            for train in [manifest.splits["train"]]
        ]
        return gate_result(self.decision, self.measurement, rows)


def build(config: MixtureConfig, folder: str | Path, score: Scorer) -> Mixture:
    """Builds a mixture in `folder`; scorecards and rows there of the same text and settings are used again.

    Writes `scorecards/NAME.json` for every component scored, `components/NAME/` with the prepared rows of every one
    that the gate accepts, and last `mixture.json`.

    Raises:
      InputError: `folder` cannot be written to, a corpus cannot be read, a scorecard is of other data, a policy names a
        reference that is not there, the mixture would contain itself, or a removed share has no recipient.
    """
    folder = local_folder(folder, "output_dir")
    tokenizer = open_vocabulary(config, folder)
    sources = {part.name: open_source(part, config.name, folder, tokenizer) for part in config.components}
    start = document_start(config, folder, tokenizer, sources)
    for source_name, source in sources.items():
        for name, (_, manifest) in source.parts.items():
            about, length = f"component {source_name!r}: its part {name!r}", config.sequence_length
            check_rows(about, manifest, tokenizer=tokenizer, sequence_length=length, document_start=start)
    _check_reachable(config, folder, sources)
    shares = _asked_shares(config)
    scorecards = _score(config.components, shares, {name: source.corpus for name, source in sources.items()}, score)
    for name, scorecard in scorecards.items():
        scorecard.save(folder / "scorecards" / f"{name}.json")
    measurements = [measure(component, scorecards) for component in config.components]
    decisions = [decide(*pair) for pair in zip(config.components, measurements, strict=True)]
    for component, decision in zip(config.components, decisions, strict=True):
        log.info("gate: %-10s %-12s %s", decision.action, component.name, decision.reason)
    gated = []
    for component, share, measurement, decision in zip(config.components, shares, measurements, decisions, strict=True):
        source = sources[component.name]
        parts = _parts(component, source, tokenizer, config, folder, start) if share and decision.factor else {}
        gated.append(
            _GatedComponent(component=component, source=source, measurement=measurement, decision=decision, parts=parts)
        )
    mixture = _compose(config, folder, gated, start)
    mixture.save()
    replay(folder)
    _warn_of_shares(mixture)
    return mixture


def _asked_shares(config: MixtureConfig) -> tuple[Fraction, ...]:
    """The configured shares.

    Raises:
      InputError: one above 0 is too small to be kept.
    """
    shares, parts = config.shares_asked(), dict(zip(KINDS, config.real_to_synthetic or (1, 1), strict=True))
    for component, share in zip(config.components, shares, strict=True):
        if component.share and parts[component.kind] and not share:
            problem = "rounds to 0, since a schedule keeps shares in parts of 1/100,000"
            raise InputError(f"component {component.name!r}: its share {problem}; raise it, or set it to 0")
    return shares


def build_configured(config: BuildConfig) -> Mixture:
    """Writes demo text that is not there yet, builds the mixture, and registers it with SeqIO where that is asked for.

    Raises:
      InputError: as `build`, or SeqIO does not accept it.
    """
    from diversity_jax.scoring.run import scorer
    from diversity_jax.synthesis.demo_grammar import write_demo_text

    folder = Path(config.output_dir)
    write_demo_text(config.grammar)
    mixture = build(config.mixture, folder, scorer(config, folder / "scorecards", undecided(config.mixture.components)))
    for component in mixture.as_asked:
        asked, granted = float(component.share_asked), float(component.share_granted)
        log.info("shares: %-24s asked %7.3f %%  granted %7.3f %%", component.name, 100 * asked, 100 * granted)
    if config.register:
        from diversity_jax.mixtures.registry import register

        log.info("registered with SeqIO: %s", ", ".join(register(folder)))
    return mixture


def document_start(
    config: MixtureConfig, folder: Path, tokenizer: Tokenizer, sources: Mapping[str, ComponentSource]
) -> DocumentStart:
    """Resolves `MixtureConfig.document_start`.

    Raises:
      InputError: the tokenizer has no such token.
    """
    setting, path = config.document_start, join_path(folder, "mixture.json")
    if setting == "auto" and exists(path):
        before = read_fields(path, vocabulary=Fields | None)
        if (before.get("vocabulary") or {}).get("hash") == tokenizer.hash:
            return before.get("document_start"), before.get("document_start_id")
    texts = [part for source in sources.values() for _, part in source.parts.values() if not part.chat]
    if setting == "auto" and texts:
        begin_id = texts[0].begin_of_text_id
        return ("end_of_text", tokenizer.end_of_text_id) if begin_id is None else ("bos", begin_id)
    setting = resolve(setting, tokenizer)
    return setting, start_id(setting, tokenizer)


def _compose(config: MixtureConfig, folder: Path, gated: Sequence[_GatedComponent], start: DocumentStart) -> Mixture:
    """The mixture with its allocated shares and everything they were computed from."""
    requested, granted = granted_shares(config, [part.result for part in gated], config.shares_of)
    components: list[MixtureComponent] = []
    for gated_component, asked, granted_parts in zip(gated, requested, granted, strict=True):
        component = gated_component.component
        for name, share in zip(list(gated_component.parts) or [component.name], granted_parts, strict=True):
            part_share, manifest = gated_component.parts.get(name, (Fraction(1), None))
            components.append(
                MixtureComponent(
                    name=name,
                    kind=component.kind,
                    share_asked=asked * part_share,
                    share_granted=share,
                    decision=_decision_json(gated_component),
                    manifest=manifest,
                    part_of=component.name if gated_component.source.parts else None,
                )
            )
    names = [component.name for component in components]
    for name in names:
        if names.count(name) > 1:
            raise InputError(
                f"mixture {config.name!r}: two of its components or their parts are named {name!r}; rename one"
            )
    return Mixture(
        name=config.name,
        components=tuple(components),
        sequence_length=config.sequence_length,
        seed=config.seed,
        vocabulary=next(component.manifest.vocabulary for component in components if component.manifest),
        folder=folder,
        shares_of=config.shares_of,
        asked=plain(config),
        gate=[_gate_json(part) for part in gated],
        nested=[part.source.mixture for part in gated if part.source.mixture],
        code=code_version(),
        repeat_shuffle=config.repeat_shuffle,
        document_start=start[0],
        document_start_id=start[1],
    )


def _gate_json(gated: _GatedComponent) -> dict[str, Any]:
    """An entry of `gate` in `mixture.json`, from which `replay` recomputes decision and share."""
    decision, rows = gated.decision, gated.result.rows
    return {
        "name": gated.component.name,
        "measured": dataclasses.asdict(gated.measurement) if gated.measurement else None,
        "decision": {"action": decision.action, "factor": decision.factor, "reason": decision.reason},
        "rows": [[str(part.share), part.rows] for part in rows],
        "contents": [[part.tokens, part.documents] for part in rows],
        "parts": list(gated.parts) or [gated.component.name],
    }


def _decision_json(gated: _GatedComponent) -> dict[str, Any]:
    """A component's `decision` in `mixture.json`, with its scorecard's file and the ratio nearest to failing."""
    ratios = [finding for finding in gated.decision.findings if finding.figure.startswith("ratio_to:")]
    worst = min(ratios, key=lambda finding: finding.value / finding.required, default=None)
    return {
        **dataclasses.asdict(gated.decision),
        "scorecard": f"scorecards/{gated.component.name}.json" if gated.measurement else None,
        "reference": worst.figure.removeprefix("ratio_to:") if worst else None,
        "ratio": {"value": worst.value, "low": worst.low, "high": worst.high} if worst else None,
    }


def _warn_of_shares(mixture: Mixture) -> None:
    """Warns where freed shares went to the other kind, so that real:synthetic is not what was asked for, and of
    components whose share is so small that it was rounded to none."""
    for component in mixture.components:
        if component.manifest and not component.share_granted:
            log.warning("shares: %s gets no tokens: its share rounds to 0 in parts of 1/100,000", component.name)
    for kind in KINDS:
        components = [component for component in mixture.as_asked if component.kind == kind]
        asked = float(sum(component.share_asked for component in components))
        granted = float(sum(component.share_granted for component in components))
        if abs(asked - granted) > _SHARE_TOLERANCE:
            message = "shares: %s text gets %.4g of the %s instead of the %.4g asked for"
            log.warning(message, kind, granted, mixture.unit, asked)


def _score(
    components: Sequence[Component], shares: Sequence[Fraction], corpora: Mapping[str, Corpus], score: Scorer
) -> dict[str, Scorecard]:
    """Scorecards of all components that a policy needs a figure of: given ones, and the rest scored together."""
    given = {part.name: Scorecard.load(part.scorecard) for part in components if part.scorecard}
    for component in components:
        scorecard = given.get(component.name)
        if scorecard and scorecard.corpus["fingerprint"] != corpora[component.name].fingerprint():
            scored, source = scorecard.corpus["name"], component.corpus.source
            other = f"{component.scorecard} is a scorecard of other data ({scored}) than {source}"
            if scored == source:
                other = f"{source}, or how it is read, has changed since {component.scorecard} was made"
            raise InputError(f"component {component.name!r}: {other}; score it again, or leave scorecard out")
    wanted = {name: corpus for name, corpus in _to_score(components, shares, corpora).items() if name not in given}
    return {**given, **score(wanted)}


def _to_score(
    components: Sequence[Component], shares: Sequence[Fraction], corpora: Mapping[str, Corpus]
) -> dict[str, Corpus]:
    """Corpora of the components that a policy needs a figure of, and the pooled real text where it is a reference."""
    references = {reference for component in components for reference in component.policy.min_ratio_to}
    needed = {}
    for component in components:
        policy = component.policy
        is_gated = not policy.ungated and (component.kind == "synthetic" or not policy.is_empty)
        if is_gated or component.name in references:
            needed[component.name] = corpora[component.name]
    if "real" in references:
        pairs = zip(components, shares, strict=True)
        real = {component.name: share for component, share in pairs if component.kind == "real" and share}
        if not real:
            raise InputError("a policy names the reference 'real', but no real component has a share; name another")
        needed["real"] = PooledCorpus([corpora[name] for name in real], list(real.values()))
    return needed


def _check_reachable(config: MixtureConfig, folder: Path, sources: Mapping[str, ComponentSource]) -> None:
    """Refuses a mixture in a bucket whose rows would be on this machine's disk."""
    if not is_remote(public_name(folder)):
        return
    locations = [("components_dir", config.components_dir or "")]
    for name, source in sources.items():
        locations += [(f"component {name!r}", os.fspath(manifest.folder)) for _, manifest in source.parts.values()]
    for what, location in locations:
        if location and not is_remote(location):
            raise InputError(
                f"{what}: a mixture in a bucket cannot have rows in {location}; put them into a bucket too"
            )


def _parts(
    component: Component,
    source: ComponentSource,
    tokenizer: Tokenizer,
    config: MixtureConfig,
    folder: Path,
    start: DocumentStart,
) -> Parts:
    """The prepared rows of a component: those of its source, or prepared now."""
    if source.parts:
        if config.hygiene != Filtering():
            log.warning("hygiene: rows of %s are prepared already and taken as they are", component.corpus.source)
        return {f"{component.name}_{name}": part for name, part in source.parts.items()}
    settings = config.preparation(component, start[0] or "end_of_text")
    output = join_path(config.components_dir or folder / "components", component.name)
    if source.tokens is not None:
        return {component.name: (Fraction(1), _imported(source.tokens, tokenizer, output, settings))}
    manifest = prepare(source.corpus, tokenizer, output, settings, processes=config.processes)
    train, statistics = manifest.splits["train"], manifest.statistics
    counts = f"{train.tokens:,}", f"{train.rows:,}", f"{manifest.row_tokens:,}"
    log.info("prepared: %-10s %11s tokens in %s rows of %s", component.name, *counts)
    if manifest.chat:
        fill, targets = 100 * statistics["fill"], 100 * statistics["target_tokens"] / train.tokens
        text = "conversations: %-10s %11s, rows filled to %.1f %%, %.1f %% of tokens are answers"
        log.info(text, component.name, f"{train.documents:,}", fill, targets)
    return {component.name: (Fraction(1), manifest)}


def _imported(tokens: TokenSet, tokenizer: Tokenizer, output: Path | str, settings: Preparation) -> Manifest:
    """The component made of a token set; rows are copied, not linked, if the mixture goes to a bucket."""
    if is_remote(output):
        raise InputError(
            f"component {settings.name!r}: tokens are imported on a disk; leave components_dir={output} out"
        )
    return import_tokens(tokens, tokenizer, Path(output), settings, link=not is_remote(public_name(output)))


def code_version() -> dict[str, str]:
    """This project's version, and a hash of its source files."""
    package = Path(diversity_jax.__file__).parent
    sources = {str(path.relative_to(package)): file_hash(path) for path in sorted(package.rglob("*.py"))}
    return {"version": diversity_jax.__version__, "source_sha256": content_hash(sources)}
