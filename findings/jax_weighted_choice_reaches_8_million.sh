#!/usr/bin/env bash
# jax 0.10.2, Python 3.11 (0.12.0.1 draws alike), default float32.
#
# Expected: jax.random.choice(key, n, shape, p=weights) draws each of n documents by its weight, within a rounding of float32.
# Seen: a draw is a place in the cumulative weights, and there are 2^23 places, whatever n is. Of 20 million documents of equal
# weight 58 % are drawn under no key at all, and of 5 million some are drawn twice as often as others. Nothing is said; a
# million draws of 20 million hold more than twice the repeats that they should. Without p the same call is right.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PY'
import math

import jax
import jax.numpy as jnp
import numpy as np

DOCUMENTS, DRAWS = 20_000_000, 1_000_000


def repeats(weights):
    """The draws that bring a document which was drawn before."""
    drawn = jax.random.choice(jax.random.key(0), DOCUMENTS, (DRAWS,), p=weights)
    return DRAWS - len(np.unique(np.asarray(drawn)))


expected = DRAWS - DOCUMENTS * -math.expm1(-DRAWS / DOCUMENTS)
plain, weighted = repeats(None), repeats(jnp.full(DOCUMENTS, 1 / DOCUMENTS))
print(f"repeats in {DRAWS:,} draws of {DOCUMENTS:,}: {expected:,.0f} by the weights, {plain:,} without p, {weighted:,} with p")
assert abs(plain / expected - 1) < 0.05, "the control is off"
assert weighted > 2 * expected, "behaviour changed"
PY
