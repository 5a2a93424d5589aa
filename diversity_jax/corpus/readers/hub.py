"""Datasets of the Hugging Face hub, streamed by the `datasets` library: nothing is downloaded before it is read."""

from collections.abc import Callable, Iterator
import contextlib
import itertools
import logging
from typing import Any, TypeVar

from diversity_jax.core.errors import InputError
from diversity_jax.core.files import content_hash
from diversity_jax.core.stores import StoreError
from diversity_jax.corpus.corpus import RecordCorpus
from diversity_jax.corpus.document import (
    CorpusConfig,
    Document,
    Records,
    Rejected,
    check_split,
    is_encodable,
    take_text,
)

T = TypeVar("T")

_ROWS_AT_ONCE = 256
_SAVE_IT = "save it with Dataset.save_to_disk where there is one, and name that folder as hf:FOLDER"


def open_hub_dataset(config: CorpusConfig, name: str) -> RecordCorpus:
    """Opens `hf:NAME[@REVISION][:CONFIG][:SPLIT]` from the hub, or from the one that `HF_ENDPOINT` names.

    What stands alone behind the name is a configuration where the dataset has one of that name, else a split; the split
    is `config.split` where none is named. `HF_TOKEN`, or what `hf auth login` left, opens gated datasets. The commit,
    the configuration and the split are the content's identity, so that a fingerprint reads nothing.

    Raises:
      InputError: `datasets` is not installed; there is no such dataset, revision, configuration, split or column; it is
        gated; or there is no network.
    """
    datasets = _library(config.source)
    name, *words = name.split(":")
    repository, _, revision = name.partition("@")
    if len(words) > 2 or not repository:
        raise InputError(f"{config.source}: expected hf:NAME, hf:NAME:CONFIG or hf:NAME:CONFIG:SPLIT")
    commit = _commit(config.source, repository, revision or None)

    def ask(question: Callable[..., T], *arguments: Any, **options: Any) -> T:
        with _failures(config.source):
            return question(repository, *arguments, revision=commit, **options)

    configurations = ask(datasets.get_dataset_config_names)
    if len(words) == 1 and words[0] not in configurations:
        words = ["", *words]
    chosen = words[0] if words else ""
    if (chosen and chosen not in configurations) or (not chosen and len(configurations) > 1):
        known = ", ".join(configurations[:20])
        lacks = f"has no configuration {chosen!r}" if chosen else "has several configurations"
        raise InputError(f"{config.source}: {lacks}; name one of: {known}, as hf:{name}:{configurations[0]}")
    splits = ask(datasets.load_dataset, chosen or None, streaming=True)
    split = words[1] if len(words) > 1 and words[1] else config.split
    check_split(config.source, split, splits)
    rows, identity = splits[split].decode(False), [repository, commit, chosen or configurations[0], split]
    shards = [_Shard(config, rows, number, identity) for number in range(rows.num_shards)]
    return RecordCorpus(config, shards, f"hf:{repository}")


class _Shard(Records):
    """Rows of one of a split's files, in order. They can only be streamed."""

    def __init__(self, config: CorpusConfig, rows: Any, number: int, identity: list[str]):
        self._source, self._field, self._identity = config.source, config.record_field, [*identity, str(number)]
        self._rows = rows.shard(num_shards=rows.num_shards, index=number)
        numbered = f"/{number}" if rows.num_shards > 1 else ""
        self._label = f"{identity[0]}{numbered}"

    def batches(self) -> Iterator[list[dict[str, Any]]]:
        rows = iter(self._rows)
        while True:
            with _failures(self._source):
                batch = list(itertools.islice(rows, _ROWS_AT_ONCE))
            if not batch:
                return
            yield batch

    def decode(self, raw: dict[str, Any], position: int) -> Document:
        where, record = f"{self._label}:{position + 1}", dict(raw)
        text = take_text(record, self._field, where)
        if not is_encodable(text):
            raise Rejected("lone surrogate", f"{where}: holds a lone surrogate, which UTF-8 cannot; write it again")
        plain = {key: value for key, value in record.items() if not isinstance(value, bytes)}
        return Document(id=where, text=text, meta=plain)

    def content_hash(self) -> str:
        return content_hash(self._identity)


def _library(source: str) -> Any:
    for noisy in ("datasets", "httpx", "httpx2"):  # a line for every package found and every request
        logging.getLogger(noisy).setLevel(logging.ERROR)
    try:
        import datasets
    except ImportError as error:
        message = f"{source}: needs the package datasets ({error}); pip install 'diversity_jax[datasets]'"
        raise InputError(message) from None
    datasets.disable_progress_bars()
    return datasets


def _commit(source: str, repository: str, revision: str | None) -> str:
    """The commit that a revision, or the main branch, stands for."""
    import huggingface_hub

    with _failures(source):
        return str(huggingface_hub.HfApi().dataset_info(repository, revision=revision).sha)


@contextlib.contextmanager
def _failures(source: str) -> Iterator[None]:
    """Turns what the libraries raise into one line.

    Raises:
      InputError: what was asked for is not there, may not be read, or there is no network.
      StoreError: the hub failed while it was read.
    """
    import datasets.exceptions
    from huggingface_hub import constants, errors
    from huggingface_hub.utils import HfHubHTTPError, HFValidationError

    page = f"{constants.ENDPOINT}/datasets"
    try:
        yield
    except errors.GatedRepoError:
        remedy = f"accept its terms at {page}/{source.removeprefix('hf:').partition(':')[0]} and set HF_TOKEN"
        raise InputError(f"{source}: is gated; {remedy}, or run: hf auth login") from None
    except errors.RevisionNotFoundError:
        raise InputError(f"{source}: has no such revision; name a branch, tag or commit behind the @") from None
    except (errors.RepositoryNotFoundError, datasets.exceptions.DatasetNotFoundError, HFValidationError):
        remedy = f"check the name at {page}; a private one needs HF_TOKEN"
        raise InputError(f"{source}: no dataset of this name on the hub; {remedy}") from None
    except errors.OfflineModeIsEnabled:
        message = f"{source}: HF_HUB_OFFLINE forbids to reach the hub; unset it, or {_SAVE_IT}"
        raise InputError(message) from None
    except (HfHubHTTPError, OSError, RuntimeError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise _other_failure(source, error) from error
    except Exception as error:
        if not _is_network(error) and type(error).__module__.partition(".")[0] not in ("pyarrow", "fsspec"):
            raise
        raise _other_failure(source, error) from error


def _other_failure(source: str, error: Exception) -> InputError:
    reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    if isinstance(error, FileNotFoundError) or not _is_network(error):
        return InputError(f"{source}: the datasets library cannot read it ({reason})")
    return StoreError(f"{source}: the hub cannot be reached ({reason}); without a network {_SAVE_IT}")


def _is_network(error: Exception) -> bool:
    return isinstance(error, OSError) or type(error).__module__.startswith(("httpx", "httpcore", "aiohttp"))
