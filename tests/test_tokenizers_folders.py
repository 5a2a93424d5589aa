"""Published layouts of tokenizer folders: every file is read, and contradictions are one line."""

import json
import logging

import pytest

from diversity_jax.core.errors import InputError
from diversity_jax.tokenizers.tokenizer import for_folder, load_tokenizer
from tests import tokenizer_layouts as layouts
from tests.shared_data import shared_file
from tests.test_model_gguf import train_sentencepiece

TEXTS = [
    "The quick brown fox, it's 1234 lines:\n\n\tif x:\n        return  'caf\u00e9'\n",
    "\u4f60\u597d \U0001f600",
] * 40


def gpt2_files():
    folder = shared_file("tokenizers/gpt2/vocab.json").parent
    return json.loads((folder / "vocab.json").read_text()), (folder / "vocab.bpe").read_text()


def test_codegen_has_its_runs_of_white_space(tmp_path):
    """50,257 pieces of GPT-2 and 38 of added_tokens.json."""
    tokenizer = load_tokenizer(str(layouts.gpt2(tmp_path, *gpt2_files(), codegen=True)))
    assert (tokenizer.size, tokenizer.end_of_text_id, tokenizer.bos_id) == (50295, 50256, 50256)
    assert tokenizer.encode_each(["a" + " " * 8 + "b", "\t\t\tc", "<|endoftext|>"]) == [
        [64, 50280, 65],
        [50293, 66],
        [27, 91, 437, 1659, 5239, 91, 29],
    ]
    assert tokenizer.encode_each(["x<|endoftext|>y"], special=True) == [[87, 50256, 88]]


def test_special_tokens_of_the_first_llama_are_found_wherever_they_stand(tmp_path):
    """Its tokenizer.json has them normalised, so that the library looks for "\u2581</s>" and names it so."""
    content = json.loads(shared_file("tokenizers/llama_tokenizer.json").read_text())
    tokenizer = load_tokenizer(str(layouts.llama_json(tmp_path, content)))
    assert tokenizer.special == {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    assert (tokenizer.size, tokenizer.end_of_text_id, tokenizer.bos_id) == (32003, 2, 1)
    assert tokenizer.encode_each(["a</s>b"], special=True)[0].count(2) == 1
    assert 2 not in tokenizer.encode_each(["a</s>b </s>"])[0]
    assert load_tokenizer(str(tmp_path / "tokenizer.json")).special["eos_token"] == "</s>"


@pytest.mark.parametrize("with_json", [True, False])
def test_qwen_splits_words_in_its_own_way_with_or_without_a_tokenizer_json(tmp_path, with_json):
    tokenizer = load_tokenizer(str(layouts.qwen(tmp_path / "a", TEXTS, 400, tokenizer_json=with_json)))
    other = load_tokenizer(str(layouts.qwen(tmp_path / "b", TEXTS, 400, tokenizer_json=not with_json)))
    assert tokenizer.encode_each([*TEXTS[:2], "e\u0301"]) == other.encode_each([*TEXTS[:2], "\u00e9"])
    first = tokenizer.token_id("<|endoftext|>")
    assert (tokenizer.size, tokenizer.end_of_text_id, tokenizer.bos_id) == (first + 4, first + 2, None)
    assert for_folder(tokenizer, tmp_path / "a").stop_ids == {first, first + 2}
    # "<tool_call>" is an added token but not a special one: in plain text, too, it is one id.
    assert tokenizer.encode_each(["<tool_call><|im_end|>"])[0][0] == first + 3


def test_llama_3_begins_texts_and_ends_where_its_settings_say(tmp_path):
    tokenizer = load_tokenizer(str(layouts.llama3(tmp_path, TEXTS, 400)))
    assert tokenizer.token_text(tokenizer.end_of_text_id) == "<|eot_id|>"
    assert (tokenizer.token_text(tokenizer.bos_id), tokenizer.adds_bos) == ("<|begin_of_text|>", True)
    assert len(for_folder(tokenizer, tmp_path).stop_ids) == 3
    assert tokenizer.surrounding_ids() == ((tokenizer.bos_id,), ())


@pytest.mark.parametrize("number", [2000, 300])
def test_a_begin_of_text_by_the_id_of_another_vocabulary_is_refused(tmp_path, number):
    """As `train_new_from_iterator` of transformers leaves it: beyond the vocabulary, or another token's id."""
    path = layouts.llama3(tmp_path, TEXTS, 400) / "tokenizer.json"
    content = json.loads(path.read_text())
    template = content["post_processor"]
    template = next((part for part in template.get("processors", ()) if "special_tokens" in part), template)
    template["special_tokens"]["<|begin_of_text|>"]["ids"] = [number]
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=rf"adds '<\|begin_of_text\|>' as id {number}, but that token has the id "):
        load_tokenizer(str(tmp_path))


@pytest.mark.parametrize(
    ("config", "kind", "adds_bos"),
    [
        ({"add_bos_token": True}, {}, True),
        ({"tokenizer_class": "LlamaTokenizer"}, {}, True),
        ({}, {"model_type": "llama"}, True),
        ({"add_bos_token": False}, {"model_type": "llama"}, False),
        ({}, {}, False),
    ],
)
def test_a_sentencepiece_folder_begins_texts_as_its_class_does(tmp_path, config, kind, adds_bos):
    train_sentencepiece(tmp_path / "tokenizer.model")
    layouts.write(
        tmp_path, **{name: value for name, value in (("tokenizer_config", config), ("config", kind)) if value}
    )
    tokenizer = load_tokenizer(str(tmp_path))
    assert (tokenizer.bos_id, tokenizer.adds_bos) == (1, adds_bos)
    encoded = for_folder(tokenizer, tmp_path).encode("bake nomi")
    assert encoded == [*([1] if adds_bos else []), *tokenizer.encode_each(["bake nomi"])[0]]


@pytest.mark.parametrize("legacy", [True, False])
def test_tokens_added_to_a_sentencepiece_model_are_tokens(tmp_path, legacy):
    plain = load_tokenizer(str(train_sentencepiece(tmp_path / "tokenizer.model")))
    config = {**layouts.LLAMA2_CONFIG, "legacy": legacy}
    added = {"<|im_end|>": plain.size, "<|im_start|>": plain.size + 1}
    layouts.write(
        tmp_path,
        tokenizer_config=config,
        added_tokens=added,
        special_tokens_map={"additional_special_tokens": list(added)},
    )
    tokenizer = load_tokenizer(str(tmp_path))
    assert tokenizer.size == plain.size + 2
    texts = ["bake nomi r", "x\ny \U0001f600"]
    assert tokenizer.encode_each(texts) == plain.encode_each(texts)
    ids = tokenizer.encode_each(["<|im_start|>ba<|im_end|>"], special=True)[0]
    assert (ids[0], ids[-1]) == (plain.size + 1, plain.size)
    assert tokenizer.encode_each(["<|im_end|>"]) == plain.encode_each(["<|im_end|>"])


@pytest.mark.parametrize(("legacy", "spaced"), [(True, True), (False, False)])
def test_what_follows_a_special_token_is_spaced_as_the_settings_say(tmp_path, legacy, spaced):
    train_sentencepiece(tmp_path / "tokenizer.model")
    layouts.write(tmp_path, tokenizer_config={**layouts.LLAMA2_CONFIG, "legacy": legacy})
    tokenizer = load_tokenizer(str(tmp_path))
    first, after = tokenizer.encode_each(["ke", "</s>ke"], special=True)
    assert after[0] == 2
    assert (after[1:] == first) is spaced


def test_a_space_before_every_text_is_obeyed_or_refused(tmp_path):
    folder = layouts.gpt2(tmp_path / "gpt2", *gpt2_files())
    plain = load_tokenizer(str(folder))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    layouts.write(folder, tokenizer_config=config | {"add_prefix_space": True})
    spaced = load_tokenizer(str(folder))
    assert spaced.encode_each(["word"]) == plain.encode_each([" word"]) != plain.encode_each(["word"])
    assert spaced.hash != plain.hash
    content = json.loads(shared_file("tokenizers/llama_tokenizer.json").read_text())
    layouts.llama_json(tmp_path / "llama", content)
    layouts.write(tmp_path / "llama", tokenizer_config=layouts.LLAMA2_CONFIG | {"add_prefix_space": False})
    with pytest.raises(InputError, match="have add_prefix_space false, its own file the opposite"):
        load_tokenizer(str(tmp_path / "llama"))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"tokenizer_config": {"eos_token": "<end>"}}, "call '<end>' the end of text, which is no token of it"),
        ({"tokenizer_config": {"eos_token": 3}}, "eos_token is int; expected the token's text"),
        ({"tokenizer_config": {"add_bos_token": "yes"}}, "add_bos_token is 'yes'; expected true or false"),
        ({"tokenizer_config": [1]}, "is list; expected a JSON object"),
        ({"tokenizer_config": {"added_tokens_decoder": {"x": 1}}}, "added_tokens_decoder is damaged"),
        ({"added_tokens": {"<new>": 900}}, "the added token '<new>' the id 900, but 309 is next"),
        ({"added_tokens": {"<new>": "900"}}, "'<new>' has the id '900'; expected a number"),
        ({"config": {"eos_token_id": "2"}}, "eos_token_id is '2'; expected an id or a list of ids"),
        ({"tokenizer_config": {"tokenizer_class": "RobertaTokenizer"}}, "RobertaTokenizer, whose word splitting"),
    ],
    ids=lambda value: value[:24] if isinstance(value, str) else "",
)
def test_settings_that_contradict_the_tokenizer_are_one_line(tmp_path, files, message):
    layouts.qwen(tmp_path, TEXTS, 400, tokenizer_json=False)
    for name in ("config", "generation_config", "tokenizer_config"):
        (tmp_path / f"{name}.json").unlink()
    layouts.write(tmp_path, **files)
    with pytest.raises(InputError, match=message.replace("(", r"\(")) as caught:
        load_tokenizer(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_ends_that_disagree_are_named_once_and_the_tokenizer_s_own_is_taken(tmp_path, caplog):
    layouts.qwen(tmp_path, TEXTS, 400, tokenizer_json=True)
    layouts.write(tmp_path, config={"eos_token_id": 7}, special_tokens_map={"eos_token": "<|endoftext|>"})
    (tmp_path / "generation_config.json").unlink()
    with caplog.at_level(logging.WARNING):
        tokenizer = load_tokenizer(str(tmp_path))
    assert tokenizer.token_text(tokenizer.end_of_text_id) == "<|im_end|>"
    assert [record.getMessage().partition(": ")[2] for record in caplog.records] == [
        "eos_token is '<|im_end|>' in tokenizer_config.json but '<|endoftext|>' in special_tokens_map.json; the first "
        "is used",
        f"its end of text is '<|im_end|>' (id {tokenizer.end_of_text_id}), but config.json has eos_token_id 7; name "
        "end_of_text if that is meant",
    ]
    named = load_tokenizer(str(tmp_path), end_of_text="<|endoftext|>")
    assert named.end_of_text_id == tokenizer.end_of_text_id - 2


@pytest.mark.parametrize("own", [True, False])
def test_settings_that_begin_texts_otherwise_than_the_tokenizer_itself_are_followed_and_said(tmp_path, caplog, own):
    layouts.llama3(tmp_path, TEXTS, 400)
    if not own:
        layouts.write(
            tmp_path, tokenizer=json.loads((tmp_path / "tokenizer.json").read_text()) | {"post_processor": None}
        )
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    layouts.write(tmp_path, tokenizer_config=config | {"add_bos_token": not own})
    with caplog.at_level(logging.WARNING):
        tokenizer = load_tokenizer(str(tmp_path))
    assert (tokenizer.adds_bos, len(tokenizer.surrounding_ids()[0])) == (not own, int(not own))
    assert [record.getMessage().partition(": ")[2].partition(";")[0] for record in caplog.records] == [
        "puts begin-of-text before a text, its folder's settings nothing"
        if own
        else "puts nothing before a text, its folder's settings begin-of-text"
    ]


@pytest.mark.parametrize("as_files", [True, False])
def test_of_several_chat_templates_the_default_is_taken_and_none_is_guessed(tmp_path, as_files):
    def lay_out(folder, *names):
        layouts.qwen(folder, TEXTS, 400, tokenizer_json=True)
        config = json.loads((folder / "tokenizer_config.json").read_text())
        listed = [{"name": name, "template": layouts.CHATML + name} for name in names]
        layouts.write(folder, tokenizer_config=config | {"chat_template": None if as_files else listed})
        for name in names if as_files else ():
            path = folder / ("chat_template.jinja" if name == "default" else f"additional_chat_templates/{name}.jinja")
            path.parent.mkdir(exist_ok=True)
            path.write_text(layouts.CHATML + name)
        return folder

    folder = lay_out(tmp_path / "a", "tool_use", "default")
    assert for_folder(load_tokenizer(str(folder)), folder).chat_template == layouts.CHATML + "default"
    folder = lay_out(tmp_path / "b", "rag", "tool_use")
    with pytest.raises(InputError, match="has the chat templates rag, tool_use, and none called default"):
        for_folder(load_tokenizer(str(folder)), folder)


def test_text_of_special_tokens_is_letters_where_the_vocabulary_itself_holds_it(tmp_path):
    """A unigram model would find "</s>" among its pieces."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = [("<unk>", 0.0), ("</s>", 0.0), *((letter, -2.0) for letter in "</s>ab\u2581")]
    unigram = Tokenizer(models.Unigram(vocabulary, unk_id=0))
    unigram.pre_tokenizer = pre_tokenizers.Metaspace()
    unigram.add_special_tokens(["<unk>", "</s>"])
    unigram.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(str(tmp_path))
    plain = tokenizer.encode_each(["a</s>b"])[0]
    assert [tokenizer.token_text(i) for i in plain] == list("\u2581a</s>b")
    assert tokenizer.encode_each(["a</s>b"], special=True)[0].count(1) == 1


def test_a_special_token_that_words_are_made_of_changes_no_other_id(tmp_path):
    """As where a fine-tuned model's settings take a piece of words as their padding token."""
    plain = load_tokenizer(str(layouts.qwen(tmp_path, TEXTS, 400, tokenizer_json=True)))
    piece = plain.token_text(plain.encode_each(["return"])[0][0])
    text = f"return<tool_call> {piece}"
    expected = plain.encode_each([text])
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, "pad_token": piece}))
    tokenizer = load_tokenizer(str(tmp_path))
    assert piece in tokenizer.special_ids
    assert tokenizer.encode_each([text]) == expected
