"""Compares our token ids of real documents with transformers', for tokenizer folders of many layouts, before and after
export.

    python scripts/checks/verify_tokenizers.py DATA --python=/venvs/new/bin/python --python=/venvs/4.57/bin/python

Folders are laid out as their makers do (`tests/tokenizer_layouts.py`): real files of DATA where there are any, else
vocabularies trained on its text. Each is imported beside a small model (`model.convert import`), its documents are
prepared to rows, and it is exported again. Then, for each Python that has transformers (4.57 and 5 differ),

    own       documents of 500 whose ids transformers, reading the folder as it was, gives otherwise than we do
    exported  the same of the exported folder, which is to be 0
    text      with what stands around a text, and special tokens, of the exported folder, which is to be 0

and, once, `rows`: documents whose ids in prepared rows are others than ours, and `back`: whose ids our own reading of
the export gives otherwise. It ends with status 1 where a number that is to be 0 is not, except for the layouts whose
export says that it differs.
"""

import argparse
import gzip
import json
import logging
import os
from pathlib import Path
import subprocess
import sys
import tempfile

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import jax
import numpy as np

from diversity_jax.corpus import CorpusConfig, open_corpus
from diversity_jax.model import LlamaConfig, init_params
from diversity_jax.model.checkpoint_io.hugging_face import export_hugging_face
from diversity_jax.model.convert import main as convert
from diversity_jax.prepare.config import Preparation
from diversity_jax.prepare.pipeline import prepare
from diversity_jax.tokenizers.encoders import differing_texts, special_samples
from diversity_jax.tokenizers.sentence_piece import train_tokenizer
from diversity_jax.tokenizers.tokenizer import for_folder, load_tokenizer
from tests import tokenizer_layouts as layouts

DOCUMENTS = (
    ("web_c4_200_full_pages", 100),
    ("stackexchange_sample", 70),
    ("arxiv_latex_sample", 10),
    ("code_java", 60),
    ("wikipedia_paragraphs_boolq", 120),
    ("web_text", 140),
)
TRAINED_ON = (("web_text", 400), ("code_java", 2000), ("stackexchange_sample", 70))
# Loads each folder as transformers does; a folder it cannot read counts as all documents.
_THEIRS = """
import json, logging, sys
logging.disable(logging.WARNING)
from transformers import AutoTokenizer
asked = json.load(open(sys.argv[1]))
found = {}
for name, folder in asked["folders"].items():
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        plain = tokenizer(asked["texts"], add_special_tokens=False)["input_ids"]
        found[name] = {"plain": plain, "text": tokenizer(asked["special"][name])["input_ids"]}
    except Exception as error:
        found[name] = {"error": f"{type(error).__name__}: {str(error)[:100]}"}
json.dump(found, open(sys.argv[2], "w"))
"""


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--python", action="append", default=[], help="with transformers; several times for several")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="  %(message)s")
    texts = [text[:20_000] for name, count in DOCUMENTS for text in read(options.data, name, count)]
    with tempfile.TemporaryDirectory() as scratch:
        folders = build(options.data, Path(scratch) / "own")
        results = {name: round_trip(folder, Path(scratch), texts) for name, folder in folders.items()}
        wrong = report(results, folders, Path(scratch), texts, options.python)
    sys.exit(1 if wrong else 0)


def read(data: Path, name: str, count: int) -> list[str]:
    """The first documents of a file."""
    with gzip.open(data / f"corpora_real/{name}.jsonl.gz", "rt") as file:
        return [json.loads(line)["text"] for _, line in zip(range(count), file, strict=False)]


def build(data: Path, folder: Path) -> dict[str, Path]:
    """Folders by the name of their layout."""
    trained_on = [text for name, count in TRAINED_ON for text in read(data, name, count)]
    vocab = json.loads((data / "tokenizers/gpt2/vocab.json").read_text())
    merges = (data / "tokenizers/gpt2/vocab.bpe").read_text()
    llama = json.loads((data / "tokenizers/llama_tokenizer.json").read_text())
    neox = json.loads((data / "tokenizers/gpt_neox_tokenizer.json").read_text())
    model, config = (data / "tokenizers/llama2_tokenizer.model").read_bytes(), layouts.LLAMA2_CONFIG
    chat = {**config, "legacy": True, "eos_token": layouts.token("<|im_end|>")}
    added = {"<|im_end|>": 32000, "<|im_start|>": 32001}
    folders = [
        layouts.llama_json(folder / "llama tokenizer.json", llama),
        layouts.sentencepiece(folder / "llama 2 tokenizer.model", model, {**config, "legacy": True}),
        layouts.sentencepiece(folder / "llama 2, legacy off", model, config),
        layouts.sentencepiece(folder / "llama 2, ChatML added", model, chat, added_tokens=added),
        layouts.llama3(folder / "llama 3", trained_on, 8000),
        layouts.gpt2(folder / "GPT-2 vocab, merges", vocab, merges),
        layouts.gpt2(folder / "CodeGen, added tokens", vocab, merges, codegen=True),
        layouts.neox(folder / "GPT-NeoX", neox),
        layouts.mistral(folder / "Mistral", llama),
        layouts.qwen(folder / "Qwen vocab, merges", trained_on, 6000, tokenizer_json=False),
        layouts.qwen(folder / "Qwen tokenizer.json", trained_on, 6000, tokenizer_json=True),
    ]
    for kind in ("bpe", "unigram"):
        path = layouts.write(folder / f"trained here, {kind}", config={"model_type": "llama", "eos_token_id": 2})
        train_tokenizer(trained_on, path / "tokenizer.model", vocab_size=4000, model_type=kind)
        folders.append(path)
    return {path.name: path for path in folders}


def round_trip(folder: Path, scratch: Path, texts: list[str]) -> dict:
    """Imports, prepares and exports; the ids on the way."""
    print(folder.name, flush=True)
    vocabulary, target = load_tokenizer(str(folder)), scratch / "trip" / folder.name
    size = vocabulary.size
    config = LlamaConfig(vocab_size=size, hidden_size=8, intermediate_size=8, num_layers=1, num_heads=1, max_length=64)
    files = {
        name: (folder / name).read_bytes()
        for name in ("config.json", "generation_config.json")
        if (folder / name).exists()
    }
    model = target / "model"
    export_hugging_face(config, jax.device_get(init_params(config, jax.random.key(0))), model, token_ids={})
    named = {key: value for key, value in json.loads(files["config.json"]).items() if key.endswith("token_id")}
    (model / "config.json").write_text(json.dumps(json.loads((model / "config.json").read_text()) | named))
    for path in folder.iterdir():
        if path.name != "config.json":
            (model / path.name).write_bytes(path.read_bytes())
    convert(["import", str(model), str(target / "imported")])
    convert(["export", str(target / "imported"), str(target / "exported")])
    ours = vocabulary.encode_each(texts)
    used = for_folder(vocabulary, folder)
    begin = used.special.get("bos_token") or "\n"  # a text that begins with it gets no second one here
    special = [text for text in special_samples(vocabulary) if not text.startswith(begin)]
    content = json.loads((target / "exported" / "tokenizer.json").read_text())
    return {
        "size": size,
        "plain": ours,
        "special": special,
        "text": used.encode_batch(special),
        "rows": rows_differ(vocabulary, texts, ours, target),
        "back": differ(ours, load_tokenizer(str(target / "exported")).encode_each(texts)),
        "exported": target / "exported",
        "exact": not differing_texts(content, vocabulary, special=False),
        "exact_special": not differing_texts(content, vocabulary),
    }


def rows_differ(vocabulary, texts: list[str], ours: list[list[int]], scratch: Path) -> int:
    """Documents that stand in prepared rows with other ids."""
    scratch.mkdir(parents=True, exist_ok=True)
    with (scratch / "texts.jsonl").open("w") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in texts)
    longest = max(map(len, ours))
    settings = Preparation(name="docs", kind="real", sequence_length=longest)
    corpus = open_corpus(CorpusConfig(source=str(scratch / "texts.jsonl")))
    manifest = prepare(corpus, vocabulary, scratch / "rows", settings, processes=1, show=False)
    shards = manifest.splits["train"].shards
    tokens = np.concatenate([np.fromfile(manifest.folder / shard.file, manifest.dtype) for shard in shards])
    rows = tokens.reshape(-1, longest + 1)
    joined = [row.tobytes() for row in rows]  # rows are permuted, so documents are looked for within and across them
    begin = [] if manifest.begin_of_text_id is None else [manifest.begin_of_text_id]
    stream = np.concatenate([[*begin, *ids, vocabulary.end_of_text_id] for ids in ours]).astype(manifest.dtype)
    expected = {stream[at : at + longest + 1].tobytes() for at in range(0, len(stream) - longest, longest + 1)}
    return len(expected.symmetric_difference(joined))


def differ(ours: list[list[int]], theirs: list[list[int]]) -> int:
    """How many documents have other ids."""
    return sum(a != b for a, b in zip(ours, theirs, strict=True))


def report(results: dict, folders: dict[str, Path], scratch: Path, texts: list[str], pythons: list[str]) -> bool:
    """Prints the table; whether a number is not 0 that is to be."""
    wrong = False
    print(f"{'layout':<24}{'ids':>8}{'rows':>6}{'back':>6}")
    for name, result in results.items():
        print(f"{name:<24}{result['size']:>8,}{result['rows']:>6}{result['back']:>6}")
        wrong |= bool(result["rows"] or (result["back"] and result["exact"]))
    special = {name: result["special"] for name, result in results.items()}
    for python in pythons:
        version_command = [python, "-c", "import transformers; print(transformers.__version__)"]
        version = subprocess.run(version_command, capture_output=True, text=True, check=True).stdout.strip()
        answers = {}
        for kind, paths in (("own", folders), ("exported", {n: r["exported"] for n, r in results.items()})):
            asked, answer = scratch / "asked.json", scratch / "found.json"
            named = {name: str(path) for name, path in paths.items()}
            asked.write_text(json.dumps({"folders": named, "texts": texts, "special": special}))
            environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
            command = [python, "-c", _THEIRS, str(asked), str(answer)]
            subprocess.run(command, check=True, env=environment, stderr=subprocess.DEVNULL)
            answers[kind] = json.loads(answer.read_text())
        print(f"\ntransformers {version:<11}{'own':>8}{'exported':>10}{'text':>6}")
        for name, result in results.items():
            own, exported = answers["own"][name], answers["exported"][name]
            if "error" in exported:
                print(f"{name:<24}{exported['error']}")
                wrong = True
                continue
            counts = differ(result["plain"], exported["plain"]), differ(result["text"], exported["text"])
            before = "error" if "error" in own else differ(result["plain"], own["plain"])
            note = "" if result["exact_special"] else "   as its line says"
            print(f"{name:<24}{before:>8}{counts[0]:>10}{counts[1]:>6}{note}")
            wrong |= bool((result["exact"] and counts[0]) or (result["exact_special"] and counts[1]))
    return wrong


if __name__ == "__main__":
    main()
