"""Special tokens' texts in documents and messages are plain text unless configured, for every kind of tokenizer."""

from collections import Counter
import json

import numpy as np
import pytest

from diversity_jax.core.errors import InputError
from diversity_jax.corpus import Document
from diversity_jax.prepare.config import Chat, Preparation
from diversity_jax.prepare.manifest import Manifest, describe
from diversity_jax.prepare.packing import ChatFormat, ExampleEncoder
from diversity_jax.prepare.pipeline import prepare
from diversity_jax.prepare.rows import ID_BITS
from diversity_jax.tokenizers.base import has_breaks, without_breaks
from diversity_jax.tokenizers.chat_template import OWN_TEMPLATE
from diversity_jax.tokenizers.tokenizer import load_tokenizer
from tests.test_model_gguf import train_byte_level, train_sentencepiece

KINDS = ("bytes", "sentencepiece", "huggingface")


class SpecialTextCorpus:
    """Documents, of which some hold the text of a special token."""

    name, rejected = "texts", Counter()

    def __init__(self, special):
        self.texts = [f"ba no{special} trei" if i % 3 == 0 else f"sul {i} ke" for i in range(30)]

    def __iter__(self):
        return (Document(id=str(i), text=text) for i, text in enumerate(self.texts))

    def fingerprint(self):
        return "texts"


@pytest.fixture(params=KINDS)
def tokenizer(request, tmp_path):
    if request.param == "bytes":
        return load_tokenizer("bytes")
    make = train_sentencepiece if request.param == "sentencepiece" else train_byte_level
    return load_tokenizer(str(make(tmp_path / ("t.model" if make is train_sentencepiece else "t.json"))))


def prepared(tokenizer, folder, special_text="plain"):
    settings = Preparation(name="a", kind="real", sequence_length=7, special_text=special_text)
    return prepare(SpecialTextCorpus(tokenizer.special["eos_token"]), tokenizer, folder, settings, processes=1)


def rows_of(manifest):
    shards = manifest.splits["train"].shards
    return np.concatenate([np.fromfile(manifest.folder / shard.file, manifest.dtype) for shard in shards])


@pytest.mark.parametrize(("setting", "ends"), [("plain", 30), ("special", 40)])
def test_the_setting_is_obeyed_counted_and_told(tokenizer, tmp_path, setting, ends):
    manifest = prepared(tokenizer, tmp_path / "rows", setting)
    assert manifest.special_text_read == setting
    assert Manifest.load(tmp_path / "rows" / "manifest.json").special_text_read == setting
    assert manifest.statistics["special_text_documents"] == 10
    assert "10 documents hold the text of a special token, read as " in describe(manifest)
    dropped = manifest.splits["train"].dropped_tokens
    assert 0 <= ends - int((rows_of(manifest) == tokenizer.end_of_text_id).sum()) <= dropped
    assert prepared(tokenizer, tmp_path / "rows", setting).content_hash == manifest.content_hash
    other = {"plain": "special", "special": "plain"}[setting]
    with pytest.raises(InputError, match=f"was prepared with another special_text \\({setting}, now {other}\\)"):
        prepared(tokenizer, tmp_path / "rows", other)


def test_such_text_may_be_refused(tokenizer, tmp_path):
    with pytest.raises(
        InputError, match=r"the document that begins 'ba no.*holds the text of a special token"
    ) as caught:
        prepared(tokenizer, tmp_path / "rows", "refuse")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "rows" / "manifest.json").exists()


def test_rows_of_before_the_setting_are_known_by_their_tokenizer(tokenizer, tmp_path):
    """Hugging Face's library found special tokens in any text, the others did not; a manifest without the field says
    so, and is reused only for that."""
    before = "special" if tokenizer.kind == "huggingface" else "plain"
    manifest = prepared(tokenizer, tmp_path / "rows", before)
    assert "special_text" not in json.loads((tmp_path / "rows" / "manifest.json").read_text())
    assert manifest.special_text_read == before
    assert prepared(tokenizer, tmp_path / "rows", None).content_hash == manifest.content_hash  # as it is, unless asked
    assert prepared(tokenizer, tmp_path / "new", None).special_text_read == "plain"


def test_an_unknown_setting_is_one_line():
    with pytest.raises(InputError, match="special_text 'letters' is unknown; choose one of plain, special, refuse"):
        Preparation(name="a", kind="real", sequence_length=8, special_text="letters")


@pytest.mark.parametrize("setting", ["plain", "special"])
def test_marks_of_a_template_are_tokens_and_messages_are_letters(tokenizer, setting):
    special, end = tokenizer.special["eos_token"], tokenizer.end_of_text_id
    turns = [{"role": "user", "content": f"ba{special}no"}, {"role": "assistant", "content": f"ke {special} mi"}]
    chat = ChatFormat(template=OWN_TEMPLATE, special=tokenizer.special)
    encoder = ExampleEncoder(tokenizer, chat, special_text=setting == "special")
    (example,), (answer_bytes,) = encoder.encode([json.dumps(turns)])
    ids = (example & ID_BITS).tolist()
    assert ids.count(end) == (1 if setting == "plain" else 3)
    assert ids[-1] == end
    assert answer_bytes == len(f"ke {special} mi")
    plain = tokenizer.encode_each([f"ke {special} mi"])[0]
    assert (ids[-1 - len(plain) + 1 : -1] == plain[1:]) is (setting == "plain")
    assert not has_breaks(tokenizer.decode(ids))


def test_arguments_of_tool_calls_are_letters(tokenizer):
    special = tokenizer.special["eos_token"]
    call = {"function": {"name": "f", "arguments": {"x": [f"a {special}"]}}}
    (turn,) = tokenizer.with_plain_content([{"role": "assistant", "content": "", "tool_calls": [call]}])
    (text,) = turn["tool_calls"][0]["function"]["arguments"]["x"]
    assert special not in text
    assert without_breaks(text) == f"a {special}"


def test_a_message_that_holds_the_break_itself_is_refused(tokenizer):
    turns = [{"role": "user", "content": f"\ufdd0{tokenizer.special['eos_token']}"}]
    with pytest.raises(InputError, match=r"the noncharacter U\+FDD0"):
        tokenizer.with_plain_content(turns)
    assert tokenizer.with_plain_content([{"role": "user", "content": "\ufdd0"}]) == [
        {"role": "user", "content": "\ufdd0"}
    ]


def test_conversations_are_counted_too(tokenizer, tmp_path):
    special = tokenizer.special["eos_token"]

    class Turns(SpecialTextCorpus):
        def __iter__(self):
            for i, text in enumerate(self.texts):
                turns = [{"role": "user", "content": text}, {"role": "assistant", "content": "ba"}]
                yield Document(id=str(i), text=text, meta={"messages": turns})

    settings = Preparation(name="a", kind="real", sequence_length=100, chat=Chat())
    manifest = prepare(Turns(special), tokenizer, tmp_path / "rows", settings, processes=1)
    assert (manifest.special_text, manifest.statistics["special_text_documents"]) == ("plain", 10)
