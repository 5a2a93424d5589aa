"""Configurations of evaluation, benchmarks made from a corpus, text generation and the server."""

from dataclasses import dataclass, field
import re

from diversity_jax.core.config import ADDED, check_least
from diversity_jax.core.errors import InputError
from diversity_jax.core.stores import check_store, refuse_other_than_model
from diversity_jax.corpus import CorpusConfig
from diversity_jax.model import MeshConfig

COMPUTE_DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """A model, and how it is run.

    Attributes:
      checkpoint: a run's output folder, what `model.convert import` wrote, or a Hugging Face folder.
      step: checkpoint of a run; None: the latest.
      tokenizer: `bytes`, a file or a folder; None: the run's own, or the one beside the weights.
      compute_dtype: float32 (figures equal everywhere) or bfloat16 (faster on accelerators).
      max_length: longest context in tokens; None: the model's own.
      mesh: how rows and weights are sharded over the devices; by default rows over all of them.
    """

    checkpoint: str = ""
    step: int | None = None
    tokenizer: str | None = None
    compute_dtype: str = "float32"
    max_length: int | None = None
    mesh: MeshConfig = field(default_factory=lambda: MeshConfig(data=-1, fsdp=1))

    def __post_init__(self) -> None:
        check_store(self.checkpoint, "model.checkpoint")
        if self.compute_dtype not in COMPUTE_DTYPES:
            raise InputError(f"model.compute_dtype={self.compute_dtype!r}: choose {' or '.join(COMPUTE_DTYPES)}")
        check_least(self, "", max_length=2)

    def check_named(self) -> None:
        """Raises `InputError` where `checkpoint` is empty, as configuration files leave it, or no model's folder."""
        if not self.checkpoint:
            raise InputError("model.checkpoint is empty; give a run's output or a Hugging Face folder")
        refuse_other_than_model(self.checkpoint, "model.checkpoint=")


@dataclass(frozen=True, kw_only=True)
class HeldOutCorpus:
    """Text the model was not trained on, and the name its loss is shown under."""

    name: str  # shown
    corpus: CorpusConfig


@dataclass(frozen=True, kw_only=True)
class ContinuationsConfig:
    """A benchmark made from any corpus: which of several passages continues the beginning of a document.

    Attributes:
      output_dir: the folder that `hellaswag_validation.jsonl` is written to.
      corpus: documents that no model under test was trained on.
      skip_documents: first documents to leave out, such as those a model was trained on.
      items: questions at most, each of a document of its own.
      choices: passages offered.
      context_words, ending_words: length of the beginning and of each passage.
      seed: of the wrong passages and the order.
    """

    output_dir: str
    corpus: CorpusConfig
    skip_documents: int = 0
    items: int = 400
    choices: int = 4
    context_words: int = 24
    ending_words: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        check_least(self, "", items=1, choices=2, context_words=1, ending_words=1)


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """What `python -m diversity_jax.evaluate` measures.

    Attributes:
      output_dir: for results.json, samples/, requests/ (finished requests, to resume from) and report.html; a local or
        mounted folder. An evaluation of the same model and settings is resumed; a folder of another one is refused.
      resume: continue in `output_dir` with changed settings: its results are replaced, and its finished requests used
        where they fit.
      overwrite: remove what `output_dir` holds of another evaluation first.
      tasks: names of lm-evaluation-harness joined by commas; `paper` stands for the paper's eight; empty: none.
      data_dir: folder of local benchmark files; None: the hub.
      num_fewshot: examples shown before each question, from the train split; the paper shows none.
      limit: items of each task at most; None: all.
      batch_size: rows computed at once; results do not depend on it.
      slots: answers generated at once, for tasks that generate.
      system_prompt: precedes every prompt; for fine-tuned models the one of their training.
      apply_chat_template: format prompts as a conversation, by the tokenizer's template or the project's own.
      held_out: also measure the loss on the run's held-out rows, component by component.
      out_of_distribution: texts whose loss is measured document by document.
      compare_with: another evaluation's output folder; the two are compared item by item.
      bootstrap_samples: draws of the paired bootstrap.
      seed: of the bootstrap, and of what the harness draws.
    """

    output_dir: str = "runs/evaluation"
    resume: bool = field(default=False, metadata=ADDED)
    overwrite: bool = field(default=False, metadata=ADDED)
    model: ModelSource = field(default_factory=ModelSource)
    tasks: str = "paper"
    data_dir: str | None = None
    num_fewshot: int = 0
    limit: int | None = None
    batch_size: int = 8
    slots: int = 16
    system_prompt: str | None = None
    apply_chat_template: bool = False
    held_out: bool = False
    out_of_distribution: tuple[HeldOutCorpus, ...] = ()
    compare_with: str | None = None
    bootstrap_samples: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        check_least(self, "", num_fewshot=0, batch_size=1, slots=1, bootstrap_samples=100, limit=1, seed=0)
        if self.seed >= 2**32:
            raise InputError(f"seed={self.seed}: must be below 2^32, as NumPy's generators need it")
        check_store(self.output_dir, "output_dir")
        if not self.task_list and not self.held_out and not self.out_of_distribution:
            raise InputError("nothing to measure; set tasks, held_out or out_of_distribution")
        names = [held_out.name for held_out in self.out_of_distribution]
        if len(set(names)) < len(names):
            raise InputError("out_of_distribution: two corpora share a name; give each its own")

    @property
    def task_list(self) -> list[str]:
        """The names in `tasks`."""
        return [name.strip() for name in self.tasks.split(",") if name.strip()]


@dataclass(frozen=True, kw_only=True)
class GenerateTextConfig:
    """What `python -m diversity_jax.generate_text` writes.

    Attributes:
      prompt: one prompt; ignored where `prompts_file` is given.
      prompts_file: JSON lines with `prompt` (text) or `messages` (a conversation), else one prompt a line.
      output: a JSON-lines file of answers; None: the answers are printed.
      overwrite: replace that file if it exists.
      chat: the prompt is a user's turn, put into the chat template.
      system_prompt: for chat.
      max_tokens: longest answer.
      temperature: 0 is greedy.
      top_k: only this many of the likeliest tokens; 0: all.
      top_p: only the likeliest tokens that make up this share of the probability; 1: all.
      seed: answer n of a prompt uses seed + n.
      stop: texts at which an answer ends.
      samples: answers per prompt.
      slots: answers generated at once.
    """

    model: ModelSource = field(default_factory=ModelSource)
    prompt: str = ""
    prompts_file: str | None = None
    output: str | None = None
    overwrite: bool = False
    chat: bool = False
    system_prompt: str | None = None
    max_tokens: int = 64
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    samples: int = 1
    slots: int = 16

    def __post_init__(self) -> None:
        check_least(self, "", samples=1, slots=1, max_tokens=1)


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """What `python -m diversity_jax.serve` offers.

    Attributes:
      name: what clients call the model; None: the checkpoint folder's name.
      host: address to listen on; only this machine can reach 127.0.0.1.
      port: 0 takes a free one and prints it.
      slots: answers generated at once.
      steps: tokens decoded before waiting requests are admitted.
      memory_gb: most memory of each device for keys and values; None: most of the free memory at the start.
      max_waiting: requests running or queued at most; further ones are refused (429).
      max_body_bytes: longest request body.
      max_bodies_bytes: all bodies that are being read or parsed; further ones are refused (429).
      read_seconds: timeout of receiving a request, and of a client's receiving a part of an answer.
      allow_host: further names, in lower case, by which clients may address the server.
      allow_origin: origins of web pages that may send requests, such as `https://example.org`; `*`: all.
      api_key: the environment variable that holds the key clients must send; empty: none is asked for.
    """

    model: ModelSource = field(default_factory=ModelSource)
    name: str | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    slots: int = 16
    steps: int = 8
    memory_gb: float | None = None
    max_waiting: int = 1024
    max_body_bytes: int = 8 << 20
    max_bodies_bytes: int = 32 << 20
    read_seconds: float = 30.0
    allow_host: tuple[str, ...] = ()
    allow_origin: tuple[str, ...] = ()
    api_key: str = ""

    def __post_init__(self) -> None:
        check_least(self, "", slots=1, steps=1, max_waiting=1, max_body_bytes=1, max_bodies_bytes=self.max_body_bytes)
        for name in ("read_seconds", "memory_gb"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise InputError(f"{name}={value}: must be above 0")
        for origin in self.allow_origin:
            if not re.fullmatch(r"\*|null|[a-z][a-z0-9+.-]*://[a-z0-9._\[\]:-]+", origin):
                raise InputError(f"allow_origin={origin!r}: expected one such as https://example.org, or *")
        if not 0 <= self.port < 65536:
            raise InputError(f"port={self.port}: must be from 0 (any free one) to 65535")
