"""What of a folder is text: files that the datasets library saved, or the data files of a split."""

from collections.abc import Collection, Sequence
import os
import re
from typing import Any

from diversity_jax.core.errors import InputError
from diversity_jax.core.files import exists, is_remote, join_path, read_json
from diversity_jax.core.stores import remote, store_errors
from diversity_jax.corpus.document import check_split

_SPLIT_WORDS = {
    **{"train": "train", "training": "train", "test": "test", "testing": "test", "eval": "test", "evaluation": "test"},
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
}
"""Word of a file's name -> the split that the datasets library takes it to be of."""
ABOUT_DATA = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}
"""Names of files that the datasets library writes about data, in small letters."""
_ABOUT_TEXT = re.compile(r"(readme|licen[cs]e|notice|changelog|citation|contributing|code_of_conduct|security)\b", re.I)


def saved_dataset(folder: str, split: str) -> list[str] | None:
    """The Arrow files of a folder that `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote, in order.

    Args:
      split: of a `DatasetDict`; a single `Dataset` has none.

    Returns:
      None where it is no such folder.

    Raises:
      InputError: there is no such split, or the folder is not whole.
    """
    if exists(splits_file := join_path(folder, "dataset_dict.json")):
        splits = _member(splits_file, "splits")
        check_split(folder, split, splits)
        folder = str(join_path(folder, split))
        if not exists(join_path(folder, "state.json")):
            raise InputError(f"{folder}: has no state.json; save the dataset again")
    if not exists(state := join_path(folder, "state.json")) or not exists(join_path(folder, "dataset_info.json")):
        return None
    if (read_json(state) or {}).get("_indices_data_files"):
        raise InputError(f"{folder}: holds its rows by an index, as datasets before 2.0 saved them; save it again")
    names = [str(entry.get("filename")) for entry in _member(state, "_data_files") if isinstance(entry, dict)]
    if not names or not all(name.endswith(".arrow") and name == os.path.basename(name) for name in names):
        raise InputError(f"{state}: names no files in _data_files; save the dataset again")
    return [str(join_path(folder, name)) for name in names]


def _member(path: Any, name: str) -> list[Any]:
    value = read_json(path)
    if not isinstance(value, dict) or not isinstance(value.get(name), list):
        raise InputError(f"{path}: has no list {name!r}; save the dataset again")
    return value[name]


def is_folder(source: str) -> bool:
    """Whether a path or URL is a folder; a URL with an ending or a pattern is not looked up."""
    if not is_remote(source):
        return os.path.isdir(source)
    if re.search(r"\.\w+$|[*?\[{]", source):
        return False
    filesystem, inside = remote(source)
    with store_errors(source):
        return bool(filesystem.isdir(inside))


def files_below(folder: str) -> list[str]:
    """Files of a folder, local or remote, and of all folders in it, without hidden ones, sorted."""
    if is_remote(folder):
        filesystem, inside = remote(folder)
        with store_errors(folder):
            return sorted(map(filesystem.unstrip_protocol, filesystem.find(inside)))
    found = []
    for inside, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [os.path.join(inside, name) for name in names if not name.startswith(".")]
    return sorted(found)


def is_about(path: str) -> bool:
    """Whether a file's name says that it is about the data beside it."""
    name = path.replace("\\", "/").rsplit("/", 1)[-1]
    return name.lower() in ABOUT_DATA or bool(_ABOUT_TEXT.match(name))


def of_split(folder: str, paths: Sequence[str], split: str) -> list[str]:
    """Those files whose names say that they are of a split; all of them where not every file's name says one.

    Raises:
      InputError: all names say a split, and none says this one.
    """
    own = _own_splits(folder)
    split_of = {path: _split_of(path.removeprefix(folder), own) for path in paths}
    if not paths or None in split_of.values():
        return list(paths)
    wanted = split if split in own else _SPLIT_WORDS.get(split.lower(), split)
    check_split(folder, wanted, sorted({str(found) for found in split_of.values()}))
    return [path for path in paths if split_of[path] == wanted]


def _own_splits(folder: str) -> set[str]:
    """Names of splits in the `dataset_info.json` of a cache of the datasets library."""
    if not exists(path := join_path(folder, "dataset_info.json")):
        return set()
    splits = (read_json(path) or {}).get("splits")
    return set(splits) if isinstance(splits, dict) else set()


def _split_of(path: str, own: Collection[str]) -> str | None:
    words = re.split(r"[^a-zA-Z]+", path)
    found = {word if word in own else _SPLIT_WORDS.get(word.lower()) for word in words} - {None}
    return found.pop() if len(found) == 1 else None
