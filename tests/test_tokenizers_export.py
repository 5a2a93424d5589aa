"""Exported tokenizers give our ids in the tokenizers library, or the export names the difference."""

import json
import logging
from pathlib import Path
import shutil

import jax
import pytest
import tokenizers
from tokenizers import Tokenizer as Library

from diversity_jax.core.errors import InputError
from diversity_jax.evaluation.load_model import language_model, mixture_folder, open_model
from diversity_jax.model import LlamaConfig, init_params
from diversity_jax.model.checkpoint_io.hugging_face import export_hugging_face
from diversity_jax.model.convert import _adapted_model
from diversity_jax.model.convert import main as convert
from diversity_jax.model.sharding import MeshConfig
from diversity_jax.prepare.config import Chat
from diversity_jax.prepare.packing import open_format
from diversity_jax.tokenizers.encoders import SAMPLE_TEXTS, differing_texts, special_samples
from diversity_jax.tokenizers.files import (
    copy_tokenizer,
    folder_tokenizer,
    model_tokenizer,
    named_tokenizer,
    write_tokenizer,
)
from diversity_jax.tokenizers.gguf_entries import tokenizer_entries
from diversity_jax.tokenizers.tokenizer import for_folder, load_tokenizer
from tests import tokenizer_layouts as layouts
from tests.shared_data import shared_file
from tests.small_llama import random_params, small_config
from tests.test_model_gguf import train_byte_level, train_sentencepiece
from tests.test_tokenizers_folders import TEXTS, gpt2_files


def sentencepiece_folder(folder, **settings):
    train_sentencepiece(folder / "tokenizer.model", **settings)
    return folder


def with_tokens(folder):
    layouts.write(folder, tokenizer_config=layouts.LLAMA2_CONFIG | {"legacy": True}, added_tokens={"<|im_end|>": 300})
    size = load_tokenizer(str(train_sentencepiece(folder / "tokenizer.model"))).size
    return layouts.write(folder, added_tokens={"<|im_end|>": size, "<|im_start|>": size + 1})


LAYOUTS = {
    "bytes": None,
    "qwen files": lambda folder: layouts.qwen(folder, TEXTS, 400, tokenizer_json=False),
    "qwen json": lambda folder: layouts.qwen(folder, TEXTS, 400, tokenizer_json=True),
    "llama 3": lambda folder: layouts.llama3(folder, TEXTS, 400),
    "gpt2": lambda folder: layouts.gpt2(folder, *gpt2_files()),
    "codegen": lambda folder: layouts.gpt2(folder, *gpt2_files(), codegen=True),
    "sentencepiece": sentencepiece_folder,
    "spaces cleaned": lambda folder: sentencepiece_folder(folder, remove_extra_whitespaces=True),
    "no dummy prefix": lambda folder: sentencepiece_folder(folder, add_dummy_prefix=False),
    "user symbols": lambda folder: sentencepiece_folder(folder, user_defined_symbols=["<sep>", "keke", "\u2581\u2581"]),
    "added to sentencepiece": with_tokens,
    "llama 1": lambda folder: layouts.llama_json(
        folder, json.loads(shared_file("tokenizers/llama_tokenizer.json").read_text())
    ),
}
"""By name, how a folder is laid out."""


@pytest.fixture(params=LAYOUTS)
def source(request, tmp_path):
    if request.param == "bytes":
        return "bytes"
    (tmp_path / "theirs").mkdir()
    LAYOUTS[request.param](tmp_path / "theirs")
    return tmp_path / "theirs"


def exported(source, folder):
    """The tokenizer imported beside a model, and exported again; as we load the source."""
    if source == "bytes":
        write_tokenizer(named_tokenizer("bytes"), folder, vocab_size=1 << 20)
        return load_tokenizer("bytes")
    assert copy_tokenizer(source, folder.parent / "imported" / "tokenizer")
    write_tokenizer(folder_tokenizer(folder.parent / "imported" / "tokenizer"), folder, vocab_size=1 << 20)
    ours = load_tokenizer(str(source))
    assert load_tokenizer(str(folder.parent / "imported")).hash == ours.hash
    return ours


def test_what_is_exported_gives_our_ids(source, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        ours = exported(source, tmp_path / "out")
    assert caplog.text == ""
    theirs = Library.from_file(str(tmp_path / "out" / "tokenizer.json"))
    texts = [*SAMPLE_TEXTS, *TEXTS[:2]]
    plain = [[i for i in ids.ids] for ids in theirs.encode_batch(texts, add_special_tokens=False)]
    assert plain == ours.encode_each(texts)
    marked = special_samples(ours)
    exported_ids = [ids.ids for ids in theirs.encode_batch(marked, add_special_tokens=False)]
    assert exported_ids == ours.encode_each(marked, special=True)
    before, after = ours.surrounding_ids()
    assert theirs.encode("ba").ids == [*before, *ours.encode_each(["ba"])[0], *after]
    again = load_tokenizer(str(tmp_path / "out"))
    assert again.encode_each(texts) == plain
    assert (again.size, again.end_of_text_id, again.adds_bos) == (ours.size, ours.end_of_text_id, ours.adds_bos)
    config = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"  # others build a tokenizer of their own
    assert not {"legacy", "add_prefix_space"} & config.keys()
    for name in ("added_tokens", "special_tokens_map", "vocab"):
        path = tmp_path / "out" / f"{name}.json"
        assert not path.exists() or (source != "bytes" and (source / "tokenizer.json").exists())
    if source != "bytes":
        assert for_folder(again, tmp_path / "out").prefix_id == for_folder(ours, source).prefix_id
        text = "a" + ours.special["eos_token"]
        assert for_folder(again, tmp_path / "out").encode(text) == for_folder(ours, source).encode(text)


def test_every_command_finds_the_tokenizer_of_an_imported_folder(tmp_path):
    """`model.convert import` puts it in `tokenizer/`; the folder is named all the same."""
    theirs = layouts.qwen(tmp_path / "theirs", TEXTS, 400, tokenizer_json=True)
    files = {path.name: path.read_bytes() for path in theirs.iterdir()}
    ours = load_tokenizer(str(theirs))
    config = LlamaConfig(
        vocab_size=ours.size, hidden_size=8, intermediate_size=8, num_layers=1, num_heads=1, max_length=64
    )
    params = jax.device_get(init_params(config, jax.random.key(0)))
    export_hugging_face(config, params, tmp_path / "model", token_ids={"eos_token_id": ours.end_of_text_id})
    for name in files.keys() - {"config.json"}:
        (tmp_path / "model" / name).write_bytes(files[name])
    convert(["import", str(tmp_path / "model"), str(tmp_path / "imported")])
    folder = str(tmp_path / "imported")
    assert load_tokenizer(folder).hash == ours.hash
    assert named_tokenizer(folder).folder == tmp_path / "imported" / "tokenizer"
    chat = open_format(Chat(template=folder), ours)
    assert chat.template == layouts.CHATML == open_format(Chat(template="tokenizer"), load_tokenizer(folder)).template
    turns = [{"role": "user", "content": "The<|im_end|>fox"}]
    asked = [open_model(path).encode_chat(turns) for path in (folder, tmp_path / "model")]
    assert asked[0] == asked[1]
    text, ids = asked[0]
    assert text == "<|im_start|>user\nThe<|im_end|>fox<|im_end|>\n<|im_start|>assistant\n"
    assert ids.count(ours.end_of_text_id) == 1  # what the user wrote ends no turn
    assert open_model(folder).tokenizer.encode("x<|im_end|>") == ours.encode_each(["x<|im_end|>"], special=True)[0]


@pytest.mark.parametrize("settings", [{"model_type": "unigram"}, {"normalization_rule_name": "nmt_nfkc"}])
def test_texts_that_the_library_reads_otherwise_are_counted(tmp_path, caplog, settings):
    """Of unigram pieces as likely as each other it takes others, and it normalises "\\r\\n" otherwise."""
    (tmp_path / "theirs").mkdir()
    sentencepiece_folder(tmp_path / "theirs", **settings)
    with caplog.at_level(logging.WARNING):
        ours = exported(tmp_path / "theirs", tmp_path / "out")
    content = json.loads((tmp_path / "out" / "tokenizer.json").read_text())
    differing = differing_texts(content, ours)
    assert len(differing) > 0
    (line,) = [record.getMessage() for record in caplog.records]
    assert f"gives other ids than the model was trained on to {len(differing)} of " in line


def test_what_the_library_cannot_do_of_legacy_off_is_told(tmp_path, caplog):
    (tmp_path / "theirs").mkdir()
    layouts.write(tmp_path / "theirs", tokenizer_config=layouts.LLAMA2_CONFIG)
    sentencepiece_folder(tmp_path / "theirs")
    with caplog.at_level(logging.WARNING):
        ours = exported(tmp_path / "theirs", tmp_path / "out")
    assert [record.getMessage().partition(": ")[2] for record in caplog.records] == [
        "where its tokenizer has legacy: false, transformers reads a space more after each special token"
    ]
    assert not differing_texts(json.loads((tmp_path / "out" / "tokenizer.json").read_text()), ours, special=False)


def test_a_tokenizer_of_more_ids_than_the_model_is_refused(tmp_path):
    path = train_byte_level(tmp_path / "tokenizer.json")
    with pytest.raises(InputError, match="more than the model's 100"):
        write_tokenizer(named_tokenizer(path), tmp_path / "out", vocab_size=100)


@pytest.mark.parametrize("by_folder", [True, False])
def test_special_tokens_beyond_the_model_are_letters_and_are_told(tmp_path, caplog, by_folder):
    """As Gemma 3's text models are published: their tokenizer has a token of images, their embedding has not."""
    library = Library.from_file(str(train_byte_level(tmp_path / "tokenizer.json")))
    library.decoder, size = tokenizers.decoders.ByteLevel(), library.get_vocab_size()
    library.add_special_tokens(["<image>", "[PAD]"])
    library.save(str(tmp_path / "tokenizer.json"))
    layouts.write(tmp_path, tokenizer_config={"eos_token": "<|endoftext|>", "pad_token": "[PAD]"})
    config = small_config(vocab_size=size)
    if by_folder:
        layouts.write(tmp_path, config={"vocab_size": size})
        tokenizer = for_folder(load_tokenizer(str(tmp_path)), tmp_path)
    else:  # the rows of a run do not name the model's size
        tokenizer = for_folder(load_tokenizer(str(tmp_path)), tmp_path)
        tokenizer = language_model("run", config, random_params(config), tokenizer, MeshConfig()).tokenizer
    assert "no ids for these special tokens, read as letters: <image>, [PAD]" in caplog.text
    vocabulary = tokenizer.vocabulary
    assert (vocabulary.size, vocabulary.special) == (size, {"eos_token": "<|endoftext|>"})
    for text in ("an <image> [PAD]", "an <image><|endoftext|>"):
        ids = tokenizer.encode(text)
        assert max(ids) < size
        assert vocabulary.decode(ids) == text.removesuffix("<|endoftext|>")
    write_tokenizer(folder_tokenizer(tmp_path), tmp_path / "out", vocab_size=size)
    assert load_tokenizer(str(tmp_path / "out")).size == size
    entries = dict(tokenizer_entries(tmp_path / "out", size + 4))  # an embedding with unused rows
    assert entries["tokenizer.ggml.tokens"][size:] == [f"[PAD{size + n}]" for n in range(4)]
    # Tokens that are no special ones occur in texts: such a tokenizer is another model's.
    library.add_tokens(["word"])
    library.save(str(tmp_path / "tokenizer.json"))
    tokenizer = for_folder(load_tokenizer(str(tmp_path)), tmp_path)
    with pytest.raises(InputError, match=f"has {size} ids, the tokenizer {size + 3}"):
        language_model("run", config, {}, tokenizer, MeshConfig())


def test_a_chat_model_that_is_trained_on_text_keeps_its_template(tmp_path):
    """Texts begin as in that training, conversations as their template writes them, here and in exports."""
    library = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0, "b": 1, "<end>": 2, "<turn>": 3}, []))
    library.add_special_tokens(["<end>", "<turn>"])
    start, run = tmp_path / "start", tmp_path / "run"
    for folder in (start / "tokenizer", run / "mixture" / "vocabulary"):
        folder.mkdir(parents=True)
        library.save(str(folder / "tokenizer.json"))
    template = "{% for m in messages %}<turn>{{ m.content }}<end>{% endfor %}<turn>"
    (start / "tokenizer" / "chat_template.jinja").write_text(template)
    settings = {"eos_token": "<end>", "bos_token": "<turn>", "pad_token": "<turn>"}
    (start / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(settings))
    (run / "run.json").write_text(json.dumps({"settings": {"train": {"init_from": str(start)}}}))
    (run / "mixture" / "part.json").write_text("{}")
    mixture = {
        "components": [{"manifest": "part.json"}],
        "vocabulary": {"files": ["vocabulary/tokenizer.json"], "end_of_text_id": 2},
        "document_start": "end_of_text",
        "document_start_id": 2,
    }
    (run / "mixture" / "mixture.json").write_text(json.dumps(mixture))
    tokenizer = model_tokenizer(run)
    assert (tokenizer.chat_template, tokenizer.is_tuned) == (template, False)
    write_tokenizer(tokenizer, tmp_path / "out", vocab_size=4)
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == template
    written = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert (written["bos_token"], written["add_bos_token"]) == ("<end>", True)
    (start / "tokenizer" / "chat_template.jinja").unlink()
    assert model_tokenizer(run).chat_template is None


@pytest.mark.parametrize("moved", [False, True])
def test_what_a_run_has_read_is_found_from_any_folder_and_beside_it_first(tmp_path, monkeypatch, moved):
    old, elsewhere = tmp_path / "old" / "runs", tmp_path / "elsewhere" / "runs"
    for folder, number in ((old, 1), (elsewhere, 2)):  # of the same relative name, another one
        for name, record in (("mix", "mixture.json"), ("base", "model.json")):
            (folder / name).mkdir(parents=True)
            vocabulary = {"files": [], "end_of_text_id": number}
            value = {"components": [{"manifest": "part.json"}], "vocabulary": vocabulary}
            (folder / name / record).write_text(json.dumps(value))
        (folder / "mix" / "part.json").write_text(json.dumps({"chat": {"template": f"{number}", "special": {}}}))
    settings = {"output_dir": "runs/run", "prepared": "runs/mix", "train": {"init_from": "runs/base"}}
    (old / "run").mkdir()
    (old / "run" / "run.json").write_text(json.dumps({"settings": settings}))
    if moved:
        old = old.rename(tmp_path / "new")
    monkeypatch.chdir(tmp_path / "elsewhere")
    run = old / "run"
    tokenizer = model_tokenizer(run)
    assert (tokenizer.end_of_text_id, tokenizer.chat_template) == (1, "1")
    assert mixture_folder(run) == old / "mix"
    assert _adapted_model(run, settings) == old / "base"
    shutil.rmtree(old / "mix")
    shutil.rmtree(old / "base")
    assert model_tokenizer(run).end_of_text_id == 2
    assert mixture_folder(run) == Path("runs/mix")
    assert _adapted_model(run, settings) == Path("runs/base")
    settings["prepared"] = "runs/mix/mixture.json"  # as it may be given, too
    (run / "run.json").write_text(json.dumps({"settings": settings}))
    assert mixture_folder(run) == Path("runs/mix")
