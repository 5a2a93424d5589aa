"""Text from standard input, kept in a temporary file, since a corpus is read more than once."""

import atexit
import functools
import os
import shutil
import sys
import tempfile

from diversity_jax.core.errors import InputError
from diversity_jax.core.files import full_disk_named


@functools.cache
def spooled_input() -> str:
    """Path of a file with all that standard input held, removed when the process ends.

    Raises:
      InputError: standard input is a terminal, or there is none.
    """
    if sys.stdin is None or sys.stdin.closed or sys.stdin.isatty():
        raise InputError("-: stands for text from standard input; pipe some in, such as: cat texts.jsonl | ...")
    descriptor, path = tempfile.mkstemp(prefix="standard-input-")
    atexit.register(_remove, path, os.getpid())
    with open(descriptor, "wb") as file, full_disk_named(path):
        shutil.copyfileobj(sys.stdin.buffer, file)
    return path


def _remove(path: str, process: int) -> None:
    if os.getpid() == process and os.path.exists(path):  # a forked child leaves it to its parent
        os.remove(path)
