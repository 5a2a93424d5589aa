"""What begins a text by a tokenizer, a chat template, a GGUF file and an exported tokenizer."""

import json
from pathlib import Path

import pytest

from diversity_jax.core.errors import InputError
from diversity_jax.prepare.config import Chat
from diversity_jax.prepare.packing import ExampleEncoder, open_format
from diversity_jax.prepare.rows import ID_BITS
from diversity_jax.tokenizers.chat_template import BEGIN_WITH_BOS
from diversity_jax.tokenizers.document_start import DOCUMENT_STARTS, resolve
from diversity_jax.tokenizers.files import TokenizerFiles, write_tokenizer
from diversity_jax.tokenizers.gguf_entries import tokenizer_entries
from diversity_jax.tokenizers.tokenizer import for_folder, for_run, load_tokenizer
from tests.document_starts import BOS, END, byte_vocabulary, llama_folder
from tests.test_model_gguf import train_sentencepiece


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
