"""Instruction data: records in the forms people publish it in, read as conversations of who said what."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from diversity_jax.corpus.document import CONVERSATION_FORMS, Document, Records, Rejected, is_encodable, list_fields

ROLES = ("system", "developer", "user", "assistant", "tool")
_LISTS = ("messages", "conversations")
_PAIRS = (
    ("inputs_pretokenized", "targets_pretokenized"),  # text that a SeqIO task kept beside its ids
    ("inputs", "targets"),  # FLAN
    ("prompt", "completion"),
    ("prompt", "response"),
    ("question", "answer"),
)
_SPEAKERS = {"human": "user", "gpt": "assistant"}  # as ShareGPT names them

Message = dict[str, str]


class ConversationRecords:
    """The records of one part, read whole; a document's text is what was said, its `meta["messages"]` who said it.

    Args:
      records: whose decoding leaves all fields of a record in the metadata.
      form: one of `CONVERSATION_FORMS`.
    """

    def __init__(self, records: Records, form: str):
        self._records, self._form = records, form

    def batches(self) -> Iterator[Sequence[Any]]:
        return self._records.batches()

    def decode(self, raw: Any, position: int) -> Document | None:
        document = self._records.decode(raw, position)
        if document is None:
            return None
        messages = read_messages(document.meta, self._form, document.id)
        text = "\n\n".join(message["content"] for message in messages)
        return Document(id=document.id, text=text, meta={"messages": messages})

    def count(self) -> int | None:
        return self._records.count()

    def fetch(self, positions: np.ndarray) -> Iterator[Any]:
        return self._records.fetch(positions)

    def expected_bytes(self) -> int | None:
        return self._records.expected_bytes()

    def content_hash(self) -> str | None:
        return self._records.content_hash()


def read_messages(record: Mapping[str, Any], form: str, where: str) -> list[Message]:
    """A record's turns up to the assistant's last one, each `{"role": ..., "content": ...}`.

    Args:
      form: `messages` (a list of role and content, or of ShareGPT's from and value), `alpaca` (instruction, perhaps
        input, output), `pairs` (inputs and targets, prompt and completion or response, question and answer), or `auto`:
        the first of these that the record has.
      where: names the record in an error.

    Raises:
      Rejected: a field is missing or is not text, a role is unknown, nothing is answered, or an answer or a question is
        empty.
    """
    wanted = CONVERSATION_FORMS[1:] if form == "auto" else (form,)
    found = next((turns for one in wanted if (turns := _READERS[one](record, where)) is not None), None)
    if found is None:
        expected = {"messages": "messages", "alpaca": "instruction and output", "pairs": "inputs and targets"}
        named = ", or ".join(expected[one] for one in wanted)
        raise Rejected("no conversation", f"{where}: has no {named}; its fields: {list_fields(record)}")
    return _checked(found, where)


def _messages(record: Mapping[str, Any], where: str) -> list[Message] | None:
    name = next(
        (name for name in _LISTS if isinstance(record.get(name), Sequence) and not isinstance(record[name], str)), None
    )
    if name is None:
        return _columns(record)
    turns = []
    for number, turn in enumerate(record[name]):
        if not isinstance(turn, Mapping):
            raise Rejected(
                "broken message",
                f'{where}: {name}[{number}] is not an object; expected {{"role": ..., "content": ...}}',
            )
        role = turn.get("role", turn.get("from"))
        content = turn.get("content", turn.get("value"))
        turns.append({"role": _SPEAKERS.get(role, role), "content": _text(content, f"{name}[{number}].content", where)})
    return turns


def _columns(record: Mapping[str, Any]) -> list[Message] | None:
    """A list of messages as TensorFlow Datasets hands it over: one list of roles, one of contents."""
    for name in _LISTS:
        for speaker, said in (("role", "content"), ("from", "value")):
            roles, contents = record.get(f"{name}.{speaker}"), record.get(f"{name}.{said}")
            if isinstance(roles, list) and isinstance(contents, list) and len(roles) == len(contents):
                return [
                    {"role": _SPEAKERS.get(role, role), "content": content}
                    for role, content in zip(roles, contents, strict=True)
                ]
    return None


def _alpaca(record: Mapping[str, Any], where: str) -> list[Message] | None:
    if "instruction" not in record or "output" not in record:
        return None
    asked = _text(record["instruction"], "instruction", where)
    given = _text(record.get("input") or "", "input", where)
    question = f"{asked}\n\n{given}" if given.strip() else asked
    return [
        {"role": "user", "content": question},
        {"role": "assistant", "content": _text(record["output"], "output", where)},
    ]


def _pairs(record: Mapping[str, Any], where: str) -> list[Message] | None:
    for asked, answered in _PAIRS:
        if asked in record and answered in record:
            question, answer = _text(record[asked], asked, where), _text(record[answered], answered, where)
            return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return None


_READERS = {"messages": _messages, "alpaca": _alpaca, "pairs": _pairs}


def _text(value: Any, field: str, where: str) -> str:
    if isinstance(value, str):
        return value
    raise Rejected(
        "not text", f"{where}: field {field!r} holds {'nothing' if value is None else type(value).__name__}, not text"
    )


def _checked(messages: list[Message], where: str) -> list[Message]:
    """The turns up to the last answer."""
    for number, message in enumerate(messages):
        if message["role"] not in ROLES:
            raise Rejected(
                "unknown role",
                f"{where}: messages[{number}].role is {message['role']!r}; expected one of {', '.join(ROLES)}",
            )
        if not is_encodable(message["content"]):
            raise Rejected(
                "lone surrogate",
                f"{where}: messages[{number}] holds a lone surrogate, which UTF-8 cannot; write it again",
            )
        if not message["content"].strip() and message["role"] in ("user", "assistant"):
            what = "answer" if message["role"] == "assistant" else "question"
            remedy = "remove the record, or leave such ones out with max_broken_share"
            raise Rejected(f"empty {what}", f"{where}: messages[{number}] is an empty {what}; {remedy}")
    answers = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
    if not answers:
        raise Rejected("no answer", f"{where}: nobody answers (no message of the role assistant); remove the record")
    return messages[: answers[-1] + 1]
