"""A model's tokenizer as evaluation and generation need it: special tokens as the folder asks for them, and a chat
template.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
import itertools
from pathlib import Path
import re
from typing import Any, Protocol

import numpy as np

from diversity_jax.core.errors import InputError
from diversity_jax.core.files import open_file, read_json
from diversity_jax.tokenizers.chat_template import SPECIAL_TOKENS, answer_parts


class Vocabulary(Protocol):
    """The mapping between text and ids; `diversity_jax.tokenizers.tokenizer` has three."""

    kind: str
    size: int
    end_of_text_id: int
    hash: str
    special: Mapping[str, str]
    marks: Mapping[str, int]

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
      marks: texts that stand for ids although the vocabulary would spell them out, as chat templates write them.
    """

    vocabulary: Vocabulary
    prefix_id: int
    stop_ids: frozenset[int]
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    special: Mapping[str, str] = field(default_factory=dict)
    chat_template: str | None = None
    marks: Mapping[str, int] = field(default_factory=dict)

    @property
    def end_of_text_id(self) -> int:
        """Id that ends a document."""
        return self.vocabulary.end_of_text_id

    def encode_batch(self, texts: Sequence[str], *, special: bool = True) -> list[list[int]]:
        """Ids of each text; `special`: with what the tokenizer's template puts around it, unless the text brings it
        already.
        """
        pieces = encode_marked(self.vocabulary, texts, self.marks)
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


def encode_marked(vocabulary: Vocabulary, texts: Sequence[str], marks: Mapping[str, int]) -> list[list[int]]:
    """Ids of each text, where `marks` stand for their ids and what lies between them is encoded by itself."""
    if not marks:
        return _encoded(vocabulary, texts)
    split = re.compile("(" + "|".join(map(re.escape, sorted(marks, key=len, reverse=True))) + ")")
    parts = [split.split(text) for text in texts]
    ids = iter(_encoded(vocabulary, [part for one in parts for part in one if part and part not in marks]))
    return [
        list(itertools.chain.from_iterable([marks[part]] if part in marks else next(ids) for part in one if part))
        for one in parts
    ]


def _encoded(vocabulary: Vocabulary, texts: Sequence[str]) -> list[list[int]]:
    if not len(texts):
        return []
    ids, lengths = vocabulary.encode_batch(texts)
    return [piece.tolist() for piece in np.split(ids, np.cumsum(lengths)[:-1])]


def for_run(vocabulary: Vocabulary, chat: Mapping[str, Any] | None = None) -> ModelTokenizer:
    """The tokenizer of a model trained here: documents stood between end-of-text tokens, and nothing else was added.

    Args:
      chat: of a fine-tuned model, what it was tuned with: the `template` and the `special` texts it names.
    """
    end = vocabulary.end_of_text_id
    if not chat:
        return ModelTokenizer(vocabulary=vocabulary, prefix_id=end, stop_ids=frozenset([end]))
    template, special = chat["template"], chat["special"]
    ends = frozenset([end, *turn_ends(vocabulary, template, special)])
    begin = encode_marked(vocabulary, [special["bos_token"]], vocabulary.marks)[0] if special.get("bos_token") else []
    prefix = begin[0] if len(begin) == 1 and "bos_token" in template else end  # what its texts began with
    return ModelTokenizer(
        vocabulary=vocabulary,
        prefix_id=prefix,
        stop_ids=ends,
        special=special,
        chat_template=template,
        marks=vocabulary.marks,
    )


def turn_ends(vocabulary: Vocabulary, template: str, special: Mapping[str, str]) -> list[int]:
    """The id with which a template ends an answer; none where it writes no single token there."""
    word = "Answer"
    turns = [{"role": "user", "content": "Question"}, {"role": "assistant", "content": word}]
    answer, _ = answer_parts(turns, template=template, special=special)[-1]
    after = answer.rpartition(word)[2].strip()
    ids = encode_marked(vocabulary, [after], vocabulary.marks)[0] if after else []
    return ids if len(ids) == 1 and len(after) > 1 else []  # one sign alone would be ordinary text


def for_folder(vocabulary: Vocabulary, folder: Path) -> ModelTokenizer:
    """The tokenizer of a Hugging Face folder, used as transformers 5 uses it: `tokenizer.json`'s own post-processor,
    special tokens from `tokenizer_config.json`, end-of-text ids of `config.json` beside the tokenizer's.

    Raises:
      InputError: one of the files is damaged, or the chat template is not text.
    """
    special = special_tokens(folder)
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
        chat_template=folder_template(folder),
    )


def special_tokens(folder: Path) -> dict[str, str]:
    """Special tokens' texts by name, as `tokenizer_config.json` has them; none where there is no such file."""
    path = folder / "tokenizer_config.json"
    settings = read_json(path) if path.exists() else {}
    return {name: text for name in SPECIAL_TOKENS if (text := _content(settings.get(name)))}


def end_of_text_name(folder: Path) -> str | None:
    """The piece that `tokenizer_config.json` names as end of text, if it names one."""
    return special_tokens(folder).get("eos_token")


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
    return (
        tuple(whole[:start]),
        tuple(whole[start + len(plain) :]),
        {name: one for name, one in ids.items() if one is not None},
    )


def _sentencepiece_begin(path: Path, special: dict[str, str]) -> int | None:
    """Id of what `special` names as begin of text, or of `<s>`, which is added to `special` as `</s>` is."""
    import sentencepiece

    model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    for name, one in (("bos_token", model.bos_id()), ("eos_token", model.eos_id())):
        if one >= 0:
            special.setdefault(name, model.id_to_piece(one))
    return model.piece_to_id(special["bos_token"]) if "bos_token" in special else None


def folder_template(folder: Path) -> str | None:
    """The chat template in a tokenizer's folder: a file of its own, or an entry of the settings (several by name: the
    one named default).

    Raises:
      InputError: the settings are damaged, or the template is not text.
    """
    path, settings = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    if path.exists():
        with open_file(path, "r") as file:
            return file.read()
    found = read_json(settings).get("chat_template") if settings.exists() else None
    if isinstance(found, list):
        found = {entry.get("name"): entry.get("template") for entry in found}.get("default")
    if found is not None and not isinstance(found, str):
        raise InputError(f"{settings}: chat_template is {type(found).__name__}; expected the template's text")
    return found
