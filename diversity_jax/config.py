"""The configurations of the entry points, composed of the rooms' own."""

from dataclasses import dataclass, field

from diversity_jax.cluster_agent import AgentConfig
from diversity_jax.errors import InputError
from diversity_jax.llm import BudgetConfig, EngineConfig
from diversity_jax.mixtures.component import Component, MixtureConfig, token_shares
from diversity_jax.model import LlamaConfig, MeshConfig
from diversity_jax.score_config import NamedCorpus as NamedCorpus
from diversity_jax.score_config import ScoreConfig as ScoreConfig
from diversity_jax.synthesis.grammar import GrammarConfig
from diversity_jax.synthesis.settings import SynthesisConfig
from diversity_jax.training.distributed import DistributedConfig
from diversity_jax.training.optimizer import OptimizerConfig
from diversity_jax.training.settings import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Config:
    """A whole run: `python -m diversity_jax.train --config FILE`.

    Attributes:
      output_dir: everything the run writes; a second run with the same folder goes on where the first stopped.
      mixture: what is trained on; None where `prepared` is given.
      prepared: folder of a mixture that is built already: nothing is scored, read or tokenised, and neither TensorFlow nor
        the corpora are needed.
      judge: who measures diversity: `offline` (no LLM), `openai:MODEL`, `gemini:MODEL` or `google-genai:MODEL`.
      judge_base_url: of an OpenAI-compatible server, such as http://127.0.0.1:8000/v1.
      register: also register the mixture with SeqIO in this process, to see that it is accepted.
      model: what is trained; None: the model of `train.init_from`.
      distributed: how this process finds the others, where it is one of several: `distributed.start=auto` on TPU slices, Slurm and
        Open MPI. The first one builds the mixture, so `output_dir` has to be a folder that all of them see.
    """

    output_dir: str
    mixture: MixtureConfig | None = None
    prepared: str | None = None
    judge: str = "offline"
    judge_base_url: str | None = None
    agent: AgentConfig = field(default_factory=AgentConfig)
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    model: LlamaConfig | None = None
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    register: bool = False
    distributed: DistributedConfig = field(default_factory=DistributedConfig)

    def __post_init__(self):
        if self.mixture is None and self.prepared is None:
            raise InputError("config.mixture and config.prepared are both None; give one: a mixture to build, or the folder of a built one")
        if self.model is None and self.train.init_from is None:
            raise InputError("config.model and config.train.init_from are both None; describe the model, or name one to begin with")


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


@dataclass(frozen=True, kw_only=True)
class GrammarComponent:
    """A file of demo text: where it goes, and how much of what the grammar writes."""

    path: str
    grammar: GrammarConfig = field(default_factory=GrammarConfig)


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
class GenerateConfig(SynthesisConfig):
    """What `python -m diversity_jax.generate` writes: a component made by language models, demo text, or both.

    Attributes:
      generators: who writes; where there are none, only the grammar does. All other fields are `SynthesisConfig`'s.
      grammar: components of demo text, made by a grammar and not by an LLM.
    """

    grammar: tuple[GrammarComponent, ...] = ()

    def __post_init__(self):
        super().__post_init__()
        if not self.generators and not self.grammar:
            raise InputError("generators and grammar are both empty; name a generator such as openai:gpt-4o-mini, or demo text to write")
