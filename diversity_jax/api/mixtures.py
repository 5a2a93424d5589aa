"""`build_mixture`, `load_mixture` and `load_model`: mixtures as rows for any framework, and models that generate."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
import functools
import importlib
import operator
import os
from typing import Any, overload

import numpy as np

from diversity_jax.core import config as config_files
from diversity_jax.core.buckets import writes_to
from diversity_jax.core.config import with_fields
from diversity_jax.core.errors import InputError
from diversity_jax.core.files import exists, join_path
from diversity_jax.core.formats import ShownAsTable, SummaryTable, compact, count, counted, percent
from diversity_jax.evaluation.config import GenerateTextConfig, ModelSource
from diversity_jax.evaluation.generate import Generator
from diversity_jax.evaluation.load_model import LanguageModel, encode_pairs, windows
from diversity_jax.evaluation.loglikelihood import Likelihood, Scorer
from diversity_jax.evaluation.run import generate_text, open_source
from diversity_jax.mixtures.config import BuildConfig, MixtureConfig
from diversity_jax.mixtures.loader import Loader
from diversity_jax.mixtures.mixture import Mixture
from diversity_jax.prepare.manifest import SPLITS
from diversity_jax.tokenizers.tokenizer import NOTHING_BEGINS

_CHUNK = 256  # rows read at once

Row = Mapping[str, Any]
"""`tokens`, int32 [L + 1]; `component`, the number of the component in `MixtureRows.components`; of conversations also
`targets` (tokens that the loss counts) and `starts` (first tokens of examples), bool [L + 1].
"""


@dataclass(frozen=True, kw_only=True, repr=False)
class MixtureRows(ShownAsTable):
    """A built mixture as a sequence of rows, in the order in which training reads them.

    One pass has as many rows as all components together (`train.epochs=1`). Components have their exact token shares,
    so that rows of small ones may repeat and rows of large ones be left out.

    Attributes:
      mixture: the content of `mixture.json`.
      split: `train` or `validation`.
    """

    mixture: Mixture
    split: str = "train"

    @property
    def components(self) -> list[str]:
        """Names of the components with a share; `Row["component"]` is an index into them."""
        return [part.name for part in self.mixture.taken]

    @functools.cached_property
    def _loader(self) -> Loader:
        return self.mixture.loader(batch_size=_CHUNK, split=self.split)

    def __getstate__(self) -> dict[str, Any]:  # a worker maps the files itself
        return {"mixture": self.mixture, "split": self.split}

    def __len__(self) -> int:
        splits = (part.prepared.splits.get(self.split) for part in self.mixture.taken)
        return sum(split.rows for split in splits if split)

    @overload
    def __getitem__(self, number: int) -> Row: ...
    @overload
    def __getitem__(self, number: slice) -> list[Row]: ...
    def __getitem__(self, number: int | slice) -> Row | list[Row]:
        """Row or rows by number."""
        if isinstance(number, slice):
            return self.rows(np.arange(len(self))[number])
        at = operator.index(number)
        if not -len(self) <= at < len(self):
            raise IndexError(f"row {number} of {len(self)}")
        return self.rows(np.array([at % len(self)]))[0]

    def __iter__(self) -> Iterator[Row]:
        """One pass."""
        for start in range(0, len(self), _CHUNK):
            yield from self.rows(np.arange(start, min(start + _CHUNK, len(self))))

    def rows(self, numbers: np.ndarray) -> list[Row]:
        """Rows by number, also beyond the first pass."""
        batch = self._loader.rows(numbers)
        columns = {"tokens": batch.tokens, "component": batch.component}
        if batch.targets is not None and batch.starts is not None:
            columns |= {"targets": batch.targets, "starts": batch.starts}
        return [{name: column[i] for name, column in columns.items()} for i in range(len(numbers))]

    def decode(self, row: Row) -> str:
        """The text of a row."""
        from diversity_jax.prepare.manifest import prepared_tokenizer

        return prepared_tokenizer(self.mixture.taken[0].prepared).decode(row["tokens"].tolist())

    def as_grain(self) -> Any:
        """A `grain.MapDataset` over the rows: to be repeated, batched and sharded as grain does.

        Raises:
          InputError: grain is not installed.
        """
        return _needed("grain", "as_grain").MapDataset.source(self)

    def as_tf_data(self) -> Any:
        """A `tf.data.Dataset` of one pass, each element a row.

        Raises:
          InputError: TensorFlow is not installed.
        """
        _needed("tensorflow", "as_tf_data")
        from diversity_jax.core.tensorflow import tf

        first = self[0]
        signature = {name: tf.TensorSpec(value.shape, value.dtype) for name, value in first.items()}
        return tf.data.Dataset.from_generator(lambda: iter(self), output_signature=signature).apply(
            tf.data.experimental.assert_cardinality(len(self))
        )

    def as_torch(self) -> Any:
        """A map-style `torch.utils.data.Dataset` of tensors, for `DataLoader`, also with workers.

        Raises:
          InputError: torch is not installed.
        """
        base = _needed("torch", "as_torch").utils.data.Dataset
        return type("TorchRows", (_TorchRows, base), {})(self)

    def table(self) -> SummaryTable:
        """Every component with its share asked and granted, and the gate's decision."""
        rows = [
            (
                part.name,
                part.kind,
                percent(float(part.share_asked)),
                percent(float(part.share_granted)),
                str(part.decision.get("action", "")),
                count(part.manifest.splits["train"].rows) if part.manifest else "0",
            )
            for part in self.mixture.as_asked
        ]
        title = (
            f"Mixture {self.mixture.name}: {counted(len(self), 'row')} of {count(self.mixture.sequence_length)} tokens"
        )
        columns = ("component", "kind", "share asked", "granted", "decision", "rows")
        return SummaryTable(title=title, columns=columns, rows=rows, notes=[f"in {self.mixture.folder}"])


class _TorchRows:
    """Rows as tensors; mixed into torch's `Dataset` where torch is installed."""

    def __init__(self, rows: MixtureRows):
        self._rows = rows

    def __reduce__(self) -> Any:
        return MixtureRows.as_torch, (self._rows,)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, number: int) -> Row:
        return _tensors(self._rows[number])

    def __getitems__(self, numbers: list[int]) -> list[Row]:
        """Rows of a batch, read at once."""
        return [_tensors(row) for row in self._rows.rows(np.array(numbers))]


def _tensors(row: Row) -> Row:
    import torch

    return {name: torch.tensor(value) for name, value in row.items()}


def _needed(package: str, method: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise InputError(f"{method} needs {package} ({error}); pip install {package}") from None


def load_mixture(path: str | os.PathLike, *, split: str = "train") -> MixtureRows:
    """Loads a built mixture from its folder or URL, as rows for NumPy, grain, tf.data and torch.

    >>> import diversity_jax as dj
    >>> mixture = dj.load_mixture(mixture_folder)
    >>> mixture.components
    ['web', 'made']
    >>> row = mixture[0]
    >>> row["tokens"].shape, row["tokens"].dtype
    ((33,), dtype('int32'))
    >>> sum(mixture.components[row["component"]] == "web" for row in mixture[:100])  # its share is exact
    75
    >>> for batch in mixture.as_tf_data().batch(8).take(1):
    ...     print(batch["tokens"].shape)
    (8, 33)

    Args:
      path: a mixture's folder or `mixture.json`, or the folder of a training run for its mixture.
      split: `train` or `validation`.

    Raises:
      InputError: no mixture there, a damaged one, or one without rows of this split.
    """
    if split not in SPLITS:
        raise InputError(f"split={split!r}: choose one of {', '.join(SPLITS)}")
    rows = MixtureRows(mixture=Mixture.load(_folder(path)), split=split)
    without = [part.name for part in rows.mixture.taken if split not in part.prepared.splits]
    if without:
        whose = "" if len(without) == len(rows.components) else f" of {', '.join(without)}"
        raise InputError(
            f"{path}: holds no {split} rows{whose}; build it with validation_share above 0, and text enough for it"
        )
    return rows


def _folder(path: str | os.PathLike) -> str:
    """The path, or the folder of its mixture where it is a training run's."""
    inside = os.fspath(join_path(path, "mixture"))
    holds_mixture = [exists(join_path(folder, "mixture.json")) for folder in (path, inside)]
    return inside if holds_mixture == [False, True] else os.fspath(path)


def build_mixture(
    config: str | os.PathLike | BuildConfig | MixtureConfig,
    *,
    output_dir: str | os.PathLike | None = None,
    **settings: Any,
) -> MixtureRows:
    """Scores components, gates, prepares and writes a mixture, as `diversity-jax build` does.

    Work that an earlier call finished in the folder is reused.

    >>> import diversity_jax as dj
    >>> from diversity_jax.mixtures.config import Component, MixtureConfig
    >>> components = (Component(name="web", kind="real", corpus=text_file),)
    >>> config = MixtureConfig(name="small", components=components, sequence_length=64)
    >>> mixture = dj.build_mixture(config, output_dir=new_folder)
    >>> len(mixture) > 10
    True

    Args:
      config: a configuration or the file of one; a `MixtureConfig` needs `output_dir`.
      output_dir: the mixture's folder; None: the configuration's.
      settings: other fields of `BuildConfig`, parts as mappings: `agent={"groupings": 300}`, `judge=...`.

    Raises:
      InputError: an unknown setting, or what the command refuses.
    """
    if isinstance(config, MixtureConfig):
        if output_dir is None:
            raise InputError("output_dir: is not given; name the folder that the mixture is written to")
        config = BuildConfig(output_dir=os.fspath(output_dir), mixture=config, register=False)
    asked = config_files.configuration(config, "", BuildConfig)
    if output_dir is not None:
        settings = {**settings, "output_dir": os.fspath(output_dir)}
    asked = config_files.with_fields(asked, settings)
    _build(asked)
    return load_mixture(asked.output_dir)


@writes_to("output_dir")
def _build(config: BuildConfig) -> None:
    from diversity_jax.mixtures.builder import build_configured

    build_configured(config)


Messages = Sequence[Mapping[str, Any]]
"""A conversation: mappings with `role` and `content`."""


@dataclass(frozen=True, kw_only=True, repr=False)
class Model(ShownAsTable):
    """A loaded model, which generates text and computes likelihoods.

    Attributes:
      model: weights on their devices, tokenizer and sizes.
      slots: texts generated or rows scored at once.
    """

    model: LanguageModel
    slots: int = 16

    @functools.cached_property
    def _generator(self) -> Generator:
        return Generator(self.model, slots=self.slots)

    @functools.cached_property
    def _scorer(self) -> Scorer:
        return self.model.scorer(self.slots)

    @overload
    def generate(self, prompts: str, **settings: Any) -> str: ...
    @overload
    def generate(self, prompts: list[str] | list[Messages], **settings: Any) -> list[str]: ...
    def generate(self, prompts: str | list[str] | list[Messages], **settings: Any) -> str | list[str]:
        """Generates text after a prompt, or after each of several.

        Args:
          prompts: a text, or a list of texts and of conversations (lists of mappings with `role` and `content`).
          settings: `max_tokens`, `temperature` (0: always the likeliest token), `top_k`, `top_p`, `seed`, `stop`,
            `samples` (answers to each prompt, in a row), `chat`, `system_prompt`: fields of the command
            `generate-text`.

        Raises:
          InputError: an unknown setting, or a prompt that is empty or longer than the model's context.
        """
        given = [prompts] if isinstance(prompts, str) else list(prompts)
        for name in ("model", "prompt", "prompts_file", "output", "overwrite", "slots"):
            if name in settings:
                raise InputError(f"{name}: is a field of the command; here it has no meaning")
        asked = [{"prompt": each} if isinstance(each, str) else {"messages": list(each)} for each in given]
        config = with_fields(GenerateTextConfig(), settings)
        answers = [each["text"] for each in generate_text(self.model, asked, config, self._generator)]
        return answers[0] if isinstance(prompts, str) and config.samples == 1 else answers

    @overload
    def loglikelihood(self, texts: str) -> Likelihood: ...
    @overload
    def loglikelihood(self, texts: list[str] | list[tuple[str, str]]) -> list[Likelihood]: ...
    def loglikelihood(self, texts: str | list[str] | list[tuple[str, str]]) -> Likelihood | list[Likelihood]:
        """Log-likelihoods of texts: `nats`, and `greedy`, whether every token was the most likely one.

        Args:
          texts: a text, or a list of texts and of pairs (context, continuation), of which the continuation is scored.
            Texts longer than the model's context are scored in parts of half a context.

        Raises:
          InputError: an empty text or continuation, or weights that give no finite number.
        """
        given = [texts] if isinstance(texts, str) else list(texts)
        pairs = [("", each) if isinstance(each, str) else (each[0], each[1]) for each in given]
        if self.model.tokenizer.prefix_id is None and not all(context for context, _ in pairs):
            raise InputError(f"a text without a context: {NOTHING_BEGINS}")
        parts = [windows(*each, self.model.config.max_length) for each in encode_pairs(self.model.tokenizer, pairs)]
        scored = iter(self._scorer.score([window for each in parts for window in each]))
        results = []
        for each in parts:
            of_parts = [next(scored) for _ in each]
            results.append(
                Likelihood(nats=sum(part.nats for part in of_parts), greedy=all(part.greedy for part in of_parts))
            )
        return results[0] if isinstance(texts, str) else results

    def table(self) -> SummaryTable:
        """Its sizes and tokenizer."""
        config, tokenizer = self.model.config, self.model.tokenizer
        rows = [
            ("parameters", compact(config.parameter_count)),
            ("layers, hidden size", f"{config.num_layers}, {count(config.hidden_size)}"),
            ("context, tokens", count(config.max_length)),
            ("vocabulary", f"{tokenizer.vocabulary.kind}, {count(tokenizer.vocabulary.size)} ids"),
            ("computes in", config.compute_dtype),
        ]
        return SummaryTable(title=f"Model {self.model.name}", columns=("", "value"), rows=rows)


def load_model(path: str | os.PathLike, *, slots: int = 16, **settings: Any) -> Model:
    """Loads the model of a training run, of `convert import` or of a Hugging Face folder, on this machine's devices.

    >>> import diversity_jax as dj
    >>> model = dj.load_model(model_folder, tokenizer="bytes")
    >>> type(model.generate("The ", max_tokens=4))
    <class 'str'>
    >>> len(model.generate(["The ", "A "], max_tokens=4, temperature=0.8, seed=1))
    2
    >>> pairs = [("The cat sat on the", " mat"), ("The cat sat on the", " sky")]
    >>> [each.nats < 0 for each in model.loglikelihood(pairs)]
    [True, True]

    Args:
      path: a run's output folder, the output of `convert import`, or a Hugging Face folder.
      slots: texts generated or rows scored at once.
      settings: other fields of `ModelSource`: `step`, `tokenizer`, `compute_dtype`, `max_length`, `mesh`.

    Raises:
      InputError: no model there, a damaged one, or an unknown setting.
    """
    source = with_fields(ModelSource(checkpoint=os.fspath(path)), settings)
    return Model(model=open_source(source), slots=slots)
