"""From a checked generation to training text: the passages, then the question in one of many outward forms."""

import random
import re

from diversity_jax.synthesis.answers import Generation, Question

_HEADINGS = (
    "Question:", "Q:", "Quiz question:", "Test yourself:", "Check your understanding.", "Exercise.", "Review question:", "**Question**", "",
)  # fmt: skip
_OPTION_MARKS = ("A.", "A)", "(A)", "a.", "a)", "(a)", "1.", "1)", "(1)")
_OPTION_HEADINGS = ("", "", "", "Options:", "Choices:", "Choose one:", "Which of these is right?")
_ANSWERS = (
    "Answer: {mark} {text}", "Answer: {text}", "Correct answer: {mark} {text}", "The correct answer is {mark} {text}", "Key: {mark}",
    "Solution: {text}", "**Answer:** {mark} {text}",
)  # fmt: skip
_EXPLANATIONS = ("Explanation: ", "Why: ", "Reasoning: ", "Step by step: ", "Explanation:\n", "", "Solution, step by step:\n")
# An explanation that speaks of options by letter or number would be wrong after they have changed places.
_NAMES_AN_OPTION = re.compile(
    r"\b(option|choice|answer)s?\s*\(?([a-d]|[1-4])\b|\((?:[a-d]|[1-4])\)|\b(first|second|third|fourth|last) (option|choice)",
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
    """Question, options, key and explanation in a drawn form; options change places unless the explanation speaks of their places."""
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
