"""Evaluation during training: losses on held-out rows, and continuations of fixed prompts."""

from collections.abc import Callable
import dataclasses
import functools
import itertools

import jax
from jax import Array
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np

from diversity_jax.core.errors import InputError
from diversity_jax.mixtures.loader import Batch, as_arrays
from diversity_jax.mixtures.mixture import Mixture
from diversity_jax.model import LlamaConfig, batch_sharding
from diversity_jax.model.llama import Params, head_weight, hidden_states
from diversity_jax.model.sharding import row_shards
from diversity_jax.prepare.manifest import prepared_tokenizer
from diversity_jax.prepare.rows import RowReader
from diversity_jax.tokenizers.document_start import Boundaries
from diversity_jax.tokenizers.tokenizer import NOTHING_BEGINS
from diversity_jax.training.config import TrainConfig
from diversity_jax.training.data import put
from diversity_jax.training.step import make_eval_step, model_shardings


class HeldOut:
    """Losses on the first held-out rows, at most `batches` batches, of each component."""

    def __init__(
        self, mixture: Mixture, model: LlamaConfig, mesh: Mesh, batch_size: int, batches: int, boundaries: Boundaries
    ):
        self._step = make_eval_step(model, mesh, num_components=1)
        self._sharding, self._batch_size, self._boundaries = batch_sharding(mesh), batch_size, boundaries
        held_out = [part for part in mixture.taken if "validation" in part.prepared.splits]
        self._readers = {part.name: RowReader(part.prepared, "validation") for part in held_out}
        self._rows = {name: min(reader.rows, batches * batch_size) for name, reader in self._readers.items()}

    def losses(self, params: Params, *, stop: Callable[[], bool] = lambda: False) -> dict[str, float]:
        """Nats per token by component, and `all`: their mean weighted by held-out tokens.

        Empty where nothing is held out, or when `stop`, called before every batch, returns True.
        """
        sums = {name: self._sum(params, name, stop) for name, rows in self._rows.items() if rows}
        if stop():
            return {}
        losses = {name: loss / tokens for name, (loss, tokens) in sums.items()}
        if sums:
            losses["all"] = sum(loss for loss, _ in sums.values()) / sum(tokens for _, tokens in sums.values())
        return losses

    def _sum(self, params: Params, name: str, stop: Callable[[], bool]) -> tuple[float, float]:
        """Summed loss and number of target tokens of a component."""
        on_device = []
        for start in range(0, self._rows[name], self._batch_size):
            if stop():
                break
            read = functools.partial(self._read, name, start)
            on_device.append(self._step(params, put(self._batch_size, self._sharding, read)))
        totals = jax.device_get(on_device)
        loss = sum(total["component_loss_sum"][0] for total in totals)
        return float(loss), float(sum(total["component_tokens"][0] for total in totals))

    def _read(self, name: str, start: int, rows: slice) -> dict[str, np.ndarray]:
        """Rows of a batch; those past the last held-out row are read again but masked out of the loss."""
        numbers = np.arange(start, start + self._batch_size)[rows]
        read = self._readers[name].read(numbers)
        component = np.zeros(len(numbers), np.int32)
        batch = Batch(tokens=read.tokens, component=component, targets=read.targets, starts=read.starts)
        arrays = as_arrays(batch, self._boundaries)
        is_held_out = np.broadcast_to(numbers[:, None] < self._rows[name], read.tokens.shape)
        arrays["loss_mask"] = (arrays.get("loss_mask", 1) * is_held_out).astype(np.int32)
        return arrays


class Samples:
    """Continuations of `train.sample_prompts`, generated on the training mesh without a cache, since they are short.

    Each prompt follows the token that begins a document in training, if there is one. Sampling depends on seed and step
    only.

    Raises:
      InputError: a prompt and `sample_tokens` together exceed `model.max_length`, or a prompt has no tokens.
    """

    def __init__(self, mixture: Mixture, model: LlamaConfig, mesh: Mesh, config: TrainConfig):
        self.prompts = config.sample_prompts
        self._tokenizer = prepared_tokenizer(mixture.taken[0].prepared)
        self._end_of_text, self._new_tokens = mixture.vocabulary.end_of_text_id, config.sample_tokens
        start_id = mixture.boundaries(attend_across_documents=config.attend_across_documents).start_id
        begin = [] if start_id is None else [start_id]
        prompts = [[*begin, *self._tokenizer.encode_batch([text])[0].tolist()] for text in self.prompts]
        if not all(prompts):
            raise InputError(f"train.sample_prompts: {NOTHING_BEGINS}")
        longest = max(map(len, prompts)) + self._new_tokens
        if longest > model.max_length:
            raise InputError(
                f"train.sample_tokens={self._new_tokens}: with the longest of train.sample_prompts "
                f"({longest - self._new_tokens} tokens) that is more than model.max_length={model.max_length}"
            )
        shards = row_shards(mesh)
        rows = -(-len(prompts) // shards) * shards
        length = -(-longest // 128) * 128  # for all attention kernels and sequence shardings
        self._lengths_B = np.array([len(prompt) for prompt in prompts] + [1] * (rows - len(prompts)), np.int32)
        self._tokens_BxL = np.full((rows, length), self._end_of_text, np.int32)
        for row, prompt in enumerate(prompts):
            self._tokens_BxL[row, : len(prompt)] = prompt
        replicated = NamedSharding(mesh, PartitionSpec())
        self._continue = jax.jit(
            _continuation(model, mesh, config),
            in_shardings=(model_shardings(model, mesh), replicated, replicated, replicated),
            out_shardings=replicated,
        )

    def texts(self, step: int, params: Params) -> list[str]:
        """One continuation of each prompt, up to the end of its document; the same on every host."""
        tokens_BxL = np.asarray(self._continue(params, self._tokens_BxL, self._lengths_B, np.int32(step)))
        texts = []
        for row, start in enumerate(self._lengths_B[: len(self.prompts)]):
            ids = tokens_BxL[row, start : start + self._new_tokens].tolist()
            document = itertools.takewhile(lambda i: i != self._end_of_text, ids)
            texts.append(self._tokenizer.decode([i for i in document if i < self._tokenizer.size]))
        return texts


def _continuation(model: LlamaConfig, mesh: Mesh, config: TrainConfig) -> Callable[..., Array]:
    """A function `(params, tokens BxL, lengths B, step) -> tokens` that continues each row from its length on."""
    model = dataclasses.replace(model, dropout=0.0)

    def run(params, tokens_BxL, lengths_B, step):
        head_DxV, key = head_weight(model, params), jax.random.fold_in(jax.random.key(config.seed), step)
        rows_B = jnp.arange(tokens_BxL.shape[0])

        def add_token(index, tokens_BxL):
            last_BxD = hidden_states(model, params, tokens_BxL, mesh=mesh)[rows_B, lengths_B + index - 1]
            scores_BxV = jnp.matmul(last_BxD, head_DxV, preferred_element_type=jnp.float32)
            if config.sample_temperature:
                scores_BxV = scores_BxV / config.sample_temperature
                chosen_B = jax.random.categorical(jax.random.fold_in(key, index), scores_BxV)
            else:
                chosen_B = jnp.argmax(scores_BxV, axis=-1)
            return tokens_BxL.at[rows_B, lengths_B + index].set(chosen_B.astype(jnp.int32))

        return jax.lax.fori_loop(0, config.sample_tokens, add_token, tokens_BxL)

    return run
