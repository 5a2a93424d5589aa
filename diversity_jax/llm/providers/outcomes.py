"""How an attempt ends: a reply, a refusal or a transient failure; and the classifier of servers' error messages."""

from collections.abc import Mapping
import contextlib
from dataclasses import dataclass
import email.utils
import json
import math
import re
import time
from typing import Any

# By scope of a refusal, how many calls have to be refused, without one answer, before it is taken to be of all calls. A
# bad key or an unknown model is named by the server; a refusal that may be due to one text needs several, most so a
# content filter's. An account without credit ends a run at once, whatever was answered before.
FATAL_REFUSALS = {"account": 0, "key": 1, "model": 1, "settings": 3, "access": 10, "request": 10, "content": 50}


@dataclass(frozen=True, kw_only=True)
class Reply:
    """A model's answer, with what the server reported of it.

    Attributes:
      text: the answer; may be unusable, see `failure`.
      prompt_tokens, completion_tokens: as the server counted them, reasoning included; the larger of contradicting
        counts.
      cached_tokens: prompt tokens from the server's cache, which cost less.
      billed_dollars: what the server says it bills, as OpenRouter does; otherwise 0.
      served_by: the model and its version as the server names them, or empty.
      failure: why the answer is unusable, as reason and detail of a `CallFailed`; None for a complete answer. The
        reason `interrupted` means that the server broke off, and calls for another attempt.
      worth_a_second_try: whether the answer is empty, which models give at random.
    """

    text: str
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    billed_dollars: float = 0.0
    served_by: str = ""
    failure: tuple[str, str] | None = None
    worth_a_second_try: bool = False


class Transient(Exception):
    """An attempt failed, and another may succeed.

    Attributes:
      kind: `rate_limited`, `server`, `timeout`, `dropped`, `garbled`, `unreachable` (not even sent), `interrupted` (the
        server broke off its answer), `unanswered` (a batch left the request out), or `adapted` (the server does not
        support a feature, which is left out from now on: ask again at once).
      retry_after_seconds: the pause that the server asks for, if it does.
      used_up: whether a daily quota is used up, so that waiting in this run is no use.
      billed: whether the attempt may have been paid for; a server that dropped a connection may have answered.
    """

    def __init__(self, kind: str, detail: str, *, retry_after_seconds: float | None = None, used_up: bool = False):
        super().__init__(f"{kind}: {detail}")
        self.kind = kind
        self.detail = detail
        self.retry_after_seconds = retry_after_seconds
        self.used_up = used_up
        self.billed = kind in ("timeout", "dropped", "garbled")


class Refused(Exception):
    """The server refuses a request.

    Attributes:
      scope: what the refusal is about, a key of `FATAL_REFUSALS`: `account` (out of credit), `key` (a bad one), `model`
        (unknown), `settings` (a field that every request has), `access` (401, 403, 404 or a redirect without a reason;
        another attempt may succeed), `request` (no reason named), `content` (a filter, or a text too long).
      detail: the server's message, as one short line.
      reason: of the `CallFailed`, where the refusal is of this call alone.
    """

    def __init__(self, scope: str, detail: str, reason: str = "rejected"):
        super().__init__(detail)
        self.scope = scope
        self.detail = detail
        self.reason = reason


_SHOWN_BYTES = 500  # of a refusal that is no JSON
# Statuses below 500 after which another attempt may succeed: gateway time-outs, locks, Groq's lack of capacity (498).
_TRANSIENT_STATUSES = (408, 409, 421, 423, 424, 425, 498, 499)
_ACCESS_STATUSES = (401, 403, 404, 405, 407, *range(300, 400))
# HTTP statuses of Google's status codes in lines of batches; all others are failures of the server.
_RPC_STATUSES = {3: 400, 5: 404, 7: 403, 8: 429, 9: 400, 11: 400, 16: 401}
_LEAST_USED_UP_SECONDS = 60.0  # a daily quota over a sliding window may be free again sooner
_LONGEST_HINT_SECONDS = 366 * 86_400.0  # longer ones are beyond what dates and timers can hold


def _words(*patterns: str) -> re.Pattern[str]:
    return re.compile("|".join(patterns))


# Codes and messages by what they are about, searched in lower case; `classify` has the order.
_ACCOUNT = _words(
    "insufficient[_ ](quota|balance|user_quota|credit|funds)", "billing_(hard_limit|not_active)", "payment_required",
    "out of credit", "credit balance is too low", "requires more credits",
)  # fmt: skip
_KEY = _words(
    "invalid[_ ](x-)?api[_ -]?key", "api[ _-]?key[ _](not valid|invalid|expired)", "incorrect api key",
    "no auth credentials", "invalid_authentication", "invalid (bearer )?token", "missing api key", "expired (api )?key",
)  # fmt: skip
_MODEL = _words(
    "model_not_found", "deploymentnotfound", "model_not_available", "not a valid model",
    r"model\b.{0,100}(does not exist|not exist|not found|not available)", "(unknown|no such|invalid) model",
)  # fmt: skip
_LENGTH = _words(
    "context_length", "context length", "context window", "string_above_max", "request_too_large", "too many tokens",
    r"(prompt|input|request|message|content)s?\b.{0,30}too (long|large)", "maximum (allowed )?(input|number of) tokens",
    "reduce the length", "exceeds? the (model|maximum|available)",
)  # fmt: skip
_CONTENT = _words(
    "content[_ ](filter|policy|management)", "invalid_prompt", "responsibleaipolicy", "usage polic", "moderation",
    "flagged", "data_inspection", "prohibited[_ ]content", "safety",
)  # fmt: skip
# OpenAI's refusal after the fact: a reasoning model has used the whole limit of tokens for its thoughts.
_UNFINISHED = _words("could not finish the message")
_SETTINGS = _words(
    "(unsupported|unknown|unrecognized|invalid)[_ ](parameter|field|argument|value)", "unsupported_value",
    "extra inputs", "unrecognized request argument",
)  # fmt: skip
# Groq's: the model's answer broke the format, as it does at random.
_GARBLED = _words("json_validate_failed", "failed to generate json")
_TAG = re.compile(r"<(script|style).*?</\1>|<[^>]*>", re.DOTALL | re.IGNORECASE)  # of an error page
_DAILY = _words("per[-_ ]?day", "daily", r"\b[rt]pd\b")
_UNIT = "(?:days?|hours?|minutes?|min|seconds?|sec|ms|[dhms])"
_HINT = re.compile(
    rf"(?:again|retry|available|resets?)\D{{0,20}}?((?:\d+(?:\.\d+)?\s*{_UNIT}(?![a-z])[\s,]*(?:and\s+)?)+)"
)
_PAGE_CHARACTERS = 8_000  # of an error page: tags that never end take the square of its length
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|[dhms])")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


@dataclass(frozen=True, kw_only=True)
class ServerError:
    """A server's report of a failure.

    Attributes:
      status: HTTP status, or that in the body of a response whose own status reports success.
      message: its message.
      code: its code, type and status by name, in lower case.
      param: the field that it names, or empty.
      retry_after_seconds: the pause that it asks for in its headers, details or message, or None.
      daily: whether it names a daily quota that is not free again within a minute.
    """

    status: int
    message: str
    code: str
    param: str
    retry_after_seconds: float | None
    daily: bool

    @property
    def words(self) -> str:
        """Code, field and message in lower case."""
        return f"{self.code} {self.param} {self.message}".lower()

    @property
    def about_content(self) -> bool:
        """Whether it is about the text of one request: its length or its content."""
        patterns = (_LENGTH, _CONTENT, _UNFINISHED)
        return self.status == 413 or any(pattern.search(self.words) for pattern in patterns)


def parse_body(content: bytes | str) -> Any:
    """The JSON value of a body; None where it is not JSON. Bytes that are no UTF-8 are replaced."""
    try:
        return json.loads(content)
    except UnicodeDecodeError:
        return parse_body(content.decode(errors="replace")) if isinstance(content, bytes) else None
    except (ValueError, RecursionError):
        return None


def error_of(value: Any) -> Any:
    """The error in the body of a response whose status reports success, or None."""
    value = value[0] if isinstance(value, list) and value else value
    return value.get("error") if isinstance(value, Mapping) else None


def read_error(status: int, headers: Mapping[str, str], content: Any) -> ServerError:
    """Reads a failure in any of the forms in use: an object, a list of one, a text, an HTML page.

    Args:
      content: the body as bytes or text, or its JSON value.
    """
    value = parse_body(content) if isinstance(content, bytes | str) else content
    value = value[0] if isinstance(value, list) and value else value
    error = value.get("error", value) if isinstance(value, Mapping) else value
    fields: Mapping[str, Any] = error if isinstance(error, Mapping) else {}
    raw = content.decode(errors="replace") if isinstance(content, bytes) else str(content or "")
    raw = _TAG.sub(" ", raw[:_PAGE_CHARACTERS])
    message = fields.get("message") or fields.get("detail") or (error if isinstance(error, str) else raw[:_SHOWN_BYTES])
    message = message if isinstance(message, str) else json.dumps(message)
    if 300 <= status < 400:
        message = f"redirected to {headers.get('location', 'nowhere').partition('?')[0]} {message}"
    inner = fields.get("innererror")
    details = fields.get("details")
    codes = [fields.get(name) for name in ("code", "type", "status")]
    codes.append(inner.get("code") if isinstance(inner, Mapping) else None)
    quota = json.dumps(details).lower() if isinstance(details, list) else ""
    hints = (retry_after(headers), _retry_delay(details), _hint_in(message))
    seconds = max((hint for hint in hints if hint is not None), default=None)
    rolls = seconds is not None and seconds < _LEAST_USED_UP_SECONDS
    if status < 300:
        number = fields.get("code", fields.get("status"))
        number = int(number) if str(number).isdecimal() else 0
        number = _RPC_STATUSES.get(number, number)
        status = number if 400 <= number < 600 else 429 if "rate" in str(codes) else 500
    return ServerError(
        status=status,
        message=message,
        code=" ".join(str(code) for code in codes if code is not None).lower(),
        param=str(fields.get("param") or ""),
        retry_after_seconds=seconds,
        daily=bool(_DAILY.search(quota) or (_DAILY.search(message.lower()) and not rolls)),
    )


def classify(error: ServerError, shown: str, model: str) -> Refused | Transient:
    """The exception for a server's error.

    Args:
      shown: its message as one short line without secrets.
      model: the model's name as it was asked for.
    """
    status, words, detail = error.status, error.words, f"{error.status} {shown}".strip()
    if status == 402 or (status < 500 and _ACCOUNT.search(words)):
        return Refused("account", detail)
    if status == 429 and not _LENGTH.search(words):
        seconds = error.retry_after_seconds
        return Transient("rate_limited", detail, retry_after_seconds=seconds, used_up=error.daily)
    if status >= 500 or status in _TRANSIENT_STATUSES:
        return Transient("server", detail, retry_after_seconds=error.retry_after_seconds)
    if _GARBLED.search(words):
        return Transient("garbled", detail)
    # Gemini answers 400 to a wrong key; other 400s may name tokens of the text.
    if _KEY.search(words) and (status in (401, 403) or (status == 400 and re.search("api.?key", words))):
        return Refused("key", detail)
    if error.about_content:
        if _UNFINISHED.search(words):
            return Refused("content", f"{detail}; raise max_output_tokens", "truncated")
        return Refused("content", detail, "refused" if _CONTENT.search(words) else "rejected")
    if status in (400, 403, 404) and (_MODEL.search(words) or (status == 404 and f"models/{model}" in words)):
        return Refused("model", detail)
    if status in _ACCESS_STATUSES:
        return Refused("access", detail)
    return Refused("settings" if _SETTINGS.search(words) else "request", detail)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds of a `retry-after-ms` or `retry-after` header, which may also hold a date."""
    for name, scale in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        value = headers.get(name, "")
        with contextlib.suppress(ValueError):
            return _bounded(float(value) / scale)
        with contextlib.suppress(ValueError):
            return _bounded(email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    return None


def _retry_delay(details: Any) -> float | None:
    """Seconds of the `retryDelay` in the details of a Google error, such as "43s"."""
    for detail in details if isinstance(details, list) else ():
        delay = detail.get("retryDelay") if isinstance(detail, Mapping) else None
        if isinstance(delay, str):
            return _seconds(delay)
    return None


def _hint_in(message: str) -> float | None:
    """Seconds after which a message says to ask again, such as "try again in 7h12m3.5s"."""
    hint = _HINT.search(message.lower())
    return _seconds(hint.group(1)) if hint else None


def _seconds(duration: str) -> float | None:
    parts = _DURATION.findall(duration[:100].lower())
    return _bounded(sum(float(number) * _SECONDS[unit] for number, unit in parts)) if parts else None


def _bounded(seconds: float) -> float | None:
    return None if math.isnan(seconds) else min(max(seconds, 0.0), _LONGEST_HINT_SECONDS)
