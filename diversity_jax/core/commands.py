"""The table of the commands of `diversity-jax`, and helpers for configuration files and their error messages."""

from collections.abc import Mapping, Sequence
import dataclasses
from dataclasses import dataclass, field
import difflib
import importlib
import os
from pathlib import Path
import re
import sys
import traceback
from types import MappingProxyType, ModuleType


@dataclass(frozen=True, kw_only=True)
class Command:
    """One command.

    Attributes:
      module: below `diversity_jax`; run as `python -m` runs it.
      summary: a few words for the list of commands.
      config: `MODULE:CLASS` of the configuration, below `diversity_jax`; empty: it parses its arguments itself.
      default_config: the configuration file where none is given; empty: one must be given.
      default_config_for_text: the file whose `get_config` takes the first positional argument.
      positional: fields that positional arguments set, in order; `*` behind the last one takes all, joined by commas.
      short: fields by letter.
      own_options: options that are no fields: whether each takes a value.
      pass_through: the option beside which unknown options are passed on, as Beam's are beside `runner`.
    """

    module: str
    summary: str
    config: str = ""
    default_config: str = ""
    default_config_for_text: str = ""
    positional: tuple[str, ...] = ()
    short: Mapping[str, str] = field(default_factory=dict)
    own_options: Mapping[str, bool] = field(default_factory=dict)
    pass_through: str = ""

    def config_type(self) -> type:
        """The dataclass of its configuration, imported now."""
        module, _, name = self.config.partition(":")
        return getattr(importlib.import_module(f"diversity_jax.{module}"), name)


_JUDGED = {"j": "judge", "o": "output_dir", "n": "agent.groupings"}
_MODEL = {"m": "model.checkpoint", "o": "output_dir"}
COMMANDS: Mapping[str, Command] = MappingProxyType(
    {
        "score": Command(
            module="score",
            summary="how diverse corpora are, by a judge",
            config="scoring.config:ScoreConfig",
            default_config="configs/score.py",
            positional=("corpus*",),
            short=_JUDGED | {"m": "metrics"},
        ),
        "measure": Command(
            module="score",
            summary="baseline metrics of corpora, without a judge",
            config="scoring.config:ScoreConfig",
            default_config="configs/metrics.py",
            positional=("corpus*",),
            short=_JUDGED | {"m": "metrics"},
        ),
        "audit": Command(
            module="audit",
            summary="examines a judge, and plants hostile documents in a corpus",
            config="scoring.config:ScoreConfig",
            default_config="configs/score.py",
            positional=("corpus",),
            short=_JUDGED,
        ),
        "generate": Command(
            module="generate",
            summary="writes a synthetic component with language models",
            config="synthesis.config:GenerateConfig",
            default_config="configs/generate.py",
            positional=("topics.source",),
            short={"m": "generators[0].model", "o": "output_dir", "n": "grid.documents"},
        ),
        "build": Command(
            module="mixtures.build",
            summary="scores, gates, prepares and registers a mixture",
            config="mixtures.config:BuildConfig",
            short=_JUDGED,
        ),
        "show": Command(module="mixtures.show", summary="what a built mixture consists of, as text and as a page"),
        "prepare": Command(
            module="mixtures.prepare",
            summary="documents to rows of tokens, on this machine or on Beam",
            config="prepare.config:PrepareConfig",
            default_config="configs/prepare.py",
            positional=("corpus.source",),
            short={"o": "output_dir", "t": "vocabulary", "l": "preparation.sequence_length"},
            pass_through="runner",
        ),
        "export": Command(module="mixtures.export", summary="a built mixture in the format of another trainer"),
        "fetch": Command(module="mixtures.fetch", summary="a mixture from a bucket, or the part that some steps read"),
        "tokenizer": Command(
            module="train_tokenizer",
            summary="trains a SentencePiece tokenizer",
            config="mixtures.config:TokenizerConfig",
            default_config="configs/tokenizer.py",
            short={"o": "output", "v": "vocab_size"},
        ),
        "train": Command(
            module="train",
            summary="scores, gates, prepares and trains: one's own text, or a configuration",
            config="training.run:Config",
            default_config_for_text="configs/my_text.py",
            short={"o": "output_dir", "s": "train.steps", "b": "train.batch_size"},
        ),
        "compile": Command(
            module="training.compile",
            summary="compiles the training step for chips that are not here",
            config="training.run:Config",
            own_options={"topology": True, "search": False, "limit": True, "fast": False, "json": True, "cache": True}
            | {"no_suggestion": False},
        ),
        "evaluate": Command(
            module="evaluate",
            summary="benchmarks and held-out loss of a model",
            config="evaluation.config:EvaluateConfig",
            default_config="configs/evaluate_paper.py",
            positional=("model.checkpoint",),
            short=_MODEL | {"t": "tasks", "n": "limit"},
        ),
        "generate-text": Command(
            module="generate_text",
            summary="text by a model",
            config="evaluation.config:GenerateTextConfig",
            default_config="configs/generate_text.py",
            positional=("model.checkpoint", "prompt"),
            short=_MODEL | {"o": "output", "n": "max_tokens", "p": "prompt"},
        ),
        "serve": Command(
            module="serve",
            summary="an OpenAI-compatible server for a model",
            config="evaluation.config:ServeConfig",
            default_config="configs/serve.py",
            positional=("model.checkpoint",),
            short={"m": "model.checkpoint", "p": "port"},
        ),
        "convert": Command(module="model.convert", summary="models to and from Hugging Face folders and GGUF"),
        "lm-eval": Command(module="lm_eval", summary="lm-evaluation-harness's command, knowing our models"),
        "study": Command(
            module="study",
            summary="a grid of data recipes through all of it, and what their outcomes say",
            config="study.config:StudyConfig",
            short={"o": "output_dir", "p": "processes"},
        ),
        "report": Command(module="report", summary="one page over all runs of a folder, kept current where asked"),
        "study-page": Command(module="study.page", summary="draws the pages of finished studies again"),
    }
)
"""By name, in the order of work."""


def of_config(kind: type) -> str:
    """The command that a configuration is for, in words."""
    name = f"{kind.__module__.removeprefix('diversity_jax.')}:{kind.__name__}"
    known = [f"`{command}`" for command, about in COMMANDS.items() if about.config == name]
    return " or ".join(known) if known else f"a {kind.__name__}"


def packaged_path(path: str) -> str:
    """A configuration file's path; one below `configs/` that does not exist here is looked up in the package."""
    if not os.path.exists(path) and path.replace("\\", "/").startswith("configs/"):
        package = Path(__file__).resolve().parents[1]
        for folder in (package, package.parent):
            if (folder / path).is_file():
                return str(folder / path)
    return path


def share_configs(path: str) -> None:
    """Lets a configuration in a folder `configs` import its neighbours as `configs.NAME` from any working directory."""
    folder = next((str(each) for each in Path(path).resolve().parents if each.name == "configs"), None)
    if folder is None:
        return
    try:
        package = importlib.import_module("configs")
    except ModuleNotFoundError:
        package = sys.modules["configs"] = ModuleType("configs")
    package.__path__ = [folder, *(each for each in getattr(package, "__path__", ()) if each != folder)]


def nearest(name: str, known: Sequence[str]) -> str:
    """The end of a message about an unknown name: the nearest known one, or all."""
    close = difflib.get_close_matches(name, known, 1, 0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; its fields are {', '.join(known)}"


def line_of(error: Exception, path: str) -> str:
    """The last line of a file in an error's traceback, as `:17`."""
    frames, path = traceback.extract_tb(error.__traceback__), os.path.realpath(path)
    lines = [frame.lineno for frame in frames if os.path.realpath(frame.filename) == path]
    return f":{lines[-1]}" if lines else ""


def nearest_argument(error: Exception) -> str:
    """The end of a message about a dataclass made with an unknown field: as `nearest`."""
    wrong = re.search(r"^(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", str(error))
    frames = traceback.walk_tb(error.__traceback__)
    kinds = [value for frame, _ in frames for value in (*frame.f_globals.values(), *frame.f_locals.values())]
    kind = next((each for each in kinds if wrong and getattr(each, "__name__", "") == wrong[1]), None)
    if kind is None or wrong is None or not dataclasses.is_dataclass(kind):
        return ""
    return nearest(wrong[2], [field.name for field in dataclasses.fields(kind)])
