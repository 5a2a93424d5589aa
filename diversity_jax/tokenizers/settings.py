"""Reads a tokenizer folder's JSON settings: special and added tokens, begin- and end-of-text, its class, template."""

from collections.abc import Mapping
from dataclasses import dataclass, field
import logging
import os
from pathlib import Path
from typing import Any

from diversity_jax.core.errors import InputError
from diversity_jax.core.files import exists, is_remote, join_path, read_json, read_text
from diversity_jax.core.json_fields import read_fields
from diversity_jax.tokenizers.base import Tokenizer

log = logging.getLogger(__name__)

SETTINGS_FILES = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
"""Of the tokenizer itself; they are copied with prepared rows."""
MODEL_FILES = ("config.json", "generation_config.json")
"""Of the model; they name end-of-text by ids."""
END_OF_TEXT_NAMES = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|eot|>", "[EOS]", "<|im_end|>", "[SEP]")
_LAYOUTS = (("tokenizer.json",), ("tokenizer.model",), ("vocab.json", "merges.txt"))
"""Files that define a tokenizer; of several, the first."""
TOKEN_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
_ADDS_BOS = ("LlamaTokenizer", "CodeLlamaTokenizer", "GemmaTokenizer")  # unless the settings say otherwise
_ANY_CLASS = ("PreTrainedTokenizer", "TokenizersBackend")
# The class that transformers uses if none is named, for models that come without a tokenizer.json.
_CLASS_OF_MODEL = (
    dict.fromkeys(("llama", "mistral", "mixtral"), "LlamaTokenizer")
    | dict.fromkeys(("gemma", "gemma2", "gemma3_text"), "GemmaTokenizer")
    | dict.fromkeys(("qwen2", "qwen2_moe", "qwen3", "qwen3_moe"), "Qwen2Tokenizer")
)


def find_tokenizer(folder: str | os.PathLike) -> tuple[str, ...] | None:
    """Files that define the tokenizer in a folder, or in `tokenizer/` inside it, where `model.convert import` puts one;
    None if there are none, or it is no folder."""
    folder = os.fspath(folder)
    if not is_remote(folder) and not os.path.isdir(folder):
        return None
    for candidate in (folder, str(join_path(folder, "tokenizer"))):
        for names in _LAYOUTS:
            files = tuple(str(join_path(candidate, name)) for name in names)
            if all(map(exists, files)):
                return files
    return None


def folder_template(folder: Path) -> str | None:
    """The chat template in a tokenizer's folder: a file, or a field of the settings (the default of several).

    Raises:
      InputError: the settings are damaged, the template is not text, or there are several and no default.
    """
    path, settings = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    if path.exists():
        return read_text(path)
    template = read_fields(settings).get("chat_template") if settings.exists() else None
    named = {file.stem: read_text(file) for file in sorted(folder.glob("additional_chat_templates/*.jinja"))}
    if isinstance(template, list) and all(isinstance(entry, dict) for entry in template):
        named = {str(entry.get("name")): entry.get("template") for entry in template}
        template = named.get("default")
    if template is None and named:
        raise InputError(
            f"{folder}: has the chat templates {', '.join(named)}, and none called default; write the one to use to "
            "chat_template.jinja"
        )
    if template is not None and not isinstance(template, str):
        raise InputError(f"{settings}: chat_template is {type(template).__name__}; expected the template's text")
    return template


@dataclass(frozen=True, kw_only=True)
class TokenizerSettings:
    """Settings of a tokenizer's folder; all empty for a file that was named alone.

    Attributes:
      special: texts of special tokens by name, such as `eos_token`.
      added: tokens outside of the tokenizer's own file, by id: `content`, and flags if they are given.
      class_name: of transformers, without `Fast`, by name or by the model's kind; None: any class may read the files.
      adds_bos, adds_eos: whether they are put around every text; None: not specified.
      prefix_space: whether a space is put before every text; None: the tokenizer's own file decides.
      legacy: of a SentencePiece model: text after a special token, too, begins with a space.
      end_ids: end-of-text ids in `config.json` and `generation_config.json`, by file.
      model_ids: number of ids of the model, in `config.json`.
      bos_id: begin-of-text id in `config.json`; has_no_bos: the tokenizer's settings say that there is none.
      files: the tokenizer's own among the files read.
    """

    special: Mapping[str, str] = field(default_factory=dict)
    added: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    class_name: str | None = None
    adds_bos: bool | None = None
    adds_eos: bool | None = None
    prefix_space: bool | None = None
    legacy: bool = True
    end_ids: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    model_ids: int | None = None
    bos_id: int | None = None
    has_no_bos: bool = False
    files: tuple[str, ...] = ()

    @property
    def class_adds_bos(self) -> bool:
        """Whether begin-of-text is put first: by the settings, or, if they do not say, by the class."""
        return self.class_name in _ADDS_BOS if self.adds_bos is None else self.adds_bos


def read_settings(folder: str) -> TokenizerSettings:
    """Reads the settings that there are; `tokenizer_config.json` overrides other files, as in transformers.

    Raises:
      InputError: a file is damaged, or two tokens have one id.
    """
    values = {name: _read(folder, name) for name in (*SETTINGS_FILES, *MODEL_FILES)}
    config = values["tokenizer_config.json"]
    special: dict[str, str] = {}
    for name in TOKEN_NAMES:
        texts = {file: text for file in SETTINGS_FILES[:2] if (text := _text(folder, file, values[file], name))}
        if len(set(texts.values())) > 1:
            listed = " but ".join(f"{text!r} in {file}" for file, text in texts.items())
            log.warning("%s: %s is %s; the first is used", folder, name, listed)
        if texts:
            special[name] = next(iter(texts.values()))
    begins = _ids(folder, "config.json", values["config.json"], "bos_token_id")
    model_ids = values["config.json"].get("vocab_size")
    has_none = "bos_token" in config and "bos_token" not in special
    return TokenizerSettings(
        special=special,
        added=_added_tokens(folder, values, special),
        class_name=_class_name(config, values["config.json"]),
        adds_bos=_flag(folder, config, "add_bos_token"),
        adds_eos=_flag(folder, config, "add_eos_token"),
        prefix_space=_flag(folder, config, "add_prefix_space"),
        legacy=_flag(folder, config, "legacy") is not False,
        end_ids={file: ends for file in MODEL_FILES if (ends := _ids(folder, file, values[file], "eos_token_id"))},
        model_ids=model_ids if isinstance(model_ids, int) else None,
        bos_id=None if has_none else next(iter(begins), None),
        has_no_bos=has_none,
        files=tuple(str(join_path(folder, name)) for name in SETTINGS_FILES if values[name]),
    )


def folder_end(path: str, tokenizer: Tokenizer, settings: TokenizerSettings) -> int:
    """The end-of-text id that a folder's files name; a warning if they disagree.

    Raises:
      InputError: they name none, or one that is not in the vocabulary.
    """
    text = settings.special.get("eos_token")
    end_id = tokenizer.token_id(text) if text is not None else None
    if text is not None and end_id is None:
        raise InputError(f"vocabulary {path}: its settings call {text!r} the end of text, which is no token of it")
    named = {file: ids for file, ids in settings.end_ids.items() if ids[0] < tokenizer.size}
    if end_id is None:
        if not named:
            end_id = next((i for i in map(tokenizer.token_id, END_OF_TEXT_NAMES) if i is not None), None)
        else:
            end_id = next(iter(named.values()))[0]
        if end_id is None:
            raise InputError(
                f"vocabulary {path}: no file of its folder names an end of text (eos_token in tokenizer_config.json, "
                "eos_token_id in config.json); name a token as end_of_text"
            )
    for file, ids in named.items():
        if end_id not in ids:
            log.warning(
                "%s: its end of text is %r (id %d), but %s has eos_token_id %s; name end_of_text if that is meant",
                *(path, tokenizer.token_text(end_id), end_id, file, ", ".join(map(str, ids))),
            )
    return end_id


def _class_name(config: Mapping[str, Any], model: Mapping[str, Any]) -> str | None:
    named = str(config.get("tokenizer_class") or "").removesuffix("Fast")
    return None if named in _ANY_CLASS else named or _CLASS_OF_MODEL.get(str(model.get("model_type")))


def _read(folder: str, name: str) -> Mapping[str, Any]:
    path = join_path(folder, name)
    value = read_json(path) if exists(path) else {}
    if not isinstance(value, Mapping):
        raise InputError(f"{path}: is {type(value).__name__}; expected a JSON object")
    return value


def _text(folder: str, file: str, values: Mapping[str, Any], name: str) -> str | None:
    """Text of a token, given as a string or as an object with its `content`."""
    token = values.get(name)
    text = token.get("content") if isinstance(token, Mapping) else token
    if text is not None and not isinstance(text, str):
        raise InputError(f"{join_path(folder, file)}: {name} is {type(text).__name__}; expected the token's text")
    return text or None


def _flag(folder: str, config: Mapping[str, Any], name: str) -> bool | None:
    value = config.get(name)
    if value is not None and not isinstance(value, bool):
        raise InputError(f"{join_path(folder, 'tokenizer_config.json')}: {name} is {value!r}; expected true or false")
    return value


def _ids(folder: str, file: str, values: Mapping[str, Any], name: str) -> tuple[int, ...]:
    value = values.get(name)
    ids = tuple(value) if isinstance(value, list) else () if value is None else (value,)
    if not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids):
        raise InputError(f"{join_path(folder, file)}: {name} is {value!r}; expected an id or a list of ids")
    return ids


def _added_tokens(
    folder: str, values: Mapping[str, Mapping[str, Any]], special: Mapping[str, str]
) -> dict[int, Mapping[str, Any]]:
    """Added tokens by id; `added_tokens.json` has no flags."""
    added: dict[int, Mapping[str, Any]] = {}
    try:
        for number, token in (values["tokenizer_config.json"].get("added_tokens_decoder") or {}).items():
            flags = {name: token[name] for name in _FLAGS if name in token}
            added[int(number)] = {"content": _content(token["content"]), **flags}
    except (AttributeError, KeyError, TypeError, ValueError):
        raise InputError(
            f"{join_path(folder, 'tokenizer_config.json')}: added_tokens_decoder is damaged; expected, by id, objects "
            "with a content"
        ) from None
    more = values["special_tokens_map.json"].get("additional_special_tokens") or ()
    more = [*more, *(values["tokenizer_config.json"].get("additional_special_tokens") or ())]
    specials = {*special.values(), *(token.get("content") if isinstance(token, Mapping) else token for token in more)}
    path = join_path(folder, "added_tokens.json")
    for text, number in values["added_tokens.json"].items():
        if not isinstance(number, int):
            raise InputError(f"{path}: {text!r} has the id {number!r}; expected a number")
        if number in added and added[number]["content"] != text:
            raise InputError(
                f"{path}: {text!r} has the id {number}, which is {added[number]['content']!r} in "
                "tokenizer_config.json; correct one of them"
            )
        is_special = text in specials
        added.setdefault(number, {"content": text, "special": is_special, "normalized": not is_special})
    return dict(sorted(added.items()))


def _content(text: Any) -> str:
    if not isinstance(text, str) or not text:
        raise ValueError(text)
    return text
