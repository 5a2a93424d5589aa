"""Reads answers of generators, checks them against the quality floor, and renders them to training text."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
import functools
from pathlib import Path
import random
import re
import tomllib
from typing import Any

from diversity_jax.core.words import count_words, first_words, words
from diversity_jax.llm import Request, read_json_answer
from diversity_jax.llm.providers.answers import without_thoughts
from diversity_jax.synthesis.config import QualityConfig
from diversity_jax.synthesis.templates import Seeds, Template

_SHINGLE_WORDS = 8
# Of the beginning of an answer, where refusals are; later, the same words may be part of a story.
_REFUSAL_CHARACTERS, _REFUSAL_WORDS = 240, 60
_LANGUAGES = tomllib.loads(Path(__file__).with_name("languages.toml").read_text("utf-8"))
_NAMES_AN_OPTION = re.compile("|".join(_LANGUAGES["names_an_option"]))
_REFUSAL = re.compile(_LANGUAGES["refusals"]["english"])
_REFUSAL_SIGNS = _LANGUAGES["refusals"]["signs"]
_OTHER_REFUSAL = re.compile("|".join(_LANGUAGES["refusals"]["others"]), re.DOTALL)
_OPTION_LABELS = tuple(
    tuple(form.format(symbol) for symbol in symbols)
    for symbols in ("ABCD", "abcd", "1234")
    for form in ("{}.", "{})", "({})")
)
# Letters by which the language of a document is recognised; `plain` has those of Persian and Urdu alone.
_LETTERS_OF = {
    "japanese": re.compile("[\u3041-\u30ff]"),
    "chinese": re.compile("[\u3400-\u9fff]"),
    "korean": re.compile("[\uac00-\ud7a3]"),
    "thai": re.compile("[\u0e01-\u0e4e]"),
    "hindi": re.compile("[\u0904-\u0963]"),
    "plain": re.compile("[\u0679\u067e\u0686\u0688\u0691\u0698\u06a9\u06af\u06ba\u06be\u06c1\u06cc\u06d2]"),
    "arabic": re.compile("[\u0621-\u06d3]"),
}
_OTHER_LETTERS = re.compile("[^\\W\\d_\u0000-\u024f\u1e00-\u1eff]")  # letters but Latin ones
_LEAST_SHARE = 0.05  # of a language's letters among all letters that are not Latin, as of kana in Japanese


class Flaw(ValueError):
    """Why an answer is rejected: `reason`, a short name under which it is counted, and a line of detail."""

    def __init__(self, reason: str, detail: str):
        super().__init__(detail)
        self.reason = reason


@dataclass(frozen=True, kw_only=True)
class Question:
    """A multiple-choice question; `answer` is the exact text of one of the `options`."""

    question: str
    options: tuple[str, ...]
    answer: str
    explanation: str


@dataclass(frozen=True, kw_only=True)
class Generation:
    """A usable answer.

    Attributes:
      passages: their texts, in order.
      concepts: those that each passage teaches; empty for a passage in plain text.
      question: None where the template asks for none.
      persona: the chosen reader, or None.
      topics_used: numbers of the topics used, from 0.
    """

    passages: tuple[str, ...]
    concepts: tuple[tuple[str, ...], ...]
    question: Question | None
    persona: str | None
    topics_used: tuple[int, ...]


def read_answer(text: str, template: Template, seeds: Seeds, request: Request, quality: QualityConfig) -> Generation:
    """Reads and checks an answer by itself; `generate_round` searches near duplicates among documents.

    Raises:
      Flaw: `not_json`, `schema`, `refused`, `short`, `long`, `options`, `answer_not_an_option`, `copied_from_prompt`.
    """
    if template.plain_text:
        passage = _line(without_thoughts(text), "text")
        generation = Generation(passages=(passage,), concepts=((),), question=None, persona=None, topics_used=(0,))
    else:
        value = read_json_answer(text, request.schema).value
        if value is None:
            reason = "refused" if _is_refusal(text) else "not_json"
            raise Flaw(reason, "the answer is not a JSON object")
        generation = _in_schema(value, template, seeds, request.schema or {})
    _check_passages(generation, request, quality)
    if (question := generation.question) is not None:
        if len({option.casefold() for option in question.options}) < len(question.options):
            raise Flaw("options", "two options are the same")
        if question.answer not in question.options:
            raise Flaw("answer_not_an_option", "the answer is not the exact text of an option")
    return generation


def _in_schema(value: Any, template: Template, seeds: Seeds, asked: Mapping[str, Any]) -> Generation:
    """Reads an answer in JSON; `asked` is the schema of the request, with its limits."""
    _check_names(value, template.schema(seeds, False)["properties"], "the answer")
    passages = _items(value["passages"], "passages", *template.passages)
    for number, passage in enumerate(passages, start=1):
        _check_names(passage, ("concepts", "text"), f"passage {number}")
    concepts = tuple(
        tuple(_line(concept, "concepts") for concept in _items(passage["concepts"], "concepts", 1, 99))
        for passage in passages
    )
    question = persona = None
    topics_used: tuple[int, ...] = (0,)
    if "question" in value:
        question = _question(value["question"], asked["properties"]["question"])
    if "persona" in value:
        persona = seeds.personas[_number(value["persona"], "persona", len(seeds.personas))]
    if "topics_used" in value:
        listed = _items(value["topics_used"], "topics_used", 1, 99)
        topics_used = tuple(dict.fromkeys(_number(number, "topics_used", len(seeds.topics)) for number in listed))
    texts = tuple(_line(passage["text"], "text") for passage in passages)
    return Generation(passages=texts, concepts=concepts, question=question, persona=persona, topics_used=topics_used)


def _question(value: Any, asked: Mapping[str, Any]) -> Question:
    _check_names(value, ("question", "options", "answer", "explanation"), "question")
    options = tuple(_line(option, "options") for option in _items(value["options"], "options", 4, 4))
    answer = value["answer"]
    if asked["properties"]["answer"]["type"] == "integer":
        answer = options[_number(answer, "answer", len(options))]
    return Question(
        question=_line(value["question"], "question"),
        options=options,
        answer=_line(answer, "answer"),
        explanation=_line(value["explanation"], "explanation"),
    )


def _check_names(value: Any, names: Collection[str], where: str) -> None:
    if not isinstance(value, dict):
        raise Flaw("schema", f"{where} is no object")
    if missing := [name for name in names if name not in value]:
        raise Flaw("schema", f"{where} lacks {', '.join(missing)}")
    if unknown := [name for name in value if name not in names]:
        raise Flaw("schema", f"{where} has {', '.join(map(repr, unknown[:3]))}")


def _items(value: Any, name: str, least: int, most: int) -> list[Any]:
    if not isinstance(value, list) or not least <= len(value) <= most:
        size = len(value) if isinstance(value, list) else type(value).__name__
        raise Flaw("schema", f"{name} has {size} entries, {least} to {most} were asked for")
    return value


def _line(value: Any, name: str) -> str:
    if not isinstance(value, str) or not (value := value.strip()):
        raise Flaw("schema", f"{name} holds no text")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise Flaw("schema", f"{name} holds a lone surrogate, which no file can") from None
    return value


def _number(value: Any, name: str, most: int) -> int:
    if type(value) is not int or not 1 <= value <= most:
        raise Flaw("schema", f"{name} is {value!r}, 1 to {most} were offered")
    return value - 1


def _check_passages(generation: Generation, request: Request, quality: QualityConfig) -> None:
    if _is_refusal(generation.passages[0]):
        raise Flaw("refused", "the first passage is a refusal")
    for number, passage in enumerate(generation.passages, start=1):
        length = count_words(passage)
        if not quality.min_passage_words <= length <= quality.max_passage_words:
            raise Flaw(
                "short" if length < quality.min_passage_words else "long",
                f"passage {number} has {length} words, {quality.min_passage_words} to {quality.max_passage_words} are "
                "allowed",
            )
    copied = copied_share("\n".join(generation.passages), request.system, request.user)
    if copied > quality.max_copied_share:
        raise Flaw("copied_from_prompt", f"{copied:.0%} of the passages' word sequences stand in the prompt")


def _is_refusal(text: str) -> bool:
    beginning = first_words(text[:_REFUSAL_CHARACTERS], _REFUSAL_WORDS).casefold()
    if _REFUSAL.search(beginning):
        return True
    return any(sign in beginning for sign in _REFUSAL_SIGNS) and _OTHER_REFUSAL.search(beginning) is not None


def copied_share(text: str, *sources: str) -> float:
    """Share of a text's sequences of eight words that occur in one of the sources."""
    shingles = _shingles(text)
    copied = set().union(*(shingles & _source_shingles(source) for source in sources))
    return len(copied) / len(shingles) if shingles else 0.0


def _shingles(text: str) -> set[tuple[str, ...]]:
    text_words = words(text)
    return set(zip(*(text_words[start:] for start in range(_SHINGLE_WORDS)), strict=False))


_source_shingles = functools.lru_cache(32)(_shingles)  # the instructions are the same for many answers


def render(generation: Generation, *, seed: str) -> str:
    """The training text: the passages, then the question in a random form."""
    parts = list(generation.passages)
    if generation.question is not None:
        forms = _LANGUAGES["question"][_language("\n".join(generation.passages))]
        parts.append(_render_question(generation.question, forms, random.Random(f"question {seed}")))
    return "\n\n".join(parts)


def _render_question(question: Question, forms: Mapping[str, Sequence[str]], draw: random.Random) -> str:
    """Question, options, answer and explanation; options are shuffled unless the explanation names their positions."""
    options = list(question.options)
    if not _NAMES_AN_OPTION.search(question.explanation.casefold()):
        draw.shuffle(options)
    labels = draw.choice(_OPTION_LABELS)
    is_inline = sum(map(len, options)) < 120 and draw.random() < 0.2
    heading, options_heading = draw.choice(forms["headings"]), draw.choice(forms["option_headings"])
    labelled = [f"{label} {option}" for label, option in zip(labels, options, strict=True)]
    key = draw.choice(forms["answers"]).format(label=labels[options.index(question.answer)], text=question.answer)
    separator = "\n" if heading.endswith(".") or draw.random() < 0.3 else " "
    first = f"{heading}{separator}{question.question}".strip()
    asked = "\n".join(
        filter(None, [first, options_heading, "   ".join(labelled) if is_inline else "\n".join(labelled)])
    )
    solution = [key, draw.choice(forms["explanations"]) + question.explanation]
    return asked + draw.choice(("\n\n", "\n")) + draw.choice(("\n", "\n\n")).join(solution)


def _language(text: str) -> str:
    """The language of `languages.toml` for a text, by its letters that are not Latin; English where they are few."""
    others = len(_OTHER_LETTERS.findall(text))
    if others < _LEAST_SHARE * len(text):
        return "english"
    return next(
        (name for name, letters in _LETTERS_OF.items() if len(letters.findall(text)) > _LEAST_SHARE * others), "plain"
    )
