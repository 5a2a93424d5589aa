"""Converts weights between training runs and Hugging Face folders, and to GGUF for llama.cpp.

    python -m diversity_jax.model.convert export RUN OUTPUT [--step 1000] [--dtype bfloat16] [--max-shard-gigabytes 5]
    python -m diversity_jax.model.convert gguf RUN OUTPUT.gguf [--step 1000] [--dtype q8_0]
    python -m diversity_jax.model.convert import HUGGING_FACE_FOLDER_OR_FILE.gguf OUTPUT
    python -m diversity_jax.model.convert check HUGGING_FACE_FOLDER

`export` and `gguf` take a run's output folder, or one that `import` wrote (`gguf` a Hugging Face folder too). `export`
writes the run's tokenizer beside the weights, for AutoTokenizer; `import` copies the folder's, or writes the one in a
GGUF file, and dequantises a GGUF file's weights. `gguf` writes one file for llama.cpp, Ollama and LM Studio, with
tokenizer and chat template in it. `check` compares the logits with those of transformers; it needs transformers and
torch.

The difference of two implementations' logits is measured relative to their spread, and by the predicted tokens: an
absolute bound would reject correct models, since rounding errors grow with the logits, which exceed 45 in real models.
"""

import argparse
from collections.abc import Mapping
import dataclasses
from dataclasses import dataclass
import os
from pathlib import Path
import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from diversity_jax.core.artifacts import locked_folder
from diversity_jax.core.buckets import local_copy, published, published_file, remote_tree
from diversity_jax.core.errors import InputError
from diversity_jax.core.files import exists, join_path, read_json, write_json
from diversity_jax.core.json_fields import Fields, from_json, read_fields
from diversity_jax.core.run_info import folders_read
from diversity_jax.core.stores import check_store, is_remote, refuse_other_than_model
from diversity_jax.model.checkpoint_io.gguf_file import DTYPES
from diversity_jax.model.config import LlamaConfig, LoraConfig

if TYPE_CHECKING:
    from diversity_jax.tokenizers.files import TokenizerFiles

Params = dict[str, Any]


def read_model(folder: str | os.PathLike, step: int | None = None, **overrides: Any) -> tuple[LlamaConfig, Params]:
    """Config and float32 parameters, on the host or its first device, from any folder that holds a model.

    Args:
      folder: A Hugging Face folder, a training run's output folder, or what `import` wrote.
      step: Checkpoint of a run; None: the latest.
      **overrides: Fields of `LlamaConfig` that do not change what the parameters mean, such as `compute_dtype`.

    Raises:
      InputError: there is no model, or it is damaged or unsuitable.
    """
    from diversity_jax.model.checkpoint_io.hugging_face import import_hugging_face
    from diversity_jax.model.checkpoint_io.shards import read_info
    from diversity_jax.model.llama import param_shapes

    source, folder = folder, model_folder(folder)
    if step is not None and not (folder / "run.json").exists():
        raise InputError(f"{folder}: is no run's output, so it has no checkpoint of step {step}; leave the step out")
    if (folder / "config.json").exists():
        return import_hugging_face(folder, **overrides)
    config = dataclasses.replace(read_config(folder), **overrides)
    if (folder / "model.json").exists():
        return config, _load(join_path(source, "weights"), param_shapes(config))
    checkpoint = _checkpoint(join_path(source, "checkpoints"), step)
    settings = _settings(folder)
    # A checkpoint's own settings: a run may be resumed with others, which its run.json then holds.
    own = {**settings, **((read_info(checkpoint) or {}).get("settings") or {})}
    config = dataclasses.replace(_config(Path(folder, "run.json"), own["model"]), **overrides)
    tuned = own.get("train") or {}
    if (tuned.get("lora") or {}).get("rank"):
        return config, _merged(config, checkpoint, tuned, _adapted_model(source, settings))
    return config, _load(checkpoint, param_shapes(config))


def _adapted_model(run: str | os.PathLike, settings: Mapping[str, Any]) -> Path | str:
    """The folder of the model that a run's adapters were trained on."""
    named = settings["train"]["init_from"]
    folders = folders_read(run, settings, named)
    for folder in folders:
        if exists(folder):
            return folder
    beside = "" if str(folders[0]) == named else f", nor is {folders[0]}"
    raise InputError(f"{run}: the model of its adapters, {named}, is not there{beside}; put it back")


def _merged(config: LlamaConfig, checkpoint: Path | str, tuned: Mapping[str, Any], base_folder: Path | str) -> Params:
    """The model that a run started from, with the run's adapters added.

    Raises:
      InputError: that model has changed since.
    """
    import jax

    from diversity_jax.model.checkpoint_io.shards import read_info
    from diversity_jax.model.llama import fingerprint, init_adapters, merged

    lora = LoraConfig(**tuned["lora"])
    adapters = _load(checkpoint, jax.eval_shape(lambda key: init_adapters(config, lora, key), jax.random.key(0)))
    _, base = read_model(base_folder, step=tuned.get("init_step"))
    known = (read_info(checkpoint) or {}).get("identity", {}).get("model in init_from")
    if str(int(fingerprint(base))) != known:
        raise InputError(
            f"{checkpoint}: holds adapters to another model than {base_folder} holds now; put that back, or "
            "set train.init_step"
        )
    return jax.jit(merged, static_argnums=2)(base, adapters, lora)


def read_config(folder: str | os.PathLike) -> LlamaConfig:
    """The configuration of the model in a folder; folders as `read_model`.

    Raises:
      InputError: there is no model, or its configuration is not of this version.
    """
    from diversity_jax.model.checkpoint_io.hugging_face_config import config_from_hugging_face

    folder = model_folder(folder)
    if any((folder / name).exists() for name in ("config.json", "adapter_config.json")):
        return config_from_hugging_face(folder)
    if (folder / "model.json").exists():
        return _config(folder / "model.json", read_json(folder / "model.json"))
    if (folder / "run.json").exists():
        return _config(folder / "run.json", _settings(folder).get("model"))
    raise InputError(f"{folder}: holds no model; expected config.json (Hugging Face), run.json (ours) or model.json")


def _config(path: Path, fields: Any) -> LlamaConfig:
    known = {field.name for field in dataclasses.fields(LlamaConfig)}
    if not isinstance(fields, dict) or not set(fields) <= known:
        raise InputError(f"{path}: describes no model of this version, whose fields are {', '.join(sorted(known))}")
    return from_json(LlamaConfig, fields, f"{path}: model")


def _settings(run: Path) -> Mapping[str, Any]:
    return read_fields(run / "run.json", settings=Fields)["settings"]


def model_folder(folder: str | os.PathLike) -> Path:
    """The folder itself if it is local; else a local copy without rows and weights.

    Raises:
      InputError: the folder is the output of another command.
    """
    refuse_other_than_model(folder)

    def wanted(name: str) -> bool:
        return not name.startswith(("checkpoints", "weights/", "profile/")) and not name.endswith((".bin", ".crc32"))

    return local_copy(folder, wanted)


def _checkpoint(folder: Path | str, step: int | None) -> Path | str:
    from diversity_jax.model.checkpoint_io.shards import complete_steps

    steps = complete_steps(folder)
    if not steps or (step is not None and step not in steps):
        listed = ", ".join(map(str, steps)) or "none"
        raise InputError(f"{folder}: has no checkpoint{'' if step is None else f' of step {step}'}; there: {listed}")
    return join_path(folder, str(steps[-1] if step is None else step))


def _load(folder: Path | str, shapes: Params) -> Params:
    """Parameters of these shapes from a checkpoint of any mesh, on the first local device."""
    import jax

    from diversity_jax.model.checkpoint_io import shards

    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    wanted = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), shapes)
    try:
        return shards.load(folder, {"params": wanted})["params"]
    except (ValueError, KeyError, OSError, shards.DamagedCheckpoint) as error:
        message = " ".join(str(error).split())[:200]
        raise InputError(f"{folder}: cannot be read as this model's checkpoint ({message})") from error


def write_imported(config: LlamaConfig, params: Params, folder: str | os.PathLike) -> Path:
    """Writes parameters as a sharded checkpoint, `weights`, and then `model.json`.

    Raises:
      InputError: the folder holds a model already.
    """
    from orbax.checkpoint import v1 as ocp

    folder = Path(folder).absolute()
    refuse_imported(folder)
    folder.mkdir(parents=True, exist_ok=True)
    ocp.save_checkpointables(folder / "weights", {"params": params})
    write_json(folder / "model.json", dataclasses.asdict(config))
    return folder


def refuse_imported(folder: Path) -> None:
    """Raises `InputError` where a folder holds an imported model, or a part of one."""
    if (folder / "model.json").exists() or (folder / "weights").exists():
        raise InputError(f"{folder}: holds a model already; choose another folder or remove it")


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="diversity-jax convert", description=__doc__.split("\n\n")[0])
    commands = parser.add_subparsers(required=True)
    for run, text in (
        (_export, "a run's weights as a Hugging Face folder"),
        (_gguf, "a run's weights and its tokenizer as one file for llama.cpp"),
        (_import, "a Hugging Face folder as a checkpoint of ours"),
        (_check, "compare logits with transformers"),
    ):
        command = commands.add_parser(run.__name__[1:], help=text)
        command.set_defaults(run=run)
        source = "a Hugging Face folder" if run is _import else "a run's output folder, or what `import` wrote"
        command.add_argument("source", help=source)
        if run is not _check:
            command.add_argument("output")
        if run in (_export, _gguf):
            tokenizer = "bytes, a SentencePiece model, a tokenizer.json or a folder; default: as the run names it"
            command.add_argument("--tokenizer", help=tokenizer + ("; none: without" if run is _export else ""))
            command.add_argument("--step", type=int, help="which checkpoint; default: the latest")
            dtypes = DTYPES if run is _gguf else DTYPES[:-1]
            command.add_argument("--dtype", default="float32", help=f"{', '.join(dtypes[:-1])} or {dtypes[-1]}")
            command.add_argument("--end-of-text-id", type=int, help="the token that ends a text")
        if run is _export:
            command.add_argument("--max-shard-gigabytes", type=float, default=5.0)
    options = parser.parse_args(argv)
    try:
        for name in ("source", "output"):
            path = getattr(options, name, None)
            check_store(path, name.upper())
            setattr(options, name, path if path is None or is_remote(path) else Path(path))
        options.run(options)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def _export(options: argparse.Namespace) -> None:
    from diversity_jax.model.checkpoint_io.hugging_face import export_hugging_face, refuse_model_folder
    from diversity_jax.tokenizers.files import write_tokenizer

    if options.max_shard_gigabytes <= 0:
        raise InputError(f"--max-shard-gigabytes {options.max_shard_gigabytes:g}: must be above 0")
    if is_remote(options.output):
        if remote_tree(options.output):
            raise InputError(f"{options.output}: is not empty; choose another folder")
    else:
        refuse_model_folder(options.output)
    tokenizer = None if options.tokenizer == "none" else _tokenizer(options)
    config, params = read_model(options.source, step=options.step)
    shard_bytes = int(options.max_shard_gigabytes * 1e9)
    with published(options.output, "OUTPUT") as output, locked_folder(output):
        refuse_model_folder(output)
        end = options.end_of_text_id
        ids: Mapping[str, Any] = {} if end is None else {"bos_token_id": end, "eos_token_id": end}
        if tokenizer:  # before the weights, since an export is complete once config.json is written
            write_tokenizer(tokenizer, output, vocab_size=config.vocab_size)
            path = output / "generation_config.json"
            names = ("bos_token_id", "eos_token_id", "pad_token_id")
            ids = {name: id_ for name, id_ in read_fields(path).items() if name in names} if path.exists() else {}
        export_hugging_face(config, params, output, dtype=options.dtype, max_shard_bytes=shard_bytes, token_ids=ids)
    beside = "with its tokenizer" if tokenizer else "without a tokenizer"
    print(f"{config.parameter_count:,} parameters, {options.dtype}, {beside}: {options.output}")


def _tokenizer(options: argparse.Namespace) -> "TokenizerFiles | None":
    """The tokenizer that `--tokenizer` names, or the model's own."""
    from diversity_jax.tokenizers.files import model_tokenizer, named_tokenizer, run_text_ids

    name = options.tokenizer
    folder = model_folder(options.source)
    tokenizer = model_tokenizer(folder) if name is None else named_tokenizer(name)
    if name is not None and tokenizer is not None:
        tokenizer = dataclasses.replace(tokenizer, text_ids=run_text_ids(folder))
    if tokenizer is None or options.end_of_text_id is None:
        return tokenizer
    return dataclasses.replace(tokenizer, end_of_text_id=options.end_of_text_id)


def _gguf(options: argparse.Namespace) -> None:
    from diversity_jax.model.checkpoint_io.gguf import export_gguf, refuse_gguf

    refuse_gguf(Path(os.fspath(options.output)), options.dtype)
    tokenizer = _tokenizer(options)
    if tokenizer is None:
        raise InputError(f"{options.source}: does not say which tokenizer it was trained with; give --tokenizer")
    config, params = read_model(options.source, step=options.step)
    with published_file(options.output) as output:
        export_gguf(config, params, output, tokenizer=tokenizer, dtype=options.dtype)
    print(f"{config.parameter_count:,} parameters, {options.dtype}: {options.output}")


def _import(options: argparse.Namespace) -> None:
    from diversity_jax.model.checkpoint_io.gguf import import_gguf
    from diversity_jax.model.checkpoint_io.hugging_face import import_hugging_face
    from diversity_jax.tokenizers.files import copy_tokenizer
    from diversity_jax.tokenizers.gguf_folder import write_folder

    source = local_copy(options.source)
    with published(options.output, "OUTPUT") as output, locked_folder(output):
        if source.is_file() or source.suffix == ".gguf":
            config, params, file = import_gguf(source)
            refuse_imported(output)
            write_folder(file.entries, output / "tokenizer", source)  # first, since it may refuse the file
            write_imported(config, params, output)
            types = ", ".join(f"{count} {kind}" for kind, count in file.types.items())
            beside = f"with its tokenizer; tensors were {types}"
        else:
            config, params = import_hugging_face(source)
            folder = write_imported(config, params, output)
            has_tokenizer = copy_tokenizer(source, folder / "tokenizer")
            beside = "with its tokenizer" if has_tokenizer else "without a tokenizer"
    print(f"{config.parameter_count:,} parameters, {beside}: {options.output}")


def _check(options: argparse.Namespace) -> None:
    comparison = compare_with_transformers(local_copy(options.source))
    if not comparison.is_same:
        raise InputError(f"{options.source}: logits differ from transformers' by more than rounding: {comparison}")
    print(f"logits equal transformers': {comparison}: {options.source}")


TOLERANCE = 1e-3  # largest relative difference of two correct float32 implementations; measured: up to 1e-4


@dataclass(frozen=True, kw_only=True)
class LogitsComparison:
    """Two implementations' logits for the same tokens."""

    tokens: int  # positions compared
    largest: float  # largest absolute difference of two logits
    spread: float  # standard deviation of the logits over the vocabulary, averaged over positions
    same_argmax: float  # share of positions with the same likeliest token, apart from ties within the difference
    kl_nats: float  # Kullback-Leibler divergence of the predictions, largest over positions

    @property
    def relative(self) -> float:
        """The largest difference divided by the spread."""
        return self.largest / self.spread if self.spread else float("inf")

    @property
    def is_same(self) -> bool:
        """Whether rounding explains the difference."""
        return self.relative <= TOLERANCE and self.same_argmax == 1

    def __str__(self) -> str:
        return (
            f"largest difference {self.largest:.1e}, {self.relative:.1e} of the logits' spread {self.spread:.3g}; same "
            f"likeliest token at {self.same_argmax:.2%} of {self.tokens:,} positions; KL up to {self.kl_nats:.1e} nats"
        )


def compare_logits(ours_NxV: np.ndarray, theirs_NxV: np.ndarray) -> LogitsComparison:
    """Compares logits of N positions; where any is not finite, the difference is infinite."""
    ours, theirs = (np.asarray(x, np.float64) for x in (ours_NxV, theirs_NxV))
    if not np.all(np.isfinite(ours)) or not np.all(np.isfinite(theirs)):
        return LogitsComparison(tokens=len(ours), largest=np.inf, spread=1.0, same_argmax=0.0, kl_nats=np.inf)
    largest, spread = float(np.max(np.abs(ours - theirs))), float(np.mean(np.std(theirs, axis=-1)))
    log_p, log_q = (x - np.logaddexp.reduce(x, axis=-1, keepdims=True) for x in (theirs, ours))
    # Two of their logits that differ by no more than the implementations do may swap places.
    chosen = np.take_along_axis(theirs, np.argmax(ours, axis=-1)[:, None], axis=-1)[:, 0]
    return LogitsComparison(
        tokens=len(ours),
        largest=largest,
        spread=spread,
        same_argmax=float(np.mean(theirs.max(axis=-1) - chosen <= 2 * largest * (largest < spread * TOLERANCE))),
        kl_nats=float(np.max(np.sum(np.exp(log_p) * (log_p - log_q), axis=-1))),
    )


def compare_with_transformers(folder: str | os.PathLike, *, length: int = 64) -> LogitsComparison:
    """Compares our float32 logits of a Hugging Face folder with transformers', for 2 x `length` random tokens.

    Raises:
      InputError: transformers or torch is not installed, or the folder holds no model that can be read.
    """
    try:
        import torch
        from transformers import AutoModelForCausalLM
    except ImportError as error:
        raise InputError(f"this needs transformers and torch ({error}); install diversity_jax[hf]") from None
    import jax

    from diversity_jax.model.checkpoint_io.hugging_face import import_hugging_face
    from diversity_jax.model.llama import logits

    config, params = import_hugging_face(folder, compute_dtype="float32", scan_layers=True)
    tokens_BxL = np.random.default_rng(0).integers(0, config.vocab_size, (2, min(length, config.max_length)), np.int32)
    with jax.default_matmul_precision("highest"):
        ours = np.asarray(jax.jit(logits, static_argnums=0)(config, params, tokens_BxL))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        theirs = model(torch.from_numpy(tokens_BxL).long()).logits.float().numpy()
    return compare_logits(*(x.reshape(-1, config.vocab_size) for x in (ours, theirs)))


if __name__ == "__main__":
    main()
