"""A model's tokenizer files: found in the folder of a run or model, copied on import, written on export."""

from collections.abc import Mapping
from dataclasses import dataclass, field
import os
from pathlib import Path
import shutil
from typing import Any

from diversity_jax.core.buckets import local_copy
from diversity_jax.core.errors import InputError
from diversity_jax.core.files import (
    exists,
    join_path,
    parent_folder,
    path_inside,
    read_json,
    resolve_path,
    write_json,
    writing,
)
from diversity_jax.core.json_fields import Fields, read_fields
from diversity_jax.core.run_info import folders_read
from diversity_jax.tokenizers.chat_template import SPECIAL_TOKENS
from diversity_jax.tokenizers.document_start import Boundaries
from diversity_jax.tokenizers.export import write_exact
from diversity_jax.tokenizers.sentence_piece import read_model
from diversity_jax.tokenizers.settings import (
    MODEL_FILES,
    SETTINGS_FILES,
    find_tokenizer,
    folder_template,
    read_settings,
)

_CLASSES = {
    "tokenizer.json": "PreTrainedTokenizerFast",
    "tokenizer.model": "LlamaTokenizer",
    "vocab.json": "GPT2Tokenizer",
}
"""Files that define a tokenizer, and the class of transformers that reads each."""
_COPIED = (*_CLASSES, "merges.txt", *SETTINGS_FILES, "chat_template.jinja")
"""Files that a tokenizer's `save_pretrained` may write."""


@dataclass(frozen=True, kw_only=True)
class TokenizerFiles:
    """The files of a tokenizer, and how a model uses it.

    Attributes:
      files: none for `bytes` (byte b is id b + 3, 1 ends a document).
      end_of_text_id: None: not known.
      chat_template: Jinja source that the model was fine-tuned with; None: that among the files, if any.
      is_tuned: the template is that of this model's own fine-tuning, in which texts began with what it writes; False if
        the model was trained on text after its fine-tuning.
      special: texts of the special tokens that the template may name.
      text_ids: ids that a text begins with (`Boundaries.text_ids`); None: by the files' settings.
      folder: of the files, whose settings apply; None: the files were named without it, or are a run's own.
    """

    files: tuple[Path, ...] = ()
    end_of_text_id: int | None = None
    chat_template: str | None = None
    is_tuned: bool = True
    special: Mapping[str, str] = field(default_factory=dict)
    text_ids: tuple[int, ...] | None = None
    folder: Path | None = None


def named_tokenizer(name: str | os.PathLike) -> TokenizerFiles:
    """The tokenizer that the user names: `bytes`, a tokenizer.json, a SentencePiece .model, or a folder with one.

    Raises:
      InputError: it is none of these.
    """
    path = local_copy(name)
    if str(name) == "bytes":
        return TokenizerFiles(end_of_text_id=1)
    if path.is_dir():
        if files := folder_tokenizer(path) or folder_tokenizer(path / "tokenizer"):  # the latter by `convert import`
            return files
    elif path.suffix in (".json", ".model") and path.is_file():
        return TokenizerFiles(files=(path,))
    raise InputError(
        f"tokenizer {name}: give bytes, a tokenizer.json, a SentencePiece .model file, or a folder with one of them"
    )


def folder_tokenizer(folder: Path) -> TokenizerFiles | None:
    """The tokenizer in a folder, with its settings; None where there is none."""
    files = tuple(folder / name for name in _COPIED if (folder / name).is_file())
    return TokenizerFiles(files=files, folder=folder) if any(path.name in _CLASSES for path in files) else None


def model_tokenizer(folder: Path) -> TokenizerFiles | None:
    """The tokenizer in a model's folder, or the one that a run's rows were prepared with; None if there is neither."""
    if tokenizer := folder_tokenizer(folder / "tokenizer") or folder_tokenizer(folder):
        return tokenizer
    settings = _settings(folder)
    mixture_folder = run_mixture(folder, settings)
    if mixture_folder is None:
        return None
    path = join_path(mixture_folder, "mixture.json")
    mixture = read_fields(path, components=list[Fields], vocabulary=Fields)
    try:
        parts = [part["manifest"] for part in mixture["components"] if part["manifest"]]
        manifests = [resolve_path(mixture_folder, part) for part in parts]
        vocabulary = mixture["vocabulary"]
        chat_formats = [read_fields(manifest, chat=Fields | None)["chat"] for manifest in manifests if exists(manifest)]
        chats = [chat for chat in chat_formats if chat]
        before = None if chats else chat_of_start(folder, settings)
        chat = chats[0] if chats else before or {"template": None, "special": {}}
        return TokenizerFiles(
            files=tuple(
                local_copy(path_inside(parent_folder(manifests[0]), file, str(path))) for file in vocabulary["files"]
            ),
            end_of_text_id=vocabulary["end_of_text_id"],
            chat_template=chat["template"],
            is_tuned=before is None,
            special=chat["special"],
            text_ids=run_text_ids(folder),
        )
    except (KeyError, TypeError, IndexError) as error:
        raise InputError(
            f"{path}: does not say which tokenizer it was built with ({error!r}); give --tokenizer"
        ) from None


def chat_of_start(run: Path, settings: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """`template` and `special` tokens of the model that a run began with: training on text does not change them.

    Args:
      settings: what the run was started with.

    Returns:
      None where the run began with no model, that model has no template, or its folder is gone.
    """
    train = settings.get("train")
    start = train.get("init_from") if isinstance(train, dict) else None
    start = start if isinstance(start, str) and start else None
    folders = [Path(folder) for folder in folders_read(run, settings, start)] if start else []
    model = next((folder for folder in folders if folder.is_dir()), None)
    tokenizer = None if model is None else model_tokenizer(model)
    if tokenizer is None:
        return None
    if tokenizer.chat_template is not None:
        return {"template": tokenizer.chat_template, "special": tokenizer.special}
    template = folder_template(tokenizer.folder) if tokenizer.folder else None
    return None if not template else {"template": template, "special": read_settings(str(tokenizer.folder)).special}


def _settings(run: Path) -> Mapping[str, Any]:
    """What a run was started with; empty where the folder is not a run's."""
    path = run / "run.json"
    return (read_fields(path, settings=Fields | None)["settings"] or {}) if path.exists() else {}


def run_mixture(run: Path | str, settings: Mapping[str, Any]) -> Path | str | None:
    """The folder of the mixture that a run was trained on; None where it is gone.

    Args:
      settings: what the run was started with.
    """
    folders, prepared = [join_path(run, "mixture")], settings.get("prepared")
    if prepared:
        if not isinstance(prepared, str):
            raise InputError(f"{join_path(run, 'run.json')}: prepared is {type(prepared).__name__}; expected a path")
        folder = parent_folder(prepared) if prepared.endswith("mixture.json") else prepared
        folders = folders_read(run, settings, str(folder))
    return next((folder for folder in folders if exists(join_path(folder, "mixture.json"))), None)


def run_text_ids(run: Path) -> tuple[int, ...] | None:
    """`Boundaries.text_ids` of a run's training; None, too, where there is no run or its mixture is gone."""
    settings = _settings(run)
    folder = run_mixture(run, settings)
    mixture = {} if folder is None else read_fields(join_path(folder, "mixture.json"), vocabulary=Fields | None)
    if not mixture.get("vocabulary"):
        return None
    train = settings.get("train")
    across = train.get("attend_across_documents", True) if isinstance(train, dict) else True
    return Boundaries.of_mixture(mixture, attend_across_documents=across).text_ids


def copy_tokenizer(source: Path, folder: Path) -> bool:
    """Copies a model folder's tokenizer, with the model's settings, into `folder`; returns whether there is one."""
    files = find_tokenizer(source)
    if files is None:
        return False
    folder.mkdir(parents=True, exist_ok=True)
    for name in (*_COPIED, *MODEL_FILES):
        for path in (Path(files[0]).with_name(name), source / name):
            if path.is_file():
                shutil.copyfile(path, folder / name)
                break
    return True


def write_tokenizer(tokenizer: TokenizerFiles, folder: Path, *, vocab_size: int) -> None:
    """Writes a tokenizer into the folder of an exported model, where `AutoTokenizer.from_pretrained(folder)` finds it.

    With it, texts begin as in training, conversations with what their template writes.

    Raises:
      InputError: a file is missing, or the tokenizer has more ids than the model.
    """
    for path in tokenizer.files:
        if not path.is_file():
            raise InputError(f"{path}: the tokenizer's file is missing; give --tokenizer")
    folder.mkdir(parents=True, exist_ok=True)
    for path in tokenizer.files:
        name = path.name if path.name in _COPIED else f"tokenizer{path.suffix}"
        shutil.copyfile(path, folder / name)
    is_chat = tokenizer.chat_template is not None or folder_template(folder) is not None
    own, end_id = tokenizer.folder, tokenizer.end_of_text_id
    write_exact(folder, tokenizer.files, end_id, source=own, is_chat=is_chat, vocab_size=vocab_size)
    tokens = _tokens(folder)
    if tokens and max(tokens) >= vocab_size:
        raise InputError(
            f"{folder}: the tokenizer has {max(tokens) + 1} ids, more than the model's {vocab_size}; give the run's own"
        )
    path = folder / "tokenizer_config.json"
    settings = read_fields(path) if path.exists() else {}
    written = dict(settings)
    if not settings:
        class_name = next(_CLASSES[name] for name in _CLASSES if (folder / name).exists())
        end = tokens.get(tokenizer.end_of_text_id) if tokenizer.end_of_text_id is not None else None
        # In training end-of-text preceded each text, whatever the tokenizer's own begin-of-text is.
        named = {} if end is None else {"eos_token": end, "bos_token": end}
        # transformers cannot pad batches without a padding token; attention masks it.
        padding = tokens[0] if not tokenizer.files else end
        named |= {} if padding is None else {"pad_token": padding}
        written = {"tokenizer_class": class_name, "clean_up_tokenization_spaces": False, **named}
    # Tokens that the chat template names must be those of the fine-tuning.
    written |= {name: text for name, text in tokenizer.special.items() if name in (tokenizer.chat_template or "")}
    if tokenizer.text_ids is not None:
        written |= _begin_settings(tokenizer, tokens)
        if (folder / "tokenizer.json").exists():
            begin = written["bos_token"] if written["add_bos_token"] else None
            _set_begin(folder / "tokenizer.json", begin, {text: number for number, text in tokens.items()})
    if written != settings:
        write_json(path, written)
    if tokenizer.chat_template is not None:
        with writing(folder / "chat_template.jinja") as file:
            file.write(tokenizer.chat_template.encode())
    _write_ids(tokenizer, folder, {text: number for number, text in tokens.items()})


def _begin_settings(tokenizer: TokenizerFiles, tokens: Mapping[int, str]) -> dict[str, Any]:
    """Fields of `tokenizer_config.json`: the begin-of-text token, and whether it is put before every text."""
    if tokenizer.chat_template and "bos_token" in tokenizer.chat_template and tokenizer.special.get("bos_token"):
        return {"bos_token": tokenizer.special["bos_token"], "add_bos_token": True}
    if tokenizer.chat_template and tokenizer.is_tuned:
        # In fine-tuning, only what the template writes preceded an answer; `bos_token` stays the tokenizer's own.
        return {"add_bos_token": False}
    begin = tokens.get(tokenizer.text_ids[0]) if tokenizer.text_ids else None
    return {"bos_token": begin, "add_bos_token": begin is not None}


_TEMPLATES = ("TemplateProcessing", "BertProcessing", "RobertaProcessing")
"""Post-processors of a `tokenizer.json` that put tokens around a text."""


def _set_begin(path: Path, begin: str | None, numbers: Mapping[str, int]) -> None:
    """Changes a `tokenizer.json` so that it puts one token, or none, before every text."""
    content = read_json(path)
    before = content.get("post_processor") or {}
    processors = [part for part in before.get("processors", [before]) if part and part["type"] not in _TEMPLATES]
    if begin is not None:
        single = [{"SpecialToken": {"id": begin, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
        pair = [*single, {"Sequence": {"id": "B", "type_id": 1}}]
        special = {begin: {"id": begin, "ids": [numbers[begin]], "tokens": [begin]}}
        processors.append({"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": special})
    content["post_processor"] = {"type": "Sequence", "processors": processors} if processors else None
    write_json(path, content)


def _write_ids(tokenizer: TokenizerFiles, folder: Path, numbers: Mapping[str, int]) -> None:
    """Writes `generation_config.json`, with which servers stop at the end of an answer, not only of a text."""
    home = tokenizer.files[0].parent if tokenizer.files else folder
    ids = token_ids(folder, home)
    tuned = numbers.get(tokenizer.special.get("eos_token", ""))
    ends = {*ids.get("eos_token_id", ())} | {i for i in (tuned, tokenizer.end_of_text_id) if i is not None}
    named: dict[str, Any] = {name: ids[name][0] for name in ("bos_token_id", "pad_token_id") if name in ids}
    if ends:
        named["eos_token_id"] = sorted(ends) if len(ends) > 1 else min(ends)
    own = home / "generation_config.json"
    if named:
        write_json(folder / "generation_config.json", (read_fields(own) if own.is_file() else {}) | named)


def token_ids(folder: Path, model: Path | None = None) -> dict[str, list[int]]:
    """Ids of the special tokens that a folder's files name, by names such as `eos_token_id`: for this one all that end
    an answer, the tokenizer's own first; for others the first counts.

    Args:
      model: the folder of the model's own settings, if that is another one.

    Raises:
      InputError: a file is damaged.
    """
    path = folder / "tokenizer_config.json"
    settings = read_fields(path, added_tokens_decoder=dict[str, Fields] | None) if path.exists() else {}
    added = settings.get("added_tokens_decoder") or {}
    try:
        numbers = {token["content"]: int(number) for number, token in added.items()}
    except (KeyError, ValueError):
        raise InputError(f"{path}: added_tokens_decoder is not of ids with a content each; fetch it again") from None
    numbers = {text: number for number, text in _tokens(folder).items()} | numbers
    texts = read_settings(str(folder)).special
    paths = [(model or folder) / name for name in reversed(MODEL_FILES)]
    models = [read_fields(path) for path in paths if path.is_file()]
    ids_by_name: dict[str, list[int]] = {}
    for name in SPECIAL_TOKENS:
        own = [numbers[texts[name]]] if texts.get(name) in numbers else []
        value: Any = next((each[f"{name}_id"] for each in models if each.get(f"{name}_id") is not None), [])
        ids = [*own, *(value if isinstance(value, list) else [value])]
        if not all(isinstance(number, int) and number >= 0 for number in ids):
            raise InputError(f"{folder}: {name}_id is {value!r}; expected an id or a list of ids")
        if ids:
            ids_by_name[f"{name}_id"] = list(dict.fromkeys(ids))
    return ids_by_name


def _tokens(folder: Path) -> dict[int, str]:
    """Text of each id."""
    path = folder / "tokenizer.json"
    if path.exists():
        import tokenizers

        try:
            vocabulary = tokenizers.Tokenizer.from_file(str(path)).get_vocab(with_added_tokens=True)
        except Exception:  # the library raises bare Exception for every fault of a file
            raise InputError(f"{path}: is not a tokenizer.json of the tokenizers library; give --tokenizer") from None
        return {number: text for text, number in vocabulary.items()}
    path = folder / "tokenizer.model"
    if not path.exists():
        path = folder / "vocab.json"
        return {number: text for text, number in read_fields(path).items()} if path.exists() else {}
    return {number: piece.piece for number, piece in enumerate(read_model(str(path)).pieces)}
