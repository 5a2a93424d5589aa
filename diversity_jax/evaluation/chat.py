"""Conversations as text: the project's own chat template, and any Jinja template that a tokenizer brings."""

from collections.abc import Mapping, Sequence
import datetime
import json
from typing import Any

from diversity_jax.errors import InputError

# One instruction and its answer under plain headings, readable to a model that never saw a special token.
OWN_TEMPLATE = """\
{%- for message in messages %}
{%- if message.role == "system" %}{{ message.content | trim }}

{% elif message.role == "user" %}### Instruction:
{{ message.content | trim }}

{% elif message.role == "assistant" %}### Response:
{{ message.content | trim }}{{ eos_token }}

{% else %}{{ raise_exception("roles are system, user and assistant, not " ~ message.role) }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}### Response:
{% endif %}"""
_ROLES = ("system", "developer", "user", "assistant", "tool")


def check_messages(messages: Any) -> None:
    """Refuses what is not a list of `{"role": ..., "content": ...}`.

    Raises:
      InputError: the message names the entry.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise InputError('messages: expected a list of at least one {"role": ..., "content": ...}')
    for number, message in enumerate(messages):
        if not isinstance(message, Mapping) or message.get("role") not in _ROLES:
            raise InputError(f"messages[{number}].role: expected one of {', '.join(_ROLES)}")
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
      template: Jinja source, run in a sandbox with what transformers offers templates; None: the project's own.
      special: values such as `bos_token` and `eos_token`.
      add_generation_prompt: end where the assistant begins to speak; else, a last turn of the assistant is left open to be continued.

    Raises:
      InputError: bad messages, or a template that cannot be read, refuses them or fails; the message carries its reason.
    """
    import jinja2
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    check_messages(messages)

    def raise_exception(said: str):
        raise jinja2.TemplateError(said)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=template is not None, lstrip_blocks=template is not None, extensions=[loopcontrols]
    )
    environment.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    values = {"bos_token": "", "eos_token": "", "pad_token": "", "unk_token": ""} | dict(special or {})
    try:
        text = environment.from_string(OWN_TEMPLATE if template is None else template).render(
            messages=[dict(message) for message in messages],
            add_generation_prompt=add_generation_prompt,
            tools=None,
            documents=None,
            **values,
        )
    except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RecursionError) as error:
        line = f", line {error.lineno}" if isinstance(error, jinja2.TemplateSyntaxError) else ""
        said = " ".join(str(error).split())[:300] or type(error).__name__
        raise InputError(f"chat template{line}: fails on these messages ({said}); fix the template or the messages") from error
    if not text.strip():
        raise InputError("chat template: renders these messages to nothing; fix the template")
    if not add_generation_prompt and messages[-1]["role"] == "assistant":
        return _left_open(text, messages[-1]["content"].strip())
    return text


def _left_open(text: str, last: str) -> str:
    """The text up to the end of the last turn's content, so that a model goes on there."""
    place = text.rfind(last)
    if place < 0:
        raise InputError("chat template: changes the last turn's content, so that it cannot be continued; end with a turn of the user")
    return text[: place + len(last)]
