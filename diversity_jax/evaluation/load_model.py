"""A model ready to be asked: weights on a mesh in the layout of inference, its tokenizer, and what identifies it.

Opening a model for use: weights and tokenizer from a training run, an imported checkpoint or a Hugging Face folder.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
import functools
import hashlib
import os
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np

from diversity_jax.core.errors import InputError
from diversity_jax.core.files import read_json
from diversity_jax.evaluation.loglikelihood import Scorer
from diversity_jax.model.config import LlamaConfig
from diversity_jax.model.convert import read_model
from diversity_jax.model.decode import for_inference
from diversity_jax.model.llama import Params
from diversity_jax.model.sharding import MeshConfig, make_mesh, param_shardings, path_name
from diversity_jax.tokenizers.chat_template import render_chat
from diversity_jax.tokenizers.files import special_tokens
from diversity_jax.tokenizers.tokenizer import ModelTokenizer, for_folder, for_run, load_tokenizer


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
            messages,
            template=tokenizer.chat_template,
            special=tokenizer.special,
            add_generation_prompt=add_generation_prompt,
        )

    def encode_chat(self, messages: Sequence[Mapping[str, Any]]) -> tuple[str, list[int]]:
        """A conversation as text and ids. A tokenizer's own template writes special tokens itself, so none are added to
        it.
        """
        text = self.chat(messages)
        return text, self.tokenizer.encode(text, special=self.tokenizer.chat_template is None)


def language_model(
    name: str, config: LlamaConfig, params: Params, tokenizer: ModelTokenizer, mesh: MeshConfig
) -> LanguageModel:
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


_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")


def open_model(
    checkpoint: str | os.PathLike,
    *,
    step: int | None = None,
    tokenizer: str | None = None,
    compute_dtype: str = "float32",
    max_length: int | None = None,
    mesh: MeshConfig | None = None,
    name: str | None = None,
) -> LanguageModel:
    """A model on the mesh with its tokenizer.

    Args:
      checkpoint: a run's output folder, what `model.convert import` wrote, or a Hugging Face folder.
      step: of a run: which checkpoint; None: the latest.
      tokenizer: `bytes`, a file or a folder; None: the run's own, or the one beside the weights.
      compute_dtype: float32 or bfloat16.
      max_length: longest context in tokens; None: the model's own.
      mesh: None: the rows of a batch over all devices.

    Raises:
      InputError: nothing there, something damaged, or a tokenizer of another vocabulary.
    """
    folder = Path(checkpoint)
    config, params = read_model(
        folder, step=step, compute_dtype=compute_dtype, attention="auto", dropout=0.0, **_length(max_length)
    )
    found = _tokenizer(folder, tokenizer)
    default = folder.resolve().name + (f"@{step}" if step is not None else "")
    return language_model(name or default, config, params, found, mesh or MeshConfig(data=-1, fsdp=1))


def _length(max_length: int | None) -> dict[str, int]:
    return {} if max_length is None else {"max_length": max_length}


def _tokenizer(folder: Path, given: str | None) -> ModelTokenizer:
    if given is not None:
        path = Path(given)
        _check_run_tokenizer(folder, given)
        if path.is_dir() and (path / "tokenizer_config.json").exists():
            return for_folder(load_tokenizer(given, end_of_text=special_tokens(path).get("eos_token")), path)
        return for_run(load_tokenizer(given), _chat(folder))
    if (folder / "run.json").exists():
        return _of_run(folder)
    if any((folder / name).exists() for name in _TOKENIZER_FILES):
        return for_folder(load_tokenizer(str(folder), end_of_text=special_tokens(folder).get("eos_token")), folder)
    raise InputError(
        f"{folder}: holds no tokenizer ({', '.join(_TOKENIZER_FILES)}); put one there, or name one as tokenizer"
    )


def _check_run_tokenizer(folder: Path, given: str) -> None:
    """Refuses a tokenizer that is not the one that a run's mixture, where it is still there, was made with: its ids
    mean other text.
    """
    recorded = folder / "mixture" / "mixture.json"
    known = read_json(recorded).get("vocabulary") if (folder / "run.json").exists() and recorded.exists() else None
    if not known:
        return
    found = load_tokenizer(given, end_of_text=known["end_of_text_id"] if known["kind"] != "bytes" else None)
    if found.hash != known["hash"]:
        raise InputError(
            f"{folder}: was trained with another tokenizer ({known['kind']}, {known['size']:,} ids) than {given} "
            f"({found.kind}, {found.size:,} ids); leave tokenizer out to take the run's own"
        )


def _of_run(folder: Path) -> ModelTokenizer:
    """The tokenizer kept beside a run's rows."""
    mixture = mixture_folder(folder)
    recorded = read_json(mixture / "mixture.json")
    components = [part["manifest"] for part in recorded.get("components", ()) if part.get("manifest")]
    vocabulary = recorded.get("vocabulary")
    if not components or not isinstance(vocabulary, Mapping):
        raise InputError(
            f"{mixture / 'mixture.json'}: names no prepared component; name the model's tokenizer as tokenizer"
        )
    files = [str((mixture / components[0]).parent / file) for file in vocabulary["files"]]
    end = _end_of_text(folder)
    found = load_tokenizer(_spec(vocabulary["kind"], files), end_of_text=end)
    if found.hash != vocabulary["hash"]:
        raise InputError(
            f"{mixture}: the tokenizer beside the rows is not the one they were made with; name the right one as "
            "tokenizer"
        )
    return for_run(found, _chat(folder))


def _chat(folder: Path) -> Mapping[str, Any] | None:
    """What a run was fine-tuned with: chat template and special tokens; None for one of plain text, and for what is no
    run.
    """
    if not (folder / "run.json").exists():
        return None
    mixture = mixture_folder(folder)
    manifests = [
        part["manifest"] for part in read_json(mixture / "mixture.json").get("components", ()) if part.get("manifest")
    ]
    return next((found for path in manifests if (found := read_json(mixture / path).get("chat"))), None)


def mixture_folder(run: Path) -> Path:
    """Where the mixture lies that a run was trained on; also where both were moved together, as a study's folders are.

    Raises:
      InputError: neither in the run nor where it was read from.
    """
    settings = run_settings(run)
    prepared = settings.get("prepared")
    folder = Path(prepared) if prepared else run / "mixture"
    if prepared and not (folder / "mixture.json").exists():
        moved = run / os.path.relpath(prepared, settings["output_dir"])
        folder = moved if (moved / "mixture.json").exists() else folder
    if not (folder / "mixture.json").exists():
        raise InputError(
            f"{folder}: the run's mixture is not there, so its tokenizer is not known; name it as tokenizer"
        )
    return folder


def run_settings(run: Path) -> Mapping[str, Any]:
    """The configuration a run was started with."""
    return read_json(run / "run.json").get("settings") or {}


def _end_of_text(run: Path) -> str | None:
    return (run_settings(run).get("mixture") or {}).get("end_of_text")


def _spec(kind: str, files: list[str]) -> str:
    if kind == "bytes":
        return "bytes"
    return files[0] if len(files) == 1 else str(Path(files[0]).parent)
