"""How often a test kills its process: a few times by default, DIVERSITY_JAX_TEST_KILLS times where that is set."""

import os


def kills(few: int) -> int:
    """The number of kills where nobody asks for another."""
    return int(os.environ.get("DIVERSITY_JAX_TEST_KILLS", few))
