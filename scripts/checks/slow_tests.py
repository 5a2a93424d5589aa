"""Writes tests/slow_tests.txt, the tests that `scripts/test --fast` leaves out, from the durations of a whole run.

    scripts/test --junitxml=/tmp/junit.xml
    python scripts/checks/slow_tests.py /tmp/junit.xml --seconds 0.5

A test function is listed when any of its cases took longer, set-up included. New tests are in the fast tier until they
are listed.
"""

import argparse
from collections.abc import Iterable
from pathlib import Path
import sys
import xml.etree.ElementTree as ElementTree

ROOT = Path(__file__).resolve().parents[2]
LIST = ROOT / "tests" / "slow_tests.txt"


def slow_tests(junit: Path, seconds: float) -> list[str]:
    """Test functions with a case longer than `seconds`, as `tests/test_x.py::test_y` or `...::TestClass::test_y`."""
    results = set()
    for case in ElementTree.parse(junit).iter("testcase"):
        if float(case.get("time", 0)) > seconds:
            module, *classes = _split(case.get("classname", ""))
            function = case.get("name", "").split("[")[0]
            results.add("::".join([module, *classes, function]))
    return sorted(results)


def _split(classname: str) -> Iterable[str]:
    """`tests.test_x.TestY` as `tests/test_x.py` and the classes."""
    parts = classname.split(".")
    length = next(i for i, part in enumerate(parts) if part.startswith("test_")) + 1
    return ["/".join(parts[:length]) + ".py", *parts[length:]]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("junit", type=Path)
    parser.add_argument("--seconds", type=float, default=0.5)
    options = parser.parse_args()
    results = slow_tests(options.junit, options.seconds)
    LIST.write_text("".join(f"{name}\n" for name in results))
    print(f"{len(results)} tests in {LIST.relative_to(ROOT)}", file=sys.stderr)


if __name__ == "__main__":
    main()
