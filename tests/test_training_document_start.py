"""The document start means the same in training loss, evaluation, generation, server and export."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
from lm_eval.api.instance import Instance
import numpy as np
import pytest
import safetensors.numpy
import tokenizers

from diversity_jax.core.errors import InputError
from diversity_jax.evaluation.held_out import component_losses, documents_loss
from diversity_jax.evaluation.lm_eval_model import HarnessModel
from diversity_jax.evaluation.load_model import open_model
from diversity_jax.mixtures.loader import Batch, as_arrays
from diversity_jax.mixtures.mixture import Mixture
from diversity_jax.model import LlamaConfig, convert
from diversity_jax.model.cross_entropy import loss
from diversity_jax.prepare.rows import RowReader
from diversity_jax.tokenizers.document_start import Boundaries
from diversity_jax.tokenizers.tokenizer import load_tokenizer
from diversity_jax.training import run
from diversity_jax.training.config import OptimizerConfig, TrainConfig
from diversity_jax.training.run import Config
from diversity_jax.training.step import component_sums
from tests.document_starts import BOS, END, SETTINGS, TEXTS, built, byte_vocabulary
from tests.json_lines import json_lines
from tests.plain_llama import scores
from tests.running_server import post, running

MODEL = LlamaConfig(
    vocab_size=264,
    hidden_size=32,
    intermediate_size=64,
    num_layers=2,
    num_heads=2,
    max_length=128,
    compute_dtype="float32",
    attention="chunked",
    tie_embeddings=True,
)


def config_of(folder: Path, *, across: bool, steps: int = 24) -> Config:
    train = TrainConfig(
        **{"steps": steps, "batch_size": 8, "log_every": 8, "eval_batches": 1, "checkpoint_every": 8},
        **{"tensorboard": False, "compilation_cache": None, "attend_across_documents": across},
    )
    return Config(
        output_dir=str(folder / "run"),
        prepared=str(folder / "mixture"),
        model=MODEL,
        optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=2, schedule="constant"),
        train=train,
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Folders of runs by (document_start, attend_across_documents), trained until they know their texts' beginnings."""
    made = {}

    def train(setting: str, across: bool) -> Path:
        if (setting, across) not in made:
            folder = tmp_path_factory.mktemp(f"{setting}-{across}")
            built(folder, setting, byte_vocabulary(folder / "vocabulary"))
            run.run(config_of(folder, across=across))
            made[setting, across] = folder
        return made[setting, across]

    return train


def stream(texts, boundaries: Boundaries, tokenizer) -> list[int]:
    """A row as preparation writes it, from where a document begins."""
    begin = [BOS] if boundaries.document_start == "bos" else []
    row = [END] if boundaries.document_start == "end_of_text" else []
    for text in texts:
        row += [*begin, *tokenizer.encode_batch([text])[0].tolist(), END]
    return row


def training_nats(folder: Path, across: bool, texts) -> list[np.ndarray]:
    """The training loss of each text's tokens in a row of them, in nats; nan for tokens that are no targets."""
    mixture = Mixture.load(folder / "mixture")
    boundaries = mixture.boundaries(attend_across_documents=across)
    tokenizer = load_tokenizer(str(folder / "vocabulary" / "tokenizer.json"))
    row = np.array([stream(texts, boundaries, tokenizer)], np.int32)
    _, params = convert.read_model(folder / "run")
    arrays = as_arrays(Batch(tokens=row, component=np.zeros(1, np.int32)), boundaries)
    parts = loss(MODEL, params, {name: jnp.asarray(value) for name, value in arrays.items()})[1]
    losses = np.concatenate([[np.nan], np.where(parts["weights"][0] > 0, parts["losses"][0], np.nan)])
    nats, position = [], len(stream([], boundaries, tokenizer))
    for text in texts:
        position += boundaries.document_start == "bos"
        size = len(tokenizer.encode_batch([text])[0])
        nats.append(losses[position : position + size])
        position += size + 1
    return nats


@pytest.mark.parametrize(("setting", "across"), SETTINGS)
def test_a_document_has_the_same_loss_in_training_evaluation_server_and_export(trained, tmp_path, setting, across):
    folder, texts = trained(setting, across), TEXTS[1:4]
    trained_nats = training_nats(folder, across, texts)
    first_counts = setting != "none"
    # Where attention crosses documents, only the first of a row stands alone in training too.
    alone = [(text, nats) for text, nats in zip(texts, trained_nats, strict=True)][: 1 if across else None]
    for nats in trained_nats:
        assert np.isfinite(nats[1:]).all()
        assert np.isfinite(nats[0]) == first_counts
    model = open_model(folder / "run")
    close = {"abs": 3e-5, "rel": 1e-5}
    # The held-out document, and the rows of a component.
    for text, nats in alone:
        evaluated = documents_loss(model, model.scorer(), [text])
        assert evaluated.nats_per_token * evaluated.tokens == pytest.approx(np.nansum(nats), **close)
        assert evaluated.tokens == len(text) - (not first_counts)
        assert evaluated.text_bytes == pytest.approx(evaluated.tokens)
    # The harness.
    harness = HarnessModel(model)
    [rolling] = harness.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (texts[0],), 0)])
    assert -rolling == pytest.approx(np.nansum(trained_nats[0]), **close)
    pairs = [("", texts[0][:size]) for size in (1, 2, 3)] + [(texts[0][:1], texts[0][1:3])]
    asked = [Instance("loglikelihood", {}, pair, number) for number, pair in enumerate(pairs)]
    if first_counts:
        evaluated = [-nats for nats, _ in harness.loglikelihood(asked)]
        expected = [*np.cumsum(trained_nats[0][:3]), trained_nats[0][1:3].sum()]
        assert evaluated == pytest.approx(expected, **close)
    else:
        with pytest.raises(InputError, match=r"task, item .*: the text is empty, .*document_start is none"):
            harness.loglikelihood(asked)
        assert -harness.loglikelihood(asked[3:])[0][0] == pytest.approx(trained_nats[0][1:3].sum(), **close)
    # The server.
    ask = {"model": model.name, "prompt": texts[0], "max_tokens": 0, "echo": True, "logprobs": 0}
    with running(model) as (port, _):
        status, answer = post(port, "/v1/completions", ask)
        assert status == 200
        served = answer["choices"][0]["logprobs"]["token_logprobs"]
        assert served[0] is None
        begin = 1 if first_counts else 0
        assert len(served) == len(texts[0]) + begin
        assert -np.array(served[1:], float) == pytest.approx(trained_nats[0][1 - begin :], **close)
        status, answer = post(port, "/v1/completions", {**ask, "prompt": "", "max_tokens": 1, "echo": False})
        assert status == (200 if first_counts else 400)
        assert first_counts or "document_start is none" in answer["message"]
    # The export, in an implementation that knows nothing of ours.
    convert.main(["export", str(folder / "run"), str(tmp_path / "export")])
    for nats, (text, _) in zip(trained_nats, alone, strict=False):
        theirs = exported_nats(tmp_path / "export", text)
        assert theirs[1 - begin :] == pytest.approx(nats[1 - begin :], **close)
    # Again by our own reader of such folders.
    exported = open_model(tmp_path / "export")
    assert exported.tokenizer.encode(texts[0]) == model.tokenizer.encode(texts[0])
    if first_counts:
        assert exported.tokenizer.prefix_id == model.tokenizer.prefix_id
        [again] = HarnessModel(exported).loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (texts[0],), 0)])
        assert again == pytest.approx(rolling, abs=1e-4)


def exported_nats(folder: Path, text: str) -> np.ndarray:
    """Of each token of a text, by the exported files alone; what begins a text is not among them."""
    tensors, shape = (
        safetensors.numpy.load_file(folder / "model.safetensors"),
        json.loads((folder / "config.json").read_text()),
    )
    names = {"input_norm": "input_layernorm", "post_norm": "post_attention_layernorm"}
    names |= {name: f"self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "o_proj")}
    names |= {name: f"mlp.{name}" for name in ("gate_proj", "up_proj", "down_proj")}
    layers = [
        {ours: tensors[f"model.layers.{layer}.{theirs}.weight"] for ours, theirs in names.items()}
        for layer in range(shape["num_hidden_layers"])
    ]
    weights = {"embed": tensors["model.embed_tokens.weight"], "layers": layers, "norm": tensors["model.norm.weight"]}
    sizes = {"head": shape["head_dim"], "theta": shape["rope_theta"], "epsilon": shape["rms_norm_eps"]}
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids, plain = (tokenizer.encode(text, add_special_tokens=added).ids for added in (True, False))
    begin = ids[: len(ids) - len(plain)]
    assert begin == [i for i in [shape["bos_token_id"]] if i is not None]
    assert json.loads((folder / "tokenizer_config.json").read_text())["add_bos_token"] == bool(begin)
    assert json.loads((folder / "generation_config.json").read_text()).get("bos_token_id") == shape["bos_token_id"]
    logprobs = jax.nn.log_softmax(scores(sizes, weights, np.array([ids]))[0])
    nats = -np.asarray(logprobs)[np.arange(len(ids) - 1), ids[1:]]
    return np.concatenate([np.full(1 - len(begin), np.nan), nats])


@pytest.mark.parametrize(("setting", "across"), SETTINGS)
def test_held_out_rows_have_the_loss_and_the_counts_of_training(trained, setting, across):
    folder = trained(setting, across)
    mixture = Mixture.load(folder / "mixture")
    boundaries, manifest = mixture.boundaries(attend_across_documents=across), mixture.taken[0].prepared
    split = manifest.splits["validation"]
    rows = RowReader(manifest, "validation").read(np.arange(split.rows)).tokens
    arrays = as_arrays(Batch(tokens=rows, component=np.zeros(len(rows), np.int32)), boundaries)
    _, params = convert.read_model(folder / "run")
    parts = loss(MODEL, params, {name: jnp.asarray(value) for name, value in arrays.items()})[1]
    sums = component_sums(parts, jnp.zeros(len(rows), jnp.int32), 1)
    model = open_model(folder / "run")
    kind, evaluated = component_losses(folder / "run", model, model.scorer())["part"]
    assert kind == "real"
    assert evaluated.tokens == int(sums["component_tokens"][0])
    assert evaluated.nats_per_token * evaluated.tokens == pytest.approx(float(sums["component_loss_sum"][0]), rel=1e-5)
    # What is no target: BOS, or the first tokens of documents; in both cases one a document that begins in a row.
    begun = int((rows[:, :-1] == END).sum()) if setting != "bos" else int((rows[:, 1:] == BOS).sum())
    assert evaluated.tokens == rows[:, 1:].size - (0 if setting == "end_of_text" else begun)
    # Bytes: every byte of these texts is a token, so those of the targets can be counted.
    is_target = boundaries.targets(rows)[:, 1:]
    counted = (is_target & (rows[:, 1:] > 3)).sum()
    assert evaluated.text_bytes == pytest.approx(counted, rel=0.02)
    # The loader's targets are what the steps reported.
    loader, counted = mixture.loader(batch_size=8), 0
    for step in range(24):
        arrays = as_arrays(loader.batch(step), boundaries)
        counted += int(arrays.get("loss_mask", np.ones_like(arrays["tokens"]))[:, 1:].sum())
    metrics = json_lines(folder / "run" / "metrics.jsonl")
    assert sum(line.get("tokens/part", 0) for line in metrics) == counted


@pytest.mark.parametrize("before", [None, "none", "bos"])
def test_a_run_goes_on_with_its_own_setting_only(tmp_path, before):
    vocabulary = byte_vocabulary(tmp_path / "vocabulary")
    built(tmp_path, before or "end_of_text", vocabulary)
    if before is None:
        path = tmp_path / "mixture" / "mixture.json"
        old = dataclasses.replace(Mixture.load(path), document_start=None, document_start_id=None)
        old.save()
    run.run(config_of(tmp_path, across=False, steps=4))
    files = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    (tmp_path / "mixture").rename(tmp_path / "old")
    built(tmp_path, "end_of_text", vocabulary)
    with pytest.raises(InputError, match=rf"mixture\.document_start='end_of_text' \(was {before!r}\)"):
        run.run(config_of(tmp_path, across=False, steps=6))
    assert files == {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    mixture = tmp_path / "mixture"
    mixture.rename(tmp_path / "other")
    (tmp_path / "old").rename(mixture)
    run.run(config_of(tmp_path, across=False, steps=6))


def test_a_resumed_run_has_every_bit_of_one_that_was_not_stopped(tmp_path, trained):
    folder = trained("none", False)
    stopped = tmp_path / "stopped"
    (tmp_path / "stopped").mkdir()
    (stopped / "mixture").symlink_to(folder / "mixture")
    parts = [config_of(stopped, across=False, steps=steps) for steps in (5, 9)]
    for config in parts:
        run.run(config)
    uninterrupted = dataclasses.replace(parts[1], output_dir=str(tmp_path / "whole"))
    run.run(uninterrupted)
    resumed, expected = (convert.read_model(Path(config.output_dir))[1] for config in (parts[1], uninterrupted))
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), resumed, expected))


def test_a_run_of_before_the_setting_is_evaluated_as_it_was_trained(trained, tmp_path, caplog):
    """Documents apart: nothing began one. Across: end-of-text stands for an empty text, as it did."""
    for across, prefix in ((False, None), (True, END)):
        folder = tmp_path / str(across)
        folder.mkdir()
        source = trained("end_of_text", across)
        for part in ("run", "vocabulary"):
            (folder / part).symlink_to(source / part)
        record = json.loads((source / "run" / "run.json").read_text())
        old = dataclasses.replace(
            Mixture.load(source / "mixture"), document_start=None, document_start_id=None, folder=folder / "mixture"
        )
        old.save()
        copied = folder / "copy"
        copied.mkdir()
        (copied / "checkpoints").symlink_to(source / "run" / "checkpoints")
        record["settings"]["prepared"] = str(folder / "mixture")
        (copied / "run.json").write_text(json.dumps(record))
        model = open_model(copied)
        assert (model.tokenizer.encode("ab"), model.tokenizer.prefix_id) == ([101, 102], prefix)
        assert ("before document_start was recorded" in caplog.text) == (not across)
        caplog.clear()
        convert.main(["export", str(copied), str(folder / "export")])
        exported = json.loads((folder / "export" / "config.json").read_text())
        assert exported["bos_token_id"] == prefix
        assert open_model(folder / "export").tokenizer.encode("ab") == [101, 102]


def test_gguf_says_what_begins_a_text(trained, tmp_path):
    gguf = pytest.importorskip("gguf")
    for setting, begin in (("none", None), ("end_of_text", END), ("bos", BOS)):
        folder = trained(setting, False)
        convert.main(["gguf", str(folder / "run"), str(tmp_path / f"{setting}.gguf")])
        fields = gguf.GGUFReader(tmp_path / f"{setting}.gguf").fields
        assert fields["tokenizer.ggml.add_bos_token"].contents() == (begin is not None)
        assert begin in (None, fields["tokenizer.ggml.bos_token_id"].contents())
