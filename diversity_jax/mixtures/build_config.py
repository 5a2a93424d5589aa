"""The configurations of `python -m diversity_jax.mixtures.build` and of `scripts/train_tokenizer`."""

from dataclasses import dataclass, field

from diversity_jax.cluster_agent import AgentConfig
from diversity_jax.core.errors import InputError
from diversity_jax.llm import BudgetConfig, EngineConfig
from diversity_jax.mixtures.config import Component, MixtureConfig, token_shares
from diversity_jax.synthesis.config import GrammarComponent


@dataclass(frozen=True, kw_only=True)
class BuildConfig:
    """What `python -m diversity_jax.mixtures.build` builds.

    Attributes:
      output_dir: folder of the mixture: scorecards, prepared components, `mixture.json`.
      mixture: what is asked for.
      judge, judge_base_url, agent, engine, budget: who measures what is not scored yet, as in a training run.
      grammar: demo text to write first, where it is not there yet.
      register: also register the mixture with SeqIO in this process, to see that it is accepted; needs TensorFlow.
    """

    output_dir: str
    mixture: MixtureConfig
    judge: str = "offline"
    judge_base_url: str | None = None
    agent: AgentConfig = field(default_factory=AgentConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    grammar: tuple[GrammarComponent, ...] = ()
    register: bool = True


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """What a tokenizer is trained on, and how large it is.

    Attributes:
      output: path of the model, ending in `.model`.
      components: text, in shares as in a mixture.
      real_to_synthetic: as in a mixture.
      vocab_size: pieces; model_type: `bpe` or `unigram`.
      sample_characters: text read at most, over all components.
    """

    output: str
    components: tuple[Component, ...]
    real_to_synthetic: tuple[float, float] | None = None
    vocab_size: int = 32000
    model_type: str = "bpe"
    sample_characters: int = 50_000_000
    seed: int = 0

    def __post_init__(self):
        if self.model_type not in ("bpe", "unigram"):
            raise InputError(f"model_type {self.model_type!r}: choose bpe or unigram")
        token_shares(self.components, self.real_to_synthetic)
