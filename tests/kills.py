"""How often a test kills what it tests: a few times in CI, DIVERSITY_JAX_TEST_KILLS times where that is set."""

import os


def kills(few: int) -> int:
    """The number of kills where nobody asks for another."""
    return int(os.environ.get("DIVERSITY_JAX_TEST_KILLS", few))
