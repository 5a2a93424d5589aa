"""Log-likelihoods of token sequences: packed into rows of prefix trees, in few compiled shapes, sharded over a mesh.

A row holds prefix trees in preorder, so that common prefixes are stored and computed once. Sequences in lexicographic
order are a depth-first walk of their tree: each adds to the row the tokens after its common prefix with the previous.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
import functools
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
import numpy as np

from diversity_jax.core.errors import InputError
from diversity_jax.model.cache import forest_hidden_states
from diversity_jax.model.config import LlamaConfig
from diversity_jax.model.llama import Params, head_weight
from diversity_jax.model.sharding import row_shards, spec

_SMALLEST_ROW = 128
_SEARCHED_AT_ONCE = 64  # sequences scored at once in the search for the first log-likelihood that is not finite
_LEAST_SHARED = 8  # tokens; sequences with a shorter common prefix may be packed into different rows


@dataclass(frozen=True, kw_only=True)
class Scored:
    """Token ids of which the last `scored` are scored, each given all before it; at least one precedes them."""

    tokens: tuple[int, ...]
    scored: int

    def __post_init__(self) -> None:
        if not 0 < self.scored < len(self.tokens):
            raise InputError(f"{self.scored} of {len(self.tokens)} tokens are scored; expected at least 1, and not all")


@dataclass(frozen=True, kw_only=True)
class Likelihood:
    """Log-likelihood of a sequence's scored tokens in nats, and whether each of them was the most likely one."""

    nats: float
    greedy: bool


@dataclass(kw_only=True)
class Row:
    """A row of prefix trees.

    Attributes:
      tokens, depths, ends: of each position its id, its depth in the tree, one past its last descendant.
      edges: (position, next token) -> number, of every scored prediction.
      members: (the sequence's number, the numbers of its predictions in order).
    """

    tokens: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    edges: dict[tuple[int, int], int] = field(default_factory=dict)
    members: list[tuple[int, list[int]]] = field(default_factory=list)

    @property
    def length(self) -> int:
        """Number of positions with padding."""
        return row_length(max(len(self.tokens), len(self.edges)))

    def arrays(self) -> dict[str, np.ndarray]:
        """int32 [length]: `tokens`, `positions` (depths), `ends`, `parents` (first `count`: positions that predict),
        and of each prediction `edge_parent` (index into `parents`) and `edge_token`.
        """
        names = ("tokens", "positions", "ends", "parents", "edge_parent", "edge_token")
        out = {name: np.zeros(self.length, np.int32) for name in names}
        used = len(self.tokens)
        out["tokens"][:used], out["positions"][:used], out["ends"][:used] = self.tokens, self.depths, self.ends
        # A padding position attends to itself, so that no softmax is empty.
        out["ends"][used:] = np.arange(used, self.length) + 1
        parents = sorted({position for position, _ in self.edges})
        number = {position: index for index, position in enumerate(parents)}
        out["parents"][: len(parents)] = parents
        for (position, token), edge in self.edges.items():
            out["edge_parent"][edge], out["edge_token"][edge] = number[position], token
        out["count"] = np.array(len(parents), np.int32)
        return out


def shared_length(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common prefix of two sequences."""
    low, high = 0, min(len(a), len(b))
    if a[:high] == b[:high]:
        return high
    while high - low > 1:  # a[:low] == b[:low], a[:high] != b[:high]; comparing slices is faster than single tokens
        middle = (low + high) // 2
        low, high = (middle, high) if a[low:middle] == b[low:middle] else (low, middle)
    return low


def row_length(tokens: int) -> int:
    """The smallest power of two from 128 on that holds this number of tokens."""
    return max(_SMALLEST_ROW, 1 << (tokens - 1).bit_length())


def pack(sequences: Sequence[Scored], *, row_tokens: int) -> list[Row]:
    """Packs sequences into rows of few lengths: groups with a common prefix by best fit, the largest first.

    The packing, and so the results, depend on the sequences alone, not on a batch size or a mesh.

    Args:
      row_tokens: positions of a row, a power of two; a longer sequence gets a longer row, and a row with much free
        space is shortened.
    """
    plans: list[list[list[int]]] = []
    free: dict[int, list[tuple[int, int]]] = {}  # row length -> (free positions, plan's number)
    for size, group in sorted(_groups(sequences, row_tokens), key=lambda item: -item[0]):
        length = max(row_tokens, row_length(size))
        rows = free.setdefault(length, [])
        best = min((row for row in rows if row[0] >= size), default=None)
        if best is None:
            plans.append([])
            best = (length, len(plans) - 1)
        else:
            rows.remove(best)
        left, number = best[0] - size, best[1]
        plans[number].append(group)
        if left:
            rows.append((left, number))
    return [_filled(sequences, plan) for plan in plans]


def _groups(sequences: Sequence[Scored], row_tokens: int) -> list[tuple[int, list[int]]]:
    """(positions, sequence numbers) of groups of lexicographic neighbours with a common prefix."""
    groups: list[tuple[int, list[int]]] = []
    positions, predictions = 0, 0
    previous: tuple[int, ...] = ()
    for number in sorted(range(len(sequences)), key=lambda number: sequences[number].tokens):
        tokens, scored = sequences[number].tokens, sequences[number].scored
        shared = shared_length(previous, tokens)
        grown = positions + len(tokens) - shared, predictions + (scored if tokens != previous else 0)
        if groups and shared >= _LEAST_SHARED and max(grown) <= max(row_tokens, row_length(positions)):
            positions, predictions = grown
            groups[-1] = (max(grown), [*groups[-1][1], number])
        else:
            positions, predictions = len(tokens), scored
            groups.append((positions, [number]))
        previous = tokens
    return groups


def _filled(sequences: Sequence[Scored], plan: Sequence[Sequence[int]]) -> Row:
    row = Row()
    for group in plan:
        path: list[int] = []  # positions of the sequence before, by depth
        previous: tuple[int, ...] = ()
        for number in group:
            tokens, scored = sequences[number].tokens, sequences[number].scored
            shared = min(shared_length(previous, tokens), len(path), len(tokens) - 1)
            for position in path[shared:]:
                row.ends[position] = len(row.tokens)
            del path[shared:]
            for token in tokens[len(path) : -1]:  # the last is predicted, never read
                row.depths.append(len(path))
                path.append(len(row.tokens))
                row.tokens.append(token)
                row.ends.append(0)
            targets = range(len(tokens) - scored, len(tokens))
            edges = [row.edges.setdefault((path[i - 1], tokens[i]), len(row.edges)) for i in targets]
            row.members.append((number, edges))
            previous = tokens
        for position in path:
            row.ends[position] = len(row.tokens)
    return row


class Scorer:
    """Scores sequences under a model.

    A compiled program loops over steps of a fixed number of rows per device, so that results do not depend on
    `batch_size`; a data-parallel mesh runs the same shapes on each device.

    Args:
      params: in the layout of `for_inference`, on the mesh.
      batch_size: rows sent to the devices at once.
    """

    def __init__(self, config: LlamaConfig, params: Params, mesh: Mesh, *, batch_size: int = 8):
        self._params, self._mesh, self._batch_size = params, mesh, batch_size
        on_cpu = mesh.devices.flat[0].platform == "cpu"
        self.row_tokens = 256 if on_cpu else 1024  # long rows keep an accelerator busy
        self._step_tokens = 0 if on_cpu else 8192  # computed at once on a device, but at least one row
        self._block = 64 if on_cpu else 256  # positions whose logits over the vocabulary exist at once
        self._row_shards = row_shards(mesh)
        self._compiled = jax.jit(functools.partial(_score, config, mesh, self._block))

    def plan(self, sequences: Sequence[Scored]) -> list[Row]:
        """The rows to compute, longest first."""
        return sorted(pack(sequences, row_tokens=self.row_tokens), key=lambda row: (-row.length, row.members[0][0]))

    def run(self, rows: Sequence[Row]) -> Iterator[dict[int, Likelihood]]:
        """Results by sequence number, a batch at a time; the next batch is computed while one is processed."""
        computing: tuple[Sequence[Row], Any] | None = None
        for length, same_length in itertools.groupby(rows, key=lambda row: row.length):
            group = sorted(same_length, key=lambda row: -len(row.edges))
            step = self._row_shards * max(1, self._step_tokens // length)
            size = step * max(1, -(-self._batch_size // step))
            for start in range(0, len(group), size):
                batch = group[start : start + size]
                previous, computing = computing, (batch, self._dispatch(batch, size, step))
                if previous is not None:
                    yield _collect(*previous)
        if computing is not None:
            yield _collect(*computing)

    def score(
        self,
        sequences: Sequence[Scored],
        progress: Callable[[int], None] = lambda completed: None,
        *,
        name: Callable[[int], str] = "sequence {}".format,
    ) -> list[Likelihood]:
        """One result per sequence, in order.

        Args:
          progress: called with the number of newly completed sequences.
          name: of a sequence by its number, for errors.

        Raises:
          InputError: a log-likelihood is not finite; the message names the first such sequence.
        """
        results: dict[int, Likelihood] = {}
        for batch in self.run(self.plan(sequences)):
            self.refuse_not_finite(batch, sequences, name)
            results |= batch
            progress(len(batch))
        return [results[number] for number in range(len(sequences))]

    def refuse_not_finite(
        self, results: Mapping[int, Likelihood], sequences: Sequence[Scored], name: Callable[[int], str]
    ) -> None:
        """Raises `InputError` where a result is not finite; names the first of all `sequences` with such a result."""
        first = min((number for number, result in results.items() if not math.isfinite(result.nats)), default=None)
        if first is None:
            return
        number, nats = self._first_alone(sequences) or (first, results[first].nats)
        raise InputError(
            f"{name(number)}: its log-likelihood is {nats:g}, so no figure of this model can be trusted; look at its "
            "weights, or at model.compute_dtype"
        )

    def _first_alone(self, sequences: Sequence[Scored]) -> tuple[int, float] | None:
        """Number and log-likelihood of the first sequence that is not finite in a row of its own: rows are computed in
        another order than the sequences', and a NaN spreads within its row.
        """
        for start in range(0, len(sequences), _SEARCHED_AT_ONCE):
            part = sequences[start : start + _SEARCHED_AT_ONCE]
            together = {number: result for batch in self.run(self.plan(part)) for number, result in batch.items()}
            for number in sorted(number for number, result in together.items() if not math.isfinite(result.nats)):
                [alone] = [batch[0] for batch in self.run(self.plan(part[number : number + 1]))]
                if not math.isfinite(alone.nats):
                    return start + number, alone.nats
        return None

    def _dispatch(self, rows: Sequence[Row], size: int, step: int) -> Any:
        arrays = [row.arrays() for row in rows]
        padding = {name: np.zeros_like(value) for name, value in arrays[0].items()}
        padding["ends"] = np.arange(1, rows[0].length + 1, dtype=np.int32)
        arrays += [padding] * (size - len(rows))
        stacked = {name: np.stack([row[name] for row in arrays]).reshape(size // step, step, -1) for name in padding}
        counts = stacked.pop("count")[..., 0].max(axis=1)
        sharded = jax.device_put(stacked, NamedSharding(self._mesh, spec(None, "batch", None)))
        return self._compiled(self._params, sharded, jnp.asarray(-(-counts // self._block)), -(-len(rows) // step))


def _score(
    config: LlamaConfig,
    mesh: Mesh,
    block: int,
    params: Params,
    rows: dict[str, jax.Array],
    blocks_N: jax.Array,
    steps: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Log-probability of every prediction, and whether it is greedy, N x B x L, of the first `steps` of N steps.

    Args:
      block: positions whose logits exist at once.
      rows: arrays of `Row.arrays`, N x B x L.
      blocks_N: number of blocks with scored positions in each step.
    """
    N, B, L = rows["tokens"].shape
    head_DxV = head_weight(config, params)
    block = min(block, L)

    def score_step(n: jax.Array, out: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        row = {name: jax.lax.dynamic_index_in_dim(value, n, 0, keepdims=False) for name, value in rows.items()}
        hidden_BxLxD = forest_hidden_states(config, params, row["tokens"], row["positions"], row["ends"], mesh=mesh)
        hidden_BxLxD = jnp.take_along_axis(hidden_BxLxD, row["parents"][..., None], axis=1)

        def normalise(index: jax.Array, out: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, ...]:
            part_BxSxD = jax.lax.dynamic_slice_in_dim(hidden_BxLxD, index * block, block, 1)
            logits_BxSxV = jnp.einsum("bsd,dv->bsv", part_BxSxD, head_DxV, preferred_element_type=jnp.float32)
            new = jax.nn.logsumexp(logits_BxSxV, axis=-1), jnp.argmax(logits_BxSxV, axis=-1).astype(jnp.int32)
            return tuple(
                jax.lax.dynamic_update_slice_in_dim(old, value, index * block, 1)
                for old, value in zip(out, new, strict=True)
            )

        start = (jnp.zeros((B, L), jnp.float32), jnp.zeros((B, L), jnp.int32))
        total_BxL, best_BxL = jax.lax.fori_loop(0, blocks_N[n], normalise, start)
        parent_BxL, token_BxL = row["edge_parent"], row["edge_token"]
        from_BxLxD = jnp.take_along_axis(hidden_BxLxD, parent_BxL[..., None], axis=1)
        to_BxLxD = params["embed"][token_BxL] if config.tie_embeddings else params["head"].T[token_BxL]
        score_BxL = jnp.einsum("bld,bld->bl", from_BxLxD, to_BxLxD, preferred_element_type=jnp.float32)
        nats_BxL = score_BxL - jnp.take_along_axis(total_BxL, parent_BxL, axis=1)
        greedy_BxL = jnp.take_along_axis(best_BxL, parent_BxL, axis=1) == token_BxL
        nats_NxBxL, greedy_NxBxL = out
        return (
            jax.lax.dynamic_update_index_in_dim(nats_NxBxL, nats_BxL, n, 0),
            jax.lax.dynamic_update_index_in_dim(greedy_NxBxL, greedy_BxL, n, 0),
        )

    return jax.lax.fori_loop(0, steps, score_step, (jnp.zeros((N, B, L), jnp.float32), jnp.zeros((N, B, L), bool)))


def _collect(rows: Sequence[Row], out: Any) -> dict[int, Likelihood]:
    nats, greedy = (np.asarray(value).reshape(-1, value.shape[-1]) for value in out)
    nats = nats.astype(np.float64)
    return {
        number: Likelihood(nats=float(nats[index, edges].sum()), greedy=bool(greedy[index, edges].all()))
        for index, row in enumerate(rows)
        for number, edges in row.members
    }
