"""Hostile and broken clients of the server do not affect other clients."""

from concurrent.futures import ThreadPoolExecutor
import dataclasses
import http.client
import json
import socket

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
import jax
import pytest

from diversity_jax.core.errors import InputError
from diversity_jax.evaluation.config import ServeConfig
from diversity_jax.serving import worker
from diversity_jax.serving.requests import NO_EFFECT, REFUSED, CompletionBody
from diversity_jax.serving.server import _key
from tests.evaluation_items import byte_model
from tests.processes import wait_until
from tests.running_server import post, running

ASK = {"model": "tiny", "prompt": "ab", "max_tokens": 2}
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "max_tokens": 2}
HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
PAGE, FRIEND = "https://page.example", "https://friend.example"


@pytest.fixture(scope="module")
def served():
    """(port, service) that is let into by a page, a name and a key."""
    limits = {"max_body_bytes": 1 << 14, "max_bodies_bytes": 1 << 15, "read_seconds": 1.0}
    with running(byte_model(), allow_origin=(FRIEND,), allow_host=("models.example",), **limits) as server:
        yield server


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost"}, 200),
        ({"Host": "LOCALHOST:1234"}, 200),
        ({"Host": "[::1]:8000"}, 200),
        ({"Host": "models.example"}, 200),
        ({"Host": "rebound.example"}, 403),
        ({"Host": "127.0.0.1.rebound.example"}, 403),
        ({"Host": "192.0.2.1"}, 403),
        ({"Host": "localhost@rebound.example"}, 403),
        ({"Host": ""}, 403),
        ({"Origin": FRIEND}, 200),
        ({"Origin": "http://localhost:8000", "Host": "localhost:8000"}, 200),
        ({"Origin": PAGE}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": FRIEND + ".page.example"}, 403),
        ({"Origin": "http://localhost:3000"}, 403),
        ({"Content-Type": "application/json; charset=utf-8"}, 200),
        ({"Content-Type": None}, 415),
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
        ({"Content-Type": "multipart/form-data; boundary=x"}, 415),
        ({"Content-Type": "application/json; charset=utf-16"}, 415),
    ],
)
def test_a_page_reaches_the_server_only_where_it_is_let_in(served, headers, status):
    code, answer = post(served[0], "/v1/completions", ASK, headers=headers)
    assert code == status
    assert status == 200 or "\n" not in answer["message"]


def raw(port, method, headers):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request(method, "/v1/completions", json.dumps(ASK) if method == "POST" else None, headers)
    answer = connection.getresponse()
    return answer.status, dict(answer.getheaders()), answer.read()


def test_browsers_are_told_what_a_page_may_do(served):
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type,x-stainless-os"}
    status, headers, _ = raw(served[0], "OPTIONS", asked | {"Origin": FRIEND})
    assert (status, headers["Access-Control-Allow-Origin"]) == (204, FRIEND)
    assert headers["Access-Control-Allow-Headers"] == "content-type,x-stainless-os"
    status, headers, _ = raw(served[0], "OPTIONS", asked | {"Origin": PAGE})
    assert status == 403
    assert not any(name.lower().startswith("access-control") for name in headers)
    for extra in ({}, {"Content-Type": "text/plain"}):  # errors can be read by the page too
        _, headers, _ = raw(served[0], "POST", {"Content-Type": "application/json", "Origin": FRIEND, **extra})
        assert headers["Access-Control-Allow-Origin"] == FRIEND
    assert headers["Server"] == "diversity_jax"


def test_a_key_is_asked_for_and_never_shown(monkeypatch, caplog):
    key = "harmless-marker-key"
    with running(byte_model(), key=key) as (port, _):
        for sent, status in ((None, 401), ("Bearer wrong", 401), (f"Basic {key}", 401), (f"Bearer {key}", 200)):
            code, answer = post(port, "/v1/completions", ASK, headers={"Authorization": sent})
            assert (code, key in str(answer)) == (status, False)
        assert post(port, "/openapi.json", None, method="GET")[0] == 401
        assert post(port, "/health", None, method="GET")[0] == 200
    assert key not in caplog.text
    monkeypatch.setenv("SERVER_KEY", key)
    assert _key(ServeConfig(api_key="SERVER_KEY")) == key
    with pytest.raises(InputError, match="name the variable, not the key") as error:
        _key(ServeConfig(api_key=key))
    assert key not in str(error.value)


@pytest.mark.parametrize(
    "sent",
    [
        HEAD,
        b"",
        HEAD + b"Content-Length: 99\r\n\r\n{",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n",
    ],
    ids=["half a head", "nothing", "half a body", "half a chunked body"],
)
def test_half_a_request_is_dropped(served, sent):
    with socket.create_connection(("127.0.0.1", served[0]), timeout=30) as connection:
        connection.sendall(sent)
        received = b""
        while part := connection.recv(4096):
            received += part
    assert (b" 408 " in received) == (b"\r\n\r\n" in sent)


def test_bodies_are_bounded_each_and_together(served):
    port, service = served
    assert post(port, "/v1/completions", {**ASK, "prompt": "x" * (1 << 15)})[0] == 413
    connections = [socket.create_connection(("127.0.0.1", port)) for _ in range(2)]
    for connection in connections:
        connection.sendall(HEAD + b"Content-Length: 16000\r\n\r\n" + b" " * 15_900)
    wait_until(lambda: service._bodies._held_bytes == 2 * 15_900, seconds=30)
    status, error = post(port, "/v1/completions", {**ASK, "prompt": "x" * 2000})
    assert (status, error["code"]) == (429, "rate_limit_exceeded")
    for connection in connections:
        connection.close()
    wait_until(lambda: service._bodies._held_bytes == 0, seconds=30)
    assert post(port, "/v1/completions", ASK)[0] == 200


def test_an_exception_fails_its_batch_alone_and_health_tells_the_truth(monkeypatch):
    monkeypatch.setattr(worker, "_RESTART_SECONDS", (0.05, 0.05))
    with running(byte_model(), slots=2) as (port, service):
        generator = service.worker.generator
        works, broken = generator._decode, {"calls": 1}

        def breaks(*arguments, **options):
            if broken["calls"]:
                broken["calls"] -= 1
                wait_until(lambda: broken["calls"] > 1 or generator.load > generator.slots, seconds=30)
                raise RuntimeError(f"secret of {__file__}")
            return works(*arguments, **options)

        monkeypatch.setattr(generator, "_decode", breaks)
        with ThreadPoolExecutor(2) as pool:
            together = pool.submit(post, port, "/v1/completions", {**ASK, "prompt": ["a"] * generator.slots})
            wait_until(lambda: generator.load == generator.slots, seconds=30)
            waits = pool.submit(post, port, "/v1/completions", ASK)
            status, error = together.result()
            assert (status, error["type"]) == (500, "server_error")
            assert waits.result()[0] == 200
        assert post(port, "/health", None, method="GET")[0] == 200
        assert post(port, "/v1/completions", ASK)[0] == 200
        broken["calls"] = 1 << 60
        assert post(port, "/v1/completions", ASK)[0] in (500, 503)
        wait_until(lambda: service.worker.problem, seconds=30)
        status, answer = post(port, "/health", None, method="GET")
        assert (status, answer["status"]) == (503, "failed")
        assert "RuntimeError" in answer["reason"]
        status, error = post(port, "/v1/completions", ASK)
        assert status == 503
        assert "secret" not in str(answer) + str(error)
        broken["calls"] = 0
        wait_until(lambda: service.worker.problem is None, seconds=30)
        assert post(port, "/v1/completions", ASK)[0] == 200


def test_a_model_whose_figures_are_no_numbers_answers_with_none():
    model = byte_model()
    model = dataclasses.replace(model, params=jax.tree.map(lambda leaf: leaf * float("nan"), model.params))
    with running(model) as (port, _):
        for fields in ({}, {"regex": "[a-z]+"}, {"echo": True, "logprobs": 1, "max_tokens": 0}):
            status, error = post(port, "/v1/completions", {**ASK, **fields})
            assert status == 500
            assert "a log-probability that is not a number" in error["message"]


INTEGERS = st.integers(-(10**400), 10**400) | st.sampled_from([2**31 - 1, 2**31, -(2**31) - 1, 2**63, 2**64, 10**310])
SCALARS = st.none() | st.booleans() | INTEGERS | st.floats() | st.text(max_size=8)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
NAMES = sorted(
    {*CompletionBody.model_fields, "top_logprobs", "max_completion_tokens", "messages", *REFUSED, *NO_EFFECT}
)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/tokenize"])
@pytest.mark.parametrize("message", [0, None, "x", [None, None], [{"role": "user"}], {"role": "user", "content": 3}])
def test_what_is_no_message_is_refused(served, path, message):
    status, answer = post(served[0], path, {"model": "tiny", "messages": [CHAT["messages"][0], message]})
    assert status == 400
    assert answer["message"].startswith("messages[1]")


@given(st.booleans(), st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=8), VALUES, max_size=3))
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_request_gets_a_500_and_none_ends_the_server(served, chat, fields):
    port, service = served
    path, plain = ("/v1/chat/completions", CHAT) if chat else ("/v1/completions", ASK)
    body = json.dumps({**plain, **{name: value for name, value in fields.items() if name != "stream"}}).encode()
    status, answer = post(port, path, body)
    assert status in (200, 400, 404, 413, 429)
    assert status == 200 or (set(answer) == {"message", "type", "param", "code"} and "\n" not in answer["message"])
    assert status == 200 or len(answer["message"]) < 1000
    if status == 200:  # what was accepted was read, or changes nothing
        assert {name for name, value in fields.items() if value is not None} <= set(NAMES)
    assert service.worker.problem is None
