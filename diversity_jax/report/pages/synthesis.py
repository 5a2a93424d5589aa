"""The page of a synthesis: what was written, how diverse it became, what it cost, what was refused, and everything the
loop decided.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
import itertools
from pathlib import Path
from typing import Any

from diversity_jax.core import formats
from diversity_jax.core.files import read_json
from diversity_jax.report import page
from diversity_jax.report.data import Fact
from diversity_jax.report.figures import synthesis
from diversity_jax.report.html import Html, columns, element, joined, table
from diversity_jax.report.page import KeyFigure, Page, Section, named
from diversity_jax.report.plotting import render
from diversity_jax.report.style import Palette
from diversity_jax.synthesis.store import Store
from diversity_jax.synthesis.topics import read_topics

_EXAMPLES, _REJECTED_EXAMPLES = 6, 8
_EXAMPLE_CHARACTERS = 1600
_LOOKED_AT = 1000
_DECISIONS_SHOWN = 400
_FOOTER = (
    "Written by diversity_jax. Effective clusters are Hill numbers of order 2 of all documents, in clusters by "
    "the words they share."
)
_NO_MODEL = (
    "Clusters are found by the words that documents share, without a language model: good enough to steer by, and no "
    "score. Score the "
    "component with python -m diversity_jax.score before it enters a mixture."
)


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
    rounds = store.rounds
    made = sum(one["documents"] for one in rounds)
    if not made:
        why = rounds[-1]["ended"] or "no answer passed the quality floor" if rounds else "no round was finished"
        sections = (*((_quality(store),) if rounds else ()), page.facts(facts))
        return Page(
            kind="Synthesis of", name=store.folder.name, verdict=f"Nothing was written: {why}.", sections=sections
        )
    arms = list(dict.fromkeys(arm for one in rounds for arm in [*one["attempts"], *one["arm_documents"]]))
    palette = Palette(arms)
    found = (
        _diversity(store),
        _steering(store, arms, palette),
        _quality(store),
        _cost(store),
        _topics(store),
        _examples(store),
    )
    return Page(
        kind="Synthesis of",
        name=store.folder.name,
        verdict=_verdict(rounds, made),
        lede=_NO_MODEL,
        key_figures=_key_figures(rounds, made),
        sections=(*(section for section in found if section is not None), page.facts(facts)),
        footer=_FOOTER,
    )


def _verdict(rounds: Sequence[Mapping[str, Any]], made: int) -> str:
    last = rounds[-1]
    said = (
        f"{formats.counted(made, 'document')} with {formats.significant(last['effective_clusters'])} effective clusters"
    )
    stopped = sum(verdict["stopped"] for one in rounds for verdict in one["verdicts"])
    said += f"; {formats.counted(stopped, 'arm')} stopped on the way" if stopped else ""
    return f"{said}{'; ended by the budget' if last['ended'] else ''}."


def _totals(rounds: Sequence[Mapping[str, Any]], name: str) -> Counter:
    total: Counter = Counter()
    for one in rounds:
        total.update(one[name])
    return total


def _key_figures(rounds: Sequence[Mapping[str, Any]], made: int) -> tuple[KeyFigure, ...]:
    paid, tokens = sum(one["paid_dollars"] for one in rounds), _totals(rounds, "tokens").total()
    attempts = _totals(rounds, "attempts").total()
    clusters = rounds[-1]["effective_clusters"]
    each = f"{formats.significant(clusters / paid)} effective clusters a dollar" if paid else "a model without a price"
    return (
        KeyFigure(label="Documents", value=formats.count(made), note=f"in {formats.counted(len(rounds), 'round')}"),
        KeyFigure(
            label="Effective clusters",
            value=formats.significant(clusters),
            note=f"of {formats.count(rounds[-1]['measured'])} measured",
        ),
        KeyFigure(label="Paid", value=formats.money(paid), note=each),
        KeyFigure(label="Tokens", value=formats.compact(tokens), note=f"{formats.compact(tokens / made)} a document"),
        KeyFigure(
            label="Answers used",
            value=formats.percent(made / max(attempts, 1)),
            note=f"of {formats.counted(attempts, 'answer')}",
        ),
    )


def _diversity(store: Store) -> Section:
    rounds = store.rounds
    curve = synthesis.clusters_by_round(rounds)
    alt = f"Effective clusters after each of {len(rounds)} rounds, from {curve[0]:.3g} to {curve[-1]:.3g}"
    drawing = render("diversity", alt, lambda width: synthesis.diversity_curve(rounds, width))
    caption = (
        "After every round, of all documents so far, by one set of clusters. Where the curve is flat, further "
        "documents say what others "
        "said before; where it falls, they crowd what is crowded."
    )
    return Section(
        anchor="diversity",
        title="Diversity while it was written",
        body=page.figure(drawing, caption),
        drawings=(drawing,),
    )


def _steering(store: Store, arms: Sequence[str], palette: Palette) -> Section | None:
    rounds = store.rounds
    if not any(one["verdicts"] for one in rounds):
        return None
    shares = render(
        "arms", "Share of each arm in every round", lambda width: synthesis.arm_shares(rounds, arms, palette, width)
    )
    settings = read_json(store.folder / "settings.json")["steering"]
    intro = (
        "An arm is stopped when its marginal effective clusters a dollar are decided to lie below "
        f"{settings['min_gain_per_dollar']:g}; the chance that any arm is stopped wrongly is at most "
        f"{formats.percent(settings['alpha'], 0)} over all looks. What is left goes to arms by Thompson sampling, with "
        f"{formats.percent(settings['explore_share'], 0)} spread evenly."
    )
    body = [
        element("p", intro),
        page.figure(shares, "Documents of every round by arm."),
        _arms_table(rounds, arms, palette),
    ]
    body += [_avoided(rounds), _sown(rounds), _all_decisions(rounds, palette)]
    return Section(anchor="steering", title="What the loop decided", body=joined(*body), drawings=(shares,))


def _arms_table(rounds: Sequence[Mapping[str, Any]], arms: Sequence[str], palette: Palette) -> Html:
    documents, dollars = _totals(rounds, "arm_documents"), _totals(rounds, "dollars_by_arm")
    verdicts = {
        verdict["arm"]: (one["round"], verdict)
        for one in rounds
        for verdict in one["verdicts"]
        if verdict["gain"] is not None
    }
    rows = []
    for arm in arms:
        number, verdict = verdicts.get(arm, (None, None))
        gain = "\u2013" if verdict is None else _interval(verdict)
        state = "not stopped"
        if verdict is not None and verdict["stopped"]:
            state = f"stopped in round {number}"
        elif arm in rounds[-1]["arms_stopped"]:
            state = rounds[-1]["arms_stopped"][arm]
        rows.append((named(arm, palette), formats.count(documents[arm]), formats.money(dollars[arm]), gain, state))
    return table(columns("Arm", "#Documents", "#Dollars, as counted", "#Last gain a dollar", "Now"), rows)


def _interval(verdict: Mapping[str, Any]) -> str:
    ends = f"[{formats.significant(verdict['low'])}, {formats.significant(verdict['high'])}]"
    return f"{formats.significant(verdict['gain'])} {ends}"


def _avoided(rounds: Sequence[Mapping[str, Any]]) -> Html | None:
    last = rounds[-1]
    if not last["avoid"]:
        return None
    said = f"Subjects that prompts keep away from: {formats.listed(last['avoid'])}."
    covered = last["topics_covered"]
    more = (
        f" {formats.counted(covered, 'topic')} gave nearly only such and {'is' if covered == 1 else 'are'} passed over."
        if covered
        else ""
    )
    return joined(element("h3", "Over-represented"), element("p", said + more))


def _sown(rounds: Sequence[Mapping[str, Any]]) -> Html | None:
    sown = [" / ".join(topic["path"]) for one in rounds for topic in one["new_topics"]]
    if not sown:
        return None
    shown = "; ".join(sown[:12]) + (" and others" if len(sown) > 12 else "")
    return joined(
        element("h3", "New seeds"),
        element("p", f"{formats.counted(len(sown), 'topic')} below those of thin clusters: {shown}."),
    )


def _all_decisions(rounds: Sequence[Mapping[str, Any]], palette: Palette) -> Html:
    rows = [
        (
            named(verdict["arm"], palette),
            formats.count(one["round"]),
            formats.count(verdict["look"]),
            "\u2013" if verdict["gain"] is None else _interval(verdict),
            formats.percent(one["shares"].get(verdict["arm"], 0.0)),
            element("b", "stopped") if verdict["stopped"] else "goes on",
            verdict["reason"],
        )
        for one in rounds
        for verdict in one["verdicts"]
    ]
    titles = columns("Arm", "#Round", "#Look", "#Gain a dollar", "#Next share", "Decision", "~Reason")
    shown = table(titles, rows[-_DECISIONS_SHOWN:])
    left_out = len(rows) - _DECISIONS_SHOWN
    note = (
        element("p", f"The first {formats.count(left_out)} are in rounds/*.json.", class_="muted")
        if left_out > 0
        else None
    )
    return element(
        "details",
        element("summary", f"Every look at every arm, {formats.count(len(rows))} in all"),
        element("div", note, shown, class_="inside"),
    )


def _quality(store: Store) -> Section:
    by_generator: dict[str, Counter] = {}
    for one in store.rounds:
        for label, counts in one["outcomes"].items():
            by_generator.setdefault(label, Counter()).update(counts)
    reasons = [reason for reason, _ in sum(by_generator.values(), Counter()).most_common() if reason != "accepted"]
    names = [reason.replace("_", " ") for reason in reasons]
    rows = [
        (label, formats.count(counts["accepted"]), *(formats.count(counts[reason]) for reason in reasons))
        for label, counts in by_generator.items()
    ]
    given_up = sum(one["given_up"] for one in store.rounds)
    intro = "Every answer is used or counted here; what was not used lies in rejects/ with its reason."
    if given_up:
        intro += (
            f" {formats.counted(given_up, 'place')} of the grid {'was' if given_up == 1 else 'were'} given up "
            "after every draw had failed."
        )
    stopped = {label: why for one in store.rounds for label, why in one["stopped_generators"].items()}
    lines = [element("li", f"{label} was stopped: {why}") for label, why in stopped.items()]
    body = [element("p", intro), element("ul", lines, class_="warnings") if lines else None]
    body += [table(columns("Generator", "#Used", *(f"#{name}" for name in names)), rows), _rejected(store)]
    return Section(anchor="quality", title="What passed and what did not", body=joined(*body))


def _rejected(store: Store) -> Html | None:
    seen: dict[str, dict[str, Any]] = {}
    for one in store.rejects():
        seen.setdefault(one["reason"], one)
        if len(seen) == _REJECTED_EXAMPLES:
            break
    return joined(
        *(
            element(
                "details",
                element("summary", reason.replace("_", " "), element("span", one["topic"], class_="aside")),
                element(
                    "div",
                    element("p", one["detail"]),
                    element("p", one["answer"][:_EXAMPLE_CHARACTERS], class_="sample"),
                    class_="inside",
                ),
            )
            for reason, one in seen.items()
        )
    )


def _cost(store: Store) -> Section:
    rounds = store.rounds
    documents, paid = sum(one["documents"] for one in rounds), sum(one["paid_dollars"] for one in rounds)
    growing = read_json(store.folder / "topics.json")["growing"]
    judged = rounds[-1]["judge_dollars"]
    rows = [
        (
            "Documents and what was not used",
            formats.counted(_totals(rounds, "attempts").total(), "answer"),
            formats.money(paid),
        ),
        ("Topics and personas", formats.counted(growing["calls"], "call"), formats.money(growing["dollars"])),
        ("New seeds", "", formats.money(sum(one["sown_dollars"] for one in rounds))),
        ("The steering's judge", "in the latest process", formats.money(judged)),
    ]
    tokens = ", ".join(f"{label} {formats.compact(number)}" for label, number in _totals(rounds, "tokens").items())
    said = f"{formats.money(paid / documents)} a document. Tokens by generator: {tokens}."
    return Section(
        anchor="cost", title="Cost", body=joined(element("p", said), table(columns("For", "Calls", "#Paid"), rows))
    )


def _topics(store: Store) -> Section:
    topics = list(read_topics(str(store.folder / "topics.jsonl.zst")))
    counts = read_json(store.folder / "topics.json")
    levels = synthesis.top_by_level(topics)
    alt = "; ".join(
        f"level {place}: " + ", ".join(f"{name} {number}" for name, number in names[:3])
        for place, names in enumerate(levels, 1)
    )
    drawings = [render("topics", alt, lambda width: synthesis.level_bars(levels, width))]
    body = [
        element(
            "p",
            f"{formats.counted(counts['kept'], 'topic')} of {formats.count(counts['read'])} read; "
            f"{formats.count(counts['exact'])} were "
            f"there twice, {formats.count(counts['normalised'])} under another spelling and "
            f"{formats.count(counts['near'])} under a near name; {formats.count(counts['without_keywords'])} have no "
            "keywords.",
        ),
        page.figure(drawings[0], "The most frequent names of each level, with the topics below them."),
    ]
    if len(topics) >= 12:
        places, names = synthesis.topic_map(topics)
        palette = Palette([name for name, _ in Counter(names).most_common(6)])
        drawings.append(
            render(
                "topic-map",
                f"{len(names)} topics in the plane",
                lambda width: synthesis.map_figure(places, names, palette, width),
            )
        )
        caption = (
            f"{formats.count(len(names))} topics, near ones near (t-SNE of their names' embeddings), in the "
            "colour of their first name."
        )
        body.append(page.figure(drawings[1], caption))
    return Section(anchor="topics", title="Topics", body=joined(*body), drawings=tuple(drawings))


def _various(documents: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Some of the documents, as unlike each other in how they were made as can be."""
    found: dict[tuple, list[Mapping[str, Any]]] = {}
    for one in documents:
        found.setdefault((one["template"], one["style"], one["generator"]), []).append(one)
    in_turn = itertools.chain.from_iterable(itertools.zip_longest(*_templates_in_turn(found)))
    return [one for one in in_turn if one is not None][:_EXAMPLES]


def _templates_in_turn(found: Mapping[tuple, list[Mapping[str, Any]]]) -> list[list[Mapping[str, Any]]]:
    """The groups, one of every template first."""
    rank: Counter = Counter()
    places = {}
    for key in found:
        places[key] = rank[key[0]]
        rank[key[0]] += 1
    return [found[key] for key in sorted(found, key=places.__getitem__)]


def _examples(store: Store) -> Section:
    entries = []
    for one in _various(itertools.islice(store.documents(), _LOOKED_AT)):
        aside = " \u00b7 ".join(filter(None, (one["template"], one["style"], one["generator"])))
        reader = element("p", f"For: {one['persona']}", class_="muted") if one["persona"] else None
        text = formats.clean(one["text"])
        shown = (
            text
            if len(text) <= 2 * _EXAMPLE_CHARACTERS
            else text[:_EXAMPLE_CHARACTERS] + "\n\n[\u2026]\n\n" + text[-_EXAMPLE_CHARACTERS:]
        )
        inside = element("div", reader, element("p", shown, class_="sample"), class_="inside")
        entries.append(
            element("details", element("summary", one["topic"], element("span", aside, class_="aside")), inside)
        )
    return Section(anchor="examples", title="Examples", body=joined(*entries))
