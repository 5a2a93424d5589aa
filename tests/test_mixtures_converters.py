"""Our mixtures through SeqIO's decoder converters: any shard, cached or not, and after a checkpoint."""

from fractions import Fraction
import os
from pathlib import Path
import subprocess
import sys

import numpy as np
import pytest

from diversity_jax.mixtures.mixture import Mixture
from diversity_jax.prepare.rows import RowReader
from tests.mixture_folders import build_mixture

ROOT = Path(__file__).resolve().parents[1]
LENGTH = 48
SHARES = {"few": Fraction(1, 6), "many": Fraction(1, 2), "code": Fraction(1, 3)}
WHOLE, SHIFTED = slice(0, LENGTH + 1), slice(1, LENGTH + 1)
CONVERTERS = {
    "PassThrough": ("PassThroughFeatureConverter", {}, LENGTH + 1, "targets", WHOLE),
    "Decoder": ("DecoderFeatureConverter", {"pack": False}, LENGTH + 1, "decoder_target_tokens", WHOLE),
    "Decoder, packing": ("DecoderFeatureConverter", {"pack": True}, LENGTH + 1, "decoder_target_tokens", WHOLE),
    "LM": ("LMFeatureConverter", {"pack": False}, LENGTH + 1, "decoder_target_tokens", WHOLE),
    "LM, packing": ("LMFeatureConverter", {"pack": True}, LENGTH + 1, "decoder_target_tokens", WHOLE),
    "PrePackedLM": ("PrePackedLMFeatureConverter", {}, LENGTH, "decoder_target_tokens", SHIFTED),
}
"""By name: class, options, length asked for, feature of the tokens, and which tokens of a row these are."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    words, where = {"few": 40, "many": 150, "code": 7}, tmp_path_factory.mktemp("mixtures") / "fed"
    return build_mixture(where, SHARES, name="fed", words=words, sequence_length=LENGTH, documents=60)


@pytest.fixture(scope="module")
def seqio(folder):
    """seqio, with the mixture registered."""
    from diversity_jax.core.tensorflow import seqio
    from diversity_jax.mixtures.registry import register

    register(folder)
    return seqio


@pytest.fixture(scope="module")
def cached(seqio, folder, tmp_path_factory):
    """The mixture's tasks in SeqIO's cache, in four files each, written by SeqIO's own command."""
    pytest.importorskip("apache_beam", reason="seqio_cache_tasks needs apache-beam")
    where = tmp_path_factory.mktemp("cache")
    words = [
        f"--tasks={','.join(f'fed.{name}' for name in SHARES)}",
        f"--output_cache_dir={where}",
        "--min_shards=4",
        "--max_shards=4",
    ]
    command = [
        sys.executable,
        "-m",
        "seqio.scripts.cache_tasks_main",
        *words,
        "--module_import=diversity_jax.mixtures.registry",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "DIVERSITY_JAX_MIXTURES": str(folder)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    before = seqio.get_global_cache_dirs()
    seqio.set_global_cache_dirs([str(where)])
    yield True
    seqio.set_global_cache_dirs(before)


@pytest.fixture
def use_cached(request):
    """Whether rows come from SeqIO's cache, which is made when a test first asks for it."""
    return request.param and request.getfixturevalue("cached")


def fed(seqio, name, converter, shard=None, **options):
    """A dataset of a mixture or task through a converter, and a function that takes its tokens."""
    kind, how, length, feature, _ = CONVERTERS[converter]
    dataset = seqio.get_dataset(
        name,
        {"targets": length},
        dataset_split="train",
        feature_converter=getattr(seqio, kind)(**how),
        shard_info=None if shard is None else seqio.ShardInfo(*shard),
        seed=5,
        **options,
    )
    return dataset.map(lambda example: example[feature])


def rows_by_component(folder):
    parts = [part.manifest for part in Mixture.load(folder).taken]
    return {part.name: RowReader(part).read(np.arange(part.splits["train"].rows)).tokens for part in parts}


BOTH_WAYS = [(name, False) for name in CONVERTERS] + [
    (name, True) for name in ("PassThrough", "LM, packing", "PrePackedLM")
]


@pytest.mark.parametrize(("converter", "use_cached"), BOTH_WAYS, indirect=["use_cached"])
def test_shards_are_disjoint_and_together_complete(seqio, folder, converter, use_cached):
    rows = rows_by_component(folder)["code"]
    options = {"shuffle": False, "num_epochs": 1, "use_cached": use_cached}
    shards = [
        [row.tobytes() for row in fed(seqio, "fed.code", converter, (i, 3), **options).as_numpy_iterator()]
        for i in range(3)
    ]
    assert sorted(row for shard in shards for row in shard) == sorted(
        row[CONVERTERS[converter][-1]].tobytes() for row in rows
    )
    assert min(map(len, shards)) > 0.7 * len(rows) / 3


SAVED = [
    ("PassThrough", False),
    ("Decoder, packing", False),
    ("LM", False),
    ("PrePackedLM", False),
    ("PrePackedLM", True),
]


@pytest.mark.parametrize(("converter", "use_cached"), SAVED, indirect=["use_cached"])
def test_an_iterator_that_was_saved_goes_on_where_it_was(seqio, converter, use_cached, tmp_path):
    from diversity_jax.core.tensorflow import tf

    def batches():
        options = {"shuffle": True, "num_epochs": None, "use_cached": use_cached}
        return iter(fed(seqio, "fed", converter, (1, 2), **options).batch(8))

    uninterrupted_batches = batches()
    uninterrupted = [next(uninterrupted_batches).numpy() for _ in range(50)]
    stopped = batches()
    for _ in range(30):
        next(stopped)
    saved = tf.train.Checkpoint(iterator=stopped).write(str(tmp_path / "iterator"))
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 1_000_000  # no buffer of rows is kept in it
    restored = batches()
    tf.train.Checkpoint(iterator=restored).read(saved).assert_consumed()
    np.testing.assert_array_equal(np.stack([next(restored).numpy() for _ in range(20)]), uninterrupted[30:])


def test_a_cached_mixture_keeps_its_shares(seqio, folder, cached):
    owner = {row.tobytes(): name for name, rows in rows_by_component(folder).items() for row in rows}
    for shard in (None, (0, 2)):
        dataset = fed(seqio, "fed", "PassThrough", shard, shuffle=True, num_epochs=None, use_cached=True)
        owners = [owner[row.tobytes()] for row in dataset.take(600).as_numpy_iterator()]
        for name, share in SHARES.items():
            assert abs(owners.count(name) - 600 * share) <= (1 if shard is None else 3)
