"""Renders untrusted chat templates in another process, whose time and memory are limited.

Jinja's sandbox limits what a template can access, but not its time or memory, so a template could block its process for
ever. Run as a program, this file is that other process: it reads requests from its standard input and writes answers,
one JSON value a line, and ends when its input does. It imports nothing of this package, so that it starts in a tenth of
a second.
"""

import atexit
from collections.abc import Mapping, Sequence
import contextlib
import datetime
import functools
import json
import os
import subprocess
import sys
import threading
from typing import Any

MOST_SECONDS = 10  # of computing, for the texts of one conversation
MOST_BYTES = 1 << 30
MOST_CHARACTERS = 16 << 20
# What expressions in a template may raise, beside Jinja's own errors.
_FAULTS = (TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RecursionError, MemoryError)


class TemplateFault(Exception):
    """A template could not be rendered; the message is the reason, in one line."""


class _Process:
    """The rendering process, started when it is needed, and again after it has ended."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._owner = 0

    def ask(self, request: Any) -> Any:
        """The answer to a request.

        Raises:
          TemplateFault: the process ended without an answer.
        """
        with self._lock:
            process = self._running()
            assert process.stdin is not None
            assert process.stdout is not None
            answer = ""
            try:
                with contextlib.suppress(BrokenPipeError):
                    process.stdin.write(json.dumps(request) + "\n")
                    process.stdin.flush()
                answer = process.stdout.readline()
            finally:
                if not answer.endswith("\n"):  # also after an interruption: a late answer would be taken for the next
                    self._process = None
                    process.kill()
                    process.wait()
            if answer.endswith("\n"):
                return json.loads(answer)
        bounds = f"{MOST_SECONDS} s of computing or {MOST_BYTES >> 20:,} MiB"
        raise TemplateFault(f"takes more than {bounds}, or ends the process that renders it")

    def _running(self) -> "subprocess.Popen[str]":
        if self._process is None or self._owner != os.getpid():  # a fork shares the pipes of the one it came from
            # Without -P, Python would import modules of this folder instead of its own.
            command = [sys.executable, "-P", __file__, str(MOST_SECONDS)]
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
            self._owner = os.getpid()
            atexit.register(self._process.kill)
        return self._process


_process = _Process()


def render(
    template: str, conversations: Sequence[tuple[Sequence[Mapping[str, Any]], bool]], special: Mapping[str, str]
) -> list[str]:
    """Renders an untrusted template.

    Args:
      conversations: messages, and whether the text ends where an answer of the assistant begins.
      special: texts of special tokens by name.

    Raises:
      TemplateFault: it cannot be read, fails, or takes more than the bounds of this module.
    """
    answer = _process.ask({"template": template, "conversations": conversations, "special": special})
    if "fault" in answer:
        raise TemplateFault(answer["fault"])
    return answer["texts"]


def render_here(
    template: str, conversations: Sequence[tuple[Sequence[Mapping[str, Any]], bool]], special: Mapping[str, str]
) -> list[str]:
    """As `render`, but in this process, in Jinja's sandbox alone: for the project's own template."""
    import jinja2

    texts = []
    try:
        compiled = _compiled(template)
        for messages, add_generation_prompt in conversations:
            text = compiled.render(
                messages=[dict(message) for message in messages],
                add_generation_prompt=add_generation_prompt,
                tools=None,
                documents=None,
                **special,
            )
            if len(text) > MOST_CHARACTERS:
                raise TemplateFault(f"writes {len(text):,} characters, more than {MOST_CHARACTERS:,}")
            texts.append(text)
    except (jinja2.TemplateError, *_FAULTS) as error:
        line = f"line {error.lineno}: " if isinstance(error, jinja2.TemplateSyntaxError) else ""
        raise TemplateFault(line + (" ".join(str(error).split())[:300] or type(error).__name__)) from error
    return texts


@functools.lru_cache(maxsize=16)
def _compiled(source: str) -> Any:
    """The template in a sandbox, with the functions that transformers gives templates."""
    import jinja2
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class GenerationTag(Extension):
        """Ignores `{% generation %}`, with which some templates enclose answers; `answer_parts` does not need it."""

        tags = {"generation"}  # noqa: RUF012 - as jinja2 declares it

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    # The options, and their order, are those of transformers.
    def tojson(value: Any, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, GenerationTag]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return environment.from_string(source)


def _serve(most_seconds: float) -> None:
    """Answers requests until there are no more."""
    import resource
    import signal

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(ValueError, OSError):  # not every system has this limit
        resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))
    for line in sys.stdin:
        # The kernel kills the process after so much CPU time, also inside one operation of Python.
        signal.setitimer(signal.ITIMER_PROF, most_seconds)
        request = json.loads(line)
        try:
            texts = render_here(request["template"], request["conversations"], request["special"])
            answer: dict[str, Any] = {"texts": texts}
        except TemplateFault as fault:
            answer = {"fault": str(fault)}
        except Exception as error:  # Python may fail in any way to compile the code that Jinja generates
            answer = {"fault": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
        print(json.dumps(answer), flush=True)
        signal.setitimer(signal.ITIMER_PROF, 0)


if __name__ == "__main__":
    _serve(float(sys.argv[1]))
