"""Small vocabularies and mixtures of bytes for tests of what begins a document."""

import itertools
import json
from pathlib import Path

import tokenizers

from diversity_jax.mixtures.builder import build
from diversity_jax.mixtures.config import Component, GatePolicy, MixtureConfig
from diversity_jax.mixtures.mixture import Mixture
from diversity_jax.tokenizers.document_start import DOCUMENT_STARTS
from tests.test_model_gguf import train_sentencepiece

END, BOS, LENGTH = 1, 3, 63
TEXTS = [f"{word} is what number {number} says." for number, word in enumerate(["one", "a door", "ink", "Zen", "x"])]
SETTINGS = list(itertools.product(DOCUMENT_STARTS, (True, False)))


def byte_vocabulary(folder: Path, *, bos: str | None = "<s>", adds: bool = False) -> Path:
    """A `tokenizer.json` of bytes: 0 to 3 are special, byte b is b + 4; with `adds`, `bos` stands before every text."""
    special = ["<|pad|>", "<|endoftext|>", "<|unk|>", *([bos] if bos and bos != "<|endoftext|>" else [])]
    own, others = {*range(33, 127), *range(0xA1, 0xAD), *range(0xAE, 0x100)}, iter(range(256, 512))
    characters = [chr(byte if byte in own else next(others)) for byte in range(256)]
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.BPE({text: i for i, text in enumerate([*special, *characters])}, [])
    )
    tokenizer.add_special_tokens(special)
    byte_level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer, tokenizer.decoder = byte_level, tokenizers.decoders.ByteLevel()
    if adds:
        pairs = [(bos, tokenizer.token_to_id(bos))]
        tokenizer.post_processor = tokenizers.processors.TemplateProcessing(f"{bos} $A", special_tokens=pairs)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


def write_texts(path: Path, texts=TEXTS, times: int = 40) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for _ in range(times) for text in texts))
    return str(path)


def mixture_config(folder: Path, setting: str, vocabulary: Path | str, **fields) -> MixtureConfig:
    policy = GatePolicy(ungated=True)
    part = Component(name="part", kind="real", corpus=write_texts(folder / "texts.jsonl"), share=1.0, policy=policy)
    asked = {"name": "made", "components": (part,), "sequence_length": LENGTH, "validation_share": 0.3, "processes": 1}
    return MixtureConfig(vocabulary=str(vocabulary), document_start=setting, **asked | fields)


def built(folder: Path, setting: str, vocabulary: Path | str, **fields) -> Mixture:
    return build(mixture_config(folder, setting, vocabulary, **fields), folder / "mixture", lambda corpora: {})


def llama_folder(folder: Path, settings_file: dict) -> Path:
    train_sentencepiece(folder / "tokenizer.model")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings_file))
    return folder
