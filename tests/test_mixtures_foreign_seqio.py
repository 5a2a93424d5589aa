"""A SeqIO codebase with tasks of ten kinds (`other_codebase/trellis`): each as our component, and ours in theirs."""

from fractions import Fraction
import logging
from pathlib import Path
import warnings

import numpy as np
import pytest

from diversity_jax.core.errors import InputError
from diversity_jax.corpus import CorpusConfig, open_corpus
from diversity_jax.mixtures.builder import build
from diversity_jax.mixtures.config import Component, GatePolicy, MixtureConfig
from diversity_jax.mixtures.mixture import Mixture
from tests.mixture_folders import build_mixture

OTHER = Path(__file__).resolve().parent / "other_codebase"
LENGTH = 32
SHARES = {"few": Fraction(1, 3), "many": Fraction(2, 3)}


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """Their tasks, registered, with the cache that one of them requires."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(OTHER)
        from trellis import tasks

        folder = tmp_path_factory.mktemp("cache")
        tasks.write_cache(str(folder))
        before = tasks.seqio.get_global_cache_dirs()
        tasks.seqio.set_global_cache_dirs([str(folder)])
        yield tasks
        tasks.seqio.set_global_cache_dirs(before)


@pytest.fixture(scope="module")
def seqio(theirs):
    return theirs.seqio


def joined(*columns):
    return ["\n\n".join(row) for row in zip(*columns, strict=True)]


def halves(vocabulary, texts):
    """A text's tokens cut in the middle, decoded, as their prefix LM trains on them."""
    cut = [(ids[: len(ids) // 2], ids[len(ids) // 2 :]) for ids in map(vocabulary.encode, texts)]
    return ["\n\n".join(map(vocabulary.decode, parts)) for parts in cut]


def corrupted_bytes(texts):
    cut = [text.encode() for text in texts]
    parts = [(data[: len(data) // 2].decode(), data[len(data) // 2 :].decode()) for data in cut]
    return [f"{first}<extra_id_0>\n\n<extra_id_0>{second}" for first, second in parts]


def whole_spans(theirs):
    """What `trellis_span` gives for one chunk a text."""
    vocabulary, sentinel = theirs.SENTINEL_PIECES, theirs.SENTINEL_PIECES.vocab_size - 1
    spans = []
    for ids in map(vocabulary.encode, theirs.TEXTS):
        first, last = len(ids) // 3, 2 * len(ids) // 3
        spans.append(
            "\n\n".join(map(vocabulary.decode, (ids[:first] + [sentinel] + ids[last:], [sentinel, *ids[first:last]])))
        )
    return spans


def size(texts):
    return sum(len(text.encode()) for text in texts)


def nothing(theirs):
    return {}


KINDS = {
    "span": ("trellis_span", {"feature_length": 512}, whole_spans, nothing),
    "span, clean text kept": ("trellis_span_bytes", {}, lambda their: corrupted_bytes(their.TEXTS), nothing),
    "prefix LM": ("trellis_prefix", {}, lambda their: halves(their.PIECES, their.TEXTS), nothing),
    "questions": ("trellis_answers", {}, lambda their: joined(their.QUESTIONS, their.ANSWERS), nothing),
    "answers alone": (
        "trellis_answers",
        {"text_field": "targets"},
        lambda their: their.ANSWERS,
        lambda their: {"values of feature inputs": size(their.QUESTIONS)},
    ),
    "from the cache": ("trellis_cached", {}, lambda their: their.TEXTS, nothing),
    "pieces": ("trellis_pieces", {}, lambda their: their.TEXTS, nothing),
    "several": (
        "trellis_several",
        {"text_field": "question+context+answer"},
        lambda their: joined(their.QUESTIONS, their.TEXTS, their.ANSWERS),
        nothing,
    ),
    "one of several": (
        "trellis_several",
        {"text_field": "context"},
        lambda their: their.TEXTS,
        lambda their: {
            "values of feature question": size(their.QUESTIONS),
            "values of feature answer": size(their.ANSWERS),
        },
    ),
    "weighted": (
        "trellis_weighted",
        {},
        lambda their: their.TEXTS,
        lambda their: {"values of feature weights": size(their.TEXTS) + 10},
    ),
    "lengths": ("trellis_trimmed", {"feature_length": 512}, lambda their: their.TEXTS, nothing),
    "uncounted": ("trellis_uncounted", {}, lambda their: their.HINTS, nothing),
    "a mixture's every task": (
        "trellis_nested",
        {"every_task": True},
        lambda their: their.HINTS[:3] + their.TEXTS + their.HINTS,
        nothing,
    ),
}
"""Task, settings of the corpus, the texts that it trains on, and what is counted as left out."""


@pytest.mark.parametrize("kind", KINDS)
def test_all_that_their_trainer_sees_is_in_our_rows_or_counted(theirs, tmp_path, kind):
    name, settings, expected, left_out = KINDS[kind]
    texts = expected(theirs)
    source = CorpusConfig(source=f"seqio:{name}@trellis.tasks", **settings)
    assert [document.text for document in open_corpus(source)] == texts
    component = Component(name="guest", kind="real", corpus=source, policy=GatePolicy(ungated=True), share=1.0)
    config = MixtureConfig(name="host", components=(component,), sequence_length=16, validation_share=0.0, processes=1)
    manifest = build(config, tmp_path, lambda _: {}).taken[0].prepared
    train = manifest.splits["train"]
    assert train.documents == len(texts)
    assert train.tokens + train.dropped_tokens == sum(len(text.encode()) + 1 for text in texts)
    assert manifest.source.get("left_out", {}) == left_out(theirs)


def test_features_left_out_are_said_at_once_and_counted_after(theirs, caplog):
    corpus = open_corpus(CorpusConfig(source="seqio:trellis_answers", text_field="targets"))
    assert "the text is made of targets; left out: inputs; name features in text_field" in caplog.text
    list(corpus)
    assert f"beside the text, and left out: {size(theirs.QUESTIONS)} values of feature inputs" in caplog.text


@pytest.mark.parametrize(
    ("name", "examples", "is_any_left"), [("trellis_rates", 13, False), ("trellis_nested", 23, True)]
)
def test_a_mixture_says_what_it_had_not_read_when_its_first_task_ended(theirs, caplog, name, examples, is_any_left):
    corpus = open_corpus(f"seqio:{name}@trellis.tasks")
    read = len(list(corpus))
    left = _left_out(corpus)
    assert bool(left) == is_any_left
    assert read + left.total() == examples
    assert all(f"{count} {kind}" in caplog.text for kind, count in left.items())
    assert all(kind.startswith("examples of task trellis_") for kind in left)


def _left_out(corpus):
    from diversity_jax.corpus.corpus import Tally

    tally = Tally()
    for unit in corpus.units():
        list(corpus.read(unit, tally))
    return tally.left_out


@pytest.mark.parametrize(
    ("source", "settings", "says"),
    [
        ("trellis_span", {}, r"corrupt_span.* may need sequence_length: set feature_length, such as 512"),
        ("trellis_trimmed", {}, r"chunks_of_inputs_length may need sequence_length: set feature_length"),
        ("trellis_no_rates", {}, r"cannot be read \(TypeError: .*name its tasks as components, or set every_task"),
        ("trellis_ids", {}, r"feature 'targets' holds ids of PassThroughVocabulary\(size=512.*has no text for them"),
        ("trellis_several", {}, r"has no feature 'text'; set text_field to one of: .*context.*; or several, joined by"),
        ("trellis_several", {"text_field": "question+body"}, "has no feature 'body'"),
        ("trellis_weighted", {"text_field": "targets+weights"}, "feature 'weights' holds ids of PassThrough"),
    ],
)
def test_what_cannot_be_text_is_one_line(theirs, source, settings, says):
    with pytest.raises(InputError, match=says) as caught:
        open_corpus(CorpusConfig(source=f"seqio:{source}@trellis.tasks", **settings))
    assert "\n" not in str(caught.value)


def test_a_cache_that_was_never_written_is_one_line(theirs, seqio, tmp_path):
    seqio.TaskRegistry.add(
        "trellis_not_written",
        source=theirs.source(),
        preprocessors=[theirs.rekeyed(targets="text"), *theirs.TOKENIZED, seqio.CacheDatasetPlaceholder(required=True)],
        output_features=theirs.features("targets"),
    )
    with pytest.raises(InputError, match="write the cache with seqio_cache_tasks, and name its folder"):
        open_corpus("seqio:trellis_not_written")


def test_settings_of_seqio_are_for_seqio_alone(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    for settings in ({"feature_length": 8}, {"every_task": True}):
        with pytest.raises(InputError, match="is for seqio:NAME"):
            open_corpus(CorpusConfig(source=str(tmp_path / "a.jsonl"), **settings))


@pytest.fixture(scope="module")
def ours(theirs, tmp_path_factory):
    """Two mixtures of ours, of bytes and of their SentencePiece model; registered."""
    from diversity_jax.mixtures.registry import register

    folders, words = {}, {"few": 40, "many": 300}
    for name, vocabulary in {"ours_bytes": "bytes", "ours_pieces": theirs.sentencepiece_file()}.items():
        where = tmp_path_factory.mktemp("mixtures") / name
        folders[name] = build_mixture(
            where, SHARES, name=name, words=words, sequence_length=LENGTH, documents=60, vocabulary=vocabulary
        )
        register(folders[name])
    return folders


def mixed(seqio, name, *parts, **options):
    """Examples of a new mixture of theirs."""
    if name not in seqio.MixtureRegistry.names():
        seqio.MixtureRegistry.add(name, list(parts))
    options = {"sequence_length": None, "shuffle": False, "seed": 1, **options}
    return seqio.MixtureRegistry.get(name).get_dataset(**options)


TOGETHER = {
    "span": ("trellis_span", "ours_pieces"),
    "span, bytes": ("trellis_span_bytes", "ours_bytes"),
    "prefix LM": ("trellis_prefix", "ours_pieces"),
    "questions": ("trellis_answers", "ours_bytes"),
    "cached": ("trellis_cached", "ours_bytes"),
    "plain": ("trellis_plain", "ours_bytes"),
    "pieces": ("trellis_pieces", "ours_pieces"),
    "ids": ("trellis_ids", "ours_bytes"),
    "lengths": ("trellis_trimmed", "ours_bytes"),
    "uncounted": ("trellis_uncounted", "ours_bytes"),
    "rates": ("trellis_rates", "ours_bytes"),
    "nested": ("trellis_nested", "ours_bytes"),
}


@pytest.mark.parametrize("kind", TOGETHER)
def test_our_whole_mixture_is_one_task_beside_each_of_theirs(seqio, ours, kind):
    from diversity_jax.mixtures.registry import register

    other, name = TOGETHER[kind]
    registered = register(ours[name], like=other)[0]
    lengths = {"inputs": 64, "targets": LENGTH + 1}
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        dataset = mixed(
            seqio,
            f"both_{other}",
            (other, 1.0),
            (f"{registered}_exact", 1.0),
            sequence_length=lengths,
            use_cached=other == "trellis_cached",
        )
        examples = list(dataset.take(120).as_numpy_iterator())
    expected = [row.tobytes() for row in Mixture.load(ours[name]).loader(batch_size=1).rows(np.arange(120)).tokens]
    known = set(expected)
    seen = [row for row in (example["targets"].astype("<i4").tobytes() for example in examples) if row in known]
    assert 30 < len(seen) < 90  # both are drawn
    assert seen == expected[: len(seen)]  # ours in the order of the schedule
    assert all(
        "inputs" not in example or example["inputs"].size == 0
        for example in examples
        if example["targets"].tobytes() in known
    )


@pytest.mark.parametrize("name", ["ours_bytes", "ours_bytes_exact", "ours_bytes.few"])
def test_registered_names_mix_with_tasks_of_targets_and_their_converters(seqio, ours, name):
    for converter in (seqio.LMFeatureConverter(pack=True), seqio.DecoderFeatureConverter(pack=False)):
        mixture = f"beside_{name}"
        if mixture not in seqio.MixtureRegistry.names():
            seqio.MixtureRegistry.add(mixture, [("trellis_plain", 1.0), (name, 1.0)])
        dataset = seqio.get_dataset(mixture, {"targets": LENGTH + 1}, converter, num_epochs=None, seed=1)
        batch = next(dataset.batch(4).as_numpy_iterator())
        assert batch["decoder_target_tokens"].shape == (4, LENGTH + 1)


def test_a_lost_schedule_is_said_and_the_exact_task_keeps_it(seqio, ours):
    def counts(name, inner):
        dataset = mixed(seqio, name, (inner, 1.0), num_epochs=None)
        rows = [example["targets"].tobytes() for example in dataset.take(600).as_numpy_iterator()]
        return sum(row in few for row in rows)

    mixture = Mixture.load(ours["ours_bytes"])
    loaded = mixture.loader(batch_size=1).rows(np.arange(2000))
    few = {row.astype("<i4").tobytes() for row in loaded.tokens[loaded.component == 0]}
    with pytest.warns(UserWarning, match=r"ours_bytes: another mixture samples .* put the task ours_bytes_exact there"):
        wrapped = counts("wrapped", "ours_bytes")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert counts("wrapped_exact", "ours_bytes_exact") == 200
        list(seqio.get_mixture_or_task("ours_bytes").get_dataset(None, shuffle=False).take(1))
    assert abs(wrapped - 200) < 60
    with pytest.warns(UserWarning, match="its exact schedule is lost"):
        mixed(seqio, "wrapped_twice", ("wrapped", 1.0), ("trellis_plain", 1.0))


def test_shards_of_their_mixture_hold_our_schedule_each_and_no_row_twice(seqio, ours):
    mixture = Mixture.load(ours["ours_bytes"])
    loaded = mixture.loader(batch_size=1).rows(np.arange(400))
    owner = {row.astype("<i4").tobytes(): part for row, part in zip(loaded.tokens, loaded.component, strict=True)}
    rows_by_shard = []
    for index in range(2):
        dataset = mixed(
            seqio, "sharded", ("ours_bytes_exact", 1.0), ("trellis_plain", 1.0), shard_info=seqio.ShardInfo(index, 2)
        )
        rows = [example["targets"].tobytes() for example in dataset.take(120).as_numpy_iterator()]
        rows_by_shard.append([row for row in rows if row in owner])
        parts = [owner[row] for row in rows_by_shard[-1]]
        assert abs(parts.count(0) - len(parts) / 3) <= 1
    assert not set(rows_by_shard[0]) & set(rows_by_shard[1])


def test_rates_by_number_of_examples_know_ours(seqio, ours):
    rows = seqio.get_mixture_or_task("ours_bytes").num_input_examples("train")
    task = seqio.get_mixture_or_task("ours_bytes_exact")
    assert task.num_input_examples("train") == rows == seqio.mixing_rate_num_examples(task)


def test_all_features_come_on_request(seqio, ours):
    from diversity_jax.mixtures.registry import DECODER_FEATURES

    plain = next(mixed(seqio, "plain_wrap", ("ours_bytes_exact", 1.0)).as_numpy_iterator())
    assert set(plain) == {"targets"}
    asked = mixed(seqio, "plain_wrap", ("ours_bytes_exact", 1.0), passthrough_features=DECODER_FEATURES)
    assert set(next(asked.as_numpy_iterator())) == {"targets", *DECODER_FEATURES}
    seqio.MixtureRegistry.add("packed_wrap", [("ours_bytes_packed_exact", 1.0)])
    theirs = seqio.get_dataset("packed_wrap", {"targets": LENGTH}, seqio.PrePackedLMFeatureConverter(), num_epochs=None)
    own = seqio.get_dataset("ours_bytes", {"targets": LENGTH}, seqio.PrePackedLMFeatureConverter(), num_epochs=None)
    for features, other in zip(theirs.take(50).as_numpy_iterator(), own.take(50).as_numpy_iterator(), strict=True):
        for name, values in other.items():
            np.testing.assert_array_equal(features[name], values)


@pytest.mark.parametrize(
    ("like", "name", "says"),
    [
        ("trellis_several", "ours_bytes", "has answer, context, question, which rows have not"),
        ("trellis_pieces", "ours_bytes", "'targets' are ids of SentencePieceVocabulary.*; build the mixture with"),
        ("trellis_plain", "ours_pieces", "'targets' are ids of .*Byte.*, not of rows of sentencepiece"),
        ("trellis_absent", "ours_bytes", "like='trellis_absent': .*; import the module"),
    ],
)
def test_rows_that_cannot_stand_beside_a_task_are_refused_in_one_line(ours, like, name, says):
    from diversity_jax.mixtures.registry import register

    with pytest.raises(InputError, match=says) as caught:
        register(ours[name], like=like)
    assert "\n" not in str(caught.value)


def test_a_length_that_cuts_rows_is_said(seqio, ours):
    with pytest.warns(
        UserWarning, match=r"ours_bytes\.few: .* is 20: the last 13 of the 33 tokens of every row are unused"
    ):
        seqio.get_mixture_or_task("ours_bytes").get_dataset({"targets": 20})


def test_their_evaluator_finds_held_out_rows_where_asked(seqio, ours, caplog):
    converter = seqio.LMFeatureConverter(pack=False)
    logging.getLogger("absl").setLevel(logging.INFO)
    assert not seqio.Evaluator("ours_bytes", converter, sequence_length={"targets": LENGTH + 1}).eval_tasks
    evaluator = seqio.Evaluator(
        "ours_bytes_held_out", converter, sequence_length={"targets": LENGTH + 1}, async_compute_metrics=False
    )
    assert {task.name for task in evaluator.eval_tasks} == {"ours_bytes_held_out.few", "ours_bytes_held_out.many"}

    def score(dataset, model_feature_shapes=None):  # a model that gives every byte the probability 1/256
        weights = ((index, example["decoder_loss_weights"]) for index, example in dataset.as_numpy_iterator())
        return [(int(index), -float(weight.sum()) * np.log(256)) for index, weight in weights]

    results = evaluator.evaluate(compute_metrics=True, score_fn=score)[0].result()
    for metrics in results.values():
        assert metrics["loss"] == pytest.approx(np.log(256))
        assert metrics["perplexity"] == pytest.approx(256)


def test_a_mixture_that_is_named_as_another_is_derived_still_registers(seqio, ours, tmp_path):
    from diversity_jax.mixtures.registry import register

    folder = build_mixture(tmp_path, {"x": Fraction(1)}, name="ours_bytes_packed", sequence_length=LENGTH)
    assert register(folder) == ["ours_bytes_packed", "ours_bytes_packed.x"]
    assert seqio.get_mixture_or_task("ours_bytes_packed").folder == Mixture.load(folder).folder
    register(ours["ours_bytes"])  # and stays
    assert seqio.get_mixture_or_task("ours_bytes_packed").folder == Mixture.load(folder).folder
    seqio.MixtureRegistry.remove("ours_bytes_packed")
    for task in ("ours_bytes_packed.x", "ours_bytes_packed_exact"):
        seqio.TaskRegistry.remove(task)
    register(ours["ours_bytes"])  # as other tests expect it, in any order
    assert seqio.get_mixture_or_task("ours_bytes_packed").folder == ours["ours_bytes"]
