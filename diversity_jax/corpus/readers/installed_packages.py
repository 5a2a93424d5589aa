"""Files of the packages installed in this environment and of Python's own library, in an order that spreads evenly over
packages.

English prose out of documentation: docstrings of Python files, README and text files, paragraph by paragraph.

Documentation is full of what is not prose: argument lists, tables, doctests, code, licences, links. A paragraph is kept
  when all
its lines stand at the left margin, it ends like a sentence, and its words are mostly English words with the usual share
of articles, prepositions and auxiliaries. Inline markup is taken off and lines are joined, so that what is left reads
as text.

Pieces of Python code of a size to read: functions, small classes, and the methods of large ones.

Real text on every machine: English prose and Python code out of the packages installed here.
"""

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass
import functools
import hashlib
import importlib.metadata
import os
from pathlib import PurePosixPath
import platform
import re
import sysconfig
import textwrap
import threading
from typing import Any
import warnings

import numpy as np

from diversity_jax.core.errors import InputError
from diversity_jax.corpus.corpus import RecordCorpus
from diversity_jax.corpus.document import CorpusConfig, Document

_OWN = "diversity-jax"
_NOT_LIBRARY = ("site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__")


@dataclass(frozen=True, kw_only=True)
class InstalledFile:
    """One file of one installed package.

    Attributes:
      package: normalised name of the distribution.
      version: its version.
      name: path inside the environment, with forward slashes, the same wherever the environment lies.
      path: where it lies here.
    """

    package: str
    version: str
    name: str
    path: str


def installed_files(endings: tuple[str, ...]) -> list[InstalledFile]:
    """Installed files whose names end so: first one of every package, then a second of every package that has one, and
    so on.

    Python's standard library counts as one package, so that even a bare environment has text. Which file of a package
    comes first is decided by a hash of its name, so that the order depends on nothing but which packages, in which
    versions, are installed. This project itself is left out, and so is the second owner of a shared file.
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


def descriptions() -> Iterator[tuple[InstalledFile, str]]:
    """The long description (usually the README) of every installed package that has one, in the order of package
    hashes.
    """
    for package, distribution in sorted(_distributions().items(), key=lambda entry: _stable_hash(entry[0])):
        metadata = distribution.metadata
        text = metadata.get_payload() if hasattr(metadata, "get_payload") else None
        text = metadata.get("Description") or text
        if isinstance(text, str) and text.strip():
            name = f"{package}-{distribution.version}/description"
            yield InstalledFile(package=package, version=distribution.version, name=name, path=""), text


def _distributions() -> dict[str, importlib.metadata.Distribution]:
    """By normalised name; the first one found on the import path is the one that imports would use."""
    found: dict[str, importlib.metadata.Distribution] = {}
    for distribution in importlib.metadata.distributions():
        name = distribution.metadata["Name"]  # None for a damaged installation, of which there is nothing to read
        if name:
            found.setdefault(re.sub(r"[-_.]+", "-", name).lower(), distribution)
    found.pop(_OWN, None)
    return found


def _recorded(distribution: importlib.metadata.Distribution) -> list[str]:
    """Names of the installed files inside the package folder; parsed here because `Distribution.files` takes ten times
    as long.
    """
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


def _stable_hash(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


_LONGEST_CHARACTERS = 2400
_SHORTEST_CHARACTERS = 100
_SHORTEST_PARAGRAPH_WORDS = 8
_PLAIN_SHARE = 0.8  # of the words: letters only, no identifiers, numbers or formulas
_FUNCTION_WORD_SHARE = 0.2  # running English has 0.35 to 0.5, a list of names or another language near 0

# All strings and comments of a Python file in order, so that a quote inside one of them never opens another.
_LEXEMES = re.compile(
    r"""["'#](?:"""
    r"""(?<=\#)[^\n]*+"""
    r'''|(?<=")""(?P<double>[^"\\]*+(?:(?:\\.|"(?!""))[^"\\]*+)*+)"""'''
    r"""|(?<=')''(?P<single>[^'\\]*+(?:(?:\\.|'(?!''))[^'\\]*+)*+)\'\'\'"""
    r"""|(?<=")[^"\\\n]*+(?:\\.[^"\\\n]*+)*+"|(?<=')[^'\\\n]*+(?:\\.[^'\\\n]*+)*+')""",
    re.DOTALL,
)
_COMMENT_LINES = re.compile(r"\A(?:[ \t]*(?:#[^\n]*)?\n)*\Z")
_FENCE = re.compile(r"^\s*(```|~~~)")
_UNDERLINE = re.compile(r"^([-=~^*#\"'+`])\1{2,}\s*$")
_NOT_PROSE_START = re.compile(
    r"""[-*+|>#@$%&=~<{\[(\\/]|\d+[.)]\s|\.\.|:|!\[|['"`]{3}|\w+\s*:\s|\w+\s*=|[A-Za-z_.]+\("""
)
_ROLE = re.compile(r":[\w:+-]+:(?=`)")
_CODE = re.compile(r"(`+)[!~.]*([^`<]+?)\s*(?:<[^`>]*>)?\1(?:__?(?!\w))?")
_LINK = re.compile(r"!?\[([^\]\[]*)\](?:\([^)\s]*\)|\[[^\]\[]*\])")
_MARKS = re.compile(r"`|\*\*|(?<![\w*])\*(?=\w)|(?<=[\w.!?])\*(?![\w*])|\[\d+\]_|\|")
_SENTENCE_END = re.compile(r"[.!?][\"')\]]*$")
_UNWANTED = re.compile(
    r"copyright|licen[sc]e|warrant|redistribut|rights reserved|https?://|www\.|\\|>>>|\bTODO\b|\bFIXME\b|"
    r"generated by|do not edit|\S=\S|\w\(\S*\)\s*->|[{}<>]",
    re.IGNORECASE,
)
_FUNCTION_WORD_LIST = """
a about after all also an and any are as at be because been before being between both but by can could did do does each either
for from had has have how if in into is it its may more most must no not of on one only or other our out over own same shall
should since so some such than that the their them then there these they this those through to too under until up upon used
using was we were what when where whether which while who why will with within without would you your
"""
_FUNCTION_WORDS = frozenset(_FUNCTION_WORD_LIST.split())


def docstrings(source: str) -> Iterator[tuple[int, str]]:
    """(line number, text) of the docstrings of a Python file: of the module, its classes and functions; margins still
    there.

    Found by a lexer of strings and comments alone, ten times as fast as parsing, and independent of the Python version.
    """
    line, counted_to, is_first = 1, 0, True
    for match in _LEXEMES.finditer(source):
        kind = match.lastgroup
        if kind is None:
            is_first = is_first and source[match.start()] == "#"
            continue
        start = match.start()
        line_start = source.rfind("\n", 0, start) + 1
        opening = source[line_start:start].strip()
        if opening in ("", "r", "R"):
            before = source[max(0, line_start - 200) : line_start].rstrip()
            if before.endswith(":") or (is_first and _COMMENT_LINES.match(source, 0, line_start)):
                line += source.count("\n", counted_to, start)
                counted_to = start
                yield line, match[kind]
        is_first = False


def prose(text: str) -> list[str]:
    """Paragraphs of a docstring or a documentation file that are English prose, each on one line."""
    return [paragraph for block in _blocks(text) if (paragraph := _paragraph(block))]


def pieces(paragraphs: list[str]) -> Iterator[str]:
    """Documents of at most about 400 words out of consecutive paragraphs; what is too short to stand alone is
    dropped.
    """
    piece, size = [], 0
    for paragraph in paragraphs:
        if piece and size + len(paragraph) > _LONGEST_CHARACTERS:
            yield "\n\n".join(piece)
            piece, size = [], 0
        piece.append(paragraph)
        size += len(paragraph) + 2
    if size - 2 >= _SHORTEST_CHARACTERS:
        yield "\n\n".join(piece)


def _blocks(text: str) -> Iterator[list[str]]:
    """Runs of lines between blank ones, without fenced code, margins taken off."""
    lines = text.expandtabs().replace("\\\n", "").split("\n")
    margin = min((len(line) - len(line.lstrip()) for line in lines[1:] if line.strip()), default=0)
    lines[1:] = [line[margin:] for line in lines[1:]]
    lines[0] = lines[0].lstrip() if len(lines) > 1 else lines[0].strip()
    block: list[str] = []
    fenced = False
    for line in lines:
        if _FENCE.match(line):
            fenced = not fenced
        if line.strip() and not fenced and not _FENCE.match(line):
            block.append(line.rstrip())
        elif block:
            yield block
            block = []
    if block:
        yield block


def _paragraph(block: list[str]) -> str | None:
    """A block as one line of clean text, or None if it is not prose."""
    if len(block) > 2 and _UNDERLINE.match(block[1]):
        block = block[2:]
    first = block[0]
    if first[0] == " " or not _SENTENCE_END.search(block[-1].rstrip("`*")) or _NOT_PROSE_START.match(first):
        return None
    if any(line[0] in " >|+-*#.:@" for line in block[1:]):
        return None
    text = " ".join(line.strip() for line in block)
    text = _LINK.sub(r"\1", _CODE.sub(r"\2", _ROLE.sub("", text)))
    text = " ".join(_MARKS.sub("", text).split())
    return text if _SENTENCE_END.search(text) and _is_english(text) else None


def _is_english(text: str) -> bool:
    if _UNWANTED.search(text) or not text[:1].isalnum():
        return False
    tokens = text.split()
    if len(tokens) < _SHORTEST_PARAGRAPH_WORDS:
        return False
    words = [token.strip(".,;:!?()\"'") for token in tokens]
    plain = sum(word.replace("-", "").replace("'", "").isalpha() for word in words)
    function_words = sum(word.lower() in _FUNCTION_WORDS for word in words)
    return plain >= _PLAIN_SHARE * len(words) and function_words >= _FUNCTION_WORD_SHARE * len(words)


_LINES = range(5, 101)
_CHARACTERS = range(160, 5001)
_LONGEST_FILE_CHARACTERS = 400_000
_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def functions(source: str) -> Iterator[tuple[int, str]]:
    """(line number, code) of every function, class and method of 5 to 100 lines, decorators included, margin taken off.

    A class that fits is one piece; of one that does not, its methods are. Files that this Python cannot parse, and very
    long ones, which are mostly generated, give nothing.
    """
    if len(source) > _LONGEST_FILE_CHARACTERS:
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # other people's escape sequences are not our user's concern
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
        if isinstance(node, _DEFINITIONS):
            if node.end_lineno - node.lineno + 1 in _LINES:
                yield node
            elif isinstance(node, ast.ClassDef):
                yield from _definitions(node)


_BATCH_DOCUMENTS = 64
_FIRST_OF_A_FILE = 8  # documents of one file before all other files had their turn: a few files hold thousands
_NOT_DOCUMENTATION = re.compile(
    r"licen[sc]e|copying|notice|authors|thirdparty|third_party|vendor\.txt|cmakelists|top_level|requirements", re.I
)
_GENERATED = re.compile(r"_pb2(_grpc)?\.py$")


def open_installed_docs(config: CorpusConfig, name: str) -> RecordCorpus:
    """Opens `installed_docs:prose` or `installed_docs:code`.

    Prose is the English paragraphs of docstrings, READMEs and other documentation files; code is functions, classes and
    methods. Both leave out this project itself, and what is equal to an earlier text but for case, spaces and
    punctuation. The documents and their order depend only on the installed packages and their versions; the first ones
    are spread evenly over packages, so that `max_documents` takes a fair part in seconds.

    Raises:
      InputError: another name than these two.
    """
    if name not in _KINDS:
        raise InputError(f"{config.source}: unknown; expected installed_docs:prose or installed_docs:code")
    return RecordCorpus(config, [_InstalledDocs(name)], f"installed_docs:{name}")


class _InstalledDocs:
    """Documents are extracted as far as they are asked for, once in a process, and kept."""

    def __init__(self, name: str):
        self._documents = _extracted(name)

    def batches(self) -> Iterator[list[Document]]:
        first = 0
        while batch := self._documents.slice(first, first + _BATCH_DOCUMENTS):
            yield batch
            first += len(batch)

    def decode(self, raw: Document, position: int) -> Document:
        return raw

    def count(self) -> None:
        return None

    def fetch(self, positions: np.ndarray) -> Iterator[Any]:
        raise NotImplementedError("documents without a count are streamed")

    def expected_bytes(self) -> None:
        return None

    def content_hash(self) -> None:
        return None


class _GrowingList:
    """A list filled from an iterator as far as it is read, by any thread."""

    def __init__(self, source: Iterator[Document]):
        self._source = source
        self._items: list[Document] = []
        self._lock = threading.Lock()

    def slice(self, first: int, last: int) -> list[Document]:
        with self._lock:
            while len(self._items) < last:
                item = next(self._source, None)
                if item is None:
                    break
                self._items.append(item)
            return self._items[first:last]


@functools.cache
def _extracted(name: str) -> _GrowingList:
    return _GrowingList(_KINDS[name]())


def _prose() -> Iterator[Document]:
    seen: set[bytes] = set()
    sources = ((file, [(1, text)]) for file, text in descriptions())
    yield from _in_turns(sources, lambda text: pieces([part for part in prose(text) if _is_new(part, seen)]))
    files = [
        file for file in installed_files((".py", ".md", ".rst", ".txt")) if not _NOT_DOCUMENTATION.search(file.name)
    ]
    texts = ((file, docstrings(text) if file.name.endswith(".py") else [(1, text)]) for file, text in _read(files))
    yield from _in_turns(texts, lambda text: pieces([part for part in prose(text) if _is_new(part, seen)]))


def _code() -> Iterator[Document]:
    seen: set[bytes] = set()
    files = [file for file in installed_files((".py",)) if not _GENERATED.search(file.name)]
    texts = ((file, functions(text)) for file, text in _read(files))
    yield from _in_turns(texts, lambda code: [code] if _is_new(code, seen) else [])


_KINDS: dict[str, Callable[[], Iterator[Document]]] = {"prose": _prose, "code": _code}


def _read(files: list[InstalledFile]) -> Iterator[tuple[InstalledFile, str]]:
    """Text of every file that is there and is UTF-8: a package may list files that were removed after it was
    installed.
    """
    for file in files:
        try:
            with open(file.path, encoding="utf-8") as opened:
                yield file, opened.read()
        except (OSError, UnicodeDecodeError):
            continue


def _in_turns(sources: Any, split: Callable[[str], Any]) -> Iterator[Document]:
    """Documents of all files: at first a few of each, then what is left over.

    Args:
      sources: of every file, (line number, text) pairs.
      split: makes documents' texts out of one such text.
    """
    left_over: list[Document] = []
    for file, texts in sources:
        count = 0
        for line, text in texts:
            for number, piece in enumerate(split(text), start=1):
                name = f"{file.name}:{line}" if number == 1 else f"{file.name}:{line}#{number}"
                meta = {"package": file.package, "version": file.version, "file": file.name, "line": line}
                document = Document(id=name, text=piece, meta=meta)
                count += 1
                if count <= _FIRST_OF_A_FILE:
                    yield document
                else:
                    left_over.append(document)
    yield from left_over


def _is_new(text: str, seen: set[bytes]) -> bool:
    """Whether no earlier text has the same letters and digits in the same order; remembers it."""
    key = hashlib.sha256("".join(filter(str.isalnum, text.lower())).encode()).digest()[:16]
    if key in seen:
        return False
    seen.add(key)
    return True
