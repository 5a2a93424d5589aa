"""Reads instruction data in the usual published forms as conversations: lists of messages with roles."""

from collections.abc import Mapping, Sequence
import json
from typing import Any

from diversity_jax.core.json_text import ROLES, read_tool_call
from diversity_jax.corpus.document import CONVERSATION_FORMS, Document, Rejected, list_fields, refuse_lone_surrogate

_LISTS = ("messages", "conversations")
_PAIRS = (
    ("inputs_pretokenized", "targets_pretokenized"),  # text of a SeqIO task that also has ids
    ("inputs", "targets"),  # FLAN
    ("prompt", "completion"),
    ("prompt", "response"),
    ("question", "answer"),
)
_TEXTS = {"alpaca": (("instruction", "output"),), "pairs": _PAIRS[1:], "messages": (("prompt",),)}
"""Fields of each form that hold the text of a conversation; `prompt` is the question of some lists of messages."""
# Fields that are not read, though without them a conversation says something else.
_UNREAD = {
    "messages": ("system", "system_prompt", "tools", "functions"),
    "alpaca": ("system", "system_prompt", "history"),
    "pairs": ("system_prompt",),
    "message": ("function_call", "reasoning_content"),
}
_EMPTY = ("None", "", "[]", "{}")  # some data sets hold lists as text
_REMEDY = "remove the record, or leave such ones out with max_broken_share"
_SPEAKERS = {"human": "user", "gpt": "assistant"}  # as ShareGPT names them

Message = dict[str, Any]


def as_conversation(document: Document, form: str) -> Document:
    """The conversation of a document whose `meta` has all fields of its record.

    Its text is the contents of all messages joined, its `meta["messages"]` the messages themselves.

    Args:
      form: one of `CONVERSATION_FORMS`.

    Raises:
      Rejected: see `read_messages`.
    """
    messages = read_messages(document.meta, form, document.id)
    text = "\n\n".join(map(message_text, messages))
    return Document(id=document.id, text=text, meta={"messages": messages})


def read_messages(record: Mapping[str, Any], form: str, where: str) -> list[Message]:
    """A record's turns up to the assistant's last one, each `{"role": ..., "content": ...}`.

    An assistant's `tool_calls` are kept, their arguments parsed, and the `name` and `tool_call_id` of tools' messages;
    its content may then be null. The chat template has to write them.

    Args:
      form: `messages` (a list of role and content, or of ShareGPT's from and value), `alpaca` (instruction, optional
        input, output), `pairs` (inputs and targets, prompt and completion or response, question and answer), or `auto`:
        the first of these whose fields the record has.
      where: names the record in an error.

    Raises:
      Rejected: a field is missing or is not text, a role is unknown, nothing is answered, an answer or a question is
        empty, a field that is not read changes the conversation, or other fields of these forms hold another one.
    """
    wanted = CONVERSATION_FORMS[1:] if form == "auto" else (form,)
    for name in wanted:
        if (messages := _READERS[name](record, where)) is not None:
            _refuse_unread(record, name, where)
            _refuse_other_texts(record, wanted, messages, where)
            break
    else:
        expected = {"messages": "messages", "alpaca": "instruction and output", "pairs": "inputs and targets"}
        fields = ", or ".join(expected[name] for name in wanted)
        raise Rejected("no conversation", f"{where}: has no {fields}; its fields: {list_fields(record)}")
    return _checked(messages, where)


def message_text(message: Mapping[str, Any]) -> str:
    """A message's content, followed by its tool calls as JSON."""
    calls = (json.dumps(call["function"], ensure_ascii=False) for call in message.get("tool_calls", ()))
    return "\n".join(filter(None, (message["content"], *calls)))


def _messages(record: Mapping[str, Any], where: str) -> list[Message] | None:
    for name in _LISTS:
        turns = record.get(name)
        if isinstance(turns, Sequence) and not isinstance(turns, str):
            return [_message(turn, f"{name}[{number}]", where) for number, turn in enumerate(turns)]
    return _columns(record, where)


def _refuse_unread(record: Mapping[str, Any], kind: str, where: str) -> None:
    if unread := next((field for field in _UNREAD[kind] if str(record.get(field)).strip() not in _EMPTY), None):
        remedy = "take the field out, or put a system prompt into messages as role system"
        raise Rejected("unread field", f"{where}: field {unread!r} is not read, but changes the conversation; {remedy}")


def _refuse_other_texts(record: Mapping[str, Any], forms: Sequence[str], messages: list[Message], where: str) -> None:
    """Refuses a record that holds a second conversation: texts in fields of `forms` that are not in the messages."""
    contents = [message["content"].strip() for message in messages if message["content"].strip()]
    read = "\n\n".join(contents)
    lists = {name: record[name] for name in _LISTS if "messages" in forms and isinstance(record.get(name), list)}
    others = list(lists.items())[1:]
    texts = [(name, turn.get("content", turn.get("value"))) for name, turns in others for turn in turns if turn]
    has_text = "inputs_pretokenized" in record  # of which `inputs` was made
    for fields in (fields for form in forms for fields in _TEXTS[form]):
        if set(fields) <= set(record) and not (has_text and "inputs" in fields) and (lists or fields != ("prompt",)):
            texts += [(field, record[field]) for field in fields]
    for name, text in texts:
        # Some data sets also hold a question in the form of a prompt.
        is_read = not isinstance(text, str) or text.strip() in read or any(content in text for content in contents)
        if not is_read:
            remedy = "take one out" + (", or set corpus.conversations to the form to read" if len(forms) > 1 else "")
            raise Rejected("two conversations", f"{where}: {name!r} says something else than what is read; {remedy}")


def _message(turn: Any, name: str, where: str) -> Message:
    if not isinstance(turn, Mapping):
        raise Rejected("broken message", f"{where}: {name} is not an object; expected one with role and content")
    _refuse_unread(turn, "message", f"{where}: {name}")
    if turn.get("weight") not in (None, 1):
        raise Rejected("unread field", f"{where}: {name}.weight is {turn['weight']!r}; answers all count 1: {_REMEDY}")
    role: Any = turn.get("role", turn.get("from"))
    role = _SPEAKERS.get(role, role) if isinstance(role, str) else role
    content = turn.get("content", turn.get("value"))
    calls = None if str(turn.get("tool_calls")).strip() in _EMPTY else turn["tool_calls"]
    message = {"role": role, "content": "" if calls and content is None else _text(content, f"{name}.content", where)}
    if calls:
        try:
            if role != "assistant":
                raise ValueError("others call nothing")
            message["tool_calls"] = list(map(read_tool_call, calls))
        except (TypeError, KeyError, ValueError, RecursionError):
            problem = f"{name}.tool_calls: expected functions with name and arguments, and the role assistant"
            raise Rejected("broken tool call", f"{where}: {problem}; {_REMEDY}") from None
    if role == "tool":
        message |= {key: turn[key] for key in ("name", "tool_call_id") if isinstance(turn.get(key), str)}
    return message


def _columns(record: Mapping[str, Any], where: str) -> list[Message] | None:
    """Messages as TensorFlow Datasets stores them: a list of roles and a list of contents."""
    for name in _LISTS:
        for role_field, content_field in (("role", "content"), ("from", "value")):
            roles, contents = record.get(f"{name}.{role_field}"), record.get(f"{name}.{content_field}")
            if isinstance(roles, list) and isinstance(contents, list) and len(roles) == len(contents):
                named = (
                    {role_field: role, content_field: content} for role, content in zip(roles, contents, strict=True)
                )
                return [_message(turn, f"{name}[{number}]", where) for number, turn in enumerate(named)]
    return None


def _alpaca(record: Mapping[str, Any], where: str) -> list[Message] | None:
    if "instruction" not in record or "output" not in record:
        return None
    question = _text(record["instruction"], "instruction", where)
    context = _text(record.get("input") or "", "input", where)
    return _turn(f"{question}\n\n{context}" if context.strip() else question, _text(record["output"], "output", where))


def _pairs(record: Mapping[str, Any], where: str) -> list[Message] | None:
    for question, answer in _PAIRS:
        if question in record and answer in record:
            return _turn(_text(record[question], question, where), _text(record[answer], answer, where))
    return None


def _turn(question: str, answer: str) -> list[Message]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


_READERS = {"messages": _messages, "alpaca": _alpaca, "pairs": _pairs}


def _text(value: Any, field: str, where: str) -> str:
    """A text, or a list of parts `{"type": "text", "text": ...}` joined."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value:
        parts = [part.get("text") if isinstance(part, Mapping) else None for part in value]
        if all(isinstance(part, str) for part in parts):
            return "".join(map(str, parts))
    kind = "nothing" if value is None else type(value).__name__
    raise Rejected("not text", f"{where}: field {field!r} holds {kind}, not text; {_REMEDY}")


def _checked(messages: list[Message], where: str) -> list[Message]:
    """The messages up to the last answer."""
    for number, message in enumerate(messages):
        role, content, name = message["role"], message["content"], f"{where}: messages[{number}]"
        if role not in ROLES:
            raise Rejected("unknown role", f"{name}.role is {role!r}; expected one of {', '.join(ROLES)}")
        refuse_lone_surrogate(message_text(message), name)
        if not content.strip() and not message.get("tool_calls") and role in ("user", "assistant"):
            kind = "answer" if role == "assistant" else "question"
            raise Rejected(f"empty {kind}", f"{name} is an empty {kind}; {_REMEDY}")
    answers = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
    if not answers:
        raise Rejected("no answer", f"{where}: nobody answers (no message of the role assistant); remove the record")
    return messages[: answers[-1] + 1]
