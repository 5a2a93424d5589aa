"""The response cache keeps paid answers across kills, processes, damage and full disks."""

import asyncio
import os
from pathlib import Path
import random
import resource
import signal
import sqlite3
import subprocess
import sys
import time

import pytest

from diversity_jax.core.errors import InputError
from diversity_jax.llm import BudgetConfig
from diversity_jax.llm.budget import Amount
from diversity_jax.llm.response_cache import ResponseCache
from diversity_jax.llm.types import CachedFailure, CachedResponse
from tests.kills import kills
from tests.llm_server import serve
from tests.llm_worker import key_of, number_of, question, result, start

NOTHING = Amount()


@pytest.fixture(autouse=True)
def _key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-0123456789")


def cached_response(text: str = "an answer", **changes) -> CachedResponse:
    return CachedResponse(
        **{"stage": "s", "text": text, "prompt_tokens": 3, "completion_tokens": 4, "dollars": 0.5, "model": "m"}
        | changes
    )


def with_cache(path, work, *, run: str = "default", caps: BudgetConfig = BudgetConfig(), replay: bool = False):
    """Runs the coroutine function `work` on an open response cache."""

    async def go():
        cache = ResponseCache(None if path is None else str(path), run=run, caps=caps, replay=replay)
        try:
            return await work(cache)
        finally:
            await cache.close()

    return asyncio.run(go())


class Recorder:
    """An answer function that keeps the numbers it answered, in order."""

    def __init__(self):
        self.answered: list[int] = []

    def __call__(self, stage, samples, payload):
        self.answered.append(number_of(payload["user"]))
        return f"answer to {self.answered[-1]}"


def keys_in(cache: Path) -> set[str]:
    try:
        with sqlite3.connect(f"file:{cache}?mode=ro", uri=True) as connection:
            return {key for (key,) in connection.execute("SELECT key FROM answers")}
    except sqlite3.OperationalError:
        return set()


@pytest.mark.parametrize(
    "text", ["plain", "nul \x00 inside", "lone \ud800 surrogate", "quote \" ' \\ \n\u2028", "x" * 100_000, "\U0001f600"]
)
def test_any_text_comes_back_as_it_was(text, tmp_path):
    async def write(cache):
        await cache.reserve("k", NOTHING)
        await cache.commit("k", NOTHING, cached_response(text))

    with_cache(tmp_path / "l", write)
    assert with_cache(tmp_path / "l", lambda cache: cache.find("k")).text == text


def test_a_failure_is_never_an_answer_but_replays(tmp_path):
    failure = CachedFailure(stage="s", reason="refused", detail="no", prompt_tokens=1, completion_tokens=0, dollars=0.1)

    async def write(cache):
        assert (await cache.reserve("k", NOTHING)).state == "granted"
        await cache.commit("k", Amount(0.1, 1, 1), failure)
        return await cache.find("k"), (await cache.reserve("k", NOTHING)).state

    assert with_cache(tmp_path / "l", write) == (None, "granted")
    assert with_cache(tmp_path / "l", lambda cache: cache.find("k"), replay=True) == failure


def test_the_first_answer_stays(tmp_path):
    async def write(cache):
        await cache.commit("k", NOTHING, cached_response("first"))
        await cache.commit("k", NOTHING, cached_response("second"))
        return await cache.find("k")

    assert with_cache(tmp_path / "l", write).text == "first"


def test_spending_is_added_up_by_run_and_over_restarts(tmp_path):
    async def spend(cache):
        await cache.reserve("k", Amount(9.0, 9, 1))
        await cache.commit("k", Amount(0.25, 10, 1), None)  # the first attempt failed
        await cache.reserve("k", Amount(9.0, 9, 1))
        await cache.commit("k", Amount(0.5, 20, 1), None)
        return cache.spent_before

    assert with_cache(tmp_path / "l", spend, run="a") == NOTHING
    assert with_cache(tmp_path / "l", spend, run="b") == NOTHING
    assert with_cache(tmp_path / "l", spend, run="a") == Amount(0.75, 30, 2)


@pytest.mark.parametrize("cap", [{"max_dollars": 1.0}, {"max_tokens": 100}, {"max_calls": 2}])
def test_a_reservation_that_could_pass_the_cap_is_held_back(cap, tmp_path):
    async def reserve_more(cache):
        first = await cache.reserve("a", Amount(0.9, 90, 2))
        over = await cache.reserve("b", Amount(0.2, 20, 1))
        await cache.commit("a", Amount(0.1, 10, 1), None)
        fits = await cache.reserve("b", Amount(0.2, 20, 1))
        await cache.commit("b", Amount(0.9, 90, 1), None)
        last = await cache.reserve("c", Amount(0.2, 20, 1))
        return first, over, fits, last

    first, over, fits, last = with_cache(tmp_path / "l", reserve_more, caps=BudgetConfig(**cap))
    assert (first.state, over.state, fits.state, last.state) == ("granted", "over", "granted", "over")
    assert (over.in_flight, last.in_flight) == (True, False)
    assert over.cap == next(iter(cap))


def test_what_another_living_process_asks_is_held_and_what_a_dead_one_asked_is_counted_as_used(tmp_path):
    script = (
        "import asyncio, sys, time\n"
        "from diversity_jax.llm import BudgetConfig\n"
        "from diversity_jax.llm.budget import Amount\n"
        "from diversity_jax.llm.response_cache import ResponseCache\n"
        "async def go():\n"
        "    cache = ResponseCache(sys.argv[1], run='default', caps=BudgetConfig())\n"
        "    await cache.reserve('k', Amount(2.0, 200, 1))\n"
        "    print('claimed', flush=True)\n"
        "    time.sleep(60)\n"
        "asyncio.run(go())\n"
    )
    other = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "l")], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "claimed\n"

        async def reserve_twice(cache):
            before = await cache.reserve("k", Amount(1.0, 1, 1))
            other.kill()
            other.wait()
            return before.state, (await cache.reserve("k", Amount(1.0, 1, 1))).state

        assert with_cache(tmp_path / "l", reserve_twice) == ("held", "granted")
    finally:
        other.kill()
        other.wait()
    rows = sqlite3.connect(tmp_path / "l").execute("SELECT lost, dollars, tokens, calls FROM spent").fetchall()
    assert rows == [(1, 3.0, 201, 2)]  # the dead process's claim, and ours, which was left open


def _break_an_answer(path: Path):
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE answers SET answer = '\"another\"'")


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (
            lambda path: path.write_bytes(b"not a database at all, but long enough to look at" * 50),
            "is not a readable ledger",
        ),
        (lambda path: path.write_bytes(path.read_bytes()[:-6000] + os.urandom(6000)), "l"),
        (_break_an_answer, "is damaged"),
        (lambda path: path.write_bytes(path.read_bytes().replace(b"TABLE answers", b"TABL\x82 answers")), "no text"),
        (lambda path: (path.unlink(), sqlite3.connect(path).execute("CREATE TABLE mine (x)")), "something else"),
        (lambda path: (path.unlink(), path.mkdir()), "l"),
    ],
)
def test_a_damaged_or_foreign_response_cache_is_one_line_that_names_it(damage, says, tmp_path):
    path = tmp_path / "l"

    async def write(cache):
        for number in range(200):
            await cache.commit(f"k{number}", NOTHING, cached_response("x" * 200))

    with_cache(path, write)
    damage(path)

    async def read(cache):
        for number in range(200):
            await cache.find(f"k{number}")
            await cache.reserve(f"new{number}", NOTHING)

    with pytest.raises(InputError, match=says) as caught:
        with_cache(path, read)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_response_cache_is_one_line(tmp_path):
    with_cache(tmp_path / "l", lambda cache: cache.find("k"))
    (tmp_path / "l").chmod(0o400)
    with pytest.raises(InputError, match="may not be written"):
        with_cache(tmp_path / "l", lambda cache: cache.find("k"))


def test_replay_reads_a_response_cache_in_a_folder_that_may_not_be_written(tmp_path):
    with_cache(tmp_path / "l", lambda cache: cache.commit("k", NOTHING, cached_response()))
    tmp_path.chmod(0o500)
    try:
        assert with_cache(tmp_path / "l", lambda cache: cache.find("k"), replay=True) == cached_response()
        assert [path.name for path in tmp_path.iterdir()] == ["l"]
    finally:
        tmp_path.chmod(0o700)


def test_replay_without_a_response_cache_is_one_line(tmp_path):
    with pytest.raises(InputError, match="no such ledger to replay"):
        with_cache(tmp_path / "absent", lambda cache: cache.find("k"), replay=True)
    with pytest.raises(InputError, match="needs a ledger"):
        with_cache(None, lambda cache: cache.find("k"), replay=True)


def test_a_full_disk_is_one_line_and_what_was_written_before_stays(tmp_path):
    script = (
        "import asyncio, resource, sys\n"
        "from diversity_jax.core.errors import InputError\n"
        "from tests.test_llm_response_cache import NOTHING, cached_response, with_cache\n"
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "async def fill(cache):\n"
        "    for number in range(10_000):\n"
        "        await cache.commit(f'k{number}', NOTHING, cached_response('x' * 20_000))\n"
        "        print(number, flush=True)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))\n"
        "try:\n"
        "    with_cache(sys.argv[1], fill)\n"
        "except InputError as error:\n"
        "    print('ERROR', error)\n"
    )
    assert resource.RLIMIT_FSIZE is not None
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "l")], capture_output=True, text=True, timeout=60
    )
    *written, error = done.stdout.splitlines()
    assert error.startswith("ERROR")
    assert "full" in error
    assert done.stderr == ""
    last = int(written[-1])
    assert last > 20
    assert with_cache(tmp_path / "l", lambda cache: cache.find(f"k{last}")).text == "x" * 20_000


def test_killed_at_random_moments_no_finished_call_is_repeated(tmp_path):
    times = kills(3)
    cache, recorder, generator = tmp_path / "ledger.sqlite", Recorder(), random.Random(times)
    count = 60 * times
    with serve(recorder, latency_seconds=0.02) as server:
        settings = {
            "url": server.openai_url,
            "first": 0,
            "last": count,
            "config": {"ledger": str(cache), "max_in_flight": 8},
        }
        moments = []  # at each kill: how many questions had been answered, and what the ledger held
        for _ in range(times):
            process = start(**settings)
            time.sleep(generator.uniform(0.0, 0.25))
            process.send_signal(signal.SIGKILL)
            process.wait()
            moments.append((len(recorder.answered), keys_in(cache)))
        last = result(start(**settings))
        uninterrupted = result(start(**settings | {"config": {"ledger": str(tmp_path / "another.sqlite")}}))
    for answered, finished in moments:
        later = {key_of(number) for number in recorder.answered[answered:-count]}
        assert not later & finished
    assert last["kinds"] == {"answered": count}
    assert last["answers"] == uninterrupted["answers"]
    assert server.attempts - 2 * count <= times * 16  # what was in flight or on its way to the disk


def test_two_processes_ask_nothing_twice(tmp_path):
    recorder = Recorder()
    with serve(recorder, latency_seconds=0.03) as server:
        settings = {
            "url": server.openai_url,
            "first": 0,
            "last": 150,
            "config": {"ledger": str(tmp_path / "l"), "max_in_flight": 8},
        }
        workers = [start(**settings), start(**settings)]
        results = [result(worker) for worker in workers]
    assert sorted(recorder.answered) == list(range(150))
    assert results[0]["answers"] == results[1]["answers"]
    assert results[0]["attempts"] + results[1]["attempts"] == 150


def test_two_processes_and_a_kill_never_pass_the_cap_together(tmp_path):
    with serve(Recorder(), latency_seconds=0.03) as server:
        common = {
            "url": server.openai_url,
            "budget": {"max_calls": 70},
            "config": {"ledger": str(tmp_path / "l"), "max_in_flight": 8},
        }
        killed = start(**common, first=0, last=200)
        time.sleep(0.06)
        killed.kill()
        killed.wait()
        workers = [start(**common, first=200, last=400), start(**common, first=400, last=600)]
        results = [result(worker) for worker in workers]
    assert 70 - 3 * 8 <= server.attempts <= 70  # what was in flight when a process ended stays set aside
    assert {kind for outcome in results for kind in outcome["kinds"]} <= {"answered", "budget"}
    assert results[-1]["kinds"]["budget"] > 0


def test_keys_tell_replicates_models_and_settings_apart():
    base = question(1)
    keys = {base.key("openai", "a"), base.key("openai", "b"), base.key("gemini", "a")}
    for name, value in {
        "replicate": 1,
        "system": "x",
        "user": "x",
        "temperature": 1.0,
        "max_output_tokens": 9,
        "stage": "x",
        "schema": {},
    }.items():
        keys.add(
            type(base)(**{field: getattr(base, field) for field in base.__dataclass_fields__} | {name: value}).key(
                "openai", "a"
            )
        )
    assert len(keys) == 9  # without a schema the stage is not sent
    ordered = type(base)(stage="s", system="", user="", schema={"a": 1, "b": {"c": 2, "d": 3}})
    turned = type(base)(stage="s", system="", user="", schema={"b": {"d": 3, "c": 2}, "a": 1})
    assert ordered.key("openai", "a") == turned.key("openai", "a")
