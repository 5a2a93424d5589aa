"""What every provider does, and how the ends of an attempt are told apart."""

from collections.abc import Mapping
import contextlib
from dataclasses import dataclass, replace
import email.utils
import json
import logging
import os
import re
import time
from typing import Protocol

from diversity_jax.core.errors import InputError
from diversity_jax.llm.cost_forecast import estimate_tokens
from diversity_jax.llm.types import CallFailed, Request

_logger = logging.getLogger(__name__)
_KEY_LIKE = re.compile(r"(sk-|AIza|Bearer )[\w*.-]{6,}")
_SHOWN_CHARACTERS = 160
# Replies that other attempts may not get: overload, time-outs of gateways, and locks.
_PASSING = (408, 409, 425)
_OUT_OF_CREDIT = ("insufficient_quota", "billing_hard_limit_reached")


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A whole answer of a server."""

    text: str
    prompt_tokens: int
    completion_tokens: int


class Transient(Exception):
    """An attempt failed in a way that another may not.

    Attributes:
      kind: `rate_limited`, `server`, `timeout`, `dropped`, `garbled`, `unreachable` (not even sent), or `adapted` (the
        provider has learnt what the server does not take, and asks otherwise from now on: ask again at once).
      retry_after_seconds: how long the server asks to be left alone, if it says so.
      billed: whether the attempt may have been paid for; a server that dropped a connection may have answered.
    """

    def __init__(self, kind: str, detail: str, *, retry_after_seconds: float | None = None):
        super().__init__(f"{kind}: {detail}")
        self.kind = kind
        self.detail = detail
        self.retry_after_seconds = retry_after_seconds
        self.billed = kind in ("timeout", "dropped", "garbled")


class Rejected(Exception):
    """The server calls the request itself wrong (400 and its kin)."""

    def __init__(self, status: int, detail: str):
        super().__init__(detail)
        self.status = status
        self.detail = detail


class Provider(Protocol):
    """A way to one model."""

    async def ask(self, request: Request, deadline_seconds: float) -> Answer:
        """Makes one attempt.

        Raises:
          Transient: another attempt may succeed.
          Rejected: the server finds the request wrong.
          CallFailed: the model ended without a usable answer.
          InputError: no call can succeed: a wrong key, an unknown model.
        """

    async def close(self) -> None:
        """Gives connections back."""


@dataclass(frozen=True, kw_only=True)
class Address:
    """Whom an error line is about."""

    judge: str  # provider:model
    url: str
    key_variables: tuple[str, ...]
    key: str


def key_from_environment(judge: str, variables: tuple[str, ...], *, needed: bool) -> str:
    """The API key in the first set variable of `variables`.

    Raises:
      InputError: none is set though one is needed, or it cannot be a key. The value is never shown.
    """
    for variable in variables:
        key = os.environ.get(variable, "").strip()
        if key and not (key.isascii() and key.isprintable()):
            raise InputError(f"{variable}: holds characters that no API key has; set it again")
        if key:
            return key
    if needed:
        raise InputError(f"judge: {judge} needs an API key; set {' or '.join(variables)} in the environment")
    return "none"


def failure_of(
    address: Address, status: int, message: str, *, code: str | None = None, retry_after_seconds: float | None = None
) -> Exception:
    """What an HTTP status that is no success means for the run."""
    shown = redacted(message, address.key)
    variables = " or ".join(address.key_variables)
    if status in (401, 403) or (status == 400 and "api key not valid" in message.lower()):
        return InputError(
            f"judge: {address.url} does not accept the API key for {address.judge} ({status}); set {variables} to a "
            "valid one"
        )
    if status == 404:
        return InputError(
            f"judge: {address.url} knows no {address.judge} (404: {shown}); correct the model's name or the base URL"
        )
    if status == 402 or (status == 429 and code in _OUT_OF_CREDIT):
        return InputError(
            f"judge: {address.url} says the account is out of credit ({shown}); add credit, then run again to go on "
            "from the ledger"
        )
    if status == 429:
        return Transient("rate_limited", shown, retry_after_seconds=retry_after_seconds)
    if status >= 500 or status in _PASSING:
        return Transient("server", f"{status} {shown}", retry_after_seconds=retry_after_seconds)
    return Rejected(status, f"{status} {shown}")


def redacted(message: str, key: str) -> str:
    """A server's message as one short line without the key or anything that looks like one."""
    if len(key) > 5:
        message = message.replace(key, "***")
    return " ".join(_KEY_LIKE.sub("***", message).split())[:_SHOWN_CHARACTERS]


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds of a `retry-after-ms` or `retry-after` header, which may also hold a date."""
    for name, scale in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        value = headers.get(name)
        if value is None:
            continue
        try:
            return max(float(value) / scale, 0.0)
        except ValueError:
            with contextlib.suppress(ValueError):
                return max(email.utils.parsedate_to_datetime(value).timestamp() - time.time(), 0.0)
    return None


def with_schema_in_prompt(request: Request) -> Request:
    """The same question for a server that cannot enforce a schema."""
    if request.schema is None:
        return request
    wish = "Answer with one JSON value and nothing around it. It must fit this JSON schema, named"
    return replace(request, system=f"{request.system}\n\n{wish} {request.stage}:\n{json.dumps(request.schema)}")


class Usage:
    """Token counts as the server gives them; counts that are missing are estimated, which is said once."""

    def __init__(self, judge: str):
        self._judge = judge
        self._told = False

    def counts(
        self, request: Request, text: str, prompt_tokens: int | None, completion_tokens: int | None
    ) -> tuple[int, int]:
        """Prompt and completion tokens of one call."""
        if prompt_tokens is not None and completion_tokens is not None:
            return prompt_tokens, completion_tokens
        if not self._told:
            self._told = True
            _logger.warning("%s reports no token counts; they are estimated from the text", self._judge)
        return estimate_tokens(request.system) + estimate_tokens(request.user), estimate_tokens(text)


def unusable(reason: str, detail: str, counts: tuple[int, int]) -> CallFailed:
    """A failed call that has used up tokens."""
    return CallFailed(reason, detail, prompt_tokens=counts[0], completion_tokens=counts[1])


def quieten(*loggers: str) -> None:
    """Keeps HTTP libraries from logging a line a request, with its URL, at the level at which this project logs."""
    for name in loggers:
        if logging.getLogger(name).level == logging.NOTSET:
            logging.getLogger(name).setLevel(logging.WARNING)
