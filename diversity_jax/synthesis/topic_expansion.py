"""Loads the topics and personas of a component, from files or by a generator; merges and stores them."""

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
import json
import logging
import random
from typing import Any, Generic, TypeVar

from diversity_jax.cluster_agent.text_cleaning import child_seed, clean_text
from diversity_jax.core.errors import InputError
from diversity_jax.core.files import content_hash, file_hash, list_files, read_json, write_json
from diversity_jax.corpus import CorpusConfig, open_corpus
from diversity_jax.llm import CallFailed, Engine, Request, read_json_answer
from diversity_jax.synthesis import templates
from diversity_jax.synthesis.config import SynthesisConfig, TopicsConfig
from diversity_jax.synthesis.store import Store
from diversity_jax.synthesis.topic_deduplication import merge_personas, merge_topics, normalised
from diversity_jax.synthesis.topics import (
    Topic,
    clean_persona,
    make_topic,
    read_personas,
    read_topics,
    split_path,
    topic_of_record,
    write_topics,
)

_logger = logging.getLogger(__name__)
_DOCUMENT_CHARACTERS = 6000
_DOCUMENTS = 1000  # where a corpus is given without a number
_OUTPUT_TOKENS = 2048
_MOST_TEMPERATURE = 0.7
_ATTEMPTS = 2
_T = TypeVar("_T")


async def load_topics(config: SynthesisConfig, expander: "TopicExpander", store: Store) -> list[Topic]:
    """The topics that an earlier process stored, or new ones, merged, limited and stored.

    Raises:
      InputError: no source is set, it holds no topic, or it needs a generator in a dry run.
    """
    path, topics_config = store.folder / "topics.jsonl.zst", config.topics
    if path.exists():
        _warn_if_changed(store, "topics", topics_config.source)
        return list(read_topics(str(path)))
    if topics_config.source is not None:
        topics = list(read_topics(topics_config.source, leaves_only=topics_config.leaves_only))
    elif config.dry_run:
        raise InputError("dry_run: topics that a generator makes cannot be forecast; give topics.source")
    elif topics_config.documents is not None:
        topics = await expander.topics_of_documents(topics_config.documents, topics_config, seed=config.seed)
    elif topics_config.root is not None:
        topics = await expander.topics_below(topics_config.root, topics_config)
    else:
        raise InputError(
            "topics: none of source, documents and root is set; give one, such as --config.topics.source=topics.txt"
        )
    merged = await asyncio.to_thread(merge_topics, topics, near=topics_config.near_duplicate)
    if not merged.topics:
        failed = ", ".join(f"{reason} {count}" for reason, count in expander.failures.items())
        raise InputError(
            f"topics: there are none{f' ({failed})' if failed else ''}; check the source, or try another generator"
        )
    _logger.info("%s", merged)
    topics = merged.topics
    if topics_config.limit is not None and len(topics) > topics_config.limit:
        draw = random.Random(f"topics {config.seed}")
        topics = [topics[index] for index in sorted(draw.sample(range(len(topics)), topics_config.limit))]
    if not config.dry_run:
        summary = {
            "kept": len(topics),
            "without_keywords": sum(not topic.keywords for topic in topics),
            **{name: getattr(merged, name) for name in ("read", "exact", "normalised", "near")},
            "growing": {"calls": expander.calls, "dollars": expander.dollars, "failures": dict(expander.failures)},
        }
        _note_source(store, "topics", topics_config.source)
        write_json(store.folder / "topics.json", summary)
        write_topics(path, topics)
    return topics


async def load_personas(config: SynthesisConfig, expander: "TopicExpander", store: Store) -> list[str]:
    """The personas that an earlier process stored, or new ones, merged and stored; possibly none."""
    path, personas_config = store.folder / "personas.json", config.personas
    if path.exists():
        _warn_if_changed(store, "personas", personas_config.source)
        return read_json(path)
    personas: list[str] = []
    if personas_config.source is not None:
        personas = read_personas(personas_config.source, personas_config.field)
    elif personas_config.documents is not None and not config.dry_run:
        personas = await expander.personas_of_documents(
            personas_config.documents, personas_config.per_document, seed=config.seed
        )
    personas = await asyncio.to_thread(merge_personas, personas)
    if not config.dry_run and personas:
        _note_source(store, "personas", personas_config.source)
        write_json(path, personas)
    return personas


def _note_source(store: Store, name: str, source: str | None) -> None:
    """Stores the hash of the files from which topics or personas were read."""
    if source is not None:
        path = store.folder / "sources.json"
        write_json(path, (read_json(path) if path.exists() else {}) | {name: _source_hash(source)})


def _warn_if_changed(store: Store, name: str, source: str | None) -> None:
    path = store.folder / "sources.json"
    if source is None or not path.exists() or not list_files(source):
        return
    stored = read_json(path).get(name)
    if stored is not None and stored != _source_hash(source):
        what = f"{source}: has changed since {store.folder} was begun, which keeps the {name} as they were then"
        _logger.warning("%s; choose another output_dir for the new ones", what)


def _source_hash(source: str) -> str:
    return content_hash([file_hash(path) for path in list_files(source)])


@dataclass(frozen=True)
class _RequestKind(Generic[_T]):
    """A kind of request; `read` extracts the items of its answer."""

    stage: str
    system: str
    schema: Mapping[str, Any]
    read: Callable[[Any], list[_T]]


class TopicExpander:
    """Requests topics and personas from a generator.

    Attributes:
      calls, dollars: used so far.
      failures: calls without a usable answer, by reason.
    """

    def __init__(self, engine: Engine, config: SynthesisConfig):
        self._engine, self._limits = engine, config.schema_limits
        self._temperature = min(config.temperature, _MOST_TEMPERATURE)
        self._semaphore = asyncio.Semaphore(2 * config.engine.max_in_flight)
        self.calls, self.dollars, self.failures = 0, 0.0, Counter[str]()

    async def topics_of_documents(self, documents: CorpusConfig, config: TopicsConfig, *, seed: int) -> list[Topic]:
        """Topics of documents, duplicates included, in the documents' order."""
        system = templates.EXTRACT_TOPICS.format(most=config.branching, levels=config.levels)
        schema = templates.extract_topics_schema(config.levels, config.branching, self._limits)

        def read(answer: Any) -> list[Topic]:
            topics = filter(None, (topic_of_record(topic, "answer") for topic in answer["topics"]))
            return [replace(topic, path=topic.path[: config.levels]) for topic in topics]

        return await self._of_documents(_RequestKind("extract_topics", system, schema, read), documents, seed)

    async def personas_of_documents(self, documents: CorpusConfig, per_document: int, *, seed: int) -> list[str]:
        """Personas of documents, duplicates included, in the documents' order."""
        system = templates.WRITE_PERSONAS.format(count=per_document)
        schema = templates.write_personas_schema(per_document, self._limits)

        def read(answer: Any) -> list[str]:
            if not isinstance(personas := answer["personas"], list) or not all(isinstance(p, str) for p in personas):
                raise ValueError("personas are no list of texts")
            return list(filter(None, map(clean_persona, personas)))

        return await self._of_documents(_RequestKind("write_personas", system, schema, read), documents, seed)

    async def expand(self, path: Sequence[str], branching: int, *, replicate: int = 0) -> list[Topic]:
        """Topics directly below a path; none where no usable answer came."""
        system = templates.EXPAND_TOPIC.format(branching=branching)
        schema = templates.expand_topic_schema(branching, self._limits)
        user = _encoded({"path": list(path), "already_there": []})

        def read(answer: Any) -> list[Topic]:
            records = ({**topic, "path": [*path, topic["name"]]} for topic in answer["subtopics"])
            topics = filter(None, (topic_of_record(record, "answer") for record in records))
            return [topic for topic in topics if topic.path != tuple(path)][:branching]

        return await self._request(_RequestKind("expand_topic", system, schema, read), user, replicate)

    async def topics_below(self, root: str, config: TopicsConfig) -> list[Topic]:
        """The topics below a root, without the root, in breadth-first order."""
        first = make_topic(split_path(root))
        if first is None:
            raise InputError(f"topics.root: {root!r} has no name; give a subject such as Physics")
        limit, branching = config.limit, config.branching
        level, topics, seen = [first], list[Topic](), {normalised(first.path)}
        while level and len(level[0].path) < config.levels and (limit is None or len(topics) < limit):
            parents = level if limit is None else level[: -(-(limit - len(topics)) // branching) + 1]
            answers = await asyncio.gather(*(self.expand(parent.path, branching) for parent in parents))
            level = []
            for topic in (topic for children in answers for topic in children):
                if (key := normalised(topic.path)) not in seen:
                    seen.add(key)
                    level.append(topic)
            topics += level
        return topics[:limit]

    async def _of_documents(self, kind: _RequestKind[_T], documents: CorpusConfig, seed: int) -> list[_T]:
        """The items of the answers to one request for each sampled document of a corpus."""
        sample = open_corpus(documents).sample(documents.max_documents or _DOCUMENTS, seed=child_seed(seed, "growing"))
        users = [_encoded({"document": clean_text(document.text, _DOCUMENT_CHARACTERS)}) for document in sample]
        answers = await asyncio.gather(*(self._request(kind, user) for user in users))
        return [item for items in answers for item in items]

    async def _request(self, kind: _RequestKind[_T], user: str, replicate: int = 0) -> list[_T]:
        """The items of the answer; none where no attempt gives a readable one.

        Raises:
          InputError: no further call can be sent.
        """
        for attempt in range(_ATTEMPTS):
            request = Request(
                stage=kind.stage,
                system=kind.system,
                user=user,
                schema=kind.schema,
                replicate=replicate * _ATTEMPTS + attempt,
                max_output_tokens=_OUTPUT_TOKENS,
                temperature=self._temperature,
            )
            self.calls += 1
            try:
                async with self._semaphore:
                    completion = await self._engine.complete(request)
                self.dollars += completion.cost_usd
                return kind.read(read_json_answer(completion.text, kind.schema).value)
            except CallFailed as error:
                if error.ends_run:
                    raise InputError(f"{kind.stage}: {error}") from None
                self.dollars += error.cost_usd
                self.failures[error.reason] += 1
            except (ValueError, KeyError, TypeError, AttributeError):
                self.failures["schema"] += 1
        return []


def _encoded(value: Mapping[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False)
