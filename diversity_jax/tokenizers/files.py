"""The tokenizer's files beside a model: found in a run's folder, written where transformers looks for them, copied on
import.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
import os
from pathlib import Path
import shutil
from typing import Any

from diversity_jax.core.errors import InputError
from diversity_jax.core.files import read_json, write_json, writing

# What `save_pretrained` of a tokenizer may write; of a Hugging Face folder these are copied.
_KNOWN = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)
_CLASSES = {
    "tokenizer.json": "PreTrainedTokenizerFast",
    "tokenizer.model": "LlamaTokenizer",
    "vocab.json": "GPT2Tokenizer",
}


@dataclass(frozen=True, kw_only=True)
class TokenizerFiles:
    """A tokenizer.

    Attributes:
      files: none for `bytes` (byte b is id b + 3, 1 ends a document).
      end_of_text_id: where known.
      chat_template: Jinja source that the model was fine-tuned with; None: whatever is among the files.
      special: texts of the special tokens that the template may name.
    """

    files: tuple[Path, ...] = ()
    end_of_text_id: int | None = None
    chat_template: str | None = None
    special: Mapping[str, str] = field(default_factory=dict)


def named_tokenizer(name: str | os.PathLike) -> TokenizerFiles:
    """The tokenizer that somebody asked for: `bytes`, a tokenizer.json, a SentencePiece .model, or a folder with one.

    Raises:
      InputError: it is none of these.
    """
    path = Path(name)
    if str(name) == "bytes":
        return TokenizerFiles(end_of_text_id=1)
    if path.is_dir():
        if found := folder_tokenizer(path):
            return found
    elif path.suffix in (".json", ".model") and path.is_file():
        return TokenizerFiles(files=(path,))
    raise InputError(
        f"tokenizer {name}: give bytes, a tokenizer.json, a SentencePiece .model file, or a folder with one of them"
    )


def folder_tokenizer(folder: Path) -> TokenizerFiles | None:
    """The tokenizer in a folder, with whatever lies beside it; None where there is none."""
    files = tuple(folder / name for name in _KNOWN if (folder / name).is_file())
    usable = {path.name for path in files} & {"tokenizer.json", "tokenizer.model", "vocab.json"}
    return TokenizerFiles(files=files) if usable else None


def model_tokenizer(folder: Path) -> TokenizerFiles | None:
    """The tokenizer of a model's folder: beside an imported model, or the one a run's rows were prepared with; None:
    not to be found.
    """
    if (folder / "tokenizer").is_dir():
        return folder_tokenizer(folder / "tokenizer")
    prepared = (
        read_json(folder / "run.json").get("settings", {}).get("prepared") if (folder / "run.json").exists() else None
    )
    path = Path(prepared or folder / "mixture")
    path = path / "mixture.json" if path.is_dir() else path
    if not path.exists():
        return None
    mixture = read_json(path)
    try:
        manifests = [path.parent / part["manifest"] for part in mixture["components"] if part["manifest"]]
        vocabulary = mixture["vocabulary"]
        files = tuple(manifests[0].parent / file for file in vocabulary["files"])
        chats = [chat for one in manifests if one.exists() and (chat := read_json(one).get("chat"))]
        chat = {"chat_template": chats[0]["template"], "special": chats[0]["special"]} if chats else {}
        return TokenizerFiles(files=files, end_of_text_id=vocabulary["end_of_text_id"], **chat)
    except (KeyError, TypeError, IndexError) as error:
        raise InputError(
            f"{path}: does not say which tokenizer it was built with ({error!r}); give --tokenizer"
        ) from None


def copy_tokenizer(source: Path, folder: Path) -> bool:
    """Copies a Hugging Face folder's tokenizer into a folder of its own; returns whether there was one."""
    found = folder_tokenizer(source)
    if found:
        folder.mkdir(parents=True, exist_ok=True)
        for path in found.files:
            shutil.copyfile(path, folder / path.name)
    return found is not None


def write_tokenizer(tokenizer: TokenizerFiles, folder: Path, *, vocab_size: int) -> None:
    """Puts a tokenizer beside an exported model, as `AutoTokenizer.from_pretrained(folder)` finds it.

    Raises:
      InputError: a file is missing, or the tokenizer has more ids than the model.
    """
    for path in tokenizer.files:
        if not path.is_file():
            raise InputError(f"{path}: the tokenizer's file is missing; give --tokenizer")
    folder.mkdir(parents=True, exist_ok=True)
    if not tokenizer.files:
        write_json(folder / "tokenizer.json", _bytes_as_json())
    for path in tokenizer.files:
        name = path.name if path.name in _KNOWN else f"tokenizer{path.suffix}"
        shutil.copyfile(path, folder / name)
    tokens = _tokens(folder)
    if tokens and max(tokens) >= vocab_size:
        raise InputError(
            f"{folder}: the tokenizer has {max(tokens) + 1} ids, more than the model's {vocab_size}; give the run's own"
        )
    if not (folder / "tokenizer_config.json").exists():
        name = next(name for name in _CLASSES if (folder / name).exists())
        named = _named_tokens(tokenizer, tokens.get(tokenizer.end_of_text_id))
        write_json(
            folder / "tokenizer_config.json",
            {"tokenizer_class": _CLASSES[name], "clean_up_tokenization_spaces": False, **named},
        )
    if tokenizer.chat_template is not None:
        with writing(folder / "chat_template.jinja") as file:
            file.write(tokenizer.chat_template.encode())
    turn_ends = [number for number, text in tokens.items() if text == tokenizer.special.get("eos_token")]
    ends = sorted({*turn_ends, tokenizer.end_of_text_id} - {None})
    if ends:  # servers stop where an answer ends, not only where a text does
        write_json(folder / "generation_config.json", {"eos_token_id": ends})


def _named_tokens(tokenizer: TokenizerFiles, end: str | None) -> dict[str, str]:
    """What ends a text and what stands before one: in training an end of text did, whatever the tokenizer may call
    begin of text.

    A chat template that names a token means the one it was fine-tuned with.
    """
    ends = {} if end is None else {"eos_token": end, "bos_token": end}
    return ends | {name: text for name, text in tokenizer.special.items() if name in (tokenizer.chat_template or "")}


def _tokens(folder: Path) -> dict[int, str]:
    """Text of each id; empty for a vocab.json, whose class knows its own end of text."""
    if (folder / "tokenizer.json").exists():
        return _json_tokens(folder / "tokenizer.json", read_json(folder / "tokenizer.json"))
    if not (folder / "tokenizer.model").exists():
        return {}
    import sentencepiece

    try:
        model = sentencepiece.SentencePieceProcessor(model_proto=(folder / "tokenizer.model").read_bytes())
        return {i: model.id_to_piece(i) for i in range(model.get_piece_size())}
    except RuntimeError:
        raise InputError(f"{folder / 'tokenizer.model'}: is not a SentencePiece model; give --tokenizer") from None


def _json_tokens(path: Path, content: Any) -> dict[int, str]:
    """Text of each id in a tokenizer.json."""
    try:
        vocabulary = content["model"]["vocab"]
        pairs = (
            vocabulary.items()
            if isinstance(vocabulary, Mapping)
            else ((entry[0], i) for i, entry in enumerate(vocabulary))
        )
        found = {int(i): text for text, i in pairs}
        return found | {token["id"]: token["content"] for token in content.get("added_tokens") or ()}
    except (KeyError, TypeError, ValueError, AttributeError):
        raise InputError(f"{path}: is not a tokenizer.json of the tokenizers library; give --tokenizer") from None


def _bytes_as_json() -> dict[str, Any]:
    """The bytes of UTF-8 as a byte-level BPE without merges, after the three ids that SeqIO's ByteVocabulary keeps for
    itself.
    """
    special = ["<|pad|>", "<|endoftext|>", "<|unk|>"]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    characters = _byte_characters()
    vocabulary = {text: i for i, text in enumerate(special)} | {characters[byte]: byte + 3 for byte in range(256)}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": text, **flags} for i, text in enumerate(special)],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocabulary,
            "merges": [],
        },
    }


def _byte_characters() -> list[str]:
    """The printable character that byte-level BPE writes for each byte: its own where it has one, else one from 256
    on.
    """
    own = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(256, 512))
    return [chr(byte if byte in own else next(others)) for byte in range(256)]
