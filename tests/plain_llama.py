"""Llama, its loss and AdamW written from their definitions without this project's code, to compare training curves
with.

Weights are kept as Hugging Face names and orients them (out x in), so that not even the layout is shared.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np


def norm(x, weight, epsilon):
    return weight * x / jnp.sqrt(jnp.mean(x**2, axis=-1, keepdims=True) + epsilon)


def turn(x, theta):
    """Rotary positions of B x heads x L x Dh."""
    length, size = x.shape[-2:]
    angles = np.arange(length)[:, None] / theta ** (np.arange(0, size, 2) / size)
    cos, sin = np.cos(np.concatenate([angles] * 2, 1)), np.sin(np.concatenate([angles] * 2, 1))
    left, right = x[..., : size // 2], x[..., size // 2 :]
    return x * jnp.float32(cos) + jnp.concatenate([-right, left], -1) * jnp.float32(sin)


def scores(shape, weights, tokens):
    """Scores B x L x V of the tokens after each token."""
    batch, length = tokens.shape
    x = weights["embed"][tokens]
    for layer in weights["layers"]:
        h = norm(x, layer["input_norm"], shape["epsilon"])
        q, k, v = (
            (h @ layer[name].T).reshape(batch, length, -1, shape["head"]).transpose(0, 2, 1, 3)
            for name in ("q_proj", "k_proj", "v_proj")
        )
        q, k = turn(q, shape["theta"]), turn(k, shape["theta"])
        k, v = (jnp.repeat(states, q.shape[1] // states.shape[1], axis=1) for states in (k, v))
        logits = q @ k.transpose(0, 1, 3, 2) / np.sqrt(shape["head"])
        attention = jax.nn.softmax(jnp.where(np.tri(length, dtype=bool), logits, -jnp.inf), axis=-1)
        x = x + (attention @ v).transpose(0, 2, 1, 3).reshape(batch, length, -1) @ layer["o_proj"].T
        h = norm(x, layer["post_norm"], shape["epsilon"])
        gate = h @ layer["gate_proj"].T
        x = x + (gate / (1 + jnp.exp(-gate)) * (h @ layer["up_proj"].T)) @ layer["down_proj"].T
    return norm(x, weights["norm"], shape["epsilon"]) @ weights["embed"].T


def loss(shape, weights, tokens):
    """Mean cross-entropy in nats."""
    logits = scores(shape, weights, tokens[:, :-1])
    right = jnp.take_along_axis(logits, tokens[:, 1:, None], axis=-1)[..., 0]
    return jnp.mean(jnp.log(jnp.sum(jnp.exp(logits), axis=-1)) - right)


def train(shape, weights, batches, *, rate, warmup, beta1=0.9, beta2=0.95, epsilon=1e-8, decay=0.1, clip=1.0):
    """The loss of every step: linear warm-up to `rate`, linear decay to zero at the last batch, AdamW, clipped
    gradients.
    """

    @jax.jit
    def step(weights, first, second, count, learning, tokens):
        value, gradient = jax.value_and_grad(functools.partial(loss, shape))(weights, tokens)
        size = jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(gradient)))
        gradient = jax.tree.map(lambda g: g * jnp.minimum(1.0, clip / size), gradient)
        first = jax.tree.map(lambda m, g: beta1 * m + (1 - beta1) * g, first, gradient)
        second = jax.tree.map(lambda s, g: beta2 * s + (1 - beta2) * g**2, second, gradient)

        def update(w, m, s):
            move = (m / (1 - beta1**count)) / (jnp.sqrt(s / (1 - beta2**count)) + epsilon)
            return w - learning * (move + (decay * w if w.ndim > 1 else 0.0))

        return jax.tree.map(update, weights, first, second), first, second, value

    zeros = jax.tree.map(jnp.zeros_like, weights)
    first, second, losses = zeros, zeros, []
    for number, tokens in enumerate(batches):
        learning = rate * min((number + 1) / warmup, 1) * (1 - max(number - warmup, 0) / (len(batches) - warmup))
        weights, first, second, value = step(
            weights, first, second, jnp.float32(number + 1), jnp.float32(learning), tokens
        )
        losses.append(value)
    return np.array(losses)
