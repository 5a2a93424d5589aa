"""Loads a model with its tokenizer for inference, and encodes contexts and answers for log-likelihoods."""

from collections.abc import Mapping, Sequence
import dataclasses
from dataclasses import dataclass
import functools
import hashlib
import logging
import os
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np

from diversity_jax.core.buckets import local_copy
from diversity_jax.core.errors import InputError
from diversity_jax.core.files import join_path, parent_folder, path_inside, resolve_path
from diversity_jax.core.json_fields import Fields, read_fields
from diversity_jax.evaluation.loglikelihood import Scored, Scorer
from diversity_jax.model.cache import for_inference
from diversity_jax.model.config import LlamaConfig
from diversity_jax.model.convert import model_folder, read_config, read_model
from diversity_jax.model.llama import Params
from diversity_jax.model.sharding import MeshConfig, make_mesh, param_shardings, path_name
from diversity_jax.prepare.manifest import special_text_before
from diversity_jax.tokenizers.base import Tokenizer, without_breaks
from diversity_jax.tokenizers.chat_template import check_messages, render_chat
from diversity_jax.tokenizers.document_start import Boundaries
from diversity_jax.tokenizers.files import chat_of_start, run_mixture
from diversity_jax.tokenizers.settings import find_tokenizer
from diversity_jax.tokenizers.tokenizer import ModelTokenizer, for_folder, for_run, load_tokenizer

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class LanguageModel:
    """A model on a mesh with its tokenizer, for scoring, generation and the server.

    Attributes:
      name: in results and for clients.
      config: `max_length` is the longest context used.
      params: in the layout of `for_inference`, on the mesh.
      weights_hash: see `weights_hash`.
    """

    name: str
    config: LlamaConfig
    params: Params
    mesh: Mesh
    tokenizer: ModelTokenizer
    weights_hash: str

    def scorer(self, batch_size: int = 8) -> Scorer:
        """A scorer of log-likelihoods under this model."""
        return Scorer(self.config, self.params, self.mesh, batch_size=batch_size)

    def chat(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True) -> str:
        """A conversation as text, by the tokenizer's template or the project's own."""
        return render_chat(
            messages,
            template=self.tokenizer.chat_template,
            special=self.tokenizer.special,
            add_generation_prompt=add_generation_prompt,
        )

    def encode_chat(self, messages: Sequence[Mapping[str, Any]]) -> tuple[str, list[int]]:
        """A conversation as text and ids. Texts of special tokens in messages are encoded as plain text; special tokens
        are those of the tokenizer's own template, without one those that the tokenizer adds."""
        check_messages(messages)
        text = self.chat(self.tokenizer.vocabulary.with_plain_content(messages))
        tokenizer = dataclasses.replace(self.tokenizer, special_text=True)
        return without_breaks(text), tokenizer.encode(text, special=tokenizer.chat_template is None)


def language_model(
    name: str, config: LlamaConfig, params: Params, tokenizer: ModelTokenizer, mesh: MeshConfig
) -> LanguageModel:
    """Places a model on a mesh.

    Args:
      params: float32 with stacked layers, as in a checkpoint.

    Raises:
      InputError: the tokenizer has more ids than the model's vocabulary, or the mesh does not fit the model.
    """
    tokenizer = dataclasses.replace(tokenizer, vocabulary=tokenizer.vocabulary.without_ids_from(config.vocab_size))
    if (size := tokenizer.vocabulary.size) > config.vocab_size:
        ids = f"its vocabulary has {config.vocab_size:,} ids, the tokenizer {size:,}"
        raise InputError(f"{name}: {ids}; give the tokenizer that the model was trained with")
    devices = make_mesh(mesh)
    weights = weights_hash(params)
    shardings = param_shardings(devices, params)
    sharded = jax.device_put(params, shardings)
    layout = functools.partial(for_inference, config)
    one_layer = jax.tree.map(lambda leaf: NamedSharding(devices, PartitionSpec(*leaf.spec[1:])), shardings["blocks"])
    layers = len(jax.eval_shape(layout, params)["blocks"])
    params = jax.jit(layout, out_shardings={**shardings, "blocks": [one_layer] * layers})(sharded)
    return LanguageModel(
        name=name, config=config, params=params, mesh=devices, tokenizer=tokenizer, weights_hash=weights
    )


def weights_hash(params: Params) -> str:
    """SHA-256 of all parameters' float32 bytes, in the order of their names."""
    digest = hashlib.sha256()
    leaves = {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    for name, leaf in sorted(leaves.items(), key=lambda item: item[0]):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(leaf, np.float32).data)
    return digest.hexdigest()


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
    """Opens a model with its tokenizer on a mesh.

    Args:
      checkpoint, step, tokenizer, compute_dtype, max_length: as `evaluation.config.ModelSource`.
      mesh: None: rows sharded over all devices.
      name: None: the folder's name, and the step where one is given.

    Raises:
      InputError: there is no model, a file is damaged, the tokenizer does not fit the model, or `max_length` is above
        the model's own.
    """
    folder = model_folder(checkpoint)
    changes: dict[str, Any] = {"compute_dtype": compute_dtype, "attention": "auto", "dropout": 0.0}
    if max_length is not None:
        if max_length > (most := read_config(checkpoint).max_length):
            raise InputError(f"model.max_length={max_length}: {folder} is a model for {most} tokens; give at most that")
        changes["max_length"] = max_length
    config, params = read_model(checkpoint, step=step, **changes)
    name = name or folder.resolve().name + (f"@{step}" if step is not None else "")
    return language_model(name, config, params, _tokenizer(folder, tokenizer), mesh or MeshConfig(data=-1, fsdp=1))


def _tokenizer(folder: Path, given: str | None) -> ModelTokenizer:
    is_run, source = (folder / "run.json").exists(), folder
    if given is not None:
        _check_run_tokenizer(folder, given)
        source = local_copy(given)
        if is_run:
            return _named_for_run(folder, load_tokenizer(given))
        if find_tokenizer(source) is None:
            return for_run(load_tokenizer(given))
    elif is_run:
        return _tokenizer_of_run(folder)
    if given or find_tokenizer(source):
        return for_folder(load_tokenizer(str(source)), source)
    raise InputError(f"{folder}: holds no tokenizer (tokenizer.json, tokenizer.model, vocab.json); name one")


def _check_run_tokenizer(folder: Path, given: str) -> None:
    """Raises `InputError` where the run's mixture exists and was prepared with another tokenizer."""
    mixture = run_mixture(folder, run_settings(folder)) if (folder / "run.json").exists() else None
    vocabulary = _recorded(join_path(mixture, "mixture.json"))["vocabulary"] if mixture else None
    if not vocabulary:
        return
    end_of_text = vocabulary["end_of_text_id"] if vocabulary["kind"] != "bytes" else None
    tokenizer = load_tokenizer(given, end_of_text=end_of_text)
    if tokenizer.hash != vocabulary["hash"]:
        raise InputError(
            f"{folder}: was trained with another tokenizer ({vocabulary['kind']}, {vocabulary['size']:,} ids) than "
            f"{given} ({tokenizer.kind}, {tokenizer.size:,} ids); leave tokenizer out to take the run's own"
        )


def _tokenizer_of_run(folder: Path) -> ModelTokenizer:
    """The tokenizer that is stored with a run's prepared rows."""
    mixture = mixture_folder(folder)
    manifests = _manifests(mixture)
    vocabulary = _recorded(join_path(mixture, "mixture.json"))["vocabulary"]
    if not manifests or vocabulary is None:
        raise InputError(f"{join_path(mixture, 'mixture.json')}: has no prepared component; name the model's tokenizer")
    where = f"{join_path(mixture, 'mixture.json')}: vocabulary.files"
    files = [path_inside(parent_folder(manifests[0]), file, where) for file in vocabulary["files"]]
    path = "bytes" if vocabulary["kind"] == "bytes" else str(files[0] if len(files) == 1 else parent_folder(files[0]))
    end_of_text = (run_settings(folder).get("mixture") or {}).get("end_of_text")
    tokenizer = load_tokenizer(path, end_of_text=end_of_text)
    if tokenizer.hash != vocabulary["hash"]:
        raise InputError(f"{mixture}: the tokenizer beside the rows is not the one that made them; name the right one")
    return _for_run(tokenizer, folder)


def _for_run(tokenizer: Tokenizer, run: Path) -> ModelTokenizer:
    """A tokenizer with the settings of a run's training."""
    boundaries = run_boundaries(run)
    if boundaries.document_start is None and boundaries.separate:
        log.warning(
            "%s: was trained with documents apart and before document_start was recorded: nothing began a document, "
            "so texts begin with nothing",
            run,
        )
    manifests = [read_fields(path, chat=Fields | None) for path in _manifests(mixture_folder(run))]
    tuned = next((manifest["chat"] for manifest in manifests if manifest["chat"]), None)  # of fine-tuning
    special_text = any(
        (manifest.get("special_text") or special_text_before(tokenizer.kind, is_chat=bool(manifest["chat"])))
        == "special"
        for manifest in manifests
    )
    chat = tuned or chat_of_start(run, run_settings(run))
    return for_run(tokenizer, chat, is_tuned=tuned is not None, text_ids=boundaries.text_ids, special_text=special_text)


def _named_for_run(run: Path, tokenizer: Tokenizer) -> ModelTokenizer:
    """A tokenizer given for a run, whose mixture may be missing."""
    try:
        mixture_folder(run)
    except InputError as error:
        log.warning("%s; an empty text is taken to begin with end-of-text, others with nothing", error)
        return for_run(tokenizer)
    return _for_run(tokenizer, run)


def run_boundaries(run: Path | str) -> Boundaries:
    """Where documents begin in a run's rows of text."""
    across = (run_settings(run).get("train") or {}).get("attend_across_documents", True)
    record = _recorded(join_path(mixture_folder(run), "mixture.json"))
    return Boundaries.of_mixture(record, attend_across_documents=across)


def _manifests(mixture: Path | str) -> list[Path | str]:
    """The manifests of a mixture's prepared components."""
    path = join_path(mixture, "mixture.json")
    named = [part.get("manifest") for part in _recorded(path)["components"] or ()]
    if wrong := [name for name in named if not isinstance(name, str | None)]:
        raise InputError(f"{path}: manifest is {str(wrong[0])[:80]}; expected a path")
    return [resolve_path(mixture, name) for name in named if name]


def _recorded(path: Path | str) -> dict[str, Any]:
    """The content of a `mixture.json`, with the types of these fields checked."""
    return read_fields(path, vocabulary=Fields | None, components=list[Fields] | None)


def mixture_folder(run: Path | str) -> Path | str:
    """The folder of the mixture that a run was trained on.

    Raises:
      InputError: it is neither in the run's folder nor where the run read it.
    """
    settings = run_settings(run)
    if (folder := run_mixture(run, settings)) is not None:
        return folder
    named = settings.get("prepared") or join_path(run, "mixture")
    raise InputError(f"{named}: the run's mixture is not there, so its tokenizer is not known; name it")


def run_settings(run: Path | str) -> Mapping[str, Any]:
    """A run's configuration, from its `run.json`."""
    return read_fields(join_path(run, "run.json"), settings=Fields | None)["settings"] or {}


Pair = tuple[str, str]
"""A context and its continuation."""


def encode_pairs(tokenizer: ModelTokenizer, pairs: Sequence[Pair]) -> list[tuple[Pair, list[int], list[int]]]:
    """Pairs with the ids of context and answer, as lm-evaluation-harness's `TemplateLM._encode_pair` gives them, in one
    call of the tokenizer: trailing spaces of a context are moved to its answer.

    An empty context is replaced by `tokenizer.prefix_id`, which must not be None.
    """
    contexts = [context.rstrip() for context, _ in pairs]
    complete = [(stripped, "".join(pair)) for stripped, pair in zip(contexts, pairs, strict=True) if pair[0]]
    texts = sorted({text for both in complete for text in both})
    ids = dict(zip(texts, tokenizer.encode_batch(texts), strict=True))
    encoded = []
    for stripped, pair in zip(contexts, pairs, strict=True):
        if pair[0]:
            context = ids[stripped]
            encoded.append((pair, context, ids["".join(pair)][len(context) :]))
        else:
            answer = tokenizer.encode(pair[1], special=False)
            prefix = tokenizer.prefix_id
            assert prefix is not None  # checked by callers
            has_prefix = answer[:1] == [prefix]
            context, answer = (answer[:1], answer[1:]) if has_prefix else ([prefix], answer)
            encoded.append((pair, context, answer))
    return encoded


def windows(pair: Pair | None, context: Sequence[int], answer: Sequence[int], most: int) -> list[Scored]:
    """The windows in which an answer is scored: the last `most + 1` tokens, of which the model reads all but the last.

    An answer longer than `most` is scored in parts of half a context, each with as much context as fits.

    Args:
      pair: for the error message; None: a window of a text.
      most: the model's context in tokens.

    Raises:
      InputError: the answer or the context is empty.
    """
    shown = "a window" if pair is None else repr((pair[1] or pair[0])[-60:])
    if not answer or not context:
        empty = "answer" if context else "context"
        raise InputError(f"an empty {empty} cannot be scored ({shown}); remove the item or mend its answers")
    tokens = [*context, *answer]
    if len(answer) <= most:
        return [Scored(tokens=tuple(tokens[-(most + 1) :]), scored=len(answer))]
    starts = range(len(context), len(tokens), max(most // 2, 1))
    ends = [*starts[1:], len(tokens)]
    return [
        Scored(tokens=tuple(tokens[max(end - most - 1, 0) : end]), scored=end - start)
        for start, end in zip(starts, ends, strict=True)
    ]
