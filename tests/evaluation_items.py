"""Benchmark files of a few made-up items, in the fields of the eight benchmarks, and a small model to judge by them."""

import gzip
import json
from pathlib import Path

import jax
import numpy as np

from diversity_jax.evaluation.load_model import LanguageModel, language_model
from diversity_jax.model import MeshConfig
from diversity_jax.tokenizers.tokenizer import ByteTokenizer, for_run
from tests.small_llama import random_params, small_config

ARC = [
    {
        "id": f"made-up-{number}",
        "question": question,
        "choices": {"text": answers, "label": ["A", "B", "C", "D"][: len(answers)]},
        "answerKey": key,
    }
    for number, (question, answers, key) in enumerate(
        [
            ("Which of these floats on water?", ["a cork", "a nail", "a brick", "a coin"], "A"),
            ("What does a kettle do to water?", ["freezes it", "heats it", "salts it"], "B"),
            ("Where does a mole live?", ["in a tree", "in the sea", "under the ground", "on ice"], "C"),
        ]
    )
]
BOOLQ = [
    {
        "passage": "The harbour of Tilmouth freezes in most winters. Ships wait outside.",
        "question": "does tilmouth freeze",
        "label": 1,
    },
    {"passage": "Sorrel is a herb. " * 12, "question": "is sorrel a metal", "label": 0},
]
SIQA = [
    {
        "context": "Ines lent Bo her umbrella.",
        "question": "How does Bo feel?",
        "answerA": "thankful",
        "answerB": "angry",
        "answerC": "asleep",
        "label": "1",
    },
    {
        "context": "Per lost the key of the shed.",
        "question": "What does Per do next?",
        "answerA": "sing",
        "answerB": "look for it",
        "answerC": "swim",
        "label": "2",
    },
]
WINOGRANDE = [
    {
        "sentence": "The vase did not fit in the box because the _ was too wide.",
        "option1": "vase",
        "option2": "box",
        "answer": "1",
    },
    {"sentence": "Lena thanked Maud because _ had helped her.", "option1": "Lena", "option2": "Maud", "answer": "2"},
]
PIQA = [
    {"goal": "Keep a door open", "sol1": "put a wedge under it", "sol2": "put a feather under it", "label": 0},
    {"goal": "Cool soup", "sol1": "cover it with a blanket", "sol2": "stir it", "label": 1},
]
COPA = [
    {
        "premise": "The lamp went out.",
        "choice1": "The bulb was old.",
        "choice2": "It was Monday.",
        "question": "cause",
        "label": 0,
    },
    {
        "premise": "He spilt the milk.",
        "choice1": "The sun rose.",
        "choice2": "The floor got wet.",
        "question": "effect",
        "label": 1,
    },
]
HELLASWAG = [
    {
        "activity_label": "Baking",
        "ctx_a": "A woman kneads dough on a table.",
        "ctx_b": "she",
        "endings": ["puts it in the oven.", "flies over the roof.", "paints the [title] door red.", "counts to nine."],
        "label": "0",
    }
]
FILES = {
    "arc_challenge_test": ARC,
    "arc_easy_test": ARC[::-1],
    "boolq_validation": BOOLQ,
    "siqa_validation": SIQA,
    "winogrande_xl_validation": WINOGRANDE,
    "piqa_validation": PIQA,
    "copa_validation": COPA,
    "hellaswag_validation": HELLASWAG,
}


def write_items(folder: Path, files=FILES) -> Path:
    """One gzipped file a benchmark."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, items in files.items():
        with gzip.open(folder / f"{name}.jsonl.gz", "wt", encoding="utf-8") as file:
            file.writelines(json.dumps(item) + "\n" for item in items)
    return folder


def byte_model(mesh: MeshConfig | None = None, **fields) -> LanguageModel:
    """A small float32 model over bytes, on one device unless a mesh is given."""
    config = small_config(**({"vocab_size": 260, "num_kv_heads": 2, "max_length": 256} | fields))
    mesh = mesh or MeshConfig(data=-1, fsdp=1)
    return language_model(
        "tiny", config, jax.tree.map(np.asarray, random_params(config)), for_run(ByteTokenizer()), mesh
    )
