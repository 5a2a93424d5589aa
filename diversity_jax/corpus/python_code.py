"""Pieces of Python code of a size to read: functions, small classes, and the methods of large ones."""

import ast
from collections.abc import Iterator
import textwrap
import warnings

_LINES = range(5, 101)
_CHARACTERS = range(160, 5001)
_LONGEST_FILE_CHARACTERS = 400_000
_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def functions(source: str) -> Iterator[tuple[int, str]]:
    """(line number, code) of every function, class and method of 5 to 100 lines, decorators included, margin taken off.

    A class that fits is one piece; of one that does not, its methods are. Files that this Python cannot parse, and very long ones,
    which are mostly generated, give nothing.
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
