"""Tokenizers give the same ids through every interface, and id 0 is an ordinary token."""

import json

import numpy as np
import pytest

from diversity_jax.core.errors import InputError
from diversity_jax.tokenizers.tokenizer import load_tokenizer
from tests.shared_data import shared_file

TEXTS = ["Plain words, then 42!", "", "naïve café — 日本語 \U0001f600", "  spaces\tand\nlines  "]
SPECS = [
    "bytes",
    "tokenizers/llama2_tokenizer.model",
    "tokenizers/gpt_neox_tokenizer.json",
    "tokenizers/gpt2/vocab.json",
]


@pytest.fixture(params=SPECS, ids=lambda spec: spec.split("/")[-1])
def tokenizer(request):
    if request.param == "bytes":
        return load_tokenizer("bytes")
    path = shared_file(request.param)
    return load_tokenizer(str(path.parent if path.name == "vocab.json" else path))


def test_a_batch_is_its_texts_one_by_one_and_decodes_back(tokenizer):
    ids, lengths = tokenizer.encode_batch(TEXTS)
    assert lengths.sum() == len(ids)
    assert ids.max() < tokenizer.size
    for text, expected in zip(TEXTS, np.split(ids, np.cumsum(lengths)[:-1]), strict=True):
        np.testing.assert_array_equal(tokenizer.encode_batch([text])[0], expected)
        assert tokenizer.decode([*expected.tolist(), tokenizer.end_of_text_id]) == text


def test_seqio_sees_the_same_ids(tokenizer):
    from diversity_jax.mixtures.seqio_rows import seqio_vocabulary  # imports TensorFlow

    vocabulary = seqio_vocabulary(tokenizer)
    for text in TEXTS[:3]:
        ids = tokenizer.encode_batch([text])[0].tolist()
        assert list(vocabulary.encode(text)) == ids
        assert vocabulary.encode_tf(text).numpy().tolist() == ids
    assert vocabulary.eos_id == tokenizer.end_of_text_id


def test_id_zero_survives():
    tokenizer = load_tokenizer(str(shared_file("tokenizers/gpt2/vocab.json").parent))
    ids = tokenizer.encode_batch(["!!a!"])[0].tolist()
    assert 0 in ids
    from diversity_jax.mixtures.seqio_rows import seqio_vocabulary  # imports TensorFlow

    vocabulary = seqio_vocabulary(tokenizer)
    assert vocabulary.decode(ids) == "!!a!"
    assert vocabulary.decode_tf(np.array([ids], np.int32)).numpy()[0].decode() == "!!a!"


@pytest.mark.parametrize(
    ("spec", "words"),
    [("bites", "is unknown"), ("nowhere.model", "no such file"), ("nowhere.json", "no such file")],
)
def test_an_unknown_tokenizer_is_named(spec, words):
    with pytest.raises(InputError, match=words):
        load_tokenizer(spec)


@pytest.mark.parametrize("name", ["broken.json", "broken.model"])
def test_a_file_that_is_no_tokenizer_is_named(tmp_path, name):
    (tmp_path / name).write_text('{"not": "a tokenizer"}')
    with pytest.raises(InputError, match=f"{name}: is not a"):
        load_tokenizer(str(tmp_path / name))


def test_a_tokenizer_without_an_end_of_text_says_so(tmp_path):
    import tokenizers

    tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="a")).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(InputError, match="name a token as end_of_text"):
        load_tokenizer(str(tmp_path))
    assert load_tokenizer(str(tmp_path), end_of_text="a").end_of_text_id == 0


@pytest.mark.parametrize(
    ("spec", "bos_id", "adds_bos"),
    [
        ("bytes", None, False),
        ("tokenizers/llama2_tokenizer.model", 1, False),
        ("tokenizers/llama_tokenizer.json", 1, True),
        ("tokenizers/gpt_neox_tokenizer.json", None, False),
        ("tokenizers/gpt2", None, False),
    ],
)
def test_begin_of_text_is_the_maker_s(spec, bos_id, adds_bos):
    tokenizer = load_tokenizer(spec if spec == "bytes" else str(shared_file(spec)))
    assert (tokenizer.bos_id, tokenizer.adds_bos) == (bos_id, adds_bos)


@pytest.mark.parametrize(
    ("settings", "adds_bos"),
    [
        ({"add_bos_token": True, "tokenizer_class": "LlamaTokenizer"}, True),
        ({"tokenizer_class": "LlamaTokenizer"}, True),
        ({"add_bos_token": False, "tokenizer_class": "LlamaTokenizer"}, False),
    ],
)
def test_a_folder_s_settings_say_whether_a_text_begins_with_it(tmp_path, settings, adds_bos):
    (tmp_path / "tokenizer.model").write_bytes(shared_file("tokenizers/llama2_tokenizer.model").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = load_tokenizer(str(tmp_path))
    assert (tokenizer.bos_id, tokenizer.adds_bos) == (1, adds_bos)
