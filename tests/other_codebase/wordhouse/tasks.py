"""Tasks and a mixture as another team would register them."""

import functools
import random

import seqio
import tensorflow as tf

VOCABULARY = seqio.ByteVocabulary()
FEATURES = {"targets": seqio.Feature(VOCABULARY, add_eos=True)}
WORDS = {
    "tales": ["once", "there", "was", "a", "miller", "who", "had", "three", "sons"],
    "lists": ["milk", "bread", "salt", "soap"],
}


def _texts(kind, split, shuffle_files, seed=None):
    source = random.Random(f"{kind} {split}")
    count, longest = (200, 60) if kind == "tales" else (400, 6)
    texts = [" ".join(source.choices(WORDS[kind], k=source.randint(3, longest))) for _ in range(count)]
    return tf.data.Dataset.from_tensor_slices({"text": texts})


for kind in WORDS:
    seqio.TaskRegistry.add(
        f"wordhouse_{kind}",
        source=seqio.FunctionDataSource(functools.partial(_texts, kind), splits=["train", "validation"]),
        preprocessors=[
            functools.partial(seqio.preprocessors.rekey, key_map={"targets": "text"}),
            seqio.preprocessors.tokenize,
            seqio.preprocessors.append_eos,
        ],
        output_features=FEATURES,
    )

seqio.MixtureRegistry.add("wordhouse_mix", [("wordhouse_tales", 3.0), ("wordhouse_lists", 1.0)])
