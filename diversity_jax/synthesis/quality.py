"""An answer checked against the quality floor: either passages and a question that may be used, or the reason why not.

From a checked generation to training text: the passages, then the question in one of many outward forms.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
import functools
import json
import random
import re
from typing import Any

from diversity_jax.llm import Request
from diversity_jax.synthesis.config import QualityConfig
from diversity_jax.synthesis.templates import Seeds, Template

_SHINGLE_WORDS = 8
_WORD = re.compile(r"\w+")
_REFUSAL = re.compile(
    r"\b(i(['\u2019]m| am) (sorry|unable|not able)|i (can(no|['\u2019])t|cannot|won['\u2019]t) "
    r"(help|assist|provide|write|create|comply|do)"
    r"|as an ai( language)? model)\b",
    re.I,
)
_REFUSAL_CHARACTERS = 240  # a refusal says so at once; later the words may be part of a story


class Flaw(ValueError):
    """Why an answer is not used: a short reason under which it is counted, and a line more."""

    def __init__(self, reason: str, detail: str):
        super().__init__(detail)
        self.reason = reason


@dataclass(frozen=True, kw_only=True)
class Question:
    """A multiple-choice question; `answer` is one of the `options`, letter by letter."""

    question: str
    options: tuple[str, ...]
    answer: str
    explanation: str


@dataclass(frozen=True, kw_only=True)
class Generation:
    """A usable answer.

    Attributes:
      passages: their texts, in order.
      concepts: what each passage teaches.
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
    """Reads and checks an answer; near duplicates are looked for elsewhere, since they depend on what else there is.

    Raises:
      Flaw: `not_json`, `schema`, `refused`, `short`, `long`, `options`, `answer_not_an_option`, `copied_from_prompt`.
    """
    try:
        value = json.loads(_without_fence(text))
    except (ValueError, RecursionError):
        raise Flaw(
            "refused" if _REFUSAL.search(text[:_REFUSAL_CHARACTERS]) else "not_json", "the answer is not JSON"
        ) from None
    made = _in_schema(value, template, seeds, numbered=_is_numbered(request.schema))
    _check_passages(made, request, quality)
    if made.question is not None:
        _check_question(made.question)
    return made


def _without_fence(text: str) -> str:
    """Servers that do not enforce a schema often put JSON between fences."""
    text = text.strip()
    if text.startswith("```"):
        text = text.split("\n", 1)[-1].removesuffix("```")
    return text


def _is_numbered(schema: Mapping[str, Any] | None) -> bool:
    """Whether the answer to the question was asked for as an option's number."""
    asked = (schema or {}).get("properties", {}).get("question", {}).get("properties", {})
    return asked.get("answer", {}).get("type") == "integer"


def _in_schema(value: Any, template: Template, seeds: Seeds, *, numbered: bool) -> Generation:
    schema = template.schema(seeds, False)
    _exactly(value, schema["properties"], "the answer")
    least, most = template.passages
    passages = _items(value["passages"], "passages", least, most)
    for number, passage in enumerate(passages, start=1):
        _exactly(passage, ("concepts", "text"), f"passage {number}")
    concepts = tuple(
        tuple(_line(one, "concepts") for one in _items(passage["concepts"], "concepts", 1, 99)) for passage in passages
    )
    question = persona = None
    topics_used: tuple[int, ...] = (0,)
    if "question" in value:
        asked = _exactly(value["question"], ("question", "options", "answer", "explanation"), "question")
        options = tuple(_line(option, "options") for option in _items(asked["options"], "options", 4, 4))
        if numbered:
            asked = {**asked, "answer": options[_number(asked["answer"], "answer", len(options))]}
        lines = {name: _line(asked[name], name) for name in ("question", "answer", "explanation")}
        question = Question(options=options, **lines)
    if "persona" in value:
        persona = seeds.personas[_number(value["persona"], "persona", len(seeds.personas))]
    if "topics_used" in value:
        numbers = (
            _number(one, "topics_used", len(seeds.topics)) for one in _items(value["topics_used"], "topics_used", 1, 99)
        )
        topics_used = tuple(dict.fromkeys(numbers))
    texts = tuple(_line(passage["text"], "text") for passage in passages)
    return Generation(passages=texts, concepts=concepts, question=question, persona=persona, topics_used=topics_used)


def _exactly(value: Any, names: Sequence[str] | Mapping[str, Any], where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise Flaw("schema", f"{where} is no object")
    missing, unknown = [name for name in names if name not in value], [name for name in value if name not in names]
    if missing or unknown:
        raise Flaw(
            "schema",
            f"{where} lacks {', '.join(missing)}" if missing else f"{where} has {', '.join(map(repr, unknown[:3]))}",
        )
    return value


def _items(value: Any, name: str, least: int, most: int) -> list[Any]:
    if not isinstance(value, list) or not least <= len(value) <= most:
        found = f"{len(value)}" if isinstance(value, list) else type(value).__name__
        raise Flaw("schema", f"{name} has {found} entries, {least} to {most} were asked for")
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


def _check_passages(made: Generation, request: Request, quality: QualityConfig) -> None:
    if _REFUSAL.search(made.passages[0][:_REFUSAL_CHARACTERS]):
        raise Flaw("refused", "the first passage is a refusal")
    for number, passage in enumerate(made.passages, start=1):
        words = passage.count(" ") + 1
        if not quality.min_passage_words <= words <= quality.max_passage_words:
            bounds = f"{quality.min_passage_words} to {quality.max_passage_words} are allowed"
            raise Flaw(
                "short" if words < quality.min_passage_words else "long",
                f"passage {number} has {words} words, {bounds}",
            )
    copied = copied_share("\n".join(made.passages), request.system, request.user)
    if copied > quality.max_copied_share:
        raise Flaw("copied_from_prompt", f"{copied:.0%} of the passages' word sequences stand in the prompt")


def copied_share(text: str, *sources: str) -> float:
    """Share of a text's sequences of eight words that stand in one of the sources."""
    words = _shingles(text)
    copied = set().union(*(words & _shingles_kept(source) for source in sources))
    return len(copied) / len(words) if words else 0.0


@functools.lru_cache(32)  # instructions are the same again and again
def _shingles_kept(text: str) -> set[tuple[str, ...]]:
    return _shingles(text)


def _shingles(text: str) -> set[tuple[str, ...]]:
    words = _WORD.findall(text.lower())
    return set(zip(*(words[start:] for start in range(_SHINGLE_WORDS)), strict=False))


def _check_question(question: Question) -> None:
    if len({option.casefold() for option in question.options}) < len(question.options):
        raise Flaw("options", "two options are the same")
    if question.answer not in question.options:
        raise Flaw("answer_not_an_option", "the answer is not the exact text of an option")


_HEADINGS = (
    "Question:", "Q:", "Quiz question:", "Test yourself:", "Check your understanding.", "Exercise.", "Review question:", "**Question**", "",
)  # fmt: skip
_OPTION_MARKS = ("A.", "A)", "(A)", "a.", "a)", "(a)", "1.", "1)", "(1)")
_OPTION_HEADINGS = ("", "", "", "Options:", "Choices:", "Choose one:", "Which of these is right?")
_ANSWERS = (
    "Answer: {mark} {text}", "Answer: {text}", "Correct answer: {mark} {text}", "The correct answer is {mark} {text}", "Key: {mark}",
    "Solution: {text}", "**Answer:** {mark} {text}",
)  # fmt: skip
_EXPLANATIONS = (
    "Explanation: ",
    "Why: ",
    "Reasoning: ",
    "Step by step: ",
    "Explanation:\n",
    "",
    "Solution, step by step:\n",
)
# An explanation that speaks of options by letter or number would be wrong after they have changed places.
_NAMES_AN_OPTION = re.compile(
    (
        r"\b(option|choice|answer)s?\s*\(?([a-d]|[1-4])\b|\((?:[a-d]|[1-4])\)|\b(first|second|third|fourth|last) "
        r"(option|choice)"
    ),
    re.IGNORECASE,
)
_LETTERS = "ABCD"


def render(made: Generation, *, seed: str) -> str:
    """The training text; equal seeds give equal text."""
    parts = list(made.passages)
    if made.question is not None:
        parts.append(render_question(made.question, random.Random(f"question {seed}")))
    return "\n\n".join(parts)


def render_question(question: Question, draw: random.Random) -> str:
    """Question, options, key and explanation in a drawn form; options change places unless the explanation speaks of
    their places.
    """
    options = list(question.options)
    if not _NAMES_AN_OPTION.search(question.explanation):
        draw.shuffle(options)
    style, inline = draw.choice(_OPTION_MARKS), sum(map(len, options)) < 120 and draw.random() < 0.2
    marks = [_mark(style, number) for number in range(len(options))]
    heading, options_heading = draw.choice(_HEADINGS), draw.choice(_OPTION_HEADINGS)
    listed = [f"{mark} {option}" for mark, option in zip(marks, options, strict=True)]
    key = draw.choice(_ANSWERS).format(mark=marks[options.index(question.answer)], text=question.answer)
    joint = "\n" if heading.endswith(".") or draw.random() < 0.3 else " "
    first = f"{heading}{joint}{question.question}".strip()
    lines = [first, options_heading, "   ".join(listed) if inline else "\n".join(listed)]
    asked = "\n".join(filter(None, lines))
    solved = [key, draw.choice(_EXPLANATIONS) + question.explanation]
    return asked + draw.choice(("\n\n", "\n")) + draw.choice(("\n", "\n\n")).join(solved)


def _mark(style: str, number: int) -> str:
    for first, marks in (("A", _LETTERS), ("a", _LETTERS.lower()), ("1", "1234")):
        if first in style:
            return style.replace(first, marks[number])
    raise ValueError(style)
