"""Tasks of ten kinds, over made-up facts about rivers; it knows nothing of this project.

span corruption, prefix LM, question answering, tasks from SeqIO's cache, rate functions, nested mixtures, several
vocabularies (bytes, SentencePiece, passed through), several features, preprocessors with `sequence_length`, and sources
without counts.
"""

import functools
import io
import json
import os
import tempfile

import sentencepiece
import seqio
import tensorflow as tf

RIVERS = ("Aar", "Düna", "Elbe", "Fulda", "Isar", "Lech", "Main", "Naab", "Oder", "Saale")
TEXTS = [f"The {name} is {60 + 7 * i} miles long and flows past {3 + i} towns." for i, name in enumerate(RIVERS)]
QUESTIONS = [f"How long is the {name}?" for name in RIVERS]
ANSWERS = [f"{60 + 7 * i} miles" for i in range(len(RIVERS))]
HINTS = [f"Ask the ferrymen of the {name}." for name in RIVERS]

BYTES = seqio.ByteVocabulary()
SENTINEL_BYTES = seqio.ByteVocabulary(extra_ids=16)


@functools.cache
def sentencepiece_file():
    """A SentencePiece model of the facts, with T5's special ids."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*TEXTS, *QUESTIONS, *ANSWERS, *HINTS] * 4),
        model_writer=model,
        vocab_size=120,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    path = os.path.join(tempfile.mkdtemp(), "rivers.model")
    with open(path, "wb") as file:
        file.write(model.getvalue())
    return path


PIECES = seqio.SentencePieceVocabulary(sentencepiece_file())
SENTINEL_PIECES = seqio.SentencePieceVocabulary(sentencepiece_file(), extra_ids=16)
IDS = seqio.PassThroughVocabulary(size=512)


def columns(split, shuffle_files, seed=None, count=len(RIVERS)):
    return tf.data.Dataset.from_tensor_slices(
        {"text": TEXTS[:count], "question": QUESTIONS[:count], "answer": ANSWERS[:count], "hint": HINTS[:count]}
    )


def source(count=len(RIVERS), counted=True):
    examples = {"train": count} if counted else None
    return seqio.FunctionDataSource(
        functools.partial(columns, count=count), splits=["train"], num_input_examples=examples
    )


def rekeyed(**names):
    return functools.partial(seqio.preprocessors.rekey, key_map=names)


def chunks_of_inputs_length(dataset, sequence_length):
    """As T5's `split_tokens_to_inputs_length`: pieces of the tokens, and no token lost."""
    length = sequence_length["inputs"]

    def split(example):
        tokens = example["targets"]
        parts = tf.RaggedTensor.from_row_lengths(
            tokens, tf.concat([tf.fill([tf.size(tokens) // length], length), [tf.size(tokens) % length]], 0)
        )
        return tf.data.Dataset.from_tensor_slices(parts).filter(lambda part: tf.size(part) > 0)

    return dataset.flat_map(split).map(lambda tokens: {"targets": tokens})


def corrupt_span(dataset, sequence_length, output_features):
    """As T5's `denoise` with one span: its middle third goes from `inputs`, for a sentinel, to `targets`."""
    del sequence_length
    sentinel = output_features["inputs"].vocabulary.vocab_size - 1

    def corrupt(example):
        tokens = example["targets"]
        first, last = tf.size(tokens) // 3, 2 * tf.size(tokens) // 3
        return {
            "inputs": tf.concat([tokens[:first], [sentinel], tokens[last:]], 0),
            "targets": tf.concat([[sentinel], tokens[first:last]], 0),
        }

    return dataset.map(corrupt)


def corrupt_kept_span(dataset, output_features):
    """As `corrupt_span`, with the clean text still beside it."""
    sentinel = output_features["inputs"].vocabulary.vocab_size - 1

    def corrupt(example):
        tokens = example["targets"]
        half = tf.size(tokens) // 2
        return {
            **example,
            "inputs": tf.concat([tokens[:half], [sentinel]], 0),
            "targets": tf.concat([[sentinel], tokens[half:]], 0),
        }

    return dataset.map(corrupt)


def prefix_lm(dataset, output_features):
    def split(example):
        tokens = example["targets"]
        half = tf.size(tokens) // 2
        return {"inputs": tokens[:half], "targets": tokens[half:]}

    return dataset.map(split)


def as_ids(dataset):
    return dataset.map(lambda example: {"targets": tf.cast(tf.io.decode_raw(example["text"], tf.uint8), tf.int32) + 3})


def with_weights(dataset):
    return dataset.map(lambda example: {**example, "weights": tf.ones_like(example["targets"])})


def features(*names, vocabulary=BYTES):
    return {name: seqio.Feature(vocabulary, add_eos=name == "targets") for name in names}


BOTH = ("inputs", "targets")
TOKENIZED = (seqio.preprocessors.tokenize, seqio.preprocessors.append_eos)
ASKED = (rekeyed(inputs="question", targets="answer"), *TOKENIZED)


def add(name, preprocessors, output_features, **options):
    seqio.TaskRegistry.add(
        f"trellis_{name}",
        source=options.pop("source", source()),
        preprocessors=list(preprocessors),
        output_features=output_features,
        **options,
    )


def exact_match(targets, predictions):
    return {"exact_match": sum(map(str.__eq__, targets, predictions)) / len(targets)}


add("span", (rekeyed(targets="text"), seqio.preprocessors.tokenize, chunks_of_inputs_length, corrupt_span,
             seqio.preprocessors.append_eos), features(*BOTH, vocabulary=SENTINEL_PIECES))  # fmt: skip
add("span_bytes", (rekeyed(targets="text"), seqio.preprocessors.tokenize, corrupt_kept_span,
                   seqio.preprocessors.append_eos), features(*BOTH, vocabulary=SENTINEL_BYTES))  # fmt: skip
add("prefix", (rekeyed(targets="text"), seqio.preprocessors.tokenize, prefix_lm, seqio.preprocessors.append_eos),
    features(*BOTH, vocabulary=PIECES))  # fmt: skip
add("answers", ASKED, features(*BOTH), metric_fns=[exact_match])
add("cached", (rekeyed(targets="text"), *TOKENIZED, seqio.CacheDatasetPlaceholder(required=True)), features("targets"))
add("plain", (rekeyed(targets="text"), *TOKENIZED), features("targets"))
add("few", (rekeyed(targets="hint"), *TOKENIZED), features("targets"), source=source(3))
add("pieces", (rekeyed(targets="text"), *TOKENIZED), features("targets", vocabulary=PIECES))
add("ids", (as_ids,), {"targets": seqio.Feature(IDS, add_eos=False)})
add("several", (rekeyed(question="question", context="text", answer="answer"), *TOKENIZED),
    features("question", "context", "answer"))  # fmt: skip
add("weighted", (rekeyed(targets="text"), *TOKENIZED, with_weights),
    features("targets") | {"weights": seqio.Feature(IDS, add_eos=False)})  # fmt: skip
add("trimmed", (rekeyed(targets="text"), *TOKENIZED, chunks_of_inputs_length), features("targets"))
add("uncounted", (rekeyed(targets="hint"), *TOKENIZED), features("targets"), source=source(counted=False))

by_examples = functools.partial(seqio.mixing_rate_num_examples, maximum=8)
seqio.MixtureRegistry.add("trellis_rates", ["trellis_plain", "trellis_few"], default_rate=by_examples)
seqio.MixtureRegistry.add("trellis_no_rates", ["trellis_plain", "trellis_uncounted"], default_rate=by_examples)
seqio.MixtureRegistry.add("trellis_nested", [("trellis_rates", 1.0), ("trellis_uncounted", 1.0)])


def write_cache(folder, name="trellis_cached"):
    """The task in the form in which `seqio_cache_tasks` leaves it."""
    task = seqio.TaskRegistry.get(name)
    where = os.path.join(folder, name)
    os.makedirs(where)
    dataset = task.preprocess_precache(task.source.get_dataset("train", shuffle=False))
    examples = list(dataset.as_numpy_iterator())
    with tf.io.TFRecordWriter(seqio.utils.get_cached_tfrecord_prefix(where, "train") + "-00000-of-00001") as writer:
        for example in examples:
            writer.write(seqio.utils.dict_to_tfexample(example).SerializeToString())
    specs = {
        name: {"dtype": spec.dtype.name, "shape": spec.shape.as_list()} for name, spec in dataset.element_spec.items()
    }
    info = {"num_shards": 1, "features": specs, "seqio_version": seqio.__version__}
    for path, value in (
        (seqio.utils.get_cached_info_path(where, "train"), info),
        (seqio.utils.get_cached_stats_path(where, "train"), {"examples": len(examples)}),
        (os.path.join(where, "COMPLETED"), {}),
    ):
        with open(path, "w") as file:
            json.dump(value, file)
