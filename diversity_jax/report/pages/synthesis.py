"""The page of a synthesis: what was written, how diverse it became, what it cost, what was refused, every decision."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
import itertools
from pathlib import Path
from typing import Any

from diversity_jax.core import formats
from diversity_jax.core.files import read_json
from diversity_jax.core.formats import compact, count, counted, money, percent, significant
from diversity_jax.core.run_info import Fact
from diversity_jax.report import page
from diversity_jax.report.figures import synthesis
from diversity_jax.report.html import Html, details, heading, html, macro, muted, named, table
from diversity_jax.report.page import KeyFigure, Page, Section
from diversity_jax.report.plotting import Drawing, render
from diversity_jax.report.style import Palette
from diversity_jax.synthesis.store import Store
from diversity_jax.synthesis.topics import read_topics

_EXAMPLES, _REJECTED_EXAMPLES = 6, 8
_EXAMPLE_CHARACTERS = 1600
_EXAMPLES_FROM = 1000  # documents at the beginning
_DECISIONS_SHOWN = 400
_MAP_FROM = 12  # topics; fewer make no map
_DASH = "\u2013"
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


def _key_figures(rounds: Sequence[Round], documents: int) -> tuple[KeyFigure, ...]:
    paid, tokens = sum(entry["paid_dollars"] for entry in rounds), _totals(rounds, "tokens").total()
    attempts, clusters = _totals(rounds, "attempts").total(), rounds[-1]["effective_clusters"]
    per_dollar = f"{significant(clusters / paid)} effective clusters a dollar" if paid else "a model without a price"
    measured = f"of {count(rounds[-1]['measured'])} measured"
    used = percent(documents / max(attempts, 1))
    return (
        KeyFigure(label="Documents", value=count(documents), note=f"in {counted(len(rounds), 'round')}"),
        KeyFigure(label="Effective clusters", value=significant(clusters), note=measured),
        KeyFigure(label="Paid", value=money(paid), note=per_dollar),
        KeyFigure(label="Tokens", value=compact(tokens), note=f"{compact(tokens / documents)} a document"),
        KeyFigure(label="Answers used", value=used, note=f"of {counted(attempts, 'answer')}"),
    )


def _diversity(rounds: Sequence[Round]) -> Section:
    curve = synthesis.clusters_by_round(rounds)
    alt = f"Effective clusters after each of {len(rounds)} rounds, from {curve[0]:.3g} to {curve[-1]:.3g}"
    caption = (
        "After every round, of all documents so far, by one set of clusters. Where the curve is flat, further "
        "documents say what others said before; where it falls, they crowd what is crowded."
    )
    drawing = render("diversity", alt, lambda width: synthesis.diversity_curve(rounds, width), caption)
    return Section(anchor="diversity", title="Diversity while it was written", body=[drawing])


def _steering(store: Store, arms: Sequence[str], palette: Palette) -> Section | None:
    rounds = store.rounds
    if not any(entry["verdicts"] for entry in rounds):
        return None
    settings = read_json(store.folder / "settings.json")["steering"]
    intro = (
        "An arm is stopped when its marginal effective clusters a dollar are decided to lie below "
        f"{settings['min_gain_per_dollar']:g}; the chance that any arm is stopped wrongly is at most "
        f"{percent(settings['alpha'], 0)} over all looks. What is left goes to arms by Thompson sampling, with "
        f"{percent(settings['explore_share'], 0)} spread evenly."
    )
    shares = render(
        "arms",
        "Share of each arm in every round",
        lambda width: synthesis.arm_shares(rounds, arms, palette, width),
        "Documents of every round by arm.",
    )
    body = [
        intro,
        shares,
        _arms_table(rounds, arms, palette),
        *_avoided(rounds[-1]),
        *_new_topics(rounds),
        _all_decisions(rounds, palette),
    ]
    return Section(anchor="steering", title="What the loop decided", body=body)


def _arms_table(rounds: Sequence[Round], arms: Sequence[str], palette: Palette) -> Html:
    documents, dollars = _totals(rounds, "arm_documents"), _totals(rounds, "dollars_by_arm")
    verdicts = {
        verdict["arm"]: (entry["round"], verdict)
        for entry in rounds
        for verdict in entry["verdicts"]
        if verdict["gain"] is not None
    }
    rows = []
    for arm in arms:
        number, verdict = verdicts.get(arm, (None, {"gain": None, "stopped": False}))
        state = rounds[-1]["arms_stopped"].get(arm, "not stopped")
        if verdict["stopped"]:
            state = f"stopped in round {number}"
        rows.append((named(arm, palette), count(documents[arm]), money(dollars[arm]), _gain(verdict), state))
    return table(("Arm", "#Documents", "#Dollars, as counted", "#Last gain a dollar", "Now"), rows)


def _gain(verdict: Mapping[str, Any]) -> str:
    if verdict["gain"] is None:
        return _DASH
    gain, low, high = (significant(verdict[name]) for name in ("gain", "low", "high"))
    return f"{gain} [{low}, {high}]"


def _avoided(last: Round) -> list[Html | str]:
    if not last["avoid"]:
        return []
    text = f"Subjects that prompts keep away from: {formats.listed(last['avoid'])}."
    if covered := last["topics_covered"]:
        are = "is" if covered == 1 else "are"
        text += f" {counted(covered, 'topic')} gave nearly only such and {are} passed over."
    return [heading("Over-represented"), text]


def _new_topics(rounds: Sequence[Round]) -> list[Html | str]:
    topics = [" / ".join(topic["path"]) for entry in rounds for topic in entry["new_topics"]]
    if not topics:
        return []
    shown = "; ".join(topics[:12]) + (" and others" if len(topics) > 12 else "")
    return [heading("New seeds"), f"{counted(len(topics), 'topic')} below those of thin clusters: {shown}."]


def _all_decisions(rounds: Sequence[Round], palette: Palette) -> Html:
    rows = [
        (
            named(verdict["arm"], palette),
            count(entry["round"]),
            count(verdict["look"]),
            _gain(verdict),
            percent(entry["shares"].get(verdict["arm"], 0.0)),
            html("<b>stopped</b>") if verdict["stopped"] else "goes on",
            verdict["reason"],
        )
        for entry in rounds
        for verdict in entry["verdicts"]
    ]
    titles = ("Arm", "#Round", "#Look", "#Gain a dollar", "#Next share", "Decision", "~Reason")
    left_out = len(rows) - _DECISIONS_SHOWN
    note = muted(f"The first {count(left_out)} are in rounds/*.json." if left_out > 0 else "")
    summary = f"Every look at every arm, {count(len(rows))} in all"
    return details(summary, "", note, table(titles, rows[-_DECISIONS_SHOWN:]))


def _quality(store: Store) -> Section:
    by_generator: dict[str, Counter] = {}
    for entry in store.rounds:
        for label, counts in entry["outcomes"].items():
            by_generator.setdefault(label, Counter()).update(counts)
    reasons = [reason for reason, _ in sum(by_generator.values(), Counter()).most_common() if reason != "accepted"]
    rows = [
        (label, *(count(counts[outcome]) for outcome in ("accepted", *reasons)))
        for label, counts in by_generator.items()
    ]
    intro = "Every answer is used or counted here; what was not used lies in rejects/ with its reason."
    if given_up := sum(entry["given_up"] for entry in store.rounds):
        were = "was" if given_up == 1 else "were"
        intro += f" {counted(given_up, 'place')} of the grid {were} given up after every draw had failed."
    stopped = {label: why for entry in store.rounds for label, why in entry["stopped_generators"].items()}
    lines = [f"{label} was stopped: {why}" for label, why in stopped.items()]
    body = [
        intro,
        macro("list", lines, "warnings") if lines else None,
        table(("Generator", "#Used", *(f"#{reason.replace('_', ' ')}" for reason in reasons)), rows),
        *_rejected(store),
    ]
    return Section(anchor="quality", title="What passed and what did not", body=body)


def _rejected(store: Store) -> list[Html]:
    """An answer for each reason."""
    by_reason: dict[str, dict[str, Any]] = {}
    for answer in store.rejects():
        by_reason.setdefault(answer["reason"], answer)
        if len(by_reason) == _REJECTED_EXAMPLES:
            break
    return [
        details(
            reason.replace("_", " "), answer["topic"], answer["detail"], _sample(answer["answer"][:_EXAMPLE_CHARACTERS])
        )
        for reason, answer in by_reason.items()
    ]


def _sample(text: str) -> Html:
    return html('<p class="sample">{}</p>', text)


def _cost(store: Store) -> Section:
    rounds = store.rounds
    documents, paid = (sum(entry[name] for entry in rounds) for name in ("documents", "paid_dollars"))
    expansion = read_json(store.folder / "topics.json")["growing"]
    attempts = counted(_totals(rounds, "attempts").total(), "answer")
    rows = [
        ("Documents and what was not used", attempts, money(paid)),
        ("Topics and personas", counted(expansion["calls"], "call"), money(expansion["dollars"])),
        ("New seeds", "", money(sum(entry["sown_dollars"] for entry in rounds))),
        ("The steering's judge", "in the latest process", money(rounds[-1]["judge_dollars"])),
    ]
    tokens = ", ".join(f"{label} {compact(number)}" for label, number in _totals(rounds, "tokens").items())
    intro = f"{money(paid / documents)} a document. Tokens by generator: {tokens}."
    return Section(anchor="cost", title="Cost", body=[intro, table(("For", "Calls", "#Paid"), rows)])


def _topics(store: Store) -> Section:
    topics = list(read_topics(str(store.folder / "topics.jsonl.zst")))
    counts = read_json(store.folder / "topics.json")
    levels = synthesis.most_frequent_names(topics)
    alt = "; ".join(
        f"level {number}: " + ", ".join(f"{name} {topics_of_name}" for name, topics_of_name in names[:3])
        for number, names in enumerate(levels, 1)
    )
    intro = (
        f"{counted(counts['kept'], 'topic')} of {count(counts['read'])} read; {count(counts['exact'])} were there "
        f"twice, {count(counts['normalised'])} under another spelling and {count(counts['near'])} under a near name; "
        f"{count(counts['without_keywords'])} have no keywords."
    )
    caption = "The most frequent names of each level, with the topics below them."
    body: list[str | Drawing] = [intro]
    body.append(render("topics", alt, lambda width: synthesis.level_bars(levels, width), caption))
    if len(topics) >= _MAP_FROM:
        positions, names = synthesis.topic_map(topics)
        palette = Palette([name for name, _ in Counter(names).most_common(synthesis.NAMED_ON_MAP)])
        caption = (
            f"{count(len(names))} topics, near ones near (t-SNE of their names' embeddings), in the colour of their "
            "first name."
        )
        alt = f"{len(names)} topics in the plane"
        draw = lambda width: synthesis.map_figure(positions, names, palette, width)  # noqa: E731
        body.append(render("topic-map", alt, draw, caption))
    return Section(anchor="topics", title="Topics", body=body)


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
    blocks = []
    for document in _various(itertools.islice(store.documents(), _EXAMPLES_FROM)):
        aside = " \u00b7 ".join(filter(None, (document["template"], document["style"], document["generator"])))
        reader = muted(f"For: {document['persona']}" if document["persona"] else "")
        text = formats.clean(document["text"])
        if len(text) > 2 * _EXAMPLE_CHARACTERS:
            text = f"{text[:_EXAMPLE_CHARACTERS]}\n\n[\u2026]\n\n{text[-_EXAMPLE_CHARACTERS:]}"
        blocks.append(details(document["topic"], aside, reader, _sample(text)))
    return Section(anchor="examples", title="Examples", body=blocks)
