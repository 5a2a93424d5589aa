"""Settings of JAX and hypothesis for tests (CPU, eight devices, compiled programs cached between runs) and the
selection of fast tests.
"""

import functools
import gc
import importlib.util
import logging
import os
from pathlib import Path
import re

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).resolve().parents[1] / ".pytest_cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

SLOW_TESTS = Path(__file__).with_name("slow_tests.txt")


def pytest_addoption(parser):
    parser.addoption("--fast", action="store_true", help="leave out the tests that tests/slow_tests.txt lists")


def pytest_configure(config):
    """Settings of the tests' own process; processes that a test starts have the devices of users, and README's blocks
    their compiler too.
    """
    import hypothesis
    import jax

    jax.config.update("jax_num_cpu_devices", 8)
    # Tests run each program once or twice: compiling it well takes longer than running it badly.
    jax.config.update("jax_disable_most_optimizations", True)
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
    flags = ["--xla_cpu_enable_concurrency_optimized_scheduler=false"]
    if jax.__version_info__ < (0, 11):  # XLA ends the process at flags that it does not know
        flags.append("--xla_cpu_use_fusion_emitters=false")
    os.environ.setdefault("XLA_FLAGS", " ".join(flags))
    # Its limit of 0.2 seconds an example fails on a busy machine.
    hypothesis.settings.register_profile("no_deadline", deadline=None)
    hypothesis.settings.load_profile("no_deadline")


@pytest.fixture(autouse=True)
def log_handlers():
    """The root logger as it was: a command that runs in the tests' process sends messages to that test's output."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@functools.cache
def slow_tests():
    """Node ids of the listed tests, without parameters."""
    return frozenset(SLOW_TESTS.read_text().split())


def pytest_ignore_collect(collection_path, config):
    """In the fast tier, files of which every test is listed are not imported: lm-eval alone takes two seconds."""
    if not config.getoption("--fast") or not collection_path.match("test_*.py"):
        return None
    names = re.findall(r"^def (test_\w+)", collection_path.read_text(), re.MULTILINE)
    return True if all(f"tests/{collection_path.name}::{name}" in slow_tests() for name in names) else None


@pytest.hookimpl(wrapper=True)
def pytest_collection(session):
    """Imports tests without the garbage collector, a sixth of the time, and keeps it from their objects later."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()


def pytest_collection_modifyitems(config, items):
    """Deselects listed tests, whatever their parameters, when asked for the fast tier; skips those of the `gemini`
    provider where requirements.newest.lock, which is without its package, is installed.
    """
    if importlib.util.find_spec("google.generativeai") is None:
        for item in items:
            if hasattr(item, "callspec") and item.callspec.params.get("provider") == "gemini":
                item.add_marker(pytest.mark.skip(reason="google-generativeai is not installed"))
    if not config.getoption("--fast"):
        return
    listed = [item for item in items if item.nodeid.split("[")[0] in slow_tests()]
    config.hook.pytest_deselected(items=listed)
    items[:] = [item for item in items if item.nodeid.split("[")[0] not in slow_tests()]
