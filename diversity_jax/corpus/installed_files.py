"""Files of the packages installed in this environment and of Python's own library, in an order that spreads evenly over packages."""

from collections.abc import Iterator
from dataclasses import dataclass
import hashlib
import importlib.metadata
import os
from pathlib import PurePosixPath
import platform
import re
import sysconfig

_OWN = "diversity-jax"
_NOT_LIBRARY = ("site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__")


@dataclass(frozen=True, kw_only=True)
class InstalledFile:
    """One file of one installed package.

    Attributes:
      package: normalised name of the distribution.
      version: its version.
      name: path inside the environment, with forward slashes, the same wherever the environment lies.
      path: where it lies here.
    """

    package: str
    version: str
    name: str
    path: str


def installed_files(endings: tuple[str, ...]) -> list[InstalledFile]:
    """Installed files whose names end so: first one of every package, then a second of every package that has one, and so on.

    Python's standard library counts as one package, so that even a bare environment has text. Which file of a package comes first
    is decided by a hash of its name, so that the order depends on nothing but which packages, in which versions, are installed.
    This project itself is left out, and so is the second owner of a shared file.
    """
    owned = [("python", platform.python_version(), sysconfig.get_path("stdlib"), _standard_library())]
    for package, distribution in sorted(_distributions().items()):
        owned.append((package, distribution.version, str(distribution.locate_file("")), _recorded(distribution)))
    ranked, seen = [], set()
    for package, version, root, recorded in owned:
        names = [name for name in recorded if name.endswith(endings) and name not in seen]
        seen.update(names)
        for rank, name in enumerate(sorted(names, key=_stable_hash)):
            file = InstalledFile(package=package, version=version, name=name, path=f"{root}/{name}")
            ranked.append((rank, _stable_hash(package), file))
    return [file for _, _, file in sorted(ranked, key=lambda entry: entry[:2])]


def descriptions() -> Iterator[tuple[InstalledFile, str]]:
    """The long description (usually the README) of every installed package that has one, in the order of package hashes."""
    for package, distribution in sorted(_distributions().items(), key=lambda entry: _stable_hash(entry[0])):
        metadata = distribution.metadata
        text = metadata.get_payload() if hasattr(metadata, "get_payload") else None
        text = metadata.get("Description") or text
        if isinstance(text, str) and text.strip():
            name = f"{package}-{distribution.version}/description"
            yield InstalledFile(package=package, version=distribution.version, name=name, path=""), text


def _distributions() -> dict[str, importlib.metadata.Distribution]:
    """By normalised name; the first one found on the import path is the one that imports would use."""
    found: dict[str, importlib.metadata.Distribution] = {}
    for distribution in importlib.metadata.distributions():
        name = distribution.metadata["Name"]  # None for a damaged installation, of which there is nothing to read
        if name:
            found.setdefault(re.sub(r"[-_.]+", "-", name).lower(), distribution)
    found.pop(_OWN, None)
    return found


def _recorded(distribution: importlib.metadata.Distribution) -> list[str]:
    """Names of the installed files inside the package folder; parsed here because `Distribution.files` takes ten times as long."""
    record = distribution.read_text("RECORD")
    if record is None:
        names = [str(PurePosixPath(file)) for file in distribution.files or ()]
    else:
        names = [line.rsplit(",", 2)[0].strip('"') for line in record.splitlines() if line.count(",") >= 2]
    return [name for name in names if not name.startswith(("..", "/")) and ".dist-info/" not in name]


def _standard_library() -> list[str]:
    """Names of the modules of the standard library, without its tests, which some distributions of Python leave out."""
    root, names = sysconfig.get_path("stdlib"), []
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name not in _NOT_LIBRARY]
        inside = os.path.relpath(folder, root)
        names += [PurePosixPath(inside, name).as_posix() for name in files]
    return names


def _stable_hash(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()
