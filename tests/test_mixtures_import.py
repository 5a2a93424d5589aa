"""Our mixtures in other SeqIO codebases, and their tasks and mixtures in ours."""

from fractions import Fraction
import json
import os
from pathlib import Path
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from diversity_jax.core.errors import InputError
from diversity_jax.mixtures.builder import build
from diversity_jax.mixtures.config import Component, GatePolicy, MixtureConfig
from diversity_jax.mixtures.loader import segments
from diversity_jax.mixtures.mixture import Mixture
from diversity_jax.prepare.rows import RowReader
from tests.mixture_folders import build_mixture

ROOT = Path(__file__).resolve().parents[1]
OTHER = Path(__file__).resolve().parent / "other_codebase"
LENGTH = 48
SHARES = {"few": Fraction(1, 6), "many": Fraction(1, 2), "code": Fraction(1, 3)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    words = {"few": 40, "many": 400, "code": 7}
    return build_mixture(
        tmp_path_factory.mktemp("mixtures") / "imported", SHARES, name="imported", words=words, sequence_length=LENGTH
    )


@pytest.fixture(scope="module")
def seqio(folder):
    """seqio, with the mixture registered."""
    from diversity_jax.core.tensorflow import seqio
    from diversity_jax.mixtures.registry import register

    register(folder)
    return seqio


def rows_of(dataset, count, feature="decoder_target_tokens"):
    return np.stack([example[feature] for example in dataset.take(count).as_numpy_iterator()])


def all_rows(manifest):
    return RowReader(manifest).read(np.arange(manifest.splits["train"].rows)).tokens


def converted(seqio, converter, length=LENGTH, **options):
    fields = {"dataset_split": "train", "shuffle": True, "num_epochs": None, "seed": 5}
    return seqio.get_dataset("imported", {"targets": length}, feature_converter=converter, **{**fields, **options})


def test_the_prepacked_converter_gives_every_token_and_every_boundary(seqio, folder):
    mixture = Mixture.load(folder)
    tokens = mixture.loader(batch_size=1).rows(np.arange(200)).tokens
    dataset = converted(seqio, seqio.PrePackedLMFeatureConverter())
    examples = list(dataset.take(200).as_numpy_iterator())
    np.testing.assert_array_equal(np.stack([example["decoder_input_tokens"] for example in examples]), tokens[:, :-1])
    np.testing.assert_array_equal(np.stack([example["decoder_target_tokens"] for example in examples]), tokens[:, 1:])
    assert all((example["decoder_loss_weights"] == 1).all() for example in examples)
    segment_ids, positions = segments(mixture.boundaries(attend_across_documents=False).starts(tokens))
    np.testing.assert_array_equal(
        np.stack([example["decoder_segment_ids"] for example in examples]), segment_ids[:, :-1]
    )
    np.testing.assert_array_equal(np.stack([example["decoder_positions"] for example in examples]), positions[:, :-1])


@pytest.mark.parametrize(
    ("name", "pack", "length"), [("LMFeatureConverter", True, LENGTH), ("DecoderFeatureConverter", False, LENGTH + 1)]
)
def test_converters_for_decoders_keep_rows_and_order(seqio, folder, name, pack, length):
    tokens = Mixture.load(folder).loader(batch_size=1).rows(np.arange(60)).tokens
    dataset = converted(seqio, getattr(seqio, name)(pack=pack), length)
    np.testing.assert_array_equal(rows_of(dataset, 60), tokens[:, :length])


def test_lengths_longer_and_shorter_than_a_row(seqio, folder):
    tokens = Mixture.load(folder).loader(batch_size=1).rows(np.arange(3)).tokens
    short = converted(seqio, seqio.PrePackedLMFeatureConverter(), 10)
    np.testing.assert_array_equal(rows_of(short, 3), tokens[:, 1:11])
    long = next(converted(seqio, seqio.PrePackedLMFeatureConverter(), LENGTH + 5).as_numpy_iterator())
    np.testing.assert_array_equal(long["decoder_loss_weights"], [1] * LENGTH + [0] * 5)


def test_shards_hold_the_shares_each_and_no_row_twice(seqio, folder):
    mixture, shards = Mixture.load(folder), 3
    owner = {row.tobytes(): number for number, part in enumerate(mixture.taken) for row in all_rows(part.manifest)}
    seen = []
    for index in range(shards):
        info = seqio.ShardInfo(index=index, num_shards=shards)
        part = rows_of(
            seqio.get_mixture_or_task("imported").get_dataset(None, shard_info=info, num_epochs=None), 200, "targets"
        )
        counts = np.bincount([owner[row.tobytes()] for row in part], minlength=len(mixture.taken))
        assert np.abs(counts - [200 * float(component.share_granted) for component in mixture.taken]).max() < 3
        seen += [row.tobytes() for row in part]
    assert len(set(seen)) == 200 * shards


def test_seqio_repeats_epochs_as_the_loader_does(seqio, folder):
    mixture = Mixture.load(folder)
    rows = mixture.taken[0].manifest.splits["train"].rows * 6 + 50
    dataset = seqio.get_mixture_or_task("imported").get_dataset(None, num_epochs=None)
    np.testing.assert_array_equal(
        rows_of(dataset, rows, "targets"), mixture.loader(batch_size=1).rows(np.arange(rows)).tokens
    )


def run(code_or_module, *words, **environment):
    command = [sys.executable, *(["-c", code_or_module] if not words else ["-m", code_or_module, *map(str, words)])]
    paths = os.pathsep.join(map(str, (ROOT, OTHER)))
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": paths, **environment},
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_another_codebase_imports_the_mixture_and_trains_on_it(folder, tmp_path):
    output = run(
        "wordhouse.train", "diversity_jax.mixtures.registry", "imported", LENGTH, 40, DIVERSITY_JAX_MIXTURES=str(folder)
    )
    result = json.loads(output.splitlines()[-1])
    assert result["losses"][-1] < 0.6 * result["losses"][0]
    assert result["full"]
    assert not [
        name for name in result["modules"] if name.startswith(("diversity_jax.training", "diversity_jax.model"))
    ]


def test_importing_costs_little_registers_once_and_leaves_jax_alone(folder, tmp_path):
    (tmp_path / "run.gin").write_text("import diversity_jax.mixtures.registry\n")
    code = (
        "import time, importlib, seqio, gin, jax._src.xla_bridge as bridge\n"
        "from diversity_jax.core.tensorflow import tf\n"
        "began = time.process_time(); import diversity_jax.mixtures.registry as registry; taken = time.process_time() "
        "- began\n"
        "importlib.reload(registry)\n"
        f"gin.parse_config_file({str(tmp_path / 'run.gin')!r})\n"
        "print(taken, seqio.get_mixture_or_task('imported').name, bridge.backends_are_initialized())"
    )
    taken, name, initialised = run(code, DIVERSITY_JAX_MIXTURES=str(folder.parent)).split()
    assert (name, initialised) == ("imported", "False")
    assert float(taken) < 1


def test_the_inspection_tool_reads_the_mixture(folder):
    options = (
        "--noinspect_task_examples",
        "--print_length_statistics",
        '--sequence_length={"targets": 16}',
        "--length_example_count=5",
    )
    words = ("--tasks=imported.*", "--module_import=diversity_jax.mixtures.registry", *options)
    output = run("seqio.scripts.inspect_tasks_main", *words, DIVERSITY_JAX_MIXTURES=str(folder))
    assert "train, targets, 16.0" in output


@pytest.fixture
def wordhouse(monkeypatch):
    monkeypatch.syspath_prepend(OTHER)


def component(name, source, kind="real", **options):
    return Component(name=name, kind=kind, corpus=source, policy=GatePolicy(ungated=True), **options)


def test_tasks_and_mixtures_of_another_codebase_are_components(wordhouse, tmp_path):
    parts = (
        component("tales", "seqio:wordhouse_tales@wordhouse.tasks", share=0.5),
        component("both", "seqio:wordhouse_mix@wordhouse.tasks", "synthetic", share=0.5),
    )
    mixture = build(
        MixtureConfig(name="guests", components=parts, sequence_length=32, validation_share=0.0, processes=1),
        tmp_path,
        lambda _: {},
    )
    text = " ".join(str(document.text) for document in _corpus(mixture, "both"))
    assert "miller" in text
    assert "soap" in text
    tales, both = (part.manifest.splits["train"] for part in mixture.taken)
    assert tales.documents == 200
    # Drawn 3:1 until one task ends: about 200 tales and 67 lists.
    assert 200 < both.documents < 400


def _corpus(mixture, name):
    from diversity_jax.mixtures.sources import PreparedCorpus

    part = next(part for part in mixture.taken if part.name == name)
    return PreparedCorpus(name, {part.name: (Fraction(1), part.manifest)})


def test_a_registered_mixture_of_ours_is_taken_row_for_row(seqio, folder, tmp_path):
    parts = (component("whole", "seqio:imported", share=1.0),)
    fields = {"sequence_length": LENGTH, "processes": 1}
    mixture = build(MixtureConfig(name="outer", components=parts, **fields), tmp_path, lambda _: {})
    assert {part.name: part.share_granted for part in mixture.taken} == {
        f"whole_{name}": share for name, share in SHARES.items()
    }
    subset = build(
        MixtureConfig(name="single", components=(component("x", "seqio:imported.few"),), **fields),
        tmp_path / "s",
        lambda _: {},
    )
    assert [part.name for part in subset.taken] == ["x_few"]
    with pytest.raises(InputError, match=r"component 'x': a cycle of mixtures: imported -> imported"):
        build(
            MixtureConfig(name="imported", components=(component("x", "seqio:imported"),), **fields),
            tmp_path / "c",
            lambda _: {},
        )
    with pytest.raises(InputError, match=r"component 'x': a cycle of mixtures: imported -> imported.few -> imported"):
        build(
            MixtureConfig(name="imported", components=(component("x", "seqio:imported.few"),), **fields),
            tmp_path / "c",
            lambda _: {},
        )


@pytest.mark.parametrize(
    ("value", "says"),
    [("/no/such", "no such folder"), ("gs://bucket/mix", "diversity_jax.mixtures.fetch"), ("{empty}", "holds no")],
)
def test_wrong_folders_in_the_environment_are_one_line(tmp_path, value, says):
    from diversity_jax.mixtures.registry import folders_named

    with pytest.raises(InputError, match=f"DIVERSITY_JAX_MIXTURES: .*{says}"):
        folders_named(value.format(empty=tmp_path))


@pytest.mark.parametrize(("dtype", "ids"), [("uint16", [0, 300, 65535]), ("uint32", [0, 70_000, 131_071])])
def test_ids_of_every_size_are_read(dtype, ids):
    from diversity_jax.core.tensorflow import tf
    from diversity_jax.mixtures.seqio_rows import _parsed

    stored = tf.data.Dataset.from_tensors(np.array(ids, dtype).tobytes())
    manifest = SimpleNamespace(dtype=dtype, chat={}, row_tokens=3)
    (row,) = _parsed(manifest, stored).as_numpy_iterator()
    assert row["targets"].tolist() == ids


def test_a_tokenizer_that_components_share_is_read_once(seqio):
    assert (
        len(
            {id(seqio.get_mixture_or_task(f"imported.{name}").output_features["targets"].vocabulary) for name in SHARES}
        )
        == 1
    )
