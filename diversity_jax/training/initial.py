"""Starting from a model that was trained before instead of random parameters: fine-tuning, or going on with other
data.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np

from diversity_jax.core.errors import InputError
from diversity_jax.model import LlamaConfig
from diversity_jax.model.convert import read_model

_MAY_DIFFER = (
    "max_length",
    "dropout",
    "initializer_range",
    "scan_layers",
    "remat",
    "attention",
    "compute_dtype",
    "loss_chunk_bytes",
)
"""What does not change which function the parameters compute."""


def initial_params(folder: str | Path, step: int | None, model: LlamaConfig, placed: Any) -> Any:
    """Parameters of a run, of what `model.convert import` wrote, or of a Hugging Face Llama, on the mesh.

    Every process reads them whole, and keeps the part that its devices hold.

    Args:
      step: of a run: which checkpoint; None: the latest.
      model: the model that is to be trained.
      placed: shardings of its parameters.

    Raises:
      InputError: no model there, or another than `model`; the message names the fields that differ.
    """
    found, params = read_model(folder, step=step)
    differing = [field.name for field in dataclasses.fields(LlamaConfig) if field.name not in _MAY_DIFFER]
    differing = [name for name in differing if _value(found, name) != _value(model, name)]
    if differing:
        listed = ", ".join(f"{name} {_value(found, name)} there, {_value(model, name)} here" for name in differing)
        raise InputError(
            f"train.init_from={folder}: is another model ({listed}); set config.model to it, or leave config.model out"
        )

    def place(leaf: Any, sharding: Any) -> jax.Array:
        whole = np.asarray(leaf, np.float32)
        return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])

    return jax.tree.map(place, params, placed)


def _value(model: LlamaConfig, name: str) -> Any:
    return model.kv_heads if name == "num_kv_heads" else getattr(model, name)
