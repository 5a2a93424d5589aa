"""Passages of a simulated language model whose subject follows from the request, so that a run's diversity is known.

Topics named `narrow...` get one of two texts' vocabularies, all others words of their own. Served by
`tests.llm_server`.
"""

import functools
import hashlib
import random
import re
from typing import Any

from diversity_jax.cluster_agent.exam_corpora import calibration_pairs
from diversity_jax.core.words import words
from tests.words_by_language import WORDS, as_text

_SYLLABLES = [a + b for a in "bdfgklmnprstvz" for b in ("a", "e", "i", "o", "u", "an", "el", "or")]


def words_for(subject: str, count: int = 60) -> list[str]:
    """A vocabulary that belongs to one subject."""
    draw = random.Random(f"words {subject}")
    return ["".join(draw.choices(_SYLLABLES, k=3)) for _ in range(count)]


@functools.cache
def english_words_for(subject: str) -> list[str]:
    """Words of three English texts, which the word vectors tell from those of another subject."""
    texts = random.Random(f"words {subject}").sample(calibration_pairs(50)["en"].texts, 3)
    return [word for text in texts for word in words(text)]


def write(
    subject: str,
    variety: random.Random,
    *,
    persona: bool,
    topics: bool,
    passages: int = 3,
    language: str | None = None,
) -> dict[str, Any]:
    """A generation in schema on one subject, in English words or those of a language of `tests.words_by_language`."""
    own = random.Random(subject).sample(WORDS[language], 40) if language else english_words_for(subject)

    def text() -> str:
        if language:
            return as_text(variety.choices(own, k=40), language)
        return " ".join(variety.choice(own) for _ in range(40)).capitalize() + "."

    options = variety.sample(own, 4) if len(set(own)) > 4 else ["one", "two", "three", "four"]
    options = list(dict.fromkeys(options)) + [f"none of {n}" for n in range(4)]
    question = {
        "question": f"What is {own[0]}?",
        "options": options[:4],
        "answer": options[variety.randrange(4)],
        "explanation": text(),
    }
    answer = {
        "passages": [{"concepts": [own[n], own[n + 1]], "text": text()} for n in range(passages)],
        "question": question,
    }
    return answer | ({"persona": 1} if persona else {}) | ({"topics_used": [1]} if topics else {})


def subject_of(user: str) -> str:
    """What a request is about: its topic's last name, or one of two subjects for a narrow one."""
    match = re.search(r"(?:Subject of the passages: |\n1\. )([^\n]+)", user)
    name = match.group(1).rsplit(" / ", 1)[-1] if match else user[:40]
    return f"narrow {int(hashlib.sha256(name.encode()).hexdigest(), 16) % 2}" if name.startswith("narrow") else name


def generation(stage: str, samples: list[dict[str, str]], payload: dict[str, Any]) -> dict[str, Any]:
    """Answers every stage of a synthesis; each attempt at a document is drawn anew."""
    user = payload["user"]
    if stage == "extract_topics":
        word = user.split('"')[3].split(" ")[0]
        return {"topics": [{"path": ["Knowledge", word], "keywords": ["one", "two", "three"]}]}
    if stage == "expand_topic":
        last = re.findall(r'"([^"]+)"', user.split("already_there")[0])[-1]
        return {"subtopics": [{"name": word, "keywords": ["a", "b", "c"]} for word in words_for(last)[:4]]}
    if stage == "write_personas":
        return {"personas": [f"A reader of {user.split(chr(34))[3][:30]}", "A gardener who likes machines"]}
    properties = payload["schema"]["properties"]
    return write(subject_of(user), random.Random(), persona="persona" in properties, topics="topics_used" in properties)


def refusing(stage: str, samples: list[dict[str, str]], payload: dict[str, Any]) -> dict[str, Any]:
    """Refuses, in an answer that fits the schema."""
    made = generation(stage, samples, payload)
    made["passages"][0]["text"] = "I'm sorry, but I cannot help with that. " + made["passages"][0]["text"]
    return made
