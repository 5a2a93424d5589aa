"""A local server with the batch APIs of OpenAI and Gemini."""

from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
import json
import re
import threading

from tests.llm_answers import json_schema


class BatchServer:
    """Both providers' batch APIs; live calls are counted.

    Args:
      answer: text of a stage's answer to system and user text in a schema.

    Attributes:
      ready: whether batches are done.
      state: of OpenAI's batches once they are done.
      leave_out: answers that a batch with more requests leaves out; all of them with `lose_all`.
      refused: field of a body that lines are refused for.
    """

    def __init__(self, answer):
        self.answer, self.refused = answer, None
        self.files, self.batches, self.submitted, self.live, self.polls = {}, {}, 0, 0, 0
        self.ready, self.state = True, "completed"
        self.url_path = ""
        self.leave_out, self.lose_all = 0, False
        handler = type("Handler", (_Handler,), {"provider": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server.server_port}{self.url_path}"

    def openai_file(self, file_id):
        lines = []
        for line in self.files[file_id].splitlines():
            asked = json.loads(line)
            if self.refused in asked["body"]:
                error = {"message": f"Unsupported parameter: '{self.refused}'", "param": self.refused}
                response = {"status_code": 400, "body": {"error": error}}
                lines.append(json.dumps({"custom_id": asked["custom_id"], "response": response}))
                continue
            system, user = (message["content"] for message in asked["body"]["messages"])
            wanted = asked["body"]["response_format"]["json_schema"]
            choice = {
                "message": {"content": self.answer(system, user, wanted["schema"], wanted["name"])},
                "finish_reason": "stop",
            }
            body = {"choices": [choice], "usage": {"prompt_tokens": 100, "completion_tokens": 200}}
            lines.append(json.dumps({"custom_id": asked["custom_id"], "response": {"status_code": 200, "body": body}}))
        return "\n".join(self.returned(lines))

    def returned(self, answers):
        """Answers that a batch returns: the first `leave_out` are missing where there are more, or with `lose_all`."""
        return answers[self.leave_out :] if len(answers) > self.leave_out or self.lose_all else answers

    def gemini_responses(self, requests):
        responses = []
        for request in requests:
            asked = request["request"]
            system = asked["systemInstruction"]["parts"][0]["text"]
            user = asked["contents"][0]["parts"][0]["text"]
            schema = json_schema(asked["generationConfig"]["responseSchema"])
            parts = [{"text": self.answer(system, user, schema, "generate_topic")}]
            candidate = {"content": {"parts": parts, "role": "model"}, "finishReason": "STOP"}
            usage = {"promptTokenCount": 100, "candidatesTokenCount": 200, "totalTokenCount": 300}
            responses.append(
                {"response": {"candidates": [candidate], "usageMetadata": usage}, "metadata": request["metadata"]}
            )
        return self.returned(responses)


class _Handler(BaseHTTPRequestHandler):
    provider: BatchServer

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
            {"status": self.provider.state, "output_file_id": f"out-{batch['input_file_id']}"}
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
        if path.startswith("/nothing"):
            self.reply({"detail": "Not Found"}, 404)
        elif path == "/v1/models":
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
