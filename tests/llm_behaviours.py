"""Observed behaviours of language model servers, one `Behaviour` each, with how a run against it has to end.

`python -m tests.llm_behaviours` plays them and prints the table of docs/providers.md.
"""

import json
import os
import re

from diversity_jax.llm import EndpointConfig
from tests.llm_played_server import (
    ANSWER,
    INPUT_PRICE,
    KEY,
    OUTPUT_PRICE,
    SECRET,
    Asked,
    Behaviour,
    Response,
    always,
    chat,
    first_time,
    gemini,
    play,
    refusal,
    sometimes,
    unsupported,
)

_HTML = b"<html><head><title>403 Forbidden</title></head><body>Request blocked by security policy</body></html>"
_RPC = "type.googleapis.com/google.rpc"
_EXHAUSTED = {"code": 429, "status": "RESOURCE_EXHAUSTED"}
_SOON = {"@type": f"{_RPC}.RetryInfo", "retryDelay": "0.03s"}
_LIST_429 = [{"error": _EXHAUSTED | {"message": "Resource has been exhausted", "details": [_SOON]}}]
_PER_DAY = {"quotaId": "GenerateRequestsPerDayPerProjectPerModel-FreeTier", "quotaValue": "50"}
_DAILY = [{"@type": f"{_RPC}.QuotaFailure", "violations": [_PER_DAY]}, _SOON | {"retryDelay": "17s"}]
_LIST_DAILY = [{"error": _EXHAUSTED | {"message": "You exceeded your current quota", "details": _DAILY}}]
_DRAFT = json.dumps({"subject": "a long draft of the subject that came first"})
_REASONED = {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 2120}


def _stingy(asked: Asked) -> Response:
    if "system" in asked.roles:
        return refusal(400, "System role not supported", "invalid_value", param="messages[0].role")
    for name in ("response_format", "temperature", "max_tokens"):
        if name in asked.body:
            return refusal(400, f"Unsupported parameter: '{name}' is not supported with this model.", param=name)
    return 200, chat()


def _azure(asked: Asked) -> Response:
    right = asked.path == "/openai/deployments/d/chat/completions?api-version=2024-10-21"
    right = right and asked.headers.get("api-key") == KEY and asked.headers.get("x-team") == SECRET
    return (200, chat()) if right and asked.body.get("reasoning_effort") == "low" else (404, {"error": asked.path})


BEHAVIOURS = [
    # A problem of one call stays with the call.
    Behaviour(
        title="a content filter refuses 3 of 40 at once, answers take longer",
        respond=sometimes(always(0, 1, 2), refusal(400, "The response was filtered", "content_filter")),
        failed={"refused": 3}, says="was filtered",
    ),
    Behaviour(
        title="`invalid_prompt` for 8 of 40 before the first answer",
        respond=sometimes(lambda a: a.document < 8, refusal(400, "Invalid prompt: flagged", "invalid_prompt")),
        failed={"refused": 8}, says="Invalid prompt",
    ),
    Behaviour(
        title="403 with a firewall's page for two documents, always",
        respond=sometimes(always(3, 30), (403, _HTML)), failed={"rejected": 2}, says="blocked by security policy",
        attempts=44,
    ),
    *(
        Behaviour(
            title=f"a stray {status} after answers", respond=sometimes(first_time(20), response), attempts=41,
        )
        for status, response in {
            401: refusal(401, "Incorrect API key provided", "invalid_api_key"),
            404: (404, {"detail": "Not Found"}),
            307: (307, b"", {"location": "https://elsewhere.example/v1"}),
        }.items()
    ),
    Behaviour(
        title="one text is longer than the context",
        respond=sometimes(
            always(5), refusal(400, "This model's maximum context length is 8192 tokens", "context_length_exceeded")
        ),
        failed={"rejected": 1}, says="maximum context length",
    ),
    Behaviour(
        title="a reasoning model spends its whole limit on thoughts: 400 for one document",
        respond=sometimes(always(5), refusal(
            400, "Could not finish the message because max_tokens or model output limit was reached.",
            kind="invalid_request_error")),
        failed={"truncated": 1}, says="raise max_output_tokens",
    ),
    Behaviour(
        title="429 for one request that alone is larger than the limit",
        respond=sometimes(
            always(5), refusal(429, "Request too large on tokens per min (TPM): Limit 30000, Requested 50000")
        ),
        failed={"rejected": 1}, says="Request too large",
    ),
    Behaviour(
        title="400 without a word for one document", respond=sometimes(always(5), (400, b"")), failed={"rejected": 1},
        says="rejected: 400",
    ),
    Behaviour(
        title="500 for two documents, always", respond=sometimes(always(5, 39), (500, {"detail": "CUDA error"})),
        failed={"gave_up": 2}, says="CUDA error", attempts=50,
    ),
    # Evidence about all calls ends the run, in the server's words.
    Behaviour(
        title="a wrong key", respond=lambda asked: refusal(401, "Incorrect API key provided", "invalid_api_key"),
        ends="^judge: .*does not accept the API key.*Incorrect API key provided.*OPENAI_API_KEY", attempts=16,
    ),
    Behaviour(
        title="an unknown model", respond=lambda asked: refusal(404, "The model `model` does not exist"),
        ends="^judge: .*knows no openai:model.*does not exist", attempts=16,
    ),
    Behaviour(
        title="a wrong address: 404 for every call", respond=lambda asked: (404, b"<h1>Not Found</h1>"),
        ends="^judge: .*turns every call.*Not Found", attempts=60,
    ),
    Behaviour(
        title="a firewall's 403 for every call", respond=lambda asked: (403, _HTML),
        ends="^judge: .*turns every call.*blocked by security policy", attempts=60,
    ),
    Behaviour(
        title="422 for every call: a field that it does not know",
        respond=lambda asked: (422, {"detail": [{"msg": "Extra inputs are not permitted", "loc": ["body", "model"]}]}),
        ends="^judge: openai:model rejects every call.*Extra inputs", attempts=20,
    ),
    Behaviour(
        title="`insufficient_quota` (type; code 429) after ten answers",
        respond=sometimes(
            lambda asked: asked.answered >= 10,
            refusal(429, "You exceeded your current quota, check your plan", "429", "insufficient_quota"),
        ),
        ends="^judge: .*out of credit or quota.*exceeded your current quota", attempts=30,
    ),
    Behaviour(
        title="402 after ten answers",
        respond=sometimes(lambda asked: asked.answered >= 10, refusal(402, "Insufficient Balance")),
        ends="^judge: .*out of credit.*Insufficient Balance", attempts=30,
    ),
    Behaviour(
        title="a quota of a day is used up: try again in 7h12m",
        respond=sometimes(
            lambda asked: asked.answered >= 10,
            refusal(429, "Rate limit reached on requests per day (RPD). Please try again in 7h12m3.5s."),
        ),
        ends=r"^stalled: judge: .*requests per day.*run again in 25924 s, at \d{4}-\d\d-\d\d \d\d:\d\d UTC",
        attempts=30,
    ),
    Behaviour(
        title="the same in `retry-after`: 86,400 s",
        respond=sometimes(lambda a: a.answered >= 10, (429, {"error": "slow down"}, {"retry-after": "86400"})),
        ends="^stalled: judge: .*slow down.*run again in 86400 s", attempts=30,
    ),
    Behaviour(
        title="the same as Gemini's OpenAI address says it: a JSON list, `PerDay`, retry in 17 s",
        respond=sometimes(lambda asked: asked.answered >= 10, (429, _LIST_DAILY)),
        ends="^stalled: judge: .*exceeded your current quota.*next day", attempts=30,
    ),
    Behaviour(
        title="a rate limit now and then, as a JSON list",
        respond=sometimes(lambda asked: not asked.seen and asked.document % 9 == 0, (429, _LIST_429)), attempts=45,
    ),
    Behaviour(
        title="`retry-after` beyond every date",
        respond=sometimes(lambda a: a.answered >= 10, (429, {"error": "slow down"}, {"retry-after": "inf"})),
        ends="^stalled: judge: .*slow down.*run again in 31622400 s", attempts=30,
    ),
    Behaviour(
        title="a value of `max_tokens` that is too large", attempts=24,
        respond=lambda asked: refusal(
            400, "max_tokens is too large: 200. This model supports at most 100 completion tokens", "invalid_value",
            "invalid_request_error", "max_tokens"),
        ends="^judge: openai:model rejects every call.*too large: 200",
    ),
    # What a server does not take is left out from then on.
    Behaviour(
        title="no system role", attempts=48, says="does not take system.*System role not supported",
        respond=sometimes(lambda asked: "system" in asked.roles, refusal(400, "System role not supported")),
    ),
    Behaviour(
        title="no `response_format`", attempts=48, says="does not take json_object or json_schema",
        respond=unsupported("response_format", "Unsupported parameter: 'response_format' is not supported."),
    ),
    Behaviour(
        title="`json_object`, but no `json_schema`", attempts=48, says="does not take json_schema",
        respond=sometimes(
            lambda asked: asked.body.get("response_format", {}).get("type") == "json_schema",
            refusal(400, "This response_format type is unavailable now", "invalid_request_error"),
        ),
    ),
    Behaviour(
        title="no `temperature`", attempts=48, says="model's own temperature is used",
        respond=unsupported("temperature", "Unsupported value: 'temperature' does not support 0 with this model."),
    ),
    Behaviour(
        title="`max_completion_tokens` instead of `max_tokens`", attempts=48,
        says="max_completion_tokens is sent instead",
        respond=unsupported("max_tokens", "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."),
    ),
    Behaviour(title="none of these", attempts=80, says="does not take system", respond=_stingy),
    # Answers are read liberally.
    *(
        Behaviour(title=title, respond=lambda asked, value=value: (200, value))
        for title, value in {
            "content as a list of parts": chat([{"type": "text", "text": json.dumps(ANSWER)}]),
            "content as parts, thoughts before the text": chat(
                [{"type": "thinking", "thinking": _DRAFT}, {"type": "text", "text": json.dumps(ANSWER)}]
            ),
            "content as parts, references after the text": chat(
                [{"type": "text", "text": json.dumps(ANSWER)}, {"type": "reference", "reference_ids": [1]}]
            ),
            "content as an object": chat(ANSWER),
            "thoughts with a longer draft before the answer": chat(f"Perhaps {_DRAFT}? No: {json.dumps(ANSWER)}"),
            "finish_reason null": chat(finish=None),
            "finish_reason empty": chat(finish=""),
            "no finish_reason": chat(finish="missing"),
            "finish_reason in upper case": chat(finish="STOP"),
            "usage as text": chat(usage={"prompt_tokens": "100", "completion_tokens": "20"}),
            "U+2028 and U+0085 in the answer": chat('{"subject": "phys\u2028ics\u0085"}'),
        }.items()
    ),
    *(
        Behaviour(title=f"usage {title}", respond=lambda asked, usage=usage: (200, chat(usage=usage)), dollars=0.0,
                  says="reports no token counts")
        for title, usage in {
            "null": [], "of NaN": {"prompt_tokens": float("nan"), "completion_tokens": float("nan")},
            "negative": {"prompt_tokens": -1, "completion_tokens": -1},
            "beyond every count": {"prompt_tokens": 1e300, "completion_tokens": 1e300},
        }.items()
    ),
    Behaviour(
        title="content null for two documents", respond=sometimes(always(4, 5), (200, chat(message_content=None))),
        failed={"empty": 2}, says="the answer is empty", attempts=42,
    ),
    Behaviour(
        title="finish_reason `max_tokens` for one document",
        respond=sometimes(always(4), (200, chat("{", "max_tokens"))),
        failed={"truncated": 1}, says="raise max_output_tokens",
    ),
    *(
        Behaviour(title=f"{title}, the first time", respond=sometimes(first_time(4, 5), (200, value)), attempts=42)
        for title, value in {
            "finish_reason `error`": chat("{", "error"), "finish_reason `abort`": chat("{", "abort"),
            "choices null": chat(choices=None), "no choices": chat(choices=[]),
            "a 200 with an error": {"error": {"code": 502, "message": "upstream"}},
            "an error in the choice": chat(choices=[{"error": {"code": 502, "message": "upstream"}}]),
            "a 200 with a page": b"<html>please wait</html>",
        }.items()
    ),
    # Bills.
    Behaviour(
        title="reasoning in the total alone, under a cap of $1",
        dollars=(100 * INPUT_PRICE + 2020 * OUTPUT_PRICE) / 1e6,
        respond=lambda asked: (200, chat(usage=_REASONED)), ends=r"^budget: judge: .*budget\.max_dollars = 1",
        budget={"max_dollars": 1.0},
    ),
    Behaviour(
        title="reasoning beside the completion", dollars=(100 * INPUT_PRICE + 320 * OUTPUT_PRICE) / 1e6,
        respond=lambda asked: (200, chat(usage={
            "prompt_tokens": 100, "completion_tokens": 20, "completion_tokens_details": {"reasoning_tokens": 300}})),
    ),
    *(
        Behaviour(
            title=f"the server says what it bills, which is more{how}", dollars=0.01,
            respond=lambda asked, fields=fields: (200, chat(
                usage={"prompt_tokens": 100, "completion_tokens": 20, **fields})),
        )
        for how, fields in {
            "": {"cost": 0.01},
            ", in parts with their total": {"cost": {"request_cost": 0.006, "total_cost": 0.01}},
            ", beside its fee": {
                "cost": 0.0005, "is_byok": True, "cost_details": {"upstream_inference_cost": 0.0095}},
        }.items()
    ),
    # Addresses.
    Behaviour(
        title="an address with a query, `api-key`, a header, a field of the body", respond=_azure,
        base="/openai/deployments/d/chat/completions?api-version=2024-10-21",
        endpoint=EndpointConfig(
            key_header="api-key", headers=("X-Team: ${TEAM_SECRET}",), body='{"reasoning_effort": "low"}'
        ),
    ),
]  # fmt: skip

GEMINI_BEHAVIOURS = [
    Behaviour(title="Gemini: status 201", respond=lambda asked: (201, gemini()), dollars=0.0),
    Behaviour(
        title="Gemini: `MALFORMED_RESPONSE`, the first time", attempts=42,
        respond=sometimes(first_time(4, 5), (200, gemini([], "MALFORMED_RESPONSE")), gemini()),
    ),
    Behaviour(
        title="Gemini: an unknown finish reason with a text",
        respond=lambda asked: (200, gemini(finish="FINISHED_SOMEHOW")),
    ),
    Behaviour(
        title="Gemini: `PROHIBITED_CONTENT` without content for one document",
        respond=sometimes(always(4), (200, {"candidates": [{"finishReason": "PROHIBITED_CONTENT"}]}), gemini()),
        failed={"refused": 1}, says="prohibited_content",
    ),
    Behaviour(
        title="Gemini: thoughts in the total alone", dollars=(100 * INPUT_PRICE + 320 * OUTPUT_PRICE) / 1e6,
        respond=lambda asked: (200, gemini(usage={
            "promptTokenCount": 100, "candidatesTokenCount": 20, "totalTokenCount": 420})),
    ),
    Behaviour(
        title="Gemini: usage of NaN", dollars=0.0, says="reports no token counts",
        respond=lambda asked: (200, gemini(usage={"promptTokenCount": float("nan")})),
    ),
    Behaviour(
        title="Gemini: no developer instruction and no JSON mode", attempts=60, says="does not take system",
        respond=lambda asked: refusal(400, "Developer instruction is not enabled for models/model")
        if asked.has("systemInstruction")
        else refusal(400, "JSON mode is not enabled for models/model")
        if "responseMimeType" in asked.body["generationConfig"]
        else (200, gemini()),
    ),
    Behaviour(
        title="Gemini: a quota of a day", ends="^stalled: judge: .*exceeded your current quota.*next day", attempts=30,
        respond=sometimes(lambda asked: asked.answered >= 10, (429, _LIST_DAILY[0]), gemini()),
    ),
]  # fmt: skip


def _main() -> None:
    os.environ |= {"OPENAI_API_KEY": KEY, "GEMINI_API_KEY": KEY, "TEAM_SECRET": SECRET}
    print("| the server | answered | failed | sent | billed | counted | ends with, or says |")
    print("|---|---:|---|---:|---:|---:|---|")
    for behaviour in [*BEHAVIOURS, *(_google(behaviour, "google-genai") for behaviour in GEMINI_BEHAVIOURS)]:
        played = play(behaviour)
        failed = ", ".join(f"{reason} {count}" for reason, count in played.failed.items())
        words = re.sub(r"http://127\S+", "URL", played.end or next(iter(played.messages), ""))
        cells = [
            behaviour.title,
            played.answered,
            failed,
            played.attempts,
            f"${played.billed:.3f}",
            f"${played.spent:.3f}",
        ]
        print("|", " | ".join(map(str, [*cells, words.replace("|", "/")])), "|")


def _google(behaviour: Behaviour, provider: str) -> Behaviour:
    return Behaviour(**vars(behaviour) | {"provider": provider, "base": ""})


if __name__ == "__main__":
    _main()
