"""Tokenizers in GGUF files: llama.cpp splits text as we do for every pre-tokenizer that we rebuild."""

import json
from pathlib import Path

import pytest

from diversity_jax.core.errors import InputError
from diversity_jax.tokenizers.files import TokenizerFiles, write_tokenizer
from diversity_jax.tokenizers.gguf_entries import llama_cpp_table, tokenizer_entries
from diversity_jax.tokenizers.gguf_folder import write_folder
from diversity_jax.tokenizers.tokenizer import for_folder, load_tokenizer
from tests.llama_cpp_server import post, serve_gguf
from tests.shared_data import shared_file
from tests.test_model_gguf import model

FAMILIES = llama_cpp_table()["families"]
TEXTS = (
    llama_cpp_table()["check_text"],
    "The kiln climbs 100 degrees an hour, doesn't it?  We'LL see in 12345 days.\n\n\n\tThen 3.14 ...",
    "def f(x_1):\n    return  x_1**2 + 41  # caf\u00e9 na\u00efve\r\n\r\n",
    "\u6f22\u5b57\u3068\u304b\u306a\u3002 \uc548\ub155\ud558\uc138\uc694! "
    "\u0417\u0434\u0440\u0430\u0432\u0441\u0442\u0432\u0443\u0439, "
    "\u043c\u0438\u0440 \U0001f642\u200d\u2642\ufe0f a\u0301b",
    "HTTPServer getURLs iPhone ABCdef /usr/local/bin --flag=<x> [y] {z} \"q\" 'tis 'Re I'M",
)


def trained(folder, family):
    """A small tokenizer that cuts words as a family does."""
    import tokenizers

    library, steps = tokenizers.pre_tokenizers, []
    for split in family["splits"]:
        if split == "digits":
            steps.append(library.Digits(individual_digits=True))
        elif split != "gpt2":
            steps.append(library.Split(tokenizers.Regex(split), "isolated"))
    steps.append(library.ByteLevel(add_prefix_space=False, use_regex="gpt2" in family["splits"]))
    made = tokenizers.Tokenizer(tokenizers.models.BPE(ignore_merges=family["ignore_merges"]))
    made.pre_tokenizer, made.decoder = library.Sequence(steps), tokenizers.decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=700, special_tokens=special, initial_alphabet=library.ByteLevel.alphabet(), show_progress=False
    )
    made.train_from_iterator([*TEXTS, Path(__file__).read_text()] * 3, trainer)
    made.add_tokens(["<tool>"])
    made.save(str(folder / "tokenizer.json"))
    settings = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": "{{ messages[0].content }}"}))
    return folder


def ids_of(folder):
    tokenizer = load_tokenizer(str(folder))
    return [tokenizer.encode_batch([text])[0].tolist() for text in TEXTS]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family["names"][0])
def test_a_new_tokenizer_of_a_known_kind_goes_out_and_comes_back(tmp_path, family):
    """Its fingerprint is in no table; how its file says that words are cut is."""
    metadata = dict(tokenizer_entries(trained(tmp_path, family), 800))
    assert metadata["tokenizer.ggml.pre"] == family["names"][0]
    assert [metadata[f"tokenizer.ggml.{name}_token_id"] for name in ("bos", "eos", "padding")] == [1, 2, 0]
    assert metadata["tokenizer.chat_template"] == "{{ messages[0].content }}"
    assert [metadata["tokenizer.ggml.token_type"][i] for i in (0, 1, 2, 3, 700, 701)] == [3, 3, 3, 1, 4, 5]
    write_folder(metadata, tmp_path / "back", Path("m.gguf"))
    assert ids_of(tmp_path / "back") == ids_of(tmp_path)
    again = dict(tokenizer_entries(tmp_path / "back", 800))
    assert again == metadata


@pytest.mark.parametrize("begins", [True, False])
@pytest.mark.parametrize("ends", [True, False])
def test_what_a_file_puts_around_a_text_comes_back(tmp_path, begins, ends):
    metadata = dict(tokenizer_entries(trained(tmp_path, FAMILIES[0]), 800))
    metadata |= {"tokenizer.ggml.add_bos_token": begins, "tokenizer.ggml.add_eos_token": ends}
    write_folder(metadata, tmp_path / "back", Path("m.gguf"))
    tokenizer = load_tokenizer(str(tmp_path / "back"))
    assert tokenizer.surrounding_ids() == ((1,) * begins, (2,) * ends)
    assert dict(tokenizer_entries(tmp_path / "back", 800)) == metadata


def test_the_end_of_a_turn_that_a_file_does_not_name_ends_answers_as_in_llama_cpp(tmp_path):
    metadata = dict(tokenizer_entries(trained(tmp_path, FAMILIES[0]), 800))
    metadata |= {"tokenizer.ggml.eos_token_id": 0, "tokenizer.chat_template": "{{ messages[0].content }}<|im_end|>"}
    write_folder(metadata, tmp_path / "back", Path("m.gguf"))
    tokenizer = for_folder(load_tokenizer(str(tmp_path / "back")), tmp_path / "back")
    assert (tokenizer.end_of_text_id, tokenizer.stop_ids) == (0, {0, 2})


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family["names"][0])
def test_llama_cpp_cuts_text_as_we_do(tmp_path, family):
    pytest.importorskip("xllamacpp", reason="llama.cpp is not installed (extra llamacpp)")
    from diversity_jax.model.checkpoint_io.gguf import export_gguf
    from diversity_jax.tokenizers.files import folder_tokenizer

    config, params = model(vocab_size=800, hidden_size=16, num_layers=1)
    tokenizer = folder_tokenizer(trained(tmp_path, family))
    path = export_gguf(config, params, tmp_path / "tiny.gguf", tokenizer=tokenizer)
    with serve_gguf(path, context_tokens=256, in_parallel=1) as address:
        ids = [post(address, "/tokenize", {"content": text})["tokens"] for text in TEXTS]
    assert ids == ids_of(tmp_path)


@pytest.mark.parametrize(
    ("name", "pre"), [("gpt2", "gpt-2"), ("gpt_neox_tokenizer.json", "olmo"), ("llama_tokenizer.json", "default")]
)
def test_real_tokenizers_have_their_makers_name(tmp_path, name, pre):
    path = shared_file(f"tokenizers/{name}/vocab.json").parent if name == "gpt2" else shared_file(f"tokenizers/{name}")
    files = tuple(path / file for file in ("vocab.json", "merges.txt")) if name == "gpt2" else (path,)
    write_tokenizer(TokenizerFiles(files=files, end_of_text_id={"gpt2": 50256}.get(name)), tmp_path, vocab_size=60_000)
    assert dict(tokenizer_entries(tmp_path, 60_000))["tokenizer.ggml.pre"] == pre


def test_a_way_to_cut_words_that_llama_cpp_does_not_know_is_refused(tmp_path):
    folder = trained(tmp_path, {"splits": [r"\w{1,7}|\W"], "ignore_merges": False})
    with pytest.raises(InputError, match=r"llama.cpp .* has no name for"):
        tokenizer_entries(folder, 800)
