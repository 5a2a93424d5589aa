"""Compares every supported model family with transformers: logits, export, reload, and a step on a mesh.

    python scripts/checks/verify_family.py
    python scripts/checks/verify_family.py --only qwen_3 --train
    python scripts/checks/verify_family.py --write tests/golden/family_logits.json

For each configuration of `tests/family_configs.py`: a model of transformers with weights that depend on the tensors'
names is written as safetensors beside that very `config.json`, and read here. Compared are float32 logits of 2 x 64
tokens, four times the length that scaled rotary positions were made for; the export's logits in transformers, and its
parameters read again, bit for bit; and what transformers itself writes of the model, in the style of its version, with
weights as `torch.save` pickles them. With `--train` the gradient of the loss on a simulated mesh of 4 x 2 devices (fsdp
x tensor) beside that on one device, for every model that differs from those before in more than its rotary frequencies.
`--write` keeps a few logits for the tests, which then need no torch. Needs torch and transformers; run it with
transformers 4 and 5. Ends with status 1 where anything differs by more than 1e-4 of the logits' spread.
"""

import argparse
import contextlib
import dataclasses
import io
import json
import os
from pathlib import Path
import sys
import tempfile
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import jax
import numpy as np

from diversity_jax.core.errors import InputError
from diversity_jax.model.checkpoint_io.hugging_face import export_hugging_face, import_hugging_face
from diversity_jax.model.convert import LogitsComparison, compare_logits
from diversity_jax.model.llama import logits
from tests import family_configs
from tests.family_configs import CONFIGS, REFUSED

TOLERANCE = 1e-4
_AS_COMPARED: dict[str, Any] = {"compute_dtype": "float32", "scan_layers": False, "attention": "reference"}
_UNSCALED: dict[str, Any] = {
    **{"rope_scaling": "none", "rope_factor": 1.0, "rope_original_length": None, "rope_attention_factor": None},
    **{"rope_fast_turns": None, "rope_slow_turns": 1.0},
}


class NotTheirsError(Exception):
    """The installed transformers does not read a configuration."""


def main() -> None:
    import transformers

    options = _options()
    jax.config.update("jax_num_cpu_devices", 8)
    jax.config.update("jax_disable_most_optimizations", True)  # every program runs once
    jax.config.update("jax_default_matmul_precision", "highest")
    transformers.utils.logging.set_verbosity_error()
    names = [name for name in CONFIGS if any(part in name for part in options.only.split(","))]
    if transformers.__version__.startswith("4."):  # which does not read what it does not know
        names = [name for name in names if "rope_parameters" not in CONFIGS[name]]
    golden, failed, unread, trained = {}, [], [], set()
    print(f"transformers {transformers.__version__}")
    print(f"{'model':<34} {'as':<12} {'logits':>8} {'argmax':>7} {'export':>8}  rest")
    for name in names:
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
            try:
                row, golden[name] = check(CONFIGS[name], Path(folder), trained if options.train else None)
            except NotTheirsError as error:
                unread.append(name)
                print(f"{name:<34} refused by this transformers: {str(error)[:60]}")
                continue
        wrong = not row["logits"].relative < TOLERANCE or not row["export"].relative < TOLERANCE or row["problems"]
        failed += [name] if wrong else []
        print(
            f"{name:<34} {row['as']:<12} {row['logits'].relative:>8.1e} {row['logits'].same_argmax:>7.1%} "
            f"{row['export'].relative:>8.1e}  {'; '.join(row['problems']) or 'equal'}",
            flush=True,
        )
    refused = 0
    for name, (config, message) in REFUSED.items():
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "config.json").write_text(json.dumps(config))
            try:
                import_hugging_face(folder)
            except InputError as error:
                refused += message in str(error)
            else:
                failed.append(name)
    on_mesh = f"; {len(trained)} kinds trained on 4 x 2 devices" if options.train else ""
    read = len(names) - len(unread)
    print(f"{read - len(failed)} of {read} that this transformers reads equal{on_mesh}")
    print(f"{refused} of {len(REFUSED)} others refused in one line")
    if options.write:
        rows = [f"{json.dumps(name)}:{json.dumps(row, separators=(',', ':'))}" for name, row in golden.items()]
        made_with = json.dumps(f"transformers {transformers.__version__}")
        options.write.write_text(f'{{"made_with":{made_with},"logits":{{\n' + ",\n".join(rows) + "\n}}\n")
    sys.exit(1 if failed or refused < len(REFUSED) else 0)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default="", help="parts of names, joined by commas")
    parser.add_argument("--train", action="store_true", help="one step on a mesh too")
    parser.add_argument("--write", type=Path, help="where to keep some logits")
    return parser.parse_args()


def check(
    config_json: dict[str, Any], folder: Path, trained: set[Any] | None
) -> tuple[dict[str, Any], list[list[float]]]:
    """A line of the table, and the logits to keep; `trained` are the models that went through a mesh, None: none do."""
    from safetensors.torch import save_file
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    first, second, third = folder / "first", folder / "second", folder / "third"
    first.mkdir()
    (first / "config.json").write_text(json.dumps(config_json))
    try:
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(first))
    except (ValueError, KeyError) as error:
        raise NotTheirsError(str(error)) from error
    offset = 1.0 if config_json["model_type"].startswith("gemma") else 0.0
    values = {
        name: torch.from_numpy(family_configs.tensor_values(name, tuple(tensor.shape), offset))
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight" or not model.config.tie_word_embeddings
    }
    save_file(values, first / "model.safetensors", metadata={"format": "pt"})
    theirs, model = _their_logits(first)
    config, params = import_hugging_face(first, **_AS_COMPARED)
    ours = np.asarray(jax.jit(logits, static_argnums=0)(config, params, family_configs.tokens()))
    export_hugging_face(config, params, second)
    exported, _ = _their_logits(second)
    problems = []
    again, restored = import_hugging_face(second, **_AS_COMPARED)
    if not jax.tree.all(jax.tree.map(np.array_equal, params, restored)):
        problems.append("weights read again differ")
    if {**vars(again), "max_length": 0} != {**vars(config), "max_length": 0, "num_kv_heads": again.num_kv_heads}:
        problems.append("configuration read again differs")
    model.save_pretrained(third)
    for file in third.glob("*.safetensors"):
        file.unlink()
    torch.save(model.state_dict(), third / "pytorch_model.bin")
    saved, pickled = import_hugging_face(third, **_AS_COMPARED)
    if {**vars(saved), "num_kv_heads": 0} != {**vars(config), "num_kv_heads": 0}:
        problems.append("configuration saved by transformers differs")
    if not jax.tree.all(jax.tree.map(np.array_equal, params, pickled)):
        problems.append("pickled weights differ")
    kind = dataclasses.replace(config, rope_theta=1.0, max_length=1, **_UNSCALED)
    if trained is not None and kind not in trained and (difference := _mesh_difference(config, params)) > TOLERANCE:
        problems.append(f"a gradient on a mesh differs by {difference:.1e}")
    if trained is not None:
        trained.add(kind)
    row = {
        "as": json.loads((second / "config.json").read_text())["model_type"],
        "logits": _compare(ours, theirs),
        "export": _compare(exported, theirs),
        "problems": problems,
    }
    return row, theirs[0, family_configs.SHOWN, : family_configs.SHOWN_IDS].astype(np.float64).round(5).tolist()


def _compare(left: np.ndarray, right: np.ndarray) -> LogitsComparison:
    return compare_logits(*(x.reshape(-1, x.shape[-1]) for x in (left, right)))


def _their_logits(folder: Path) -> tuple[np.ndarray, Any]:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        output = model(torch.from_numpy(family_configs.tokens()).long(), use_cache=False)
    return output.logits.float().numpy(), model


def _mesh_difference(config: Any, params: Any) -> float:
    """The largest difference of a gradient on one device and on a 4 x 2 mesh, in parts of that gradient's largest."""
    from diversity_jax.model import MeshConfig, make_mesh, param_shardings
    from diversity_jax.model.cross_entropy import loss

    config = dataclasses.replace(config, scan_layers=True, attention="auto")

    def gradient(params: Any, mesh: Any) -> Any:
        rows = {"tokens": np.concatenate([family_configs.tokens()[:, :33]] * 4)}
        return jax.jit(jax.grad(lambda params: loss(config, params, rows, mesh=mesh)[0]))(params)

    mesh = make_mesh(MeshConfig(fsdp=4, tensor=2), jax.devices()[:8])
    try:
        shardings = param_shardings(mesh, params)
    except InputError:  # one key/value head
        shardings = param_shardings(mesh := make_mesh(MeshConfig(data=2, fsdp=4), jax.devices()[:8]), params)
    pairs = zip(
        jax.tree.leaves(gradient(params, None)),
        jax.tree.leaves(gradient(jax.device_put(params, shardings), mesh)),
        strict=True,
    )
    return max(float(np.abs(np.asarray(a) - np.asarray(b)).max() / np.abs(np.asarray(a)).max()) for a, b in pairs)


if __name__ == "__main__":
    main()
