"""Log-likelihoods of token sequences: packed into forests, scored in few compiled shapes, sharded over a mesh."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
import numpy as np

from diversity_jax.evaluation.prefix_packing import Row, Scored, pack
from diversity_jax.model.config import LlamaConfig
from diversity_jax.model.decode import forest_hidden_states
from diversity_jax.model.llama import Params, head_weight
from diversity_jax.model.sharding import spec

_ROW_TOKENS = {"cpu": 256}  # elsewhere long rows keep the device busy
_ROW_TOKENS_ELSEWHERE = 1024
_STEP_TOKENS_ELSEWHERE = 8192  # computed at once on a device; on CPU one row is


@dataclass(frozen=True, kw_only=True)
class Likelihood:
    """Log-likelihood of a sequence's scored tokens in nats, and whether each of them was the most likely one."""

    nats: float
    greedy: bool


class Scorer:
    """Scores sequences under a model.

    Rows are computed in steps of a fixed number a device, in a loop inside one compiled program, so that a result does
    not depend on how many rows are sent at once; a data-parallel mesh runs the same shapes on each device.

    Args:
      config, params: the model; parameters as `for_inference` lays them out, on the mesh.
      batch_size: rows sent to the devices at once.
    """

    def __init__(self, config: LlamaConfig, params: Params, mesh: Mesh, *, batch_size: int = 8):
        self._params, self._mesh = params, mesh
        platform = mesh.devices.flat[0].platform
        self.row_tokens = _ROW_TOKENS.get(platform, _ROW_TOKENS_ELSEWHERE)
        self._step_tokens = _STEP_TOKENS_ELSEWHERE if platform != "cpu" else 0
        self._piece = 64 if platform == "cpu" else 256
        self._devices = mesh.shape["data"] * mesh.shape["fsdp"]
        self._batch_size = batch_size
        self._compiled = jax.jit(functools.partial(_score, config, self._piece))

    def plan(self, sequences: Sequence[Scored]) -> list[Row]:
        """The rows that will be computed, longest first."""
        return sorted(pack(sequences, row_tokens=self.row_tokens), key=lambda row: (-row.length, row.members[0][0]))

    def run(self, rows: Sequence[Row]) -> Iterator[dict[int, Likelihood]]:
        """Results of the rows, by sequence number, a dispatch at a time; the next one computes while a result is
        used.
        """
        waiting: list[tuple[Sequence[Row], Any]] = []
        for _, same_length in itertools.groupby(rows, key=lambda row: row.length):
            group = sorted(same_length, key=lambda row: -len(row.edges))
            step = self._rows_in_step(group[0].length)
            size = step * max(1, -(-self._batch_size // step))
            for start in range(0, len(group), size):
                batch = group[start : start + size]
                waiting.append((batch, self._dispatch(batch, size, step)))
                if len(waiting) > 1:
                    yield _collect(*waiting.pop(0))
        for item in waiting:
            yield _collect(*item)

    def score(
        self, sequences: Sequence[Scored], progress: Callable[[int], None] = lambda done: None
    ) -> list[Likelihood]:
        """One result a sequence, in order; `progress` is told how many more are done."""
        results: dict[int, Likelihood] = {}
        for found in self.run(self.plan(sequences)):
            results |= found
            progress(len(found))
        return [results[number] for number in range(len(sequences))]

    def _rows_in_step(self, length: int) -> int:
        return self._devices * max(1, self._step_tokens // length)

    def _dispatch(self, rows: Sequence[Row], size: int, step: int) -> Any:
        arrays = [row.arrays() for row in rows]
        padding = {name: np.zeros_like(value) for name, value in arrays[0].items()}
        padding["ends"] = np.arange(1, rows[0].length + 1, dtype=np.int32)
        arrays += [padding] * (size - len(rows))
        stacked = {name: np.stack([one[name] for one in arrays]).reshape(size // step, step, -1) for name in padding}
        counts = stacked.pop("count")[..., 0].max(axis=1)
        with jax.set_mesh(self._mesh):
            placed = jax.device_put(stacked, NamedSharding(self._mesh, spec(None, "batch", None)))
            return self._compiled(self._params, placed, jnp.asarray(-(-counts // self._piece)), -(-len(rows) // step))


def _score(
    config: LlamaConfig, piece: int, params: Params, rows: dict[str, jax.Array], pieces_N: jax.Array, steps: jax.Array
):
    """Log-probability and greedy choice of every prediction, N x B x L, of the first `steps` of N steps."""
    N, B, L = rows["tokens"].shape
    head_DxV = head_weight(config, params)
    piece = min(piece, L)

    def one(n, out):
        row = {name: jax.lax.dynamic_index_in_dim(value, n, 0, keepdims=False) for name, value in rows.items()}
        hidden_BxLxD = forest_hidden_states(config, params, row["tokens"], row["positions"], row["ends"])
        hidden_BxLxD = jnp.take_along_axis(hidden_BxLxD, row["parents"][..., None], axis=1)

        def normalise(index, found):
            part = jax.lax.dynamic_slice_in_dim(hidden_BxLxD, index * piece, piece, 1)
            logits = jnp.einsum("bld,dv->blv", part, head_DxV, preferred_element_type=jnp.float32)
            new = jax.nn.logsumexp(logits, axis=-1), jnp.argmax(logits, axis=-1).astype(jnp.int32)
            return tuple(
                jax.lax.dynamic_update_slice_in_dim(old, value, index * piece, 1)
                for old, value in zip(found, new, strict=True)
            )

        start = (jnp.zeros((B, L), jnp.float32), jnp.zeros((B, L), jnp.int32))
        total_BxL, best_BxL = jax.lax.fori_loop(0, pieces_N[n], normalise, start)
        parent, token = row["edge_parent"], row["edge_token"]
        from_BxLxD = jnp.take_along_axis(hidden_BxLxD, parent[..., None], axis=1)
        to_BxLxD = params["embed"][token] if config.tie_embeddings else params["head"].T[token]
        score_BxL = jnp.einsum("bld,bld->bl", from_BxLxD, to_BxLxD, preferred_element_type=jnp.float32)
        nats = score_BxL - jnp.take_along_axis(total_BxL, parent, axis=1)
        greedy = jnp.take_along_axis(best_BxL, parent, axis=1) == token
        return tuple(
            jax.lax.dynamic_update_index_in_dim(old, new, n, 0) for old, new in zip(out, (nats, greedy), strict=True)
        )

    return jax.lax.fori_loop(0, steps, one, (jnp.zeros((N, B, L), jnp.float32), jnp.zeros((N, B, L), bool)))


def _collect(rows: Sequence[Row], out: Any) -> dict[int, Likelihood]:
    nats, greedy = (np.asarray(value).reshape(-1, value.shape[-1]) for value in out)
    nats = nats.astype(np.float64)
    return {
        number: Likelihood(nats=float(nats[place, edges].sum()), greedy=bool(greedy[place, edges].all()))
        for place, row in enumerate(rows)
        for number, edges in row.members
    }
