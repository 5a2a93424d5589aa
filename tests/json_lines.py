"""JSON Lines files in tests."""

import json
from pathlib import Path
from typing import Any


def json_lines(path: str | Path) -> list[Any]:
    """The JSON values in a file, one a line."""
    return [json.loads(line) for line in Path(path).read_text().splitlines()]
