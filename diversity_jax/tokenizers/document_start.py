"""Which token begins a document: one meaning for rows, attention, loss, evaluation, generation and export.

Rows of text are a stream of documents, each followed by end-of-text. A document is preceded by

- `none`: nothing. The first token of a document is never predicted.
- `end_of_text`: the end-of-text token of the document before. As a target it ends that document; as an input it begins
  the next one. Rows are the same as with `none`.
- `bos`: the tokenizer's own begin-of-text token, written into the rows: `[BOS] document [EOS]`. It is never predicted.

Rows and runs older than this setting have None, and keep their former meaning: if attention does not cross documents,
segments begin after end-of-text, the first token of a document is a target of the one before, and texts begin with
nothing. If it does, end-of-text replaces an empty text, and precedes no other.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from diversity_jax.core.errors import InputError
from diversity_jax.tokenizers.base import Tokenizer

DOCUMENT_STARTS = ("none", "end_of_text", "bos")
SETTINGS = ("auto", *DOCUMENT_STARTS)


def check_setting(value: str, name: str = "document_start") -> None:
    """Raises InputError if a setting is not one of `SETTINGS`."""
    if value not in SETTINGS:
        raise InputError(f"{name} {value!r} is unknown; choose one of {', '.join(SETTINGS)}")


def resolve(setting: str, tokenizer: Tokenizer) -> str:
    """One of `DOCUMENT_STARTS`; `auto` is `bos` where the tokenizer's makers put it before every text.

    Raises:
      InputError: `bos` for a tokenizer that has no begin-of-text token of its own.
    """
    bos, end = tokenizer.bos_id, tokenizer.end_of_text_id
    if setting == "auto":
        return "bos" if tokenizer.adds_bos and bos not in (None, end) else "end_of_text"
    if setting == "bos" and bos in (None, end):
        has = "no begin-of-text token" if bos is None else "one token that begins and ends a text"
        raise InputError(f"document_start 'bos': the vocabulary ({tokenizer.kind}) has {has}; set it to 'end_of_text'")
    return setting


def start_id(document_start: str, tokenizer: Tokenizer) -> int | None:
    """The id before a document's first token; None for `none`."""
    return {"none": None, "end_of_text": tokenizer.end_of_text_id, "bos": tokenizer.bos_id}[document_start]


@dataclass(frozen=True, kw_only=True)
class Boundaries:
    """Where documents begin in rows of text, for attention, loss and evaluation.

    Attributes:
      document_start: one of `DOCUMENT_STARTS`; None: older than the setting.
      start_id: the id before a document's first token; None: nothing.
      separate: attention and positions stay inside documents.
    """

    document_start: str | None
    start_id: int | None
    end_of_text_id: int
    separate: bool

    @classmethod
    def of_mixture(cls, mixture: Mapping[str, Any], *, attend_across_documents: bool) -> Self:
        """From the content of a `mixture.json` and a run's setting."""
        return cls.of(
            mixture.get("document_start"),
            mixture.get("document_start_id"),
            mixture["vocabulary"]["end_of_text_id"],
            attend_across_documents=attend_across_documents,
        )

    @classmethod
    def of(
        cls, document_start: str | None, start: int | None, end_of_text_id: int, *, attend_across_documents: bool
    ) -> Self:
        """From a mixture's `document_start` and its id, either of which may be None in older files."""
        unrecorded = end_of_text_id if attend_across_documents else None
        return cls(
            document_start=document_start,
            start_id=unrecorded if document_start is None else start,
            end_of_text_id=end_of_text_id,
            separate=not attend_across_documents,
        )

    @property
    def text_ids(self) -> tuple[int, ...] | None:
        """Ids that a text begins with in evaluation, generation, server and export; None: an empty text begins with
        end-of-text, others with nothing.
        """
        if self.start_id is None:
            return ()
        return None if self.document_start is None else (self.start_id,)

    @property
    def masks_targets(self) -> bool:
        """Whether some tokens of text are no targets of the loss."""
        return self.document_start in ("none", "bos")

    def starts(self, tokens: np.ndarray) -> np.ndarray:
        """Where segments begin as inputs, bool like `tokens` [B, L + 1]; the first column is always True.

        With `end_of_text`, a segment begins at that token, which is still a target of the segment before: targets are
        shifted by one.
        """
        starts = tokens == self.end_of_text_id if self.document_start == "end_of_text" else self._begins(tokens)
        starts[:, :1] = True
        return starts

    def targets(self, tokens: np.ndarray) -> np.ndarray:
        """Tokens that the loss counts as targets, bool like `tokens`.

        With `bos` all but that token, with `none` all but the first of a document, which would be predicted from the
        unrelated document before it.
        """
        return ~self._begins(tokens) if self.masks_targets else np.ones(tokens.shape, bool)

    def _begins(self, tokens: np.ndarray) -> np.ndarray:
        """First tokens of documents: those after end-of-text; with `bos`, only if they are that token."""
        begins = np.zeros(tokens.shape, bool)
        begins[:, 1:] = tokens[:, :-1] == self.end_of_text_id
        return begins & (tokens == self.start_id) if self.document_start == "bos" else begins
