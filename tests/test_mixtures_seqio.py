"""SeqIO reads the rows of a mixture that the training loader reads."""

from fractions import Fraction

import numpy as np
import pytest

from diversity_jax.core.errors import InputError
from diversity_jax.mixtures.mixture import Mixture
from tests.mixture_folders import build_mixture
from tests.processes import run_python

TOKENS_OF = {"few": 40, "many": 400, "code": 7}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    shares = {"few": Fraction(1, 6), "many": Fraction(1, 2), "code": Fraction(1, 3)}
    return build_mixture(
        tmp_path_factory.mktemp("mixture"), shares, name="seen_by_seqio", words=TOKENS_OF, sequence_length=31
    )


def test_seqio_view_equals_loader(folder):
    from diversity_jax.core.tensorflow import seqio
    from diversity_jax.mixtures.registry import register

    mixture = Mixture.load(folder)
    names = register(folder)
    assert register(folder) == names == ["seen_by_seqio", *(f"seen_by_seqio.{name}" for name in TOKENS_OF)]
    loader = mixture.loader(batch_size=1)
    rows = 2500
    for shuffle in (False, True):
        dataset = seqio.get_mixture_or_task("seen_by_seqio").get_dataset(
            None, split="train", shuffle=shuffle, num_epochs=None, seed=3
        )
        seen = np.stack([example["targets"] for example in dataset.take(rows).as_numpy_iterator()])
        np.testing.assert_array_equal(seen, loader.rows(np.arange(rows)).tokens)


def test_reshuffled_passes_are_the_same_in_seqio_and_in_the_loader(tmp_path):
    from diversity_jax.core.tensorflow import seqio
    from diversity_jax.mixtures.registry import register

    shares, words = {"few": Fraction(2, 3), "many": Fraction(1, 3)}, {"few": 5, "many": 60}
    folder = build_mixture(
        tmp_path / "shuffled", shares, name="reshuffled", words=words, sequence_length=15, repeat_shuffle=True
    )
    mixture = Mixture.load(folder)
    register(folder)
    rows = 4 * mixture.taken[0].prepared.splits["train"].rows
    seen = mixture.loader(batch_size=1).rows(np.arange(rows))
    view = seqio.get_mixture_or_task("reshuffled").get_dataset(None, split="train", shuffle=True, num_epochs=None)
    targets = np.stack([example["targets"] for example in view.take(rows).as_numpy_iterator()])
    np.testing.assert_array_equal(targets, seen.tokens)
    few, length = seen.tokens[seen.component == 0], mixture.taken[0].prepared.splits["train"].rows
    first, second = few[:length], few[length : 2 * length]
    assert not np.array_equal(first, second)
    assert sorted(map(bytes, first)) == sorted(map(bytes, second))
    task = seqio.get_mixture_or_task("reshuffled.few")
    twice = [example["targets"] for example in task.get_dataset(None, "train", num_epochs=2).as_numpy_iterator()]
    np.testing.assert_array_equal(np.stack(twice), few[: 2 * length])
    shards = [
        [
            example["targets"]
            for example in task.get_dataset(
                None, "train", num_epochs=2, shard_info=seqio.ShardInfo(index, 2)
            ).as_numpy_iterator()
        ]
        for index in range(2)
    ]
    np.testing.assert_array_equal(np.stack(shards[1]), few[1 : 2 * length : 2])
    assert len(shards[0]) == length
    same = build_mixture(tmp_path / "same", shares, name="reshuffled", words=words, sequence_length=15)
    assert Mixture.load(same).content_hash != mixture.content_hash
    with pytest.raises(InputError, match="registered already"):
        register(same)


def test_a_task_decodes_to_its_documents(folder):
    from diversity_jax.core.tensorflow import seqio
    from diversity_jax.mixtures.registry import register

    register(folder)
    task = seqio.get_mixture_or_task("seen_by_seqio.code")
    example = next(task.get_dataset({"targets": 32}, split="validation", shuffle=False).as_numpy_iterator())
    text = task.output_features["targets"].vocabulary.decode(example["targets"].tolist())
    assert "code" in text


def test_another_mixture_of_the_same_name_is_refused(folder, tmp_path):
    from diversity_jax.mixtures.registry import register

    register(folder)
    other = build_mixture(tmp_path, {"few": Fraction(1)}, name="seen_by_seqio", words=TOKENS_OF, sequence_length=31)
    with pytest.raises(InputError, match="registered already"):
        register(other)


def test_what_was_removed_is_registered_again_and_nothing_of_another_mixture_stays(tmp_path):
    from diversity_jax.core.tensorflow import seqio
    from diversity_jax.mixtures.registry import register

    shares = {"a": Fraction(1, 2), "b": Fraction(1, 2)}
    folders = [
        build_mixture(tmp_path / name, given, name="again", documents=30, sequence_length=31)
        for name, given in (("first", shares), ("second", {"a": Fraction(1, 5), "b": Fraction(4, 5)}))
    ]
    registries = (seqio.TaskRegistry, seqio.MixtureRegistry)
    for end in ("", "_exact", ".a", "_packed", "_packed_exact", "_packed.a", "_held_out"):
        register(folders[0])
        (registry,) = (each for each in registries if f"again{end}" in each.names())
        registry.remove(f"again{end}")
        register(folders[0])
        assert f"again{end}" in registry.names()
    seqio.MixtureRegistry.remove("again")
    register(folders[1])
    for name in ("again", "again_exact", "again_packed", "again_packed_exact"):
        provider = seqio.get_mixture_or_task(name)
        assert getattr(provider, "mixture", provider).content_hash == Mixture.load(folders[1]).content_hash


@pytest.mark.slow
def test_importing_the_registry_registers_and_leaves_jax_alone(folder):
    code = (
        "import jax._src.xla_bridge as bridge, diversity_jax.mixtures.registry, seqio\n"
        "print(seqio.get_mixture_or_task('seen_by_seqio').name, bridge.backends_are_initialized())"
    )
    assert run_python(code, DIVERSITY_JAX_MIXTURES=str(folder)).split() == ["seen_by_seqio", "False"]


def test_the_loader_needs_no_tensorflow(folder):
    code = (
        "import sys\n"
        "for name in ('tensorflow', 'seqio', 'jax', 'ml_collections', 'sklearn'): sys.modules[name] = None\n"
        "from diversity_jax.mixtures.mixture import Mixture\n"
        f"print(Mixture.load({str(folder)!r}).loader(batch_size=4).batch(7).tokens.sum())"
    )
    assert int(run_python(code)) == Mixture.load(folder).loader(batch_size=4).batch(7).tokens.sum()


def test_a_vocabulary_whose_id_0_is_text_says_so_and_its_rows_come_whole(tmp_path, caplog):
    """seqio's packing takes an example to be as long as it has ids above 0; features that come with the rows do not."""
    import tokenizers

    from diversity_jax.core.tensorflow import seqio
    from diversity_jax.mixtures.registry import register

    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet(), key=lambda letter: letter != "e")
    plain = tokenizers.Tokenizer(tokenizers.models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    plain.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.add_special_tokens(["<|endoftext|>"])
    plain.save(str(tmp_path / "tokenizer.json"))
    words = {"name": "zeroed", "words": {"few": 9}, "sequence_length": 15, "documents": 40}
    folder = build_mixture(tmp_path / "m", {"few": Fraction(1)}, vocabulary=str(tmp_path / "tokenizer.json"), **words)
    assert "few: id 0 of its vocabulary is 'e', which rows hold" in caplog.text
    caplog.clear()
    register(folder)
    assert [record.getMessage()[:40] for record in caplog.records] == ["few: id 0 of its vocabulary is 'e', whic"]
    rows = Mixture.load(folder).taken[0].prepared.splits["train"].rows
    expected = Mixture.load(folder).loader(batch_size=1).rows(np.arange(rows)).tokens
    assert (expected == 0).any()

    def fed(name, converter, length):
        options = {"dataset_split": "train", "shuffle": False, "num_epochs": 1, "feature_converter": converter}
        return list(seqio.get_dataset(name, {"targets": length}, **options).as_numpy_iterator())

    fed_rows = fed("zeroed_packed", seqio.PrePackedLMFeatureConverter(), 15)
    np.testing.assert_array_equal([row["decoder_target_tokens"] for row in fed_rows], expected[:, 1:])
    assert all((row["decoder_loss_weights"] == 1).all() for row in fed_rows)
    packed = fed("zeroed", seqio.LMFeatureConverter(pack=True), 16)
    assert sum(int((row["decoder_target_tokens"] != 0).sum()) for row in packed) < (expected != 0).sum()
