"""A model's tokenizer as evaluation and generation need it: special tokens as the folder asks for them, and a chat template."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from diversity_jax.errors import InputError
from diversity_jax.storage import open_file, read_json


class Vocabulary(Protocol):
    """The mapping between text and ids; `diversity_jax.mixtures.vocabulary` has three."""

    kind: str
    size: int
    end_of_text_id: int
    hash: str

    def encode_batch(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Ids of all texts end to end, and how many each text has."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; end-of-text ids are left out."""
        ...


@dataclass(frozen=True, kw_only=True)
class ModelTokenizer:
    """A vocabulary and how the model at hand wants it used.

    Attributes:
      vocabulary: text to ids and back.
      prefix_id: what an empty context is replaced by: begin-of-text where the folder names one, else end-of-text.
      stop_ids: ids that end an answer.
      before, after: ids that the tokenizer's own template puts around every text.
      special: names such as `bos_token` and their text, for chat templates.
      chat_template: Jinja source; None: the project's own.
    """

    vocabulary: Vocabulary
    prefix_id: int
    stop_ids: frozenset[int]
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    special: Mapping[str, str] = field(default_factory=dict)
    chat_template: str | None = None

    @property
    def end_of_text_id(self) -> int:
        """Id that ends a document."""
        return self.vocabulary.end_of_text_id

    def encode_batch(self, texts: Sequence[str], *, special: bool = True) -> list[list[int]]:
        """Ids of each text; `special`: with what the tokenizer's template puts around it, unless the text brings it already."""
        ids, lengths = self.vocabulary.encode_batch(texts)
        pieces = [piece.tolist() for piece in np.split(ids, np.cumsum(lengths)[:-1])] if len(texts) else []
        if not special or not (self.before or self.after):
            return pieces
        begin = self.special.get("bos_token")
        return [
            piece if begin and text.startswith(begin) else [*self.before, *piece, *self.after]
            for text, piece in zip(texts, pieces, strict=True)
        ]

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Ids of one text."""
        return self.encode_batch([text], special=special)[0]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; end-of-text ids are left out."""
        return self.vocabulary.decode(ids)


def for_run(vocabulary: Vocabulary) -> ModelTokenizer:
    """The tokenizer of a model trained here: documents stood between end-of-text tokens, and nothing else was added."""
    end = vocabulary.end_of_text_id
    return ModelTokenizer(vocabulary=vocabulary, prefix_id=end, stop_ids=frozenset([end]))


def for_folder(vocabulary: Vocabulary, folder: Path) -> ModelTokenizer:
    """The tokenizer of a Hugging Face folder, used as transformers 5 uses it: `tokenizer.json`'s own post-processor, special tokens from
    `tokenizer_config.json`, end-of-text ids of `config.json` beside the tokenizer's.

    Raises:
      InputError: one of the files is damaged, or the chat template is not text.
    """
    settings = read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").exists() else {}
    special = {name: text for name in ("bos_token", "eos_token", "pad_token", "unk_token") if (text := _content(settings.get(name)))}
    before, after, begin = (), (), None
    if (folder / "tokenizer.json").exists():
        before, after, known = _template_of(folder / "tokenizer.json", special)
        begin = known.get("bos_token")
    elif vocabulary.kind == "sentencepiece":
        begin = _sentencepiece_begin(folder / "tokenizer.model", special)
    ends = {vocabulary.end_of_text_id}
    for name in ("config.json", "generation_config.json"):
        if (folder / name).exists():
            found = read_json(folder / name).get("eos_token_id")
            ends |= set(found if isinstance(found, list) else [] if found is None else [found])
    return ModelTokenizer(
        vocabulary=vocabulary,
        prefix_id=vocabulary.end_of_text_id if begin is None else begin,
        stop_ids=frozenset(ends),
        before=before,
        after=after,
        special=special,
        chat_template=_chat_template(folder, settings),
    )


def end_of_text_name(folder: Path) -> str | None:
    """The piece that `tokenizer_config.json` names as end of text, if it names one."""
    path = folder / "tokenizer_config.json"
    return _content(read_json(path).get("eos_token")) if path.exists() else None


def _content(token: Any) -> str | None:
    return token.get("content") if isinstance(token, dict) else token


def _template_of(path: Path, special: Mapping[str, str]) -> tuple[tuple[int, ...], tuple[int, ...], dict[str, int]]:
    """What the tokenizer puts before and after a text, and the ids of special tokens."""
    import tokenizers

    with open_file(path) as file:
        tokenizer = tokenizers.Tokenizer.from_buffer(file.read())
    tokenizer.no_truncation()
    tokenizer.no_padding()
    plain, whole = (tokenizer.encode("a", add_special_tokens=wanted).ids for wanted in (False, True))
    start = next((i for i in range(len(whole)) if whole[i : i + len(plain)] == plain), 0)
    ids = {name: tokenizer.token_to_id(text) for name, text in special.items()}
    return tuple(whole[:start]), tuple(whole[start + len(plain) :]), {name: one for name, one in ids.items() if one is not None}


def _sentencepiece_begin(path: Path, special: dict[str, str]) -> int | None:
    """Id of `<s>`; its text and that of `</s>` are added to `special`."""
    import sentencepiece

    model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    for name, one in (("bos_token", model.bos_id()), ("eos_token", model.eos_id())):
        if one >= 0:
            special.setdefault(name, model.id_to_piece(one))
    return model.bos_id() if model.bos_id() >= 0 else None


def _chat_template(folder: Path, settings: Mapping[str, Any]) -> str | None:
    """The template's source: its own file, or an entry of the settings (several by name: the one named default)."""
    path = folder / "chat_template.jinja"
    if path.exists():
        with open_file(path, "r") as file:
            return file.read()
    found = settings.get("chat_template")
    if isinstance(found, list):
        found = {entry.get("name"): entry.get("template") for entry in found}.get("default")
    if found is not None and not isinstance(found, str):
        raise InputError(f"{folder / 'tokenizer_config.json'}: chat_template is {type(found).__name__}; expected the template's text")
    return found
