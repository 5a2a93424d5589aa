"""Instruction data of every source gives the same rows bit for bit, with foreign templates too."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diversity_jax import train
from diversity_jax.core import config as config_files
from diversity_jax.core.errors import InputError
from diversity_jax.corpus import CorpusConfig, open_corpus
from diversity_jax.evaluation.load_model import open_model
from diversity_jax.mixtures.config import Component, GatePolicy, MixtureConfig
from diversity_jax.mixtures.loader import as_arrays
from diversity_jax.mixtures.mixture import Mixture
from diversity_jax.model.checkpoint_io.hugging_face import export_hugging_face
from diversity_jax.model.cross_entropy import loss
from diversity_jax.prepare.config import Chat
from diversity_jax.training.config import OptimizerConfig, TrainConfig
from diversity_jax.training.run import Config
from tests.json_lines import json_lines
from tests.sft_folders import WORDS, build_components, write_examples
from tests.small_llama import random_params, small_config
from tests.test_corpus_conversations import CHATML

TASK = "test_sft_sources_"
MODEL = small_config(vocab_size=304, max_length=256, num_kv_heads=2, loss_chunk_bytes=1 << 30)


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """Alpaca records, and the file that holds them."""
    path = write_examples(tmp_path_factory.mktemp("records") / "alpaca.jsonl", 60)
    return path, json_lines(path)


def asked(record):
    return f"{record['instruction']}\n\n{record['input']}"


@pytest.fixture(scope="module")
def corpora(records, tmp_path_factory):
    """By form, the same examples as `CorpusConfig`s: JSONL, Parquet, TFDS and SeqIO."""
    path, examples = records
    folder = tmp_path_factory.mktemp("sources")
    turns = [[("user", asked(example)), ("assistant", example["output"])] for example in examples]
    messages = [
        {"messages": [{"role": role, "content": content} for role, content in turn_list]} for turn_list in turns
    ]
    (folder / "messages.jsonl").write_text("".join(json.dumps(line) + "\n" for line in messages))
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(examples), folder / "alpaca.parquet")
    _write_tfds(folder / "tfds", turns, examples)
    _register_tasks(examples)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TFDS_DATA_DIR", str(folder / "tfds"))
        sources = {
            "alpaca fields": (str(path), "alpaca"),
            "messages": (str(folder / "messages.jsonl"), "messages"),
            "alpaca columns": (str(folder / "alpaca.parquet"), "auto"),
            "tfds messages": ("tfds:chats", "messages"),
            "tfds shared": ("tfds:shared", "auto"),
            "tfds alpaca": ("tfds:alpaca", "auto"),
            "seqio text": (f"seqio:{TASK}text", "pairs"),
            "seqio ids": (f"seqio:{TASK}ids", "pairs"),
            "seqio mixture": (f"seqio:{TASK}mixture", "auto"),
        }
        yield {name: CorpusConfig(source=source, conversations=form) for name, (source, form) in sources.items()}
    from diversity_jax.core.tensorflow import seqio

    seqio.MixtureRegistry.remove(TASK + "mixture")
    for name in ("text", "ids"):
        seqio.TaskRegistry.remove(TASK + name)


def _write_tfds(root, turns, alpaca):
    """Three prepared builders: turns of role and content, of from and value, and Alpaca's columns."""
    from diversity_jax.core.tensorflow import import_quietly

    tfds = import_quietly("tensorflow_datasets")
    import tensorflow as tf

    text, theirs = tfds.features.Text(), {"user": "human", "assistant": "gpt"}
    builders = {
        "chats": (
            {"messages": tfds.features.Sequence({"role": text, "content": text})},
            [{"messages": [{"role": role, "content": content} for role, content in turn_list]} for turn_list in turns],
        ),
        "shared": (
            {"conversations": tfds.features.Sequence({"from": text, "value": text})},
            [
                {"conversations": [{"from": theirs[role], "value": content} for role, content in turn_list]}
                for turn_list in turns
            ],
        ),
        "alpaca": (dict.fromkeys(("instruction", "input", "output"), text), alpaca),
    }
    for name, (features, examples) in builders.items():
        folder = root / name / "1.0.0"
        folder.mkdir(parents=True)
        known = tfds.features.FeaturesDict(features)
        written = [known.serialize_example(known.encode_example(example)) for example in examples]
        with tf.io.TFRecordWriter(str(folder / f"{name}-train.tfrecord-00000-of-00001")) as writer:
            for example in written:
                writer.write(example)
        split = tfds.core.SplitInfo(name="train", shard_lengths=[len(written)], num_bytes=sum(map(len, written)))
        template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
        tfds.folder_dataset.write_metadata(
            data_dir=folder, features=known, split_infos=[split], filename_template=template
        )


def _register_tasks(examples):
    """FLAN's inputs and targets: a task that keeps the text beside its ids, one that has ids alone, and a mixture of
    one of them.
    """
    import tensorflow as tf

    from diversity_jax.core.tensorflow import seqio

    def source(split, shuffle_files, seed=None):
        return tf.data.Dataset.from_tensor_slices(
            {"inputs": [asked(example) for example in examples], "targets": [example["output"] for example in examples]}
        )

    def only_ids(dataset):
        return dataset.map(lambda example: {"inputs": example["inputs"], "targets": example["targets"]})

    features = {
        name: seqio.Feature(seqio.ByteVocabulary(), add_eos=name == "targets") for name in ("inputs", "targets")
    }
    tokenizing = [seqio.preprocessors.tokenize, seqio.preprocessors.append_eos]
    for name, preprocessors in (("text", tokenizing), ("ids", [*tokenizing, only_ids])):
        seqio.TaskRegistry.add(
            TASK + name,
            source=seqio.FunctionDataSource(source, splits=["train"]),
            preprocessors=preprocessors,
            output_features=features,
        )
    seqio.MixtureRegistry.add(TASK + "mixture", [(TASK + "text", 1.0)])


def rows_of(mixture):
    batch = mixture.loader(batch_size=16).batch(0)
    return batch.tokens, batch.targets, batch.starts


def test_every_source_gives_the_same_rows_masks_and_boundaries(corpora, tmp_path):
    rows_by_source = {
        name: rows_of(build_components(tmp_path / name.replace(" ", "_"), {"x": source}, {"x": 1}))
        for name, source in corpora.items()
    }
    first = rows_by_source.pop("alpaca fields")
    assert first[1].any()
    for name, rows in rows_by_source.items():
        for ours, expected in zip(rows, first, strict=True):
            np.testing.assert_array_equal(ours, expected, err_msg=name)


def test_documents_say_where_they_come_from(corpora):
    assert next(iter(open_corpus(corpora["tfds messages"]))).id == "chats/1.0.0:train:1"
    assert next(iter(open_corpus(corpora["seqio ids"]))).id == f"{TASK}ids:1"


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """A Hugging Face Llama with a tokenizer of its own and ChatML as its template."""
    import tokenizers

    folder = tmp_path_factory.mktemp("theirs")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([" ".join(WORDS)] * 3, trainer)
    export_hugging_face(
        MODEL, jax.tree.map(np.asarray, random_params(MODEL, scale=0.1)), folder, token_ids={"eos_token_id": 0}
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "chat_template": CHATML}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="module")
def tuned(records, theirs, tmp_path_factory):
    """Two steps from that folder, in its own template."""
    output = tmp_path_factory.mktemp("tuned")
    corpus = CorpusConfig(source=str(records[0]), conversations="alpaca")
    component = Component(name="alpaca", kind="synthetic", corpus=corpus, share=1, policy=GatePolicy(ungated=True))
    fields = {"sequence_length": 192, "validation_share": 0.1, "processes": 1, "shares_of": "epochs"}
    chat = Chat(template="tokenizer", system_prompt="Turn words.")
    config = Config(
        output_dir=str(output),
        mixture=MixtureConfig(name="theirs", components=(component,), vocabulary=str(theirs), chat=chat, **fields),
        model=MODEL,
        optimizer=OptimizerConfig(learning_rate=1e-3, weight_decay=0.0),
        train=TrainConfig(
            steps=2, batch_size=8, eval_batches=1, init_from=str(theirs), tensorboard=False, compilation_cache=None
        ),
    )
    train.main(config)
    return output


def test_an_imported_llama_is_tuned_in_its_own_template_and_asked_in_it_afterwards(theirs, tuned):
    transformers = pytest.importorskip("transformers")
    model = open_model(tuned)
    turns = [{"role": "system", "content": "Turn words."}, {"role": "user", "content": "Turn round.\n\noak elm"}]
    text, ids = model.encode_chat(turns[1:])
    tokenizer = transformers.AutoTokenizer.from_pretrained(theirs)
    assert text == tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert ids == tokenizer(text, add_special_tokens=False)["input_ids"]
    assert model.tokenizer.stop_ids == {
        tokenizer.convert_tokens_to_ids(name) for name in ("<|endoftext|>", "<|im_end|>")
    }


def test_a_tokenizer_that_a_run_was_not_trained_with_is_refused(theirs, tuned):
    assert open_model(tuned, tokenizer=str(theirs)).tokenizer.vocabulary.size == 279
    with pytest.raises(
        InputError, match=r"was trained with another tokenizer \(huggingface, 279 ids\) than bytes \(bytes, 259 ids\)"
    ):
        open_model(tuned, tokenizer="bytes")


def test_in_a_foreign_template_too_only_answers_count_and_neighbours_change_nothing(tuned):
    mixture = Mixture.load(tuned / "mixture")
    params = jax.tree.map(jnp.asarray, random_params(MODEL))
    losses = jax.jit(lambda batch: loss(MODEL, params, batch)[1]["losses"])
    rows = mixture.loader(batch_size=8).batch(0)
    arrays = {
        name: value[:1] for name, value in as_arrays(rows, mixture.boundaries(attend_across_documents=True)).items()
    }
    before, mask = losses(arrays)[0], arrays["loss_mask"][0]
    tokenizer = open_model(tuned).tokenizer
    answers = [
        tokenizer.decode(part) for part in np.split(arrays["tokens"][0], np.flatnonzero(np.diff(mask)) + 1)[1::2]
    ]
    assert answers
    assert all(
        set(answer.removesuffix("<|im_end|>\n").removesuffix("<|im_end|>").split()) <= set(WORDS) for answer in answers
    )
    assert not before[mask[1:] == 0].any()
    begins = [*np.flatnonzero(rows.starts[0]), len(mask)]
    for begin, end in itertools.pairwise(begins):
        changed = {**arrays, "tokens": arrays["tokens"].copy()}
        changed["tokens"][0, begin:end] = np.random.default_rng(0).integers(3, 300, end - begin)
        elsewhere = np.ones(len(mask) - 1, bool)
        elsewhere[max(begin - 1, 0) : end - 1] = False
        np.testing.assert_array_equal(before[elsewhere], losses(changed)[0][elsewhere])


def test_the_documented_command_takes_the_model_of_another_folder():
    given = [
        "--config",
        "configs/sft_350m.py",
        "--config.model=none",
        "--config.mixture.vocabulary=bytes",
        "--config.train.lora.rank=4",
    ]
    config = config_files.parse(given, Config)
    assert config.model is None
    assert (config.mixture.vocabulary, config.train.lora.rank) == ("bytes", 4)
    with pytest.raises(InputError, match=r"--config\.optimizer=none: is not a value of type"):
        config_files.parse([*given, "--config.optimizer=none"], Config)
