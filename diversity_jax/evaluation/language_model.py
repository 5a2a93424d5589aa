"""A model ready to be asked: weights on a mesh in the layout of inference, its tokenizer, and what identifies it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
import functools
import hashlib
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np

from diversity_jax.errors import InputError
from diversity_jax.evaluation.chat import render_chat
from diversity_jax.evaluation.scorer import Scorer
from diversity_jax.evaluation.tokenizer import ModelTokenizer
from diversity_jax.model.config import LlamaConfig
from diversity_jax.model.decode import for_inference
from diversity_jax.model.llama import Params
from diversity_jax.model.sharding import MeshConfig, make_mesh, param_shardings, path_name


@dataclass(frozen=True, kw_only=True)
class LanguageModel:
    """What scoring, generation and the server share.

    Attributes:
      name: what it is called in results and by clients.
      config: sizes; `max_length` is the longest context used.
      params: as `for_inference` lays them out, on the mesh.
      tokenizer: text to ids.
      weights_hash: SHA-256 of the float32 weights.
    """

    name: str
    config: LlamaConfig
    params: Params
    mesh: Mesh
    tokenizer: ModelTokenizer
    weights_hash: str

    def scorer(self, batch_size: int = 8) -> Scorer:
        """Log-likelihoods under this model."""
        return Scorer(self.config, self.params, self.mesh, batch_size=batch_size)

    def chat(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True) -> str:
        """A conversation as text, by the tokenizer's template or the project's own."""
        tokenizer = self.tokenizer
        return render_chat(
            messages, template=tokenizer.chat_template, special=tokenizer.special, add_generation_prompt=add_generation_prompt
        )

    def encode_chat(self, messages: Sequence[Mapping[str, Any]]) -> tuple[str, list[int]]:
        """A conversation as text and ids. A tokenizer's own template writes special tokens itself, so none are added to it."""
        text = self.chat(messages)
        return text, self.tokenizer.encode(text, special=self.tokenizer.chat_template is None)


def language_model(name: str, config: LlamaConfig, params: Params, tokenizer: ModelTokenizer, mesh: MeshConfig) -> LanguageModel:
    """Puts a model on the mesh.

    Args:
      params: float32, stacked layers, as they are read from a checkpoint.

    Raises:
      InputError: the tokenizer has more ids than the model has rows, or the mesh does not fit the model.
    """
    if tokenizer.vocabulary.size > config.vocab_size:
        raise InputError(
            f"{name}: its vocabulary has {config.vocab_size:,} ids, the tokenizer {tokenizer.vocabulary.size:,}; "
            "give the tokenizer that the model was trained with"
        )
    devices = make_mesh(mesh)
    digest = weights_hash(params)
    placed = jax.device_put(params, param_shardings(devices, params))
    with jax.set_mesh(devices):
        layout = jax.tree.map(lambda _: None, jax.eval_shape(functools.partial(for_inference, config), params))
        shardings = _inference_shardings(devices, params, layout)
        ready = jax.jit(functools.partial(for_inference, config), out_shardings=shardings)(placed)
    return LanguageModel(name=name, config=config, params=ready, mesh=devices, tokenizer=tokenizer, weights_hash=digest)


def _inference_shardings(mesh: Mesh, params: Params, layout: Any) -> Any:
    stacked = param_shardings(mesh, params)
    one_layer = jax.tree.map(lambda place: NamedSharding(mesh, PartitionSpec(*place.spec[1:])), stacked["blocks"])
    return {**stacked, "blocks": [one_layer] * len(layout["blocks"])}


def weights_hash(params: Params) -> str:
    """SHA-256 of all parameters' float32 bytes, in the order of their names."""
    digest = hashlib.sha256()
    leaves = sorted(jax.tree_util.tree_leaves_with_path(params), key=lambda item: path_name(item[0]))
    for path, leaf in leaves:
        digest.update(path_name(path).encode())
        digest.update(np.ascontiguousarray(leaf, np.float32).data)
    return digest.hexdigest()
