"""Conversations as rows: whole examples packed side by side, each token with a bit that says whether the loss counts
it.

A row holds `sequence_length + 1` tokens as `marks` lays them out. What examples leave of it is end-of-text, one more
segment without targets.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from diversity_jax.core.errors import InputError
from diversity_jax.core.files import open_file
from diversity_jax.prepare.config import Chat
from diversity_jax.prepare.rows import START, TARGET
from diversity_jax.tokenizers.chat_template import OWN_TEMPLATE, answer_parts, with_system_prompt
from diversity_jax.tokenizers.files import folder_template, special_tokens
from diversity_jax.tokenizers.tokenizer import Tokenizer, encode_with_special, turn_ends


@dataclass(frozen=True, kw_only=True)
class ChatFormat:
    """A chat template ready for use, as the manifest keeps it.

    Attributes:
      template: Jinja source, a system prompt in it; special: texts of the special tokens it names.
    """

    template: str
    special: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """What the manifest says."""
        return {"template": self.template, "special": dict(self.special)}


def open_format(chat: Chat, tokenizer: Tokenizer) -> ChatFormat:
    """Finds the template that is asked for, and tries it on a conversation.

    Raises:
      InputError: no template there, or it fails.
    """
    beside = Path(os.path.dirname(tokenizer.files[0])) if tokenizer.files else None
    special = dict(tokenizer.special)
    if chat.template is None:
        template = OWN_TEMPLATE
    else:
        template, folder = _read_template(chat.template, beside)
        special |= special_tokens(folder)
    if chat.system_prompt is not None:
        template = with_system_prompt(template, chat.system_prompt)
    turn_ends(tokenizer, template, special)
    return ChatFormat(template=template, special=special)


def _read_template(spec: str, beside: Path | None) -> tuple[str, Path]:
    """The source, and the folder whose settings name the special tokens."""
    path = Path(spec)
    if spec == "tokenizer":
        if beside is None:
            raise InputError(
                "chat.template 'tokenizer': the vocabulary has no folder; name a .jinja file, or leave it out for our "
                "own"
            )
        path = beside
    if path.is_dir() or path.name == "tokenizer_config.json":
        folder = path if path.is_dir() else path.parent
        found = folder_template(folder)
        if found is None:
            raise InputError(
                f"chat.template {spec!r}: {folder} has no chat template; name a .jinja file, or leave it out for our "
                "own"
            )
        return found, folder
    if not path.is_file():
        raise InputError(
            f"chat.template {spec!r}: no such file; give a .jinja file or a tokenizer's folder, or leave it out for "
            "our own"
        )
    with open_file(path, "r") as file:
        return file.read(), path.parent


class ExampleEncoder:
    """Tokens of conversations, with their bits.

    Args:
      tokenizer: text to ids; chat: how conversations are written.
    """

    def __init__(self, tokenizer: Tokenizer, chat: ChatFormat):
        self._tokenizer, self._chat = tokenizer, chat
        self._ends = {tokenizer.end_of_text_id, *turn_ends(tokenizer, chat.template, chat.special)}

    def encode(self, conversations: Sequence[str]) -> tuple[list[np.ndarray], list[int]]:
        """Marked tokens of each conversation, uint32, and the UTF-8 bytes of its answers.

        Questions and answers are tokenised by themselves, as they are when a model is asked.

        Args:
          conversations: messages as JSON.

        Raises:
          InputError: the template fails on one; the line begins with what is asked in it.
        """
        messages = [json.loads(one) for one in conversations]
        parts = [self._parts(one) for one in messages]
        ids = iter(
            encode_with_special(
                self._tokenizer, [text for one in parts for text, _ in one], self._tokenizer.special_ids
            )
        )
        examples, answer_bytes = [], []
        for said, one in zip(messages, parts, strict=True):
            examples.append(
                np.concatenate([self._marked(next(ids), is_answer, first) for first, (_, is_answer) in enumerate(one)])
            )
            examples[-1][0] |= START
            answer_bytes.append(
                sum(len(turn["content"].strip().encode()) for turn in said if turn["role"] == "assistant")
            )
        return examples, answer_bytes

    def _parts(self, messages: Sequence[Mapping[str, str]]) -> list[tuple[str, bool]]:
        try:
            return answer_parts(messages, template=self._chat.template, special=self._chat.special)
        except InputError as error:
            raise InputError(f"conversation {messages[0]['content'][:60]!r}: {error}") from None

    def _marked(self, ids: list[int], is_answer: bool, place: int) -> np.ndarray:
        if not is_answer:
            # Even an answer to nothing follows a token, from which its first is predicted.
            return np.array(ids or ([self._tokenizer.end_of_text_id] if place == 0 else []), np.uint32)
        if self._ends.isdisjoint(ids[-3:]):  # the template writes no end that the model could learn to stop at
            ids = [*ids, self._tokenizer.end_of_text_id]
        return np.array(ids, np.uint32) | TARGET


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Best-fit decreasing: each length, longest first, goes where it leaves the least room.

    Johnson et al. (1974): at most 11/9 of the fewest rows, and in practice within a row or two where many lengths are
      short.

    Returns:
      Numbers of the lengths in each row; the rows in the order in which they were begun.

    Raises:
      ValueError: a length is above `capacity`.
    """
    rows: list[list[int]] = []
    rows_with_room: dict[int, list[int]] = {}
    rooms = 0  # bit r is set where a row has room r
    for number in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        length = lengths[number]
        if length > capacity:
            raise ValueError(f"length {length} is above the capacity {capacity}")
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            row = rows_with_room[room].pop()
            if not rows_with_room[room]:
                rooms &= ~(1 << room)
        else:
            room, row = capacity, len(rows)
            rows.append([])
        rows[row].append(number)
        left = room - length
        rows_with_room.setdefault(left, []).append(row)
        rooms |= 1 << left
    return rows


def fill_rows(
    examples: Sequence[np.ndarray], packed: Sequence[Sequence[int]], row_tokens: int, end_of_text_id: int
) -> np.ndarray:
    """Packed examples as rows, uint32 [rows, row_tokens]; what is left of a row is end-of-text, a segment of its
    own.
    """
    rows = np.full((len(packed), row_tokens), end_of_text_id, np.uint32)
    for row, numbers in zip(rows, packed, strict=True):
        at = 0
        for number in numbers:
            row[at : at + len(examples[number])] = examples[number]
            at += len(examples[number])
        row[at : at + 1] |= START
    return rows


def split_examples(tokens: np.ndarray) -> list[np.ndarray]:
    """Marked tokens that lie end to end, example by example."""
    starts = np.flatnonzero(tokens & START)
    return np.split(tokens, starts[1:]) if len(tokens) else []
