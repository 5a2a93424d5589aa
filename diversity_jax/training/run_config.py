"""The configuration of a whole training run: `python -m diversity_jax.train --config FILE`."""

from dataclasses import dataclass, field

from diversity_jax.cluster_agent import AgentConfig
from diversity_jax.core.errors import InputError
from diversity_jax.llm import BudgetConfig, EngineConfig
from diversity_jax.mixtures.config import MixtureConfig
from diversity_jax.model import LlamaConfig, MeshConfig
from diversity_jax.training.config import TrainConfig
from diversity_jax.training.distributed import DistributedConfig
from diversity_jax.training.optimizer import OptimizerConfig


@dataclass(frozen=True, kw_only=True)
class Config:
    """A whole run: `python -m diversity_jax.train --config FILE`.

    Attributes:
      output_dir: everything the run writes; a second run with the same folder goes on where the first stopped.
      mixture: what is trained on; None where `prepared` is given.
      prepared: folder of a mixture that is built already: nothing is scored, read or tokenised, and neither TensorFlow
        nor the corpora are needed.
      judge: who measures diversity: `offline` (no LLM), `openai:MODEL`, `gemini:MODEL` or `google-genai:MODEL`.
      judge_base_url: of an OpenAI-compatible server, such as http://127.0.0.1:8000/v1.
      register: also register the mixture with SeqIO in this process, to see that it is accepted.
      model: what is trained; None: the model of `train.init_from`.
      distributed: how this process finds the others, where it is one of several: `distributed.start=auto` on TPU
        slices, Slurm and Open MPI. The first one builds the mixture, so `output_dir` has to be a folder that all of
        them see.
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
            raise InputError(
                "config.mixture and config.prepared are both None; give one: a mixture to build, or the folder of a "
                "built one"
            )
        if self.model is None and self.train.init_from is None:
            raise InputError(
                "config.model and config.train.init_from are both None; describe the model, or name one to begin with"
            )
