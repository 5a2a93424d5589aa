"""Parses JSON from outside, with errors in one line."""

import json
from typing import Any

from diversity_jax.core.errors import InputError

ROLES = ("system", "developer", "user", "assistant", "tool")
"""Roles of a conversation's messages, in data and in requests."""
_MOST_LEVELS = 200  # recursion over a value takes several calls a level, of the 1,000 that Python allows


def parse_json(data: bytes | str, where: str, *, remedy: str = "", number_lines: bool = False) -> Any:
    """Parses a JSON value. NaN and infinity are accepted; values that Python could not encode again are refused.

    Args:
      where: begins the error: the file, and the line where the text is one of several.
      remedy: ends the error: what to do.
      number_lines: the error adds the line in the text to `where`.

    Raises:
      InputError: not JSON, not UTF-8, nested too deeply, a number of thousands of digits, or half a surrogate pair.
    """
    try:
        text = data if isinstance(data, str) else data.decode(json.detect_encoding(data))
        value = json.loads(text)
        if text.count("[") + text.count("{") > _MOST_LEVELS and _is_deep(value):
            raise RecursionError
        if r"\ud" in text.lower():
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except UnicodeDecodeError as error:
        reason = f"is not UTF-8 at byte {error.start}; expected JSON"
    except UnicodeEncodeError:
        reason = "is not valid JSON (a lone surrogate, \\ud800 to \\udfff)"
    except json.JSONDecodeError as error:
        where += f":{error.lineno}" if number_lines else ""
        reason = f"is not valid JSON ({error.msg})"
    except RecursionError:
        reason = "is not valid JSON (nested too deeply)"
    except ValueError:  # Python's limit for digits
        reason = "is not valid JSON (a number of thousands of digits)"
    raise InputError(f"{where}: {reason}{remedy and '; '}{remedy}")


def read_tool_call(call: Any) -> dict[str, Any]:
    """A tool call of a message as chat templates take it: its arguments, JSON as text in APIs, as an object.

    Raises:
      TypeError, KeyError, ValueError, RecursionError: it is no function with name and arguments.
    """
    function = call["function"]
    arguments = function["arguments"]
    arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
    if not isinstance(arguments, dict) or not isinstance(function["name"], str):
        raise ValueError("expected a name, and arguments by name")
    return {**call, "function": {**function, "arguments": arguments}}


def _is_deep(value: Any) -> bool:
    """Whether objects and lists are nested deeper than `_MOST_LEVELS`."""
    level = [value]
    for _ in range(_MOST_LEVELS + 1):
        inner = (item.values() if isinstance(item, dict) else item for item in level if isinstance(item, dict | list))
        level = [child for children in inner for child in children if isinstance(child, dict | list)]
        if not level:
            return False
    return True
