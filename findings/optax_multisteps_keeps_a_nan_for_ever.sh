#!/usr/bin/env bash
# optax 0.2.8, jax 0.10.2, Python 3.11.
#
# Expected: MultiSteps sets its accumulated gradients back to zero after each step of the wrapped optimizer, as its
# docstring says, so one batch with a NaN in its gradient spoils one step; a guard inside (zero_nans, apply_if_finite) lets
# the run go on behind it.
# Seen: they are set back by a multiplication with zero, and 0 * NaN is NaN. With zero_nans inside, an element whose
# gradient was NaN once is never trained again, while loss and updates stay finite; with apply_if_finite inside nothing is
# trained again (until its limit of errors, when NaN reaches the parameters). The same optimizer behind a mean taken by hand
# goes on, and so does MultiSteps where the guard is should_skip_update_fn.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2 optax==0.2.8
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PY'
import jax
import jax.numpy as jnp
import optax

STEPS, EVERY = 50, 2
GOOD, BAD = jnp.ones(4), jnp.array([1.0, jnp.nan, 1.0, 1.0])
guards = {
    "zero_nans": lambda: optax.chain(optax.zero_nans(), optax.sgd(1.0)),
    "apply_if_finite": lambda: optax.apply_if_finite(optax.sgd(1.0), max_consecutive_errors=STEPS),
}


def batches(step):
    """The gradients of the batches of a step; one of the second step holds a NaN."""
    return [BAD if step == 1 else GOOD] + [GOOD] * (EVERY - 1)


def trained(optimizer, by_hand):
    params = jnp.zeros(4)
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for step in range(STEPS):
        gradients = batches(step)
        for gradient in [sum(gradients) / EVERY] if by_hand else gradients:
            updates, state = update(gradient, state, params)
            params = optax.apply_updates(params, updates)
    return params.tolist()


found = {}
for name, guarded in guards.items():
    by_hand, found[name] = trained(guarded(), True), trained(optax.MultiSteps(guarded(), EVERY), False)
    print(f"{name:15} mean by hand: {by_hand}  MultiSteps: {found[name]}")
    assert by_hand[1] == 1.0 - STEPS, "the control is off"
skipping = optax.MultiSteps(optax.sgd(1.0), EVERY, should_skip_update_fn=optax.skip_not_finite)
print("should_skip_update_fn:", skipped := trained(skipping, False))
assert skipped == [1.0 - STEPS] * 4, "the control is off"
assert found["zero_nans"] == [-STEPS, -1.0, -STEPS, -STEPS], "behaviour changed"
assert found["apply_if_finite"] == [-1.0] * 4, "behaviour changed"
PY
