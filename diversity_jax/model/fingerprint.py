"""One number for a tree of arrays, to tell whether two are the same."""

from typing import Any

import jax
import jax.numpy as jnp


@jax.jit
def fingerprint(tree: Any) -> jax.Array:
    """A uint32 that changes with any bit of any array and with their order, the same on every mesh.

    Sums wrap around, so they do not depend on the order in which devices add them up.
    """

    def leaf(array: jax.Array) -> jax.Array:
        bits = jax.lax.bitcast_convert_type(array, jnp.uint32).reshape(-1)
        place = 2 * jnp.arange(bits.size, dtype=jnp.uint32) + 1
        mixed = bits ^ (bits >> 15)
        return jnp.sum(mixed * (place * jnp.uint32(2654435761)), dtype=jnp.uint32)

    total = jnp.uint32(0)
    for array in jax.tree.leaves(tree):
        total = total * jnp.uint32(0x01000193) + leaf(array)
    return total
