"""Batch APIs on loopback: handed in once, found again after a kill, collected into the ledger, paid at the batch's
price.
"""

from collections import Counter
import contextlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
import json
import logging
import multiprocessing
import re
import sqlite3
import threading
import time

import pytest

from diversity_jax.core.errors import InputError
from diversity_jax.llm import BatchConfig, EngineConfig
from diversity_jax.synthesis.config import GeneratorConfig, GridConfig, SynthesisConfig, TopicsConfig
from diversity_jax.synthesis.run import run
from diversity_jax.synthesis.store import Store
from tests.llm_answers import json_schema
from tests.synthesis_answers import generation


class Provider:
    """Both providers' batch APIs, and no live ones: a live call is counted and refused."""

    def __init__(self):
        self.files, self.batches, self.submitted, self.live, self.polls = {}, {}, 0, 0, 0
        self.ready = True
        self.leave_out, self.lose_all = 0, False
        handler = type("Handler", (_Handler,), {"provider": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server.server_port}"

    def answer(self, system, user, schema, stage):
        return json.dumps(generation(stage, [], {"system": system, "user": user, "schema": schema, "model": "m"}))

    def openai_file(self, file_id):
        lines = []
        for line in self.files[file_id].splitlines():
            asked = json.loads(line)
            system, user = (message["content"] for message in asked["body"]["messages"])
            wanted = asked["body"]["response_format"]["json_schema"]
            choice = {
                "message": {"content": self.answer(system, user, wanted["schema"], wanted["name"])},
                "finish_reason": "stop",
            }
            body = {"choices": [choice], "usage": {"prompt_tokens": 100, "completion_tokens": 200}}
            lines.append(json.dumps({"custom_id": asked["custom_id"], "response": {"status_code": 200, "body": body}}))
        return "\n".join(self.kept(lines))

    def kept(self, answers):
        """What is left of a batch's answers; of small batches everything, unless all is lost."""
        return answers[self.leave_out :] if len(answers) > self.leave_out or self.lose_all else answers

    def gemini_responses(self, requests):
        found = []
        for one in requests:
            asked = one["request"]
            system = asked["systemInstruction"]["parts"][0]["text"]
            user = asked["contents"][0]["parts"][0]["text"]
            schema = json_schema(asked["generationConfig"]["responseSchema"])
            parts = [{"text": self.answer(system, user, schema, "generate_topic")}]
            candidate = {"content": {"parts": parts, "role": "model"}, "finishReason": "STOP"}
            usage = {"promptTokenCount": 100, "candidatesTokenCount": 200, "totalTokenCount": 300}
            found.append({"response": {"candidates": [candidate], "usageMetadata": usage}, "metadata": one["metadata"]})
        return self.kept(found)


class _Handler(BaseHTTPRequestHandler):
    provider: Provider

    def log_message(self, *_):
        pass

    def reply(self, value, status=200):
        body = value.encode() if isinstance(value, str) else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def openai_batch(self, name):
        batch = self.provider.batches[name]
        done = (
            {"status": "completed", "output_file_id": f"out-{batch['input_file_id']}"}
            if self.provider.ready
            else {"status": "in_progress"}
        )
        return (
            {
                "id": name,
                "object": "batch",
                "endpoint": "/v1/chat/completions",
                "completion_window": "24h",
                "created_at": 1,
            }
            | batch
            | done
        )

    def gemini_batch(self, name):
        batch = self.provider.batches[name]
        state = "BATCH_STATE_SUCCEEDED" if self.provider.ready else "BATCH_STATE_RUNNING"
        answers = (
            {"inlinedResponses": {"inlinedResponses": self.provider.gemini_responses(batch["requests"])}}
            if self.provider.ready
            else {}
        )
        metadata = {"state": state, "displayName": batch["displayName"], "name": name, "output": answers}
        return {"name": name, "done": self.provider.ready, "metadata": metadata, "response": answers}

    def do_GET(self):
        provider, path = self.provider, self.path.split("?")[0]
        if path == "/v1/models":
            self.reply({"object": "list", "data": []})
        elif path.startswith("/v1/files/"):
            self.reply(provider.openai_file(path.split("/")[3].removeprefix("out-")))
        elif path == "/v1/batches":
            self.reply(
                {"object": "list", "data": [self.openai_batch(name) for name in provider.batches], "has_more": False}
            )
        elif re.fullmatch(r"/gemini/v\w+/batches", path):
            self.reply({"operations": [self.gemini_batch(name) for name in provider.batches]})
        else:
            provider.polls += 1
            name = re.sub(r"^/gemini/v\w+/|^/v1/batches/", "", path)
            self.reply(self.gemini_batch(name) if path.startswith("/gemini/") else self.openai_batch(name))

    def do_POST(self):
        provider = self.provider
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.path == "/v1/files":
            name = f"file-{len(provider.files)}"
            content = re.search(rb'filename="[^"]+".*?\r\n\r\n(.*?)\r\n--', body, re.DOTALL).group(1)
            provider.files[name] = content.decode()
            self.reply(
                {
                    "id": name,
                    "object": "file",
                    "bytes": 1,
                    "created_at": 1,
                    "filename": "f",
                    "purpose": "batch",
                    "status": "processed",
                }
            )
        elif self.path == "/v1/batches":
            provider.submitted += 1
            asked = json.loads(body)
            name = f"batch-{provider.submitted}"
            provider.batches[name] = {"input_file_id": asked["input_file_id"], "metadata": asked["metadata"]}
            self.reply(self.openai_batch(name))
        elif ":batchGenerateContent" in self.path:
            provider.submitted += 1
            asked = json.loads(body)["batch"]
            name = f"batches/b{provider.submitted}"
            provider.batches[name] = {
                "displayName": asked["displayName"],
                "requests": asked["inputConfig"]["requests"]["requests"],
            }
            self.reply(self.gemini_batch(name))
        else:
            provider.live += 1
            if "chat/completions" not in self.path:
                return self.reply(
                    {"error": {"code": 400, "message": "no live calls here", "status": "INVALID_ARGUMENT"}}, 400
                )
            asked = json.loads(body)
            wanted = asked["response_format"]["json_schema"]
            text = provider.answer(
                *(message["content"] for message in asked["messages"]), wanted["schema"], wanted["name"]
            )
            usage = {"prompt_tokens": 100, "completion_tokens": 200}
            self.reply({"choices": [{"message": {"content": text}, "finish_reason": "stop"}], "usage": usage})


@pytest.fixture
def provider(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-0123456789")
    monkeypatch.setenv("GEMINI_API_KEY", "test-0123456789")
    made = Provider()
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
    found = list(store.documents())
    assert len({one["id"] for one in found}) == 12
    assert (provider.submitted, provider.live) == (2, 0)
    assert found[0]["cost_usd"] == pytest.approx(0.5 * (100 * input_price + 200 * output_price) / 1e6)


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
    with contextlib.closing(sqlite3.connect(tmp_path / "out" / "ledger.sqlite")) as ledger, ledger:
        assert ledger.execute("UPDATE batches SET name = NULL").rowcount == 1
        assert ledger.execute("SELECT count(*) FROM claims WHERE owner LIKE 'batch|%'").fetchone() == (8,)
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
    found = list(run(settings(tmp_path, provider, "openai:gpt-4o-mini", fallback=fallback)).documents())
    assert (provider.submitted, provider.live) == calls
    assert sorted(Counter(round(one["cost_usd"] * 1e6, 2) for one in found).items()) == prices
    assert "2 of 8 requests without an answer" in caplog.text
    assert "batch.fallback=live" in caplog.text


@pytest.mark.parametrize(("fallback", "batches"), [("stop", 1), ("wait", 3)])
def test_a_batch_that_is_lost_ends_the_run_before_it_spends_more(tmp_path, provider, fallback, batches):
    provider.leave_out, provider.lose_all = 8, True
    with pytest.raises(InputError, match=r"^generator: .*left requests out.*batch\.fallback=live") as caught:
        run(settings(tmp_path, provider, "openai:gpt-4o-mini", fallback=fallback))
    assert "\n" not in str(caught.value)
    assert (provider.submitted, provider.live) == (batches, 0)
