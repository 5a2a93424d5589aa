"""Conversations as rows: examples packed without cutting them, their tokens with the flags of `rows`.

`Job` and `Chunk` are sent to the processes of a preparation.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
import json
from pathlib import Path
from typing import Any

import numpy as np

from diversity_jax.core.artifacts import ArtifactStore
from diversity_jax.core.buckets import local_copy
from diversity_jax.core.errors import InputError
from diversity_jax.core.files import open_file
from diversity_jax.corpus.conversations import message_text
from diversity_jax.prepare.config import Chat, Preparation
from diversity_jax.prepare.decontaminate import Benchmarks
from diversity_jax.prepare.rows import START, TARGET
from diversity_jax.tokenizers.base import without_breaks
from diversity_jax.tokenizers.chat_template import BEGIN_WITH_BOS, OWN_TEMPLATE, answer_parts, with_system_prompt
from diversity_jax.tokenizers.settings import find_tokenizer, folder_template, read_settings
from diversity_jax.tokenizers.tokenizer import Tokenizer, turn_ends


@dataclass(frozen=True, kw_only=True)
class ChatFormat:
    """A chat template as the manifest records it.

    Attributes:
      template: Jinja source, with the system prompt; special: texts of the special tokens it names.
    """

    template: str
    special: Mapping[str, str] = field(default_factory=dict)


def open_format(chat: Chat, tokenizer: Tokenizer, begins_with_bos: bool = False) -> ChatFormat:
    """Finds the configured chat template, and tries it on a conversation.

    Args:
      begins_with_bos: the project's own template begins with the tokenizer's begin-of-text token; no other is changed.

    Raises:
      InputError: there is no template, or it fails.
    """
    special, template = dict(tokenizer.special), OWN_TEMPLATE
    if begins_with_bos and tokenizer.bos_id is not None:
        special["bos_token"] = tokenizer.token_text(tokenizer.bos_id)
        template = BEGIN_WITH_BOS + template
    if chat.template is not None:
        template, folder = _read_template(chat.template, tokenizer)
        special |= read_settings(str(folder)).special
    if chat.system_prompt is not None:
        template = with_system_prompt(template, chat.system_prompt)
    turn_ends(tokenizer, template, special)
    return ChatFormat(template=template, special=special)


def _read_template(spec: str, tokenizer: Tokenizer) -> tuple[str, Path]:
    """The template's source, and the folder whose settings name the special tokens."""
    path, problem = local_copy(spec), "no such file"
    if spec == "tokenizer" and tokenizer.files:
        path = Path(tokenizer.files[0]).parent
    if spec == "tokenizer" and not tokenizer.files:
        problem = "the vocabulary has no folder"
    elif path.is_dir() or path.name == "tokenizer_config.json":
        files = find_tokenizer(path)  # which may be in `tokenizer/` inside
        folder = Path(files[0]).parent if files else path if path.is_dir() else path.parent
        template = folder_template(folder)
        if template is not None:
            return template, folder
        problem = f"{folder} has no chat template"
    elif path.is_file():
        with open_file(path, "r") as file:
            return file.read(), path.parent
    raise InputError(f"chat.template {spec!r}: {problem}; name a .jinja file or a tokenizer's folder, or leave it out")


class ExampleEncoder:
    """Tokens of conversations, with their flags.

    Args:
      special_text: special tokens' texts in messages are tokens too, not only those that the template writes.
      encoder: one of `tokenizers.encoders.ENCODERS`.
    """

    def __init__(self, tokenizer: Tokenizer, chat: ChatFormat, *, special_text: bool = False, encoder: str = "auto"):
        self._tokenizer, self._chat, self._special_text, self._encoder = tokenizer, chat, special_text, encoder
        self._ends = {tokenizer.end_of_text_id, *turn_ends(tokenizer, chat.template, chat.special)}

    def encode(
        self, conversations: Sequence[str], failed: list[InputError] | None = None
    ) -> tuple[list[np.ndarray], list[int]]:
        """Flagged tokens of each conversation, uint32, and the UTF-8 bytes of its answers.

        Each is a list of messages as JSON. Prompts and answers are tokenised separately, as when the model is used.

        Args:
          failed: gets the errors of conversations on which the template fails, which are then left out; None: they are
            raised.

        Raises:
          InputError: the template fails on one; the error begins with its first message.
        """
        messages, parts = list[Any](), list[list[tuple[str, bool]]]()
        for turns in map(json.loads, conversations):
            try:
                parts.append(self._parts(turns))
                messages.append(turns)
            except InputError as error:
                if failed is None:
                    raise
                failed.append(error)
        texts = [text for conversation in parts for text, _ in conversation]
        ids = iter(self._tokenizer.encode_each(texts, special=True, encoder=self._encoder))
        examples, answer_bytes = [], []
        for turns, conversation in zip(messages, parts, strict=True):
            flagged = [self._flagged(next(ids), is_answer, i) for i, (_, is_answer) in enumerate(conversation)]
            example = np.concatenate(flagged)
            example[0] |= START
            examples.append(example)
            answers = [message_text(turn).strip() for turn in turns if turn["role"] == "assistant"]
            answer_bytes.append(sum(len(answer.encode()) for answer in answers))
        return examples, answer_bytes

    def _parts(self, messages: Sequence[Mapping[str, str]]) -> list[tuple[str, bool]]:
        try:
            if not self._special_text:
                messages = self._tokenizer.with_plain_content(messages)
            return answer_parts(messages, template=self._chat.template, special=self._chat.special)
        except InputError as error:
            begins = without_breaks(message_text(messages[0]))[:60]
            remedy = "or leave such conversations out with max_broken_share"
            raise InputError(f"conversation {begins!r}: {error}; {remedy}") from None

    def _flagged(self, ids: list[int], is_answer: bool, part: int) -> np.ndarray:
        if not is_answer:
            # So that the first token of an answer to an empty prompt has a token before it to be predicted from.
            return np.array(ids or ([self._tokenizer.end_of_text_id] if part == 0 else []), np.uint32)
        if self._ends.isdisjoint(ids[-3:]):  # the template writes no end for the model to learn
            ids = [*ids, self._tokenizer.end_of_text_id]
        return np.array(ids, np.uint32) | TARGET


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Best-fit decreasing: each length, longest first, goes into the row with the least free space that it fits.

    Johnson et al. (1974): at most 11/9 of the fewest rows possible; in practice a row or two more if many are short.

    Returns:
      Indices of the lengths in each row; the rows in the order in which they were begun.

    Raises:
      ValueError: a length is above `capacity`.
    """
    rows: list[list[int]] = []
    rows_by_free: dict[int, list[int]] = {}
    free_sizes = 0  # bit f is set if a row has f tokens free, so that the best fit is the lowest bit after shifting
    for number in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        length = lengths[number]
        if length > capacity:
            raise ValueError(f"length {length} is above the capacity {capacity}")
        fitting = free_sizes >> length
        if fitting:
            free = length + (fitting & -fitting).bit_length() - 1
            row = rows_by_free[free].pop()
            if not rows_by_free[free]:
                free_sizes &= ~(1 << free)
        else:
            free, row = capacity, len(rows)
            rows.append([])
        rows[row].append(number)
        rows_by_free.setdefault(free - length, []).append(row)
        free_sizes |= 1 << free - length
    return rows


def fill_rows(
    examples: Sequence[np.ndarray], packed: Sequence[Sequence[int]], row_tokens: int, end_of_text_id: int
) -> np.ndarray:
    """Packed examples as rows, uint32 [rows, row_tokens]; padding is end-of-text, in a segment of its own."""
    rows = np.full((len(packed), row_tokens), end_of_text_id, np.uint32)
    for row, numbers in zip(rows, packed, strict=True):
        end = 0
        for number in numbers:
            start, end = end, end + len(examples[number])
            row[start:end] = examples[number]
        row[end : end + 1] |= START
    return rows


def split_examples(tokens: np.ndarray) -> list[np.ndarray]:
    """Splits flagged tokens of examples end to end into the examples."""
    starts = np.flatnonzero(tokens & START)
    return np.split(tokens, starts[1:]) if len(tokens) else []


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Consecutive documents of one unit of a corpus; names are unique and sort in the order of the corpus.

    Attributes:
      encoder: one of `tokenizers.encoders.ENCODERS` but `auto`, which depends on what was encoded before.
    """

    name: str
    ids: Sequence[str]
    texts: Sequence[str]
    encoder: str = "reference"


@dataclass(frozen=True, kw_only=True)
class Job:
    """What every process of a preparation needs; sent to each once.

    Attributes:
      benchmarks: to screen documents with.
      folder: where the component goes; staging_dir: of intermediate files. Paths or URLs.
      dtype: of a token, `<u2` or `<u4`.
      chat: how conversations are written; None: documents are text.
      are_failures_tolerated: conversations on which the template fails are left out and counted, instead of an error.
      begin_of_text_id: written before every document; None: nothing.
      reference_from: as `encoding.EncoderChoice.reference_from`.
    """

    tokenizer: Tokenizer
    settings: Preparation
    benchmarks: Benchmarks | None
    folder: str
    staging_dir: str
    dtype: str
    chat: ChatFormat | None = None
    are_failures_tolerated: bool = False
    begin_of_text_id: int | None = None
    reference_from: str | None = None

    @property
    def added_tokens(self) -> int:
        """Tokens added to each document of text: end-of-text, and perhaps begin-of-text."""
        return 1 if self.begin_of_text_id is None else 2

    @property
    def row_tokens(self) -> int:
        return self.settings.sequence_length + 1

    @property
    def staging(self) -> ArtifactStore:
        """Intermediate files and their records."""
        return ArtifactStore(self.staging_dir)
