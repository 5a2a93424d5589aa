"""Templates: what varies from one generation to the next, and the request made of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
import functools
import re
import string
from typing import Any

from diversity_jax.core.errors import InputError
from diversity_jax.core.files import content_hash, read_json
from diversity_jax.llm import Request
from diversity_jax.synthesis import prompts
from diversity_jax.synthesis.topics import Topic

PLACEHOLDERS = ("topic", "subtopic", "keywords", "topics", "style", "personas")
_REQUIRED_FIELDS = {"name": str, "system": str, "user": str}
_FIELDS = _REQUIRED_FIELDS | {"passages": list, "question": bool, "plain_text": bool}


@dataclass(frozen=True, kw_only=True)
class Seeds:
    """What one generation is made from.

    Attributes:
      topics: the topic, and for a multi-topic template others that may be combined with it.
      style: a key of `prompts.STYLES`, or None.
      personas: readers offered, or none.
      avoid: names of subjects that are covered well enough.
    """

    topics: tuple[Topic, ...]
    style: str | None = None
    personas: tuple[str, ...] = ()
    avoid: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Template:
    """How seeds become a request.

    Attributes:
      name: letters, digits and underscores; the request's stage is `generate_NAME`.
      system, user: wording with `PLACEHOLDERS` in braces; which of them occur decides what is drawn for a generation.
      passages: fewest and most passages asked for.
      question: whether a multiple-choice question follows.
      plain_text: the answer is one passage and nothing else, without JSON. Models of a few hundred million parameters
        write well so, and next to nothing where a server holds them to a schema.
    """

    name: str
    system: str
    user: str
    passages: tuple[int, int] = (3, 5)
    question: bool = True
    plain_text: bool = False

    def __post_init__(self):
        if not re.fullmatch(r"\w{1,48}", self.name, re.ASCII):
            raise InputError(f"template {self.name!r}: use up to 48 letters, digits and underscores for its name")
        if not 1 <= self.passages[0] <= self.passages[1]:
            raise InputError(
                f"template {self.name}: passages {list(self.passages)}; give the fewest and the most, such as [3, 5]"
            )
        if self.plain_text and (self.passages != (1, 1) or self.question or self.used & {"personas", "topics"}):
            raise InputError(
                f"template {self.name}: plain_text leaves no place for more than a passage; set passages to [1, 1] and "
                "question to false, and name neither {personas} nor {topics}"
            )
        for field in self.used:
            if field not in PLACEHOLDERS:
                raise InputError(
                    f"template {self.name}: placeholder {{{field}}} is unknown; choose among {', '.join(PLACEHOLDERS)}"
                )
        if not self.used & {"topic", "subtopic", "topics"}:
            raise InputError(
                f"template {self.name}: names no topic, so every generation would ask the same; put {{topic}} into "
                "`user`"
            )

    @functools.cached_property
    def used(self) -> frozenset[str]:
        """Placeholders that occur.

        Raises:
          InputError: a brace is not closed.
        """
        try:
            parsed = [*string.Formatter().parse(self.system), *string.Formatter().parse(self.user)]
        except ValueError as error:
            raise InputError(f"template {self.name}: {error}; write a brace that stands for itself twice") from None
        return frozenset(field for _, field, _, _ in parsed if field is not None)

    @functools.cached_property
    def hash(self) -> str:
        """Of everything that decides what is asked."""
        decisive = [prompts.PROMPT_VERSION, self.name, self.system, self.user, list(self.passages), self.question]
        return content_hash([*decisive, "plain text"] if self.plain_text else decisive)

    def request(
        self, seeds: Seeds, *, replicate: int, max_output_tokens: int, temperature: float, limits: bool
    ) -> Request:
        """The request that asks for one document."""
        first = seeds.topics[0]
        values = {
            "topic": " / ".join(first.path),
            "subtopic": first.path[-1],
            "keywords": ", ".join(first.keywords) or "choose fitting ones",
            "topics": _numbered([" / ".join(topic.path) for topic in seeds.topics]),
            "style": prompts.STYLES.get(seeds.style or "", seeds.style or "plain prose"),
            "personas": _numbered(seeds.personas),
        }
        user = self.user.format_map(values)
        if seeds.avoid:
            user += "\n" + prompts.AVOID.format(avoid="; ".join(seeds.avoid))
        return Request(
            stage=f"generate_{self.name}",
            system=self.system.format_map(values),
            user=user,
            schema=None if self.plain_text else self.schema(seeds, limits),
            replicate=replicate,
            max_output_tokens=max_output_tokens,
            temperature=temperature,
        )

    def schema(self, seeds: Seeds, limits: bool) -> Mapping[str, Any]:
        """Of the answer to the request for `seeds`."""
        return prompts.passages_schema(
            passages=self.passages,
            question=self.question,
            personas=len(seeds.personas) if "personas" in self.used else 0,
            topics=len(seeds.topics) if "topics" in self.used else 0,
            limits=limits,
        )


def _numbered(lines: Sequence[str]) -> str:
    return "\n".join(f"{number}. {line}" for number, line in enumerate(lines, start=1))


def _built_in(name: str, *, style: bool = False, personas: bool = False, topics: bool = False) -> Template:
    system = prompts.system_text(passages=(3, 5), question=True, style=style, personas=personas, topics=topics)
    user = "\n".join([prompts.USER_TOPICS if topics else prompts.USER_TOPIC] + [prompts.USER_PERSONAS] * personas)
    return Template(name=name, system=system, user=user)


TEMPLATES = {
    template.name: template
    for template in (
        _built_in("topic"),
        _built_in("topic_styles", style=True),
        _built_in("topic_styles_persona", style=True, personas=True),
        _built_in("multi_topic_styles_persona", style=True, personas=True, topics=True),
    )
}
"""The built-in templates by name: the one place to add a template."""


def load_template(name: str) -> Template:
    """A built-in template by name, or the one in a `.json` file.

    A file holds `name`, `system` and `user`, and may hold `passages` (fewest and most), `question` (whether one
    follows) and `plain_text` (whether the answer is the passage itself).

    Raises:
      InputError: no such template, or a file with a field missing, unknown or of the wrong type; the message names it.
    """
    if not name.endswith(".json"):
        if name not in TEMPLATES:
            raise InputError(
                f"templates: {name!r} is unknown; choose {', '.join(TEMPLATES)}, or name a .json file of your own"
            )
        return TEMPLATES[name]
    value = read_json(name)
    if not isinstance(value, dict):
        raise InputError(f"{name}: is no object; a template has {', '.join(_REQUIRED_FIELDS)}")
    for field in _REQUIRED_FIELDS:
        if field not in value:
            raise InputError(f"{name}: has no field {field!r}; a template needs {', '.join(_REQUIRED_FIELDS)}")
    for field, content in value.items():
        if field not in _FIELDS:
            raise InputError(f"{name}: field {field!r} is unknown; a template has {', '.join(_FIELDS)}")
        if not isinstance(content, _FIELDS[field]):
            raise InputError(f"{name}: field {field!r} is {type(content).__name__}; expected {_FIELDS[field].__name__}")
    passages = value.get("passages", [3, 5])
    if len(passages) != 2 or not all(type(number) is int for number in passages):
        raise InputError(f"{name}: field 'passages' is {passages!r}; expected the fewest and the most, such as [3, 5]")
    return Template(**{**value, "passages": tuple(passages)})
