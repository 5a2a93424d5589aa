"""Runs every regular expression of the library on texts made to be slow for it: none may take quadratic time.

    python scripts/checks/regex_growth.py [--only synthesis/]

The expressions are found in the syntax trees of `diversity_jax` and evaluated in their modules, also where they are put
together; what a function makes of its arguments is written out in `MADE_OF_ARGUMENTS`. Each is run by the methods that
the code calls, over texts of a beginning, one part of the expression repeated, and an end at which it fails: every
literal, class, and run of both that it can match, after every beginning of a match. At four times the length a search
may take eight times as long; quadratic time would be sixteen. Exits with status 1 where one takes more, or was not run.
"""

import argparse
import ast
from collections.abc import Callable, Iterator, Mapping, Sequence
import importlib
import itertools
from pathlib import Path
import re
from re import _constants as codes  # type: ignore[attr-defined]
from re import _parser as parser  # type: ignore[attr-defined]
import signal
import sys
import time
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

METHODS = ("search", "match", "fullmatch", "sub", "subn", "split", "findall", "finditer")
LENGTHS = (2_000, 4_000, 8_000)  # characters
FAST_SECONDS = 0.004  # the square of 8,000 characters takes at least ten times as long, a line 0.1 ms
MOST_SECONDS = 0.1  # of what is cut to a limit
MOST_RATIO = 8.0  # between a line's 4 and a square's 16
HANGS_SECONDS = 20
MOST_PARTS = 24
# What these read is written by ourselves, the compiler, matplotlib for our own figures, the scheduler of a cluster.
NOT_OUTSIDE = ("core/options.py", "aot/hlo.py", "aot/worker.py", "report/plotting.py", "training/distributed.py")
# Characters of outside text that these are given at most, and take the square of; they have to end as fast as others.
LIMITS = {
    "outcomes.py:_TAG": 7_999,
    "outcomes.py:_DURATION": 100,
    "synthesis/quality.py:_REFUSAL": 240,
    "synthesis/quality.py:_OTHER_REFUSAL": 240,
    "installed_packages.py:_PATTERNS['definition_end']": 1_000,
}
# Expressions that a function makes of its arguments, by file and function: with what the library calls it with, or
# what a downloaded file may.
MADE_OF_ARGUMENTS: dict[str, Callable[[], list[str]]] = {}


class Expression(NamedTuple):
    """A pattern, where it stands, and the methods that it is run with."""

    where: str
    pattern: re.Pattern[str]
    methods: tuple[str, ...]


class Slow(Exception):
    """A search that does not end."""


def made_of_arguments(*functions: str) -> Callable[[Callable[[], list[str]]], Callable[[], list[str]]]:
    """Adds to `MADE_OF_ARGUMENTS`."""

    def add(patterns: Callable[[], list[str]]) -> Callable[[], list[str]]:
        MADE_OF_ARGUMENTS.update(dict.fromkeys(functions, patterns))
        return patterns

    return add


@made_of_arguments("corpus/sources.py:_known_kind")
def _endings() -> list[str]:
    from diversity_jax.corpus import sources

    return [end for end, _ in sources.FILE_READERS.values()]


@made_of_arguments("tokenizers/base.py:_special_pattern")
def _special_tokens() -> list[str]:
    return ["(" + "|".join(map(re.escape, ("<|im_start|>", "<|im_end|>", "<s>", "aaaa", "aaa", "[INST]"))) + ")"]


@made_of_arguments("core/words.py:_patterns")
def _words() -> list[str]:
    from diversity_jax.core import words

    return [pattern.pattern for pattern in words._patterns()]


@made_of_arguments("mixtures/exchange/token_files.py:_datatrove")
def _widths_of_ids() -> list[str]:
    return [rf".*\|(?!{width}\n)\d\n" for width in (2, 4)]


@made_of_arguments("llm/providers/outcomes.py:_words", "corpus/readers/installed_packages.py:")
def _values_of_modules() -> list[str]:
    return ["a"]  # what they make is found by its name


def _modules() -> Iterator[tuple[str, Any, ast.Module]]:
    for path in sorted((ROOT / "diversity_jax").rglob("*.py")):
        text = path.read_text("utf-8")
        file = str(path.relative_to(ROOT / "diversity_jax"))
        if "re." in text and path.name != "__main__.py" and file not in NOT_OUTSIDE:
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            yield file, importlib.import_module(name), ast.parse(text)


def _calls(tree: ast.AST, function: str = "") -> Iterator[tuple[str, ast.Call]]:
    """Calls of `re.NAME` and the functions that they stand in."""
    for node in ast.iter_child_nodes(tree):
        inside = node.name if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) else function
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            of = node.func.value
            if isinstance(of, ast.Name) and of.id == "re" and node.func.attr in (*METHODS, "compile"):
                yield function, node
        yield from _calls(node, inside)


def _used_methods(trees: Sequence[ast.Module]) -> Mapping[str, set[str]]:
    """Of each name, the methods called on it anywhere: `_NAME.search(...)`, `map(_NAME.match, ...)`."""
    used: dict[str, set[str]] = {}
    for node in itertools.chain.from_iterable(map(ast.walk, trees)):
        if isinstance(node, ast.Attribute) and node.attr in METHODS:
            of = node.value
            name = of.attr if isinstance(of, ast.Attribute) else getattr(of, "id", ast.unparse(of))
            used.setdefault(name, set()).add(node.attr)
    return used


def _held(name: str, value: object, depth: int = 3) -> Iterator[tuple[str, re.Pattern[str]]]:
    """The compiled expressions in a module's value, and how the code calls them."""
    if isinstance(value, re.Pattern):
        yield name, value
    elif isinstance(value, dict | list | tuple) and depth:
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _held(f"{name}[{key!r}]", item, depth - 1)


def expressions() -> tuple[list[Expression], list[str]]:
    """All of them, and the calls whose expression could not be determined."""
    modules = list(_modules())
    used, locations, unknown = _used_methods([tree for _, _, tree in modules]), {}, []

    def add(where: str, pattern: re.Pattern[Any], methods: set[str]) -> None:
        if isinstance(pattern.pattern, str):
            locations.setdefault((pattern, tuple(sorted(methods))), where)

    for file, module, tree in modules:
        for name, value in vars(module).items():
            for called, pattern in _held(name, value):
                add(f"{file}:{called}", pattern, used.get(called, set()) or {"search"})
        for function, call in _calls(tree):
            where, method = f"{file}:{function}", call.func.attr  # type: ignore[attr-defined]
            methods = {"search"} if method == "compile" else {method}
            try:
                values = dict(vars(module))
                flags = [item.value for item in call.keywords if item.arg == "flags"]
                flags += call.args[{"compile": 1, "sub": 4, "subn": 4, "split": 3}.get(method, 2) :]
                made = [_evaluated(call.args[0], values)]
                flag = _evaluated(flags[0], values) if flags else 0
            except Exception:  # names of the function
                made, flag = MADE_OF_ARGUMENTS.get(where, list)(), re.IGNORECASE
            if not made:
                unknown.append(f"{where}: {ast.unparse(call)[:100]}")
            for source in made:
                if function or method != "compile":  # those of modules were found with their names
                    add(where, re.compile(source, flag), methods)
    return [Expression(where, *key) for key, where in locations.items()], unknown


def _evaluated(node: ast.expr, values: dict[str, Any]) -> Any:
    return eval(compile(ast.Expression(node), "expression", "eval"), values)


def _letters(code: Any, value: Any) -> list[str]:
    """Characters that one element matches: a few of different kinds."""
    tried = " \n\t-_a9AZz.:/\"'<>{}[](),;%#$\u00e9\u4e2d\u0e01\u0939\u0627\u0301"
    if code is codes.LITERAL:
        return [chr(value)]
    if code is codes.IN:
        own = [chr(item) for kind, item in value if kind is codes.LITERAL]
        own += [chr(end) for kind, item in value if kind is codes.RANGE for end in item]
    else:
        own = []
    pattern = re.compile("(?s:.)")
    state = parser.State()
    state.str = ""
    tree = parser.SubPattern(state, [(code, value)])
    matches = _compiled(tree) or pattern
    return list(dict.fromkeys([letter for letter in [*own[:3], *tried] if matches.match(letter)]))[:3]


def _compiled(tree: Any) -> re.Pattern[str] | None:
    from re import _compiler as compiler  # type: ignore[attr-defined]

    try:
        return compiler.compile(tree, 0)
    except Exception:
        return None


def _samples(tree: Any, depth: int = 0) -> tuple[list[str], list[str]]:
    """Texts that an expression matches, and the parts of it that may be repeated."""
    wholes, parts = [""], []
    for code, value in tree:
        inner: list[str] = []
        if code in (codes.LITERAL, codes.NOT_LITERAL, codes.IN, codes.ANY):
            inner = _letters(code, value)
            parts += inner
        elif code in (codes.MAX_REPEAT, codes.MIN_REPEAT, codes.POSSESSIVE_REPEAT):
            least, _, content = value
            bodies, within = _samples(content, depth + 1)
            inner = ([""] if least == 0 else []) + [body * max(least, 1) for body in bodies[:2]]
            parts += [*within, *bodies[:3]]
        elif code is codes.SUBPATTERN:
            inner, within = _samples(value[-1], depth + 1)
            parts += within
        elif code is codes.BRANCH:
            for branch in value[1][:8]:
                some, within = _samples(branch, depth + 1)
                inner, parts = inner + some[:1], parts + within
        elif code in (codes.ASSERT, codes.ASSERT_NOT):
            parts += _samples(value[1], depth + 1)[1]
        elif code is codes.ATOMIC_GROUP:
            inner, within = _samples(value, depth + 1)
            parts += within
        if inner:
            wholes = [before + after for before in wholes[:3] for after in inner[:3]][:6]
            parts += wholes[:2]  # beginnings of a match
    return wholes, parts


def texts(pattern: re.Pattern[str]) -> Iterator[tuple[str, str, str]]:
    """Beginning, part to repeat, and end of texts on which a search has to try much in vain."""
    wholes, parts = _samples(parser.parse(pattern.pattern, pattern.flags & ~re.DEBUG))
    every = list(dict.fromkeys(part[:300] for part in [*parts, *(text[:-1] for text in wholes), *wholes] if part))
    chosen = sorted(every, key=len)
    step = max(1, len(chosen) // MOST_PARTS)
    chosen = list(dict.fromkeys(chosen[: MOST_PARTS // 2] + chosen[::step]))
    pairs = [a + b for a, b in itertools.permutations([part for part in chosen if len(part) == 1][:6], 2)]
    for part in [*chosen, *pairs]:
        for before in ("", *[each for each in chosen[-4:] if each != part]):
            for after in ("", "\x00", "!"):
                yield before, part, after


def seconds(run: Callable[[str], object], text: str) -> float:
    """Processor time of one search; infinite where it does not end."""
    signal.setitimer(signal.ITIMER_VIRTUAL, HANGS_SECONDS)
    began = time.process_time()
    try:
        run(text)
    except Slow:
        return float("inf")
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    return time.process_time() - began


def of_many(run: Callable[[str], object], text: str, count: int) -> float:
    """Processor time of one search, by the quicker of two rounds of many."""
    return min(seconds(lambda text: [run(text) for _ in range(count)], text) / count for _ in range(2))


def run_of(pattern: re.Pattern[str], method: str) -> Callable[[str], object]:
    """The method, made to go through the whole text."""
    if method in ("sub", "subn"):
        return lambda text: getattr(pattern, method)("", text)
    if method == "finditer":
        return lambda text: sum(1 for _ in pattern.finditer(text))
    return getattr(pattern, method)


def growth(expression: Expression) -> tuple[float, str, int]:
    """The worst ratio of times at four times the length, the text that it is of, and how many texts were tried."""
    worst, of, tried = 0.0, "", 0
    limit = next((most for suffix, most in LIMITS.items() if expression.where.endswith(suffix)), LENGTHS[-1])
    for (before, part, after), method in itertools.product(texts(expression.pattern), expression.methods):
        run, tried = run_of(expression.pattern, method), tried + 1
        if max(seconds(run, before + part * count + after) for count in (24, 400 // len(part))) > 1:  # exponential
            return float("inf"), f"{method} of {before[:40]!r} + {part[:40]!r} * n + {after!r}", tried
        few, twice, many = (before + part * (min(length, limit) // len(part)) + after for length in LENGTHS)
        if (last := seconds(run, many)) < (MOST_SECONDS if limit < LENGTHS[-1] else FAST_SECONDS):
            continue
        ratio = float("inf")
        if last != float("inf"):
            rounds = [min(1 + int(0.1 / last * share), 200) for share in (16, 4, 1)]  # the clock may have ticks of 4 ms
            times = [of_many(run, text, count) for count, text in zip(rounds, (few, twice, many), strict=True)]
            ratio = times[2] / max(times[0], 1e-5) if times[2] >= FAST_SECONDS else 0.0
        if ratio > worst:
            worst, of = ratio, f"{method} of {before[:40]!r} + {part[:40]!r} * n + {after!r}, {last:.2f} s"
        if worst > MOST_RATIO:
            break
    return worst, of, tried


def main() -> int:
    """1 where an expression is slow or was not run."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--only", default="", help="part of a place, to look at some alone")
    only = options.parse_args().only

    def stop(*_: object) -> None:
        raise Slow

    signal.signal(signal.SIGVTALRM, stop)
    known, unknown = expressions()
    known = [expression for expression in known if only in expression.where]
    tried, slow = 0, 0
    for expression in known:
        ratio, of, texts_tried = growth(expression)
        tried += texts_tried
        if ratio > MOST_RATIO:
            slow += 1
            print(f"SLOW {expression.where}: {ratio:.1f} times at four times the length: {of}", flush=True)
            print(f"     {expression.pattern.pattern[:150]!r}", flush=True)
    for where in unknown:
        print(f"NOT RUN {where}")
    print(
        f"{len(known)} expressions, {tried:,} texts, {slow} slow, {len(unknown)} not run, {time.process_time():,.0f} s"
    )
    print(f"not run, since others than outsiders write what they read: {', '.join(NOT_OUTSIDE)}")
    return 1 if slow or unknown else 0


if __name__ == "__main__":
    sys.exit(main())
