"""How an attempt ends: with a reply, with a refusal, or in a way that another attempt may not."""

from dataclasses import dataclass

# How many calls have to be refused, without one answer, before the evidence is about all calls. A bad key or an
# unknown model says so by itself; a refusal that could be of one text's making needs company, and a content filter's
# the most. An empty account is none of the call's making: it ends a run at once, whatever was answered before.
EVIDENCE = {"account": 0, "key": 1, "model": 1, "settings": 3, "access": 10, "request": 10, "content": 50}


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What a model answered, and what the server said of it.

    Attributes:
      text: the answer; may be unusable, see `failure`.
      prompt_tokens, completion_tokens: as the server counted them, reasoning included; the larger where it contradicts
        itself.
      cached_tokens: prompt tokens of its cache, which cost less.
      billed_dollars: what the server says it bills, as OpenRouter does; 0 where it says nothing.
      served_by: the model and its version as the server names them, or empty.
      failure: why the answer is unusable, as reason and detail of a `CallFailed`; None for a whole answer. The reason
        `interrupted` is of a server that broke off, which another attempt may not.
      worth_a_second_try: whether the answer is one that a model gives now and then: nothing at all.
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
    """An attempt failed in a way that another may not.

    Attributes:
      kind: `rate_limited`, `server`, `timeout`, `dropped`, `garbled`, `unreachable` (not even sent), `interrupted` (the
        server broke off its answer), `unanswered` (a batch left the request out), or `adapted` (the provider has learnt
        what the server does not take and leaves it out from now on: ask again at once).
      retry_after_seconds: the pause that the server asks for, if it does.
      used_up: whether a quota of a day is used up, so that waiting in this run is no use.
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
      scope: what its words are about, a key of `EVIDENCE`: `account` (out of credit), `key` (a bad one), `model`
        (unknown), `settings` (a field that every request has), `access` (401, 403, 404 or a redirect for no reason that
        is named; another attempt may succeed), `request` (no reason named), `content` (a filter, or a text too long).
      detail: the server's words, as one short line.
      reason: of the `CallFailed` where it is the call's own.
    """

    def __init__(self, scope: str, detail: str, reason: str = "rejected"):
        super().__init__(detail)
        self.scope = scope
        self.detail = detail
        self.reason = reason
