"""An imported model works in every command, and keeps its special tokens in every export."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from diversity_jax import train
from diversity_jax.core.errors import InputError
from diversity_jax.corpus import CorpusConfig
from diversity_jax.evaluation.load_model import open_model
from diversity_jax.mixtures.config import Component, GatePolicy, MixtureConfig
from diversity_jax.model.checkpoint_io.gguf_file import read_gguf
from diversity_jax.model.checkpoint_io.hugging_face import export_hugging_face
from diversity_jax.model.convert import main
from diversity_jax.prepare.config import Chat
from diversity_jax.tokenizers.files import TokenizerFiles, write_tokenizer
from diversity_jax.tokenizers.gguf_entries import llama_cpp_table
from diversity_jax.tokenizers.tokenizer import for_folder, for_run, load_tokenizer
from diversity_jax.training.run import Config
from tests.sft_folders import write_examples
from tests.small_llama import random_params, small_config
from tests.test_model_gguf import train_sentencepiece
from tests.test_sft_training import MODEL, OPTIMIZER, TRAIN
from tests.test_tokenizers_gguf import trained

TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
NAMED = {"bos_token_id": 1, "eos_token_id": [0, 2], "pad_token_id": 0, "temperature": 0.6}
TEXTS = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
SHAPE = dataclasses.replace(MODEL, vocab_size=800, max_length=256)


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """A chat model as its makers publish it."""
    folder = tmp_path_factory.mktemp("published") / "model"
    ids = {name: value for name, value in NAMED.items() if name.endswith("_id")}
    export_hugging_face(SHAPE, jax.tree.map(np.asarray, random_params(SHAPE)), folder, token_ids=ids)
    trained(folder, llama_cpp_table()["families"][1])
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    (folder / "generation_config.json").write_text(json.dumps(NAMED))
    return folder


@pytest.fixture(scope="module")
def imported(theirs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("imported")
    main(["import", str(theirs), str(folder / "from_hf")])
    main(["gguf", str(folder / "from_hf"), str(folder / "model.gguf")])
    main(["import", str(folder / "model.gguf"), str(folder / "from_gguf")])
    return folder


def json_of(folder, name):
    return json.loads((folder / name).read_text())


@pytest.mark.parametrize("source", ["from_hf", "from_gguf"])
def test_an_import_is_read_whole_and_leaves_as_it_came(theirs, imported, tmp_path, source):
    model, original = open_model(imported / source), open_model(theirs)
    messages = [{"role": "user", "content": "Name <|im_end|> three colours."}]
    assert model.encode_chat(messages) == original.encode_chat(messages)
    assert model.tokenizer.stop_ids == original.tokenizer.stop_ids == {0, 2}
    assert model.tokenizer.chat_template == TEMPLATE
    assert load_tokenizer(str(imported / source)).hash  # as `mixture.vocabulary`
    main(["export", str(imported / source), str(tmp_path / "out")])
    written = json_of(tmp_path / "out", "generation_config.json")
    expected = NAMED if source == "from_hf" else {name: value for name, value in NAMED.items() if name != "temperature"}
    assert written | {"eos_token_id": sorted(written["eos_token_id"])} == expected
    config = json_of(tmp_path / "out", "config.json")
    assert {name: config[name] for name in ("bos_token_id", "pad_token_id")} == {"bos_token_id": 1, "pad_token_id": 0}
    assert sorted(config["eos_token_id"]) == [0, 2]
    settings = json_of(tmp_path / "out", "tokenizer_config.json")
    assert {name: settings[name] for name in TEXTS} == TEXTS
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == TEMPLATE


def test_after_fine_tuning_special_tokens_and_template_are_the_models_own(imported, tmp_path):
    write_examples(tmp_path / "examples.jsonl", 40, longest=2)
    corpus = CorpusConfig(source=str(tmp_path / "examples.jsonl"), conversations="alpaca")
    start = str(imported / "from_gguf")
    mixture = MixtureConfig(
        name="tuning",
        components=(Component(name="alpaca", kind="synthetic", corpus=corpus, policy=GatePolicy(ungated=True)),),
        vocabulary=start,
        sequence_length=128,
        validation_share=0.1,
        processes=1,
        chat=Chat(template="tokenizer"),
    )
    settings = dataclasses.replace(TRAIN, steps=2, batch_size=8, checkpoint_every=2, init_from=start)
    run = tmp_path / "run"
    train.main(Config(output_dir=str(run), mixture=mixture, model=SHAPE, optimizer=OPTIMIZER, train=settings))
    assert open_model(run).tokenizer.stop_ids >= {2}
    main(["export", str(run), str(tmp_path / "out")])
    written = json_of(tmp_path / "out", "tokenizer_config.json")
    assert {name: written[name] for name in TEXTS} == TEXTS
    named = json_of(tmp_path / "out", "generation_config.json")
    assert 2 in np.atleast_1d(named["eos_token_id"])
    assert named["pad_token_id"] == 0
    assert json_of(tmp_path / "out", "config.json")["pad_token_id"] == 0
    main(["gguf", str(run), str(tmp_path / "run.gguf")])
    metadata = read_gguf(tmp_path / "run.gguf").entries
    assert metadata["tokenizer.chat_template"] == TEMPLATE
    ids = [metadata[f"tokenizer.ggml.{name}_token_id"] for name in ("bos", "eos", "padding")]
    assert ids == [1, 2, 0]
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == TEMPLATE


def test_transformers_reads_the_tokenizer(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = small_config(vocab_size=384)
    write_tokenizer(TokenizerFiles(end_of_text_id=1), tmp_path, vocab_size=config.vocab_size)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert (
        tokenizer("A b\u00e9.", add_special_tokens=False)["input_ids"]
        == load_tokenizer("bytes").encode_batch(["A b\u00e9."])[0].tolist()
    )
    assert tokenizer.eos_token_id == 1


def test_an_exported_sentencepiece_run_names_the_token_that_its_texts_began_with(tmp_path):
    """Its own begin of text was never seen in training, where an end of text stood before every document."""
    transformers = pytest.importorskip("transformers")
    model = train_sentencepiece(tmp_path / "pieces.model")
    end = load_tokenizer(str(model)).end_of_text_id
    own = TokenizerFiles(files=(model,), end_of_text_id=end)
    write_tokenizer(own, tmp_path / "plain", vocab_size=400)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "plain")
    ours = for_folder(load_tokenizer(str(tmp_path / "plain")), tmp_path / "plain")
    assert (
        theirs.bos_token_id
        == theirs.eos_token_id
        == end
        == ours.prefix_id
        == for_run(load_tokenizer(str(model))).prefix_id
    )
    with pytest.raises(InputError, match="more than the model's 100"):
        write_tokenizer(own, tmp_path / "small", vocab_size=100)
    template = "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"
    chat = {"template": template, "special": {"bos_token": "<s>", "eos_token": "</s>"}}
    tuned = dataclasses.replace(own, chat_template=chat["template"], special=chat["special"])
    write_tokenizer(tuned, tmp_path / "tuned", vocab_size=400)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "tuned")
    assert theirs.bos_token_id == for_run(load_tokenizer(str(model)), chat).prefix_id != end
    assert theirs.apply_chat_template([{"role": "user", "content": "ba"}], tokenize=False) == "<s>ba"
    turns = dataclasses.replace(tuned, special={"eos_token": "<s>"})
    write_tokenizer(turns, tmp_path / "turns", vocab_size=400)
    stops = transformers.GenerationConfig.from_pretrained(tmp_path / "turns").eos_token_id
    assert (
        set(stops) == {end, theirs.bos_token_id} == for_folder(load_tokenizer(str(model)), tmp_path / "turns").stop_ids
    )
