#!/usr/bin/env bash
# maxtext 0.2.5 (with the packages of its extra "tpu"), jax on CPU, Python 3.12.
#
# Expected: with logits_via_embedding=True, dtype=float32 and weight_dtype=float32 (and logits_dot_in_fp32=True besides),
# logits are float32 products with the embedding, as they are with an output matrix of its own.
# Seen: the embedding is rounded to bfloat16 for this product, in every setting: logits are float32 numbers with the
# accuracy of bfloat16. A model of 17 million parameters that was read from a Hugging Face folder begins with a loss of
# 9.049598 where all other trainers find 9.049530, and its gradients are rounded alike.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3.12 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check 'maxtext[tpu]==0.2.5'
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PY'
import types

import jax
import jax.numpy as jnp
from maxtext.common.common_types import ShardMode
from maxtext.layers.embeddings import attend_on_embedding

config = types.SimpleNamespace(shard_mode=ShardMode.AUTO, parameter_memory_host_offload=False)
embedding = jax.random.normal(jax.random.key(0), (512, 64), jnp.float32)
logits = attend_on_embedding(jnp.eye(64, dtype=jnp.float32), embedding, jnp.float32, config)
off = float(jnp.abs(logits - embedding.T).max())
print(f"type of the logits {logits.dtype}, furthest from the embedding they are read from: {off:.4f}")
assert logits.dtype == jnp.float32, "behaviour changed"
assert off > 1e-3, "behaviour changed"
PY
