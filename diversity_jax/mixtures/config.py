"""Configuration of mixtures: components, their gate policies and token shares, and of the commands about mixtures."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
import math
import re
from typing import Any

from diversity_jax.cluster_agent import AgentConfig
from diversity_jax.core.config import ADDED, check_kinds, check_least, is_real_number
from diversity_jax.core.errors import InputError
from diversity_jax.corpus import CorpusConfig
from diversity_jax.llm import BudgetConfig, EndpointConfig, EngineConfig
from diversity_jax.mixtures.schedule import exact_shares
from diversity_jax.prepare.config import Chat, Filtering, Preparation
from diversity_jax.synthesis.demo_grammar import GrammarComponent
from diversity_jax.tokenizers.base import check_special_text
from diversity_jax.tokenizers.document_start import check_setting

KINDS = ("real", "synthetic")
TRAINED = "trained"
"""The vocabulary that is trained on the mixture's own text; see `mixtures.sources.open_vocabulary`."""
SHARES_OF = {"tokens": "tokens", "examples": "documents", "epochs": "passes"}
"""Values of `MixtureConfig.shares_of`, and what each counts."""
FREED_SHARE = ("kind_then_all", "kind", "all", "error")


@dataclass(frozen=True, kw_only=True)
class FailAction:
    """What is done about a component that fails its policy.

    Attributes:
      title: of such a decision, on pages.
      factor: what the share is multiplied by: a function of the low end of the failing figure's interval over the
        required figure, and of `downweight_power`.
    """

    title: str
    factor: Callable[[float, float], float]


ON_FAIL: Mapping[str, FailAction] = {
    "reject": FailAction(title="rejected", factor=lambda low_ratio, power: 0.0),
    "downweight": FailAction(title="down-weighted", factor=lambda low_ratio, power: low_ratio**power),
    "warn": FailAction(title="warned", factor=lambda low_ratio, power: 1.0),
}
"""By the name in `GatePolicy.on_fail`; a new action is one entry here."""
ACTION_TITLES = {"register": "registered", "ungated": "ungated"} | {name: fail.title for name, fail in ON_FAIL.items()}
"""Titles of all decisions of a gate, by action."""


@dataclass(frozen=True, kw_only=True)
class GatePolicy:
    """The diversity that a component must have to enter the mixture, and what is done if it has less.

    Attributes:
      min_effective_clusters: the interval of effective clusters must lie above this.
      min_ratio_to: for each reference, the least ratio of effective clusters. A reference is another component's name,
        or `real`: all real components pooled in proportion to their shares.
      on_fail: what is done about a component that fails: `reject` it; `downweight` its share, multiplied by
        (low / required) ** downweight_power, where low is the low end of the failing figure's interval; or `warn` and
        keep its share. One whose interval includes the required figure is undecided: it is accepted, with a warning.
      downweight_power: 1 multiplies by low / required itself; higher powers reduce the share more.
      accept_unfit_judge: let scores decide although the examination of their judge found it unfit.
      ungated: accept a synthetic component that has not been scored.
      repeat_limit: epochs of this component's rows that training on `train_tokens` may make at most; a share beyond
        that is freed. None: no limit.
      auto: all `auto` components of a kind divide the sum of their shares in proportion to their effective clusters,
        each capped at one epoch of its rows, or at `repeat_limit`.
      freed_share: which components receive a share that the gate or a limit takes away, in proportion to their shares:
        `kind`, those of the same kind that nothing was taken from; `all` such components; `kind_then_all`, all only
        where none of the kind is left; names of components joined by commas; or `error`: stop instead.
    """

    min_effective_clusters: float | None = None
    min_ratio_to: dict[str, float] = field(default_factory=dict)
    on_fail: str = "reject"
    downweight_power: float = 1.0
    accept_unfit_judge: bool = field(default=False, metadata=ADDED)
    ungated: bool = False
    repeat_limit: float | None = None
    auto: bool = False
    freed_share: str = "kind_then_all"

    def __post_init__(self) -> None:
        if self.on_fail not in ON_FAIL:
            raise InputError(f"policy.on_fail {self.on_fail!r} is unknown; choose one of {', '.join(ON_FAIL)}")
        if self.min_effective_clusters is not None and self.min_effective_clusters < 1:
            raise InputError(f"policy.min_effective_clusters {self.min_effective_clusters}: give at least 1")
        for reference, ratio in self.min_ratio_to.items():
            if not ratio > 0:
                raise InputError(f"policy.min_ratio_to[{reference!r}] {ratio}: give a ratio above 0")
        if not 0 < self.downweight_power < math.inf:
            raise InputError(f"policy.downweight_power {self.downweight_power}: give a number above 0")
        if self.repeat_limit is not None and not 0 < self.repeat_limit < math.inf:
            raise InputError(f"policy.repeat_limit {self.repeat_limit}: give a number of epochs above 0, or None")
        if self.auto and self.ungated:
            raise InputError("policy.auto needs measured clusters, policy.ungated means none; set one of the two")
        if isinstance(self.freed_share, list | tuple):
            object.__setattr__(self, "freed_share", ",".join(self.freed_share))
        if not isinstance(self.freed_share, str) or not self.freed_share.strip():
            choices = ", ".join(FREED_SHARE)
            raise InputError(f"policy.freed_share {self.freed_share!r}: choose one of {choices}, or name components")

    @property
    def is_empty(self) -> bool:
        """Whether nothing is required, so that no score is needed."""
        return self.min_effective_clusters is None and not self.min_ratio_to and not self.auto

    @property
    def recipients(self) -> tuple[str, ...]:
        """Components that `freed_share` names; none where it is one of `FREED_SHARE`."""
        return () if self.freed_share in FREED_SHARE else tuple(name.strip() for name in self.freed_share.split(","))

    @property
    def epochs(self) -> float | None:
        """Epochs of the component's rows that training may make at most; None: no limit."""
        return 1.0 if self.auto and self.repeat_limit is None else self.repeat_limit


@dataclass(frozen=True, kw_only=True)
class Component:
    """One part of a mixture.

    Attributes:
      name: letters, digits and underscores; names its SeqIO task.
      kind: `real` or `synthetic`.
      corpus: where its text comes from; a source string is enough. `mixture:FOLDER` is another built mixture, whose
        prepared rows are used in its own shares.
      share: of the mixture's tokens; with `real_to_synthetic`, a weight within its kind.
      policy: the gate's conditions.
      scorecard: file of an existing scorecard of this very corpus; None: scored when the mixture is built.
    """

    name: str
    kind: str
    corpus: CorpusConfig
    share: float = 1.0
    policy: GatePolicy = field(default_factory=GatePolicy)
    scorecard: str | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\w+", self.name, re.ASCII):
            raise InputError(f"component name {self.name!r}: use letters, digits and underscores")
        if self.name in ("real", *FREED_SHARE):
            raise InputError(f"component name {self.name!r} has a meaning of its own in policies; give it another")
        if self.kind not in KINDS:
            raise InputError(f"component {self.name!r}: kind {self.kind!r} is unknown; choose {' or '.join(KINDS)}")
        if not _is_weight(self.share):
            raise InputError(f"component {self.name!r}: share {self.share}; give a number of at least 0")
        if isinstance(self.corpus, str):
            object.__setattr__(self, "corpus", CorpusConfig(source=self.corpus))


@dataclass(frozen=True, kw_only=True)
class MixtureConfig:
    """The mixture to build.

    Attributes:
      name: of the SeqIO mixture; letters, digits and underscores.
      real_to_synthetic: ratio of real to synthetic TOKENS, such as (4, 1); shares then are weights within each kind.
        Without it, shares are of all tokens and must sum to 1.
      vocabulary: `bytes`, a SentencePiece `.model`, a `tokenizer.json`, a folder with one, or `trained`: one trained on
        the mixture's own text, of a size in proportion to it (bytes if there is little text).
      end_of_text: token that ends a document, if the tokenizer has none of the usual names.
      document_start: which token begins a document in rows, loss, evaluation, generation and export: `none`,
        `end_of_text` (that of the document before), `bos` (the tokenizer's own, written into the rows). `auto`: that of
        the mixture already built in this folder; else that of the rows of a `mixture:` component; else `bos` where
        the tokenizer's makers put it before every text, and `end_of_text` where they do not.
      sequence_length: tokens a row predicts.
      validation_share: share of each component's documents held out.
      seed: of row permutations and held-out documents.
      repeat_shuffle: give every epoch of a component's rows after the first an order of its own, instead of that of the
        first.
      special_text: what a special token's text in a document is: `plain`, `special` or `refuse`; None: `plain`.
      train_tokens: tokens that training will see; needed if a policy has a `repeat_limit` or is `auto`.
      shares_of: what shares count: `tokens`; `examples`, documents or conversations of any length; or `epochs`, weights
        that need not sum to 1: a component of weight 2 is read twice while one of weight 1 is read once.
      hygiene: which documents preparation leaves out, of every component.
      chat: how components of instruction data, those whose `corpus.conversations` is set, are written.
      processes: of preparation on this machine; None: one for each core.
      components_dir: where components are prepared, so that several mixtures can share them; None: in the mixture's own
        folder.
    """

    name: str
    components: tuple[Component, ...]
    real_to_synthetic: tuple[float, float] | None = None
    vocabulary: str = "bytes"
    end_of_text: str | None = None
    document_start: str = field(default="auto", metadata=ADDED)
    sequence_length: int = 2048
    validation_share: float = 0.005
    seed: int = 0
    repeat_shuffle: bool = field(default=False, metadata=ADDED)
    special_text: str | None = field(default=None, metadata=ADDED)
    train_tokens: int | None = None
    shares_of: str = "tokens"
    hygiene: Filtering = field(default_factory=Filtering)
    chat: Chat = field(default_factory=Chat)
    processes: int | None = None
    components_dir: str | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\w+", self.name, re.ASCII):
            raise InputError(f"mixture name {self.name!r}: use letters, digits and underscores")
        if isinstance(self.components, Component):
            raise InputError(f"mixture {self.name!r}: components is one component; give a tuple: put a comma after it")
        check_setting(self.document_start, "mixture.document_start")
        if not self.components:
            raise InputError(f"mixture {self.name!r} has no components; give at least one")
        names = [component.name for component in self.components]
        for name in names:
            if names.count(name) > 1:
                raise InputError(f"mixture {self.name!r} has {names.count(name)} components named {name!r}; rename one")
        for component in self.components:
            about, policy = f"component {component.name!r}", component.policy
            for reference in policy.min_ratio_to:
                if reference not in ("real", *names) or reference == component.name:
                    raise InputError(f"{about}: min_ratio_to names {reference!r}; name 'real' or another component")
            for recipient in policy.recipients:
                if recipient not in names or recipient == component.name:
                    choices = f"{', '.join(FREED_SHARE)}, or other components"
                    raise InputError(f"{about}: freed_share names {recipient!r}; choose one of {choices}")
            if policy.epochs is not None and self.train_tokens is None:
                limit = "auto" if policy.auto else "repeat_limit"
                raise InputError(f"{about}: policy.{limit} counts epochs; set train_tokens, which training will see")
        if self.train_tokens is not None and self.train_tokens < 1:
            raise InputError(f"train_tokens {self.train_tokens}: give at least 1, or None")
        check_special_text(self.special_text)
        if self.shares_of not in SHARES_OF:
            raise InputError(f"shares_of {self.shares_of!r} is unknown; choose one of {', '.join(SHARES_OF)}")
        check_kinds(self, "mixture.", "real_to_synthetic")
        check_least(self, "mixture.", processes=1)
        self.shares_asked()  # refuses shares that do not sum to 1
        for component in self.components:
            self.preparation(component)  # refuses what could not be prepared, before anything is scored

    def preparation(self, component: Component, document_start: str = "auto") -> Preparation:
        """How the rows of a component are prepared."""
        return Preparation(
            name=component.name,
            kind=component.kind,
            sequence_length=self.sequence_length,
            seed=self.seed,
            validation_share=self.validation_share,
            hygiene=self.hygiene,
            chat=self.chat if component.corpus.conversations else None,
            special_text=self.special_text,
            document_start=document_start,
        )

    def shares_asked(self) -> tuple[Fraction, ...]:
        """Each component's share of what `shares_of` counts, exact, summing to one."""
        return token_shares(self.components, self.real_to_synthetic, is_weight=self.shares_of == "epochs")


def token_shares(
    components: Sequence[Component], real_to_synthetic: tuple[float, float] | None = None, *, is_weight: bool = False
) -> tuple[Fraction, ...]:
    """Each component's share of the mixture's tokens, exact, summing to one.

    Args:
      is_weight: the configured shares need not sum to 1.

    Raises:
      InputError: shares do not sum to 1 and no ratio is given, or a kind with a part in the ratio has no component.
    """
    weights = [decimal_fraction(component.share) for component in components]
    if real_to_synthetic is None:
        if not is_weight and abs(float(sum(weights)) - 1) > 1e-6:
            listed = ", ".join(f"{component.name} {float(component.share):g}" for component in components)
            problem = f"shares sum to {float(sum(weights)):g} ({listed})"
            raise InputError(f"{problem}; make them sum to 1, or set real_to_synthetic")
        return exact_shares(weights)
    is_pair = isinstance(real_to_synthetic, list | tuple) and len(real_to_synthetic) == 2
    if not is_pair or not all(map(_is_weight, real_to_synthetic)) or not any(real_to_synthetic):
        raise InputError(f"real_to_synthetic {real_to_synthetic}: give two parts, such as (4, 1)")
    shares = [Fraction(0)] * len(components)
    for kind, part in zip(KINDS, real_to_synthetic, strict=True):
        members = [i for i, component in enumerate(components) if component.kind == kind]
        total = sum(weights[i] for i in members)
        if part and not total:
            raise InputError(
                f"real_to_synthetic: {float(part):g} parts are {kind}, but no {kind} component has a share"
            )
        for i in members:
            shares[i] = decimal_fraction(part) * weights[i] / total if total else Fraction(0)
    return exact_shares(shares)


def _is_weight(value: Any) -> bool:
    """Whether a value is a number of at least 0, and finite."""
    return is_real_number(value) and 0 <= float(value) < math.inf


def decimal_fraction(value: float) -> Fraction:
    """The shortest decimal number that is this float: 0.1 gives 1/10."""
    return Fraction(str(value))


@dataclass(frozen=True, kw_only=True)
class BuildConfig:
    """What `python -m diversity_jax.mixtures.build` builds.

    Attributes:
      output_dir: folder of the mixture: scorecards, prepared components, `mixture.json`.
      judge: of components without a scorecard: `offline` (word vectors, no LLM), `embedding:EMBEDDER`, `openai:MODEL`,
        `gemini:MODEL` or `google-genai:MODEL`.
      judge_base_url: of an OpenAI-compatible server, such as http://127.0.0.1:8000/v1.
      judge_endpoint: headers, query and body that this server needs.
      agent: how many groupings, of how many samples, by how many criteria.
      engine: how a language model is called.
      budget: what may be spent.
      grammar: demo text to write first, if it is not there yet.
      register: also register the mixture with SeqIO in this process, to check that it is accepted; needs TensorFlow.
    """

    output_dir: str
    mixture: MixtureConfig
    judge: str = "offline"
    judge_base_url: str | None = None
    judge_endpoint: EndpointConfig = field(default_factory=EndpointConfig, metadata=ADDED)
    agent: AgentConfig = field(default_factory=AgentConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    grammar: tuple[GrammarComponent, ...] = ()
    register: bool = True


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """What `python -m diversity_jax.train_tokenizer` trains.

    Attributes:
      output: path of the model, ending in `.model`.
      components: text, in shares as in a mixture.
      real_to_synthetic: ratio of real to synthetic tokens, such as (4, 1); without it, shares are of all tokens.
      vocab_size: number of ids.
      model_type: `bpe` or `unigram`.
      sample_characters: text read at most, over all components.
      seed: of the sample of documents.
    """

    output: str
    components: tuple[Component, ...]
    real_to_synthetic: tuple[float, float] | None = None
    vocab_size: int = 32000
    model_type: str = "bpe"
    sample_characters: int = 50_000_000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.model_type not in ("bpe", "unigram"):
            raise InputError(f"model_type {self.model_type!r}: choose bpe or unigram")
        token_shares(self.components, self.real_to_synthetic)
