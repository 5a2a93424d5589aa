"""The fast encoder gives the ids of the reference encoder, which is used where they differ."""

import json
import pickle
import random

import numpy as np
import pytest
from tokenizers import Tokenizer as Library
from tokenizers import models, pre_tokenizers, trainers

from diversity_jax.corpus import CorpusConfig, open_corpus
from diversity_jax.prepare import encoding
from diversity_jax.prepare.config import Preparation
from diversity_jax.prepare.manifest import Manifest
from diversity_jax.prepare.pipeline import prepare
from diversity_jax.tokenizers import encoders
from diversity_jax.tokenizers.encoders import EncodersDiffer, excerpts
from diversity_jax.tokenizers.hugging_face import HuggingFaceTokenizer
from diversity_jax.tokenizers.tokenizer import load_tokenizer
from tests.shared_data import shared_file

RARE = "Xylophonists"
WORDS = [f"word{i}" for i in range(300)] + ["don't", "'tis", "\tif", "x=1;", "\u00e9t\u00e9", "12345"]


def made_texts(count: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(5, 60))) for _ in range(count)]


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory):
    """A byte-level BPE in which " Xylophonists" is one token."""
    library = Library(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, initial_alphabet=letters, special_tokens=["<|endoftext|>"], show_progress=False
    )
    library.train_from_iterator([*made_texts(100, seed=1), f" {RARE}" * 2000], trainer)
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    library.save(str(path))
    return str(path)


class Differing(HuggingFaceTokenizer):
    """Its fast encoder lacks the merge that makes one word a token."""

    def fast_content(self) -> str:
        content = json.loads(super().fast_content())
        merges = content["model"]["merges"]
        content["model"]["merges"] = [pair for pair in merges if "".join(pair) != f"\u0120{RARE}"]
        assert len(content["model"]["merges"]) == len(merges) - 1
        return json.dumps(content)


@pytest.mark.parametrize(
    "name", ["gpt_neox_tokenizer.json", "llama_tokenizer.json", "llama2_tokenizer.model", "gpt2/vocab.json"]
)
def test_real_tokenizers_are_encoded_fast_and_alike(name):
    path = shared_file(f"tokenizers/{name}")
    tokenizer = load_tokenizer(str(path.parent if path.name == "vocab.json" else path))
    assert tokenizer.encoders.fast_name() == "fastokens 0.3.5", tokenizer.encoders.problem
    special = next(iter(tokenizer.special_ids))
    texts = [*made_texts(40, seed=2), "", f"a{special} b{special}\n", "  two\u3000\u4e16 <s></s>"]
    for is_special in (False, True):
        wanted = tokenizer.encode_reference(texts, special=is_special)
        encoded = tokenizer.encode_batch(texts, special=is_special, encoder="fast")
        np.testing.assert_array_equal(encoded[0], wanted[0])
        np.testing.assert_array_equal(encoded[1], wanted[1])
    again = pickle.loads(pickle.dumps(tokenizer))
    np.testing.assert_array_equal(again.encode_batch(texts, encoder="checked")[0], tokenizer.encode_batch(texts)[0])


def test_what_the_fast_encoder_cannot_load_is_encoded_by_the_reference(tmp_path):
    library = Library(models.WordLevel({"a": 0, "[SEP]": 1, "[UNK]": 2}, unk_token="[UNK]"))
    library.pre_tokenizer = pre_tokenizers.Whitespace()
    library.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(str(tmp_path / "tokenizer.json"))
    assert tokenizer.encode_batch(["a b a"], encoder="fast")[0].tolist() == [0, 2, 0]
    assert tokenizer.encoders.fast_name() is None
    assert "cannot be loaded" in tokenizer.encoders.problem


def test_a_difference_stops_the_fast_encoder_and_no_wrong_id_comes_out(tokenizer_file, monkeypatch, caplog):
    tokenizer = Differing((tokenizer_file,))
    assert tokenizer.encoders.fast_name(), tokenizer.encoders.problem
    monkeypatch.setattr(encoders, "_WORTH_CHARACTERS", 20_000)
    many = made_texts(500, seed=3)
    many[0] = f"the {RARE} play"
    with pytest.raises(EncodersDiffer, match="the Xylophonists play"):
        tokenizer.encode_batch(many, encoder="fast")
    with pytest.raises(EncodersDiffer, match="the Xylophonists play"):
        tokenizer.encode_batch([*many[1:], many[0]], encoder="checked")
    ids, _ = tokenizer.encode_batch(many)
    np.testing.assert_array_equal(ids, tokenizer.encode_reference(many, special=False)[0])
    assert tokenizer.encoders.fast_name() is None
    assert len([record for record in caplog.records if "gives other ids than tokenizers" in record.message]) == 1


def test_a_fast_encoder_that_fails_the_torture_text_is_not_used(tokenizer_file):
    class Worse(HuggingFaceTokenizer):
        def fast_content(self) -> str:
            content = json.loads(super().fast_content())
            content["model"]["merges"] = content["model"]["merges"][:20]
            return json.dumps(content)

    tokenizer = Worse((tokenizer_file,))
    assert tokenizer.encoders.fast_name() is None
    assert "gives other ids than tokenizers" in tokenizer.encoders.problem


def test_excerpts_are_spread_over_all_text():
    texts = ["x" * 1000] * 1000 + ["y" * 1_000_000]
    parts = list(excerpts(texts))
    assert sum(map(len, parts)) < 0.01 * sum(map(len, texts))
    assert {"x", "y"} == {text[0] for text in parts}
    assert list(excerpts(["", "a"])) == ["a"]


def chunk_of(texts: list[str], characters: int, number: int) -> int:
    """A document in the middle of a chunk, where no excerpt is taken."""
    ends = np.searchsorted(np.cumsum([len(text) for text in texts]), characters * (number + 0.5))
    return int(ends)


@pytest.mark.parametrize("part", ["first document", "compared chunk", "nowhere"])
def test_chunks_that_are_unsure_are_made_again(tokenizer_file, tmp_path, monkeypatch, caplog, part):
    monkeypatch.setattr(encoding, "_COMPARED_EVERY", 3)
    texts, characters = made_texts(600, seed=4), 12_000
    # Of the two that differ, that in chunk 4 is not seen; chunk 5 is compared as a whole, as chunk 2 was before.
    rare = [chunk_of(texts, characters, number) for number in (4, 5)] if part == "compared chunk" else []
    for number in [0] if part == "first document" else rare:
        texts[number] += f" {RARE}"
    source = tmp_path / "text.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    corpus = CorpusConfig(source=str(source))
    settings = Preparation(
        name="part", kind="real", sequence_length=64, piece_characters=characters, shard_bytes=20_000
    )
    manifests: list[Manifest] = []
    for name, kind in (("reference", HuggingFaceTokenizer), ("fast", Differing)):
        monkeypatch.setattr(encoding, "_LEAST_CHARACTERS", 1000 if name == "fast" else 1 << 40)
        manifests.append(prepare(open_corpus(corpus), kind((tokenizer_file,)), tmp_path / name, settings, processes=1))
    before, after = manifests
    assert after.content_hash == before.content_hash
    assert len(after.splits["train"].shards) > 1
    for path in (tmp_path / "reference").glob("*.bin*"):
        assert path.read_bytes() == (tmp_path / "fast" / path.name).read_bytes()
    runs = [(run["encoder"].split()[0], run["chunks"]) for run in after.encoders]
    chunks = sum(run["chunks"] for run in after.encoders)
    assert [run["encoder"].split()[0] for run in before.encoders] == ["tokenizers"]
    if part == "nowhere":
        assert runs == [("fastokens", chunks)]
        assert after.encoders[0]["compared"] == chunks // 3
    elif part == "first document":
        assert runs == [("tokenizers", chunks)]
        assert after.encoders[0]["difference"].startswith("text.jsonl:1: fastokens")
    else:
        assert runs == [("tokenizers", 2), ("fastokens", 1), ("tokenizers", chunks - 3)]
        assert f"text.jsonl:{rare[1] + 1}: fastokens" in after.encoders[2]["difference"]
        assert "4 chunks again" in caplog.text
    assert Manifest.load(tmp_path / "fast" / "manifest.json").encoders == after.encoders
