"""The server with the openai client: answers, streams, stop texts, load, disconnects and invalid requests."""

from concurrent.futures import ThreadPoolExecutor
import dataclasses
import http.client
import json
import os
from pathlib import Path
import signal
import socket
import subprocess
import sys
from types import SimpleNamespace

import pytest

from diversity_jax.evaluation.generate import Generator
from diversity_jax.evaluation.generation_request import TokenLogprob
from diversity_jax.evaluation.sampling import Sampling
from diversity_jax.model.convert import write_imported
from diversity_jax.serving.constraints import Grammars
from diversity_jax.serving.description import ChoiceWriter, token_text
from diversity_jax.serving.requests import chat_prompt
from diversity_jax.tokenizers.chat_template import render_chat
from diversity_jax.tokenizers.tokenizer import for_run, load_tokenizer
from tests.evaluation_items import byte_model
from tests.processes import wait_until
from tests.running_server import post, running
from tests.small_llama import random_params
from tests.test_model_gguf import train_sentencepiece

MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def served():
    """(port, service) of a server in a thread."""
    with running(byte_model(), max_body_bytes=1 << 16, max_bodies_bytes=1 << 18) as server:
        yield server


@pytest.fixture
def client(served):
    import openai

    return openai.OpenAI(base_url=f"http://127.0.0.1:{served[0]}/v1", api_key="none", max_retries=0, timeout=120)


def expected(prompt: str, **settings) -> str:
    model = byte_model()
    return Generator(model, slots=8, steps=4).generate([model.tokenizer.encode(prompt)], Sampling(**settings))[0].text


def test_completions_and_chats_are_what_the_generator_gives_whole_and_streamed(client, served):
    model = served[1].model
    asked = {"model": "tiny", "max_tokens": 12, "temperature": 0, "extra_body": {"ignore_eos": True}}
    response = client.completions.create(prompt="abc", **asked)
    assert response.choices[0].text == expected("abc", max_tokens=12, ignore_end=True)
    assert (response.usage.prompt_tokens, response.usage.completion_tokens, response.choices[0].finish_reason) == (
        3,
        12,
        "length",
    )
    streamed = list(client.completions.create(prompt="abc", stream=True, **asked))
    assert "".join(chunk.choices[0].text for chunk in streamed) == response.choices[0].text
    chat = client.chat.completions.create(messages=MESSAGES, **asked)
    prompt = render_chat(MESSAGES)
    assert chat.choices[0].message.content == expected(prompt, max_tokens=12, ignore_end=True)
    assert chat.usage.prompt_tokens == len(model.tokenizer.encode(prompt))
    chunks = list(
        client.chat.completions.create(messages=MESSAGES, stream=True, stream_options={"include_usage": True}, **asked)
    )
    assert (
        "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        == chat.choices[0].message.content
    )
    assert chunks[-1].usage.completion_tokens == 12
    assert [model.id for model in client.models.list()] == ["tiny"]


def test_answers_end_before_stop_strings(client):
    asked = {"model": "tiny", "max_tokens": 30, "temperature": 0, "extra_body": {"ignore_eos": True}}
    free = client.completions.create(prompt="abc", **asked).choices[0].text
    stop = free[6:8]
    for stream in (False, True):
        response = client.completions.create(prompt="abc", stop=[stop], stream=stream, **asked)
        parts = list(response) if stream else [response]
        assert "".join(part.choices[0].text for part in parts) == free[: free.find(stop)]
        assert parts[-1].choices[0].finish_reason == "stop"


def test_choices_have_their_own_seeds_and_repeat(client):
    asked = {"model": "tiny", "prompt": ["ab", "cd"], "n": 2, "seed": 5, "max_tokens": 8, "temperature": 1.0}
    first, again = client.completions.create(**asked), client.completions.create(**asked)
    texts = [choice.text for choice in first.choices]
    assert texts == [choice.text for choice in again.choices]
    assert len(set(texts)) == 4


def test_sixty_four_clients_at_once_each_get_their_own_answer(client):
    prompts = [f"{number} is a number" for number in range(64)]

    def ask(prompt):
        return client.completions.create(
            model="tiny", prompt=prompt, max_tokens=5, temperature=0, extra_body={"ignore_eos": True}
        )

    with ThreadPoolExecutor(64) as pool:
        answers = [response.choices[0].text for response in pool.map(ask, prompts)]
    model = byte_model()
    alone = Generator(model, slots=8, steps=4).generate(
        [model.tokenizer.encode(prompt) for prompt in prompts], Sampling(max_tokens=5, ignore_end=True)
    )
    assert answers == [answer.text for answer in alone]


ASK = {"model": "tiny", "prompt": "ab", "max_tokens": 2}
NONSENSE = [
    ("/v1/completions", b"{", 400, "not JSON"),
    ("/v1/completions", b"\xff\xfe", 400, "not JSON"),
    ("/v1/completions", b"[" * 60000, 400, "not JSON"),
    ("/v1/completions", b"[]", 400, "expected a JSON object"),
    ("/v1/completions", {**ASK, "model": "other"}, 404, "does not exist"),
    ("/v1/completions", {"prompt": "ab"}, 400, "model is missing"),
    ("/v1/completions", {"model": "tiny"}, 400, "prompt is missing"),
    ("/v1/completions", {**ASK, "prompt": 7}, 400, "expected str or list"),
    ("/v1/completions", {**ASK, "prompt": []}, 400, "prompt is empty"),
    ("/v1/completions", {**ASK, "prompt": [[5], "a", None]}, 400, "prompt: expected"),
    ("/v1/completions", {**ASK, "prompt": [5, 999]}, 400, "ids must be from 0"),
    ("/v1/completions", {**ASK, "prompt": "\ud800"}, 400, "not JSON (unexpected end of hex escape"),
    ("/v1/completions", {**ASK, "prompt": "x" * 400}, 400, "context holds 256"),
    ("/v1/completions", {**ASK, "max_tokens": 0}, 400, "needs echo"),
    ("/v1/completions", {**ASK, "max_tokens": "many"}, 400, "max_tokens is str"),
    ("/v1/completions", {**ASK, "temperature": -1}, 400, "temperature"),
    ("/v1/completions", b'{"model": "tiny", "prompt": "ab", "temperature": NaN}', 400, "not JSON (expected value"),
    ("/v1/completions", {**ASK, "top_p": 2}, 400, "top_p"),
    ("/v1/completions", {**ASK, "n": 0}, 400, "n=0"),
    ("/v1/completions", {**ASK, "n": 10_000}, 400, "n=10000"),
    ("/v1/completions", {**ASK, "stop": [1]}, 400, "stop: expected"),
    ("/v1/completions", {**ASK, "logit_bias": {"5": 1}}, 400, "not supported"),
    ("/v1/completions", {**ASK, "prompt": "y" * 70_000}, 413, "too large"),
    ("/v1/chat/completions", {"model": "tiny", "messages": []}, 400, "at least one"),
    ("/v1/chat/completions", {"model": "tiny", "messages": "hi"}, 400, "messages is str"),
    ("/v1/chat/completions", {"model": "tiny", "messages": [{"role": "king", "content": "x"}]}, 400, "role"),
    (
        "/v1/chat/completions",
        {"model": "tiny", "messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        400,
        "only parts of type text",
    ),
    ("/v1/chat/completions", {"model": "tiny", "messages": [{"role": "tool", "content": "x"}]}, 400, "chat template"),
    (
        "/v1/chat/completions",
        {"model": "tiny", "messages": [{"role": "user", "content": "x" * 300}]},
        400,
        "context holds 256",
    ),
    (
        "/v1/chat/completions",
        {"model": "tiny", "messages": MESSAGES, "response_format": {"type": "json_schema"}},
        400,
        "json_schema.schema",
    ),
    ("/v1/chat/completions", {"model": "tiny", "messages": MESSAGES, "top_logprobs": 2}, 400, "needs logprobs"),
    ("/v1/completions", {**ASK, "logprobs": 99}, 400, "logprobs=99"),
    ("/v1/embeddings", ASK, 404, "no such path"),
]


CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
CALLED = [{"role": "user", "content": "x"}, {"role": "assistant", "content": None, "tool_calls": [CALL]}]
NONSENSE += [
    ("/v1/chat/completions", {"model": "tiny", "messages": CALLED}, 400, "messages[1].tool_calls: this model's"),
    ("/v1/chat/completions", {"model": "tiny", "messages": [{"role": "user", "content": None}]}, 400, "[0].content"),
    ("/v1/chat/completions", {"model": "tiny", "messages": MESSAGES, "max_tokens": 0}, 400, "at least 1"),
    ("/v1/chat/completions", {"model": "tiny", "messages": MESSAGES, "tools": [CALL]}, 400, "tools is not supported"),
    ("/v1/completions", {**ASK, "max_tokns": 5}, 400, "the field 'max_tokns' is not known"),
    ("/v1/completions", {**ASK, "repetition_penalty": 1.1}, 400, "repetition_penalty is not supported"),
    ("/v1/completions", {**ASK, "prompt_logprobs": 1}, 400, "prompt_logprobs is not supported"),
    ("/v1/completions", {**ASK, "top_k": 2**31}, 400, "top_k=2147483648"),
    ("/v1/completions", {**ASK, "seed": 10**400}, 400, "seed=an integer of 80 digits or more"),
    ("/v1/completions", {**ASK, "temperature": 10**400}, 400, "temperature"),
    ("/v1/completions", {**ASK, "min_tokens": 3}, 400, "min_tokens=3: must be from 0 to max_tokens=2"),
    ("/v1/completions", {**ASK, "stop": "x" * 257}, 400, "at most 256 characters"),
    ("/v1/completions", {**ASK, "stream_options": {"include_usage": 1}}, 400, "stream_options"),
]


@pytest.mark.parametrize(("path", "body", "status", "message"), NONSENSE)
def test_nonsense_gets_its_code_and_one_line(served, path, body, status, message):
    code, error = post(served[0], path, body)
    assert code == status
    assert message in error["message"]
    assert "\n" not in error["message"]
    assert error["type"] == "invalid_request_error"


def test_a_compressed_body_is_refused(served):
    code, error = post(served[0], "/v1/completions", ASK, headers={"Content-Encoding": "gzip"})
    assert code == 415
    assert "send the body as it is" in error["message"]


def test_token_texts_beside_log_probabilities_join_to_the_text(client, tmp_path):
    response = client.completions.create(
        model="tiny", prompt="ab", max_tokens=6, logprobs=2, temperature=0, extra_body={"ignore_eos": True}
    )
    given = response.choices[0].logprobs
    assert given.text_offset == [len("".join(given.tokens[:number])) for number in range(6)]
    assert all(1 <= len(top) <= 2 for top in given.top_logprobs)  # broken characters read alike
    assert given.token_logprobs == [pytest.approx(max(top.values())) for top in given.top_logprobs]
    tokenizer = for_run(load_tokenizer(str(train_sentencepiece(tmp_path / "pieces.model"))))
    prompt, text = "bake noke", " treitan sulr bamita"
    before = tokenizer.encode(prompt)
    ids = tokenizer.encode(prompt + text)
    logprobs = [
        TokenLogprob(token=token, before=ids[index - 1], logprob=-1.0)
        for index, token in enumerate(ids)
        if index >= len(before)
    ]
    assert "".join(token_text(tokenizer, scored.before, scored.token) for scored in logprobs) == text


def test_bytes_beside_log_probabilities_join_to_the_text_where_a_token_is_a_part_of_a_character():
    tokenizer, text = byte_model().tokenizer, "a \U0001f99c \u4f60"
    ids = tokenizer.encode(f" {text}")
    scored = [
        TokenLogprob(token=ids[i], before=ids[i - 1], logprob=-1.0, top=((ids[i], -1.0),)) for i in range(1, len(ids))
    ]
    request = SimpleNamespace(chat=True, sampling=[Sampling(top_logprobs=1)])
    written = ChoiceWriter(tokenizer, request, 0, Grammars(tokenizer).token_bytes).write(text, scored, None)
    for given in (written["logprobs"]["content"], [each["top_logprobs"][0] for each in written["logprobs"]["content"]]):
        assert b"".join(bytes(token["bytes"]) for token in given).decode() == text


def test_another_method_and_the_health_of_a_server_that_met_all_that(served):
    connection = http.client.HTTPConnection("127.0.0.1", served[0], timeout=60)
    connection.request("GET", "/v1/completions")
    answer = connection.getresponse()
    assert (answer.status, answer.getheader("Allow")) == (405, "POST")
    answer.read()
    connection.request("GET", "/health")
    assert json.loads(connection.getresponse().read())["status"] == "ok"
    assert post(served[0], "/v1/completions", ASK)[0] == 200


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_hangs_up_frees_its_slot(served, stream):
    body = json.dumps({**ASK, "max_tokens": 250, "n": 64, "stream": stream, "ignore_eos": True}).encode()
    head = (
        "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: "
        f"{len(body)}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", served[0])) as connection:
        connection.sendall(head.encode() + body)
        wait_until(lambda: served[1].worker.generator.load >= 8, seconds=60)
    wait_until(lambda: served[1].worker.generator.load == 0, seconds=60)
    assert post(served[0], "/v1/completions", ASK)[0] == 200


def test_an_echo_is_scored_whole_and_streamed(served):
    asked = {**ASK, "prompt": ["abc", [100, 101, 102]], "max_tokens": 3, "echo": True, "logprobs": 2, "temperature": 0}
    choices = post(served[0], "/v1/completions", asked)[1]["choices"]
    assert choices[0]["logprobs"] == choices[1]["logprobs"]
    assert choices[0]["text"][:3] == "abc"
    given = choices[0]["logprobs"]
    assert given["tokens"][:3] == ["a", "b", "c"]
    assert given["token_logprobs"][0] is given["top_logprobs"][0] is None
    assert given["text_offset"] == [len("".join(given["tokens"][:n])) for n in range(len(given["tokens"]))]
    prompt_alone = post(served[0], "/v1/completions", asked | {"max_tokens": 0})[1]["choices"][0]
    assert prompt_alone["logprobs"]["token_logprobs"] == given["token_logprobs"][:3]
    assert (prompt_alone["text"], prompt_alone["finish_reason"]) == ("abc", "length")
    connection = http.client.HTTPConnection("127.0.0.1", served[0], timeout=60)
    body = json.dumps(asked | {"stream": True, "prompt": "abc"})
    connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
    lines = connection.getresponse().read().decode().split("\n\n")[:-2]
    chunks = [json.loads(line.removeprefix("data: "))["choices"][0] for line in lines]
    assert "".join(chunk["text"] for chunk in chunks) == choices[0]["text"]
    for name in given:
        assert [value for chunk in chunks if chunk["logprobs"] for value in chunk["logprobs"][name]] == given[name]


def test_roles_and_parts_that_templates_do_not_know(served):
    def text(*messages):
        asked = {"model": "tiny", "messages": messages, "temperature": 0, "max_tokens": 8, "ignore_eos": True}
        return post(served[0], "/v1/chat/completions", asked)[1]["choices"][0]["message"]["content"]

    parts = [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}]
    assert text({"role": "developer", "content": parts}, MESSAGES[1]) == text(*MESSAGES)
    calls = "{% for c in m.tool_calls %}{{ c.function.arguments.x }}{% endfor %}"
    template = "{% for m in messages %}{{ m.role }}:{{ m.content }}" + calls + ";{% endfor %}"
    tokenizer = dataclasses.replace(byte_model().tokenizer, chat_template=template)
    model = dataclasses.replace(byte_model(), tokenizer=tokenizer)
    assert chat_prompt(CALLED, model).text == "user:x;assistant:1;"


def test_before_min_tokens_nothing_ends_an_answer(served):
    free = expected("abc", max_tokens=30, ignore_end=True)
    asked = {**ASK, "prompt": "abc", "temperature": 0, "max_tokens": 30, "ignore_eos": True, "stop": [free[2:4]]}
    short, long = (post(served[0], "/v1/completions", asked | {"min_tokens": n})[1] for n in (0, 25))
    assert short["usage"]["completion_tokens"] < 25 <= long["usage"]["completion_tokens"]
    generator = served[1].worker.generator
    ends = generator.model.tokenizer.end_of_text_id
    draws = [Sampling(max_tokens=12, min_tokens=12, temperature=5.0, seed=seed) for seed in range(64)]
    assert not any(ends in answer.tokens[:11] for answer in Generator(generator.model).generate([[5]] * 64, draws))


def test_more_than_may_wait_are_told_to_come_back(served):
    code, error = post(served[0], "/v1/completions", {**ASK, "prompt": ["a"] * 128, "n": 3})
    assert (code, error["type"]) == (429, "rate_limit_error")


@pytest.mark.slow
def test_the_command_listens_on_loopback_and_ends_with_status_0_on_sigterm(tmp_path):
    model = byte_model()
    write_imported(model.config, random_params(model.config), tmp_path / "model")
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "diversity_jax.serve",
            "--config",
            "configs/serve.py",
            f"--config.model.checkpoint={tmp_path / 'model'}",
        ]
        + ["--config.model.tokenizer=bytes", "--config.port=0", "--config.slots=2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    line = process.stdout.readline()
    assert line.startswith("serving model on http://127.0.0.1:"), process.stderr.read()
    port = int(line.rsplit(":", 1)[1].partition("/")[0])
    assert post(port, "/v1/completions", {**ASK, "model": "model"})[0] == 200
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
