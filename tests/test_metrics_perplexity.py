"""Perplexity: each token is scored once, with transformers' logits, also in documents longer than the context."""

import math

import numpy as np
import pytest

from diversity_jax.core.errors import InputError
from diversity_jax.metrics.perplexity import (
    JaxLlama,
    TransformersModel,
    batches,
    document_nats,
    is_own_llama,
    perplexity_gap,
    windows,
)
from diversity_jax.model.checkpoint_io.hugging_face import export_hugging_face
from diversity_jax.tokenizers.tokenizer import ByteTokenizer
from tests.small_llama import random_params, small_config

TEXTS = [
    "a short text",
    "",
    "x",
    "a text that is longer than the context of thirty-two tokens, and than twice that as well, \u00e9\u00e8",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small Llama over bytes in Hugging Face's form."""
    config = small_config(vocab_size=264, max_length=32)
    return export_hugging_face(
        config, random_params(config), tmp_path_factory.mktemp("model") / "small", token_ids={"eos_token_id": 1}
    )


@pytest.fixture(scope="module")
def model(folder):
    tokenizer = ByteTokenizer()
    return JaxLlama(str(folder), tokenizer.encode_batch, tokenizer.end_of_text_id)


@pytest.mark.parametrize(
    ("length", "context", "stride"),
    [(1, 4, 2), (4, 4, 2), (5, 4, 2), (17, 4, 1), (17, 4, 4), (17, 4, 3), (100, 32, 16)],
)
def test_windows_score_every_prediction_once_with_enough_before_it(length, context, stride):
    seen = []
    for start, end, first in windows(length, context, stride):
        assert 0 <= start <= first < end <= min(start + context, length)
        seen += [(position, position - start) for position in range(first, end)]
    assert [position for position, _ in seen] == list(range(length))
    assert all(before >= min(position, context - stride) for position, before in seen)


class _TokenByToken:
    """The same model asked one token at a time."""

    def __init__(self, model):
        self.model = model

    def nats(self, ids, stride):
        tokens = np.concatenate([[self.model.first_token], ids]).astype(np.int32)
        total = 0.0
        for start, end, first in windows(len(ids), self.model.context_tokens, stride):
            for position in range(first, end):
                inputs, targets = tokens[start : position + 1], tokens[start + 1 : position + 2]
                padded = np.zeros((2, 1, 48), np.int32)
                padded[0, 0, : len(inputs)], padded[1, 0, : len(targets)] = inputs, targets
                total += float(self.model.nats(padded[0], padded[1])[0, len(inputs) - 1])
        return total


@pytest.mark.parametrize("stride", [None, 5])
def test_documents_longer_than_the_context_are_scored_token_by_token(model, stride):
    losses = document_nats(TEXTS, model, stride=stride, batch_tokens=256)
    ids, lengths = model.encode(TEXTS)
    assert losses.tokens.tolist() == lengths.tolist()
    assert losses.utf8_bytes.tolist() == [len(text.encode()) for text in TEXTS]
    last = ids[-lengths[-1] :]
    assert losses.nats[3] == pytest.approx(_TokenByToken(model).nats(last, stride or 16), rel=2e-3)
    assert losses.nats[1] == 0
    assert losses.perplexity() == pytest.approx(math.exp(losses.nats.sum() / lengths.sum()))
    assert losses.bits_per_byte() == pytest.approx(
        losses.nats.sum() / math.log(2) / sum(len(text.encode()) for text in TEXTS)
    )


def test_batch_size_changes_nothing(model):
    texts = [f"text number {n} " * (n % 6) for n in range(25)]
    few, many = document_nats(texts, model, batch_tokens=64), document_nats(texts, model, batch_tokens=1024)
    assert few.nats == pytest.approx(many.nats, rel=1e-3)


def test_ours_and_transformers_agree(folder, model, tmp_path):
    torch = pytest.importorskip("torch", reason="torch is not installed (extra hf)")
    pytest.importorskip("transformers", reason="transformers is not installed (extra hf)")
    from tests.test_model_gguf import train_byte_level

    tokenizer = train_byte_level(folder / "tokenizer.json", vocab_size=264)
    (folder / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>"}'
    )
    theirs = TransformersModel(str(folder))
    assert theirs.context_tokens == 32
    ids = np.random.default_rng(0).integers(264, size=(3, 33)).astype(np.int32)
    with torch.no_grad():
        difference = np.abs(theirs.nats(ids[:, :-1], ids[:, 1:]) - model.nats(ids[:, :-1], ids[:, 1:]))
    assert difference.mean() < 0.03  # ours computes in bfloat16
    assert difference.max() < 0.15
    texts = ["The kiln climbs.", "def f(x): return x " * 9]
    small = [text for text in texts]
    scored = document_nats(small, theirs)
    assert np.isfinite(scored.nats).all()
    assert scored.tokens.min() > 0
    gap = perplexity_gap(scored, document_nats(small, theirs, stride=32))
    assert gap is not None
    assert tokenizer.exists()


def test_no_text_has_no_perplexity(model):
    empty = document_nats(["", ""], model)
    assert empty.perplexity() is None
    assert empty.bits_per_byte() is None
    assert perplexity_gap(empty, empty) is None


def test_rows_are_batched_by_length_and_all_come_once():
    rows = [np.arange(length) for length in (5, 0, 90, 17, 3, 33, 200)]
    seen = []
    for numbers, tokens, mask in batches(rows, 128):
        for row_number, number in enumerate(numbers.tolist()):
            assert tokens[row_number][mask[row_number]].tolist() == rows[number].tolist()
            seen.append(number)
    assert sorted(seen) == [0, 2, 3, 4, 5, 6]


def test_what_cannot_be_is_one_line(folder, model, tmp_path):
    assert is_own_llama(str(folder))
    assert not is_own_llama(str(tmp_path))
    with pytest.raises(InputError, match="stride=99"):
        document_nats(["a"], model, stride=99)
    with pytest.raises(InputError, match="the tokenizer has ids"):
        model.nats(np.full((1, 16), 900), np.zeros((1, 16), np.int32))
