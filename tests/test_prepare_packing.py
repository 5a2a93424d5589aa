"""Packed conversations: complete examples, exact masks, isolated neighbours, shares, and equal rows for every
reader.
"""

import contextlib
import dataclasses
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diversity_jax.core.errors import InputError
from diversity_jax.corpus import CorpusConfig
from diversity_jax.mixtures.loader import as_arrays
from diversity_jax.mixtures.mixture import Mixture
from diversity_jax.mixtures.replay import inspect_mixture, replay
from diversity_jax.model import logits
from diversity_jax.model.cross_entropy import loss
from diversity_jax.prepare.config import Chat, Preparation, PrepareConfig
from diversity_jax.prepare.manifest import Manifest, describe
from diversity_jax.prepare.rows import RowReader
from diversity_jax.tokenizers.tokenizer import ByteTokenizer
from tests.sft_folders import build_components, write_examples, write_text
from tests.small_llama import random_params, small_config

TOKENIZER, LENGTH = ByteTokenizer(), 256


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    paths = [write_examples(folder / f"{longest}.jsonl", 300, seed=longest, longest=longest) for longest in (4, 12)]
    short, long = (CorpusConfig(source=str(path), conversations="auto") for path in paths)
    return {"short": short, "long": long, "text": CorpusConfig(source=str(write_text(folder / "text.jsonl", 100)))}


@pytest.fixture(scope="module")
def mixture(sources, tmp_path_factory):
    """A third of text beside two components of conversations."""
    return build_components(tmp_path_factory.mktemp("mixed"), sources, {"short": 0.25, "long": 0.25, "text": 0.5})


def manifests(mixture) -> dict[str, Manifest]:
    return {part.name: part.manifest for part in mixture.taken}


def test_every_example_stands_whole_in_one_row_and_its_answer_is_the_target(mixture, sources):
    manifest = manifests(mixture)["short"]
    examples = []
    for split in ("train", "validation"):
        rows = RowReader(manifest, split).read(np.arange(manifest.splits[split].rows))
        for tokens, targets, starts in zip(rows.tokens, rows.targets, rows.starts, strict=True):
            assert starts[0]
            for example, is_target in zip(
                np.split(tokens, np.flatnonzero(starts)[1:]), np.split(targets, np.flatnonzero(starts)[1:]), strict=True
            ):
                if not (example == 1).all():
                    examples.append((TOKENIZER.decode(example[~is_target]), TOKENIZER.decode(example[is_target])))
                    assert example[-1] == 1
                    assert is_target[-1]
                else:
                    assert not is_target.any()
    with open(sources["short"].source) as file:
        records = [json.loads(line) for line in file]
    asked = "### Instruction:\nTurn round.\n\n{input}\n\n### Response:\n"
    assert sorted(examples) == sorted((asked.format(**record), record["output"]) for record in records)
    train = manifest.splits["train"]
    assert manifest.statistics["fill"] == pytest.approx(train.tokens / (train.rows * manifest.row_tokens), abs=1e-6)
    assert manifest.statistics["fill"] > 0.8  # examples of 45 to 75 tokens do not fill 257
    assert manifest.statistics["too_long"] == 0


@functools.cache
def model():
    config = small_config(vocab_size=260, max_length=LENGTH, loss_chunk_bytes=1 << 30)
    return config, jax.tree.map(jnp.asarray, random_params(config))


@functools.cache
def packed_losses():
    config, params = model()
    return jax.jit(lambda batch: loss(config, params, batch)[1])


@functools.cache
def log_probabilities():
    config, params = model()
    return jax.jit(lambda row: jax.nn.log_softmax(logits(config, params, row)[0]))


def row_of(mixture, name, number=0):
    """One row as a batch, and where its examples begin and end."""
    rows = mixture.loader(batch_size=64).batch(0)
    index = np.flatnonzero(rows.component == [part.name for part in mixture.taken].index(name))[number]
    arrays = {
        key: value[index : index + 1]
        for key, value in as_arrays(rows, mixture.boundaries(attend_across_documents=True)).items()
    }
    begins = np.flatnonzero(rows.starts[index])
    return arrays, list(zip(begins, [*begins[1:], rows.tokens.shape[1]], strict=True))


def test_the_loss_of_a_packed_row_is_that_of_each_answer_alone(mixture):
    arrays, spans = row_of(mixture, "long")
    assert len(spans) > 2
    parts = packed_losses()(arrays)
    expected, count = 0.0, 0
    for begin, end in spans:
        ids, mask = arrays["tokens"][0, begin:end], arrays["loss_mask"][0, begin:end]
        alone = np.zeros((1, LENGTH), np.int32)
        alone[0, : len(ids) - 1] = ids[:-1]
        scores = np.asarray(log_probabilities()(alone))
        targets = np.flatnonzero(mask)
        expected -= scores[targets - 1, ids[targets]].sum()
        count += len(targets)
    assert float(parts["weights"].sum()) == count == int(arrays["loss_mask"].sum())
    assert float(parts["losses"].sum()) == pytest.approx(expected, rel=1e-5)


def test_neighbours_and_targets_of_prompts_change_nothing(mixture):
    arrays, spans = row_of(mixture, "long")
    before = packed_losses()(arrays)["losses"][0]
    draw = np.random.default_rng(0)
    for begin, end in spans:
        changed = {**arrays, "tokens": arrays["tokens"].copy()}
        changed["tokens"][0, begin:end] = draw.integers(3, 259, end - begin)
        after = packed_losses()(changed)["losses"][0]
        elsewhere = np.ones(LENGTH, bool)
        elsewhere[max(begin - 1, 0) : end - 1] = False  # target t is predicted at t - 1
        np.testing.assert_array_equal(before[elsewhere], after[elsewhere])
    is_prompt = arrays["loss_mask"][0, 1:] == 0
    assert not before[is_prompt].any()
    last_asked = {
        **arrays,
        "tokens": arrays["tokens"].copy(),
    }  # the last prompt token before an answer is read, never predicted
    answer_start = np.flatnonzero(np.diff(arrays["loss_mask"][0]) == 1)[0]
    last_asked["tokens"][0, answer_start] = 200
    assert packed_losses()(last_asked)["weights"].tolist() == packed_losses()(arrays)["weights"].tolist()


def test_rows_of_text_beside_conversations_keep_all_their_targets(mixture):
    batch = mixture.loader(batch_size=32).batch(0)
    is_text = batch.component == [part.name for part in mixture.taken].index("text")
    crossing = as_arrays(batch, mixture.boundaries(attend_across_documents=True))
    for across in (True, False):
        arrays = as_arrays(batch, mixture.boundaries(attend_across_documents=across))
        assert arrays["loss_mask"][is_text].all()
        assert (arrays["segment_ids"][is_text].max(axis=1) > 1).all() == (not across)
        assert (arrays["segment_ids"][~is_text].max(axis=1) > 1).all()
        np.testing.assert_array_equal(crossing["segment_ids"][~is_text], arrays["segment_ids"][~is_text])


@pytest.mark.parametrize("count", ["tokens", "examples", "epochs"])
def test_shares_count_what_they_say(sources, tmp_path, mixture, count):
    if count == "tokens":
        built, wanted = mixture, (0.25, 0.25, 0.5)
    else:
        asked = {"short": 2, "long": 1} if count == "epochs" else {"short": 0.75, "long": 0.25}
        pair = {name: sources[name] for name in asked}
        built = build_components(tmp_path, pair, asked, shares_of=count)
        wanted = (2, 1) if count == "epochs" else (0.75, 0.25)
    rows = mixture_counts(built)
    trains = [part.manifest.splits["train"] for part in built.taken]
    per_row = {
        "tokens": lambda t: t.tokens / t.rows,
        "examples": lambda t: t.documents / t.rows,
        "epochs": lambda t: 1 / t.rows,
    }[count]
    counted = np.array([row * per_row(train) for row, train in zip(rows, trains, strict=True)])
    assert counted / counted.sum() == pytest.approx(np.array(wanted) / sum(wanted), abs=2e-4)
    normal, shown = np.array(wanted) / sum(wanted), inspect_mixture(built.folder, rows=5000, samples=0)
    assert list(shown.realised.values()) == pytest.approx(normal, abs=1e-3)
    assert [float(part.share_asked) for part in built.components] == pytest.approx(normal)
    assert [float(part.share_granted) for part in built.as_asked] == pytest.approx(normal, abs=1e-4)
    assert [component.share_granted for component in replay(built.folder)] == [
        part.share_granted for part in Mixture.load(built.folder).taken
    ]


def mixture_counts(mixture):
    return mixture.loader(batch_size=1).schedule.counts(100_000)


def test_the_same_rows_are_found_again_and_other_templates_are_refused(mixture, sources):
    folder = mixture.folder
    shares = {"short": 0.25, "long": 0.25, "text": 0.5}
    assert build_components(folder, sources, shares).content_hash == mixture.content_hash
    with pytest.raises(InputError, match="was prepared with another chat"):
        build_components(folder, sources, shares, chat=Chat(system_prompt="Answer."))


def test_looking_at_a_mixture_shows_examples(mixture):
    view = inspect_mixture(mixture.folder, rows=100, samples=1)
    texts_of = {row.component: row.texts for row in view.samples}
    assert all(text.startswith("### Instruction:") for text in texts_of["short"])
    assert all(text.strip() for text in texts_of["long"])


def test_too_long_conversations_are_left_out_and_counted(sources, tmp_path, caplog):
    built = build_components(tmp_path, {"long": sources["long"]}, {"long": 1}, sequence_length=96)
    manifest = manifests(built)["long"]
    assert manifest.statistics["too_long"] > 10
    assert manifest.statistics["kept"] + manifest.statistics["too_long"] == 300
    assert "longer than a row of 97 tokens and left out" in caplog.text
    with pytest.raises(InputError, match="no conversation fits into a row of 17 tokens"):
        build_components(tmp_path / "none", {"long": sources["long"]}, {"long": 1}, sequence_length=16)


def test_conversations_that_the_template_cannot_write_are_broken_records(sources, tmp_path):
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}
    path = tmp_path / "calls.jsonl"
    lines = [json.dumps({"messages": [{"role": "user", "content": "Look."}, call]})] * 3
    path.write_text("\n".join([*lines, "{broken"]) + "\n" + Path(sources["long"].source).read_text())
    built = {}
    for share, message in ((0.013, "4 of 304 records"), (0.014, None)):
        corpus = CorpusConfig(source=str(path), conversations="auto", max_broken_share=share)
        with pytest.raises(InputError, match=message) if message else contextlib.nullcontext():
            built = manifests(build_components(tmp_path / str(share), {"long": corpus}, {"long": 1}))
    assert built["long"].rejected == {"not JSON": 1, "chat template fails": 3}
    assert built["long"].statistics["kept"] == built["long"].statistics["documents"] == 300
    assert "3 chat template fails" in describe(built["long"])
    path.write_text(lines[0])
    with pytest.raises(InputError, match=r"'Look.': .*; set chat.template to one .* with max_broken_share"):
        build_components(tmp_path / "strict", {"long": dataclasses.replace(corpus, max_broken_share=0.0)}, {"long": 1})


def test_what_shares_count_is_checked(sources):
    with pytest.raises(InputError, match="shares_of 'rows' is unknown"):
        build_components("unused", {"text": sources["text"]}, {"text": 1}, shares_of="rows")


def test_seqio_sees_the_same_rows_with_the_same_targets_and_segments(mixture):
    from diversity_jax.core.tensorflow import seqio
    from diversity_jax.mixtures import registry

    registry.register(mixture.folder)
    dataset = seqio.get_mixture_or_task("tuning").get_dataset(sequence_length=None, split="train", shuffle=False)
    examples = list(dataset.take(20).as_numpy_iterator())
    arrays = as_arrays(mixture.loader(batch_size=20).batch(0), mixture.boundaries(attend_across_documents=False))
    for number, example in enumerate(examples):
        np.testing.assert_array_equal(example["targets"], arrays["tokens"][number])
        np.testing.assert_array_equal(example["decoder_loss_weights"], arrays["loss_mask"][number, 1:])
        np.testing.assert_array_equal(example["decoder_segment_ids"], arrays["segment_ids"][number, :-1])
        np.testing.assert_array_equal(example["decoder_positions"], arrays["positions"][number, :-1])


def test_a_preparation_of_conversations_needs_no_more_than_their_form():
    settings = Preparation(name="a", kind="real", sequence_length=8)
    config = PrepareConfig(
        output_dir="x", corpus=CorpusConfig(source="a.jsonl", conversations="auto"), preparation=settings
    )
    assert config.preparation.chat == Chat()
    with pytest.raises(InputError, match=r"corpus\.conversations is None"):
        PrepareConfig(output_dir="x", corpus="a.jsonl", preparation=config.preparation)
