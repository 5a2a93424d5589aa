"""A Llama train step in plain JAX: the speed that a framework built on JAX should reach.

    python scripts/benchmarks/peers/jax_llama_step.py --tied --attention cudnn

SwiGLU, RMSNorm, half-split rotary, causal attention, AdamW (0.9, 0.95, weight decay 0.1); parameters and moments in
float32, products in bfloat16 on accelerators.
"""

import math

import common
import jax
import jax.numpy as jnp
import optax


def init(c, key):
    """Parameters: normal with deviation 0.02, norms at 1; layers apart, for a loop that is unrolled."""
    kv_heads, size = c.kv_heads or c.heads, c.hidden // c.heads
    layer = {
        "query": (c.hidden, c.heads, size),
        "key": (c.hidden, kv_heads, size),
        "value": (c.hidden, kv_heads, size),
        "out": (c.heads, size, c.hidden),
        "gate": (c.hidden, c.intermediate),
        "up": (c.hidden, c.intermediate),
        "down": (c.intermediate, c.hidden),
    }
    shapes = {"layers": [layer] * c.layers, "embedding": (c.vocab, c.hidden)}
    if not c.tied:
        shapes["head"] = (c.vocab, c.hidden)
    leaves, tree = jax.tree.flatten(shapes, is_leaf=lambda x: isinstance(x, tuple))
    keys = jax.random.split(key, len(leaves))
    matrices = [0.02 * jax.random.normal(k, shape) for k, shape in zip(keys, leaves, strict=True)]
    norms = {"attention": jnp.ones((c.layers, c.hidden)), "mlp": jnp.ones((c.layers, c.hidden))}
    return {**jax.tree.unflatten(tree, matrices), "norms": norms | {"final": jnp.ones(c.hidden)}}


def normalise(x, scale):
    """RMSNorm, in float32."""
    wide = x.astype(jnp.float32)
    return (wide * jax.lax.rsqrt(jnp.square(wide).mean(-1, keepdims=True) + 1e-5) * scale).astype(x.dtype)


def rotary(x_BLHD, angles_LD):
    """Rotates the first half of a head's features against the second."""
    first, second = jnp.split(x_BLHD.astype(jnp.float32), 2, axis=-1)
    cos, sin = jnp.cos(angles_LD)[:, None], jnp.sin(angles_LD)[:, None]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1).astype(x_BLHD.dtype)


def logits(params, tokens, c, dtype):
    """Logits in float32."""
    size = c.hidden // c.heads
    angles = jnp.outer(jnp.arange(c.length), 10000.0 ** (-jnp.arange(0, size, 2) / size))
    x = params["embedding"][tokens].astype(dtype)
    for index, layer in enumerate(params["layers"]):
        weights = jax.tree.map(lambda a: a.astype(dtype), layer)
        h = normalise(x, params["norms"]["attention"][index])
        query, key, value = (jnp.einsum("bld,dhk->blhk", h, weights[name]) for name in ("query", "key", "value"))
        attended = jax.nn.dot_product_attention(
            rotary(query, angles),
            rotary(key, angles),
            value,
            is_causal=True,
            scale=1 / math.sqrt(size),
            implementation=c.attention,
        )
        x = x + jnp.einsum("blhk,hkd->bld", attended, weights["out"])
        h = normalise(x, params["norms"]["mlp"][index])
        x = x + (jax.nn.silu(h @ weights["gate"]) * (h @ weights["up"])) @ weights["down"]
    head = params["embedding" if c.tied else "head"].astype(dtype)
    return jnp.einsum("bld,vd->blv", normalise(x, params["norms"]["final"]), head, preferred_element_type=jnp.float32)


def main() -> None:
    """Measures the step."""
    flags = common.parser(__doc__)
    flags.add_argument("--attention", choices=("xla", "cudnn"), help="default: cudnn on NVIDIA")
    c = flags.parse_args()
    platform = jax.default_backend()
    dtype = jnp.float32 if platform == "cpu" else jnp.bfloat16
    c.attention = c.attention or ("cudnn" if platform == "gpu" else "xla")
    optimizer = optax.adamw(3e-4, b1=0.9, b2=0.95, weight_decay=0.1)
    params = jax.jit(lambda key: init(c, key))(jax.random.key(c.seed))
    state = optimizer.init(params)
    data = jax.random.randint(jax.random.key(c.seed + 1), (c.batch, c.length + 1), 0, c.vocab)

    def update(params, state, data):
        def loss(params):
            scores = logits(params, data[:, :-1], c, dtype)
            return optax.softmax_cross_entropy_with_integer_labels(scores, data[:, 1:]).mean()

        value, gradients = jax.value_and_grad(loss)(params)
        changes, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, changes), state, value

    compiled = jax.jit(update, donate_argnums=(0, 1))

    def step() -> float:
        nonlocal params, state
        params, state, loss = jax.block_until_ready(compiled(params, state, data))
        return float(loss)

    device = jax.local_devices()[0]
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    details = {"framework": f"jax {jax.__version__}", "device": device.device_kind, "attention": c.attention}
    peak = lambda: (device.memory_stats() or {}).get("peak_bytes_in_use")  # noqa: E731
    common.measure(step, c, peak, parameters=int(count), **details)


if __name__ == "__main__":
    main()
