"""What the model writes while it is trained: fixed prompts, continued, so that a run's text can be read as its loss
can.
"""

from collections.abc import Sequence
import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np

from diversity_jax.core.errors import InputError
from diversity_jax.mixtures.mixture import Mixture
from diversity_jax.model.config import LlamaConfig
from diversity_jax.model.llama import head_weight, hidden_states
from diversity_jax.prepare.manifest import prepared_tokenizer
from diversity_jax.training.config import TrainConfig
from diversity_jax.training.metrics import append_line, open_log

_SHOWN_CHARACTERS = 160  # of a sample in the console's log


class Samples:
    """Continues `train.sample_prompts` on the training mesh, without a cache: a few short texts now and then do not pay
    for one.

    Each prompt follows an end-of-text token, as every document but the first of a row does in training. The same step
    gives the same text, also at a temperature.

    Raises:
      InputError: a prompt leaves no room for `sample_tokens` within `model.max_length`.
    """

    def __init__(self, mixture: Mixture, model: LlamaConfig, mesh: Mesh, config: TrainConfig):
        self.prompts = config.sample_prompts
        if not self.prompts:
            return
        self._tokenizer = prepared_tokenizer(mixture.taken[0].manifest)
        self._end, self._new = mixture.vocabulary.end_of_text_id, config.sample_tokens
        starts = [[self._end, *self._tokenizer.encode_batch([prompt])[0].tolist()] for prompt in self.prompts]
        rows = -(-len(starts) // (mesh.shape["data"] * mesh.shape["fsdp"])) * mesh.shape["data"] * mesh.shape["fsdp"]
        longest = max(map(len, starts)) + self._new
        if longest > model.max_length:
            raise InputError(
                f"train.sample_tokens={self._new}: with the longest of train.sample_prompts ({longest - self._new} "
                "tokens) that is more "
                f"than model.max_length={model.max_length}; ask for fewer"
            )
        length = -(-longest // 128) * 128  # what every attention kernel takes, and any cut of the sequence
        self._lengths = np.array([len(start) for start in starts] + [1] * (rows - len(starts)), np.int32)
        self._tokens = np.full((rows, length), self._end, np.int32)
        for row, start in enumerate(starts):
            self._tokens[row, : len(start)] = start
        self._mesh, self._write = mesh, _compiled(model, mesh, self._new, config.sample_temperature, config.seed)

    def texts(self, step: int, params: Any) -> list[str]:
        """One continuation for each prompt, cut at the end of its document; the same on every host."""
        if not self.prompts:
            return []
        with jax.set_mesh(self._mesh):
            tokens = np.asarray(self._write(params, self._tokens, self._lengths, np.int32(step)))
        return [
            self._text(tokens[row, length : length + self._new])
            for row, length in enumerate(self._lengths[: len(self.prompts)])
        ]

    def _text(self, ids: np.ndarray) -> str:
        ends = np.flatnonzero(ids == self._end)
        return self._tokenizer.decode(
            [int(i) for i in (ids[: ends[0]] if len(ends) else ids) if i < self._tokenizer.size]
        )


def _compiled(model: LlamaConfig, mesh: Mesh, new_tokens: int, temperature: float, seed: int) -> Any:
    from diversity_jax.training.step import base_shardings

    model = dataclasses.replace(model, dropout=0.0)
    placed = base_shardings(model, mesh)
    whole = NamedSharding(mesh, PartitionSpec())

    def write(params: Any, tokens_BxL: jax.Array, lengths_B: jax.Array, step: jax.Array) -> jax.Array:
        head_DxV, key = head_weight(model, params), jax.random.fold_in(jax.random.key(seed), step)
        rows_B = jnp.arange(tokens_BxL.shape[0])

        def one(index: jax.Array, tokens_BxL: jax.Array) -> jax.Array:
            last_BxD = hidden_states(model, params, tokens_BxL)[rows_B, lengths_B + index - 1]
            scores_BxV = jnp.matmul(last_BxD, head_DxV, preferred_element_type=jnp.float32)
            if temperature:
                chosen_B = jax.random.categorical(jax.random.fold_in(key, index), scores_BxV / temperature)
            else:
                chosen_B = jnp.argmax(scores_BxV, axis=-1)
            return tokens_BxL.at[rows_B, lengths_B + index].set(chosen_B.astype(jnp.int32))

        return jax.lax.fori_loop(0, new_tokens, one, tokens_BxL)

    return jax.jit(write, in_shardings=(placed, whole, whole, whole), out_shardings=whole)


class SampleLog:
    """`samples.jsonl`: a line for each prompt at each step that samples were made at."""

    def __init__(self, folder: Path):
        self._file = open_log(folder / "samples.jsonl")

    def write(self, step: int, prompts: Sequence[str], texts: Sequence[str]) -> None:
        """Appends what was written at a step."""
        for prompt, text in zip(prompts, texts, strict=True):
            append_line(self._file, {"step": step, "prompt": prompt, "text": text})

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def sample_lines(step: int, prompts: Sequence[str], texts: Sequence[str]) -> list[str]:
    """A line for the console for each prompt, cut where it gets long."""
    lines = []
    for prompt, text in zip(prompts, texts, strict=True):
        shown = json.dumps(text, ensure_ascii=False)[1:-1]
        lines.append(
            f"sample at step {step}: [{prompt}] "
            f"{shown[:_SHOWN_CHARACTERS]}{'...' if len(shown) > _SHOWN_CHARACTERS else ''}"
        )
    return lines
