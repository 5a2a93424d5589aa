"""What begins a document means the same in rows, loss, evaluation, generation, server and export."""

import dataclasses
import itertools
import json
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
from lm_eval.api.instance import Instance
import numpy as np
import pytest
import safetensors.numpy
import tokenizers

from diversity_jax.core.errors import InputError
from diversity_jax.corpus import CorpusConfig
from diversity_jax.evaluation.held_out import component_losses, documents_loss
from diversity_jax.evaluation.lm_eval_model import HarnessModel
from diversity_jax.evaluation.load_model import open_model
from diversity_jax.mixtures.builder import build
from diversity_jax.mixtures.config import Component, GatePolicy, MixtureConfig
from diversity_jax.mixtures.mixture import Batch, Mixture
from diversity_jax.mixtures.replay import describe, inspect_mixture
from diversity_jax.mixtures.row_arrays import as_arrays
from diversity_jax.mixtures.sources import PreparedCorpus
from diversity_jax.model import LlamaConfig, convert
from diversity_jax.model.cross_entropy import loss
from diversity_jax.prepare.config import Chat, Preparation
from diversity_jax.prepare.packing import ExampleEncoder, open_format
from diversity_jax.prepare.rows import ID_BITS, RowReader
from diversity_jax.tokenizers.chat_template import BEGIN_WITH_BOS
from diversity_jax.tokenizers.document_start import DOCUMENT_STARTS, Boundaries, resolve
from diversity_jax.tokenizers.files import TokenizerFiles, write_tokenizer
from diversity_jax.tokenizers.gguf_entries import tokenizer_entries
from diversity_jax.tokenizers.tokenizer import for_folder, for_run, load_tokenizer
from diversity_jax.training import run
from diversity_jax.training.config import OptimizerConfig, TrainConfig
from diversity_jax.training.run import Config
from diversity_jax.training.step import component_sums
from tests.plain_llama import scores
from tests.running_server import post, running
from tests.test_model_gguf import train_sentencepiece

END, BOS, LENGTH = 1, 3, 63
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
TEXTS = [f"{word} is what number {number} says." for number, word in enumerate(["one", "a door", "ink", "Zen", "x"])]
SETTINGS = list(itertools.product(DOCUMENT_STARTS, (True, False)))


def byte_vocabulary(folder: Path, *, bos: str | None = "<s>", adds: bool = False) -> Path:
    """A `tokenizer.json` of bytes: 0 to 3 are special, byte b is b + 4; with `adds`, `bos` stands before every text."""
    special = ["<|pad|>", "<|endoftext|>", "<|unk|>", *([bos] if bos and bos != "<|endoftext|>" else [])]
    own, others = {*range(33, 127), *range(0xA1, 0xAD), *range(0xAE, 0x100)}, iter(range(256, 512))
    characters = [chr(byte if byte in own else next(others)) for byte in range(256)]
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.BPE({text: i for i, text in enumerate([*special, *characters])}, [])
    )
    tokenizer.add_special_tokens(special)
    byte_level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer, tokenizer.decoder = byte_level, tokenizers.decoders.ByteLevel()
    if adds:
        pairs = [(bos, tokenizer.token_to_id(bos))]
        tokenizer.post_processor = tokenizers.processors.TemplateProcessing(f"{bos} $A", special_tokens=pairs)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


def write_texts(path: Path, texts=TEXTS, times: int = 40) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for _ in range(times) for text in texts))
    return str(path)


def mixture_config(folder: Path, setting: str, vocabulary: Path | str, **fields) -> MixtureConfig:
    policy = GatePolicy(ungated=True)
    part = Component(name="part", kind="real", corpus=write_texts(folder / "texts.jsonl"), share=1.0, policy=policy)
    asked = {"name": "made", "components": (part,), "sequence_length": LENGTH, "validation_share": 0.3, "processes": 1}
    return MixtureConfig(vocabulary=str(vocabulary), document_start=setting, **asked | fields)


def built(folder: Path, setting: str, vocabulary: Path | str, **fields) -> Mixture:
    return build(mixture_config(folder, setting, vocabulary, **fields), folder / "mixture", lambda corpora: {})


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
    """What the training loss says of each text's tokens in a row of them; nan where it counts nothing."""
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
    metrics = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    assert sum(line.get("tokens/part", 0) for line in metrics) == counted


@pytest.mark.parametrize("setting", DOCUMENT_STARTS)
def test_rows_hold_what_the_manifest_counts_and_decode_to_the_documents(tmp_path, setting):
    mixture = built(tmp_path, setting, byte_vocabulary(tmp_path / "vocabulary"), validation_share=0.0)
    manifest = mixture.taken[0].prepared
    assert (mixture.document_start, mixture.document_start_id) == (
        setting,
        {"bos": BOS, "none": None}.get(setting, END),
    )
    split = manifest.splits["train"]
    rows = RowReader(manifest).read(np.arange(split.rows)).tokens
    assert split.tokens == rows.size
    added = 2 if setting == "bos" else 1
    total = sum(map(len, TEXTS)) * 40 + added * 40 * len(TEXTS)
    assert split.tokens + split.dropped_tokens == total
    assert manifest.statistics["length_tokens"]["mean"] == pytest.approx(sum(map(len, TEXTS)) / len(TEXTS), abs=1e-3)
    assert abs(int((rows == BOS).sum()) - (40 * len(TEXTS) if setting == "bos" else 0)) <= 4
    texts = [document.text for document in PreparedCorpus("made", {"part": (1, manifest)})]
    assert all(any(text in document for document in TEXTS) for text in texts)
    assert {*TEXTS} <= {*texts}
    shown = describe(inspect_mixture(mixture.folder, rows=10, samples=1))
    assert f"documents begin with: {setting}" in shown
    assert "<s>" not in shown
    loaded = Mixture.load(mixture.folder)
    assert (loaded.document_start, loaded.content_hash) == (mixture.document_start, mixture.content_hash)


def reference(row, setting, separate, bos):
    """Segment starts and targets of a row, token by token."""
    starts, targets = [], []
    for position, token in enumerate(row):
        after_end = position > 0 and row[position - 1] == END
        begins = after_end and (setting != "bos" or token == bos)
        targets.append(not (begins and setting in ("none", "bos")))
        starts.append(position == 0 or (token == END if setting == "end_of_text" else begins))
    return starts, targets


ROWS = st.lists(st.lists(st.sampled_from([END, END, BOS, 7, 8]), min_size=9, max_size=9), min_size=1, max_size=4)


@settings(max_examples=200)
@given(ROWS, st.sampled_from(SETTINGS))
def test_segments_and_targets_of_any_row(rows, settings_of_run):
    """Rows that begin in mid-document, empty documents, documents longer than a row, a BOS that is text."""
    setting, across = settings_of_run
    start = {"none": None, "end_of_text": END, "bos": BOS}[setting]
    boundaries = Boundaries.of(setting, start, END, attend_across_documents=across)
    tokens = np.array(rows, np.int32)
    expected = [reference(row, setting, not across, BOS) for row in rows]
    assert boundaries.starts(tokens).tolist() == [starts for starts, _ in expected]
    assert boundaries.targets(tokens)[:, 1:].tolist() == [targets[1:] for _, targets in expected]
    arrays = as_arrays(Batch(tokens=tokens, component=np.zeros(len(rows), np.int32)), boundaries)
    assert ("segment_ids" in arrays) == (not across)
    assert ("loss_mask" in arrays) == (setting != "end_of_text")
    if across:
        return
    segment, position = arrays["segment_ids"][:, :-1], arrays["positions"][:, :-1]
    weights = arrays.get("loss_mask", np.ones_like(tokens))[:, 1:]
    for row, ids, positions, counts in zip(rows, segment.tolist(), position.tolist(), weights.tolist(), strict=True):
        for index, counted in enumerate(counts):
            seen = [at for at in range(index + 1) if ids[at] == ids[index]]  # what this prediction may look at
            assert positions[index] == index - seen[0]
            assert END not in [row[at] for at in seen[1:-1]] or setting == "bos"  # one document alone
            if counted and setting != "bos":
                assert setting == "end_of_text" or row[index] != END  # a first token is predicted by what begins it


@settings(max_examples=60)
@given(ROWS)
def test_rows_of_before_the_setting_keep_their_segments_and_targets(rows):
    tokens = np.array(rows, np.int32)
    apart = Boundaries.of(None, None, END, attend_across_documents=False)
    assert apart.starts(tokens).tolist() == [reference(row, "none", True, None)[0] for row in rows]
    assert apart.targets(tokens).all()
    assert apart.text_ids == ()
    across = Boundaries.of(None, None, END, attend_across_documents=True)
    batch = Batch(tokens=tokens, component=np.zeros(len(rows), np.int32))
    assert as_arrays(batch, across).keys() == {"tokens", "component"}
    assert (across.start_id, across.text_ids) == (END, None)


def llama_folder(folder: Path, settings_file: dict) -> Path:
    train_sentencepiece(folder / "tokenizer.model")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings_file))
    return folder


@pytest.mark.parametrize(
    ("vocabulary", "automatic", "bos_is"),
    [
        (lambda folder: "bytes", "end_of_text", "no begin-of-text token"),
        (lambda folder: byte_vocabulary(folder), "end_of_text", None),
        (lambda folder: byte_vocabulary(folder, adds=True), "bos", None),
        (lambda folder: byte_vocabulary(folder, bos=None), "end_of_text", "no begin-of-text token"),
        (
            lambda folder: byte_vocabulary(folder, bos="<|endoftext|>", adds=True),
            "end_of_text",
            "one token that begins and ends a text",
        ),
        (lambda folder: train_sentencepiece(folder / "pieces.model"), "end_of_text", None),
        (lambda folder: llama_folder(folder, {"add_bos_token": True, "bos_token": "<s>"}), "bos", None),
        (lambda folder: llama_folder(folder, {"add_bos_token": False, "bos_token": "<s>"}), "end_of_text", None),
        (lambda folder: llama_folder(folder, {"tokenizer_class": "LlamaTokenizer"}), "bos", None),
    ],
    ids=[
        "bytes",
        "bos",
        "adds_bos",
        "no_bos",
        "bos_is_eos",
        "sentencepiece",
        "llama_2",
        "llama_without",
        "llama_class",
    ],
)
def test_what_auto_and_bos_mean_for_a_tokenizer(tmp_path, vocabulary, automatic, bos_is):
    tokenizer = load_tokenizer(str(vocabulary(tmp_path)))
    assert resolve("auto", tokenizer) == automatic
    assert resolve("none", tokenizer) == "none"
    if bos_is is None:
        assert resolve("bos", tokenizer) == "bos"
    else:
        with pytest.raises(InputError, match=bos_is):
            resolve("bos", tokenizer)


def test_an_unknown_setting_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"mixture\.document_start 'eos' is unknown; choose one of auto, none"):
        mixture_config(tmp_path, "eos", "bytes")
    with pytest.raises(InputError, match=r"preparation\.document_start 'x' is unknown"):
        Preparation(name="a", kind="real", sequence_length=8, document_start="x")


def test_all_settings_read_the_rows_of_one_preparation_but_bos(tmp_path):
    """`none` and `end_of_text` are one stream of tokens; `bos` is another, and the two are not mixed."""
    vocabulary, shared = byte_vocabulary(tmp_path / "vocabulary", adds=True), str(tmp_path / "shared")
    first = built(tmp_path / "a", "none", vocabulary, components_dir=shared)
    second = built(tmp_path / "b", "end_of_text", vocabulary, components_dir=shared)
    assert first.taken[0].prepared.content_hash == second.taken[0].prepared.content_hash
    assert first.content_hash != second.content_hash
    with pytest.raises(InputError, match=r"was prepared with another document_start \(None, now 3\)"):
        built(tmp_path / "c", "auto", vocabulary, components_dir=shared)
    path = tmp_path / "a" / "mixture" / "mixture.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"document_start": "bos", "document_start_id": BOS}))
    with pytest.raises(InputError, match=r"was prepared without a begin-of-text token, the mixture's .*'bos'"):
        Mixture.load(path)


def test_a_mixture_of_mixtures_begins_documents_as_they_do(tmp_path):
    vocabulary = byte_vocabulary(tmp_path / "vocabulary")
    inner = built(tmp_path / "inner", "bos", vocabulary)
    outer = Component(
        name="outer",
        kind="real",
        corpus=CorpusConfig(source=f"mixture:{inner.folder}"),
        share=1.0,
        policy=GatePolicy(ungated=True),
    )
    mixture = built(tmp_path / "outer", "auto", vocabulary, components=(outer,), name="holder")
    assert (mixture.document_start, mixture.document_start_id) == ("bos", BOS)
    with pytest.raises(InputError, match=r"'outer'.* was prepared with begin-of-text id 3, the mixture's"):
        built(tmp_path / "other", "end_of_text", vocabulary, components=(outer,), name="holder")


def test_auto_goes_on_with_what_a_folder_has(tmp_path):
    """A mixture of before the setting keeps its hash, though its tokenizer's makers add BOS."""
    vocabulary = byte_vocabulary(tmp_path / "vocabulary", adds=True)
    before = built(tmp_path, "end_of_text", vocabulary)
    path = before.folder / "mixture.json"
    record = json.loads(path.read_text())
    del record["document_start"], record["document_start_id"]
    old = dataclasses.replace(before, document_start=None, document_start_id=None)
    path.write_text(json.dumps(record | {"content_hash": old.content_hash}))
    assert Mixture.load(path).document_start is None
    again = built(tmp_path, "auto", vocabulary)
    assert (again.document_start, again.content_hash) == (None, old.content_hash)
    assert built(tmp_path, "none", vocabulary).document_start == "none"


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


@pytest.mark.parametrize("setting", ["end_of_text", "bos"])
def test_conversations_begin_with_what_their_template_writes(tmp_path, setting):
    tokenizer = load_tokenizer(str(byte_vocabulary(tmp_path)))
    own = open_format(Chat(), tokenizer, setting == "bos")
    assert own.template.startswith(BEGIN_WITH_BOS) == (setting == "bos")
    (tmp_path / "theirs.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    theirs = open_format(Chat(template=str(tmp_path / "theirs.jinja")), tokenizer, setting == "bos")
    messages = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Ho."}]
    for form, begins in ((own, setting == "bos"), (theirs, False)):
        (tokens,), _ = ExampleEncoder(tokenizer, form).encode([json.dumps(messages)])
        ids = (tokens & ID_BITS).tolist()
        assert ids.count(BOS) == int(begins)
        assert (ids[0] == BOS) == begins
        text_ids = (BOS,) if setting == "bos" else (END,)
        model = for_run(tokenizer, vars(form), text_ids=text_ids)
        assert model.before == (text_ids if begins else ())
        assert model.prefix_id == text_ids[0]
        assert model.encode("<s>Hi.") == [BOS, *tokenizer.encode_batch(["Hi."])[0].tolist()]


def test_gguf_says_what_begins_a_text(trained, tmp_path):
    gguf = pytest.importorskip("gguf")
    for setting, begin in (("none", None), ("end_of_text", END), ("bos", BOS)):
        folder = trained(setting, False)
        convert.main(["gguf", str(folder / "run"), str(tmp_path / f"{setting}.gguf")])
        fields = gguf.GGUFReader(tmp_path / f"{setting}.gguf").fields
        assert fields["tokenizer.ggml.add_bos_token"].contents() == (begin is not None)
        assert begin in (None, fields["tokenizer.ggml.bos_token_id"].contents())


@pytest.mark.parametrize(
    ("template", "begins"),
    [(None, True), ("{{ messages[0].content }}", False), ("{{ bos_token }}{{ role }}", True)],
)
def test_in_gguf_the_end_of_a_text_does_not_begin_conversations(tmp_path, template, begins):
    pytest.importorskip("gguf")
    tokenizer = load_tokenizer(str(byte_vocabulary(tmp_path)))
    end = tokenizer.end_of_text_id
    files = TokenizerFiles(files=tuple(map(Path, tokenizer.files)), end_of_text_id=end, text_ids=(end,))
    write_tokenizer(files, tmp_path / "export", vocab_size=tokenizer.size)
    if template is not None:  # the maker's
        (tmp_path / "export" / "chat_template.jinja").write_text(template)
    metadata = dict(tokenizer_entries(tmp_path / "export", tokenizer.size))
    assert metadata["tokenizer.ggml.bos_token_id"] == end
    assert metadata["tokenizer.ggml.add_bos_token"] == begins


LAYOUTS = {
    "bytes": lambda folder: "bytes",
    "byte_level": lambda folder: byte_vocabulary(folder),
    "byte_level_adds": lambda folder: byte_vocabulary(folder, adds=True),
    "sentencepiece": lambda folder: train_sentencepiece(folder / "tokenizer.model"),
    "llama_2": lambda folder: llama_folder(folder, {"add_bos_token": True, "bos_token": "<s>", "eos_token": "</s>"}),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("setting", DOCUMENT_STARTS)
def test_transformers_begins_texts_of_an_export_as_training_did(tmp_path, layout, setting):
    transformers = pytest.importorskip("transformers")
    (tmp_path / "source").mkdir()
    spec = LAYOUTS[layout](tmp_path / "source")
    ours = load_tokenizer(str(spec))
    if setting == "bos" and ours.bos_id is None:
        pytest.skip("has no begin-of-text token")
    begin = {"none": (), "end_of_text": (ours.end_of_text_id,), "bos": (ours.bos_id,)}[setting]
    files = TokenizerFiles(files=tuple(map(Path, ours.files)), end_of_text_id=ours.end_of_text_id, text_ids=begin)
    write_tokenizer(files, tmp_path / "export", vocab_size=ours.size)
    (tmp_path / "export" / "config.json").write_text('{"model_type": "llama"}')
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "export")
    model = for_run(ours, text_ids=begin)
    for text in ("ba no", "b", " two  words\n"):
        assert theirs(text)["input_ids"] == model.encode(text), text
    assert theirs.eos_token_id == ours.end_of_text_id
    assert theirs.bos_token_id == (begin[0] if begin else None)
    again = for_folder(load_tokenizer(str(tmp_path / "export")), tmp_path / "export")
    assert again.encode("ba no") == model.encode("ba no")
    assert again.prefix_id == (model.prefix_id if begin else ours.end_of_text_id)


@pytest.mark.parametrize("setting", DOCUMENT_STARTS)
def test_seqio_sees_the_segments_and_weights_of_the_loader(tmp_path, setting):
    from diversity_jax.core.tensorflow import seqio
    from diversity_jax.mixtures import registry

    mixture = built(tmp_path, setting, byte_vocabulary(tmp_path / "vocabulary"), name=f"begins_{setting}")
    registry.register(mixture.folder)
    converter = seqio.PrePackedLMFeatureConverter()
    lengths = {"targets": LENGTH}
    dataset = seqio.get_dataset(f"begins_{setting}", lengths, dataset_split="train", feature_converter=converter)
    arrays = as_arrays(mixture.loader(batch_size=40).batch(0), mixture.boundaries(attend_across_documents=False))
    mask = arrays.get("loss_mask", np.ones_like(arrays["tokens"]))
    for row, example in enumerate(dataset.take(40).as_numpy_iterator()):
        np.testing.assert_array_equal(example["decoder_target_tokens"], arrays["tokens"][row, 1:])
        np.testing.assert_array_equal(example["decoder_loss_weights"], mask[row, 1:])
        np.testing.assert_array_equal(example["decoder_segment_ids"], arrays["segment_ids"][row, :-1])
        np.testing.assert_array_equal(example["decoder_positions"], arrays["positions"][row, :-1])
