"""llama.cpp reads our GGUF exports: the same tokens and logits for every form of model and tokenizer."""

import dataclasses
import json
import math

import jax
import numpy as np
import pytest

from diversity_jax.core.errors import InputError
from diversity_jax.corpus import open_corpus
from diversity_jax.model import LlamaConfig, init_params, logits
from diversity_jax.model.checkpoint_io.gguf import export_gguf
from diversity_jax.model.convert import main, write_imported
from diversity_jax.tokenizers.files import named_tokenizer
from diversity_jax.tokenizers.tokenizer import load_tokenizer
from tests.llama_cpp_server import post, serve_gguf
from tests.shared_data import shared_file

TEXTS = (
    "The kiln climbs a hundred degrees an hour.",
    "def f(x):\n    return  x + 41",
    "na\u00efve \u00e9t\u00e9 \u6f22\u5b57 \U0001f642",
)


def model(**fields):
    shape = {
        "vocab_size": 264,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_layers": 2,
        "num_heads": 4,
        "max_length": 256,
    }
    config = LlamaConfig(
        **({"compute_dtype": "float32", "initializer_range": 0.2, "rope_theta": 5000.0} | shape | fields)
    )
    return config, jax.device_get(init_params(config, jax.random.key(3)))


def files(name, end=None):
    tokenizer = named_tokenizer(str(name))
    return tokenizer if end is None else dataclasses.replace(tokenizer, end_of_text_id=end)


def train_sentencepiece(path, **settings):
    import sentencepiece

    lines = [
        " ".join(f"{a}{b}" for a in ("ba", "no", "trei", "sul") for b in ("ke", "mi", "r", "tan")[i % 4 :])
        for i in range(40)
    ]
    plain = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False, "model_type": "bpe"}
    with path.open("wb") as out:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=out,
            vocab_size=300,
            hard_vocab_limit=False,
            byte_fallback=True,
            minloglevel=2,
            **(plain | settings),
        )
    return path


def train_byte_level(path, vocab_size=300):
    import tokenizers

    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    tokenizer.save(str(path))
    return path


VARIANTS = {
    "bytes": {},
    "sentencepiece": {"num_kv_heads": 2, "tie_embeddings": False, "vocab_size": 310},
    "byte_level": {"num_kv_heads": 1, "rms_norm_eps": 1e-4, "vocab_size": 300},
}


@pytest.mark.parametrize("kind", VARIANTS)
def test_llama_cpp_reads_the_same_tokens_and_gives_the_same_logits(tmp_path, kind):
    pytest.importorskip("xllamacpp", reason="llama.cpp is not installed (extra llamacpp)")
    config, params = model(**VARIANTS[kind])
    if kind == "bytes":
        tokenizer, end = "bytes", None
    elif kind == "sentencepiece":
        tokenizer, end = str(train_sentencepiece(tmp_path / "tokenizer.model")), None
    else:
        tokenizer, end = str(train_byte_level(tmp_path / "tokenizer.json")), 0
    path = export_gguf(config, params, tmp_path / "tiny.gguf", tokenizer=files(tokenizer, end))
    ours = load_tokenizer(tokenizer)
    rows = [ours.encode_batch([text])[0] for text in TEXTS]
    tokens_BxL = np.zeros((len(rows), max(map(len, rows))), np.int32)
    for row, tokens in zip(tokens_BxL, rows, strict=True):
        row[: len(tokens)] = tokens
    with jax.default_matmul_precision("highest"):
        scores_BxLxV = np.asarray(jax.nn.log_softmax(jax.jit(logits, static_argnums=0)(config, params, tokens_BxL)))
    with serve_gguf(path, context_tokens=256, in_parallel=1) as address:
        for text, tokens, scores_LxV in zip(TEXTS, rows, scores_BxLxV, strict=True):
            assert post(address, "/tokenize", {"content": text})["tokens"] == tokens.tolist()
            compared = sum(
                compare_next_token(address, tokens[:length], scores_LxV[length - 1])
                for length in range(1, len(tokens) + 1)
            )
            assert compared > 10


def compare_next_token(address, tokens, scores_V):
    """llama.cpp's greedy next token is ours, and the likeliest ones have our log probabilities; returns how many were
    compared.
    """
    wanted = {"prompt": tokens.tolist(), "n_predict": 1, "temperature": 0, "n_probs": 10, "return_tokens": True}
    answer = post(address, "/completion", wanted)
    assert math.isclose(scores_V[answer["tokens"][0]], scores_V.max(), abs_tol=1e-4)
    # A token that is part of a character comes without its alternatives.
    likeliest = [
        candidate for position in answer.get("completion_probabilities", ()) for candidate in position["top_logprobs"]
    ]
    for candidate in likeliest:
        assert math.isclose(scores_V[candidate["id"]], candidate["logprob"], abs_tol=1e-4)
    return len(likeliest)


def test_the_public_reader_finds_what_was_written(tmp_path):
    gguf = pytest.importorskip("gguf", reason="the gguf package is not installed (extra llamacpp)")
    config, params = model(tie_embeddings=False)
    reader = gguf.GGUFReader(
        export_gguf(config, params, tmp_path / "tiny.gguf", tokenizer=files("bytes"), dtype="bfloat16")
    )
    assert reader.fields["llama.rope.freq_base"].contents() == 5000.0
    assert len(reader.fields["tokenizer.ggml.tokens"].contents()) == config.vocab_size
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    assert len(tensors) == 3 + 9 * config.num_layers
    assert {tensor.tensor_type.name for name, tensor in tensors.items() if "norm" in name} == {"F32"}
    assert {tensor.tensor_type.name for name, tensor in tensors.items() if "norm" not in name} == {"BF16"}


@pytest.mark.parametrize("settings", [{"model_type": "unigram"}, {"normalization_rule_name": "nmt_nfkc"}], ids=str)
def test_a_tokenizer_that_llama_cpp_would_read_otherwise_is_refused(tmp_path, settings):
    tokenizer = train_sentencepiece(tmp_path / "tokenizer.model", **settings)
    with pytest.raises(InputError, match=r"llama.cpp"):
        export_gguf(*model(vocab_size=310), tmp_path / "tiny.gguf", tokenizer=files(tokenizer))
    assert not (tmp_path / "tiny.gguf").exists()


def test_what_does_not_fit_is_one_line(tmp_path, capsys):
    config, params = model(vocab_size=200)
    write_imported(config, params, tmp_path / "model")
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"type": "WordLevel"}}))
    for tokenizer, message in (
        ("bytes", "more than the model's 200"),
        (str(tmp_path / "tokenizer.json"), "tokenizer.json: is not a tokenizer.json"),
        ("x", "give bytes"),
    ):
        with pytest.raises(SystemExit) as error:
            main(["gguf", str(tmp_path / "model"), str(tmp_path / "tiny.gguf"), "--tokenizer", tokenizer])
        assert error.value.code == 2
        err = capsys.readouterr().err
        assert message in err
        assert err.count("\n") == 1


def test_the_command_exports(tmp_path, capsys):
    config, params = model()
    write_imported(config, params, tmp_path / "model")
    main(["gguf", str(tmp_path / "model"), str(tmp_path / "a.gguf"), "--tokenizer", "bytes"])
    assert "a.gguf" in capsys.readouterr().out
    export_gguf(config, params, tmp_path / "b" / "a.gguf", tokenizer=files("bytes"))
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b" / "a.gguf").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "end"), [("llama2_tokenizer.model", None), ("gpt_neox_tokenizer.json", 0)])
def test_real_tokenizers_cut_real_text_alike(tmp_path, name, end):
    pytest.importorskip("xllamacpp", reason="llama.cpp is not installed (extra llamacpp)")
    tokenizer = shared_file(f"tokenizers/{name}")
    ours = load_tokenizer(str(tokenizer))
    texts = [
        document.text
        for document in open_corpus(str(shared_file("corpora_real/web_c4_200_full_pages.jsonl.gz"))).sample(40, seed=0)
    ]
    config, params = model(vocab_size=ours.size, hidden_size=16, num_layers=1)
    path = export_gguf(config, params, tmp_path / "tiny.gguf", tokenizer=files(tokenizer, end))
    with serve_gguf(path, context_tokens=256, in_parallel=1) as address:
        for text in [*TEXTS, *texts]:
            assert post(address, "/tokenize", {"content": text})["tokens"] == ours.encode_batch([text])[0].tolist()
