"""A small training configuration, another value for each of its fields, and runs that are refused."""

import dataclasses
import hashlib
from pathlib import Path
import random

import pytest

from diversity_jax.core.errors import InputError
from diversity_jax.core.files import join_path
from diversity_jax.corpus import CorpusConfig
from diversity_jax.mixtures.config import Component, MixtureConfig
from diversity_jax.model import LLAMA, MeshConfig
from diversity_jax.model.config import LoraConfig
from diversity_jax.training import run
from diversity_jax.training.config import OptimizerConfig, TrainConfig
from diversity_jax.training.resume import Settings
from diversity_jax.training.run import Config

MODEL = LLAMA["llama_tiny"](
    vocab_size=512,
    max_length=256,
    num_layers=1,
    hidden_size=32,
    intermediate_size=64,
    num_heads=2,
    num_kv_heads=2,
    attention="chunked",
)
OPTIMIZER = OptimizerConfig(learning_rate=1e-2, schedule="warmup_stable_decay", warmup_steps=2)
TRAIN = TrainConfig(
    steps=40, batch_size=8, log_every=1, eval_batches=1, checkpoint_every=2, tensorboard=False, compilation_cache=None
)
ROWS = {"content_hash": "rows"}
SETTINGS = Settings(model=MODEL, optimizer=OPTIMIZER, train=TRAIN, mesh=MeshConfig())
OTHER = {  # another value, where the field's type alone does not tell one
    "model.num_heads": 4,
    "model.num_kv_heads": 1,
    "model.hidden_size": 64,
    "model.sliding_window": 8,
    "model.remat": "full",
    "model.attention": "reference",
    "model.compute_dtype": "bfloat16",
    "model.dropout": 0.1,
    "model.head_dim": 8,
    "model.qk_norm": "head",
    "model.norm_order": "post",
    "model.activation": "gelu_tanh",
    "model.layers_without_window": (0,),
    "model.layers_without_rotary": (0,),
    "model.partial_rotary_factor": 0.5,
    "model.rope_scaling": "linear",
    "model.rope_original_length": 64,
    "model.rope_fast_turns": 8.0,
    "model.rope_attention_factor": 1.5,
    "model.window_rope_theta": 100.0,
    "model.attention_multiplier": 0.5,
    "optimizer.schedule": "linear",
    "optimizer.total_steps": 30,
    "optimizer.beta1": 0.8,
    "optimizer.beta2": 0.99,
    "optimizer.decay_share": 0.95,
    "optimizer.warmup_steps": 3,
    "train.steps": 4,
    "train.epochs": 2.0,
    "train.init_from": "elsewhere",
    "train.init_step": 3,
    "train.branch_from": "elsewhere",
    "train.branch_step": 3,
    "train.allow_changed": ("optimizer.beta2",),
    "train.trackers": ("tensorboard",),
    "train.sample_prompts": ("a",),
    "train.keep_every_steps": 4,
    "train.batch_size": 16,
    "train.gradient_accumulation": 2,
    "train.compilation_cache": "user",
    "train.lora.matrices": ("query",),
    "mesh.fsdp": 4,
    "mesh.data": 2,
    "mesh.network_data": 2,
    "mesh.network_fsdp": 2,
}
_STRETCHED = {"model.rope_scaling": "yarn", "model.rope_original_length": 64}
BESIDE = {  # what has to be there for a value to be allowed at all
    "model.rope_factor": _STRETCHED,
    "model.rope_original_length": _STRETCHED,
    "model.rope_attention_factor": _STRETCHED,
    "model.layers_without_window": {"model.sliding_window": 8},
    "model.window_rope_theta": {"model.sliding_window": 8},
    "train.init_step": {"train.init_from": "elsewhere"},
    "train.branch_step": {"train.branch_from": "elsewhere"},
    "train.lora.rank": {"train.init_from": "elsewhere"},
    "mesh.fsdp": {"mesh.data": 2},
    "mesh.network_data": {"mesh.data": 2},
    "train.keep_every_steps": {},
}


def fields(config, prefix):
    """Names of all fields that hold no fields themselves."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from fields(value, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name


NAMES = [
    name for part in ("model", "optimizer", "train", "mesh") for name in fields(getattr(SETTINGS, part), f"{part}.")
]


def value_of(settings, name):
    for part in name.split("."):
        settings = getattr(settings, part)
    return settings


def with_value(settings, name, value):
    first, _, rest = name.partition(".")
    value = with_value(getattr(settings, first), rest, value) if rest else value
    return dataclasses.replace(settings, **{first: value})


def another(name):
    """Another value of a field."""
    value = value_of(SETTINGS, name)
    if name in OTHER:
        return OTHER[name]
    return not value if isinstance(value, bool) else value * 2 or 1


def changed(name):
    settings = with_value(SETTINGS, name, another(name)) if not BESIDE.get(name) else SETTINGS
    values = {**BESIDE.get(name, {}), name: another(name)}
    for part in ("model", "optimizer", "train", "mesh"):  # at once, since a part checks itself when it is made
        own = {key.removeprefix(f"{part}."): value for key, value in values.items() if key.startswith(f"{part}.")}
        if "lora.rank" in own:
            own["lora"] = LoraConfig(rank=own.pop("lora.rank"))
        plain = {key: value for key, value in own.items() if "." not in key}
        settings = dataclasses.replace(settings, **{part: dataclasses.replace(getattr(settings, part), **plain)})
    return settings


def shown(value):
    return repr(tuple(value) if isinstance(value, list) else value)


# The same through a whole run


def write_texts(folder):
    """Two files of made-up lines."""
    draw = random.Random(0)
    for name in ("a", "b"):
        lines = (" ".join(f"{name}{draw.randrange(50)}" for _ in range(20)) for _ in range(80))
        (folder / f"{name}.txt").write_text("\n".join(lines))
    return folder


def config_for(texts, output_dir, **train):
    mixture = MixtureConfig(
        name="made",
        components=tuple(
            Component(
                name=name, kind="real", corpus=CorpusConfig(source=str(join_path(texts, f"{name}.txt"))), share=0.5
            )
            for name in ("a", "b")
        ),
        sequence_length=16,
        validation_share=0.1,
        processes=1,
    )
    train = dataclasses.replace(TRAIN, steps=4, **train)
    optimizer = OptimizerConfig(learning_rate=1e-2, schedule="constant")
    return Config(output_dir=str(output_dir), mixture=mixture, model=MODEL, optimizer=optimizer, train=train)


def state_of(folder):
    """Every file and folder with a hash of its content."""
    paths = sorted(Path(folder).rglob("*"))
    return [(str(path), path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest()) for path in paths]


def refused(config):
    with pytest.raises(InputError) as error:
        run.run(config)
    return str(error.value)
