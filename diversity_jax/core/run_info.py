"""The record of a run, `run.json`: command line, settings, versions and hardware, with which it can be repeated."""

from collections.abc import Mapping, Sequence
import contextlib
import dataclasses
import importlib.metadata
import os
from pathlib import Path
import platform
import re
import shlex
from typing import Any, Self

from diversity_jax.core.buckets import public_name
from diversity_jax.core.config import plain_number
from diversity_jax.core.errors import InputError, without_secrets
from diversity_jax.core.field_docs import default_of
from diversity_jax.core.files import exists, join_path, read_json, relative_path, resolve_path, write_json
from diversity_jax.core.stores import is_remote

_JAX_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint")
_PACKAGES = ("diversity_jax", *_JAX_PACKAGES, "numpy", "seqio", "tensorflow", "tensorflow-cpu")
# Options whose values may hold keys.
_SECRET_OPTION = re.compile(r"(--\S*endpoint\.(?:headers|query))(=|$)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fact:
    """A named fact about a run, as pages and commands list it; `code` for hashes and command lines."""

    name: str
    value: str
    code: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunInfo:
    """The content of `run.json`.

    Attributes:
      command: the command line, quoted for a shell; user names and passwords in URLs are left out.
      settings: the configuration, nested.
      versions: of Python and of installed packages that a run depends on, by name.
      hardware: the devices that the run computes on, and the machine.
    """

    command: str
    settings: Mapping[str, Any]
    versions: Mapping[str, str]
    hardware: str

    def save(self, run_dir: str | os.PathLike) -> Path | str:
        """Writes `run.json` into the run's folder."""
        path = join_path(run_dir, "run.json")
        write_json(path, dataclasses.asdict(self))
        return path

    def facts(self) -> list[Fact]:
        """Command, hardware and versions."""
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        return [
            Fact(name="Command", value=self.command, code=True),
            Fact(name="Hardware", value=self.hardware),
            Fact(name="Versions", value=versions),
        ]

    @classmethod
    def load(cls, path: str | os.PathLike) -> Self:
        """Reads `run.json`.

        Raises:
          InputError: no such file, not JSON, or not what `save` writes.
        """
        value = read_json(path)
        kinds = {"command": str, "settings": dict, "versions": dict, "hardware": str}
        if not isinstance(value, dict) or set(value) != set(kinds):
            wanted = ", ".join(kinds)
            raise InputError(f"{path}: is not a run's record; expected {wanted}: remove it, or train again")
        for name, kind in kinds.items():
            if not isinstance(value[name], kind):
                wrong = f"{name} is {type(value[name]).__name__}; expected {kind.__name__}"
                raise InputError(f"{path}: {wrong}: remove it, or train again")
        return cls(**value)


def folders_read(run: str | os.PathLike, settings: Mapping[str, Any], named: str) -> list[Path | str]:
    """Where a folder that a run has read, its mixture or the model it began with, may be now; the first there counts.

    First beside the run, as it was beside `output_dir`: both may have been moved together, and a relative path is of
    the working folder that the run was started in. Then where the settings say.

    Args:
      settings: the run's, as `run.json` records them; named: the path or URL in them.
    """
    output_dir = settings.get("output_dir")
    beside = [resolve_path(run, relative_path(named, output_dir))] if isinstance(output_dir, str) else []
    return [*beside, named if is_remote(named) else Path(named)]


def refuse_other_run(
    folder: str | os.PathLike, config: Any, setting: str, what: str, *, free: Sequence[str], resume: bool = False
) -> None:
    """Refuses a folder that another command, or this one with other settings, wrote to.

    Args:
      config: the configuration now.
      setting, what: as `refuse_other_command`.
      free: fields that may differ, with all below them.
      resume: other settings are allowed.

    Raises:
      InputError: the settings differ; the message names the fields with both values.
    """
    before = refuse_other_command(folder, setting, what)
    if before is None or resume:
        return
    differing = [
        change
        for change in changes(before, config)
        if not any(change.field == name or change.field.startswith((f"{name}.", f"{name}[")) for name in free)
        and not _is_same_path(change.before, change.now)
    ]
    if differing:
        raise InputError(
            f"{folder}: holds another {what} ({', '.join(map(str, differing))}); choose another output_dir, or set "
            "resume=True to go on in this one or overwrite=True to begin anew"
        )


def _is_same_path(before: Any, now: Any) -> bool:
    both = isinstance(before, str) and isinstance(now, str) and os.path.exists(before) and os.path.exists(now)
    return both and os.path.realpath(before) == os.path.realpath(now)


def refuse_other_command(folder: str | os.PathLike, setting: str, what: str) -> dict[str, Any] | None:
    """The settings in the folder's `run.json`; None where there is none.

    Args:
      setting: a field that only this command's configuration has.
      what: the command's result, such as "training run".

    Raises:
      InputError: another command wrote it.
    """
    path = join_path(folder, "run.json")
    if not exists(path):
        return None
    info = RunInfo.load(path)
    if setting not in info.settings:
        raise InputError(
            f"{public_name(folder)}: holds no {what}, but what `{info.command[:160]}` wrote; choose another output_dir"
        )
    return dict(info.settings)


def describe(command: Sequence[str], settings: Any, devices: Sequence[Any] = ()) -> RunInfo:
    """The record of the run that is starting.

    Args:
      command: `sys.argv`; a module's path as its first word is written as `python -m MODULE`.
      settings: a configuration dataclass, or a mapping of JSON values.
      devices: `jax.devices()`, where the run computes on any.
    """
    hardware = f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}"
    if devices:
        kinds = sorted({str(device.device_kind) for device in devices})
        hardware = f"{len(devices)} x {', '.join(kinds)}; {hardware}"
    return RunInfo(command=_command(command), settings=plain(settings), versions=package_versions(), hardware=hardware)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Change:
    """A field whose value has changed; `str` shows it as users write it."""

    field: str
    before: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.field}={_shown(self.now)} (was {_shown(self.before)})"


def _shown(value: Any) -> str:
    text = repr(tuple(value) if isinstance(value, list) else value)
    return text if len(text) <= 80 else text[:77] + "..."


def changes(before: Any, now: Any, name: str = "") -> list[Change]:
    """The fields of a configuration that differ from recorded settings, named with dots as on the command line.

    A field that the record lacks, since an earlier version wrote it, counts as its default.

    Args:
      before: the settings as JSON values, as `RunInfo.settings` holds them.
      now: the configuration dataclass, or a part of it.
    """
    if dataclasses.is_dataclass(now) and isinstance(before, Mapping):
        differences: list[Change] = []
        for field in dataclasses.fields(now):
            old = before.get(field.name, default_of(field))
            old = None if old is dataclasses.MISSING else old
            differences += changes(old, getattr(now, field.name), f"{name}.{field.name}" if name else field.name)
        return differences
    both = isinstance(before, list | tuple) and isinstance(now, list | tuple) and len(before) == len(now)
    if both and any(map(dataclasses.is_dataclass, now)):
        pairs = enumerate(zip(before, now, strict=True))
        return [change for number, pair in pairs for change in changes(*pair, f"{name}[{number}]")]
    before, now = plain(before), plain(now)
    return [] if before == now else [Change(field=name, before=before, now=now)]


def _command(words: Sequence[str]) -> str:
    first, *others = words
    path = Path(first)
    folders = path.parent.parts
    if path.suffix == ".py" and "diversity_jax" in folders:
        package = folders[len(folders) - 1 - folders[::-1].index("diversity_jax") :]
        start = ["python", "-m", ".".join((*package, path.stem)).removesuffix(".__main__")]
    else:
        start = ["python", first] if path.suffix == ".py" else [path.name if path.name == "diversity-jax" else first]
    words = [f"{match[1]}=***" if (match := _SECRET_OPTION.match(word)) else word for word in others]
    for at, word in enumerate(others[:-1]):
        if (match := _SECRET_OPTION.match(word)) and not match[2]:  # its value is the next word
            words[at : at + 2] = [word, "***"]
    return without_secrets(shlex.join(start + words))


def package_versions(packages: Sequence[str] = _PACKAGES) -> dict[str, str]:
    """Versions of Python and of packages; those that are not installed are left out."""
    versions = {"python": platform.python_version()}
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions


def plain(value: Any) -> Any:
    """A configuration as JSON values, without secrets: tuples become lists, and values of other types text."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in without_headers(value).items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, str):
        return without_secrets(public_name(value))
    value = plain_number(value)
    return value if value is None or isinstance(value, (bool, int, float)) else str(value)


def without_headers(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """Fields, of which the values of an endpoint's headers and query, which may be keys, are masked."""
    if not {"headers", "key_header"} <= set(fields):
        return fields
    names = [header.partition(":")[0] for header in fields["headers"]]
    return {**fields, "headers": [f"{name}: ***" for name in names], "query": "***" if fields["query"] else ""}
