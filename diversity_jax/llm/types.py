"""Types that callers and the engine exchange: settings, requests, completions, failures."""

from collections.abc import Mapping
from dataclasses import dataclass, field
import functools
import hashlib
import json
import math
import os
import re
from typing import Any

from diversity_jax.core import progress
from diversity_jax.core.config import ADDED, check_kinds
from diversity_jax.core.errors import InputError
from diversity_jax.core.files import canonical_json, is_remote

# Reasons of `CallFailed` after which every later call of the run would fail too.
RUN_ENDING_REASONS = ("budget", "stalled")
_FALLBACKS = ("wait", "live", "stop")
# Fields that every request sets itself, or that would change the form of its answer.
_REQUEST_FIELDS = {
    *("model", "messages", "contents", "stream", "n", "max_tokens", "max_completion_tokens", "max_output_tokens"),
    *("response_format", "generationConfig"),
}


def _refuse_constant(name: str) -> None:
    raise ValueError(f"it holds {name}")


@dataclass(frozen=True, kw_only=True)
class EndpointConfig:
    """Extra headers, query and body fields for a model's server; docs/providers.md has examples.

    Attributes:
      headers: `Name: value` each, sent with every request. `${VARIABLE}` is replaced by that environment variable, so
        that a configuration need not hold secrets.
      query: `name=value` pairs joined by `&`, added to the base URL's own query in every request.
      body: a JSON object whose fields are added to every request, such as `{"reasoning_effort": "low"}`. They are part
        of the key under which an answer is cached.
      key_variable: environment variable that holds the API key; None is the provider's.
      key_header: header that carries it: `authorization` (as `Bearer KEY`) or another, such as `api-key`; None is
        `api-key` for Azure's addresses and `authorization` for all others.
    """

    headers: tuple[str, ...] = field(default=(), repr=False)
    query: str = field(default="", repr=False)
    body: str = ""
    key_variable: str | None = None
    key_header: str | None = None

    def __post_init__(self) -> None:
        check_kinds(self, "endpoint.")
        for number, header in enumerate(self.headers):
            name, colon, value = header.partition(":")
            if not (colon and name.strip().isascii() and value.strip()) or "\n" in header:
                raise InputError(f"endpoint.headers: item {number} is no header; write `Name: value`")
        self.body_fields()

    def header_items(self) -> dict[str, str]:
        """Headers by lower-case name, with environment variables filled in; InputError where one is not set."""

        def value_of(match: re.Match[str]) -> str:
            if not (value := os.environ.get(match.group(1), "").strip()):
                raise InputError(f"endpoint.headers: {match.group(1)} is not set; set it in the environment")
            return value

        split = (header.partition(":") for header in self.headers)
        return {name.strip().lower(): re.sub(r"\$\{(\w+)\}", value_of, value.strip()) for name, _, value in split}

    def body_fields(self) -> dict[str, Any]:
        try:
            fields = json.loads(self.body or "{}", parse_constant=_refuse_constant)
        except ValueError as error:
            raise InputError(f"endpoint.body: is not JSON ({error}); write an object of fields") from None
        if not isinstance(fields, dict):
            raise InputError('endpoint.body: is no JSON object; write one such as {"reasoning_effort": "low"}')
        if reserved := sorted(_REQUEST_FIELDS & set(fields)):
            raise InputError(f"endpoint.body: {', '.join(reserved)} is set by the request itself; leave it out")
        return fields


@dataclass(frozen=True, kw_only=True)
class BatchConfig:
    """Providers' batch APIs: requests are submitted together, answered within a day, and cost about half.

    Attributes:
      poll_seconds: pause between two queries of a batch's state.
      wait_seconds: longest wait for a batch, after which the command ends, to be run again later; None is no limit.
      price_share: price of a call in a batch, as a share of the ordinary price.
      fallback: what happens to requests that a batch leaves unanswered: `wait` submits them again, `live` sends them
        singly at the full price, `stop` ends the run.
      gather_seconds: a batch is submitted once no new request has come for so long.
    """

    poll_seconds: float = 60.0
    wait_seconds: float | None = None
    price_share: float = 0.5
    fallback: str = field(default="wait", metadata=ADDED)
    gather_seconds: float = field(default=2.0, metadata=ADDED)

    def __post_init__(self) -> None:
        check_kinds(self, "batch.")
        seconds = (self.poll_seconds, self.gather_seconds)
        if not all(0 < value < math.inf for value in seconds) or not 0 <= self.price_share <= 1:
            values = f"poll_seconds {self.poll_seconds}, gather_seconds {self.gather_seconds}"
            shares = f"price_share {self.price_share}"
            raise InputError(f"batch: {values}, {shares}; give seconds above 0 and a share")
        if self.wait_seconds is not None and not self.wait_seconds >= 0:
            raise InputError(
                f"batch.wait_seconds: {self.wait_seconds} is no time; give 0 or more, or None for no limit"
            )
        if self.fallback not in _FALLBACKS:
            raise InputError(f"batch.fallback: {self.fallback!r} is unknown; choose {', '.join(_FALLBACKS)}")


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """How calls are made and cached.

    Attributes:
      max_in_flight: most requests at once; the server's 429s may lower it.
      deadline_seconds: time-out of one attempt.
      max_attempts: attempts a call, over failures of the server or the network.
      backoff_seconds: longest first pause between attempts; the limit doubles with every further pause.
      stall_seconds: a run whose calls have failed for so long without one answer is stopped.
      ledger: path of the response cache, an SQLite file of paid answers; None holds them in memory only, so that a
        second run pays again.
      run: name under which the response cache adds up spending; runs that share a cache but not a cap need different
        names.
      offline_replay: answer from the response cache alone; a missing answer is an error.
      progress: `panel`, `lines`, `off`, or `auto` (a panel on a terminal, else a line now and then).
      batch: send all calls through the provider's batch API: about half the price, and up to a day for each step of the
        run, which may be stopped and run again at any time.
      batches: settings of that.
    """

    max_in_flight: int = 256
    deadline_seconds: float = 120.0
    max_attempts: int = 6
    backoff_seconds: float = 0.5
    stall_seconds: float = 300.0
    ledger: str | None = None
    run: str = "default"
    offline_replay: bool = False
    progress: str = "auto"
    batch: bool = field(default=False, metadata=ADDED)
    batches: BatchConfig = field(default_factory=BatchConfig, metadata=ADDED)

    def __post_init__(self) -> None:
        check_kinds(self, "engine.")
        if not 1 <= self.max_in_flight <= 1024:
            raise InputError(f"engine.max_in_flight: {self.max_in_flight} is outside 1 to 1024; 256 suits most servers")
        if self.max_attempts < 1:
            raise InputError(f"engine.max_attempts: {self.max_attempts} makes no call; give at least 1")
        for name in ("deadline_seconds", "stall_seconds", "backoff_seconds"):
            if not getattr(self, name) > 0:
                raise InputError(f"engine.{name}: {getattr(self, name)} is no number of seconds above 0")
        if self.ledger is not None and is_remote(self.ledger):
            raise InputError(
                f"engine.ledger: {self.ledger} is in a bucket, where SQLite cannot write; name a local file"
            )
        if self.progress not in progress.MODES:
            modes = ", ".join(progress.MODES)
            raise InputError(f"engine.progress: {self.progress!r} is unknown; choose one of {modes}")

    @property
    def price_share(self) -> float:
        """Price of a call, as a share of the ordinary price."""
        return self.batches.price_share if self.batch else 1.0


class Schema(dict):
    """A JSON schema that must not be changed: what is derived from it is computed once for all its requests."""

    @functools.cached_property
    def canonical(self) -> str:
        """Canonical JSON, for `Request.key`."""
        return canonical_json(self)

    @functools.cached_property
    def most_bytes(self) -> int:
        """Upper bound of its length in bytes in a prompt."""
        return len(str(self).encode(errors="replace"))


@dataclass(frozen=True, kw_only=True)
class Request:
    """One question to a model.

    Attributes:
      stage: kind of question, in letters, digits and underscores; also the schema's name for the server.
      system: the instructions; apart from `user`, because servers cache equal beginnings of prompts.
      user: the material, usually with samples, one JSON object a line.
      schema: JSON schema of the answer, or None for free text. Servers that enforce schemas want closed objects
        (`additionalProperties: false`, every property required).
      replicate: number of this request among equal ones: requests that differ only here are separate calls, where equal
        requests share one answer.
      max_output_tokens: longest answer, in tokens; a longer one fails as `truncated`.
      temperature: sampling temperature, 0 to 2.
      urgent: whether it is sent before other waiting calls, because it completes begun work; no part of its key.
    """

    stage: str
    system: str
    user: str
    schema: Mapping[str, Any] | None
    replicate: int = 0
    max_output_tokens: int = 4096
    temperature: float = 0.0
    urgent: bool = False

    def __post_init__(self) -> None:
        if not self.stage.replace("_", "a").isalnum() or not self.stage.isascii():
            raise InputError(f"Request.stage: {self.stage!r} is not a name; use letters, digits and underscores")
        if self.max_output_tokens < 1:
            raise InputError(f"Request.max_output_tokens: {self.max_output_tokens} is too few; give at least 1")
        if not 0 <= self.temperature <= 2:
            raise InputError(f"Request.temperature: {self.temperature} is outside 0 to 2; 0 repeats itself most")
        if self.replicate < 0:
            raise InputError(f"Request.replicate: {self.replicate} is negative; count from 0")
        if self.schema is not None and not isinstance(self.schema, Schema):
            object.__setattr__(self, "schema", Schema(self.schema))

    def key(self, provider: str, model: str) -> str:
        """SHA-256 under which the answer is cached: equal exactly when the same model is asked the same thing."""
        decoding = f'{{"max_output_tokens":{self.max_output_tokens},"temperature":{float(self.temperature)!r}}}'
        schema = "null"
        if isinstance(self.schema, Schema):
            schema = f'{{"name":"{self.stage}","schema":{self.schema.canonical}}}'
        # The canonical JSON of these fields, in which the parts that calls share are encoded once.
        fields = (
            f'"decoding":{decoding}',
            f'"messages":[{{"content":{canonical_json(self.user)},"role":"user"}}]',
            f'"model":{_quoted(model)}',
            f'"provider":{_quoted(provider)}',
            f'"replicate":{self.replicate}',
            f'"schema":{schema}',
            f'"system":{_quoted(self.system)}',
        )
        return hashlib.sha256(f"{{{','.join(fields)}}}".encode()).hexdigest()


@functools.lru_cache(maxsize=64)
def _quoted(text: str) -> str:
    return canonical_json(text)


@dataclass(frozen=True, kw_only=True)
class Completion:
    """A complete answer, which has been stored in the response cache.

    Attributes:
      text: the answer; JSON in the request's schema where the server enforces it, so check it all the same.
      prompt_tokens, completion_tokens: as the server counted them (thinking tokens count as completion).
      cost_usd: dollars paid when it was asked for, also where it now comes from the cache.
      cached: whether it came from the cache.
      model: the model's name without its provider.
    """

    text: str
    prompt_tokens: int
    completion_tokens: int
    cost_usd: float
    cached: bool
    model: str


class CallFailed(Exception):
    """A call without a usable answer. The run continues without it, unless `ends_run`.

    Attributes:
      reason: `refused` (by the model or a content filter), `truncated` (cut at `max_output_tokens`), `empty` (no text),
        `rejected` (the server calls this request malformed or too long), `gave_up` (every attempt failed),
        `budget` (it could have exceeded the cap), `stalled` (no answer for `stall_seconds`).
      detail: one further line, without prompt, key or header.
      prompt_tokens, completion_tokens, cost_usd: use of the failed answer, as far as the server reported it.
    """

    def __init__(
        self, reason: str, detail: str, *, prompt_tokens: int = 0, completion_tokens: int = 0, cost_usd: float = 0.0
    ):
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
        self.prompt_tokens = prompt_tokens
        self.completion_tokens = completion_tokens
        self.cost_usd = cost_usd

    @property
    def ends_run(self) -> bool:
        """Whether every later call of this run would fail for the same reason."""
        return self.reason in RUN_ENDING_REASONS


@dataclass(frozen=True, kw_only=True)
class _Outcome:
    """How a call ended, and what it used."""

    stage: str
    prompt_tokens: int
    completion_tokens: int
    dollars: float


@dataclass(frozen=True, kw_only=True)
class CachedResponse(_Outcome):
    """A finished call."""

    model: str
    text: str


@dataclass(frozen=True, kw_only=True)
class CachedFailure(_Outcome):
    """A failed call."""

    reason: str
    detail: str


Outcome = CachedResponse | CachedFailure
