"""Readers of Parquet and Arrow files, and of datasets of the Hugging Face hub, streamed by the `datasets` library."""

from collections.abc import Callable, Iterable, Iterator
import contextlib
import itertools
import logging
from typing import Any, TypeVar

import numpy as np

from diversity_jax.core.errors import InputError
from diversity_jax.core.files import content_hash, file_bytes, open_file
from diversity_jax.core.stores import StoreError
from diversity_jax.corpus.corpus import RecordCorpus
from diversity_jax.corpus.document import (
    CorpusConfig,
    Document,
    FileRecords,
    Records,
    check_split,
    decode_utf8,
    refuse_lone_surrogate,
    take_text,
)

_BATCH_ROWS = 1024


class Parquet(FileRecords):
    """Rows of one file. Metadata are the top-level columns of text, numbers, truth values and dates; nested and binary
    ones (embeddings, images) are never read. Sampling reads only the row groups of sampled rows.
    """

    may_be_compressed = False  # the format has its own compression, of row groups that can be read separately

    def __init__(self, path: str, label: str, text_field: str):
        super().__init__(path, label, text_field)
        with self._opened() as file:
            self._columns = _meta_columns(file.schema_arrow, text_field, path)
            self._read = [text_field, *self._columns] if text_field else self._columns
            groups = range(file.metadata.num_row_groups)
            self._group_rows = [file.metadata.row_group(group).num_rows for group in groups]

    def batches(self) -> Iterator[list[tuple[bytes | None, dict[str, Any]]]]:
        with self._opened() as file:
            for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=self._read):
                yield self._rows(batch)

    def decode(self, raw: tuple[bytes | None, dict[str, Any]], position: int) -> Document:
        data, meta = raw
        text = decode_utf8(data, self._where(position)) if data is not None else ""
        return Document(id=self._id(position), text=text, meta=meta)

    def count(self) -> int:
        return sum(self._group_rows)

    def fetch(self, positions: np.ndarray) -> Iterator[tuple[bytes | None, dict[str, Any]]]:
        with self._opened() as file:
            first = 0
            for group, rows in enumerate(self._group_rows):
                chosen = positions[(positions >= first) & (positions < first + rows)] - first
                first += rows
                if len(chosen):
                    batches = file.iter_batches(batch_size=_BATCH_ROWS, row_groups=[group], columns=self._read)
                    yield from self._rows_at(batches, chosen)

    def _rows_at(self, batches: Iterable[Any], positions: np.ndarray) -> Iterator[tuple[bytes | None, dict[str, Any]]]:
        """The rows at `positions`, counted over all batches."""
        start = 0
        for batch in batches:
            here = positions[(positions >= start) & (positions < start + len(batch))] - start
            start += len(batch)
            if len(here):
                yield from self._rows(_taken(batch, here))

    def expected_bytes(self) -> int:
        return 2 * file_bytes(self._path)

    def _rows(self, batch: Any) -> list[tuple[bytes | None, dict[str, Any]]]:
        texts = _text_column(batch, self._field).to_pylist() if self._field else [None] * len(batch)
        columns = [_values(batch.column(name)) for name in self._columns]
        metas = (dict(zip(self._columns, values, strict=True)) for values in zip(*columns, strict=True))
        return list(zip(texts, metas if columns else [{} for _ in texts], strict=True))

    @contextlib.contextmanager
    def _opened(self) -> Iterator[Any]:
        """The open Parquet file."""
        import pyarrow.parquet

        with _opened_source(self._path, "Parquet") as source, pyarrow.parquet.ParquetFile(source) as file:
            yield file


class Arrow(Parquet):
    """Rows of one Arrow IPC file (`.arrow`, `.feather`), in the file format or in the stream format that the datasets
    library writes. As `Parquet`; sampling reads the wanted columns of the whole file.
    """

    def __init__(self, path: str, label: str, text_field: str):
        FileRecords.__init__(self, path, label, text_field)
        with self._opened() as reader:
            self._columns = _meta_columns(reader.schema, text_field, path)
        first = text_field if not text_field or text_field in reader.schema.names else text_field.split(".")[0]
        self._read = [first, *self._columns] if first else self._columns

    def batches(self) -> Iterator[list[tuple[bytes | None, dict[str, Any]]]]:
        for batch in self._record_batches(self._read):
            yield self._rows(batch)

    def count(self) -> int:
        return sum(len(batch) for batch in self._record_batches(self._read[:1]))

    def fetch(self, positions: np.ndarray) -> Iterator[tuple[bytes | None, dict[str, Any]]]:
        return self._rows_at(self._record_batches(self._read), positions)

    def _record_batches(self, columns: list[str]) -> Iterator[Any]:
        """Batches of at most `_BATCH_ROWS` rows with these columns alone."""
        with self._opened(columns) as reader:
            has_index = hasattr(reader, "num_record_batches")
            record_batches = map(reader.get_batch, range(reader.num_record_batches)) if has_index else reader
            for batch in record_batches:
                for start in range(0, len(batch), _BATCH_ROWS):
                    yield batch.slice(start, _BATCH_ROWS)

    @contextlib.contextmanager
    def _opened(self, columns: list[str] | None = None) -> Iterator[Any]:
        """A reader of the file, perhaps of some columns alone."""
        import pyarrow.ipc

        with _opened_source(self._path, "Arrow IPC") as source:
            is_file = source.read(6) == b"ARROW1"
            opened, options = pyarrow.ipc.open_file if is_file else pyarrow.ipc.open_stream, None
            source.seek(0)
            if columns is not None:
                names = opened(source).schema.names
                source.seek(0)
                options = pyarrow.ipc.IpcReadOptions(included_fields=[names.index(name) for name in columns])
            yield opened(source, options=options)


@contextlib.contextmanager
def _opened_source(path: str, kind: str) -> Iterator[Any]:
    """The open file; an error of pyarrow while it is read becomes one line that names it."""
    import pyarrow

    with open_file(path) as source:
        try:
            yield source
        except (pyarrow.ArrowException, OSError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"{path}: is not a whole {kind} file ({reason}); fetch or write it again") from None


def _meta_columns(schema: Any, text_field: str, path: str) -> list[str]:
    """Names of the columns that become metadata.

    Raises:
      InputError: there is no text column, or it does not hold text.
    """
    import pyarrow.types as types

    binary = (types.is_binary, types.is_large_binary, types.is_fixed_size_binary, types.is_binary_view)
    single = {name for name in schema.names if schema.names.count(name) == 1}  # others cannot be selected by name
    if not text_field:  # all fields, also lists of messages
        return [field.name for field in schema if field.name in single and not any(kind(field.type) for kind in binary)]
    nested = "." in text_field and text_field not in schema.names
    first, *rest = text_field.split(".") if nested else [text_field]
    if schema.names.count(first) > 1:
        raise InputError(f"{path}: has {schema.names.count(first)} columns {first!r}; rename one, or set text_field")
    try:
        column = schema.field(first).type
        for name in rest:
            column = column.field(name).type
    except (KeyError, TypeError, AttributeError):  # a list, or a column without fields
        known = ", ".join(schema.names)
        raise InputError(f"{path}: has no column {text_field!r}; set text_field to one of: {known}") from None
    value = column.value_type if types.is_dictionary(column) else column
    texts = (types.is_string, types.is_large_string, types.is_string_view, *binary[:2], types.is_binary_view)
    if not any(kind(value) for kind in texts):
        raise InputError(f"{path}: column {text_field!r} holds {column}, not text; set text_field to one that does")
    unread = (types.is_nested, *binary)
    others = [field for field in schema if field.name != first and field.name in single]
    return [field.name for field in others if not any(kind(field.type) for kind in unread)]


def _taken(batch: Any, rows: np.ndarray) -> Any:
    """Some rows of a batch."""
    import pyarrow

    with contextlib.suppress(pyarrow.ArrowNotImplementedError):  # string views have no such function
        return batch.take(rows)
    return pyarrow.Table.from_batches([batch.slice(row, 1) for row in rows.tolist()]).combine_chunks().to_batches()[0]


def _values(column: Any) -> list[Any]:
    """A column as Python values; None for values that Python cannot represent: dates after 9999, invalid UTF-8."""
    with contextlib.suppress(ValueError, OverflowError):  # UnicodeDecodeError and pyarrow's errors are ValueErrors
        return column.to_pylist()
    return [_value(scalar) for scalar in column]


def _value(scalar: Any) -> Any:
    with contextlib.suppress(ValueError, OverflowError):
        return scalar.as_py()
    return None


def _text_column(batch: Any, text_field: str) -> Any:
    """The text as bytes: pyarrow does not check that strings are UTF-8, and one that is not would fail its batch."""
    import pyarrow
    import pyarrow.compute

    if text_field in batch.schema.names:
        column = batch.column(text_field)
    else:
        first, *rest = text_field.split(".")
        column = pyarrow.compute.struct_field(batch.column(first), rest)
    if pyarrow.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pyarrow.types.is_string_view(column.type) or pyarrow.types.is_binary_view(column.type):
        column = column.cast(pyarrow.binary_view())
    return column.cast(pyarrow.large_binary() if pyarrow.types.is_large_string(column.type) else pyarrow.binary())


T = TypeVar("T")

_ROWS_AT_ONCE = 256
_SAVE_IT = "save it with Dataset.save_to_disk where there is one, and name that folder as hf:FOLDER"


def open_hub_dataset(config: CorpusConfig, name: str) -> RecordCorpus:
    """Opens `hf:NAME[@REVISION][:CONFIG][:SPLIT]` from the hub, or from the one that `HF_ENDPOINT` names.

    A single word after the name is a configuration if the dataset has one of that name, else a split; without a split,
    it is `config.split`. `HF_TOKEN`, or the token of `hf auth login`, gives access to gated datasets. The commit, the
    configuration and the split identify the content, so that a fingerprint reads nothing.

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
        refuse_lone_surrogate(text, where)
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
    """The commit of a revision, or of the main branch."""
    import huggingface_hub

    with _failures(source):
        return str(huggingface_hub.HfApi().dataset_info(repository, revision=revision).sha)


@contextlib.contextmanager
def _failures(source: str) -> Iterator[None]:
    """Turns exceptions of the libraries into one line.

    Raises:
      InputError: what is requested is not there, may not be read, or there is no network.
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
