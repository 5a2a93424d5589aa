"""The key/value cache: sequences allocate and free blocks, and answers do not change by that."""

import functools

import jax
import numpy as np
import psutil
import pytest

from diversity_jax.core.errors import InputError
from diversity_jax.evaluation.cache_blocks import BlockPool, CacheRow, RowLayout, free_bytes, release_zeros
from diversity_jax.evaluation.config import ServeConfig
from diversity_jax.evaluation.generate import Generator
from diversity_jax.evaluation.sampling import Sampling
from diversity_jax.model import logits
from diversity_jax.model.cache import BLOCK_TOKENS, block_bytes
from tests.evaluation_items import byte_model
from tests.small_llama import random_params

PROMPTS = [np.random.default_rng(n).integers(3, 259, 40 + n).tolist() for n in range(20)]
GROWS = Sampling(max_tokens=90, ignore_end=True)


@functools.lru_cache(maxsize=1)
def _short_of_blocks():
    """Two rows on each of eight devices, and blocks for one whole context: both cannot grow at once."""
    model = byte_model()
    gigabytes = 5 * block_bytes(model.config) / 1e9
    return Generator(model, slots=16, steps=4, memory_gb=gigabytes)


@functools.lru_cache(maxsize=1)
def _wide():
    return Generator(byte_model(), slots=16, steps=4)


def _all_free(generator):
    return all(generator._pool.free(shard) == generator._pool.blocks - 1 for shard in range(generator._shards))


def test_answers_that_wait_for_blocks_are_the_ones_they_would_be(monkeypatch):
    given_up = []
    release = Generator._release
    monkeypatch.setattr(
        Generator, "_release", lambda self, request: (given_up.append(request), release(self, request))[1]
    )
    sampling = [GROWS, Sampling(max_tokens=90, ignore_end=True, temperature=1.0, seed=5)] * (len(PROMPTS) // 2)
    few_blocks = _short_of_blocks().generate(PROMPTS, sampling)
    assert len(given_up) > len(PROMPTS)  # each once at its end, and some before
    wide = _wide().generate(PROMPTS, sampling)
    assert [answer.tokens for answer in few_blocks] == [answer.tokens for answer in wide]
    assert _all_free(_short_of_blocks())


def test_the_oldest_answer_is_never_the_one_that_waits():
    generator, finished = _short_of_blocks(), []
    generator.reserve(generator.model.config.max_length)
    for number, prompt in enumerate(PROMPTS):
        tell = lambda event, number=number: finished.append(number) if event.answer else None  # noqa: E731
        generator.submit(prompt, GROWS, tell)
    while generator.step():
        assert generator.load == len(PROMPTS) - len(finished)
    assert sorted(finished) == list(range(len(PROMPTS)))
    assert set(finished[:8]) == set(range(8))


def test_a_client_that_leaves_frees_its_blocks_and_what_waited_goes_on():
    generator = _short_of_blocks()
    requests = [generator.submit(prompt, GROWS, lambda event: None) for prompt in PROMPTS]
    generator.step()
    running = list(generator._running)
    assert len(running) == 16
    for request in [*running, requests[-1]]:  # and one that waits
        request.cancelled = True
    generator.step()
    assert not any(request in generator._running or request.blocks for request in running)
    while generator.step():
        pass
    assert [request.answer is None for request in requests] == [request.cancelled for request in requests]
    assert _all_free(generator)


def test_a_long_prompt_does_not_hold_up_an_answer_that_runs(monkeypatch):
    generator = _wide()
    monkeypatch.setattr("diversity_jax.evaluation.generate._PREFILL_ROWS_A_STEP", 1)
    short = generator.submit(PROMPTS[0][:3], Sampling(max_tokens=60, ignore_end=True), lambda event: None)
    generator.step()
    for _ in range(generator._shards):  # one of them comes to lie beside the short one
        long = generator.submit((PROMPTS[0] * 6)[:240], Sampling(max_tokens=4), lambda event: None)
    before = len(short.tokens)
    generator.step()
    assert long.cached < 239
    assert len(short.tokens) == before + 4
    while generator.step():
        pass
    assert long.answer is not None


def test_what_an_earlier_sequence_left_in_a_block_reaches_nobody():
    generator = _wide()
    expected = [answer.tokens for answer in generator.generate(PROMPTS[:3], GROWS)]
    spoilt = jax.tree.map(
        lambda pool: jax.device_put(np.full(pool.shape, np.nan, pool.dtype), pool.sharding), generator._cache
    )
    generator._cache = spoilt
    assert [answer.tokens for answer in generator.generate(PROMPTS[:3], GROWS)] == expected


def test_a_sliding_window_reads_the_blocks_it_sees_alone():
    model = byte_model(sliding_window=40)
    ids, answer = list(PROMPTS[0]) * 4, []
    generated = Generator(model, slots=1, steps=4).generate([ids], Sampling(max_tokens=8, ignore_end=True))[0]
    params = jax.tree.map(jax.numpy.asarray, random_params(model.config))
    compiled = jax.jit(lambda row, n: logits(model.config, params, row)[0, n - 1])
    row = np.zeros((1, 256), np.int32)
    row[0, : len(ids)] = ids
    for n in range(len(ids), len(ids) + 8):
        answer.append(int(np.argmax(compiled(row, n)[:259])))
        row[0, n] = answer[-1]
    assert list(generated.tokens) == answer
    layout = RowLayout([CacheRow(0, [7, 3, 9, 4], 200, 201)], 1, (1,))
    reads = layout.reads(8, 40, on_host=True)
    used = reads.rows_NxC < 1
    assert reads.blocks_NxC[used].tolist() == [9, 4]
    assert reads.starts_NxC[used].tolist() == [128, 192]
    assert int(layout.reads(8, None, on_host=True).rounds_Z[0]) == 1
    assert layout.written(1, 4)[:, 0].tolist() == [4] * 4


def test_work_grows_with_the_blocks_in_use_and_not_with_the_longest_context():
    rows = [CacheRow(0, list(range(1, 2 + n)), BLOCK_TOKENS * n, BLOCK_TOKENS * n + 1) for n in (0, 0, 0, 40)]
    reads = RowLayout(rows, 1, (4,)).reads(1024, None, on_host=True)
    assert int(reads.rounds_Z[0]) == 11  # 44 blocks, four at once, and not 41 for each row


def test_memory_that_holds_no_request_is_refused_in_one_line():
    model = byte_model()
    few = 4 * block_bytes(model.config) / 1e9
    with pytest.raises(InputError, match=r"memory_gb=.*256 tokens take .* GB; raise it") as caught:
        Generator(model, memory_gb=few).reserve(256)
    assert "\n" not in str(caught.value)
    generator = Generator(model, memory_gb=few)
    with pytest.raises(InputError, match=r"raise it, or lower model\.max_length"):
        generator.submit([5], Sampling(max_tokens=3), lambda event: None)
    with pytest.raises(InputError, match="memory_gb"):
        generator.generate([[5] * 250], Sampling(max_tokens=4))
    for value in (0, -1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match="memory_gb"):
            ServeConfig(memory_gb=value)


def test_the_cache_is_made_for_what_is_asked_and_only_grows():
    generator = Generator(byte_model(max_length=8192), slots=16)
    sizes = []
    for tokens in (30, 2000, 3000, 30, 8192):
        generator.reserve(tokens)
        sizes.append((generator._pool.blocks, generator._longest))
    assert sizes == [(65, 32), (65, 32), (129, 64), (129, 64), (257, 128)]
    assert 0 < free_bytes(jax.devices()[0]) <= psutil.virtual_memory().total


def test_blocks_are_handed_out_lowest_first_and_the_first_to_nobody():
    pool = BlockPool(6, 2)
    assert [pool.take(0, 2), pool.take(0, 2), pool.take(1, 1)] == [[1, 2], [3, 4], [1]]
    pool.give_back(0, [2, 1])
    assert pool.take(0, 3) == [1, 2, 5]
    assert (pool.free(0), pool.free(1)) == (0, 4)


def test_zeros_that_were_never_written_to_take_no_memory_and_stay_zeros():
    resident = lambda: psutil.Process().memory_info().rss  # noqa: E731
    zeros = jax.block_until_ready(jax.jit(lambda: jax.numpy.zeros((64 << 20) // 4))())
    made = resident()
    release_zeros(zeros)
    assert made - resident() > 60 << 20
    assert not np.asarray(zeros).any()
