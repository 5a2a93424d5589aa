#!/usr/bin/env bash
# jax 0.10.2, Python 3.11, 8 devices on CPU.
#
# Expected: the data-parallel step of every tutorial, pmean(grad(loss)(params, my_rows)), gives under jax.shard_map what
# it gives under jax.pmap: the gradient of the mean loss over all rows, on however many devices.
# Seen: under shard_map grad of parameters that are the same on all devices already adds up over the devices, and pmean
# of equal numbers changes nothing, so the gradient is as many times too large as there are devices. Nothing is said:
# Adam's steps look alike, while SGD's learning rate, clipping by norm and the logged norm depend on the number of
# devices. check_vma=False gives the mean again; so does grad of a pmean of the loss, which without the check gives each
# device its own.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2
JAX_PLATFORMS=cpu XLA_FLAGS=--xla_force_host_platform_device_count=8 "$folder/venv/bin/python" - <<'PY'
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

params, rows = jnp.ones(3), jax.random.normal(jax.random.key(0), (64, 3))


def loss(params, rows):
    return jnp.mean((rows @ params - 1) ** 2)


def step(params, rows):
    return jax.lax.pmean(jax.grad(loss)(params, rows), "data")


def loss_first(params, rows):
    return jax.grad(lambda params: jax.lax.pmean(loss(params, rows), "data"))(params)


def sharded(function, devices, **options):
    mesh = jax.sharding.Mesh(jax.devices()[:devices], ("data",))
    run = jax.shard_map(function, mesh=mesh, in_specs=(P(), P("data")), out_specs=P(), **options)
    return jax.jit(run)(params, rows)


true = jax.grad(loss)(params, rows)
mapped = jax.pmap(step, "data", in_axes=(None, 0))(params, rows.reshape(8, 8, 3))[0]
found = {"pmap, 8 devices": mapped, "check_vma=False, 8 devices": sharded(step, 8, check_vma=False)}
found |= {f"shard_map, {devices} devices": sharded(step, devices) for devices in (1, 2, 4, 8)}
found["grad of pmean, 8 devices"] = sharded(loss_first, 8)
times = {name: float(jnp.linalg.norm(gradient) / jnp.linalg.norm(true)) for name, gradient in found.items()}
print({name: round(ratio, 4) for name, ratio in times.items()}, "times the gradient of the mean loss")
for name, ratio in times.items():
    expected = int(name.split()[1]) if name.startswith("shard_map") else 1
    assert abs(ratio / expected - 1) < 1e-4, f"{name}: behaviour changed"
PY
