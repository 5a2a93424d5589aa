"""Demo text without a download: English prose and Python code of installed packages and Python's standard library."""

import ast
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
import functools
import hashlib
import itertools
import os
from pathlib import Path, PurePosixPath
import platform
import re
import sysconfig
import textwrap
import threading
import tomllib
from typing import TYPE_CHECKING, Any
import warnings

from diversity_jax.core.errors import InputError
from diversity_jax.corpus.corpus import RecordCorpus
from diversity_jax.corpus.document import CorpusConfig, Document, Records

if TYPE_CHECKING:
    import importlib.metadata

_OWN = "diversity-jax"
_NOT_LIBRARY = ("site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__")
_RULES = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
_PATTERNS = {name: re.compile(pattern) for name, pattern in _RULES["patterns"].items()}
_FUNCTION_WORDS = frozenset(_RULES["function_words"].split())
_BATCH_DOCUMENTS = 64
_FIRST_OF_A_FILE = 8  # documents of one file that come before the rest of all files: a few files have thousands


def open_installed_docs(config: CorpusConfig, name: str) -> RecordCorpus:
    """Opens `installed_docs:prose` or `installed_docs:code`.

    Prose is the English paragraphs of docstrings, READMEs and other documentation files; code is functions, classes and
    methods. Both leave out this project itself, and texts that equal an earlier one up to case, spaces and punctuation.
    The documents and their order depend only on the installed packages and their versions; the first ones are spread
    evenly over packages, so that `max_documents` gives a representative part in seconds.

    Raises:
      InputError: another name than these two.
    """
    if name not in _EXTRACTORS:
        raise InputError(f"{config.source}: unknown; expected installed_docs:prose or installed_docs:code")
    return RecordCorpus(config, [_records(name)], f"installed_docs:{name}")


class _InstalledDocs(Records):
    """Documents that are extracted when they are first read, by any thread, and then stored."""

    def __init__(self, source: Iterator[Document]):
        self._source = source
        self._documents: list[Document] = []
        self._lock = threading.Lock()

    def batches(self) -> Iterator[list[Document]]:
        for first in itertools.count(0, _BATCH_DOCUMENTS):
            end = first + _BATCH_DOCUMENTS
            with self._lock:
                self._documents += itertools.islice(self._source, max(end - len(self._documents), 0))
            if first >= len(self._documents):
                return
            yield self._documents[first:end]

    def decode(self, raw: Document, position: int) -> Document:
        return raw


@functools.cache
def _records(name: str) -> _InstalledDocs:
    """The records of `prose` or `code`, extracted once in a process."""
    return _InstalledDocs(_EXTRACTORS[name]())


def _prose() -> Iterator[Document]:
    seen: set[bytes] = set()

    def split(text: str) -> Iterator[str]:
        return join_paragraphs([paragraph for paragraph in prose(text) if _is_new(paragraph, seen)])

    yield from _in_turns(((file, [(1, text)]) for file, text in _descriptions()), split)
    files = installed_files((".py", ".md", ".rst", ".txt"))
    files = [file for file in files if not _PATTERNS["not_documentation"].search(file.name)]
    texts = ((file, docstrings(text) if file.name.endswith(".py") else [(1, text)]) for file, text in _read(files))
    yield from _in_turns(texts, split)


def _code() -> Iterator[Document]:
    seen: set[bytes] = set()
    files = [file for file in installed_files((".py",)) if not _PATTERNS["generated"].search(file.name)]
    texts = ((file, functions(text)) for file, text in _read(files))
    yield from _in_turns(texts, lambda code: [code] if _is_new(code, seen) else [])


_EXTRACTORS: dict[str, Callable[[], Iterator[Document]]] = {"prose": _prose, "code": _code}


@dataclass(frozen=True, kw_only=True)
class InstalledFile:
    """One file of one installed package; `name` is its path inside the environment, with forward slashes."""

    package: str
    version: str
    name: str
    path: str


def _in_turns(
    sources: Iterable[tuple[InstalledFile, Iterable[tuple[int, str]]]], split: Callable[[str], Iterable[str]]
) -> Iterator[Document]:
    """Documents of all files: first `_FIRST_OF_A_FILE` of each, then all others.

    Args:
      sources: of every file, (line number, text) pairs.
      split: makes documents' texts out of one such text.
    """
    others: list[Document] = []
    for file, texts in sources:
        count = 0
        for line, text in texts:
            for number, part in enumerate(split(text), start=1):
                name = f"{file.name}:{line}" if number == 1 else f"{file.name}:{line}#{number}"
                meta = {"package": file.package, "version": file.version, "file": file.name, "line": line}
                document = Document(id=name, text=part, meta=meta)
                count += 1
                if count <= _FIRST_OF_A_FILE:
                    yield document
                else:
                    others.append(document)
    yield from others


def _is_new(text: str, seen: set[bytes]) -> bool:
    """Whether no earlier text has the same letters and digits in the same order; remembers it."""
    key = hashlib.sha256("".join(filter(str.isalnum, text.lower())).encode()).digest()[:16]
    is_new = key not in seen
    seen.add(key)
    return is_new


def _stable_hash(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


def installed_files(endings: tuple[str, ...]) -> list[InstalledFile]:
    """Installed files with these endings: the first of every package, then the second of every package, and so on.

    Python's standard library counts as one package, so that even a bare environment has text. The order of a package's
    files is that of hashes of their names, so that it depends only on the installed packages and their versions. This
    project itself is left out; a file of several packages counts for the first.
    """
    owned = [("python", platform.python_version(), sysconfig.get_path("stdlib"), _standard_library())]
    for package, distribution in sorted(_distributions().items()):
        owned.append((package, distribution.version, str(distribution.locate_file("")), _recorded(distribution)))
    ranked, seen = [], set()
    for package, version, root, recorded in owned:
        names = [name for name in recorded if name.endswith(endings) and name not in seen]
        seen.update(names)
        for rank, name in enumerate(sorted(names, key=_stable_hash)):
            file = InstalledFile(package=package, version=version, name=name, path=f"{root}/{name}")
            ranked.append((rank, _stable_hash(package), file))
    return [file for _, _, file in sorted(ranked, key=lambda entry: entry[:2])]


def _descriptions() -> Iterator[tuple[InstalledFile, str]]:
    """The long description (usually the README) of every package that has one, in the order of package hashes."""
    for package, distribution in sorted(_distributions().items(), key=lambda entry: _stable_hash(entry[0])):
        metadata: Any = distribution.metadata  # an email.message.Message
        text = metadata.get("Description") or metadata.get_payload()
        if isinstance(text, str) and text.strip():
            name = f"{package}-{distribution.version}/description"
            yield InstalledFile(package=package, version=distribution.version, name=name, path=""), text


def _distributions() -> dict[str, "importlib.metadata.Distribution"]:
    """By normalised name; the first one on the import path is the one that imports would use."""
    import importlib.metadata  # takes longer than all of this module

    distributions: dict[str, importlib.metadata.Distribution] = {}
    for distribution in importlib.metadata.distributions():
        if name := distribution.metadata["Name"]:  # None for a damaged installation
            distributions.setdefault(re.sub(r"[-_.]+", "-", name).lower(), distribution)
    distributions.pop(_OWN, None)
    return distributions


def _recorded(distribution: "importlib.metadata.Distribution") -> list[str]:
    """Names of the files of a package; `RECORD` is parsed here because `Distribution.files` takes ten times as long."""
    record = distribution.read_text("RECORD")
    if record is None:
        names = [str(PurePosixPath(file)) for file in distribution.files or ()]
    else:
        names = [line.rsplit(",", 2)[0].strip('"') for line in record.splitlines() if line.count(",") >= 2]
    return [name for name in names if not name.startswith(("..", "/")) and ".dist-info/" not in name]


def _standard_library() -> list[str]:
    """Names of the modules of the standard library, without its tests, which some distributions of Python leave out."""
    root, names = sysconfig.get_path("stdlib"), []
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name not in _NOT_LIBRARY]
        inside = os.path.relpath(folder, root)
        names += [PurePosixPath(inside, name).as_posix() for name in files]
    return names


def _read(files: list[InstalledFile]) -> Iterator[tuple[InstalledFile, str]]:
    """Text of every file that exists and is UTF-8; files may have been removed after installation."""
    for file in files:
        try:
            with open(file.path, encoding="utf-8") as opened:
                yield file, opened.read()
        except (OSError, UnicodeDecodeError):
            continue


_DEFINITION_CHARACTERS = 200  # looked at before a string: enough for the end of a definition and a comment


def docstrings(source: str) -> Iterator[tuple[int, str]]:
    """(line number, text) of the docstrings of a Python file: of the module, its classes and functions; margins kept.

    They are the strings in triple quotes at the start of the file or of a line after one that ends with a colon.
    Parsing takes thirty times as long, and fails on syntax of other versions of Python.
    """
    line, counted_to = 1, 0
    begin = _PATTERNS["file_start"].match(source)
    assert begin is not None  # it matches nothing, too
    for match in _PATTERNS["triple_quoted"].finditer(source):
        start = match.start()
        before = max(0, start - _DEFINITION_CHARACTERS)
        after_definition = _PATTERNS["definition_end"].search(source, before, start)
        if after_definition or start <= begin.end():
            line += source.count("\n", counted_to, start)
            counted_to = start
            yield line, match[2]


_LONGEST_CHARACTERS = 2400  # about 400 words
_SHORTEST_CHARACTERS = 100
_SHORTEST_PARAGRAPH_WORDS = 8
_PLAIN_SHARE = 0.8  # of the words: letters only, no identifiers, numbers or formulas
_FUNCTION_WORD_SHARE = 0.2


def prose(text: str) -> list[str]:
    """Paragraphs of a docstring or a documentation file that are English prose, each on one line, without markup.

    A paragraph is prose if all its lines begin at the left margin, it ends like a sentence, and its words are mostly
    English words with the usual share of articles, prepositions and auxiliaries. Other parts of documentation are
    argument lists, tables, doctests, code, licences and links.
    """
    return [paragraph for block in _blocks(text) if (paragraph := _paragraph(block))]


def join_paragraphs(paragraphs: list[str]) -> Iterator[str]:
    """Joins consecutive paragraphs to documents; a last one that is too short is dropped."""
    document: list[str] = []
    size = 0
    for paragraph in paragraphs:
        if document and size + len(paragraph) > _LONGEST_CHARACTERS:
            yield "\n\n".join(document)
            document, size = [], 0
        document.append(paragraph)
        size += len(paragraph) + 2
    if size - 2 >= _SHORTEST_CHARACTERS:
        yield "\n\n".join(document)


def _blocks(text: str) -> Iterator[list[str]]:
    """Runs of lines between blank ones, without fenced code and without their margin."""
    first, *lines = text.expandtabs().replace("\\\n", "").split("\n")
    margin = min((len(line) - len(line.lstrip()) for line in lines if line.strip()), default=0)
    block: list[str] = []
    fenced = False
    for line in [first.lstrip(), *(line[margin:] for line in lines)]:
        is_fence = _PATTERNS["fence"].match(line) is not None
        fenced ^= is_fence
        if line.strip() and not fenced and not is_fence:
            block.append(line.rstrip())
        elif block:
            yield block
            block = []
    if block:
        yield block


def _paragraph(block: list[str]) -> str | None:
    """A block as one line of clean text, or None if it is not prose."""
    if len(block) > 2 and _PATTERNS["underline"].match(block[1]):
        block = block[2:]
    first = block[0]
    if first[0] == " " or _PATTERNS["not_prose_start"].match(first):
        return None
    if not _PATTERNS["sentence_end"].search(block[-1].rstrip("`*")):
        return None
    if any(line[0] in " >|+-*#.:@" for line in block[1:]):
        return None
    text = " ".join(line.strip() for line in block)
    text = _PATTERNS["link"].sub(r"\1", _PATTERNS["code"].sub(r"\2", _PATTERNS["role"].sub("", text)))
    text = " ".join(_PATTERNS["markup"].sub("", text).split())
    return text if _PATTERNS["sentence_end"].search(text) and _is_english(text) else None


def _is_english(text: str) -> bool:
    words = [token.strip(".,;:!?()\"'") for token in text.split()]
    if len(words) < _SHORTEST_PARAGRAPH_WORDS or _PATTERNS["unwanted"].search(text) or not text[0].isalnum():
        return False
    plain = sum(word.replace("-", "").replace("'", "").isalpha() for word in words)
    function_words = sum(word.lower() in _FUNCTION_WORDS for word in words)
    return plain >= _PLAIN_SHARE * len(words) and function_words >= _FUNCTION_WORD_SHARE * len(words)


_LINES = range(5, 101)
_CHARACTERS = range(160, 5001)
_LONGEST_FILE_CHARACTERS = 400_000  # longer ones are mostly generated


def functions(source: str) -> Iterator[tuple[int, str]]:
    """(line number, code) of every function, class and method of 5 to 100 lines, with decorators, without its margin.

    A longer or shorter class is replaced by its methods. Files that this Python cannot parse give nothing.
    """
    if len(source) > _LONGEST_FILE_CHARACTERS:
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escape sequences in installed packages
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return
    lines = source.splitlines()
    for node in _definitions(tree):
        first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
        code = textwrap.dedent("\n".join(lines[first - 1 : node.end_lineno]))
        if len(code) in _CHARACTERS:
            yield first, code


def _definitions(tree: ast.Module | ast.ClassDef) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            if (node.end_lineno or node.lineno) - node.lineno + 1 in _LINES:
                yield node
            elif isinstance(node, ast.ClassDef):
                yield from _definitions(node)
