#!/usr/bin/env bash
# google-genai 3.4.0 with aiohttp 3.14.5, Python 3.11, no retry options set.
#
# Expected: nothing is sent twice unless http_options.retry_options asks for it, and the synchronous and the
# asynchronous client differ in nothing else: a connection that closes before an answer is an error in both.
# Seen: the synchronous client raises; the asynchronous one waits one to ten seconds and sends the same generation again,
# without a log line, so a budget that counts calls misses one and a request that was worked on is paid twice.
# With retry_options=HttpRetryOptions(attempts=1) it still counts one request.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check google-genai==3.4.0 aiohttp==3.14.5
"$folder/venv/bin/python" - <<'PY'
import asyncio
import json
import re
import socket
import threading

from google import genai
from google.genai import types

ANSWER = {
    "candidates": [{"content": {"parts": [{"text": "yes"}], "role": "model"}, "finishReason": "STOP"}],
    "usageMetadata": {"promptTokenCount": 1, "candidatesTokenCount": 1, "totalTokenCount": 2},
}


def serve(listener, requests):
    """Reads every request whole; closes the first connection without an answer, and answers the others."""
    while True:
        connection, _ = listener.accept()
        data = b""
        while b"\r\n\r\n" not in data:
            data += connection.recv(65536)
        head, _, body = data.partition(b"\r\n\r\n")
        size = int(re.search(rb"content-length: (\d+)", head, re.I).group(1))
        while len(body) < size:
            body += connection.recv(65536)
        requests.append(body)
        if len(requests) > 1:
            answer = json.dumps(ANSWER).encode()
            connection.sendall(
                b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n"
                + f"content-length: {len(answer)}\r\n\r\n".encode()
                + answer
            )
        connection.close()


def call(is_async, **options):
    """(requests that arrived, what the caller got)."""
    requests = []
    listener = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=serve, args=(listener, requests), daemon=True).start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    client = genai.Client(api_key="none", http_options=types.HttpOptions(base_url=url, **options))
    try:
        if is_async:
            got = asyncio.run(client.aio.models.generate_content(model="m", contents="hello")).text
        else:
            got = client.models.generate_content(model="m", contents="hello").text
    except Exception as error:
        got = type(error).__name__
    return len(requests), got


once = types.HttpRetryOptions(attempts=1)
sync, plain, limited = call(False), call(True), call(True, retry_options=once)
print(f"google-genai {genai.__version__}: sync {sync}, async {plain}, async with attempts=1 {limited}")
assert sync[0] == 1 and sync[1] != "yes", "the synchronous client has changed"
assert plain == (2, "yes"), "the asynchronous client no longer sends again by itself"
PY
