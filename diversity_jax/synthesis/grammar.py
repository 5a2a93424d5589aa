"""Demo generator of textbook-like passages from a grammar: no language model, so that a mixture can be tried anywhere.

It gives text whose diversity is known beforehand: a passage is about one of a chosen number of topics, and every topic has its own
words and its own choice of sentence patterns. Few topics make a redundant component and many a diverse one, at equal length.
It stands in for real synthetic data in demonstrations and tests only, and every record says what made it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
import gzip
import itertools
import json
from pathlib import Path
import random
from typing import Any

from diversity_jax.errors import InputError
from diversity_jax.storage import writing
from diversity_jax.synthesis.grammar_sentences import ASPECTS_SENTENCES, CLOSINGS, CONNECTIVES, GENERAL, NUMBERS, OPENINGS, PERIODS
from diversity_jax.synthesis.grammar_words import FIELDS, Field

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
            raise InputError(f"grammar.topics={self.topics}: expected 1 to {MOST_TOPICS}, which is all that the grammar knows")
        if self.documents < self.topics:
            raise InputError(f"grammar.documents={self.documents}: expected at least one for each of the {self.topics} topics")
        if not 50 <= self.shortest_words <= self.longest_words - _LONGEST_SENTENCE_WORDS:
            found = f"grammar.shortest_words={self.shortest_words}, longest_words={self.longest_words}"
            raise InputError(f"{found}: expected at least 50, and {_LONGEST_SENTENCE_WORDS} apart, or whole sentences do not fit")


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
      `text`; `topic`, as `field/thing/aspect`; `seed`, of the component; `document`, its number; and, as provenance, `generator`
      and `generator_version`.
    """
    topics = _topics(config)
    for number in range(config.documents):
        topic = topics[number % len(topics)]
        text = _passage(topic, random.Random(f"passage {config.seed} {config.topics} {number}"), config)
        provenance = {"generator": GENERATOR, "generator_version": VERSION}
        yield {"text": text, "topic": topic.path, "seed": config.seed, "document": number, **provenance}


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
            with gzip.GzipFile("", "wb", compresslevel=6, fileobj=file, mtime=0) as packed:  # no name or time: equal bytes each time
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
    pairs = {field.name: [(thing, aspect) for thing in field.things for aspect in ASPECTS_SENTENCES] for field in fields}
    for listed in pairs.values():
        rng.shuffle(listed)
    chosen = [(field, *pairs[field.name][turn]) for turn in range(len(pairs[fields[0].name])) for field in fields]
    return [_topic(field, thing, aspect, config.seed) for field, thing, aspect in chosen[: config.topics]]


def _topic(field: Field, thing: str, aspect: str, seed: int) -> _Topic:
    rng = random.Random(f"topic {seed} {field.name} {thing} {aspect}")
    return _Topic(
        path=f"{field.name}/{thing}/{aspect}".replace(" ", "_"),
        words={"field": field.name, "aspect": aspect, "thing": thing, "things": _plural(thing), "a_thing": _with_article(thing)},
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
        {slot: first, f"{slot}2": second, f"{slot}s": _plural(first), slot.capitalize(): _capitalised(first)} for first, second in ordered
    )


def _nouns(slot: str, plural_slot: str, words: Sequence[str]) -> tuple[dict[str, str], ...]:
    """Fillings of a slot for a countable noun, of its plural's, and of those that begin a sentence."""
    fillings = []
    for word in words:
        filling = {slot: word, plural_slot: _plural(word), f"a_{slot}": _with_article(word)}
        fillings.append(filling | {name.capitalize(): _capitalised(value) for name, value in filling.items()})
    return tuple(fillings)


def _passage(topic: _Topic, rng: random.Random, config: GrammarConfig) -> str:
    """An opening, general and special sentences in mixed order, and a closing; no pattern twice unless the passage is long."""
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
    """All patterns for the middle of a passage, each once, the special ones as often at the start as `_SPECIAL_SHARE` says."""
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
