"""Admission of requests under the adaptive rate limit."""

import asyncio
import itertools

import pytest

from diversity_jax.llm.rate_limit import PrioritySemaphore, Throttle


def throttle(most=100, stall_seconds=60.0, stalled=None):
    return Throttle(most, stall_seconds=stall_seconds, stalled=stalled or (lambda why: None))


def test_a_gate_lets_its_limit_through_in_order_and_forgets_those_who_leave_the_queue():
    async def run():
        gate, order = PrioritySemaphore(2), []

        async def visit(name, **how):
            await gate.enter(**how)
            order.append(name)

        visits = [asyncio.create_task(visit(number)) for number in range(5)]
        await asyncio.sleep(0)
        assert (order, gate.inside) == ([0, 1], 2)
        visits[2].cancel()
        urgent = asyncio.create_task(visit("urgent", first=True))
        await asyncio.sleep(0)
        for _ in range(3):
            gate.leave()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        assert order == [0, 1, "urgent", 3, 4]
        assert gate.inside == 2
        await urgent

    asyncio.run(run())


def test_a_place_given_to_a_cancelled_waiter_is_not_lost():
    async def run():
        gate = PrioritySemaphore(1)
        await gate.enter()
        waiting = asyncio.create_task(gate.enter())
        await asyncio.sleep(0)
        gate.leave()  # the place is given away here ...
        waiting.cancel()  # ... and never taken
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert gate.inside == 0

    asyncio.run(run())


def test_a_stopped_gate_turns_everybody_away():
    async def run():
        gate = PrioritySemaphore(1)
        await gate.enter()
        waiting = asyncio.create_task(gate.enter())
        await asyncio.sleep(0)
        gate.stop(lambda: ValueError("the end"))
        for late in (waiting, gate.enter()):
            with pytest.raises(ValueError, match="the end"):
                await late

    asyncio.run(run())


def test_the_limit_falls_by_a_share_once_a_round_and_rises_by_one():
    async def run():
        gate = throttle(100)
        passes = [await gate.acquire() for _ in range(100)]
        for held in passes[:40]:
            gate.limited(held, None)
        assert gate.limit == 50  # once, though forty were turned away: they were sent before the fall
        for held in passes[40:]:
            gate.answered(held)
        limits = []
        for _ in range(4):
            passes = [await gate.acquire() for _ in range(gate.limit)]
            for held in passes:
                gate.answered(held)
            limits.append(gate.limit)
        assert limits[0] - 50 <= 2
        assert [later - earlier for earlier, later in itertools.pairwise(limits)] == [1, 1, 1]

    asyncio.run(run())


def test_the_limit_does_not_rise_while_fewer_calls_are_made():
    async def run():
        gate = throttle(100)
        passes = [await gate.acquire() for _ in range(100)]
        for held in passes:
            gate.limited(held, None)
        low = gate.limit
        for _ in range(300):
            gate.answered(await gate.acquire())
        assert gate.limit <= low + 1  # the first round still saw a full pipe

    asyncio.run(run())


def test_the_limit_stays_between_one_and_the_most():
    async def run():
        gate = throttle(4)
        for _ in range(50):
            gate.limited(await gate.acquire(), None)
            gate.limited(await gate.acquire(), None)
        assert gate.limit == 1
        for _ in range(200):
            passes = [await gate.acquire() for _ in range(gate.limit)]
            for held in passes:
                gate.answered(held)
        assert gate.limit == 4

    asyncio.run(run())


def test_an_open_circuit_lets_one_probe_through_and_closes_at_its_answer():
    async def run():
        gate = throttle(50)
        hanging = [await gate.acquire() for _ in range(25)]
        for held in hanging[:20]:
            gate.failed(held, "503", unreachable=False)
        assert gate.opened
        for held in hanging[20:23]:
            gate.failed(held, "503", unreachable=False)  # sent before, so no news
        probe = await gate.acquire()  # though two still hang
        others = [asyncio.create_task(gate.acquire()) for _ in range(30)]
        await asyncio.sleep(0.05)
        assert not any(other.done() for other in others)
        gate.answered(probe)
        assert not gate.opened
        await asyncio.gather(*others)

    asyncio.run(run())


def test_a_server_that_answers_nothing_for_long_is_reported_even_while_a_probe_hangs():
    async def run():
        reasons = []
        gate = throttle(50, stall_seconds=0.7, stalled=reasons.append)
        for held in [await gate.acquire() for _ in range(20)]:
            gate.failed(held, "503", unreachable=False)
        await gate.acquire()  # the probe, which never returns
        await asyncio.sleep(0.4)
        assert reasons == ["503"]

    asyncio.run(run())
