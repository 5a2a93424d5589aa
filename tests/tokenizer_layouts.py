"""Tokenizer folders in the layouts that model makers publish: files, settings, splitters and added tokens."""

from collections.abc import Sequence
import json
from pathlib import Path

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|DIGITS"
_OTHERS = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3, QWEN = (_WORDS.replace("DIGITS", digits) + _OTHERS for digits in (r"\p{N}{1,3}", r"\p{N}"))
CODEGEN_ADDED = [" " * width for width in range(31, 1, -1)] + ["\t" * width for width in range(9, 1, -1)]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def token(content: str, *, special: bool = True, normalized: bool = False) -> dict:
    """An added token as `tokenizer_config.json` has it."""
    flags = {"__type": "AddedToken", "lstrip": False, "rstrip": False, "single_word": False}
    return {"content": content, "normalized": normalized, "special": special, **flags}


def write(folder: Path, **files: object) -> Path:
    """A folder with JSON files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def byte_level(texts: Sequence[str], size: int, words: str, *, ignore_merges: bool = False, nfc: bool = False):
    """A byte-level BPE of the `tokenizers` library, trained on texts, that splits words by an expression."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    split = pre_tokenizers.Split(Regex(words), "isolated")
    spelt = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, spelt])
    tokenizer.decoder = decoders.ByteLevel()
    if nfc:
        tokenizer.normalizer = normalizers.NFC()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def llama3(folder: Path, texts: Sequence[str], size: int) -> Path:
    """tokenizer.json with ignore_merges, a template that begins with `<|begin_of_text|>`, three names of ends."""
    from tokenizers import processors

    tokenizer = byte_level(texts, size, LLAMA3, ignore_merges=True)
    names = [
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eom_id|>",
        "<|eot_id|>",
    ]
    tokenizer.add_special_tokens([*names, *(f"<|reserved_special_token_{i}|>" for i in range(10))])
    begin = tokenizer.token_to_id(names[0])
    template = processors.TemplateProcessing(
        single="<|begin_of_text|> $A",
        pair="<|begin_of_text|> $A <|begin_of_text|> $B",
        special_tokens=[(names[0], begin)],
    )
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    ends = [tokenizer.token_to_id(name) for name in ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>")]
    added = {str(i): token(t.content) for i, t in tokenizer.get_added_tokens_decoder().items()}
    config = {
        "added_tokens_decoder": added,
        "bos_token": names[0],
        "eos_token": "<|eot_id|>",
        "clean_up_tokenization_spaces": True,
        "model_max_length": 131072,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    write(
        folder,
        tokenizer=json.loads(tokenizer.to_str()),
        tokenizer_config=config,
        special_tokens_map={"bos_token": token(names[0]), "eos_token": token("<|eot_id|>")},
        config={"model_type": "llama", "bos_token_id": begin, "eos_token_id": ends},
        generation_config={"bos_token_id": begin, "eos_token_id": ends},
    )
    return folder


def qwen(folder: Path, texts: Sequence[str], size: int, *, tokenizer_json: bool) -> Path:
    """vocab.json and merges.txt of Qwen2's class, and the added tokens in its settings; perhaps a tokenizer.json."""
    tokenizer = byte_level(texts, size, QWEN, nfc=True)
    model = json.loads(tokenizer.to_str())["model"]
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    added = {str(len(model["vocab"]) + i): token(name) for i, name in enumerate(names)}
    added[str(len(model["vocab"]) + 3)] = token("<tool_call>", special=False)
    config = {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": added,
        "additional_special_tokens": names[1:],
        "bos_token": None,
        "chat_template": CHATML,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "errors": "replace",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    end, pad = len(model["vocab"]) + 2, len(model["vocab"])
    settings = {"model_type": "qwen2", "bos_token_id": pad, "eos_token_id": end}
    write(folder, tokenizer_config=config, vocab=model["vocab"], config=settings)
    write(folder, generation_config={"eos_token_id": [end, pad], "pad_token_id": pad})
    merges = [" ".join(merge) for merge in model["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    if tokenizer_json:
        from tokenizers import AddedToken

        for content in added.values():
            tokenizer.add_tokens([AddedToken(**content)])
        tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def gpt2(folder: Path, vocab: dict, merges: str, *, codegen: bool = False) -> Path:
    """vocab.json and merges.txt of GPT-2; CodeGen adds 38 runs of white space by added_tokens.json, without flags."""
    end = "<|endoftext|>"
    name = "CodeGenTokenizer" if codegen else "GPT2Tokenizer"
    config = {"add_prefix_space": False, "bos_token": end, "eos_token": end, "unk_token": end, "tokenizer_class": name}
    kind = {"model_type": "codegen" if codegen else "gpt2", "bos_token_id": vocab[end], "eos_token_id": vocab[end]}
    named = {"bos_token": end, "eos_token": end, "unk_token": end}
    write(folder, vocab=vocab, tokenizer_config=config, config=kind, special_tokens_map=named)
    (folder / "merges.txt").write_text(merges)
    if codegen:
        write(folder, added_tokens={text: len(vocab) + i for i, text in enumerate(CODEGEN_ADDED)})
    return folder


def sentencepiece(folder: Path, model: bytes, config: dict, **more: object) -> Path:
    """tokenizer.model and settings."""
    write(folder, tokenizer_config=config, config={"model_type": "llama", "bos_token_id": 1, "eos_token_id": 2}, **more)
    (folder / "tokenizer.model").write_bytes(model)
    return folder


LLAMA2_CONFIG = {
    "add_bos_token": True,
    "add_eos_token": False,
    "bos_token": token("<s>"),
    "eos_token": token("</s>"),
    "unk_token": token("<unk>"),
    "legacy": False,
    "sp_model_kwargs": {},
    "tokenizer_class": "LlamaTokenizer",
}


def llama_json(folder: Path, content: dict) -> Path:
    """The first Llama's tokenizer.json, whose special tokens are normalised."""
    config = {name: value for name, value in LLAMA2_CONFIG.items() if name != "legacy"}
    kind = {"model_type": "llama", "bos_token_id": 1, "eos_token_id": 2}
    return write(folder, tokenizer=content, tokenizer_config=config, config=kind)


def mistral(folder: Path, content: dict) -> Path:
    """Metaspace instead of normalizers, and control tokens; a space before the text alone, not after a token."""
    space = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "first", "split": False}
    names = ["[INST]", "[/INST]", "[TOOL_CALLS]"]
    first = max(item["id"] for item in content["added_tokens"]) + 1
    added = [{**token(item["content"], special=item["special"]), "id": item["id"]} for item in content["added_tokens"]]
    added += [{"id": first + i, **token(name)} for i, name in enumerate(names)]
    config = LLAMA2_CONFIG | {
        "add_prefix_space": None,
        "added_tokens_decoder": {str(t["id"]): {k: v for k, v in t.items() if k != "id"} for t in added},
        "tokenizer_class": "LlamaTokenizerFast",
    }
    kind = {"model_type": "mistral", "bos_token_id": 1, "eos_token_id": 2}
    plain = [{k: v for k, v in t.items() if k != "__type"} for t in added]
    content = content | {"normalizer": None, "pre_tokenizer": space, "added_tokens": plain}
    return write(folder, tokenizer=content, tokenizer_config=config, config=kind)


def neox(folder: Path, content: dict) -> Path:
    """GPT-NeoX: runs of spaces as added tokens, NFC, one token for begin, end and unknown."""
    end = "<|endoftext|>"
    config = {"add_prefix_space": False, "bos_token": end, "eos_token": end, "unk_token": end}
    config["tokenizer_class"] = "GPTNeoXTokenizer"
    number = next(item["id"] for item in content["added_tokens"] if item["content"] == end)
    kind = {"model_type": "gpt_neox", "bos_token_id": number, "eos_token_id": number}
    return write(folder, tokenizer=content, tokenizer_config=config, config=kind)
