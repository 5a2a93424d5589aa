"""The frame of every command: its configuration, logging, and bad input as one line with exit status 2."""

from collections.abc import Callable, Sequence
import gc
import logging
import os
import sys
from typing import Any, TypeVar
import warnings

from diversity_jax.core.buckets import public_name
from diversity_jax.core.errors import InputError, without_secrets

C = TypeVar("C")


class _WithoutSecrets(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return without_secrets(super().format(record))


def log_to_stderr() -> None:
    """Log messages as lines on standard error, without passwords."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_WithoutSecrets("%(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)  # Orbax has installed one of its own


def run(
    command: Callable[[C], Any], config_type: type[C], usage: str | None, argv: Sequence[str] | None = None
) -> None:
    """Runs a command and leaves the process: 0 done, 2 bad input (one line on stderr), 130 interrupted.

    Args:
      command: takes the configuration.
      usage: the module's docstring, printed for `--help`.
    """
    from diversity_jax.core import config

    run_plain(lambda arguments: command(config.parse(arguments, config_type)), usage, argv)


def run_plain(command: Callable[[list[str]], Any], usage: str | None, argv: Sequence[str] | None = None) -> None:
    """As `run`, for a command that parses its arguments itself."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        print((usage or "").strip())
        sys.exit(0 if argv else 2)
    log_to_stderr()
    for noisy in ("jax", "absl", "httpx", "orbax"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    for raises in ("gcsfs", "fsspec", "s3fs", "aiobotocore", "botocore"):  # they log a traceback and raise it too
        logging.getLogger(raises).setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"google\.")  # about the end of Python versions
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    gc.set_threshold(
        50_000, 20, 100
    )  # Python's 700 cost a tenth of a short command's time; objects in cycles are few here
    try:
        command(argv)
    except InputError as error:
        print(f"error: {public_name(str(error))}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr)
        sys.exit(130)
