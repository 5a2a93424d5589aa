"""Topics: slash paths of up to five levels with keywords, read from files in the forms in which people keep them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
import io
import json
from pathlib import Path
import re
from typing import Any

from diversity_jax.cluster_agent.text_cleaning import clean_text
from diversity_jax.core.errors import InputError
from diversity_jax.core.files import list_files, read_lines, writing

MOST_LEVELS = 5
_NAME_CHARACTERS = 120
_MOST_KEYWORDS = 12
# "1.1a ", "Chapter 3:", "IV. ": where a heading stands in its book is no part of what it is about.
_NUMBERING = re.compile(
    r"^(?:(?:chapter|section|unit|part|lecture|lesson|week|module)\s+\d+\s*[:.)-]?|\d+(?:\.\d+)*[a-z]?[.):]?(?=\s))\s*",
    re.IGNORECASE,
)
_INDENTED = re.compile(r"^(\s*)(?:[-*+]\s+)?(.*?)\s*$")
_ABOVE_AN_OUTLINE = ("field", "subfield", "course")


@dataclass(frozen=True, slots=True)
class Topic:
    """What to write about: names from broad to narrow, at most five, and words that belong to it (possibly none)."""

    path: tuple[str, ...]
    keywords: tuple[str, ...] = ()

    @property
    def slash_path(self) -> str:
        """The path as people write it; a slash inside a name is written `\\/`."""
        return "/".join(name.replace("/", "\\/") for name in self.path)


def make_topic(names: Sequence[str], keywords: Sequence[str] = ()) -> Topic | None:
    """A topic of cleaned names and keywords; None where no name is left.

    Numbering goes, names that repeat the one above go, and of more than five levels the two broadest and the three
    narrowest stay.
    """
    path: list[str] = []
    for name in names:
        cleaned = _clean(_NUMBERING.sub("", _clean(name)))
        if cleaned and (not path or cleaned.casefold() != path[-1].casefold()):
            path.append(cleaned)
    if len(path) > MOST_LEVELS:
        path = path[:2] + path[2 - MOST_LEVELS :]
    words = dict.fromkeys(filter(None, map(_clean, keywords)))
    return Topic(tuple(path), tuple(words)[:_MOST_KEYWORDS]) if path else None


def _clean(text: str) -> str:
    return " ".join(clean_text(text, 4 * _NAME_CHARACTERS).split())[:_NAME_CHARACTERS].strip(" /|-")


def read_topics(source: str, *, leaves_only: bool = True) -> Iterator[Topic]:
    """Topics of a file or pattern, in file order, duplicates included.

    `.txt`: one slash path a line, keywords behind a tab; or an outline by indentation. `.jsonl`: objects with `path` or
    `topic` (slash path or list) and `keywords`, or with an `outline` of nested `{"name", "children"}` below `field`,
    `subfield` and `course`. Each also `.gz` or `.zst`.

    Args:
      leaves_only: of an outline, only what has nothing below it.

    Raises:
      InputError: no such file, an unknown kind, or a broken line; the message names it.
    """
    paths = list_files(source)
    if not paths:
        raise InputError(f"{source}: no such file; name a .txt or .jsonl file of topics")
    for path in paths:
        plain = re.sub(r"\.(gz|zst)$", "", path)
        if plain.endswith(".txt"):
            yield from _from_text(path, leaves_only)
        elif plain.endswith((".jsonl", ".ndjson", ".json")):
            yield from _from_json(path, leaves_only)
        else:
            raise InputError(
                f"{path}: is of no kind that holds topics; expected .txt or .jsonl (each also .gz or .zst)"
            )


def _lines(path: str) -> Iterator[tuple[int, str]]:
    number = 0
    for batch in read_lines(path):
        for raw in batch:
            number += 1
            try:
                yield number, raw.decode().rstrip("\r\n").removeprefix("\ufeff")
            except UnicodeDecodeError:
                raise InputError(f"{path}:{number}: is not UTF-8; convert the file") from None


def _from_text(path: str, leaves_only: bool) -> Iterator[Topic]:
    """Slash paths where no line is indented, else an outline."""
    lines = [(number, line) for number, line in _lines(path) if line.strip()]
    if not any(line[:1] in " \t" for _, line in lines):
        for _, line in lines:
            yield from _parsed(line)
        return
    stack: list[tuple[int, str]] = []
    for place, (_, line) in enumerate(lines):
        indent, name = _depth(line), _INDENTED.match(line).group(2)
        while stack and stack[-1][0] >= indent:
            stack.pop()
        stack.append((indent, name.split("\t")[0]))
        has_children = place + 1 < len(lines) and _depth(lines[place + 1][1]) > indent
        topic = make_topic([one for _, one in stack], _split(name.partition("\t")[2]))
        if topic and not (leaves_only and has_children):
            yield topic


def _depth(line: str) -> int:
    return len(_INDENTED.match(line).group(1).expandtabs(4))


def _parsed(line: str) -> Iterator[Topic]:
    names, _, keywords = line.partition("\t")
    topic = make_topic(split_path(names), _split(keywords))
    if topic:
        yield topic


def split_path(text: str) -> list[str]:
    """Names of a slash path."""
    return [name.replace("\\/", "/") for name in re.split(r"(?<!\\)/", text)]


def _split(keywords: str) -> list[str]:
    return re.split(r"[,;|]", keywords)


def _from_json(path: str, leaves_only: bool) -> Iterator[Topic]:
    for number, line in _lines(path):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            raise InputError(f"{path}:{number}: is not valid JSON; expected one object a line") from None
        if not isinstance(record, dict):
            raise InputError(f"{path}:{number}: is no object; expected one with `path`, `topic` or `outline`")
        yield from _from_record(record, f"{path}:{number}", leaves_only)


def _from_record(record: Mapping[str, Any], where: str, leaves_only: bool) -> Iterator[Topic]:
    if isinstance(record.get("outline"), list):
        above = [str(record[name]) for name in _ABOVE_AN_OUTLINE if record.get(name)]
        yield from _from_outline(record["outline"], above, where, leaves_only)
        return
    named = record.get("path", record.get("topic"))
    if isinstance(named, str):
        named = split_path(named)
    if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
        raise InputError(
            f"{where}: has neither `path`, `topic` nor `outline`; give a slash path, a list of names or nested objects"
        )
    keywords = record.get("keywords") or ()
    topic = make_topic(named, _split(keywords) if isinstance(keywords, str) else [str(word) for word in keywords])
    if topic:
        yield topic


def _from_outline(nodes: Sequence[Any], above: list[str], where: str, leaves_only: bool) -> Iterator[Topic]:
    for node in nodes:
        if not isinstance(node, dict) or not isinstance(node.get("name"), str):
            raise InputError(f"{where}: an outline's entry has no `name`; expected objects with `name` and `children`")
        path, children = [*above, node["name"]], node.get("children") or ()
        if not (leaves_only and children):
            topic = make_topic(path, [str(word) for word in node.get("keywords") or ()])
            if topic:
                yield topic
        yield from _from_outline(children, path, where, leaves_only)


def write_topics(path: str | Path, topics: Sequence[Topic]) -> None:
    """Writes topics as Zstandard-compressed JSON Lines, whole or not at all."""
    import zstandard

    with writing(path) as file, zstandard.ZstdCompressor(level=6).stream_writer(file, closefd=False) as packed:
        lines = io.TextIOWrapper(packed, encoding="utf-8", write_through=False)
        for topic in topics:
            lines.write(
                json.dumps({"path": list(topic.path), "keywords": list(topic.keywords)}, ensure_ascii=False) + "\n"
            )
        lines.flush()
        lines.detach()
