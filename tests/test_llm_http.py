"""HTTP of a provider: complete, chunked, split and truncated responses."""

import asyncio
import gzip
import re
import ssl

import aiohttp
import pytest

from diversity_jax.core.errors import InputError
from diversity_jax.llm import Request
from diversity_jax.llm.providers.base import connect, transport_failure
from diversity_jax.llm.providers.endpoint import Endpoint
from diversity_jax.llm.providers.outcomes import Transient

BODY = b'{"choices": [{"message": {"content": "a"}, "finish_reason": "stop"}], "usage": {"prompt_tokens": 1, "completion_tokens": 2}}'  # noqa: E501
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
WHOLE = HEAD + b"content-length: %d\r\n\r\n" % len(BODY) + BODY
CHUNKED = (
    HEAD
    + b"transfer-encoding: chunked\r\n\r\n3\r\n"
    + BODY[:3]
    + b"\r\n%x;note=x\r\n" % len(BODY[3:])
    + BODY[3:]
    + b"\r\n0\r\n\r\n"
)
TRAILED = CHUNKED[:-2] + b"x-trailer: 1\r\n\r\n"
TO_THE_END = HEAD + b"connection: close\r\n\r\n" + BODY
REQUEST = Request(stage="s", system="", user="ping", schema=None)


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", "k")


async def _play(script, work, path="v1", prepare=lambda port: None, url="http://127.0.0.1:{port}/{path}"):
    """Serves connections by `script(connection number, request number) -> list of pieces, or None to close`; returns
    what `work` makes of a function that asks, the number of connections, and the last request's head.
    """
    connections, head = 0, b""

    async def serve(reader, writer):
        nonlocal connections, head
        connections += 1
        number, asked = connections, 0
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                await reader.readexactly(int(re.search(rb"content-length: (\d+)", head.lower()).group(1)))
                asked += 1
                chunks = script(number, asked)
                if chunks is None:
                    break
                for chunk in chunks:
                    writer.write(chunk)
                    await writer.drain()
                    await asyncio.sleep(0.002 if len(chunks) > 1 else 0)
                if b"connection: close" in b"".join(chunks):
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    prepare(port)
    provider = connect("client", Endpoint("openai:m", url.format(port=port, path=path), "judge"), deadline_seconds=20.0)
    last = head
    async with server:
        try:
            made = await work(lambda: provider.ask(REQUEST))
            last = head
        finally:
            await provider.close()
    return made, connections, last


def play(*arguments, **settings):
    return asyncio.run(_play(*arguments, **settings))


@pytest.mark.parametrize("answer", [WHOLE, CHUNKED, TRAILED, TO_THE_END, b"HTTP/1.1 100 Continue\r\n\r\n" + WHOLE])
@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_an_answer_is_read_whole_however_it_is_cut(answer, size):
    chunks = [answer[start : start + size] for start in range(0, len(answer), size)]
    reply, *_ = play(lambda *_: chunks, lambda ask: ask())
    assert (reply.text, reply.prompt_tokens, reply.completion_tokens) == ("a", 1, 2)


def test_a_connection_is_used_again_and_those_at_once_have_their_own():
    async def work(ask):
        for _ in range(5):
            await ask()
        await asyncio.gather(*(ask() for _ in range(3)))

    assert play(lambda *_: [WHOLE], work)[1] == 3


def test_a_connection_that_the_server_closed_is_not_used_again():
    async def work(ask):
        answers = []
        for _ in range(3):
            answers.append(await ask())
            await asyncio.sleep(0.01)
        return answers

    answers, connections, _ = play(lambda *_: [TO_THE_END], work)
    assert all(answer.text == "a" for answer in answers)
    assert connections == 3


@pytest.mark.parametrize(
    ("chunks", "kind"),
    [
        (None, "dropped"),
        ([HEAD + b"content-length: 800\r\nconnection: close\r\n\r\n" + BODY], "dropped"),
        ([b"SSH-2.0-OpenSSH\r\n\r\n"], "dropped"),
        ([HEAD + b"transfer-encoding: chunked\r\n\r\nzz\r\n"], "dropped"),
        ([HEAD + b"content-length: many\r\n\r\n"], "dropped"),
        ([HEAD + b"content-length: 4\r\n\r\nnull"], "garbled"),
    ],
)
def test_a_broken_answer_is_a_failure_of_its_kind(chunks, kind):
    async def work(ask):
        with pytest.raises(Transient) as caught:
            await ask()
        assert caught.value.kind == kind
        assert caught.value.billed

    play(lambda *_: chunks, work)


def test_an_answer_that_never_ends_is_left_to_the_callers_deadline():
    async def work(ask):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(ask(), 0.3)

    play(lambda *_: [WHOLE[:-3]], work)


def test_bytes_that_are_no_utf8_are_replaced():
    body = BODY.replace(b'"a"', b'"a\xff"')
    answer = HEAD + b"content-length: %d\r\n\r\n" % len(body) + body
    assert play(lambda *_: [answer], lambda ask: ask())[0].text == "a\ufffd"


def test_compressed_answers_are_unpacked():
    packed = gzip.compress(BODY)
    answer = HEAD + b"content-encoding: gzip\r\ncontent-length: %d\r\n\r\n" % len(packed) + packed
    assert play(lambda *_: [answer], lambda ask: ask())[0].text == "a"


def test_an_answer_that_is_not_packed_as_it_says_counts_as_dropped():
    broken = HEAD + b"content-encoding: gzip\r\ncontent-length: %d\r\n\r\n" % len(BODY) + BODY
    with pytest.raises(Transient, match="decode content-encoding") as caught:
        play(lambda *_: [broken], lambda ask: ask())
    assert caught.value.kind == "dropped"


def test_a_cancelled_call_leaves_no_half_read_connection_behind():
    async def work(ask):
        slow = asyncio.create_task(ask())
        await asyncio.sleep(0.05)
        slow.cancel()
        await asyncio.gather(slow, return_exceptions=True)
        return await ask()

    reply, connections, _ = play(lambda connection, _: [WHOLE] if connection > 1 else [WHOLE[:20]], work)
    assert reply.text == "a"
    assert connections == 2


def test_nobody_listening_is_unreachable_and_not_billed():
    with pytest.raises(Transient, match=r"127\.0\.0\.1:9") as caught:
        play(lambda *_: [], lambda ask: ask(), url="http://127.0.0.1:9/v1")
    assert (caught.value.kind, caught.value.billed) == ("unreachable", False)


def test_a_request_carries_its_headers_a_clean_path_and_no_password():
    url = "http://me:secret@127.0.0.1:{port}/a b/\u00fc"
    reply, _, head = play(lambda *_: [WHOLE], lambda ask: ask(), url=url)
    assert reply.text == "a"
    assert head.startswith(
        b"POST /a%20b/%C3%BC/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:".replace(b"host", b"Host")
    )
    assert b"authorization: bearer k\r\n" in head.lower()
    assert b"secret" not in head


@pytest.mark.parametrize("scheme", ["http://", ""])
def test_a_request_goes_through_the_proxy_of_the_environment(scheme, monkeypatch):
    def name_the_proxy(port):
        monkeypatch.setenv("HTTP_PROXY", f"{scheme}127.0.0.1:{port}")

    reply, _, head = play(
        lambda *_: [WHOLE], lambda ask: ask(), prepare=name_the_proxy, url="http://nowhere.invalid/v1"
    )
    assert reply.text == "a"
    assert head.startswith(b"POST http://nowhere.invalid/v1/chat/completions HTTP/1.1")


def test_a_host_that_the_environment_excepts_is_reached_without_the_proxy(monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    assert play(lambda *_: [WHOLE], lambda ask: ask())[0].text == "a"


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("HTTPS_PROXY", "socks5://me:secret@127.0.0.1:9", r"^https_proxy or all_proxy: socks5 is no proxy of HTTP"),
        ("SSL_CERT_FILE", "/nowhere/ca.pem", r"^SSL_CERT_FILE: /nowhere/ca\.pem: no such file"),
    ],
)
def test_what_the_environment_names_wrongly_is_one_line(variable, value, says, monkeypatch):
    monkeypatch.setenv(variable, value)
    with pytest.raises(InputError, match=says) as caught:
        play(lambda *_: [], lambda ask: ask(), url="https://nowhere.invalid/v1")
    assert "secret" not in str(caught.value)


def test_a_certificate_that_is_not_trusted_is_named():
    error = aiohttp.ClientConnectorCertificateError(None, ssl.SSLCertVerificationError("unknown issuer"))
    failure = transport_failure(error, "https://host/v1")
    assert failure.kind == "unreachable"
    assert "unknown issuer" in failure.detail
    assert "SSL_CERT_FILE" in failure.detail


@pytest.mark.parametrize("url", ["nowhere", "http://", "ftp://host/v1", "http://host:99999999/v1", "http://[::1/v1"])
def test_what_is_no_address_is_none(url):
    with pytest.raises(InputError, match="is no address"):
        Endpoint("openai:m", url, "judge")
