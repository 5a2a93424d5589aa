"""The progress display of a run."""

import asyncio

import pytest

from diversity_jax.core import progress
from diversity_jax.llm import Engine, EngineConfig, Request
from tests.llm_server import serve


def ask(mode: str, count: int = 12, expected: int | None = 24) -> dict[str, str]:
    async def run(server):
        async with Engine(
            "openai:gpt-4o-mini", base_url=server.openai_url, config=EngineConfig(progress=mode, max_in_flight=4)
        ) as engine:
            if expected:
                engine.expect(expected)
            await asyncio.gather(
                *(engine.complete(Request(stage="s", system="", user=str(n), schema=None)) for n in range(count))
            )
            await asyncio.sleep(0.05)
            return engine._progress.figures()

    with serve(latency_seconds=0.02) as server:
        return asyncio.run(run(server))


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.02)
    monkeypatch.setattr(progress, "PANEL_SECONDS", 0.02)


def test_every_figure_is_there():
    figures = ask("off")
    assert set(figures) == {"done", "cached", "failed", "in flight", "calls/s", "tokens", "spent", "in all", "left"}
    assert (figures["done"], figures["cached"], figures["failed"]) == ("12 of 24", "0", "0")
    spent, in_all = (float(figures[name].removeprefix("$")) for name in ("spent", "in all"))
    assert in_all == pytest.approx(2 * spent, abs=1e-4)


def test_without_a_terminal_there_are_plain_lines(capfd):
    ask("auto")
    lines = capfd.readouterr().err.splitlines()
    assert "openai:gpt-4o-mini: 12 of 24 done, 0 cached, 0 failed" in lines[-1]
    assert "\x1b" not in "".join(lines)


def test_the_panel_draws(capfd):
    ask("panel", expected=None)
    shown = capfd.readouterr().err
    assert "asking openai:gpt-4o-mini" in shown
    assert "12 done" in shown
    assert "0 of 4 in flight" in shown


def test_off_is_silent(capfd):
    ask("off")
    assert capfd.readouterr().err == ""
