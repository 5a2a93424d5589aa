"""Paths of real text for tests; tests are skipped where the folder is not present."""

import os
from pathlib import Path

import pytest

_ROOT = Path(os.environ.get("DIVERSITY_JAX_TEST_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))


def shared_file(name: str) -> Path:
    """Path of one file of real test data, or skips the test that asks for it."""
    path = _ROOT / name
    if not path.exists():
        pytest.skip(f"needs the real text {name}, which is not distributed (set DIVERSITY_JAX_TEST_DATA to its folder)")
    return path
