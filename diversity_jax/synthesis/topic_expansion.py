"""Topics and personas by a language model: taken out of documents, or grown from a root."""

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
import json
from typing import Any, TypeVar

from diversity_jax.cluster_agent.text_cleaning import child_seed, clean_text
from diversity_jax.core.errors import InputError
from diversity_jax.core.files import list_files, read_lines
from diversity_jax.corpus import CorpusConfig, open_corpus
from diversity_jax.llm import CallFailed, Request
from diversity_jax.synthesis import prompts
from diversity_jax.synthesis.config import PersonasConfig, TopicsConfig
from diversity_jax.synthesis.generate_round import Asker
from diversity_jax.synthesis.topic_deduplication import merge_topics, normalised
from diversity_jax.synthesis.topics import Topic, make_topic, split_path

_DOCUMENT_CHARACTERS = 6000
_PERSONA_CHARACTERS = 400
_SIBLINGS_SHOWN = 40
_DOCUMENTS = 1000  # where a corpus is given without a number
_OUTPUT_TOKENS = 2048
_ATTEMPTS = 2
_T = TypeVar("_T")


@dataclass(kw_only=True)
class Growth:
    """An account of such calls: how many were asked, dollars, and how many came to nothing, by reason."""

    calls: int
    dollars: float
    failures: Counter[str]

    @classmethod
    def none(cls) -> "Growth":
        """Nothing asked yet."""
        return cls(calls=0, dollars=0.0, failures=Counter())


class Grower:
    """Asks a generator for topics and personas.

    Args:
      asker: the generator.
      limits: whether schemas carry limits of length.
      temperature: of its answers.
      in_flight: questions at once.
    """

    def __init__(self, asker: Asker, *, limits: bool, temperature: float, in_flight: int):
        self._asker, self._limits, self._temperature = asker, limits, temperature
        self._room = asyncio.Semaphore(2 * in_flight)
        self.account = Growth.none()

    async def extract(self, config: TopicsConfig, *, seed: int) -> list[Topic]:
        """Topics of documents, duplicates included, in the documents' order."""
        system = prompts.EXTRACT_TOPICS.format(most=config.branching, levels=config.levels)
        schema = prompts.extract_topics_schema(config.levels, config.branching, self._limits)
        users = [_quoted(text) for text in _texts(config.documents, seed)]
        found = await self._ask_all(
            "extract_topics", system, users, schema, lambda value: _extracted(value, config.levels)
        )
        return [topic for topics in found for topic in topics or ()]

    async def expand(
        self, path: Sequence[str], siblings: Sequence[str], branching: int, *, replicate: int = 0
    ) -> list[Topic]:
        """Topics directly below a path; none where no usable answer came."""
        system = prompts.EXPAND_TOPIC.format(branching=branching)
        schema = prompts.expand_topic_schema(branching, self._limits)
        user = _encoded({"path": list(path), "already_there": list(siblings[:_SIBLINGS_SHOWN])})
        read = lambda value: [topic for topic in _expanded(value, path) if topic.path != tuple(path)][:branching]  # noqa: E731
        return await self._ask("expand_topic", system, user, schema, read, replicate) or []

    async def grow(self, config: TopicsConfig) -> list[Topic]:
        """A tree from `config.root`, level by level, its leaves and inner topics in breadth-first order."""
        root = make_topic(split_path(config.root))
        if root is None:
            raise InputError(f"topics.root: {config.root!r} has no name; give a subject such as Physics")
        level, grown, seen = [root], [], {normalised(root.path)}
        while level and len(level[0].path) < config.levels and (config.limit is None or len(grown) < config.limit):
            wanted = level if config.limit is None else level[: -(-(config.limit - len(grown)) // config.branching) + 1]
            asked = await asyncio.gather(*(self.expand(topic.path, (), config.branching) for topic in wanted))
            level = []
            for topic in (topic for topics in asked for topic in topics):
                if normalised(topic.path) not in seen:
                    seen.add(normalised(topic.path))
                    level.append(topic)
            grown += level
        return grown[: config.limit] if config.limit else grown

    async def personas(self, config: PersonasConfig, *, seed: int) -> list[str]:
        """Personas of documents, duplicates included."""
        system = prompts.WRITE_PERSONAS.format(count=config.per_document)
        schema = prompts.write_personas_schema(config.per_document, self._limits)
        users = [_quoted(text) for text in _texts(config.documents, seed)]
        found = await self._ask_all("write_personas", system, users, schema, _personas)
        return [persona for personas in found for persona in personas or ()]

    async def _ask_all(
        self, stage: str, system: str, users: Sequence[str], schema: Mapping[str, Any], read: Callable[[Any], _T]
    ) -> list[_T | None]:
        return await asyncio.gather(*(self._ask(stage, system, user, schema, read) for user in users))

    async def _ask(
        self,
        stage: str,
        system: str,
        user: str,
        schema: Mapping[str, Any],
        read: Callable[[Any], _T],
        replicate: int = 0,
    ) -> _T | None:
        """What `read` makes of the answer; None, counted, where two answers cannot be read.

        Raises:
          InputError: no further call can go out.
        """
        for attempt in range(_ATTEMPTS):
            request = Request(
                stage=stage, system=system, user=user, schema=schema, replicate=replicate * _ATTEMPTS + attempt,
                max_output_tokens=_OUTPUT_TOKENS, temperature=self._temperature,
            )  # fmt: skip
            self.account.calls += 1
            try:
                async with self._room:
                    completion = await self._asker.complete(request)
                self.account.dollars += completion.cost_usd
                return read(json.loads(completion.text))
            except CallFailed as error:
                if error.ends_run:
                    raise InputError(f"{stage}: {error}") from None
                self.account.dollars += error.cost_usd
                self.account.failures[error.reason] += 1
            except (ValueError, KeyError, TypeError, AttributeError):
                self.account.failures["schema"] += 1
        return None


def _encoded(value: Mapping[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False)


def _quoted(text: str) -> str:
    return _encoded({"document": clean_text(text, _DOCUMENT_CHARACTERS)})


def _texts(config: CorpusConfig, seed: int) -> list[str]:
    corpus = open_corpus(config)
    documents = corpus.sample(config.max_documents or _DOCUMENTS, seed=child_seed(seed, "growing"))
    return [document.text for document in documents]


def _extracted(value: Any, levels: int) -> list[Topic]:
    topics = (make_topic([str(name) for name in one["path"]][:levels], _words(one)) for one in value["topics"])
    return [topic for topic in topics if topic]


def _expanded(value: Any, path: Sequence[str]) -> list[Topic]:
    topics = (make_topic([*path, str(one["name"])], _words(one)) for one in value["subtopics"])
    return [topic for topic in topics if topic]


def _words(one: Mapping[str, Any]) -> list[str]:
    return [str(word) for word in one.get("keywords") or ()]


def _personas(value: Any) -> list[str]:
    return [cleaned for one in value["personas"] if (cleaned := clean_persona(str(one)))]


def clean_persona(text: str) -> str:
    """A persona in one line."""
    return " ".join(clean_text(text, 4 * _PERSONA_CHARACTERS).split())[:_PERSONA_CHARACTERS]


def read_personas(config: PersonasConfig) -> list[str]:
    """Personas of a file, duplicates included.

    Raises:
      InputError: no such file, an unknown kind, a broken line, or no persona in it.
    """
    paths = list_files(config.source)
    if not paths:
        raise InputError(f"personas.source: {config.source}: no such file; name a .txt or .jsonl file")
    found: list[str] = []
    for path in paths:
        if ".jsonl" in path:
            found += [document.text for document in open_corpus(CorpusConfig(source=path, text_field=config.field))]
        elif ".txt" in path:
            found += [raw.decode(errors="replace") for batch in read_lines(path) for raw in batch]
        else:
            raise InputError(f"personas.source: {path}: expected .txt or .jsonl (each also .gz or .zst)")
    cleaned = [persona for persona in map(clean_persona, found) if persona]
    if not cleaned:
        raise InputError(
            f"personas.source: {config.source}: holds no persona; put one sentence a line, or choose a template "
            "without them"
        )
    return cleaned


def merge_personas(personas: Sequence[str]) -> list[str]:
    """Personas without exact, normalised and near duplicates, in order."""
    return [topic.path[0] for topic in merge_topics([Topic((persona,)) for persona in personas], near=0.92).topics]
