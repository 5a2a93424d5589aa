"""Where a study's steps stand when its folder is in a bucket (`gs://`, `s3://`): no locks, but objects that only one
process can create.

Every step is worked on in a folder of the machine, which goes up when it is finished, and now and then before. In the
bucket:

    records/KEY/lease-00002.json     the second holder's claim; made only if absent, so one process gets the number
    records/KEY/beat-00002.json      written again and again while that holder lives
    records/KEY/end-00002.json       the holder gave the step back
    records/KEY/saved-00002.json     files of an unfinished step that the next holder goes on from
    records/KEY/done.json            the result's files and record; made only if absent, so the first result stands
    records/KEY/failed.json
    steps/KEY/00002/...              what the second holder wrote

A holder is taken for dead once its beat has not changed for `lease_seconds` of the onlooker's own clock: machines'
clocks are never compared. One that was only stalled can do no harm when it goes on: it writes under its own number, and
its result is not taken if another stands.
"""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import json
import logging
import os
from pathlib import Path
import shutil
import socket
import threading
import time
from typing import Any
import uuid

from diversity_jax.core.errors import InputError
from diversity_jax.core.files import read_json, write_json
from diversity_jax.study.bucket import Bucket, is_finished_file
from diversity_jax.study.graph import Store

log = logging.getLogger(__name__)

_BEATS_A_LEASE = 4
_POLLS_A_LEASE = 12
_Files = dict[str, int]  # sizes in bytes by path


class ObjectStore(Store):
    """As `Store`, for a bucket.

    Args:
      url: the study's folder in the bucket.
      work: a folder of this machine for steps at work and results that were fetched; processes of one machine may share
        it.
      lease_seconds: after so long without a sign of life a holder is taken for dead.
      save_seconds: how often the files of a step at work go up.

    Raises:
      InputError: the bucket cannot be reached, or cannot create an object only where there is none.
    """

    def __init__(self, url: str, work: str | Path, *, lease_seconds: float = 60.0, save_seconds: float = 600.0):
        super().__init__(work)
        self.bucket = Bucket(url)
        self.lease_seconds, self.save_seconds = lease_seconds, save_seconds
        self.poll_seconds = lease_seconds / _POLLS_A_LEASE
        self._records: dict[str, dict[str, Any]] = {}  # of finished steps; they do not change
        self._seen: dict[
            str, tuple[str, float]
        ] = {}  # a holder's last sign of life, and when this process first saw it
        self._elsewhere: dict[str, int] = {}  # the last lease of another machine
        self._listed: dict[str, dict[str, str]] = {}  # objects by step, at the last look
        self._held: dict[str, _Lease] = {}

    def states(self, keys: Sequence[str]) -> dict[str, str]:
        """`done` or `failed` for each key that is."""
        names = self._listed = self.bucket.names("records")
        for key, objects in names.items():
            self._watch(key, objects)
        found = {key: "failed" for key in keys if "failed.json" in names.get(key, {})}
        return found | {key: "done" for key in keys if "done.json" in names.get(key, {})}

    def done(self, key: str) -> dict[str, Any] | None:
        """When, where and by what code a step was finished; None where it is not."""
        if key not in self._records:
            found = self.bucket.read(_record(key, "done.json"))
            if found is None:
                return None
            self._records[key] = found
        return self._records[key]

    def failure(self, key: str) -> dict[str, str] | None:
        """`reason` and `log` of a step that failed; None where it has not."""
        return self.bucket.read(_record(key, "failed.json"))

    def finish(self, key: str, record: Mapping[str, Any]) -> bool:
        """Puts up what the step wrote, and its record if no other process was first."""
        lease = self._held[key]
        lease.stop()
        files = self._put_up(key, lease)
        won = self.bucket.create(_record(key, "done.json"), {**record, "attempt": lease.number, "files": files})
        _at_work(self.path(key)).unlink(missing_ok=True)
        if won:
            write_json(_here(self.path(key)), {"attempt": lease.number})
        else:
            shutil.rmtree(self.output(key), ignore_errors=True)
            self.bucket.remove(f"steps/{key}/{lease.number:05d}")
        return won

    def fail(self, key: str, reason: str) -> None:
        """Notes why the claimed step failed, and puts up what it has written: whoever tries again goes on from
        there.
        """
        lease = self._held[key]
        lease.stop()
        with contextlib.suppress(
            OSError
        ):  # a file that cannot be read, or no network: the reason is worth more than the files
            self._save(key, lease)
        log_name = self.bucket.url(f"steps/{key}/{lease.number:05d}/log.txt")
        self.bucket.write(_record(key, "failed.json"), {"reason": reason, "log": log_name})

    def pause(self, key: str) -> None:
        """Puts up what the claimed step has written, for whoever takes it up."""
        lease = self._held[key]
        lease.stop()
        self._save(key, lease)

    def forgive(self, keys: Sequence[str]) -> None:
        """Lets failed steps be tried again."""
        for key, state in self.states(keys).items():
            if state == "failed":
                self.bucket.remove(_record(key, "failed.json"))

    def forget(self, keys: Sequence[str]) -> None:
        """Lets finished steps be run again, from nothing."""
        for key in keys:
            self._records.pop(key, None)
            for name in self.bucket.names(f"records/{key}", within=False):
                if name == "done.json" or name.startswith("saved-"):
                    self.bucket.remove(_record(key, name))

    def bring(self, keys: Sequence[str], suffix: str = "") -> None:
        """Fetches what finished steps, and those they needed, wrote; only files with the suffix, where one is given."""
        for key in keys:
            record = self.done(key)
            if record is None:
                raise InputError(f"{key}: its result is no longer in {self.bucket.url('')}; run the study again")
            if not suffix:
                self.bring(record["needs"])
            with self._mirror(key):
                if not _is(_here(self.path(key)), record["attempt"]):
                    self._fetch(
                        key,
                        record["attempt"],
                        {name: size for name, size in record["files"].items() if name.endswith(suffix)},
                    )
                    if not suffix:
                        write_json(_here(self.path(key)), {"attempt": record["attempt"]})

    @contextlib.contextmanager
    def claim(self, key: str) -> Iterator[bool]:
        """Holds the step by a lease, if no living process does."""
        if self._is_known_held(key):
            yield False
            return
        with self._locked(key) as alone:  # other processes of this machine, which share its folder
            lease = self._take(key) if alone else None
            if lease is None:
                yield False
                return
            self._held[key] = lease
            try:
                self._go_on(key, lease)
                lease.start(lambda: self._save(key, lease))
                yield True
            finally:
                lease.end()
                del self._held[key]

    def _take(self, key: str) -> "_Lease | None":
        """The next number's lease; None where the step is finished, failed, held, or another process was quicker."""
        objects = self.bucket.names(f"records/{key}", within=False)
        if "done.json" in objects or "failed.json" in objects:
            return None
        last = _last(objects, "lease")
        if last and not self._is_free(key, last, objects):
            return None
        lease = _Lease(self.bucket, key, last + 1, self.lease_seconds, self.save_seconds)
        return lease if lease.take(_place(self.path(key) / "lock")) else None

    def _is_known_held(self, key: str) -> bool:
        """Whether the last look at the bucket was enough to tell that another machine is at the step: saves asking for
        each step.
        """
        objects = self._listed.get(key, {})
        last = _last(objects, "lease")
        live = last and last == self._elsewhere.get(key) and f"end-{last:05d}.json" not in objects
        return bool(live) and time.monotonic() - self._seen[key][1] <= self.lease_seconds

    def _is_free(self, key: str, number: int, objects: Mapping[str, str]) -> bool:
        if f"end-{number:05d}.json" in objects:
            return True
        holder = self.bucket.read(_record(key, f"lease-{number:05d}.json"))
        if holder is not None and holder["place"] == _place(self.path(key) / "lock"):
            return True  # it would hold this file's lock, which is ours
        self._elsewhere[key] = number
        self._watch(key, objects)
        return time.monotonic() - self._seen[key][1] > self.lease_seconds

    def _watch(self, key: str, objects: Mapping[str, str]) -> None:
        sign = json.dumps(
            [(name, mark) for name, mark in sorted(objects.items()) if name.startswith(("lease-", "beat-"))]
        )
        if self._seen.get(key, ("", 0.0))[0] != sign:
            self._seen[key] = (sign, time.monotonic())

    def _go_on(self, key: str, lease: "_Lease") -> None:
        """Has in the step's folder what its last holder had written, so far as that is known."""
        own = _at_work(self.path(key))
        saved = _last(self.bucket.names(f"records/{key}", within=False), "saved")
        if not _is(own, lease.number - 1):
            shutil.rmtree(self.output(key), ignore_errors=True)
            if saved:
                found = self.bucket.read(_record(key, f"saved-{saved:05d}.json"))
                self._fetch(key, saved, found["files"])
                log.info("%s: going on from %d files of an earlier holder", key, len(found["files"]))
        _here(self.path(key)).unlink(missing_ok=True)
        write_json(own, {"attempt": lease.number})

    def _fetch(self, key: str, number: int, files: _Files) -> None:
        """Files of an attempt into the step's folder, where they replace what was there; whole or not at all."""
        coming = self.path(key) / ".coming"
        shutil.rmtree(coming, ignore_errors=True)
        (coming / "output").mkdir(parents=True)
        for name, size in files.items():
            place = f"steps/{key}/{number:05d}/{name}"
            self.bucket.get(place, coming / name)
            if (coming / name).stat().st_size != size:
                raise InputError(
                    f"{self.bucket.url(place)}: is not the {size:,} bytes that were put there; run with "
                    "--config.stale=again"
                )
        shutil.rmtree(self.output(key), ignore_errors=True)
        os.replace(coming / "output", self.output(key))

    def _save(self, key: str, lease: "_Lease") -> None:
        """Puts up an unfinished step's files. Where one vanishes meanwhile, the files named before stay the ones to go
        on from.
        """
        with contextlib.suppress(FileNotFoundError):
            files = self._put_up(key, lease, finished=False)
            self.bucket.write(_record(key, f"saved-{lease.number:05d}.json"), {"files": files})

    def _put_up(self, key: str, lease: "_Lease", *, finished: bool = True) -> _Files:
        """Sizes of the step's files by path, once those that changed are up."""
        folder = self.path(key)
        found: _Files = {}
        for path in sorted([*self.output(key).rglob("*"), self.log_file(key)]):
            name = path.relative_to(folder).as_posix()
            if path.is_file() and (finished or is_finished_file(name)) and ".partial" not in path.name:
                found[name] = lease.put(path, name)
        for name in set(lease.up) - set(found) if finished else ():
            self.bucket.remove(lease.place(name))
        return {name: size for name, size in found.items() if name != "log.txt"}

    @contextlib.contextmanager
    def _mirror(self, key: str) -> Iterator[None]:
        """This machine's folder of a finished step, for this process alone."""
        until = time.monotonic() + 10 * self.lease_seconds
        while True:
            with self._locked(key) as mine:
                if mine:
                    yield
                    return
            if time.monotonic() > until:
                raise InputError(f"{self.path(key)}: a process that does not answer holds its lock; end that process")
            time.sleep(min(1.0, self.poll_seconds))


class _Lease:
    """A claim of this process on a step, kept up by a thread until it is ended."""

    def __init__(self, bucket: Bucket, key: str, number: int, lease_seconds: float, save_seconds: float):
        self.bucket, self.key, self.number = bucket, key, number
        self.up: dict[str, tuple[int, int]] = {}  # size and time of change of the files that were put up, by path
        self._lease_seconds, self._save_seconds = lease_seconds, save_seconds
        self._over, self._saved = threading.Event(), threading.Event()
        self._threads: list[threading.Thread] = []

    def take(self, place: str) -> bool:
        """Whether the number is this process's."""
        holder = {"host": socket.gethostname(), "pid": os.getpid(), "place": place, "token": uuid.uuid4().hex}
        return self.bucket.create(self._name("lease"), holder)

    def start(self, save) -> None:
        """Shows signs of life, and saves now and then, until `end`."""
        for target in (self._beat, lambda: self._keep_saving(save)):
            self._threads.append(threading.Thread(target=target, daemon=True))
            self._threads[-1].start()

    def put(self, path: Path, name: str) -> int:
        """Puts a file up unless it is; its size."""
        seen = path.stat()
        mark = (seen.st_size, seen.st_mtime_ns)
        if self.up.get(name) != mark:
            mark = (self.bucket.put(path, self.place(name)), seen.st_mtime_ns)
            self.up[name] = mark
        return mark[0]

    def place(self, name: str) -> str:
        """Where a file of this attempt is in the bucket."""
        return f"steps/{self.key}/{self.number:05d}/{name}"

    def stop(self) -> None:
        """Saves no more; the signs of life go on."""
        self._saved.set()
        if len(self._threads) > 1:
            self._threads[1].join()

    def end(self) -> None:
        """Gives the step back."""
        self.stop()
        self._over.set()
        for thread in self._threads:
            thread.join()
        self.bucket.write(self._name("end"), {})

    def _name(self, what: str) -> str:
        return _record(self.key, f"{what}-{self.number:05d}.json")

    def _beat(self) -> None:
        count = 0
        while not self._over.wait(self._lease_seconds / _BEATS_A_LEASE):
            count += 1
            self._try(lambda count=count: self.bucket.write(self._name("beat"), {"beat": count}))

    def _keep_saving(self, save) -> None:
        while not self._saved.wait(self._save_seconds):
            self._try(save)

    def _try(self, act) -> None:
        """A network that is away for a while must not end the step: its result is refused later if another took it
        over.
        """
        try:
            act()
        except Exception as error:
            log.warning("%s: %s is not reached (%s); trying on", self.key, self.bucket.url(""), type(error).__name__)


def _record(key: str, name: str) -> str:
    return f"records/{key}/{name}"


def _last(objects: Mapping[str, str], what: str) -> int:
    """The highest number among objects such as `lease-00002.json`; 0 where there is none."""
    return max((int(name.removeprefix(f"{what}-")[:5]) for name in objects if name.startswith(f"{what}-")), default=0)


def _place(lock: Path) -> str:
    """Names a lock file of this machine, and no other's until it starts anew."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    known = lock.stat()
    return f"{boot.read_text().strip() if boot.exists() else socket.gethostname()}:{known.st_dev}:{known.st_ino}"


def _here(folder: Path) -> Path:
    return folder / "here.json"


def _at_work(folder: Path) -> Path:
    return folder / "at_work.json"


def _is(marker: Path, attempt: int) -> bool:
    return marker.exists() and read_json(marker)["attempt"] == attempt
