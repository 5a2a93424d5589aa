"""Reads topics (slash paths of up to five levels, with keywords) and personas from files."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
import re
from typing import Any

from diversity_jax.cluster_agent.text_cleaning import clean_text
from diversity_jax.core.compression import compression, read_lines
from diversity_jax.core.errors import InputError
from diversity_jax.core.files import list_files
from diversity_jax.core.json_text import parse_json
from diversity_jax.corpus import CorpusConfig, open_corpus
from diversity_jax.synthesis.store import write_records

MOST_LEVELS = 5
MOST_KEYWORDS = 12
_NAME_CHARACTERS = 120
_PERSONA_CHARACTERS = 400
# Numbers of headings, such as "1.1a ", "3. " and "Chapter 3:", are no part of the subject; those of "1984 Summer
# Olympics", "2001: A Space Odyssey" and "3D printing" are.
_NUMBERING = re.compile(
    r"^(?:(?:chapter|section|unit|part|lecture|lesson|week|module|kapitel|cap[ií]tulo|capitolo|chapitre|hoofdstuk|глава"
    r"|अध्याय|الفصل|فصل)\s+\d+\s*[:.)-]?|บทที่\s*\d+\s*[:.)-]?"
    r"|第\s*[\d一二三四五六七八九十百]+\s*[章节節课課讲講部回]\s*[:\uff1a、.]?|제\s*\d+\s*[장절과부]\s*[:.]?"
    r"|(?:\d+(?:\.\d+)+[a-z]?[.):]?|\d{1,3}[a-z]?[.):])(?=\s)|\d+(?:\.\d+)*、)\s*",
    re.IGNORECASE,
)
_BULLET = re.compile(r"^[-*+]\s+")
_ALSO = "each also .gz, .zst, .bz2 or .xz"
_ABOVE_AN_OUTLINE = ("field", "subfield", "course")


@dataclass(frozen=True, slots=True)
class Topic:
    """A subject to write about: names from broad to narrow, at most five, and keywords, possibly none."""

    path: tuple[str, ...]
    keywords: tuple[str, ...] = ()

    @property
    def slash_path(self) -> str:
        """The path with slashes between names; a slash in a name is written `\\/`."""
        return "/".join(name.replace("/", "\\/") for name in self.path)


def make_topic(names: Iterable[object], keywords: Iterable[object] = ()) -> Topic | None:
    """A topic of cleaned names and keywords; None where no name is left.

    Numbering is removed, as are names that repeat the one above. Of more than five levels the two broadest and the
    three narrowest remain.
    """
    path: tuple[str, ...] = ()
    for name in names:
        path = _below(path, name)
    return _topic(path, keywords)


def _below(path: tuple[str, ...], name: object) -> tuple[str, ...]:
    """The path with a name added below it, cut to `MOST_LEVELS`."""
    cleaned = _clean_name(_NUMBERING.sub("", _clean_name(name)))
    if not cleaned or (path and cleaned.casefold() == path[-1].casefold()):
        return path
    path = (*path, cleaned)
    return path if len(path) <= MOST_LEVELS else path[:2] + path[2 - MOST_LEVELS :]


def _topic(path: tuple[str, ...], keywords: Iterable[object]) -> Topic | None:
    words = dict.fromkeys(filter(None, map(_clean_name, keywords)))
    return Topic(path, tuple(words)[:MOST_KEYWORDS]) if path else None


def _clean_name(text: object) -> str:
    return " ".join(clean_text(str(text), 4 * _NAME_CHARACTERS).split())[:_NAME_CHARACTERS].strip(" /|-")


def clean_persona(text: object) -> str:
    return " ".join(clean_text(str(text), 4 * _PERSONA_CHARACTERS).split())[:_PERSONA_CHARACTERS]


def split_path(text: str) -> list[str]:
    """Names of a slash path."""
    return [name.replace("\\/", "/") for name in re.split(r"(?<!\\)/", text)]


def _split_keywords(text: str) -> list[str]:
    return re.split("[,;|\uff0c\u3001\uff1b\u060c\u061b]", text)


def read_topics(source: str, *, leaves_only: bool = True) -> Iterator[Topic]:
    """Topics of a file or pattern, in file order, duplicates included.

    `.txt`: slash paths, one on a line, keywords behind a tab; or an outline by indentation. `.jsonl`: objects with
    `path` or `topic` (slash path or list) and `keywords`, or with an `outline` of nested `{"name", "children"}` below
    `field`, `subfield` and `course`. Each also `.gz`, `.zst`, `.bz2` or `.xz`.

    Args:
      leaves_only: of an outline, only topics without topics below them.

    Raises:
      InputError: no such file, an unknown kind, or a broken line; the message names it.
    """
    paths = list_files(source)
    if not paths:
        raise InputError(f"{source}: no such file; name a .txt or .jsonl file of topics")
    for path in paths:
        plain = _uncompressed(path)
        if plain.endswith(".txt"):
            topics = _from_text(path, leaves_only)
        elif plain.endswith((".jsonl", ".ndjson", ".json")):
            topics = _from_json(path, leaves_only)
        else:
            raise InputError(f"{path}: is of no kind that holds topics; expected .txt or .jsonl ({_ALSO})")
        yield from filter(None, topics)


def _uncompressed(path: str) -> str:
    """A file's name in lower case, without the ending of its compression."""
    return path.lower().removesuffix(compression(path) or "")


def write_topics(path: str | Path, topics: Iterable[Topic]) -> None:
    """Writes topics as Zstandard-compressed JSON Lines, atomically."""
    write_records(path, ({"path": list(topic.path), "keywords": list(topic.keywords)} for topic in topics))


def _numbered_lines(path: str) -> Iterator[tuple[int, str]]:
    """Lines that are not blank, with their numbers in the file."""
    number = 0
    for batch in read_lines(path):
        for raw in batch:
            number += 1
            try:
                line = raw.decode().rstrip("\r\n").removeprefix("\ufeff")
            except UnicodeDecodeError:
                raise InputError(f"{path}:{number}: is not UTF-8; convert the file") from None
            if line.strip():
                yield number, line


def _from_text(path: str, leaves_only: bool) -> Iterator[Topic | None]:
    """Slash paths where all lines are indented alike or all hold a slash, else an outline."""
    lines = [line for _, line in _numbered_lines(path)]
    indents = [_indent(line) for line in lines]
    if len(set(indents)) <= 1 or all("/" in line for line in lines):
        for line in lines:
            names, _, keywords = _BULLET.sub("", line.strip()).partition("\t")
            yield make_topic(split_path(names), _split_keywords(keywords))
        return
    above: list[tuple[int, tuple[str, ...]]] = []  # indent and path
    for line, indent, next_indent in zip(lines, indents, [*indents[1:], 0], strict=True):
        name, _, keywords = _BULLET.sub("", line.strip()).partition("\t")
        while above and above[-1][0] >= indent:
            above.pop()
        names_above = _below(above[-1][1] if above else (), name)
        above.append((indent, names_above))
        if not (leaves_only and next_indent > indent):
            yield _topic(names_above, _split_keywords(keywords))


def _indent(line: str) -> int:
    expanded = line.expandtabs(4)
    return len(expanded) - len(expanded.lstrip())


def _from_json(path: str, leaves_only: bool) -> Iterator[Topic | None]:
    for number, line in _numbered_lines(path):
        where = f"{path}:{number}"
        record = parse_json(line, where, remedy="expected one object a line")
        if not isinstance(record, dict):
            raise InputError(f"{where}: is no object; expected one with `path`, `topic` or `outline`")
        if isinstance(record.get("outline"), list):
            above: tuple[str, ...] = ()
            for name in _ABOVE_AN_OUTLINE:
                above = _below(above, record.get(name) or "")
            yield from _from_outline(record["outline"], above, where, leaves_only)
        else:
            yield topic_of_record(record, where)


def topic_of_record(record: Mapping[str, Any], where: str) -> Topic | None:
    """The topic of an object with `path` or `topic` and maybe `keywords`; InputError, beginning with `where`, where the
    path is neither a slash path nor a list of names.
    """
    path = record.get("path", record.get("topic"))
    if isinstance(path, str):
        path = split_path(path)
    if not isinstance(path, list) or not all(isinstance(name, str) for name in path):
        raise InputError(
            f"{where}: has neither `path`, `topic` nor `outline`; give a slash path, a list of names or nested objects"
        )
    return make_topic(path, _keywords_of(record, where))


def _keywords_of(record: Mapping[str, Any], where: str) -> Sequence[Any]:
    keywords = record.get("keywords") or ()
    if not isinstance(keywords, str | list | tuple):
        raise InputError(f"{where}: `keywords` is {type(keywords).__name__}; expected a list, or a text with commas")
    return _split_keywords(keywords) if isinstance(keywords, str) else keywords


def _from_outline(
    nodes: Sequence[Any], above: tuple[str, ...], where: str, leaves_only: bool
) -> Iterator[Topic | None]:
    pending = [(above, node) for node in reversed(nodes)]
    while pending:
        above, node = pending.pop()
        if not isinstance(node, dict) or not isinstance(node.get("name"), str):
            raise InputError(f"{where}: an outline's entry has no `name`; expected objects with `name` and `children`")
        path, children = _below(above, node["name"]), node.get("children") or ()
        if not isinstance(children, list | tuple):
            raise InputError(f"{where}: `children` of {node['name'][:80]!r} must be a list")
        if not (leaves_only and children):
            yield _topic(path, _keywords_of(node, where))
        pending += ((path, child) for child in reversed(children))


def read_personas(source: str, field: str) -> list[str]:
    """Personas of a file or pattern, duplicates included: the lines of a `.txt`, or `field` of records of a `.jsonl`.

    Raises:
      InputError: no such file, an unknown kind, a broken line, or no persona in it.
    """
    paths = list_files(source)
    if not paths:
        raise InputError(f"personas.source: {source}: no such file; name a .txt or .jsonl file")
    texts: list[str] = []
    for path in paths:
        plain = _uncompressed(path)
        if plain.endswith((".jsonl", ".ndjson")):
            texts += [document.text for document in open_corpus(CorpusConfig(source=path, text_field=field))]
        elif plain.endswith(".txt"):
            texts += [line for _, line in _numbered_lines(path)]
        else:
            raise InputError(f"personas.source: {path}: expected .txt or .jsonl ({_ALSO})")
    personas = [persona for persona in map(clean_persona, texts) if persona]
    if not personas:
        raise InputError(
            f"personas.source: {source}: holds no persona; put one sentence a line, or choose a template without them"
        )
    return personas
