"""SeqIO tasks and TFDS builders as corpora."""

import functools
import shutil
import subprocess
import sys

import pytest

from diversity_jax.core.errors import InputError
from diversity_jax.corpus import CorpusConfig, open_corpus
from diversity_jax.corpus.readers.tensorflow import parse_example

TEXTS = ["the first text", "ünï 漢字 😀", "", "the fourth text, a little longer"]
PREFIX = "test_corpus_"


@functools.cache
def seqio():
    from diversity_jax.core.tensorflow import import_quietly

    return import_quietly("seqio")


@pytest.fixture(scope="module")
def tasks():
    """Registers one task with strings, and one with token ids only."""
    import tensorflow as tf

    io = seqio()

    def source(split, shuffle_files, seed=None):
        return tf.data.Dataset.from_tensor_slices({"targets": TEXTS, "n": list(range(len(TEXTS)))})

    features = {"targets": io.Feature(io.ByteVocabulary(), add_eos=True)}
    preprocessors = [io.preprocessors.tokenize, io.preprocessors.append_eos]
    function_source = io.FunctionDataSource(source, splits=["train"])
    io.TaskRegistry.add(PREFIX + "both", source=function_source, preprocessors=preprocessors, output_features=features)

    def only_ids(dataset):
        return dataset.map(lambda example: {"targets": example["targets"]})

    io.TaskRegistry.add(
        PREFIX + "ids", source=function_source, preprocessors=[*preprocessors, only_ids], output_features=features
    )
    io.MixtureRegistry.add(PREFIX + "mixture", [(PREFIX + "both", 2.0), (PREFIX + "ids", 1.0)])
    yield
    for name in ("both", "ids"):
        io.TaskRegistry.remove(PREFIX + name)
    io.MixtureRegistry.remove(PREFIX + "mixture")


@pytest.mark.usefixtures("tasks")
@pytest.mark.parametrize("name", ["both", "ids"])
@pytest.mark.parametrize("field", ["text", "targets"])
def test_a_task_gives_its_text_also_where_it_is_tokenised(name, field):
    corpus = open_corpus(CorpusConfig(source=f"seqio:{PREFIX}{name}", text_field=field))
    documents = list(corpus)
    assert [document.text for document in documents] == [text for text in TEXTS if text]
    assert [document.id for document in documents] == [f"{PREFIX}{name}:{n}" for n in (1, 2, 4)]
    assert corpus.rejected == {"empty": 1}
    assert {document.text for document in corpus.sample(3, seed=0)} == {text for text in TEXTS if text}
    if name == "both":
        assert documents[2].meta["n"] == 3


@pytest.mark.usefixtures("tasks")
def test_a_mixture_gives_what_its_own_trainer_would_see():
    drawn = [document.text for document in open_corpus(f"seqio:{PREFIX}mixture")]
    assert set(drawn) <= set(TEXTS)
    assert len(drawn) > len([text for text in TEXTS if text])
    assert drawn == [document.text for document in open_corpus(f"seqio:{PREFIX}mixture")]


@pytest.mark.usefixtures("tasks")
def test_fingerprints_of_tasks_are_of_their_documents():
    both, again = (open_corpus(f"seqio:{PREFIX}both").fingerprint() for _ in range(2))
    limited = open_corpus(CorpusConfig(source=f"seqio:{PREFIX}both", max_documents=1)).fingerprint()
    assert both == again != limited


@pytest.mark.usefixtures("tasks")
@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"source": f"seqio:{PREFIX}botj"}, f"did you mean {PREFIX}both"),
        ({"source": f"seqio:{PREFIX}both@no_such_module"}, "cannot import no_such_module"),
        ({"source": f"seqio:{PREFIX}both", "split": "test"}, "has no split 'test'; set split to one of: train"),
        (
            {"source": f"seqio:{PREFIX}both", "text_field": "inputs"},
            "has no feature 'inputs'; set text_field to one of: .*targets",
        ),
        ({"source": f"seqio:{PREFIX}both", "text_field": "n"}, "feature 'n' holds int32"),
    ],
)
def test_wrong_tasks_are_one_clear_line(settings, says):
    with pytest.raises(InputError, match=says) as caught:
        open_corpus(CorpusConfig(**settings))
    assert "\n" not in str(caught.value)


def test_a_module_that_registers_the_task_is_imported(tmp_path, monkeypatch):
    name = f"{PREFIX}from_module"
    (tmp_path / "registers_a_task.py").write_text(
        f"import seqio, tensorflow as tf\n"
        f"seqio.TaskRegistry.add({name!r}, preprocessors=[], output_features={{}}, source=seqio.FunctionDataSource(\n"
        "    lambda split, shuffle_files, seed=None: tf.data.Dataset.from_tensor_slices({'text': ['hello there']}),\n"
        "    splits=['train']))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert [document.text for document in open_corpus(f"seqio:{name}@registers_a_task")] == ["hello there"]
    seqio().TaskRegistry.remove(name)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A data folder with one prepared builder of two versions."""
    from diversity_jax.core.tensorflow import import_quietly

    tfds = import_quietly("tensorflow_datasets")
    root = tmp_path_factory.mktemp("tfds")
    features = tfds.features.FeaturesDict(
        {"text": tfds.features.Text(), "label": tfds.features.ClassLabel(num_classes=3)}
    )
    import tensorflow as tf

    for version, texts in (("1.0.0", ["old"]), ("1.10.0", [f"text {n}" for n in range(30)])):
        folder = root / "stored" / version
        folder.mkdir(parents=True)
        records = [
            features.serialize_example(features.encode_example({"text": text, "label": n % 3}))
            for n, text in enumerate(texts)
        ]
        with tf.io.TFRecordWriter(str(folder / "stored-train.tfrecord-00000-of-00001")) as writer:
            for record in records:
                writer.write(record)
        split = tfds.core.SplitInfo(name="train", shard_lengths=[len(texts)], num_bytes=sum(map(len, records)))
        template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
        tfds.folder_dataset.write_metadata(
            data_dir=folder, features=features, split_infos=[split], filename_template=template
        )
    return root


def test_a_builder_on_disk_is_read_in_its_order(prepared, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(prepared))
    corpus = open_corpus("tfds:stored")
    documents = list(corpus)
    assert [document.text for document in documents] == [f"text {n}" for n in range(30)]
    assert documents[4].id == "stored/1.10.0:train:5"
    assert documents[4].meta == {"label": 1}
    assert [document.text for document in open_corpus("tfds:stored:1.0.0")] == ["old"]


def test_a_lost_file_of_a_builder_is_one_clear_line(prepared, monkeypatch, tmp_path):
    shutil.copytree(prepared / "stored" / "1.0.0", tmp_path / "stored" / "1.0.0")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    next((tmp_path / "stored" / "1.0.0").glob("*.tfrecord-*")).write_bytes(b"no record at all")
    with pytest.raises(InputError, match=r"stored/1\.0\.0:train: cannot be read") as caught:
        open_corpus("tfds:stored")
    assert "\n" not in str(caught.value)


def test_its_files_are_read_by_themselves_too(prepared):
    (shard,) = (prepared / "stored" / "1.10.0").glob("*.tfrecord-*")
    corpus = open_corpus(str(shard))
    assert [document.text for document in corpus] == [f"text {n}" for n in range(30)]
    assert next(iter(corpus)).meta == {"label": 0}


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"source": "tfds:absent"}, "no folder .*absent; prepared there: stored; set TFDS_DATA_DIR"),
        ({"source": "tfds:stored:9.9.9"}, "no prepared version 9.9.9 .* holds: 1.0.0, 1.10.0"),
        ({"source": "tfds:stored", "split": "test"}, "set split to one of: train"),
        ({"source": "tfds:stored", "text_field": "body"}, "set text_field to one of: .*text"),
        ({"source": "tfds:stored", "text_field": "label"}, "holds int64"),
    ],
)
def test_wrong_builders_are_one_clear_line(prepared, monkeypatch, settings, says):
    monkeypatch.setenv("TFDS_DATA_DIR", str(prepared))
    with pytest.raises(InputError, match=says) as caught:
        open_corpus(CorpusConfig(**settings))
    assert "\n" not in str(caught.value)


def test_examples_are_parsed_as_tensorflow_writes_them(tmp_path):
    from diversity_jax.core.tensorflow import import_quietly

    tf = import_quietly("tensorflow")
    feature = tf.train.Feature
    example = tf.train.Example(
        features=tf.train.Features(
            feature={
                "text": feature(bytes_list=tf.train.BytesList(value=["ünï 漢字".encode()])),
                "ids": feature(int64_list=tf.train.Int64List(value=[0, -1, 1 << 62])),
                "scores": feature(float_list=tf.train.FloatList(value=[0.5, -2.0])),
                "none": feature(),
            }
        )
    ).SerializeToString()
    parsed = {"text": ["ünï 漢字".encode()], "ids": [0, -1, 1 << 62], "scores": [0.5, -2.0], "none": []}
    assert parse_example(example) == parsed
    for ending, options in (("", None), (".gz", "GZIP")):
        path = tmp_path / f"a.tfrecord{ending}"
        with tf.io.TFRecordWriter(str(path), options) as writer:
            for _ in range(3):
                writer.write(example)
        assert [document.text for document in open_corpus(str(path))] == ["ünï 漢字"] * 3


def test_reading_files_imports_no_tensorflow(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    script = (
        f"import sys; from diversity_jax.corpus import open_corpus; list(open_corpus({str(tmp_path / 'a.jsonl')!r})); "
    )
    script += "assert not {'tensorflow', 'seqio', 'jax', 'pyarrow', 'fsspec'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)
