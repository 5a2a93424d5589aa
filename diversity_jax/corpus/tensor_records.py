"""Examples of a `tf.data` dataset as records: the text feature, and the plain features beside it."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from diversity_jax.corpus.document import Document, Rejected
from diversity_jax.corpus.records import decode_utf8
from diversity_jax.errors import InputError

_BATCH_EXAMPLES = 256


class TensorRecords:
    """Examples in the dataset's order. They can only be streamed; what identifies them is what comes out."""

    def __init__(self, label: str, dataset: Callable[[], Any], fields: tuple[str, ...], decode_ids: Callable[[str, list[int]], str] | None):
        """Chooses the text feature.

        Args:
          label: names the records, `label:1` and so on.
          dataset: makes the dataset anew, always in the same order.
          fields: acceptable text features, the first that exists is taken; dots reach into nested ones. `("",)`: none is, and examples
            stay whole, their ids decoded and their lists kept.
          decode_ids: text of token ids of a field, or None where a feature of numbers cannot be text.

        Raises:
          InputError: none of the fields exists, or it cannot be text; the message names those that do exist.
        """
        self._label = label
        self._dataset = dataset
        self._decode_ids = decode_ids
        self._is_whole, self._field = fields == ("",), ""
        if self._is_whole:
            return
        specs = _flat(dataset().element_spec)
        self._field = next((field for field in fields if field in specs), "")
        if not self._field:
            raise InputError(f"{label}: has no feature {fields[0]!r}; set text_field to one of: {', '.join(specs)}")
        spec = specs[self._field]
        is_text, is_ids = spec.dtype.name == "string" and spec.shape.rank == 0, spec.dtype.is_integer and spec.shape.rank == 1
        if not (is_text or (is_ids and decode_ids)):
            kind = f"{spec.dtype.name} of shape {spec.shape}"
            raise InputError(f"{label}: feature {self._field!r} holds {kind}, not text; set text_field to another of: {', '.join(specs)}")

    def batches(self) -> Iterator[list[dict[str, Any]]]:
        batch = []
        for example in self._examples():
            batch.append(example)
            if len(batch) == _BATCH_EXAMPLES:
                yield batch
                batch = []
        if batch:
            yield batch

    def _examples(self) -> Iterator[dict[str, Any]]:
        from tensorflow import errors

        examples = self._dataset().as_numpy_iterator()
        while True:
            try:
                example = next(examples, None)
            except errors.OpError as error:
                raise InputError(f"{self._label}: cannot be read ({error.message.splitlines()[0]}); check its files") from None
            if example is None:
                return
            yield example

    def decode(self, raw: dict[str, Any], position: int) -> Document:
        where = f"{self._label}:{position + 1}"
        features = _flat(raw)
        if self._is_whole:
            return Document(id=where, text="", meta={name: self._whole(name, value, where) for name, value in features.items()})
        text = self._text(self._field, features.pop(self._field), where)
        return Document(id=where, text=text, meta={name: _plain(value) for name, value in features.items() if np.ndim(value) == 0})

    def _text(self, field: str, value: Any, where: str) -> str:
        if isinstance(value, bytes):
            return decode_utf8(value, where)
        try:
            return self._decode_ids(field, value.tolist())
        except Exception as error:  # a vocabulary may fail on foreign ids with whatever its library raises
            reason = str(error).partition("\n")[0]
            raise Rejected("not decodable", f"{where}: the vocabulary of {field!r} cannot decode it ({reason})") from None

    def _whole(self, name: str, value: Any, where: str) -> Any:
        """A feature as a record of another format would hold it."""
        is_ids = self._decode_ids is not None and name in ("inputs", "targets") and np.ndim(value) == 1
        if isinstance(value, bytes) or is_ids:
            return self._text(name, value, where)
        return [_plain(item) for item in value] if np.ndim(value) == 1 else _plain(value)

    def count(self) -> None:
        return None

    def fetch(self, positions: np.ndarray) -> Iterator[Any]:
        raise NotImplementedError("records without a count are streamed")

    def expected_bytes(self) -> None:
        return None

    def content_hash(self) -> None:
        return None


def _flat(features: Any, prefix: str = "") -> dict[str, Any]:
    """Nested features under dotted names."""
    flat = {}
    for name, value in features.items() if isinstance(features, dict) else [("example", features)]:
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def _plain(value: Any) -> Any:
    return value.decode(errors="replace") if isinstance(value, bytes) else value.item() if hasattr(value, "item") else value
