"""Splits text into words, for metrics, judges, synthesis and preparation. There are two definitions of a word:

  words           to compare texts: runs of letters, marks and digits, without punctuation, NFKC, case-folded.
  written words   for lengths: runs between white space, punctuation included, as `wc -w` counts.

In both, scripts written without spaces are split into words by the dictionaries of ICU (Han, kana, Thai, Lao, Khmer,
Burmese), Tibetan into syllables; of the few such scripts that ICU has no dictionary for, such as Javanese or Yi, every
letter with its marks is a word. Punctuation inside such text belongs to the written word before it.
"""

from collections.abc import Iterable, Iterator, Sequence
import functools
import itertools
import re
from typing import Literal
import unicodedata

_DICTIONARY_SCRIPTS = ("Han", "Hiragana", "Katakana", "Thai", "Lao", "Khmer", "Myanmar", "Tibetan")
_LETTER_SCRIPTS = (
    "Bopomofo", "Yi", "Tai_Le", "New_Tai_Lue", "Tai_Tham", "Tai_Viet", "Ahom", "Javanese", "Balinese", "Buginese",
    "Tangut", "Nushu", "Khitan_Small_Script",
)  # fmt: skip
_OPENING = (
    r"([{<$\u00a3\u20ac\u00a5\uffe5\u00ab\u2018\u201c\u2039"
    r"\u3008\u300a\u300c\u300e\u3010\u3014\u3016\u3018\uff08\uff3b\uff5b\uff62"
)
_KANA_MARKS = "\u30fc\uff70\uff9e\uff9f"  # prolonged sound and voicing: of both kana, so of neither by script
# All blocks of scripts without spaces, and blocks between them, since a class of few ranges is searched at 4 ns a
# character; matches are then checked by their script property.
_MAYBE_UNSPACED = re.compile("[\u0e00-\u1bff\u2e80-\uaadf\uf900-\ufaff\uff66-\uff9f\U000116d0-\U0003ffff]")
# Soft hyphen, joiners, variants of a sign: inside words.
_UNSEEN = re.compile("[\u00ad\u200c\u200d\u2060\ufe00-\ufe0f\ufeff\U000e0100-\U000e01ef]")
_NOT_PLAIN = re.compile("[\u00ad\u0e00-\u1bff\u200c\u200d\u2060\u2e80-\uaadf\uf900-\U0010ffff]")
_LETTER = re.compile(r"[^\W_]")
_ASCII_WORD = re.compile(r"[a-zA-Z0-9]+")
_CHARACTERS_OF_A_WORD = 32  # of the prefix that is searched first, for each word
_MARGIN = 64  # characters at the end of a prefix, where its words may differ from those of the full text


@functools.cache
def _patterns() -> tuple[re.Pattern[str], re.Pattern[str], re.Pattern[str]]:
    """Three patterns: words of text with spaces (`\\w+` and combining marks of the basic plane), the same with all
    combining marks, and runs of text without spaces, captured.

    The classes of `re` are tables for the basic plane: twice as fast as properties of `regex`, on mixed text ten times.
    """
    import regex

    characters = "".join(chr(code) for code in range(0x20000) if not 0xD800 <= code < 0xE000)
    combining = regex.findall(r"\p{M}", characters)
    basic = "".join(mark for mark in combining if mark <= "\uffff")
    dictionary, single = (
        "".join(rf"\p{{{script}}}" for script in scripts) for scripts in (_DICTIONARY_SCRIPTS, _LETTER_SCRIPTS)
    )
    in_runs = _ranges(regex.findall(rf"(?V1)[[{dictionary}]&&[\p{{L}}\p{{N}}\p{{M}}]]|[{_KANA_MARKS}]", characters))
    alone = _ranges(regex.findall(rf"(?V1)[[{single}]&&[\p{{L}}\p{{N}}]]", characters))
    return (
        re.compile(rf"\w[\w{basic}]*"),
        re.compile(rf"\w[\w{_ranges(combining)}]*"),
        re.compile(rf"([{in_runs}\U00020000-\U0003ffff]+|[{alone}][{_ranges(combining)}]*)"),
    )


def _ranges(characters: Sequence[str]) -> str:
    """Ascending characters as the ranges of a character class."""
    codes = list(map(ord, characters))
    starts = [code for before, code in zip([-2, *codes[:-1]], codes, strict=True) if code != before + 1]
    ends = [code for code, after in zip(codes, [*codes[1:], -2], strict=True) if code != after - 1]
    return "".join(f"{chr(start)}-{chr(end)}" for start, end in zip(starts, ends, strict=True))


def _dictionary_words(runs: Sequence[str]) -> Iterator[list[str]]:
    """The words of each run of text without spaces. All go to ICU at once: opening it takes longer than a sentence."""
    from icu4py.breakers import WordBreaker

    current: list[str] = []
    for word in WordBreaker("\n".join(runs), "en"):  # one set of dictionaries serves all languages
        if word == "\n":
            yield current
            current = []
        else:
            current.append(word)
    yield current


def words(text: str, *, fold: bool = True, normal_form: Literal["NFC", "NFKC"] = "NFKC") -> list[str]:
    """Runs of letters, marks and digits; all other characters separate them.

    Joiners and soft hyphens inside words are dropped. Underscores and apostrophes separate.

    Args:
      fold: case-fold.
      normal_form: NFKC replaces ligatures, full-width letters and superscripts by plain characters.
    """
    if not text.isascii():
        text = unicodedata.normalize(normal_form, text)
    if fold:
        text = text.casefold()
        if not text.isascii():  # folding can take composed letters apart
            text = unicodedata.normalize(normal_form, text)
    text = text.replace("_", " ")
    if text.isascii():
        return _ASCII_WORD.findall(text)
    basic, every, unspaced = _patterns()
    if not _NOT_PLAIN.search(text):
        return basic.findall(text)
    # NFKC takes Thai and Lao AM apart, which dictionaries and people write as one.
    text = _UNSEEN.sub("", text).replace("\u0e4d\u0e32", "\u0e33").replace("\u0ecd\u0eb2", "\u0eb3")
    parts = unspaced.split(text) if _MAYBE_UNSPACED.search(text) else [text]
    results = every.findall(parts[0])
    if len(parts) > 1:
        for run_words, after in zip(_dictionary_words(parts[1::2]), parts[2::2], strict=True):
            results += run_words
            results += every.findall(after)
    return results


def written_words(token: str) -> list[str]:
    """The written words of a token without white space; joined, they are the token."""
    if not _MAYBE_UNSPACED.search(token):
        return [token]
    parts = _patterns()[2].split(token)
    if len(parts) == 1:
        return [token]
    results, before = list[str](), ""
    runs = _dictionary_words(parts[1::2])
    for number, part in enumerate(parts):
        if number % 2:
            first, *others = next(runs)
            results += [before + first, *others]
            before = ""
            continue
        word = _LETTER.search(part)
        between, rest = (part[: word.start()], part[word.start() :]) if word else (part, "")
        ending = between.rstrip(_OPENING)
        opening = between[len(ending) :]
        if results:
            results[-1] += ending
            before = opening
        else:
            before = ending + opening
        if rest:
            results.append(before + rest)
            before = ""
    results[-1] += before
    return results


def count_words(text: str) -> int:
    """The number of written words."""
    tokens = text.split()
    if text.isascii() or not _MAYBE_UNSPACED.search(text):
        return len(tokens)
    return sum(len(written_words(token)) for token in tokens)


def first_words(text: str, count: int) -> str:
    """The beginning of a text up to the end of its `count`-th written word; the full text where it has fewer.

    Little more of the text is read than is returned.
    """
    size = _CHARACTERS_OF_A_WORD * count + _MARGIN
    while size < len(text):
        end = _end_of_words(text[:size], count)
        if end is not None and end <= size - _MARGIN:
            return text[:end]
        size *= 4
    end = _end_of_words(text, count)
    return text if end is None else text[:end]


def _end_of_words(text: str, count: int) -> int | None:
    """The offset at which the `count`-th written word ends; None where there are fewer."""
    if count < 1:
        return 0
    tokens = re.finditer(r"\S+", text)
    if text.isascii() or not _MAYBE_UNSPACED.search(text):
        token = next(itertools.islice(tokens, count - 1, None), None)
        return token.end() if token else None
    missing = count
    for token in tokens:
        parts = written_words(token.group())
        if len(parts) >= missing:
            return token.start() + len("".join(parts[:missing]))
        missing -= len(parts)
    return None


def unspaced_share(texts: Iterable[str]) -> float:
    """Share of the characters of texts, without white space, that are in scripts written without spaces."""
    unspaced = characters = 0
    for text in texts:
        characters += len("".join(text.split()))
        if not text.isascii() and _MAYBE_UNSPACED.search(text):
            unspaced += sum(map(len, _patterns()[2].findall(text)))
    return unspaced / max(characters, 1)
