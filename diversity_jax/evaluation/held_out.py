"""Loss on held-out text in nats per token and bits per byte, with standard errors."""

from collections.abc import Sequence
from dataclasses import dataclass
import itertools
import logging
import math
from pathlib import Path

import numpy as np

from diversity_jax.core.errors import InputError
from diversity_jax.core.files import exists, join_path
from diversity_jax.core.progress import ProgressDisplay
from diversity_jax.evaluation.load_model import LanguageModel, mixture_folder, run_boundaries
from diversity_jax.evaluation.loglikelihood import Scored, Scorer
from diversity_jax.prepare.manifest import Manifest, Split
from diversity_jax.tokenizers.document_start import Boundaries

log = logging.getLogger(__name__)
_DOCUMENTS_AT_ONCE = 1024


@dataclass(frozen=True, kw_only=True)
class TextLoss:
    """Loss over all predicted tokens and their UTF-8 bytes.

    Standard errors are over units (rows or documents), and None for a single unit.
    """

    nats_per_token: float
    bits_per_byte: float
    nats_error: float | None
    bits_error: float | None
    units: int
    tokens: int
    text_bytes: float


def text_loss(
    nats: Sequence[float] | np.ndarray, tokens: Sequence[int] | np.ndarray, text_bytes: Sequence[float] | np.ndarray
) -> TextLoss:
    """Ratios of sums over independent units, with the standard error of a ratio by linearisation."""
    nats_U, tokens_U, bytes_U = (np.asarray(values, np.float64) for values in (nats, tokens, text_bytes))
    n = len(nats_U)

    def ratio(values_U: np.ndarray, sizes_U: np.ndarray) -> tuple[float, float | None]:
        value = float(values_U.sum() / sizes_U.sum())
        squares = np.sum((values_U - value * sizes_U) ** 2)
        return value, float(np.sqrt(n / (n - 1) * squares) / sizes_U.sum()) if n > 1 else None

    nats_per_token, nats_error = ratio(nats_U, tokens_U)
    bits_per_byte, bits_error = ratio(nats_U / math.log(2), bytes_U)
    return TextLoss(
        nats_per_token=nats_per_token,
        bits_per_byte=bits_per_byte,
        nats_error=nats_error,
        bits_error=bits_error,
        units=n,
        tokens=int(tokens_U.sum()),
        text_bytes=float(bytes_U.sum()),
    )


def rows_loss(
    scorer: Scorer,
    rows: np.ndarray,
    starts: np.ndarray,
    targets: np.ndarray,
    *,
    bytes_per_token: float,
    max_length: int,
    name: str = "held-out rows",
) -> TextLoss:
    """Loss on held-out rows, as training computes it.

    Args:
      rows: int [rows, L + 1].
      starts: bool as `rows`, the first tokens of segments; attention stays within a segment, but the first token after
        it is still predicted from it.
      targets: bool as `rows`, the tokens that the loss counts.
      bytes_per_token: UTF-8 bytes of text per target.
      max_length: most tokens of context; earlier tokens of a segment are left out.
    """
    units: list[list[Scored]] = []
    for row, begins, counts in zip(rows, starts, targets, strict=True):
        units.append([])
        boundaries = [0, *(np.flatnonzero(begins[1:]) + 1).tolist(), len(row)]
        for start, after in itertools.pairwise(boundaries):
            stop = min(after + 1, len(row))
            edges = np.flatnonzero(np.diff(counts[start + 1 : stop].astype(np.int8), prepend=0, append=0)) + start + 1
            for first, end in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
                tokens = tuple(row[max(start, end - max_length - 1) : end].tolist())
                units[-1].append(Scored(tokens=tokens, scored=min(end - first, len(tokens) - 1)))
    return _units_loss(scorer, units, bytes_per_token, name)


def _units_loss(scorer: Scorer, units: Sequence[Sequence[Scored]], bytes_per_token: float, name: str) -> TextLoss:
    sequences = [sequence for unit in units for sequence in unit]
    with ProgressDisplay(name, len(sequences)) as progress:
        owners = [number for number, unit in enumerate(units) for _ in unit]
        results = iter(scorer.score(sequences, progress.advance, name=lambda index: f"{name}, row {owners[index]}"))
    nats = [-sum(next(results).nats for _ in unit) for unit in units]
    tokens = np.array([sum(sequence.scored for sequence in unit) for unit in units])
    return text_loss(nats, tokens, tokens * bytes_per_token)


def documents_loss(model: LanguageModel, scorer: Scorer, texts: Sequence[str], *, name: str = "documents") -> TextLoss:
    """Loss on documents, each after the model's begin-of-text token; long ones in windows that overlap by one token.

    Without such a token the first token of each document, and its share of the bytes, is not counted.

    Raises:
      InputError: there is no text, or no document has a token to predict.
    """
    texts = [text for text in texts if text]
    if not texts:
        raise InputError(f"{name}: holds no text to measure the loss on")
    nats, tokens = np.zeros(len(texts)), np.zeros(len(texts), np.int64)
    sizes = np.array([len(text.encode(errors="surrogatepass")) for text in texts], np.float64)
    context, begin = model.config.max_length, model.tokenizer.prefix_id
    prefix = [] if begin is None else [begin]
    with ProgressDisplay(name, len(texts)) as progress:
        for start in range(0, len(texts), _DOCUMENTS_AT_ONCE):
            windows, owners = [], []
            encoded = model.tokenizer.encode_batch(texts[start : start + _DOCUMENTS_AT_ONCE], special=False)
            for number, ids in enumerate(encoded, start):
                with_prefix = [*prefix, *ids]
                tokens[number] = max(0, len(with_prefix) - 1)
                if not prefix:
                    sizes[number] *= tokens[number] / max(1, len(ids))
                for first in range(0, len(with_prefix) - 1, context):
                    window = with_prefix[first : first + context + 1]
                    windows.append(Scored(tokens=tuple(window), scored=len(window) - 1))
                    owners.append(number)
            names = [f"{name}, document {owner}" for owner in owners]
            for owner, result in zip(owners, scorer.score(windows, name=names.__getitem__), strict=True):
                nats[owner] -= result.nats
            progress.advance(len(encoded))
    if not tokens.any():
        raise InputError(f"{name}: holds texts of one token only, and nothing begins a text of this model")
    return text_loss(nats, tokens, sizes)


def bytes_per_target(split: Split, manifest: Manifest, boundaries: Boundaries) -> float:
    """Mean UTF-8 bytes of text per target token of a split's rows; an end-of-text token has none."""
    tokens, documents = split.tokens + split.dropped_tokens, split.documents
    begins = 0 if manifest.begin_of_text_id is None else documents
    if boundaries.document_start != "none":
        return split.text_bytes / (tokens - begins)
    text_tokens = tokens - documents  # without end-of-text; the first one of each document is no target
    if text_tokens <= documents:
        return 0.0
    return split.text_bytes * (text_tokens - documents) / text_tokens / text_tokens


def component_losses(run: str | Path, model: LanguageModel, scorer: Scorer) -> dict[str, tuple[str, TextLoss]]:
    """Kind and held-out loss of each component of a run's mixture, by name.

    Raises:
      InputError: the folder is not a run's, or its mixture is missing.
    """
    from diversity_jax.mixtures.mixture import Mixture
    from diversity_jax.prepare.rows import RowReader

    if not exists(join_path(run, "run.json")):
        raise InputError(f"held_out needs a run's output folder, not {run}; name texts in out_of_distribution instead")
    mixture = Mixture.load(mixture_folder(run))
    boundaries, max_length = run_boundaries(run), model.config.max_length
    losses = {}
    for part in mixture.taken:
        split = part.manifest.splits.get("validation") if part.manifest is not None else None
        if part.manifest is None or split is None or not split.rows:
            log.warning("%s: holds out no rows, so its loss is not measured", part.name)
            continue
        rows = RowReader(part.manifest, "validation").read(np.arange(split.rows))
        tokens, starts, targets = rows.tokens, rows.starts, rows.targets
        if starts is not None and targets is not None:
            per_token = split.text_bytes / max(1, int(targets.sum()))
        else:
            tokens = tokens[:, -(max_length + 1) :]
            starts, targets = boundaries.starts(tokens), boundaries.targets(tokens)
            starts[:, 1:] &= boundaries.separate
            per_token = bytes_per_target(split, part.manifest, boundaries)
        arrays = tokens, starts, targets
        loss = rows_loss(scorer, *arrays, bytes_per_token=per_token, max_length=max_length, name=part.name)
        losses[part.name] = (part.kind, loss)
    return losses
