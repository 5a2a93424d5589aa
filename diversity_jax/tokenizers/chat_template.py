"""Conversations as text: the project's own chat template, and any Jinja template that a tokenizer brings."""

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
_ROLES = ("system", "developer", "user", "assistant", "tool")
SPECIAL_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token")


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
    if not add_generation_prompt and messages[-1]["role"] == "assistant":
        return _left_open(text, messages[-1]["content"].strip())
    return text


def answer_parts(
    messages: Sequence[Mapping[str, Any]], *, template: str | None = None, special: Mapping[str, str] | None = None
) -> list[tuple[str, bool]]:
    """The conversation in parts that join to its text: what is asked, and what the assistant answers with the mark that
    ends it.

    Every part that is asked ends exactly where `render_chat` would let the model begin to speak, so that training and
    use agree.

    Args:
      messages: the last is the assistant's.

    Returns:
      Text, and whether it is an answer, in turn.

    Raises:
      InputError: as `render_chat`; or the template writes a turn otherwise when more turns follow, so that answers
        cannot be told apart.
    """
    check_messages(messages)
    whole, parts, at = _render(messages, template, special, False), [], 0
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        asked = _render(messages[:number], template, special, True)
        answered = _render(messages[: number + 1], template, special, False) if number + 1 < len(messages) else whole
        if not answered.startswith(asked) or not whole.startswith(answered) or len(asked) < at:
            raise InputError(
                f"chat template: writes messages[{number}] otherwise when it is asked for or followed, so that "
                "answers cannot be told "
                "from prompts; fix the template, or train on single turns"
            )
        if message["content"].strip() not in answered[len(asked) :]:
            raise InputError(f"chat template: leaves out the answer in messages[{number}]; fix the template")
        parts += [(whole[at : len(asked)], False), (whole[len(asked) : len(answered)], True)]
        at = len(answered)
    return parts


def with_system_prompt(template: str, prompt: str) -> str:
    """A template that begins with a system message of its own where the conversation brings none."""
    said = json.dumps(prompt, ensure_ascii=False)
    condition = "not messages or messages[0]['role'] != 'system'"
    return (
        f"{{% if {condition} %}}{{% set messages = [{{'role': 'system', 'content': {said}}}] + messages %}}{{% "
        f"endif %}}{template}"
    )


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
    except (
        jinja2.TemplateError,
        TypeError,
        ValueError,
        ArithmeticError,
        LookupError,
        AttributeError,
        RecursionError,
    ) as error:
        line = f", line {error.lineno}" if isinstance(error, jinja2.TemplateSyntaxError) else ""
        said = " ".join(str(error).split())[:300] or type(error).__name__
        raise InputError(
            f"chat template{line}: fails on these messages ({said}); fix the template or the messages"
        ) from error


@functools.lru_cache(maxsize=16)
def _compiled(source: str) -> Any:
    """The template in a sandbox, with what transformers gives templates."""
    import jinja2
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}`, with which some templates mark answers; found here by rendering, so it only has to be let
        through.
        """

        tags = {"generation"}  # noqa: RUF012 - as jinja2 declares it

        def parse(self, parser: Any) -> Any:
            """The body alone."""
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def raise_exception(said: str):
        raise jinja2.TemplateError(said)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, Generation]
    )
    environment.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return environment.from_string(source)


def _left_open(text: str, last: str) -> str:
    """The text up to the end of the last turn's content, so that a model goes on there."""
    place = text.rfind(last)
    if place < 0:
        raise InputError(
            "chat template: changes the last turn's content, so that it cannot be continued; end with a turn of the "
            "user"
        )
    return text[: place + len(last)]
