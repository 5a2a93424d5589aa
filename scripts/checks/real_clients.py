"""Asks our server through widely used client libraries, and compares what each of them got.

    python -m diversity_jax.serve --config configs/serve.py --config.model.checkpoint=runs/quickstart
    V/bin/python scripts/checks/real_clients.py http://127.0.0.1:8000/v1 quickstart

V is an environment with `openai`, `litellm` and `langchain-openai` (any of them may be missing), and no need of this
project. Exits with status 1 where a client fails or gets another answer than the others.
"""

from collections.abc import Callable
import importlib.metadata
import json
import subprocess
import sys
from typing import Any

SCHEMA = {
    "title": "answer",
    "type": "object",
    "properties": {"kind": {"type": "string", "enum": ["red", "green"]}, "sure": {"type": "boolean"}},
    "required": ["kind", "sure"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA, "strict": True}}
MESSAGES = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "Which colour?"}]
SETTINGS = {"temperature": 0, "max_tokens": 64, "seed": 1}


def by_curl(address: str, model: str) -> tuple[str, str]:
    """Text and streamed text."""

    def ask(**more: Any) -> str:
        body = json.dumps({"model": model, "messages": MESSAGES, "response_format": FORMAT, **SETTINGS, **more})
        command = [
            "curl",
            "-sS",
            "-N",
            f"{address}/chat/completions",
            "-H",
            "Content-Type: application/json",
            "-d",
            body,
        ]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    lines = [line.removeprefix("data: ") for line in ask(stream=True).splitlines() if line and "[DONE]" not in line]
    parts = [json.loads(line)["choices"][0]["delta"].get("content", "") for line in lines]
    return json.loads(ask())["choices"][0]["message"]["content"], "".join(parts)


def by_openai(address: str, model: str) -> tuple[str, str]:
    """Text and streamed text; also what `parse` and the completions give."""
    import openai

    client = openai.OpenAI(base_url=address, api_key="none", max_retries=0)
    asked: dict[str, Any] = {"model": model, "messages": MESSAGES, "response_format": FORMAT, **SETTINGS}
    answer = client.chat.completions.create(**asked).choices[0].message.content
    stream = client.chat.completions.create(stream=True, stream_options={"include_usage": True}, **asked)
    chunks = list(stream)
    assert chunks[-1].usage.completion_tokens > 0
    scored = client.completions.create(model=model, prompt=["ab", "cd"], echo=True, logprobs=1, max_tokens=0)
    assert [choice.logprobs.token_logprobs[0] for choice in scored.choices] == [None, None]
    refusal = ""
    try:
        client.chat.completions.create(**asked, frequency_penalty=0.5)
    except openai.BadRequestError as error:
        refusal = str(error)
    assert "frequency_penalty is not supported" in refusal
    return answer, "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


def by_litellm(address: str, model: str) -> tuple[str, str]:
    """Text and streamed text."""
    import litellm

    asked: dict[str, Any] = {"model": f"openai/{model}", "api_base": address, "api_key": "none", "messages": MESSAGES}
    asked |= {"response_format": FORMAT, **SETTINGS}
    answer = litellm.completion(**asked).choices[0].message.content
    parts = [chunk.choices[0].delta.content or "" for chunk in litellm.completion(stream=True, **asked)]
    return answer, "".join(parts)


def by_langchain(address: str, model: str) -> tuple[str, str]:
    """Text and streamed text."""
    from langchain_openai import ChatOpenAI

    chat = ChatOpenAI(base_url=address, api_key="none", model=model, max_retries=0, **SETTINGS)
    answer = chat.with_structured_output(SCHEMA, method="json_schema").invoke(MESSAGES)
    assert set(answer) == {"kind", "sure"}, answer
    bound = chat.bind(response_format=FORMAT)
    return bound.invoke(MESSAGES).content, "".join(chunk.content for chunk in bound.stream(MESSAGES))


def main(address: str, model: str) -> int:
    """Asks with each client; the exit status is 1 where one fails."""
    clients: dict[str, Callable[[str, str], tuple[str, str]]] = {
        "curl": by_curl,
        "openai": by_openai,
        "litellm": by_litellm,
        "langchain-openai": by_langchain,
    }
    expected, failed = by_curl(address, model)[0], False
    for name, ask in clients.items():
        try:
            version = importlib.metadata.version(name) if name != "curl" else ""
            answers = ask(address, model)
            right = answers == (expected, expected)
            failed |= not right
            print(f"{name} {version}: {'the same, complete and streamed' if right else answers}: {expected!r}")
        except importlib.metadata.PackageNotFoundError:
            print(f"{name}: not installed")
        except Exception as error:
            failed = True
            print(f"{name}: {type(error).__name__}: {error}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
