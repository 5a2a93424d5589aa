"""Synthesis over batch APIs: submitted once, found again after a kill, stored in the response cache, paid at batch
prices.
"""

from collections import Counter
import contextlib
import json
import logging
import multiprocessing
import sqlite3
import time

import pytest

from diversity_jax.core.errors import InputError
from diversity_jax.llm import BatchConfig, EngineConfig
from diversity_jax.synthesis.config import GeneratorConfig, GridConfig, SynthesisConfig, TopicsConfig
from diversity_jax.synthesis.run import run
from diversity_jax.synthesis.store import Store
from tests.llm_batch_server import BatchServer
from tests.synthesis_answers import generation


def answer(system, user, schema, stage):
    return json.dumps(generation(stage, [], {"system": system, "user": user, "schema": schema, "model": "m"}))


@pytest.fixture
def provider(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-0123456789")
    monkeypatch.setenv("GEMINI_API_KEY", "test-0123456789")
    made = BatchServer(answer)
    yield made
    made.server.shutdown()


def settings(tmp_path, provider, model, **batch):
    tmp_path.mkdir(exist_ok=True)
    (tmp_path / "topics.txt").write_text("\n".join(f"field/subject {n}" for n in range(12)))
    base = f"{provider.url}/v1" if model.startswith("openai") else f"{provider.url}/gemini"
    return SynthesisConfig(
        output_dir=str(tmp_path / "out"),
        topics=TopicsConfig(source=str(tmp_path / "topics.txt")),
        grid=GridConfig(templates=("topic",), generations_per_topic=1, documents_per_round=8),
        generators=(GeneratorConfig(model=model, base_url=base, batch=True),),
        batch=BatchConfig(**({"poll_seconds": 0.05, "gather_seconds": 0.05} | batch)),
        engine=EngineConfig(progress="off"),
    )


@pytest.mark.parametrize(
    ("model", "input_price", "output_price"), [("openai:gpt-4o-mini", 0.15, 0.6), ("gemini:gemini-2.5-flash", 0.3, 2.5)]
)
def test_a_batch_answers_every_round_at_its_price(tmp_path, provider, model, input_price, output_price):
    store = run(settings(tmp_path, provider, model))
    written = list(store.documents())
    assert len({document["id"] for document in written}) == 12
    assert (provider.submitted, provider.live) == (2, 0)
    assert written[0]["cost_usd"] == pytest.approx(0.5 * (100 * input_price + 200 * output_price) / 1e6)


@pytest.mark.parametrize("model", ["openai:gpt-4o-mini", "gemini:gemini-2.5-flash"])
def test_a_run_that_ends_before_its_batch_goes_on_later(tmp_path, provider, model):
    provider.ready = False
    store = run(settings(tmp_path, provider, model, wait_seconds=0.1))
    assert list(store.documents()) == []
    assert provider.submitted == 1
    provider.ready = True
    store = run(settings(tmp_path, provider, model))
    assert len(list(store.documents())) == 12
    assert (provider.submitted, provider.live) == (2, 0)


def _child(config):
    logging.disable(logging.CRITICAL)
    run(config)


def test_killed_before_it_could_note_the_batch_it_is_found_by_its_tag(tmp_path, provider):
    provider.ready = False
    config = settings(tmp_path, provider, "openai:gpt-4o-mini")
    child = multiprocessing.get_context("fork").Process(target=_child, args=(config,))
    child.start()
    while not provider.polls and child.is_alive():
        time.sleep(0.01)
    child.kill()
    child.join()
    with contextlib.closing(sqlite3.connect(tmp_path / "out" / "ledger.sqlite")) as connection, connection:
        assert connection.execute("UPDATE batches SET name = NULL").rowcount == 1
        assert connection.execute("SELECT count(*) FROM claims WHERE owner LIKE 'batch|%'").fetchone() == (8,)
    provider.ready = True
    assert len(list(run(config).documents())) == 12
    assert (provider.submitted, provider.live) == (2, 0)
    assert len(Store(tmp_path / "out").rounds) == 2


@pytest.mark.parametrize(
    ("fallback", "calls", "prices"),
    [
        ("live", (2, 4), [(67.5, 8), (135.0, 4)]),
        ("wait", (4, 0), [(67.5, 12)]),
    ],
)
def test_what_a_batch_leaves_out_is_handed_in_again_unless_the_full_price_is_allowed(
    tmp_path, provider, caplog, fallback, calls, prices
):
    provider.leave_out = 2
    written = list(run(settings(tmp_path, provider, "openai:gpt-4o-mini", fallback=fallback)).documents())
    assert (provider.submitted, provider.live) == calls
    assert sorted(Counter(round(document["cost_usd"] * 1e6, 2) for document in written).items()) == prices
    assert "2 of 8 requests without an answer" in caplog.text
    assert "batch.fallback=live" in caplog.text


@pytest.mark.parametrize(("fallback", "batches"), [("stop", 1), ("wait", 3)])
def test_a_batch_that_is_lost_ends_the_run_before_it_spends_more(tmp_path, provider, fallback, batches):
    provider.leave_out, provider.lose_all = 8, True
    with pytest.raises(InputError, match=r"^generator: .*left requests out.*batch\.fallback=live") as caught:
        run(settings(tmp_path, provider, "openai:gpt-4o-mini", fallback=fallback))
    assert "\n" not in str(caught.value)
    assert (provider.submitted, provider.live) == (batches, 0)
