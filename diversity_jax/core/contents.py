"""What a folder of this project's commands holds, so that one given to the wrong command is called what it is."""

from collections.abc import Sequence
import os

from diversity_jax.core.errors import InputError
from diversity_jax.core.stores import is_remote

# (what, files or folders that are all in such a folder); the first that fits is what a folder holds.
_KINDS: Sequence[tuple[str, Sequence[str]]] = (
    ("a training run", ("run.json", "checkpoints")),
    ("a training run without a checkpoint", ("run.json", "mixture")),
    ("a study", ("analysis.json",)),
    ("a study that is not finished", ("steps", "run.json")),
    ("an evaluation", ("results.json", "run.json")),
    ("an audit of a judge", ("audit.json",)),
    ("a generated component, whose text is documents/*.jsonl.zst", ("documents", "rounds")),
    ("a built mixture", ("mixture.json",)),
    ("a prepared component", ("manifest.json",)),
    ("a scoring", ("scoring.json",)),
    ("a scoring", ("scorecard.json",)),
    ("an imported model", ("model.json",)),
    ("a Hugging Face model", ("config.json",)),
)


def contents(folder: str | os.PathLike) -> str | None:
    """What a local folder holds, in a few words; None where no command of this project wrote it, or it is remote."""
    if is_remote(folder) or not os.path.isdir(folder):
        return None
    return next((what for what, names in _KINDS if all(os.path.exists(os.path.join(folder, n)) for n in names)), None)


def refuse_other_than_model(folder: str | os.PathLike, field: str = "") -> None:
    """Refuses a folder that a command wrote and that holds no model.

    Raises:
      InputError: what it holds; `field` with an equals sign begins the message.
    """
    found = contents(folder)
    if found is not None and not found.endswith(" model") and not found.startswith("a training run"):
        wanted = "give a training run's folder, or a model's"
        raise InputError(f"{field}{folder}: holds {found}, not a model; {wanted}")


def refuse_as_text(folder: str | os.PathLike) -> None:
    """Refuses a folder that a command of this project certainly wrote, where text is wanted.

    Raises:
      InputError: what it holds.
    """
    found = contents(folder)
    if found is not None and not found.endswith((" model", " component")):  # others have such files beside text, too
        raise InputError(f"{folder}: holds {found}, not text; name files with text")


def but_holds(folder: str | os.PathLike) -> str:
    """`; the folder holds a scoring`, to end a message that something is not there; empty where that is not known."""
    found = contents(folder)
    return f"; the folder holds {found}" if found else ""
