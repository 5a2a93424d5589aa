"""Conversations as text, by the project's own chat template or any Jinja template that a tokenizer brings."""

from collections.abc import Mapping, Sequence
import datetime
import functools
import json
from typing import Any

from diversity_jax.core.errors import InputError

# One instruction and its answer under plain headings, readable to a model that never saw a special token.
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
"""What stands before `OWN_TEMPLATE` where documents begin with the tokenizer's own begin-of-text token."""
ROLES = ("system", "developer", "user", "assistant", "tool")
# What expressions in a template may raise.
_TEMPLATE_FAULTS = (TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RecursionError)
SPECIAL_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token")


def check_messages(messages: Any) -> None:
    """Refuses what is not a list of `{"role": ..., "content": ...}`.

    Raises:
      InputError: the message names the entry.
    """
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
      template: Jinja source, run in a sandbox with what transformers offers templates; None: the project's own.
      special: values such as `bos_token` and `eos_token`.
      add_generation_prompt: end where the assistant begins to speak; else, a last turn of the assistant is left open to
        be continued.

    Raises:
      InputError: bad messages, or a template that cannot be read, refuses them or fails; the message carries its
        reason.
    """
    check_messages(messages)
    text = _render(messages, template, special, add_generation_prompt)
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
    """The conversation in parts that join to its text: prompts, and the assistant's answers with their end token.

    Every prompt ends exactly where `render_chat` lets the model begin, so that training and use agree.

    Args:
      messages: the last is the assistant's.

    Returns:
      (text, whether it is an answer) of each part, in order.

    Raises:
      InputError: as `render_chat`; or the template writes a turn differently when more turns follow.
    """
    check_messages(messages)
    text = _render(messages, template, special, False)
    parts: list[tuple[str, bool]] = []
    at = 0
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        prompt = _render(messages[:number], template, special, True)
        answered = _render(messages[: number + 1], template, special, False) if number + 1 < len(messages) else text
        if not answered.startswith(prompt) or not text.startswith(answered) or len(prompt) < at:
            raise InputError(
                f"chat template: writes messages[{number}] otherwise when it is asked for or followed; fix the "
                "template, or train on single turns"
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
    messages: Sequence[Mapping[str, Any]],
    template: str | None,
    special: Mapping[str, str] | None,
    add_generation_prompt: bool,
) -> str:
    import jinja2

    values = dict.fromkeys(SPECIAL_TOKENS, "") | dict(special or {})
    try:
        return _compiled(OWN_TEMPLATE if template is None else template).render(
            messages=[dict(message) for message in messages],
            add_generation_prompt=add_generation_prompt,
            tools=None,
            documents=None,
            **values,
        )
    except (jinja2.TemplateError, *_TEMPLATE_FAULTS) as error:
        line = f", line {error.lineno}" if isinstance(error, jinja2.TemplateSyntaxError) else ""
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise InputError(f"chat template{line}: fails on these messages ({reason}); fix either of them") from error


@functools.lru_cache(maxsize=16)
def _compiled(source: str) -> Any:
    """The template in a sandbox, with what transformers gives templates."""
    import jinja2
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """Lets `{% generation %}` through, with which some templates enclose answers; `answer_parts` does without."""

        tags = {"generation"}  # noqa: RUF012 - as jinja2 declares it

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, Generation]
    )
    environment.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return environment.from_string(source)
