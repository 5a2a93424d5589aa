"""Generates demo text from a grammar: textbook-like passages of known diversity, without a language model.

A passage is about one of a chosen number of topics, each with its own words and sentence patterns: few topics make a
redundant component and many a diverse one, at equal length. It replaces synthetic data in demonstrations and tests
only, and every record names its generator. The words and patterns are in `demo_grammar.toml`.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
import functools
import gzip
import itertools
import json
import logging
from pathlib import Path
import random
import tomllib
from typing import Any

from diversity_jax.core.errors import InputError
from diversity_jax.core.files import writing

_logger = logging.getLogger(__name__)

GENERATOR = "grammar demo generator, not an LLM"
VERSION = 1  # to be raised when equal settings give other text
MOST_TOPICS = 2400  # aspects x things of all fields in demo_grammar.toml

_CONNECTED_SHARE = 0.25  # of sentences that begin with a connective
_SPECIAL_SHARE = 0.35  # of sentences on the topic's aspect
_LONGEST_SENTENCE_WORDS = 30
_FILE_BLOCK_RECORDS = 1000


@dataclass(frozen=True, kw_only=True)
class GrammarConfig:
    """Size and variety of a component of demo text.

    Attributes:
      topics: number of different topics; passages are spread evenly over them.
      documents: number of passages.
      seed: of topics and passages; the same settings give the same bytes.
      shortest_words, longest_words: bounds of a passage's length, which is drawn between them.
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
            raise InputError(
                f"grammar.shortest_words={self.shortest_words}, longest_words={self.longest_words}: expected at least "
                f"50, and {_LONGEST_SENTENCE_WORDS} apart, or whole sentences do not fit"
            )


@dataclass(frozen=True, kw_only=True)
class GrammarComponent:
    """A file of demo text, and the settings of its text."""

    path: str  # of the file, which ends in .jsonl or .jsonl.gz
    grammar: GrammarConfig = field(default_factory=GrammarConfig)


@dataclass(frozen=True, kw_only=True)
class Field:
    """Vocabulary of one field of knowledge."""

    name: str
    things: Sequence[str]
    parts: Sequence[str]
    processes: Sequence[str]
    tools: Sequence[str]
    places: Sequence[str]
    quantities: Sequence[str]
    people: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Grammar:
    """The contents of `demo_grammar.toml`; sentence patterns hold slots in braces.

    Attributes:
      fields: vocabularies.
      openings, general, closings: sentence patterns that fit every topic.
      aspects: sentence patterns of each aspect.
      connectives, periods, numbers: words for every field.
    """

    fields: Sequence[Field]
    openings: Sequence[str]
    general: Sequence[str]
    closings: Sequence[str]
    aspects: dict[str, Sequence[str]]
    connectives: Sequence[str]
    periods: Sequence[str]
    numbers: Sequence[str]


@functools.cache
def load_grammar() -> Grammar:
    """The grammar, read once from the package's data file."""
    data = tomllib.loads(Path(__file__).with_name("demo_grammar.toml").read_text(encoding="utf-8"))
    return Grammar(fields=[Field(**words) for words in data.pop("fields")], **data)


@dataclass(frozen=True, kw_only=True)
class _Topic:
    """The common parts of all passages on a topic.

    Attributes:
      path: `field/thing/aspect`.
      words: by slot, the words that are the same in all its sentences.
      fillings: for every group of slots that are filled together, the choices, of which a sentence takes one.
      openings, closings: patterns of a passage's first and last sentence.
      general: patterns that fit any aspect.
      special: patterns of the topic's own aspect.
    """

    path: str
    words: dict[str, str]
    fillings: Sequence[Sequence[dict[str, str]]]
    openings: Sequence[str]
    general: Sequence[str]
    special: Sequence[str]
    closings: Sequence[str]


def generate(config: GrammarConfig) -> Iterator[dict[str, Any]]:
    """Yields passages, the topics in turn.

    Yields:
      `text`; `topic`, as `field/thing/aspect`; `seed`, of the component; `document`, its number; and, as provenance,
      `generator` and `generator_version`.
    """
    topics = _topics(config)
    provenance = {"generator": GENERATOR, "generator_version": VERSION}
    for number in range(config.documents):
        topic = topics[number % len(topics)]
        text = _passage(topic, random.Random(f"passage {config.seed} {config.topics} {number}"), config)
        yield {"text": text, "topic": topic.path, "seed": config.seed, "document": number, **provenance}


def write_demo_text(components: Iterable[GrammarComponent]) -> None:
    """Writes files of demo text that do not exist yet; equal settings give equal bytes."""
    for component in components:
        path, config = component.path, component.grammar
        if Path(path).exists():
            _logger.info("%s stands already", path)
            continue
        write_component(config, path)
        _logger.info(
            "%s: %s documents over %s topics (%s)", path, f"{config.documents:,}", f"{config.topics:,}", GENERATOR
        )


def write_component(config: GrammarConfig, path: str | Path) -> Path:
    """Writes all passages as JSON Lines, compressed where the name ends in `.gz`, atomically.

    Raises:
      InputError: the name has another ending, or the disk is full.
    """
    path = Path(path)
    if not path.name.endswith((".jsonl", ".jsonl.gz")):
        raise InputError(f"{path}: expected a name that ends in .jsonl or .jsonl.gz")
    with writing(path) as file:
        if path.name.endswith(".gz"):  # without a name and a time, so that the bytes are equal each time
            with gzip.GzipFile("", "wb", compresslevel=6, fileobj=file, mtime=0) as compressed:
                _write_lines(config, compressed)
        else:
            _write_lines(config, file)
    return path


def _write_lines(config: GrammarConfig, file: Any) -> None:
    records = generate(config)
    while block := list(itertools.islice(records, _FILE_BLOCK_RECORDS)):
        file.write("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in block).encode())


def _topics(config: GrammarConfig) -> list[_Topic]:
    """The topics of a component, the fields in turn, so that topics are spread evenly over all fields."""
    rng, grammar = random.Random(f"topics {config.seed}"), load_grammar()
    fields = rng.sample(grammar.fields, len(grammar.fields))
    pairs = {field.name: list(itertools.product(field.things, grammar.aspects)) for field in fields}
    for field_pairs in pairs.values():
        rng.shuffle(field_pairs)
    chosen = [(field, *pairs[field.name][turn]) for turn in range(len(pairs[fields[0].name])) for field in fields]
    return [_topic(field, thing, aspect, config.seed) for field, thing, aspect in chosen[: config.topics]]


def _topic(field: Field, thing: str, aspect: str, seed: int) -> _Topic:
    rng, grammar = random.Random(f"topic {seed} {field.name} {thing} {aspect}"), load_grammar()
    return _Topic(
        path=f"{field.name}/{thing}/{aspect}".replace(" ", "_"),
        words={"field": field.name, "aspect": aspect, **_noun("thing", "things", thing)},
        fillings=(
            _pairs("part", rng.sample(field.parts, 3)),
            _pairs("process", rng.sample(field.processes, 3)),
            _pairs("quantity", rng.sample(field.quantities, 3)),
            _nouns("tool", "tools", rng.sample(field.tools, 2)),
            _nouns("person", "people", rng.sample(field.people, 2)),
            _nouns("period", "periods", grammar.periods),
            [{"place": location} for location in rng.sample(field.places, 2)],
            [{"number": number} for number in grammar.numbers],
        ),
        openings=rng.sample(grammar.openings, 3),
        general=rng.sample(grammar.general, 12),
        special=rng.sample(grammar.aspects[aspect], 5),
        closings=rng.sample(grammar.closings, 2),
    )


def _pairs(slot: str, words: Sequence[str]) -> list[dict[str, str]]:
    """Fillings of two slots of a kind, which never have the same word."""
    return [
        {slot: first, f"{slot}2": second, f"{slot}s": _plural(first), slot.capitalize(): _capitalised(first)}
        for first, second in itertools.permutations(words, 2)
    ]


def _noun(slot: str, plural_slot: str, word: str) -> dict[str, str]:
    """Fillings of the slots of a countable noun: itself, its plural, and with its article."""
    return {slot: word, plural_slot: _plural(word), f"a_{slot}": _with_article(word)}


def _nouns(slot: str, plural_slot: str, words: Sequence[str]) -> list[dict[str, str]]:
    """Fillings of the slots of countable nouns, also capitalised for the beginning of a sentence."""
    fillings = [_noun(slot, plural_slot, word) for word in words]
    return [
        filling | {name.capitalize(): _capitalised(value) for name, value in filling.items()} for filling in fillings
    ]


def _passage(topic: _Topic, rng: random.Random, config: GrammarConfig) -> str:
    """An opening, general and special sentences mixed, and a closing; patterns repeat only in long passages."""
    connectives = load_grammar().connectives
    target_words = rng.randint(config.shortest_words, config.longest_words - _LONGEST_SENTENCE_WORDS)
    sentences = [_sentence(rng.choice(topic.openings), topic, rng)]
    closing = _sentence(rng.choice(topic.closings), topic, rng)
    words = _count_words(sentences[0]) + _count_words(closing)
    patterns: list[str] = []
    while words < target_words:
        patterns = patterns or _mixed_patterns(topic, rng)
        sentence = _sentence(patterns.pop(), topic, rng)
        if rng.random() < _CONNECTED_SHARE:
            sentence = rng.choice(connectives) + sentence[0].lower() + sentence[1:]
        sentences.append(sentence)
        words += _count_words(sentence)
    return " ".join([*sentences, closing])


def _mixed_patterns(topic: _Topic, rng: random.Random) -> list[str]:
    """All general and special patterns, for `pop`; the next one is special with probability `_SPECIAL_SHARE`."""
    general, special = rng.sample(topic.general, len(topic.general)), rng.sample(topic.special, len(topic.special))
    mixed = []
    while general or special:
        is_special = special and (not general or rng.random() < _SPECIAL_SHARE)
        mixed.append(special.pop() if is_special else general.pop())
    return mixed[::-1]


def _count_words(sentence: str) -> int:
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
