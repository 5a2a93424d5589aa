"""Configuration of synthetic components."""

from dataclasses import dataclass, field, replace
from pathlib import Path

from diversity_jax.cluster_agent import AgentConfig
from diversity_jax.core.config import ADDED, check_kinds, check_least
from diversity_jax.core.errors import InputError
from diversity_jax.corpus import CorpusConfig
from diversity_jax.llm import BatchConfig, BudgetConfig, EndpointConfig, EngineConfig, parse_model
from diversity_jax.synthesis.demo_grammar import GrammarComponent as GrammarComponent
from diversity_jax.synthesis.demo_grammar import GrammarConfig as GrammarConfig
from diversity_jax.synthesis.templates import STYLES

ARM_DIMENSIONS = ("template", "generator", "style", "topics")


@dataclass(frozen=True, kw_only=True)
class TopicsConfig:
    """Source of topics: exactly one of `source`, `documents` and `root`.

    Attributes:
      source: file or pattern of slash paths or outlines; see `topics.read_topics`.
      documents: a corpus from which the first generator extracts topics; `max_documents` limits how many it reads.
      root: a subject (or slash path) that the first generator expands breadth-first up to `limit` or `levels`.
      limit: most topics, chosen by a seeded draw where there are more; None is no limit.
      levels: names in a path, at most five.
      branching: topics requested below each one (`root`), or at most from each document (`documents`).
      near_duplicate: cosine from which two topics may be merged; None merges only those equal after normalisation.
      leaves_only: of an outline, only topics without topics below them.
    """

    source: str | None = None
    documents: CorpusConfig | None = None
    root: str | None = None
    limit: int | None = None
    levels: int = 5
    branching: int = 8
    near_duplicate: float | None = 0.85
    leaves_only: bool = True

    def __post_init__(self):
        check_kinds(self, "topics.")
        check_least(self, "topics.", limit=1, levels=1, branching=1, near_duplicate=0.5)
        if self.levels > 5:
            raise InputError(f"topics.levels: is {self.levels}; a path has at most 5 names")
        if sum(source is not None for source in (self.source, self.documents, self.root)) > 1:
            raise InputError("topics: more than one of source, documents and root is set; give one")
        if self.root is not None and self.limit is None and self.branching**self.levels > 1_000_000:
            raise InputError(
                "topics.limit: is None while a root is expanded to more than a million topics; give a limit"
            )


@dataclass(frozen=True, kw_only=True)
class PersonasConfig:
    """Source of personas: the readers that passages are written for.

    Attributes:
      source: `.txt` with a persona on each line, or `.jsonl` with `field`; None where they come from documents.
      field: key that holds the persona.
      documents: a corpus, from each document of which the first generator derives `per_document` personas.
      per_document: personas of each document.
      shown: personas offered in a generation, of which the generator chooses one.
    """

    source: str | None = None
    field: str = "persona"
    documents: CorpusConfig | None = None
    per_document: int = 2
    shown: int = 5

    def __post_init__(self):
        check_kinds(self, "personas.")
        check_least(self, "personas.", per_document=1, shown=1)
        if self.source is not None and self.documents is not None:
            raise InputError("personas: both source and documents are set; give one")


@dataclass(frozen=True, kw_only=True)
class GeneratorConfig:
    """A model that generates documents.

    Attributes:
      model: `provider:model`, of the providers in `llm.providers.registry`.
      base_url: address of an OpenAI-compatible server, such as http://127.0.0.1:8000/v1.
      weight: its part of the documents where several generators share the grid (`grid.mixed`).
      name: on pages and in records; None takes the model's.
      batch: use the provider's batch API: cheaper, answered within a day.
      endpoint: headers, query and body that its server needs.
    """

    model: str
    base_url: str | None = None
    weight: float = 1.0
    name: str | None = None
    batch: bool = False
    endpoint: EndpointConfig = field(default_factory=EndpointConfig, metadata=ADDED)

    def __post_init__(self):
        check_kinds(self, "generators.")
        parse_model(self.model, "generators.model")
        if not self.weight > 0:
            raise InputError(f"generators.weight: is {self.weight} for {self.model}; give a number above 0")

    @property
    def label(self) -> str:
        """Its name on pages and in records."""
        return self.name or self.model


@dataclass(frozen=True, kw_only=True)
class GridConfig:
    """The grid of documents: topics x generations per topic x templates x generators.

    Attributes:
      templates: built-in names or `.json` files.
      styles: drawn for each generation of a template that has a style.
      generations_per_topic: documents of each topic, for each template and generator.
      topic_counts: an arm for each number of topics (nested: the smaller is part of the larger); empty is one arm of
        all topics.
      mixed: each cell of the grid gets one generator, by weight; otherwise every generator writes the full grid.
      topics_shown: topics offered to a multi-topic template.
      documents: accepted documents after which the run stops; None writes the full grid.
      documents_per_round: documents between two commits to disk, and between two looks of the steering.
    """

    templates: tuple[str, ...] = ("topic_styles_persona",)
    styles: tuple[str, ...] = tuple(STYLES)
    generations_per_topic: int = 10
    topic_counts: tuple[int, ...] = ()
    mixed: bool = True
    topics_shown: int = 4
    documents: int | None = None
    documents_per_round: int = 1000

    def __post_init__(self):
        check_kinds(self, "grid.")
        check_least(self, "grid.", generations_per_topic=1, topics_shown=1, documents=1, documents_per_round=1)
        if not self.templates:
            raise InputError("grid.templates: is empty; name at least one template")
        if not self.styles:
            raise InputError(f"grid.styles: is empty; name at least one, such as {next(iter(STYLES))}")
        if any(count < 1 for count in self.topic_counts):
            raise InputError(f"grid.topic_counts: {list(self.topic_counts)}; every arm needs at least 1 topic")


@dataclass(frozen=True, kw_only=True)
class QualityConfig:
    """The quality floor: requirements of accepted documents.

    Attributes:
      min_passage_words, max_passage_words: of every passage; see `core.words.count_words` for scripts without spaces.
      max_copied_share: share of the passages' eight-word sequences that may occur in the prompt.
      near_duplicate: estimated Jaccard similarity, over five-word sequences, to an accepted document from which a new
        one is refused; None compares nothing.
      attempts: requests for one document, the first included, before its cell is given up.
      give_up_after: consecutive calls of a generator without a usable answer after which it is stopped.
    """

    min_passage_words: int = 25
    max_passage_words: int = 800
    max_copied_share: float = 0.15
    near_duplicate: float | None = 0.6
    attempts: int = 3
    give_up_after: int = 30

    def __post_init__(self):
        check_kinds(self, "quality.")
        check_least(self, "quality.", min_passage_words=1, max_passage_words=self.min_passage_words)
        check_least(self, "quality.", attempts=1, give_up_after=1)
        for name in ("max_copied_share", "near_duplicate"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise InputError(f"quality.{name}: is {value}; give a share above 0 and up to 1")


@dataclass(frozen=True, kw_only=True)
class SteeringConfig:
    """Steers generation by measured diversity; see `steering`.

    Attributes:
      arms: dimensions in which arms differ: of `template`, `generator`, `style`, `topics`; empty turns steering off.
      metric: `words` (free: documents clustered by their words) or `judge` (the cluster-agent with `judge`).
      min_gain_per_dollar: effective clusters per dollar; an arm that is decided to give less is stopped.
      alpha: probability, over all arms and looks, that any arm is stopped although its gain is not below.
      looks: looks planned at each arm, over which alpha is spent.
      explore_share: of a round's dollars, spent evenly over all arms that are not stopped.
      min_documents: of an arm, before it may be stopped.
      groupings_per_look: of each arm, where the metric is `judge`.
      over_represented: multiple of the mean size above which a cluster's subject is avoided; None avoids nothing.
      avoided: most subjects named in a prompt.
      new_seeds: topics added in every round below the topics of thin clusters.
      dollars_per_million_free_tokens: assumed price of models without one, so that arms can be compared.
    """

    arms: tuple[str, ...] = ()
    metric: str = "words"
    min_gain_per_dollar: float = 0.0
    alpha: float = 0.05
    looks: int = 20
    explore_share: float = 0.1
    min_documents: int = 30
    groupings_per_look: int = 60
    over_represented: float | None = 8.0
    avoided: int = 8
    new_seeds: int = 0
    dollars_per_million_free_tokens: float = 0.1

    def __post_init__(self):
        check_kinds(self, "steering.")
        for name in self.arms:
            if name not in ARM_DIMENSIONS:
                raise InputError(f"steering.arms: {name!r} is unknown; choose among {', '.join(ARM_DIMENSIONS)}")
        if self.metric not in ("words", "judge"):
            raise InputError(f"steering.metric: {self.metric!r} is unknown; choose words or judge")
        check_least(self, "steering.", looks=1, min_documents=3, groupings_per_look=4, avoided=0, new_seeds=0)
        check_least(self, "steering.", over_represented=1, dollars_per_million_free_tokens=1e-6)
        if not 0 < self.alpha < 1 or not 0 <= self.explore_share <= 1:
            raise InputError(f"steering: alpha {self.alpha} and explore_share {self.explore_share}; give shares of 1")


@dataclass(frozen=True, kw_only=True)
class SynthesisConfig:
    """A synthetic component.

    Attributes:
      output_dir: for `documents/*.jsonl.zst`, `rejects/`, `rounds/`, `report.html` and the response cache; a later run
        continues there.
      generators: models that write.
      batch: settings of generators with `batch=True`.
      judge: where `steering.metric` is `judge`: `offline`, `openai:MODEL`, `gemini:MODEL`, ...
      judge_base_url: of an OpenAI-compatible server that judges.
      judge_endpoint: headers, query and body that this server needs.
      agent: settings of that judge.
      temperature: of generations.
      max_output_tokens: of a generation.
      schema_limits: send limits of length with the schema: for llama.cpp and vLLM, not for OpenAI.
      completion_tokens_expected: tokens of an answer, for the forecast.
      seed: of every draw.
      dry_run: print the forecast of calls, tokens and dollars, and stop.
      engine: settings of calls to language models.
      budget: the cap for all generators together.
    """

    output_dir: str = "runs/generate"
    topics: TopicsConfig = field(default_factory=TopicsConfig)
    personas: PersonasConfig = field(default_factory=PersonasConfig)
    grid: GridConfig = field(default_factory=GridConfig)
    generators: tuple[GeneratorConfig, ...] = ()
    quality: QualityConfig = field(default_factory=QualityConfig)
    steering: SteeringConfig = field(default_factory=SteeringConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    judge: str = "offline"
    judge_base_url: str | None = None
    judge_endpoint: EndpointConfig = field(default_factory=EndpointConfig, metadata=ADDED)
    agent: AgentConfig = field(
        default_factory=lambda: AgentConfig(samples_per_grouping=10, criteria_sets=1, proposals=10)
    )
    temperature: float = 1.0
    max_output_tokens: int = 4096
    schema_limits: bool = False
    completion_tokens_expected: int = 1300
    seed: int = 0
    dry_run: bool = False
    engine: EngineConfig = field(default_factory=EngineConfig)
    budget: BudgetConfig = field(default_factory=BudgetConfig)

    def __post_init__(self):
        check_kinds(self, "")
        check_least(self, "", max_output_tokens=1, completion_tokens_expected=1)
        if not 0 <= self.temperature <= 2:
            raise InputError(f"temperature: {self.temperature} is outside 0 to 2; 1 is usual")
        labels = [generator.label for generator in self.generators]
        for label in labels:
            if labels.count(label) > 1:
                raise InputError(f"generators: {label!r} is there twice; give each a name of its own")
        if "generator" in self.steering.arms and self.grid.mixed and len(labels) > 1:
            raise InputError(
                "steering.arms: names generator while grid.mixed shares cells out by weight; set grid.mixed=False"
            )

    def engine_for(self, generator: GeneratorConfig) -> EngineConfig:
        engine = replace(self.engine, ledger=self.cache_path)
        return replace(engine, batch=True, batches=self.batch) if generator.batch else engine

    @property
    def cache_path(self) -> str:
        """Path of the response cache that all generators and the judge share."""
        return self.engine.ledger or str(Path(self.output_dir) / "ledger.sqlite")


@dataclass(frozen=True, kw_only=True)
class GenerateConfig(SynthesisConfig):
    """A component made by language models, demo text, or both: the settings of the command `generate`.

    Attributes:
      generators: models that generate; empty where only demo text is written.
      grammar: components of demo text, made by a grammar and not by an LLM.
    """

    grammar: tuple[GrammarComponent, ...] = ()

    def __post_init__(self):
        super().__post_init__()
        if not self.generators and not self.grammar:
            raise InputError(
                "generators and grammar are both empty; name a generator such as openai:gpt-4o-mini, or demo text to "
                "write"
            )
