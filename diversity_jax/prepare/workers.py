"""Worker processes of this machine: each receives the job, runs one task at a time, and ends with its parent process.

They are started by `subprocess` and not by `multiprocessing`: forking a process that runs JAX or TensorFlow can
deadlock it, and spawning imports the user's script a second time.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
import contextlib
import io
import itertools
from multiprocessing.connection import wait
import os
from pathlib import Path
import pickle
import signal
import socket
import subprocess
import sys
from typing import Any

from diversity_jax.core.errors import InputError
from diversity_jax.core.process import end_with_parent, return_free_memory
from diversity_jax.core.stores import StoreError

_SOURCE_ROOT = Path(__file__).resolve().parents[2]
_ENVIRONMENT = {
    "TOKENIZERS_PARALLELISM": "false",  # the processes use all cores already
    "RAYON_NUM_THREADS": "1",
    "FASTOKENS_BPE_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MALLOC_MMAP_THRESHOLD_": str(1 << 20),  # else glibc raises it after the first chunk, and the heap is fragmented
}

Task = tuple[Callable[..., Any], tuple[Any, ...]]
"""A module's function, and the arguments that it is called with after the job."""


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Workers:
    """Runs tasks on up to `processes` processes.

    A single task, and every task where `processes` is 1, runs in this process.
    """

    def __init__(self, job: Any, processes: int, keep_open: Sequence[int] = ()):
        self._job, self._processes, self._keep_open = job, processes, keep_open
        self._workers: list[_Worker] = []

    def stop(self) -> None:
        """Kills the processes."""
        for worker in self._workers:
            worker.stop()
        self._workers = []

    def run(self, tasks: Iterable[Task], *, are_few: bool = False) -> Iterator[Any]:
        """Results in the order in which tasks finish; tasks are taken as processes become free.

        Args:
          are_few: tasks take less time than starting processes; this process runs them unless others are running.

        Raises:
          InputError: what a task raised.
          StoreError: a process was killed.
        """
        tasks = iter(tasks)
        first = list(itertools.islice(tasks, 2)) if self._processes > 1 and (self._workers or not are_few) else []
        if len(first) < 2:
            self.stop()  # frees their memory
            for function, arguments in itertools.chain(first, tasks):
                yield function(self._job, *arguments)
            return
        if not self._workers:
            return_free_memory()
            self._workers = [_Worker(self._job, self._keep_open) for _ in range(self._processes)]
        idle = list(self._workers)
        tasks = itertools.chain((first.pop(0) for _ in range(2)), tasks)  # so that no sent chunk is held
        while (task := next(tasks, None)) is not None:
            if not idle:
                yield from self._finished(idle)
            idle.pop().begin(task)
            del task
            return_free_memory()
        while len(idle) < len(self._workers):
            yield from self._finished(idle)

    def _finished(self, idle: list["_Worker"]) -> Iterator[Any]:
        busy = {worker.socket: worker for worker in self._workers if worker not in idle}
        for ready in wait(list(busy)):
            assert isinstance(ready, socket.socket)
            idle.append(busy[ready])
            yield busy[ready].result()


def _send(stream: io.BufferedRWPair, value: Any) -> None:
    """Pickles into the stream directly, without a copy of the chunk in memory."""
    pickle.dump(value, stream, protocol=5)
    stream.flush()


class _Worker:
    def __init__(self, job: Any, keep_open: Sequence[int]):
        ours, theirs = socket.socketpair()
        paths = os.pathsep.join(filter(None, [str(_SOURCE_ROOT), *sys.path]))
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(theirs.fileno()), str(os.getpid())],
                pass_fds=(theirs.fileno(), *keep_open),
                env={**os.environ, **_ENVIRONMENT, "PYTHONPATH": paths},
                stdin=subprocess.DEVNULL,
            )
        self.socket, self._stream = ours, ours.makefile("rwb")
        self.begin(job)

    def begin(self, task: Any) -> None:
        try:
            _send(self._stream, task)
        except OSError:
            raise self._ended() from None

    def result(self) -> Any:
        try:
            outcome, value = pickle.load(self._stream)
        except (EOFError, OSError, pickle.UnpicklingError):
            raise self._ended() from None
        if outcome == "raised":
            raise value
        return value

    def _ended(self) -> StoreError:  # not the input's fault: finished work stays
        code = self._process.wait()
        reason = f"was killed by signal {-code}" if code < 0 else f"ended with status {code}"
        advice = "run again to go on, with fewer processes if it recurs"
        return StoreError(f"a worker process {reason}, perhaps for want of memory; {advice}")

    def stop(self) -> None:
        self._process.kill()
        with contextlib.suppress(OSError):  # what was not sent yet
            self._stream.close()
        self.socket.close()
        self._process.wait()


def serve(descriptor: int, parent: int) -> None:
    """The main loop of a worker: receives the job, then tasks, until the other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent(parent)
    stream = socket.socket(fileno=descriptor).makefile("rwb")
    try:
        job = pickle.load(stream)
        while True:
            function, arguments = pickle.load(stream)
            try:
                outcome = ("returned", function(job, *arguments))
            except Exception as error:  # raised again by the process that gave the task
                if not isinstance(error, InputError):
                    error.add_note("(in a worker process)")
                outcome = ("raised", error)
            del arguments  # frees a chunk's text before the next task is awaited
            return_free_memory()
            _send(stream, outcome)
    except (EOFError, OSError):
        return


if __name__ == "__main__":
    serve(int(sys.argv[1]), int(sys.argv[2]))
