"""Refusals in OpenAI's form."""

from typing import Any


class RequestRefused(Exception):
    """A request that gets an error: HTTP status, OpenAI's `type` and `code`, and the parameter at fault."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    def body(self) -> dict[str, Any]:
        """As OpenAI's servers write it."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        kind = "rate_limit_error" if self.status == 429 else kind
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def shown(value: Any, most: int = 80) -> str:
    """A client's value for a message: in one line of limited length."""
    text = (
        repr(value) if not isinstance(value, int) or abs(value) < 10**most else f"an integer of {most} digits or more"
    )
    return text if len(text) <= most else f"{text[:most]}..."
