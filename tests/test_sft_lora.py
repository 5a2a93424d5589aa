"""Low-rank adapters: no effect before training, only they are trained, and merged they are an ordinary model."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diversity_jax import train
from diversity_jax.core.errors import InputError
from diversity_jax.model import MeshConfig, batch_sharding, logits, make_mesh, param_shardings
from diversity_jax.model.config import LoraConfig
from diversity_jax.model.convert import main as convert
from diversity_jax.model.convert import read_model, write_imported
from diversity_jax.model.llama import init_adapters, merged, with_adapters
from diversity_jax.training.checkpoint import read_info
from diversity_jax.training.config import OptimizerConfig, TrainConfig
from diversity_jax.training.step import make_train_step, state_shardings
from tests.json_lines import json_lines
from tests.sft_folders import write_examples
from tests.small_llama import random_params, small_config
from tests.test_sft_training import MODEL, tuning

LORA = LoraConfig(rank=3, alpha=12.0)
OPTIMIZER = OptimizerConfig(learning_rate=1e-2, weight_decay=0.0, schedule="constant", total_steps=200)


def drawn(config, lora=LORA, seed=1):
    """Adapters with random values, as after training."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda key: init_adapters(config, lora, key), jax.random.key(0))
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32) * 0.1, shapes)


@pytest.mark.parametrize("scan_layers", [False, True])
def test_untrained_adapters_change_no_bit_and_merged_ones_give_the_same_logits(scan_layers):
    config = small_config(num_kv_heads=2, scan_layers=scan_layers)
    base, tokens = random_params(config), jnp.arange(40).reshape(2, 20) % config.vocab_size
    score = jax.jit(lambda params: logits(config, params, tokens))
    plain = score(base)
    fresh = init_adapters(config, LORA, jax.random.key(0))
    np.testing.assert_array_equal(score(with_adapters(base, fresh, LORA)), plain)
    jax.tree.map(np.testing.assert_array_equal, merged(base, fresh, LORA), base)
    tuned = drawn(config)
    apart, together = score(with_adapters(base, tuned, LORA)), score(merged(base, tuned, LORA))
    assert np.abs(apart - plain).max() > 0.1
    np.testing.assert_allclose(apart, together, atol=2e-5)
    query, adapter = base["blocks"]["attention"]["query"], tuned["blocks"]["attention"]["query"]
    expected = query[1] + 4 * np.einsum("dr,rhe->dhe", adapter["a"][1], adapter["b"][1])
    np.testing.assert_allclose(
        merged(base, tuned, LORA)["blocks"]["attention"]["query"][1], expected, rtol=1e-6, atol=1e-6
    )


def test_only_what_is_named_gets_adapters():
    config = small_config()
    lora = LoraConfig(rank=2, matrices=("query", "down"))
    adapters = init_adapters(config, lora, jax.random.key(0))
    assert {path[1].key + "/" + path[2].key for path, _ in jax.tree_util.tree_leaves_with_path(adapters)} == {
        "attention/query",
        "mlp/down",
    }
    changed = merged(random_params(config), drawn(config, lora), lora)["blocks"]
    base = random_params(config)["blocks"]
    same = jax.tree.map(lambda a, b: bool((a == b).all()), changed, base)
    assert {name for name, is_same in (same["attention"] | same["mlp"]).items() if not is_same} == {"down", "query"}


def test_a_step_on_a_mesh_is_the_step_on_one_device_and_keeps_moments_of_adapters_alone():
    config = small_config(num_kv_heads=2)
    base, results = random_params(config), []
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (8, 33), dtype=np.int32)
    for sizes in (MeshConfig(fsdp=1), MeshConfig(fsdp=4, tensor=2)):
        mesh = make_mesh(sizes, jax.devices()[: sizes.fsdp * sizes.tensor])
        _, step = make_train_step(config, OPTIMIZER, mesh, lora=LORA)
        shapes, shardings = state_shardings(config, OPTIMIZER, mesh, LORA)
        counts = {leaf.size for leaf in jax.tree.leaves(shapes.opt_state)} - {1}
        assert counts == {leaf.size for leaf in jax.tree.leaves(shapes.params)}
        state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
        state = jax.device_put(dataclasses.replace(state, params=drawn(config)), shardings)
        batch = jax.device_put({"tokens": tokens, "component": np.zeros(8, np.int32)}, batch_sharding(mesh))
        state, metrics = step(state, batch, jax.device_put(base, param_shardings(mesh, base)))
        results.append((jax.device_get(state.params), float(metrics["loss"]), float(metrics["gradient_norm"])))
    assert results[0][1:] == pytest.approx(results[1][1:], rel=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), results[0][0], results[1][0])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model of ours and examples."""
    folder = tmp_path_factory.mktemp("base")
    write_imported(MODEL, jax.tree.map(np.asarray, random_params(MODEL, scale=0.05)), folder / "base")
    write_examples(folder / "examples.jsonl", 300, longest=2)
    return folder


def settings(folder, output, **fields):
    config = tuning(folder, output)
    lora = LoraConfig(rank=4, alpha=8.0)
    fields = {"epochs": 1, "checkpoint_every": 5, "init_from": str(folder / "base"), "lora": lora} | fields
    return dataclasses.replace(config, optimizer=OPTIMIZER, train=dataclasses.replace(config.train, **fields))


@pytest.fixture(scope="module")
def tuned(folder, tmp_path_factory):
    output = tmp_path_factory.mktemp("adapted")
    train.main(settings(folder, output))
    return output


def test_a_checkpoint_is_read_with_the_settings_that_made_it(tuned, tmp_path):
    shutil.copytree(tuned, tmp_path / "run")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    record["settings"]["train"]["lora"]["alpha"] = 99.0  # as a resumed run leaves it, before its first checkpoint
    record["settings"]["model"]["rope_theta"] = 5.0
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    (config, params), (expected, merged_params) = read_model(tmp_path / "run"), read_model(tuned)
    assert config == expected
    jax.tree.map(np.testing.assert_array_equal, params, merged_params)


def test_training_changes_adapters_alone_and_the_merged_model_is_what_was_measured(folder, tuned, tmp_path):
    lines = json_lines(tuned / "metrics.jsonl")
    losses = [line["eval/loss"] for line in lines if "eval/loss" in line]
    assert losses[-1] < losses[0] - 0.2
    last = max((int(path.name), path) for path in (tuned / "checkpoints").iterdir() if path.name.isdigit())[1]
    stored = sum(path.stat().st_size for path in last.rglob("*") if path.is_file())
    assert stored < 4 * MODEL.parameter_count  # not even the parameters once, and no moments of theirs
    _, before = read_model(folder / "base")
    config, after = read_model(tuned)
    for name in ("embed", "norm"):
        np.testing.assert_array_equal(before[name], after[name])
    assert np.abs(before["blocks"]["mlp"]["up"] - after["blocks"]["mlp"]["up"]).max() > 1e-3
    convert(["export", str(tuned), str(tmp_path / "theirs")])
    jax.tree.map(np.testing.assert_array_equal, read_model(tmp_path / "theirs")[1], jax.device_get(after))
    from diversity_jax.mixtures.mixture import Mixture
    from diversity_jax.training.evaluation import HeldOut

    mixture = Mixture.load(tuned / "mixture")
    boundaries = mixture.boundaries(attend_across_documents=True)
    held_out = HeldOut(mixture, config, make_mesh(MeshConfig(fsdp=1), jax.devices()[:1]), 16, 1, boundaries)
    assert held_out.losses(after)["all"] == pytest.approx(losses[-1], abs=1e-4)


def test_a_run_and_its_model_are_found_from_any_folder_also_moved_together(folder, tuned, tmp_path):
    record = json.loads((tuned / "run.json").read_text())
    record["settings"]["output_dir"], record["settings"]["train"]["init_from"] = "runs/run", "runs/base"
    run = tmp_path / "moved" / "run"
    shutil.copytree(tuned, run)
    (run / "run.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match=r"moved/run: the model of its adapters, runs/base, is not there"):
        read_model(run)
    (tmp_path / "moved" / "base").symlink_to(folder / "base")
    jax.tree.map(np.testing.assert_array_equal, *(jax.device_get(read_model(each)[1]) for each in (run, tuned)))


def test_resumed_it_ends_with_the_same_bits_and_another_base_is_refused(folder, tuned, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "write_page", lambda config, folder: None)
    steps = json.loads((tuned / "run.json").read_text())["settings"]["train"]["steps"]
    config = settings(folder, tmp_path / "again")
    for epochs in (0.5, 1):
        train.main(dataclasses.replace(config, train=dataclasses.replace(config.train, epochs=epochs)))
    uninterrupted, resumed = (read_info(folder / "checkpoints", steps) for folder in (tuned, tmp_path / "again"))
    assert resumed["fingerprint"] == uninterrupted["fingerprint"]
    other = tmp_path / "other"
    write_imported(MODEL, jax.tree.map(np.asarray, random_params(MODEL, seed=9, scale=0.05)), other)
    record = json.loads((tuned / "run.json").read_text())
    record["settings"]["train"]["init_from"] = str(other)
    (tmp_path / "again" / "run.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match="holds adapters to another model than"):
        read_model(tmp_path / "again")
    with pytest.raises(InputError, match=r"train.lora.alpha=9.0 \(was "):
        train.main(settings(folder, tmp_path / "again", lora=LoraConfig(rank=4, alpha=9.0)))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rank": -1}, "rank of at least 0"),
        ({"rank": 1.5}, "lora.rank=1.5: must be a whole number"),
        ({"rank": 2, "alpha": 0.0}, "alpha above 0"),
        ({"rank": 2, "alpha": float("inf")}, "finite alpha above 0"),
        ({"matrices": ("query", "query")}, "each once"),
        ({"matrices": ("query", "embed")}, "name one or more of query, key"),
        ({"matrices": ()}, "name one or more of query, key"),
    ],
)
def test_wrong_settings_are_one_line(fields, message):
    with pytest.raises(InputError, match=message):
        LoraConfig(**fields)
    with pytest.raises(InputError, match="adapters are added to a trained model"):
        TrainConfig(lora=LORA)
