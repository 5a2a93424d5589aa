"""The page of a synthesis: what was written, how diverse it became, what it cost, what was refused, every decision."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
import itertools
from pathlib import Path
from typing import Any

from diversity_jax.core import formats
from diversity_jax.core.files import read_json
from diversity_jax.core.formats import counted, significant
from diversity_jax.core.run_info import Fact
from diversity_jax.report import page
from diversity_jax.report.figures import synthesis
from diversity_jax.report.html import Html, Palette, macro
from diversity_jax.report.page import Page, Section
from diversity_jax.report.plotting import render
from diversity_jax.synthesis.store import Store
from diversity_jax.synthesis.topics import read_topics

_EXAMPLES, _REJECTED_EXAMPLES = 6, 8
_EXAMPLE_CHARACTERS = 1600
_EXAMPLES_FROM = 1000  # documents at the beginning
_DECISIONS_SHOWN = 400
_MAP_FROM = 12  # topics; fewer make no map
_FOOTER = (
    "Written by diversity_jax. Effective clusters are Hill numbers of order 2 of all documents, in clusters by "
    "the words they share."
)
_NO_MODEL = (
    "Clusters are found by the words that documents share, without a language model: good enough to steer by, and no "
    "score. Score the component with python -m diversity_jax.score before it enters a mixture."
)
Round = Mapping[str, Any]


def write(store: Store, facts: Sequence[Fact]) -> Path:
    """Writes `report.html` and `figures/` into the component's folder.

    Args:
      store: with at least one committed round, or none, which the page then says.
      facts: of the run, for its last section.

    Returns:
      The page's path.
    """
    return page.write(compose(store, facts), store.folder)


def compose(store: Store, facts: Sequence[Fact]) -> Page:
    """The page as values."""
    rounds, kind, name = store.rounds, "Synthesis of", store.folder.name
    documents = sum(entry["documents"] for entry in rounds)
    if not documents:
        why = rounds[-1]["ended"] or "no answer passed the quality floor" if rounds else "no round was finished"
        sections = ((_quality(store),) if rounds else ()) + (page.facts(facts),)
        return Page(kind=kind, name=name, verdict=f"Nothing was written: {why}.", sections=sections)
    arms = list(dict.fromkeys(arm for entry in rounds for arm in [*entry["attempts"], *entry["arm_documents"]]))
    shown = (
        _diversity(rounds),
        _steering(store, arms, Palette(arms)),
        _quality(store),
        _cost(store),
        _topics(store),
        _examples(store),
        page.facts(facts),
    )
    return Page(
        kind=kind,
        name=name,
        verdict=_verdict(rounds, documents),
        lede=_NO_MODEL,
        key_figures=_key_figures(rounds, documents),
        sections=tuple(section for section in shown if section is not None),
        footer=_FOOTER,
    )


def _verdict(rounds: Sequence[Round], documents: int) -> str:
    text = f"{counted(documents, 'document')} with {significant(rounds[-1]['effective_clusters'])} effective clusters"
    if stopped := sum(verdict["stopped"] for entry in rounds for verdict in entry["verdicts"]):
        text += f"; {counted(stopped, 'arm')} stopped on the way"
    return f"{text}{'; ended by the budget' if rounds[-1]['ended'] else ''}."


def _totals(rounds: Sequence[Round], name: str) -> Counter:
    total: Counter = Counter()
    for entry in rounds:
        total.update(entry[name])
    return total


def _key_figures(rounds: Sequence[Round], documents: int) -> Html:
    paid = sum(entry["paid_dollars"] for entry in rounds)
    tokens, attempts = (_totals(rounds, name).total() for name in ("tokens", "attempts"))
    return macro("synthesis", "key_figures", rounds, documents, paid, tokens, attempts)


def _diversity(rounds: Sequence[Round]) -> Section:
    curve = synthesis.clusters_by_round(rounds)
    alt = f"Effective clusters after each of {len(rounds)} rounds, from {curve[0]:.3g} to {curve[-1]:.3g}"
    plot = render("diversity", alt, lambda width: synthesis.diversity_curve(rounds, width))
    return page.section("synthesis", "diversity", "Diversity while it was written", plot=plot)


def _steering(store: Store, arms: Sequence[str], palette: Palette) -> Section | None:
    rounds = store.rounds
    decisions = [(entry, verdict) for entry in rounds for verdict in entry["verdicts"]]
    if not decisions:
        return None
    alt = "Share of each arm in every round"
    return page.section(
        "synthesis",
        "steering",
        "What the loop decided",
        rounds=rounds,
        settings=read_json(store.folder / "settings.json")["steering"],
        arms=[_arm(arm, rounds, decisions) for arm in arms],
        plot=render("arms", alt, lambda width: synthesis.arm_shares(rounds, arms, palette, width)),
        new_topics=[" / ".join(topic["path"]) for entry in rounds for topic in entry["new_topics"]],
        decisions=decisions,
        decisions_shown=_DECISIONS_SHOWN,
        palette=palette,
    )


def _arm(name: str, rounds: Sequence[Round], decisions: Sequence[tuple[Round, Mapping[str, Any]]]) -> dict[str, Any]:
    """An arm's documents, dollars, last verdict with a gain, and whether it was stopped."""
    own = [pair for pair in decisions if pair[1]["arm"] == name and pair[1]["gain"] is not None]
    entry, verdict = own[-1] if own else (None, None)
    state = rounds[-1]["arms_stopped"].get(name, "not stopped")
    if entry is not None and verdict is not None and verdict["stopped"]:
        state = f"stopped in round {entry['round']}"
    return {
        "name": name,
        "documents": _totals(rounds, "arm_documents")[name],
        "dollars": _totals(rounds, "dollars_by_arm")[name],
        "verdict": verdict,
        "state": state,
    }


def _quality(store: Store) -> Section:
    by_generator: dict[str, Counter] = {}
    for entry in store.rounds:
        for name, counts in entry["outcomes"].items():
            by_generator.setdefault(name, Counter()).update(counts)
    reasons = [reason for reason, _ in sum(by_generator.values(), Counter()).most_common() if reason != "accepted"]
    return page.section(
        "synthesis",
        "quality",
        "What passed and what did not",
        by_generator=by_generator,
        reasons=reasons,
        given_up=sum(entry["given_up"] for entry in store.rounds),
        stopped={label: why for entry in store.rounds for label, why in entry["stopped_generators"].items()},
        rejected=_rejected(store),
        shown_characters=_EXAMPLE_CHARACTERS,
    )


def _rejected(store: Store) -> dict[str, dict[str, Any]]:
    """An answer for each reason."""
    by_reason: dict[str, dict[str, Any]] = {}
    for answer in store.rejects():
        by_reason.setdefault(answer["reason"], answer)
        if len(by_reason) == _REJECTED_EXAMPLES:
            break
    return by_reason


def _cost(store: Store) -> Section:
    rounds = store.rounds
    documents, paid, new_seeds = (
        sum(entry[name] for entry in rounds) for name in ("documents", "paid_dollars", "sown_dollars")
    )
    return page.section(
        "synthesis",
        "cost",
        "Cost",
        documents=documents,
        paid=paid,
        attempts=_totals(rounds, "attempts").total(),
        expansion=read_json(store.folder / "topics.json")["growing"],
        new_seeds=new_seeds,
        judge=rounds[-1]["judge_dollars"],
        tokens=_totals(rounds, "tokens"),
    )


def _topics(store: Store) -> Section:
    topics = list(read_topics(str(store.folder / "topics.jsonl.zst")))
    counts = read_json(store.folder / "topics.json")
    levels = synthesis.most_frequent_names(topics)
    alt = "; ".join(
        f"level {number}: " + ", ".join(f"{name} {topics_of_name}" for name, topics_of_name in names[:3])
        for number, names in enumerate(levels, 1)
    )
    topic_map, names = None, list[str]()
    if len(topics) >= _MAP_FROM:
        positions, names = synthesis.topic_map(topics)
        palette = Palette([name for name, _ in Counter(names).most_common(synthesis.NAMED_ON_MAP)])
        topic_map = render(
            "topic-map",
            f"{len(names)} topics in the plane",
            lambda width: synthesis.map_figure(positions, names, palette, width),
        )
    return page.section(
        "synthesis",
        "topics",
        "Topics",
        counts=counts,
        plot=render("topics", alt, lambda width: synthesis.level_bars(levels, width)),
        map=topic_map,
        mapped=len(names),
    )


def _various(documents: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Some of the documents, as unlike each other in how they were made as can be: of every template, style and
    generator in turn, of every template first.
    """
    groups: dict[tuple, list[Mapping[str, Any]]] = {}
    for document in documents:
        groups.setdefault((document["template"], document["style"], document["generator"]), []).append(document)
    of_template: Counter = Counter()
    ranked = []
    for key, group in groups.items():
        ranked.append((of_template[key[0]], group))
        of_template[key[0]] += 1
    in_turn = itertools.zip_longest(*(group for _, group in sorted(ranked, key=lambda pair: pair[0])))
    return [document for documents in in_turn for document in documents if document is not None][:_EXAMPLES]


def _examples(store: Store) -> Section:
    documents = _various(itertools.islice(store.documents(), _EXAMPLES_FROM))
    return page.section("synthesis", "examples", "Examples", documents=documents, shortened_text=_without_middle)


def _without_middle(text: str) -> str:
    text = formats.clean(text)
    if len(text) <= 2 * _EXAMPLE_CHARACTERS:
        return text
    return f"{text[:_EXAMPLE_CHARACTERS]}\n\n[\u2026]\n\n{text[-_EXAMPLE_CHARACTERS:]}"
