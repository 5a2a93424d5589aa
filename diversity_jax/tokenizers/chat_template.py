"""Renders conversations as text, by the project's own chat template or a tokenizer's Jinja template."""

from collections.abc import Mapping, Sequence
import json
from typing import Any

from diversity_jax.core.errors import InputError
from diversity_jax.core.json_text import ROLES
from diversity_jax.tokenizers import template_process
from diversity_jax.tokenizers.template_process import TemplateFault, render_here

# An instruction and its answer under plain headings, without special tokens but the end of an answer.
OWN_TEMPLATE = """\
{%- for message in messages %}
{%- if not loop.first %}{{ "\\n\\n" }}{% endif %}
{%- if message.role == "system" %}{{ message.content | trim }}
{%- elif message.role == "user" %}{{ "### Instruction:\\n" ~ message.content | trim }}
{%- elif message.role == "assistant" %}{{ "### Response:\\n" ~ message.content | trim ~ eos_token }}
{%- else %}{{ raise_exception("roles are system, user and assistant, not " ~ message.role) }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ ("\\n\\n" if messages else "") ~ "### Response:\\n" }}{% endif %}
"""
BEGIN_WITH_BOS = "{{ bos_token }}"
"""Put before `OWN_TEMPLATE` if documents begin with the tokenizer's own begin-of-text token."""
SPECIAL_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token")


def check_messages(messages: Any) -> None:
    """Raises InputError if `messages` is not a list of `{"role": ..., "content": ...}`; it names the wrong entry."""
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise InputError('messages: expected a list of at least one {"role": ..., "content": ...}')
    for number, message in enumerate(messages):
        if not isinstance(message, Mapping) or message.get("role") not in ROLES:
            raise InputError(f"messages[{number}].role: expected one of {', '.join(ROLES)}")
        if not isinstance(message.get("content"), str):
            raise InputError(f"messages[{number}].content: expected text")


def render_chat(
    messages: Sequence[Mapping[str, Any]],
    *,
    template: str | None = None,
    special: Mapping[str, str] | None = None,
    add_generation_prompt: bool = True,
) -> str:
    """The conversation as the text that a model continues.

    Args:
      messages: role and content of each turn.
      template: Jinja source, run in a sandbox in another process, with the functions that transformers gives templates;
        None: the project's own.
      special: values such as `bos_token` and `eos_token`.
      add_generation_prompt: end the text where an answer of the assistant begins; else a last turn of the assistant is
        left without its end, to be continued.

    Raises:
      InputError: bad messages, or a template that cannot be read, refuses them or fails; the message carries its
        reason.
    """
    check_messages(messages)
    (text,) = _render([(messages, add_generation_prompt)], template, special)
    if not text.strip():
        raise InputError("chat template: renders these messages to nothing; fix the template")
    if add_generation_prompt or messages[-1]["role"] != "assistant":
        return text
    last = messages[-1]["content"].strip()
    start = text.rfind(last)
    if start < 0:
        raise InputError("chat template: changes the last turn, which cannot be continued; end with a turn of the user")
    return text[: start + len(last)]


def answer_parts(
    messages: Sequence[Mapping[str, Any]], *, template: str | None = None, special: Mapping[str, str] | None = None
) -> list[tuple[str, bool]]:
    """The text of a conversation in parts: prompts, and the assistant's answers with their end token.

    Every prompt ends exactly where the text of `render_chat` does, so that training and use agree.

    Args:
      messages: the last is the assistant's.

    Returns:
      (text, whether it is an answer) of each part, in order.

    Raises:
      InputError: as `render_chat`; or the template writes a turn differently when more turns follow.
    """
    check_messages(messages)
    numbers = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
    called = [number for number in numbers if messages[number].get("tool_calls")]
    if called and "tool_calls" not in (template or ""):
        lacks = f"chat template: has no place for the tool calls in messages[{called[0]}]"
        raise InputError(f"{lacks}; set chat.template to one that has")
    asked = [part for number in numbers for part in ((messages[:number], True), (messages[: number + 1], False))]
    text, *rendered = _render([(messages, False), *asked], template, special)
    parts: list[tuple[str, bool]] = []
    at = 0
    for number, prompt, answered in zip(numbers, rendered[::2], rendered[1::2], strict=True):
        message = messages[number]
        if not answered.startswith(prompt) or not text.startswith(answered) or len(prompt) < at:
            raise InputError(
                f"chat template: writes messages[{number}] differently when it is to be answered or turns follow; fix "
                "the template, or train on single turns"
            )
        if message["content"].strip() not in answered[len(prompt) :]:
            raise InputError(f"chat template: leaves out the answer in messages[{number}]; fix the template")
        parts += [(text[at : len(prompt)], False), (text[len(prompt) : len(answered)], True)]
        at = len(answered)
    return parts


def with_system_prompt(template: str, prompt: str) -> str:
    """The template with a system message put first in conversations that have none."""
    message = f"{{'role': 'system', 'content': {json.dumps(prompt, ensure_ascii=False)}}}"
    condition = "not messages or messages[0]['role'] != 'system'"
    return f"{{% if {condition} %}}{{% set messages = [{message}] + messages %}}{{% endif %}}{template}"


def _render(
    conversations: Sequence[tuple[Sequence[Mapping[str, Any]], bool]],
    template: str | None,
    special: Mapping[str, str] | None,
) -> list[str]:
    """The text of each of `conversations`: messages, and whether to end where an answer of the assistant begins."""
    values = dict.fromkeys(SPECIAL_TOKENS, "") | dict(special or {})
    source = OWN_TEMPLATE if template is None else template
    render = render_here if source in (OWN_TEMPLATE, BEGIN_WITH_BOS + OWN_TEMPLATE) else template_process.render
    try:
        return render(source, conversations, values)
    except TemplateFault as fault:
        raise InputError(f"chat template: fails on these messages ({fault}); fix either of them") from fault
