"""The page of a synthesis: its diversity over rounds, decisions, rejected answers, cost, topics and examples."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np

from diversity_jax.core import formats
from diversity_jax.core.files import read_json
from diversity_jax.core.formats import compact, count, counted, money, percent, significant
from diversity_jax.core.run_info import Fact
from diversity_jax.report import page
from diversity_jax.report.html import LIGHT, Html, Palette, macro
from diversity_jax.report.page import Page, Section
from diversity_jax.report.plotting import Canvas, end_labels, for_phone, label, label_px, render, set_ticks
from diversity_jax.synthesis.store import Store
from diversity_jax.synthesis.topic_deduplication import embed
from diversity_jax.synthesis.topics import MOST_LEVELS, Topic, read_topics

_MAPPED = 1500  # topics on the map: t-SNE of more takes long and shows no more
NAMED_ON_MAP = 6
_ARM_CHARACTERS = 36
Round = Mapping[str, Any]
"""The summary of a round, as in `rounds/NUMBER.json`."""


def most_frequent_names(topics: Sequence[Topic], most: int = 8) -> list[list[tuple[str, int]]]:
    """For each level of topics' paths the most frequent names, with how many topics have them; levels below the first
    at which no name is repeated are left out.
    """
    levels = []
    for level in range(MOST_LEVELS):
        counts = Counter(topic.path[level] for topic in topics if len(topic.path) > level)
        if counts and (level == 0 or max(counts.values()) > 1):
            levels.append(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:most])
    return levels


def level_bars(levels: Sequence[Sequence[tuple[str, int]]], width: int) -> Canvas:
    """A bar chart for each level of its most frequent names (Figs. 3 and 12 of arXiv 2410.15226)."""
    phone = for_phone(width)
    across = 1 if phone else 2
    head, row, foot, gap = 26, 24, 26, 48
    panel = (width - gap * (across - 1)) / across
    heights = [
        head + row * max(map(len, levels[start : start + across])) + foot for start in range(0, len(levels), across)
    ]
    canvas = Canvas(width, sum(heights))
    for index, names in enumerate(levels):
        x, y = (index % across) * (panel + gap), sum(heights[: index // across])
        canvas.text(x, y + 10, f"Level {index + 1}", bold=True)
        left, bars_px = 0.52 * panel, 0.48 * panel - 44
        axes = canvas.axes(x + left, y + head, bars_px, row * len(names), ylim=(len(names) - 0.5, -0.5))
        numbers = [number for _, number in names]
        axes.set_xlim(0, max(numbers))
        axes.barh(range(len(names)), numbers, height=0.62, color=LIGHT["c1"], linewidth=0)
        for line, (name, number) in enumerate(names):
            middle = y + head + row * (line + 0.5)
            canvas.text(x, middle, label(name, 24 if phone else 30), size=12)
            text = compact(number) if number > 99_999 else count(number)
            canvas.note(x + left + bars_px * number / numbers[0] + 6, middle, text)
    return canvas


def topic_map(topics: Sequence[Topic], *, seed: int = 0) -> tuple[np.ndarray, list[str]]:
    """A t-SNE projection of the embeddings of at most `_MAPPED` topics, drawn at random.

    Returns:
      Positions [n, 2] and the n topics' names at the first level.
    """
    from sklearn.decomposition import TruncatedSVD
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    chosen = np.sort(np.random.default_rng(seed).permutation(len(topics))[:_MAPPED])
    shown = [topics[index] for index in chosen.tolist()]
    vectors = embed(shown)
    with threadpool_limits(1):  # on a busy machine several threads take many times as long as one
        if vectors.shape[1] > 40 and len(shown) > 40:
            vectors = TruncatedSVD(40, random_state=seed).fit_transform(vectors)
        perplexity = min(30.0, max(2.0, (len(shown) - 1) / 4))
        positions = TSNE(2, perplexity=perplexity, init="pca", random_state=seed, max_iter=500).fit_transform(vectors)
    return positions, [topic.path[0] for topic in shown]


def map_figure(positions: np.ndarray, names: Sequence[str], palette: Palette, width: int) -> Canvas:
    """Topics as dots coloured by their name at the first level, with the most frequent names below (Fig. 11 of arXiv
    2410.15226).
    """
    phone = for_phone(width)
    common = [name for name, _ in Counter(names).most_common(NAMED_ON_MAP)]
    height, per_line = (420, 2) if phone else (560, 3)
    canvas = Canvas(width, height + 24 * math.ceil(len(common) / per_line) + 10)
    axes = canvas.axes(0, 0, width, height)
    kinds = np.array([name if name in common else "" for name in names])
    area = min(max(2700 / max(len(names), 1), 9), 90)  # of a dot, in square points: few topics get large ones
    for name in ["", *common]:
        colour, alpha = (palette.colour(name), 0.75) if name else (LIGHT["muted"], 0.35)
        axes.scatter(
            *positions[kinds == name].T, s=area * (0.7 if phone else 1), color=colour, alpha=alpha, linewidths=0
        )
    for index, name in enumerate(common):
        x, y = (index % per_line) * width / per_line, height + 18 + 24 * (index // per_line)
        canvas.text(x, y, "\u25cf " + label(name, 22 if phone else 34), palette.slot(name), size=12, bold=True)
    return canvas


def clusters_by_round(rounds: Sequence[Round]) -> list[float]:
    """Effective clusters after every round. A round's `curve` holds all values so far by the clusters of that round:
    the latest one replaces what earlier rounds had measured.
    """
    clusters = [summary["effective_clusters"] for summary in rounds]
    latest: Sequence[float] = next((summary["curve"] for summary in reversed(rounds) if summary.get("curve")), ())
    return [*latest, *clusters[len(latest) :]]


def diversity_curve(rounds: Sequence[Round], width: int) -> Canvas:
    """Effective clusters over documents and, where the model has a price, over dollars, a panel each."""
    phone = for_phone(width)
    documents = np.cumsum([summary["documents"] for summary in rounds])
    dollars = np.cumsum([summary["paid_dollars"] for summary in rounds])
    clusters = np.array(clusters_by_round(rounds), float)
    panels = [("documents", documents, count)] + ([("dollars", dollars, money)] if dollars[-1] > 0 else [])
    left, head, height, gap = 46, 30, 210 if phone else 260, 70
    block = head + height + 46
    canvas = Canvas(width, block * (len(panels) if phone else 1))
    across = width - left - 10 if phone or len(panels) == 1 else (width - 2 * left - gap - 10) / 2
    for index, (title, x, form) in enumerate(panels):
        offset_x, offset_y = (0, index * block) if phone else (index * (left + across + gap), 0)
        canvas.text(offset_x, offset_y + 10, f"Effective clusters over {title}", bold=True)
        top = 1.08 * max(clusters.max(), 1)
        axes = canvas.axes(offset_x + left, offset_y + head, across, height, ylim=(0, top))
        axes.set_xlim(0, float(x[-1]) or 1)
        set_ticks(axes.xaxis, 4, form)
        set_ticks(axes.yaxis, 5, significant, ruled=True)
        axes.plot(np.append(0, x), np.append(0, clusters), color=LIGHT["c1"], linewidth=2)
        axes.plot(x, clusters, "o", markersize=4 if len(rounds) < 60 else 0, color=LIGHT["c1"])
    return canvas


def arm_shares(rounds: Sequence[Round], arms: Sequence[str], palette: Palette, width: int) -> Canvas:
    """Each arm's share of the documents of every round, stacked."""
    phone = for_phone(width)
    left, head, height, right = 46, 10, 230, 0 if phone else label_px(arms, _ARM_CHARACTERS)
    canvas = Canvas(width, head + height + 46 + (20 * len(arms) if phone else 0))
    axes = canvas.axes(left, head, width - left - right - 4, height, ylim=(0, 1))
    shares = np.array([[summary["arm_documents"].get(arm, 0) for arm in arms] for summary in rounds], float)
    shares /= np.maximum(shares.sum(axis=1, keepdims=True), 1)
    axes.set_xlim(0, len(rounds))
    set_ticks(axes.yaxis, (0, 0.5, 1), lambda tick: percent(tick, 0), ruled=True)
    set_ticks(axes.xaxis, 6, lambda tick: "round 0" if tick == 0 else count(tick), integer=True)
    tops = np.cumsum(shares, axis=1)
    for index, arm in enumerate(arms):
        axes.stairs(
            tops[:, index],
            np.arange(len(rounds) + 1),
            baseline=tops[:, index] - shares[:, index],
            fill=True,
            color=palette.colour(arm),
            alpha=0.85,
            linewidth=0.6,
            edgecolor=LIGHT["paper"],
        )
    if phone:
        for index, arm in enumerate(arms):
            canvas.text(0, head + height + 46 + 20 * index, label(arm, 44), palette.slot(arm), bold=True, size=12)
        return canvas
    middles = dict(zip(arms, head + height * (1 - tops[-1] + shares[-1] / 2), strict=True))
    end_labels(canvas, width - right + 8, middles, (head, head + height - 8), palette, _ARM_CHARACTERS)
    return canvas


_EXAMPLES, _REJECTED_EXAMPLES = 6, 8
_EXAMPLE_CHARACTERS = 1600
_EXAMPLES_FROM = 1000  # first documents, from which examples are chosen
_DECISIONS_SHOWN = 400
_MAP_FROM = 12  # topics that a map needs
_FOOTER = (
    "Written by diversity_jax. Effective clusters are Hill numbers of order 2 of all documents, in clusters by "
    "the words they share."
)
_NO_MODEL = (
    "Clusters are found by the words that documents share, without a language model: good enough to steer by, and no "
    "score. Score the component with python -m diversity_jax.score before it enters a mixture."
)


def write(store: Store, facts: Sequence[Fact]) -> Path:
    """Writes `report.html` and `figures/` into the component's folder.

    Args:
      store: the component; where no round is committed, the page says so.
      facts: of the run, for the last section.

    Returns:
      The page's path.
    """
    return page.write(compose(store, facts), store.folder)


def compose(store: Store, facts: Sequence[Fact]) -> Page:
    """The page's content."""
    rounds, kind, name = store.rounds, "Synthesis of", store.folder.name
    documents = sum(summary["documents"] for summary in rounds)
    if not documents:
        why = rounds[-1]["ended"] or "no answer passed the quality floor" if rounds else "no round was finished"
        sections = (_quality(store) if rounds else None, page.facts(facts))
        return Page(kind=kind, name=name, verdict=f"Nothing was written: {why}.", sections=sections)
    arms = list(dict.fromkeys(arm for summary in rounds for arm in [*summary["attempts"], *summary["arm_documents"]]))
    return Page(
        kind=kind,
        name=name,
        verdict=_verdict(rounds, documents),
        lede=_NO_MODEL,
        key_figures=_key_figures(rounds, documents),
        sections=(
            _diversity(rounds),
            _steering(store, arms, Palette(arms)),
            _quality(store),
            _cost(store),
            _topics(store),
            _examples(store),
            page.facts(facts),
        ),
        footer=_FOOTER,
    )


def _verdict(rounds: Sequence[Round], documents: int) -> str:
    text = f"{counted(documents, 'document')} with {significant(rounds[-1]['effective_clusters'])} effective clusters"
    if stopped := sum(verdict["stopped"] for summary in rounds for verdict in summary["verdicts"]):
        text += f"; {counted(stopped, 'arm')} stopped on the way"
    return f"{text}{'; ended by the budget' if rounds[-1]['ended'] else ''}."


def _totals(rounds: Sequence[Round], name: str) -> Counter:
    """A field of counts, summed over rounds."""
    total: Counter = Counter()
    for summary in rounds:
        total.update(summary[name])
    return total


def _key_figures(rounds: Sequence[Round], documents: int) -> Html:
    paid = sum(summary["paid_dollars"] for summary in rounds)
    tokens, attempts = (_totals(rounds, name).total() for name in ("tokens", "attempts"))
    return macro("synthesis", "key_figures", rounds, documents, paid, tokens, attempts)


def _diversity(rounds: Sequence[Round]) -> Section:
    curve = clusters_by_round(rounds)
    alt = f"Effective clusters after each of {len(rounds)} rounds, from {curve[0]:.3g} to {curve[-1]:.3g}"
    plot = render("diversity", alt, lambda width: diversity_curve(rounds, width))
    return page.section("synthesis", "diversity", "Diversity while it was written", plot=plot)


def _steering(store: Store, arms: Sequence[str], palette: Palette) -> Section | None:
    rounds = store.rounds
    decisions = [(summary, verdict) for summary in rounds for verdict in summary["verdicts"]]
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
        plot=render("arms", alt, lambda width: arm_shares(rounds, arms, palette, width)),
        new_topics=[" / ".join(topic["path"]) for summary in rounds for topic in summary["new_topics"]],
        decisions=decisions,
        decisions_shown=_DECISIONS_SHOWN,
        palette=palette,
    )


def _arm(name: str, rounds: Sequence[Round], decisions: Sequence[tuple[Round, Mapping[str, Any]]]) -> dict[str, Any]:
    """An arm's documents, dollars, latest verdict that holds a gain, and whether it was stopped."""
    with_gain = [pair for pair in decisions if pair[1]["arm"] == name and pair[1]["gain"] is not None]
    summary, verdict = with_gain[-1] if with_gain else (None, None)
    state = rounds[-1]["arms_stopped"].get(name, "not stopped")
    if summary is not None and verdict is not None and verdict["stopped"]:
        state = f"stopped in round {summary['round']}"
    return {
        "name": name,
        "documents": _totals(rounds, "arm_documents")[name],
        "dollars": _totals(rounds, "dollars_by_arm")[name],
        "verdict": verdict,
        "state": state,
    }


def _quality(store: Store) -> Section:
    """Used and rejected answers of each generator, by reason, with examples."""
    by_generator: dict[str, Counter] = {}
    for summary in store.rounds:
        for name, counts in summary["outcomes"].items():
            by_generator.setdefault(name, Counter()).update(counts)
    reasons = [reason for reason, _ in sum(by_generator.values(), Counter()).most_common() if reason != "accepted"]
    return page.section(
        "synthesis",
        "quality",
        "What passed and what did not",
        by_generator=by_generator,
        reasons=reasons,
        given_up=sum(summary["given_up"] for summary in store.rounds),
        stopped={label: why for summary in store.rounds for label, why in summary["stopped_generators"].items()},
        rejected=_rejected(store),
        shown_characters=_EXAMPLE_CHARACTERS,
    )


def _rejected(store: Store) -> dict[str, dict[str, Any]]:
    """The first rejected answer for each of the first reasons."""
    by_reason: dict[str, dict[str, Any]] = {}
    for answer in store.rejects():
        by_reason.setdefault(answer["reason"], answer)
        if len(by_reason) == _REJECTED_EXAMPLES:
            break
    return by_reason


def _cost(store: Store) -> Section:
    rounds = store.rounds
    documents, paid, new_seeds = (
        sum(summary[name] for summary in rounds) for name in ("documents", "paid_dollars", "sown_dollars")
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
    levels = most_frequent_names(topics)
    alt = "; ".join(
        f"level {number}: " + ", ".join(f"{name} {topics_of_name}" for name, topics_of_name in names[:3])
        for number, names in enumerate(levels, 1)
    )
    map_of_topics, names = None, list[str]()
    if len(topics) >= _MAP_FROM:
        positions, names = topic_map(topics)
        palette = Palette([name for name, _ in Counter(names).most_common(NAMED_ON_MAP)])
        map_of_topics = render(
            "topic-map",
            f"{len(names)} topics in the plane",
            lambda width: map_figure(positions, names, palette, width),
        )
    return page.section(
        "synthesis",
        "topics",
        "Topics",
        counts=counts,
        plot=render("topics", alt, lambda width: level_bars(levels, width)),
        map=map_of_topics,
        mapped=len(names),
    )


def _various(documents: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """A few documents that differ in template, style and generator: one of each combination in turn, beginning with one
    combination of each template.
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
