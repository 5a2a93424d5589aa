"""Log-likelihoods of packed sequences equal those of each sequence alone, for every batch size and mesh."""

import functools

from hypothesis import given, settings
from hypothesis import strategies as st
import jax
import numpy as np
import pytest

from diversity_jax.core.errors import InputError
from diversity_jax.evaluation.held_out import documents_loss, rows_loss, text_loss
from diversity_jax.evaluation.loglikelihood import Scored, pack, shared_length
from diversity_jax.model import MeshConfig, logits
from tests.evaluation_items import byte_model
from tests.small_llama import random_params

TOKENS = st.lists(st.integers(0, 3), min_size=2, max_size=40).map(tuple)


@st.composite
def scored(draw):
    tokens = draw(TOKENS)
    return Scored(tokens=tokens, scored=draw(st.integers(1, len(tokens) - 1)))


@settings(max_examples=60, deadline=None)
@given(st.lists(scored(), min_size=1, max_size=60))
def test_every_sequence_is_a_path_down_its_row_and_every_place_sees_its_ancestors_alone(sequences):
    seen = set()
    for row in pack(sequences, row_tokens=128):
        arrays = row.arrays()
        assert len(row.tokens) <= row.length
        assert len(row.edges) <= row.length
        for number, edges in row.members:
            seen.add(number)
            sequence = sequences[number]
            assert [arrays["edge_token"][edge] for edge in edges] == list(sequence.tokens[-sequence.scored :])
            for step, edge in enumerate(edges):
                parent = arrays["parents"][arrays["edge_parent"][edge]]
                visible = [j for j in range(parent + 1) if parent < arrays["ends"][j]]
                assert (
                    tuple(arrays["tokens"][visible]) == sequence.tokens[: len(sequence.tokens) - sequence.scored + step]
                )
                assert list(arrays["positions"][visible]) == list(range(len(visible)))
    assert seen == set(range(len(sequences)))


@given(TOKENS, TOKENS)
def test_shared_length(a, b):
    n = shared_length(a, b)
    assert a[:n] == b[:n]
    assert a[n : n + 1] != b[n : n + 1] or n in (len(a), len(b))


def test_answers_to_one_question_store_it_once():
    question = tuple(range(3, 103))
    row, *others = pack([Scored(tokens=(*question, answer), scored=1) for answer in range(4)], row_tokens=256)
    assert not others
    assert len(row.tokens) == len(question)


def _sequences(seed=0, questions=12):
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(questions):
        question = tuple(rng.integers(3, 259, rng.integers(1, 150)).tolist())
        for _ in range(4):
            answer = tuple(rng.integers(3, 20, rng.integers(1, 9)).tolist())
            out.append(Scored(tokens=question + answer, scored=len(answer)))
    return out


@functools.lru_cache(maxsize=1)
def _alone():
    """Each sequence by itself, through the training model's own forward pass."""
    model = byte_model()
    params = random_params(model.config)
    sequences = _sequences()
    length = max(len(sequence.tokens) for sequence in sequences)
    padded = np.zeros((len(sequences), length), np.int32)
    for row, sequence in zip(padded, sequences, strict=True):
        row[: len(sequence.tokens)] = sequence.tokens
    logprobs = np.asarray(
        jax.nn.log_softmax(
            jax.jit(logits, static_argnums=0)(model.config, jax.tree.map(jax.numpy.asarray, params), padded)
        )
    )
    answers = []
    for row_number, sequence in enumerate(sequences):
        steps = range(len(sequence.tokens) - sequence.scored, len(sequence.tokens))
        nats = sum(float(logprobs[row_number, i - 1, sequence.tokens[i]]) for i in steps)
        answers.append((nats, all(logprobs[row_number, i - 1].argmax() == sequence.tokens[i] for i in steps)))
    return answers


def test_likelihoods_equal_each_sequence_alone_and_do_not_depend_on_batch_or_mesh():
    sequences, first = _sequences(), None
    for mesh, batch_size in (
        (MeshConfig(data=8, fsdp=1), 1),
        (MeshConfig(data=8, fsdp=1), 64),
        (MeshConfig(data=2, fsdp=2, tensor=2), 8),
    ):
        scores = byte_model(mesh).scorer(batch_size).score(sequences)
        for score, (nats, greedy) in zip(scores, _alone(), strict=True):
            assert score.nats == pytest.approx(nats, abs=2e-4)
            assert score.greedy == greedy
        first = first or scores
        if mesh.tensor == 1:
            assert scores == first  # to the last bit: the same shapes were computed


def test_a_sequence_needs_something_to_score_and_something_before_it():
    for tokens, number in (((1,), 1), ((1, 2), 0), ((1, 2), 2)):
        with pytest.raises(InputError, match="scored"):
            Scored(tokens=tokens, scored=number)


def test_loss_on_rows_and_documents_agree_with_their_definitions():
    model = byte_model()
    scorer = model.scorer()
    rows = np.random.default_rng(0).integers(3, 259, (5, 65))
    rows[:, 30] = 1
    ends, everything = rows == 1, np.ones(rows.shape, bool)
    sizes = {"bytes_per_token": 2.0, "max_length": 64}
    totals = rows_loss(scorer, rows, np.zeros(rows.shape, bool), everything, **sizes)
    params = jax.tree.map(jax.numpy.asarray, random_params(model.config))
    logprobs = jax.nn.log_softmax(jax.jit(logits, static_argnums=0)(model.config, params, rows[:, :-1]))
    expected = -float(np.take_along_axis(np.asarray(logprobs), rows[:, 1:, None], axis=-1).mean())
    assert totals.nats_per_token == pytest.approx(expected, rel=1e-5)
    assert totals.bits_per_byte == pytest.approx(expected / 2 / np.log(2), rel=1e-5)
    assert totals.tokens == 5 * 64
    apart = rows_loss(scorer, rows, ends, everything, **sizes)
    assert apart.tokens == totals.tokens  # each is predicted from within the segment of the one before
    assert apart.nats_per_token != totals.nats_per_token
    text = "é" * 300  # longer than the window
    loss = documents_loss(model, scorer, [text, "abc", ""])
    assert (loss.units, loss.tokens, loss.text_bytes) == (2, 603, 603)


def test_the_error_of_a_ratio_shrinks_with_the_root_of_the_units():
    rng = np.random.default_rng(0)
    sizes = rng.integers(50, 150, 4000)
    values = sizes * 2.0 + rng.normal(size=4000) * 10
    few, many = (text_loss(values[:n], sizes[:n], sizes[:n]) for n in (1000, 4000))
    assert few.nats_error / many.nats_error == pytest.approx(2, rel=0.1)
    assert abs(many.nats_per_token - 2) < 3 * many.nats_error
    assert text_loss([1.0], [2], [2]).nats_error is None
