"""Runs commands: reads the configuration, sets up logging, prints bad input as one line with exit status 2."""

import argparse
from collections.abc import Callable, Sequence
import errno
import gc
import logging
import os
import re
import runpy
import select
import sys
from typing import Any, NamedTuple, NoReturn
import warnings

from diversity_jax.core import options as help_module
from diversity_jax.core.buckets import public_name
from diversity_jax.core.commands import Command
from diversity_jax.core.errors import InputError, without_secrets
from diversity_jax.core.options import Options, as_option

# Before a command loads NumPy: threads of its OpenBLAS, and of SciPy's, otherwise spin for 2^26 cycles after they start
# and after each product, 0.05 s of a core.
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "16")


class _WithoutSecrets(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return without_secrets(super().format(record))


def log_to_stderr() -> None:
    """Sends log messages to standard error, one a line, without passwords."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_WithoutSecrets("%(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)  # Orbax has installed one of its own


class Invocation(NamedTuple):
    """A command that was run as `diversity-jax NAME ARGUMENTS`."""

    name: str
    command: Command
    argv: Sequence[str]


_invocations: list[Invocation] = []  # of this process; empty where a module was run by `python -m`


def run_command(name: str, command: Command, argv: Sequence[str]) -> None:
    """Runs the module of a command as `python -m` does, with arguments in the form of `diversity-jax`."""
    if command.config:
        _invocations.append(Invocation(name, command, argv))
    else:
        sys.argv = [f"diversity-jax {name}", *argv]
    runpy.run_module(f"diversity_jax.{command.module}", run_name="__main__")


def run(
    command: Callable[..., Any],
    config_type: type,
    usage: str | None,
    split: Callable[[list[str]], tuple[list[str], Any]] | None = None,
    argv: Sequence[str] | None = None,
) -> None:
    """Runs a command and leaves the process: 0 done, 2 bad input (one line on stderr), 130 interrupted.

    Args:
      command: called with the configuration; with `split`, with what that made of its options and the configuration.
      usage: the module's docstring, printed for `--help` before the fields.
      split: takes the command's own options out of the arguments; returns the others, and what it made of its own.
    """
    from diversity_jax.core import config

    def parse_and_run(arguments: list[str]) -> None:
        part, arguments = help_module.split_help(arguments)
        if part is None and split is None:
            command(config.parse(arguments, config_type))
        elif part is None and split is not None:
            arguments, own = split(arguments)
            command(own, config.parse(arguments, config_type))
        else:
            path = config.file_named(arguments)
            print(_help(usage or "", config_type, config.load_file(path, config_type) if path else None, part or ""))

    arguments = list(sys.argv[1:] if argv is None else argv)
    invocation = _invocations[-1] if _invocations and argv is None else None
    if not arguments and invocation is None:
        run_plain(parse_and_run, usage, arguments)
    run_work(lambda: parse_and_run(Options(invocation.command, invocation.argv).canonical if invocation else arguments))


def _help(usage: str, config_type: type, config: Any, part: str) -> str:
    if _invocations:
        name, command, _ = _invocations[-1]
        return help_module.command_help(name, command, usage, config, part)
    return help_module.module_help(usage, config_type, config, part)


class ArgumentParser(argparse.ArgumentParser):
    """Parses the arguments of a command that has no configuration; what is wrong is one line that ends with the usage.

    Raises:
      InputError: by `parse_args`.
    """

    def __init__(self, usage: str):
        super().__init__(usage=usage.removeprefix("usage: "))

    def error(self, message: str) -> NoReturn:
        unknown = message.removeprefix("unrecognized arguments: ")
        wrong = message if unknown == message else f"{unknown}: is not understood"
        raise InputError(f"{wrong}; usage: {self.usage}")


def run_plain(command: Callable[[list[str]], Any], usage: str | None, argv: Sequence[str] | None = None) -> None:
    """As `run`, for a command that parses its arguments itself."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        text = (usage or "").strip()
        print(help_module.as_command(text) if sys.argv[0].startswith("diversity-jax ") else text)
        sys.exit(0 if argv else 2)
    run_work(lambda: command(argv))


def run_work(work: Callable[[], Any]) -> None:
    """Runs a command's work in this process; bad input, a full disk and Ctrl-C end it with one line and a status."""
    log_to_stderr()
    for noisy in ("jax", "httpx", "httpx2", "orbax"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    # They log a traceback and raise it too; "absl": Orbax.
    for raises in ("absl", "gcsfs", "fsspec", "s3fs", "aiobotocore", "botocore"):
        logging.getLogger(raises).setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"google\.")  # about the end of Python versions
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # Python's 700 cost a tenth of a short command's time; objects in cycles are few here.
    gc.set_threshold(50_000, 20, 100)
    try:
        work()
    except InputError as error:
        print(f"error: {as_written(public_name(str(error)))}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr)
        sys.exit(130)
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            _exit_if_output_closed()
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise
        where = f"{error.filename2 or error.filename}: " if error.filename else ""
        print(f"error: {where}{error.strerror}; free space or choose another folder, then run again", file=sys.stderr)
        sys.exit(2)
    finally:
        gc.freeze()  # Python's last collections would look through all objects: 0.1 s after a scoring


def _exit_if_output_closed() -> None:
    """Exits with the status of `SIGPIPE` where the reader of standard output, such as `head`, has closed it."""
    output = select.poll()
    output.register(sys.stdout, 0)
    if any(event & select.POLLERR for _, event in output.poll(0)):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python writes what is left at its end
        sys.exit(141)


_FIELD = re.compile(r"(?<![\w/.-])(?:--)?config\.(?!(?:json|py|toml|yaml|yml)\b)([a-z_][\w.\[\]]*)")


def as_written(message: str) -> str:
    """A message with fields written as options, as in `--agent.groupings`, where the process runs `diversity-jax`."""
    return _FIELD.sub(lambda match: as_option(match[1]), message) if _invocations else message
