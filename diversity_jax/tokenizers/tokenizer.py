"""Loads tokenizers, and defines how a model uses one: the ids around its texts, and those that end its answers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
import itertools
import os
from pathlib import Path
from typing import Any

from diversity_jax.core.errors import InputError
from diversity_jax.core.files import is_remote, list_files
from diversity_jax.tokenizers.base import ByteTokenizer, Tokenizer
from diversity_jax.tokenizers.chat_template import answer_parts
from diversity_jax.tokenizers.encoders import differing_texts
from diversity_jax.tokenizers.hugging_face import HuggingFaceTokenizer
from diversity_jax.tokenizers.sentence_piece import SentencePieceTokenizer, read_model, to_tokenizer_json
from diversity_jax.tokenizers.settings import TokenizerSettings, find_tokenizer, folder_template, read_settings


def load_tokenizer(spec: str, *, end_of_text: str | int | None = None) -> Tokenizer:
    """Loads a tokenizer.

    Args:
      spec: `bytes`; a SentencePiece model (`.model`); a Hugging Face `tokenizer.json`; or a folder that holds, itself
        or in `tokenizer/`, one of `tokenizer.json`, `tokenizer.model`, or `vocab.json` with `merges.txt` (byte-level
        BPE). Of a folder, `tokenizer_config.json` and the other `settings` files are read, too; special tokens for
        which the model in it has no ids are left out (`Tokenizer.without_ids_from`).
      end_of_text: token that ends a document, or its id, if it is not the one that the folder names.

    Raises:
      InputError: unknown spec, unreadable file, files that contradict each other, or no end-of-text token.
    """
    if spec == "bytes":
        return ByteTokenizer()
    files, settings = find_tokenizer(spec), TokenizerSettings()
    if files is not None:
        settings = read_settings(os.path.dirname(files[0]))
    elif not spec.endswith((".model", ".json")):
        if is_remote(spec) or os.path.isdir(spec):
            raise InputError(
                f"vocabulary {spec}: the folder holds no tokenizer.json, tokenizer.model, or vocab.json with merges.txt"
            )
        raise InputError(f"vocabulary {spec!r} is unknown; give 'bytes', a .model, a tokenizer.json, or their folder")
    elif not list_files(spec):
        raise InputError(f"vocabulary {spec}: no such file; check the path")
    else:
        files = (spec,)
    converted = None
    if files[0].endswith(".model"):
        converted = _with_added_tokens(files[0], settings) if settings.added else None
        if converted is None:
            return SentencePieceTokenizer(files[0], end_of_text, settings)
    tokenizer = HuggingFaceTokenizer(files, end_of_text, settings, converted)
    return tokenizer if settings.model_ids is None else tokenizer.without_ids_from(settings.model_ids)


def _with_added_tokens(path: str, settings: TokenizerSettings) -> Mapping[str, Any] | None:
    """The SentencePiece model as a tokenizer.json, if the folder adds tokens that the model lacks; else None.

    Raises:
      InputError: there is no tokenizer.json that gives the model's ids.
    """
    pieces = [piece.piece for piece in read_model(path).pieces]
    renamed = {
        number: token["content"]
        for number, token in settings.added.items()
        if number < len(pieces) and token["content"] != pieces[number]
    }
    if not renamed and max(settings.added) < len(pieces):
        return None
    model = SentencePieceTokenizer(
        path, 0, TokenizerSettings(prefix_space=settings.prefix_space, legacy=settings.legacy)
    )
    converted = to_tokenizer_json(model.model_proto, legacy=settings.legacy, renamed=renamed)
    texts = [] if converted is None else differing_texts(converted, model)
    if not settings.legacy:  # the library then puts no space before a text that begins with one
        texts = [text for text in texts if not text.startswith((" ", "\u2581"))]
    if converted is None or texts:
        raise InputError(
            f"vocabulary {path}: its folder adds tokens to a SentencePiece model that the tokenizers library cannot "
            "read exactly; save it with transformers, which adds a tokenizer.json"
        )
    return converted


@dataclass(frozen=True, kw_only=True)
class ModelTokenizer:
    """A tokenizer and how one model uses it.

    Attributes:
      prefix_id: the id that replaces an empty context; None for a run in whose training nothing began a text, so that
        the first token of a text was never predicted.
      stop_ids: ids that end an answer.
      before, after: ids put around every text: as in training, or by the tokenizer's own post-processor.
      special: names such as `bos_token` and their text, for chat templates.
      chat_template: Jinja source; None: the project's own.
      special_text: special tokens' texts are read as these tokens, as chat templates need it; else as letters, as in
        the rows that the model was trained on.
    """

    vocabulary: Tokenizer
    prefix_id: int | None
    stop_ids: frozenset[int]
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    special: Mapping[str, str] = field(default_factory=dict)
    chat_template: str | None = None
    special_text: bool = False

    @property
    def end_of_text_id(self) -> int:
        """The vocabulary's."""
        return self.vocabulary.end_of_text_id

    def encode_batch(self, texts: Sequence[str], *, special: bool = True) -> list[list[int]]:
        """Ids of each text, with `before` and `after` if `special`, unless the text itself begins with `bos_token`."""
        encoded = self.vocabulary.encode_each(texts, special=self.special_text)
        if not special or not (self.before or self.after):
            return encoded
        begin = self.special.get("bos_token") if self.special_text else None
        return [
            ids if begin and text.startswith(begin) else [*self.before, *ids, *self.after]
            for text, ids in zip(texts, encoded, strict=True)
        ]

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        return self.encode_batch([text], special=special)[0]

    def encode_prompt(self, text: str) -> list[int]:
        """Ids of a text to continue; never empty.

        Raises:
          InputError: the text is empty, and there is no `prefix_id`.
        """
        ids = self.encode(text)
        if not ids and self.prefix_id is None:
            raise InputError(NOTHING_BEGINS)
        return ids if self.prefix_id is None else ids or [self.prefix_id]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; end-of-text ids are left out."""
        return self.vocabulary.decode(ids)


NOTHING_BEGINS = (
    "the text is empty, and in this model's training nothing began a document (document_start is none), so that its "
    "first token was never predicted; give a text"
)


def for_run(
    vocabulary: Tokenizer,
    chat: Mapping[str, Any] | None = None,
    *,
    is_tuned: bool = True,
    text_ids: Sequence[int] | None = None,
    special_text: bool = False,
) -> ModelTokenizer:
    """The tokenizer of a model trained by this project: texts begin as they did in training.

    Args:
      chat: of a fine-tuned model: the `template` of its training, and the `special` texts it names. Its examples began
        with what the template writes, and nothing else.
      is_tuned: False if the model with this `chat` was then trained on text, which decides how texts begin.
      text_ids: `Boundaries.text_ids` of its training.
      special_text: whether special tokens' texts in its documents were read as these tokens.
    """
    end, before = vocabulary.end_of_text_id, tuple(text_ids or ())
    prefix_id = end if text_ids is None else (*before, None)[0]
    if not chat:
        return ModelTokenizer(
            vocabulary=vocabulary,
            prefix_id=prefix_id,
            stop_ids=frozenset([end]),
            before=before,
            special_text=special_text,
        )
    template, special = chat["template"], chat["special"]
    named = special.get("bos_token", "") if "bos_token" in template else ""
    begin = tuple(vocabulary.encode_each([named], special=True)[0])
    if is_tuned:
        prefix_id = begin[0] if len(begin) == 1 else prefix_id
        before = begin if len(begin) == 1 and text_ids is not None else ()
    return ModelTokenizer(
        vocabulary=vocabulary,
        prefix_id=prefix_id,
        stop_ids=frozenset([end, *turn_ends(vocabulary, template, special)]),
        before=before,
        special=special,
        chat_template=template,
        special_text=True,  # which the template writes
    )


def turn_ends(tokenizer: Tokenizer, template: str, special: Mapping[str, str]) -> list[int]:
    """The id with which a template ends an answer, as a list; empty if it writes no single token there."""
    word = "Answer"
    turns = [{"role": "user", "content": "Question"}, {"role": "assistant", "content": word}]
    answer, _ = answer_parts(turns, template=template, special=special)[-1]
    after = answer.rpartition(word)[2].strip()
    ids = tokenizer.encode_each([after], special=True)[0] if after else []
    return ids if len(ids) == 1 and len(after) > 1 else []  # a single character would be ordinary text


def for_folder(vocabulary: Tokenizer, folder: str | os.PathLike) -> ModelTokenizer:
    """The tokenizer of a Hugging Face folder, used as by transformers: with the ids that its post-processor or settings
    put around every text, special tokens recognised, and all end-of-text ids that its files name.

    Args:
      vocabulary: loaded from this folder; folder: of the tokenizer, or of the model that it is in.

    Raises:
      InputError: one of the files is damaged, or the chat template is not text.
    """
    inner = os.path.dirname(vocabulary.files[0]) if vocabulary.files else os.fspath(folder)
    settings = read_settings(inner)
    is_own = isinstance(vocabulary, SentencePieceTokenizer) and not settings.has_no_bos
    named = is_own or "bos_token" in settings.special
    before, after = vocabulary.surrounding_ids()
    ends = {
        end for ids in (settings, read_settings(os.fspath(folder))) for end in itertools.chain(*ids.end_ids.values())
    }
    return ModelTokenizer(
        vocabulary=vocabulary,
        prefix_id=vocabulary.bos_id if named and vocabulary.bos_id is not None else vocabulary.end_of_text_id,
        stop_ids=frozenset({vocabulary.end_of_text_id, *ends}),
        before=before,
        after=after,
        special=vocabulary.special,
        chat_template=folder_template(Path(inner)),
        special_text=True,
    )
