"""Texts composed of common words of ten languages, six of them written without spaces."""

from collections.abc import Iterator, Sequence
import json
from pathlib import Path
import random

WORDS: dict[str, list[str]] = {
    language: listed.split()
    for language, listed in json.loads(Path(__file__).with_suffix(".json").read_text("utf-8")).items()
}
UNSPACED = ("chinese", "japanese", "thai", "khmer", "burmese", "lao")
_SENTENCE_ENDS = {"chinese": "。", "japanese": "。", "khmer": "។", "burmese": "။", "hindi": "।", "arabic": "."}
_SENTENCE_WORDS = 9


def as_text(words: Sequence[str], language: str) -> str:
    """Words written as the language writes them, nine a sentence; Thai and Lao have spaces for full stops."""
    between = "" if language in UNSPACED else " "
    end = _SENTENCE_ENDS.get(language, "" if language in UNSPACED else ".")
    sentences = [words[start : start + _SENTENCE_WORDS] for start in range(0, len(words), _SENTENCE_WORDS)]
    return (end + ("" if end == "。" else " ")).join(map(between.join, sentences)) + end


def random_words(source: random.Random, language: str, count: int) -> list[str]:
    """Words in no order."""
    return source.choices(WORDS[language], k=count)


def changed(source: random.Random, words: Sequence[str], language: str, share: float = 0.01) -> list[str]:
    """The words with this share of them, one at least, replaced by others."""
    copy = list(words)
    for position in source.sample(range(len(copy)), max(1, round(share * len(copy)))):
        copy[position] = source.choice([word for word in WORDS[language] if word != copy[position]])
    return copy


def copies_by_language(pairs: int, *, seed: int = 0) -> Iterator[tuple[str, str, str]]:
    """(language, text of 100 to 300 words, copy with one word in a hundred changed), `pairs` of each language."""
    source = random.Random(seed)
    for language in WORDS:
        for _ in range(pairs):
            words = random_words(source, language, source.randint(100, 300))
            yield language, as_text(words, language), as_text(changed(source, words, language), language)
