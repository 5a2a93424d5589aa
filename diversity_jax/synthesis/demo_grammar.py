"""Sentence patterns of the demo grammar. Names in braces are filled from a field's vocabulary; `a_` adds the article,
plurals end in s.

All of them were written for this file.

Demo generator of textbook-like passages from a grammar: no language model, so that a mixture can be tried anywhere.

It gives text whose diversity is known beforehand: a passage is about one of a chosen number of topics, and every topic
has its own words and its own choice of sentence patterns. Few topics make a redundant component and many a diverse one,
at equal length. It stands in for real synthetic data in demonstrations and tests only, and every record says what made
it.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
import gzip
import itertools
import json
import logging
from pathlib import Path
import random
from typing import Any

from diversity_jax.core.errors import InputError
from diversity_jax.core.files import writing
from diversity_jax.synthesis.demo_grammar_words import FIELDS, Field

log = logging.getLogger(__name__)

OPENINGS = """
In {field}, few subjects repay study as well as the {thing}.
This section of the {field} course turns to the {thing} and to its {aspect}.
Anyone who works in {place} will sooner or later meet {a_thing}.
A student of {field} usually meets {a_thing} in the first year.
The {aspect} of {a_thing} is best understood by an example from {place}.
Before the {person} begins to work with {a_thing}, one idea has to be clear.
What makes {a_thing} worth a chapter of its own is its {aspect}.
We saw earlier how {process} works; here it is applied to {a_thing}.
""".strip().split("\n")

GENERAL = """
The {part} of {a_thing} is where {process} has its greatest effect.
{A_person} in {place} may check the {quantity} every {period} and note it beside the {quantity2}.
When the {quantity} rises, the {part} responds long before the {part2} does.
Without {a_tool}, {process} can only be judged by eye.
It helps to think of the {part} and the {part2} as two halves of one system.
In {place}, {things} behave differently, because the {quantity} there is seldom steady.
A careful {person} never relies on {a_tool} alone.
About {number} in every hundred {things} show signs of {process} at this stage.
{Process} depends on the {part}, and the {part} in turn depends on the {quantity}.
The usual mistake is to confuse {process} with {process2}.
For {a_thing} of common size, the {quantity} settles after about {number} {periods}.
{People} often disagree about how much {process} matters here.
One part of the answer lies in the {part2}, which limits the {quantity}.
Two {things} that look alike can differ widely in {quantity}.
Measured with {a_tool}, the {quantity} proves to be lower than most {people} expect.
If {process} stops, the {part2} is the first place to look.
The same reasoning applies to the {quantity2}, although the numbers are smaller.
{A_tool} placed near the {part} records {process} as it happens.
Only in {place} can both {process} and {process2} be watched on the same {thing}.
A rough rule says that doubling the {quantity} cuts the {quantity2} by a third.
The {part} wears, shifts or fades, yet the {thing} as a whole keeps its character.
Note that {process2} begins at the {part} and only later reaches the {part2}.
Most records from {place} give the {quantity} but leave out the {quantity2}.
{A_person} with {a_tool} needs roughly {number} {periods} to learn this.
The link between {quantity} and {process} is the thread that runs through this chapter.
Compare {a_thing} from {place} with one that has never been through {process}.
Seen closely, each {part} carries traces of {process}.
Neither the {part} nor the {part2} explains the {quantity} by itself.
""".strip().split("\n")

CLOSINGS = """
To sum up, the {thing} joins {process} with {process2}, and the {quantity} tells us how well.
As an exercise, explain why the {quantity} of {a_thing} changes in {place}.
The next section asks what {process2} adds to this picture.
A reader who remembers the {part} and the {quantity} has kept the most useful half of this section.
Keep the {tool} at hand, since the next example returns to the {part}.
With this in mind, the {aspect} of any other {thing} should hold few surprises.
""".strip().split("\n")

ASPECTS = {
    "structure": """
The structure of {a_thing} can be read from the outside inwards, layer by layer.
Its framework rests on the {part}, to which every {part2} is attached.
A sketch in cross-section shows the {part} at the centre and the {part2} at the rim.
Symmetry is rarely perfect: the arrangement of {parts} leans to one side.
What holds the structure together is the joint between {part} and {part2}.
Remove one {part}, and the whole arrangement must carry its share.
""",
    "origin": """
How {a_thing} comes into being was a riddle to early {people}.
The first trace of {a_thing} appears as a small {part}, hardly visible.
From such beginnings {process} builds the {thing} up over {number} {periods}.
Three conditions must meet before {a_thing} can form in {place}.
Its beginnings lie in {process2}, long before any {part} is formed.
An older theory placed the source in {place}, which newer evidence does not support.
""",
    "measurement": """
To measure the {quantity}, set {a_tool} against the {part} and take three readings.
The average of {number} readings is safer than any single value.
Error bars grow when the {tool} is not calibrated in {place}.
A table of {quantity} against {quantity2} reveals the outliers at once.
Record the unit, the time and the instrument together with each reading.
Repeated readings of the {quantity} should agree within {number} percent.
""",
    "maintenance": """
Routine upkeep begins with cleaning the {part} and inspecting the {part2}.
A maintenance log for each {thing} saves {people} from guessing later.
Every {period} the {person} should replace a worn {part} before it fails.
Good upkeep is cheap: a little attention to {process} prevents large repairs.
Spare {parts} ought to be stored dry and labelled by date.
A checklist of {number} points covers the upkeep of {a_thing} in full.
""",
    "failure": """
Failure seldom comes without warning: the {quantity} drifts first.
The most common fault is a broken {part}, followed by trouble in the {part2}.
To find the cause of a breakdown, work back from the {part2} to the {part}.
Of {number} failures reported in {place}, most began with faulty {process}.
A damaged {thing} may seem to recover, only to fail again under {process2}.
The symptom appears at the {part}, but the root cause lies elsewhere.
""",
    "history": """
A century ago {people} knew {a_thing} under quite another name.
Old letters from {place} describe the {thing} in surprising detail.
The invention of the {tool} changed how later generations saw {process}.
Museums keep early examples in which the {part} is still of the ancient form.
Historians trace the tradition through {number} generations of {people}.
By the end of that era, {process2} had replaced the older custom.
""",
    "economics": """
The price of {a_thing} follows demand more closely than it follows {quantity}.
In {place}, wages for {people} make up most of the cost.
An investment in {a_tool} pays for itself after {number} {periods}.
Suppliers compete on the {part}, where the profit is largest.
A budget that leaves out {process} will be exceeded before the year ends.
When the market falls, buyers postpone {process2} and keep their old {things}.
""",
    "teaching": """
Teachers introduce {a_thing} with a simple question about its {part}.
Pupils remember {process} better after they have used {a_tool} themselves.
A lesson plan might give {number} minutes to the {part} and the rest to discussion.
In the classroom, a model of the {thing} replaces a visit to {place}.
The examination asks learners to label each {part} and to explain {process}.
Beginners should explain {process2} aloud to a classmate before they write it down.
""",
    "variation": """
No two kinds of {thing} share exactly the same {part}.
Varieties found in {place} form a group of their own.
A key for telling them apart begins with the {part} and ends with the {quantity}.
Rare forms, about {number} in a thousand, lack the {part2} entirely.
Between the extremes lies a range of intermediate types.
Classification by {quantity} gives {number} types, by {part} only a handful.
""",
    "risk": """
The chief hazard of working with {a_thing} lies in careless {process}.
Gloves, goggles and a clear exit are required wherever {a_tool} is in use.
Regulations in {place} forbid {process2} without supervision.
An accident report should name the {part} and the {quantity} at the time.
Risk falls sharply once {people} are trained to watch the {quantity}.
Emergency drills rehearse what to do when the {part} gives way.
""",
}

ASPECTS_SENTENCES = {name: patterns.strip().split("\n") for name, patterns in ASPECTS.items()}
CONNECTIVES = (
    "In practice, ",
    "For this reason, ",
    "As a rule, ",
    "By contrast, ",
    "Even so, ",
    "In other words, ",
    "Likewise, ",
)
PERIODS = ("hour", "day", "week", "month", "season", "year")
NUMBERS = (
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "twelve",
    "fifteen",
    "twenty",
    "thirty",
    "forty",
)


GENERATOR = "grammar demo generator, not an LLM"
VERSION = 1  # raise it when the same settings begin to give other text
MOST_TOPICS = len(ASPECTS_SENTENCES) * sum(len(field.things) for field in FIELDS)

_CONNECTED_SHARE = 0.25  # of the sentences, begun with a connective
_SPECIAL_SHARE = 0.35  # of the sentences, on the topic's aspect
_LONGEST_SENTENCE_WORDS = 30
_FILE_BLOCK_RECORDS = 1000


@dataclass(frozen=True, kw_only=True)
class GrammarConfig:
    """How much to write about how many things.

    Attributes:
      topics: number of different topics; passages are spread evenly over them.
      documents: number of passages.
      seed: of topics and passages; the same settings give the same bytes.
      shortest_words: a passage ends soon after so many words ...
      longest_words: ... or at the latest after so many; its length is drawn between the two.
    """

    topics: int = 400
    documents: int = 4000
    seed: int = 0
    shortest_words: int = 60
    longest_words: int = 200

    def __post_init__(self) -> None:
        if not 1 <= self.topics <= MOST_TOPICS:
            raise InputError(
                f"grammar.topics={self.topics}: expected 1 to {MOST_TOPICS}, which is all that the grammar knows"
            )
        if self.documents < self.topics:
            raise InputError(
                f"grammar.documents={self.documents}: expected at least one for each of the {self.topics} topics"
            )
        if not 50 <= self.shortest_words <= self.longest_words - _LONGEST_SENTENCE_WORDS:
            found = f"grammar.shortest_words={self.shortest_words}, longest_words={self.longest_words}"
            raise InputError(
                f"{found}: expected at least 50, and {_LONGEST_SENTENCE_WORDS} apart, or whole sentences do not fit"
            )


@dataclass(frozen=True, kw_only=True)
class _Topic:
    """What all passages on one topic share.

    Attributes:
      path: `field/thing/aspect`.
      words: by slot, the words that never change within the topic.
      fillings: for every group of slots that go together, the topic's ways to fill them; a sentence takes one of each.
      openings: sentence patterns to begin with.
      general: patterns that fit any aspect.
      special: patterns of the topic's own aspect.
      closings: patterns to end with.
    """

    path: str
    words: dict[str, str]
    fillings: tuple[tuple[dict[str, str], ...], ...]
    openings: tuple[str, ...]
    general: tuple[str, ...]
    special: tuple[str, ...]
    closings: tuple[str, ...]


def generate(config: GrammarConfig) -> Iterator[dict[str, Any]]:
    """Passages one after the other, the topics in turn.

    Yields:
      `text`; `topic`, as `field/thing/aspect`; `seed`, of the component; `document`, its number; and, as provenance,
      `generator` and `generator_version`.
    """
    topics = _topics(config)
    for number in range(config.documents):
        topic = topics[number % len(topics)]
        text = _passage(topic, random.Random(f"passage {config.seed} {config.topics} {number}"), config)
        provenance = {"generator": GENERATOR, "generator_version": VERSION}
        yield {"text": text, "topic": topic.path, "seed": config.seed, "document": number, **provenance}


@dataclass(frozen=True, kw_only=True)
class GrammarComponent:
    """A file of demo text: where it goes, and how much of what the grammar writes."""

    path: str
    grammar: GrammarConfig = field(default_factory=GrammarConfig)


def write_demo_text(components: Iterable[GrammarComponent]) -> None:
    """Writes the files of demo text that are not there yet; equal settings give equal bytes."""
    for component in components:
        if Path(component.path).exists():
            log.info("%s stands already", component.path)
            continue
        write_component(component.grammar, component.path)
        made = f"{component.grammar.documents:,} documents over {component.grammar.topics:,} topics"
        log.info("%s: %s (%s)", component.path, made, GENERATOR)


def write_component(config: GrammarConfig, path: str | Path) -> Path:
    """Writes all passages as JSON Lines, compressed when the name ends in `.gz`; the file appears whole or not at all.

    Raises:
      InputError: the name ends otherwise, or the disk is full.
    """
    path = Path(path)
    if not path.name.endswith((".jsonl", ".jsonl.gz")):
        raise InputError(f"{path}: expected a name that ends in .jsonl or .jsonl.gz")
    with writing(path) as file:
        if path.name.endswith(".gz"):
            with gzip.GzipFile(
                "", "wb", compresslevel=6, fileobj=file, mtime=0
            ) as packed:  # no name or time: equal bytes each time
                _write_lines(config, packed)
        else:
            _write_lines(config, file)
    return path


def _write_lines(config: GrammarConfig, file: Any) -> None:
    lines = []
    for record in generate(config):
        lines.append(json.dumps(record, ensure_ascii=False) + "\n")
        if len(lines) == _FILE_BLOCK_RECORDS:
            file.write("".join(lines).encode())
            lines = []
    file.write("".join(lines).encode())


def _topics(config: GrammarConfig) -> list[_Topic]:
    """The topics of a component: the fields in turn, so that few topics lie far apart and many fill every field alike."""
    rng = random.Random(f"topics {config.seed}")
    fields = rng.sample(FIELDS, len(FIELDS))
    pairs = {
        field.name: [(thing, aspect) for thing in field.things for aspect in ASPECTS_SENTENCES] for field in fields
    }
    for listed in pairs.values():
        rng.shuffle(listed)
    chosen = [(field, *pairs[field.name][turn]) for turn in range(len(pairs[fields[0].name])) for field in fields]
    return [_topic(field, thing, aspect, config.seed) for field, thing, aspect in chosen[: config.topics]]


def _topic(field: Field, thing: str, aspect: str, seed: int) -> _Topic:
    rng = random.Random(f"topic {seed} {field.name} {thing} {aspect}")
    return _Topic(
        path=f"{field.name}/{thing}/{aspect}".replace(" ", "_"),
        words={
            "field": field.name,
            "aspect": aspect,
            "thing": thing,
            "things": _plural(thing),
            "a_thing": _with_article(thing),
        },
        fillings=(
            _pairs("part", rng.sample(field.parts, 3)),
            _pairs("process", rng.sample(field.processes, 3)),
            _pairs("quantity", rng.sample(field.quantities, 3)),
            _nouns("tool", "tools", rng.sample(field.tools, 2)),
            _nouns("person", "people", rng.sample(field.people, 2)),
            _nouns("period", "periods", PERIODS),
            tuple({"place": place} for place in rng.sample(field.places, 2)),
            tuple({"number": number} for number in NUMBERS),
        ),
        openings=tuple(rng.sample(OPENINGS, 3)),
        general=tuple(rng.sample(GENERAL, 12)),
        special=tuple(rng.sample(ASPECTS_SENTENCES[aspect], 5)),
        closings=tuple(rng.sample(CLOSINGS, 2)),
    )


def _pairs(slot: str, words: Sequence[str]) -> tuple[dict[str, str], ...]:
    """Fillings of a slot and of a second one of its kind, which never takes the same word."""
    ordered = itertools.permutations(words, 2)
    return tuple(
        {slot: first, f"{slot}2": second, f"{slot}s": _plural(first), slot.capitalize(): _capitalised(first)}
        for first, second in ordered
    )


def _nouns(slot: str, plural_slot: str, words: Sequence[str]) -> tuple[dict[str, str], ...]:
    """Fillings of a slot for a countable noun, of its plural's, and of those that begin a sentence."""
    fillings = []
    for word in words:
        filling = {slot: word, plural_slot: _plural(word), f"a_{slot}": _with_article(word)}
        fillings.append(filling | {name.capitalize(): _capitalised(value) for name, value in filling.items()})
    return tuple(fillings)


def _passage(topic: _Topic, rng: random.Random, config: GrammarConfig) -> str:
    """An opening, general and special sentences in mixed order, and a closing; no pattern twice unless the passage is
    long.
    """
    wanted = rng.randint(config.shortest_words, config.longest_words - _LONGEST_SENTENCE_WORDS)
    sentences = [_sentence(rng.choice(topic.openings), topic, rng)]
    closing = _sentence(rng.choice(topic.closings), topic, rng)
    words = _count(sentences[0]) + _count(closing)
    patterns: list[str] = []
    while words < wanted:
        patterns = patterns or _mixed(topic, rng)
        sentence = _sentence(patterns.pop(), topic, rng)
        if rng.random() < _CONNECTED_SHARE:
            sentence = rng.choice(CONNECTIVES) + sentence[0].lower() + sentence[1:]
        sentences.append(sentence)
        words += _count(sentence)
    return " ".join([*sentences, closing])


def _mixed(topic: _Topic, rng: random.Random) -> list[str]:
    """All patterns for the middle of a passage, each once, the special ones as often at the start as `_SPECIAL_SHARE`
    says.
    """
    general, special = rng.sample(topic.general, len(topic.general)), rng.sample(topic.special, len(topic.special))
    mixed = []
    while general or special:
        is_special = special and (not general or rng.random() < _SPECIAL_SHARE)
        mixed.append(special.pop() if is_special else general.pop())
    return mixed[::-1]


def _count(sentence: str) -> int:
    return sentence.count(" ") + 1


def _sentence(pattern: str, topic: _Topic, rng: random.Random) -> str:
    words = dict(topic.words)
    for fillings in topic.fillings:
        words.update(fillings[int(rng.random() * len(fillings))])
    return _capitalised(pattern.format_map(words))


def _capitalised(text: str) -> str:
    return text[0].upper() + text[1:]


def _plural(noun: str) -> str:
    if noun.endswith(("s", "x", "ch", "sh")):
        return noun + "es"
    return noun[:-1] + "ies" if noun.endswith("y") and noun[-2] not in "aeiou" else noun + "s"


def _with_article(noun: str) -> str:
    is_vowel = noun[0] in "aeiou" and not noun.startswith(("uni", "use", "eu", "one"))
    return ("an " if is_vowel else "a ") + noun
