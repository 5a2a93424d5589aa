"""Document starts in rows, segments, targets, mixtures and SeqIO."""

import dataclasses
import json

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

from diversity_jax.core.errors import InputError
from diversity_jax.corpus import CorpusConfig
from diversity_jax.mixtures.config import Component, GatePolicy
from diversity_jax.mixtures.loader import Batch, as_arrays
from diversity_jax.mixtures.mixture import Mixture
from diversity_jax.mixtures.replay import describe, inspect_mixture
from diversity_jax.mixtures.sources import PreparedCorpus
from diversity_jax.prepare.config import Preparation
from diversity_jax.prepare.rows import RowReader
from diversity_jax.tokenizers.document_start import DOCUMENT_STARTS, Boundaries
from tests.document_starts import BOS, END, LENGTH, SETTINGS, TEXTS, built, byte_vocabulary, mixture_config


@pytest.mark.parametrize("setting", DOCUMENT_STARTS)
def test_rows_hold_what_the_manifest_counts_and_decode_to_the_documents(tmp_path, setting):
    mixture = built(tmp_path, setting, byte_vocabulary(tmp_path / "vocabulary"), validation_share=0.0)
    manifest = mixture.taken[0].prepared
    assert (mixture.document_start, mixture.document_start_id) == (
        setting,
        {"bos": BOS, "none": None}.get(setting, END),
    )
    split = manifest.splits["train"]
    rows = RowReader(manifest).read(np.arange(split.rows)).tokens
    assert split.tokens == rows.size
    added = 2 if setting == "bos" else 1
    total = sum(map(len, TEXTS)) * 40 + added * 40 * len(TEXTS)
    assert split.tokens + split.dropped_tokens == total
    assert manifest.statistics["length_tokens"]["mean"] == pytest.approx(sum(map(len, TEXTS)) / len(TEXTS), abs=1e-3)
    assert abs(int((rows == BOS).sum()) - (40 * len(TEXTS) if setting == "bos" else 0)) <= 4
    texts = [document.text for document in PreparedCorpus("made", {"part": (1, manifest)})]
    assert all(any(text in document for document in TEXTS) for text in texts)
    assert {*TEXTS} <= {*texts}
    shown = describe(inspect_mixture(mixture.folder, rows=10, samples=1))
    assert f"documents begin with: {setting}" in shown
    assert "<s>" not in shown
    loaded = Mixture.load(mixture.folder)
    assert (loaded.document_start, loaded.content_hash) == (mixture.document_start, mixture.content_hash)


def reference(row, setting, separate, bos):
    """Segment starts and targets of a row, token by token."""
    starts, targets = [], []
    for position, token in enumerate(row):
        after_end = position > 0 and row[position - 1] == END
        begins = after_end and (setting != "bos" or token == bos)
        targets.append(not (begins and setting in ("none", "bos")))
        starts.append(position == 0 or (token == END if setting == "end_of_text" else begins))
    return starts, targets


ROWS = st.lists(st.lists(st.sampled_from([END, END, BOS, 7, 8]), min_size=9, max_size=9), min_size=1, max_size=4)


@settings(max_examples=200)
@given(ROWS, st.sampled_from(SETTINGS))
def test_segments_and_targets_of_any_row(rows, settings_of_run):
    """Rows that begin in mid-document, empty documents, documents longer than a row, a BOS that is text."""
    setting, across = settings_of_run
    start = {"none": None, "end_of_text": END, "bos": BOS}[setting]
    boundaries = Boundaries.of(setting, start, END, attend_across_documents=across)
    tokens = np.array(rows, np.int32)
    expected = [reference(row, setting, not across, BOS) for row in rows]
    assert boundaries.starts(tokens).tolist() == [starts for starts, _ in expected]
    assert boundaries.targets(tokens)[:, 1:].tolist() == [targets[1:] for _, targets in expected]
    arrays = as_arrays(Batch(tokens=tokens, component=np.zeros(len(rows), np.int32)), boundaries)
    assert ("segment_ids" in arrays) == (not across)
    assert ("loss_mask" in arrays) == (setting != "end_of_text")
    if across:
        return
    segment, position = arrays["segment_ids"][:, :-1], arrays["positions"][:, :-1]
    weights = arrays.get("loss_mask", np.ones_like(tokens))[:, 1:]
    for row, ids, positions, counts in zip(rows, segment.tolist(), position.tolist(), weights.tolist(), strict=True):
        for index, counted in enumerate(counts):
            seen = [at for at in range(index + 1) if ids[at] == ids[index]]  # what this prediction may look at
            assert positions[index] == index - seen[0]
            assert END not in [row[at] for at in seen[1:-1]] or setting == "bos"  # one document alone
            if counted and setting != "bos":
                assert setting == "end_of_text" or row[index] != END  # a first token is predicted by what begins it


@settings(max_examples=60)
@given(ROWS)
def test_rows_of_before_the_setting_keep_their_segments_and_targets(rows):
    tokens = np.array(rows, np.int32)
    apart = Boundaries.of(None, None, END, attend_across_documents=False)
    assert apart.starts(tokens).tolist() == [reference(row, "none", True, None)[0] for row in rows]
    assert apart.targets(tokens).all()
    assert apart.text_ids == ()
    across = Boundaries.of(None, None, END, attend_across_documents=True)
    batch = Batch(tokens=tokens, component=np.zeros(len(rows), np.int32))
    assert as_arrays(batch, across).keys() == {"tokens", "component"}
    assert (across.start_id, across.text_ids) == (END, None)


def test_an_unknown_setting_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"mixture\.document_start 'eos' is unknown; choose one of auto, none"):
        mixture_config(tmp_path, "eos", "bytes")
    with pytest.raises(InputError, match=r"preparation\.document_start 'x' is unknown"):
        Preparation(name="a", kind="real", sequence_length=8, document_start="x")


def test_all_settings_read_the_rows_of_one_preparation_but_bos(tmp_path):
    """`none` and `end_of_text` are one stream of tokens; `bos` is another, and the two are not mixed."""
    vocabulary, shared = byte_vocabulary(tmp_path / "vocabulary", adds=True), str(tmp_path / "shared")
    first = built(tmp_path / "a", "none", vocabulary, components_dir=shared)
    second = built(tmp_path / "b", "end_of_text", vocabulary, components_dir=shared)
    assert first.taken[0].prepared.content_hash == second.taken[0].prepared.content_hash
    assert first.content_hash != second.content_hash
    with pytest.raises(InputError, match=r"was prepared with another document_start \(None, now 3\)"):
        built(tmp_path / "c", "auto", vocabulary, components_dir=shared)
    path = tmp_path / "a" / "mixture" / "mixture.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"document_start": "bos", "document_start_id": BOS}))
    with pytest.raises(InputError, match=r"was prepared without a begin-of-text token, the mixture's .*'bos'"):
        Mixture.load(path)


def test_a_mixture_of_mixtures_begins_documents_as_they_do(tmp_path):
    vocabulary = byte_vocabulary(tmp_path / "vocabulary")
    inner = built(tmp_path / "inner", "bos", vocabulary)
    outer = Component(
        name="outer",
        kind="real",
        corpus=CorpusConfig(source=f"mixture:{inner.folder}"),
        share=1.0,
        policy=GatePolicy(ungated=True),
    )
    mixture = built(tmp_path / "outer", "auto", vocabulary, components=(outer,), name="holder")
    assert (mixture.document_start, mixture.document_start_id) == ("bos", BOS)
    with pytest.raises(InputError, match=r"'outer'.* was prepared with begin-of-text id 3, the mixture's"):
        built(tmp_path / "other", "end_of_text", vocabulary, components=(outer,), name="holder")


def test_auto_goes_on_with_what_a_folder_has(tmp_path):
    """A mixture made before the setting existed keeps its hash, though its tokenizer adds BOS."""
    vocabulary = byte_vocabulary(tmp_path / "vocabulary", adds=True)
    before = built(tmp_path, "end_of_text", vocabulary)
    path = before.folder / "mixture.json"
    record = json.loads(path.read_text())
    del record["document_start"], record["document_start_id"]
    old = dataclasses.replace(before, document_start=None, document_start_id=None)
    path.write_text(json.dumps(record | {"content_hash": old.content_hash}))
    assert Mixture.load(path).document_start is None
    again = built(tmp_path, "auto", vocabulary)
    assert (again.document_start, again.content_hash) == (None, old.content_hash)
    assert built(tmp_path, "none", vocabulary).document_start == "none"


@pytest.mark.parametrize("setting", DOCUMENT_STARTS)
def test_seqio_sees_the_segments_and_weights_of_the_loader(tmp_path, setting):
    from diversity_jax.core.tensorflow import seqio
    from diversity_jax.mixtures import registry

    mixture = built(tmp_path, setting, byte_vocabulary(tmp_path / "vocabulary"), name=f"begins_{setting}")
    registry.register(mixture.folder)
    converter = seqio.PrePackedLMFeatureConverter()
    lengths = {"targets": LENGTH}
    dataset = seqio.get_dataset(f"begins_{setting}", lengths, dataset_split="train", feature_converter=converter)
    arrays = as_arrays(mixture.loader(batch_size=40).batch(0), mixture.boundaries(attend_across_documents=False))
    mask = arrays.get("loss_mask", np.ones_like(arrays["tokens"]))
    for row, example in enumerate(dataset.take(40).as_numpy_iterator()):
        np.testing.assert_array_equal(example["decoder_target_tokens"], arrays["tokens"][row, 1:])
        np.testing.assert_array_equal(example["decoder_loss_weights"], mask[row, 1:])
        np.testing.assert_array_equal(example["decoder_segment_ids"], arrays["segment_ids"][row, :-1])
        np.testing.assert_array_equal(example["decoder_positions"], arrays["positions"][row, :-1])
