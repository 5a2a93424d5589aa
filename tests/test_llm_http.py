"""HTTP as servers speak it: whole, chunked, in pieces, closed early."""

import asyncio

import httpx
import pytest

from diversity_jax.llm.providers.base import Transient
from diversity_jax.llm.providers.http import DirectTransport, JsonPost, client_for

BODY = b'{"a": 1}'
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
WHOLE = HEAD + b"content-length: 8\r\n\r\n" + BODY
CHUNKED = (
    HEAD + b"transfer-encoding: chunked\r\n\r\n3\r\n" + BODY[:3] + b"\r\n5;note=x\r\n" + BODY[3:] + b"\r\n0\r\n\r\n"
)
TRAILED = CHUNKED[:-2] + b"x-trailer: 1\r\n\r\n"
TO_THE_END = HEAD + b"connection: close\r\n\r\n" + BODY


async def _play(script, work, timeout=20.0):
    """Serves connections by `script(connection number, request number) -> list of pieces, or None to close`."""
    connections = 0

    async def serve(reader, writer):
        nonlocal connections
        connections += 1
        number, asked = connections, 0
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                await reader.readexactly(4)
                asked += 1
                pieces = script(number, asked)
                if pieces is None:
                    break
                for piece in pieces:
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(0.002 if len(pieces) > 1 else 0)
                if b"connection: close" in b"".join(pieces):
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    async with server, client_for(httpx, url) as client:
        return await work(lambda: client.post(url, content=b"ping", timeout=timeout)), connections


def play(*arguments, **settings):
    return asyncio.run(_play(*arguments, **settings))


@pytest.mark.parametrize("answer", [WHOLE, CHUNKED, TRAILED, TO_THE_END, b"HTTP/1.1 100 Continue\r\n\r\n" + WHOLE])
@pytest.mark.parametrize("piece", [1, 7, 10_000])
def test_an_answer_is_read_whole_however_it_is_cut(answer, piece):
    pieces = [answer[start : start + piece] for start in range(0, len(answer), piece)]
    response, _ = play(lambda *_: pieces, lambda post: post())
    assert response.json() == {"a": 1}


def test_a_connection_is_used_again_and_those_at_once_have_their_own():
    async def work(post):
        for _ in range(5):
            await post()
        await asyncio.gather(*(post() for _ in range(3)))

    assert play(lambda *_: [WHOLE], work)[1] == 3


def test_a_connection_that_the_server_closed_is_not_used_again():
    async def work(post):
        answers = []
        for _ in range(3):
            answers.append(await post())
            await asyncio.sleep(0.01)
        return answers

    answers, connections = play(lambda *_: [TO_THE_END], work)
    assert all(answer.status_code == 200 for answer in answers)
    assert connections == 3


@pytest.mark.parametrize(
    ("pieces", "error"),
    [
        (None, httpx.ReadError),
        ([WHOLE[:-3]], httpx.ReadTimeout),
        ([HEAD + b"content-length: 80\r\nconnection: close\r\n\r\n" + BODY], httpx.ReadError),
        ([b"SSH-2.0-OpenSSH\r\n\r\n"], httpx.RemoteProtocolError),
        ([HEAD + b"transfer-encoding: chunked\r\n\r\nzz\r\n"], httpx.RemoteProtocolError),
        ([HEAD + b"content-length: many\r\n\r\n"], httpx.RemoteProtocolError),
    ],
)
def test_a_broken_answer_is_the_error_httpx_has_for_it(pieces, error):
    async def work(post):
        with pytest.raises(error):
            await post()

    play(lambda *_: pieces, work, timeout=0.5)


def test_compressed_answers_are_unpacked():
    import gzip

    packed = gzip.compress(BODY)
    answer = HEAD + b"content-encoding: gzip\r\ncontent-length: %d\r\n\r\n" % len(packed) + packed
    assert play(lambda *_: [answer], lambda post: post())[0].json() == {"a": 1}


def test_a_cancelled_call_leaves_no_half_read_connection_behind():
    async def work(post):
        slow = asyncio.create_task(post())
        await asyncio.sleep(0.05)
        slow.cancel()
        await asyncio.gather(slow, return_exceptions=True)
        return await post()

    response, connections = play(lambda connection, _: [WHOLE] if connection > 1 else [WHOLE[:20]], work)
    assert response.json() == {"a": 1}
    assert connections == 2


def test_nobody_listening_is_a_connection_error():
    async def go():
        async with httpx.AsyncClient(transport=DirectTransport(httpx)) as client:
            with pytest.raises(httpx.ConnectError):
                await client.post("http://127.0.0.1:9/", content=b"x")

    asyncio.run(go())


def test_a_proxy_of_the_environment_is_used(monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    assert type(client_for(httpx, "https://api.openai.com/v1")) is httpx.AsyncClient
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    assert type(client_for(httpx, "http://127.0.0.1:1/v1")) is not httpx.AsyncClient


async def _post(answer, url, prepare=lambda port: None):
    """What `JsonPost` makes of one answer, and the bytes of its request."""
    asked = []

    async def serve(reader, writer):
        asked.append(await reader.readuntil(b"\r\n\r\n") + await reader.readexactly(4))
        writer.write(answer)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    prepare(port)
    async with server:
        post = JsonPost(url.format(port=port), {"authorization": "Bearer k"})
        try:
            return await post(b"ping", 5.0), asked[0]
        finally:
            await post.aclose()


def test_a_post_carries_its_headers_a_clean_path_and_no_password():
    (status, headers, body), asked = asyncio.run(_post(WHOLE, "http://me:secret@127.0.0.1:{port}/a b/\u00fc?x=1"))
    assert (status, headers["content-type"], body) == (200, "application/json", BODY)
    assert asked.startswith(b"POST /a%20b/%C3%BC?x=1 HTTP/1.1\r\nhost: 127.0.0.1:")
    assert asked.endswith(b"content-length: 4\r\n\r\nping")
    assert b"authorization: Bearer k\r\n" in asked
    assert b"secret" not in asked


def test_a_post_goes_through_the_proxy_of_the_environment(monkeypatch):
    def name_the_proxy(port):
        monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{port}")

    (_, _, body), asked = asyncio.run(_post(WHOLE, "http://nowhere.invalid/v1", name_the_proxy))
    assert body == BODY
    assert asked.startswith(b"POST http://nowhere.invalid/v1 HTTP/1.1")


def test_an_answer_that_is_not_packed_as_it_says_counts_as_dropped():
    broken = HEAD + b"content-encoding: gzip\r\ncontent-length: 8\r\n\r\n" + BODY
    with pytest.raises(Transient, match="decompress"):
        asyncio.run(_post(broken, "http://127.0.0.1:{port}/v1"))


@pytest.mark.parametrize("url", ["nowhere", "http://", "ftp://host/v1", "http://host:99999999/v1", "http://[::1/v1"])
def test_what_is_no_address_is_none(url):
    with pytest.raises(ValueError, match=r"http|ort|IPv6"):
        JsonPost(url, {})
