"""Loss on text the model was not trained on, in nats per token and bits per byte, with standard errors."""

from collections.abc import Sequence
from dataclasses import dataclass
import functools
import itertools
import logging
import math
from pathlib import Path

import numpy as np

from diversity_jax.core.errors import InputError
from diversity_jax.core.files import exists, join_path
from diversity_jax.core.progress import ProgressDisplay
from diversity_jax.evaluation.load_model import LanguageModel, mixture_folder, run_settings
from diversity_jax.evaluation.loglikelihood import Scored, Scorer

log = logging.getLogger(__name__)
_DOCUMENTS_AT_ONCE = 1024


@dataclass(frozen=True, kw_only=True)
class TextLoss:
    """Loss over all predicted tokens and the UTF-8 bytes they stand for.

    The standard errors are over units (rows or documents), and None for a single one.
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
    """Ratios of sums over independent units, with the linearised standard error of a ratio."""
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
    scorer: Scorer, rows: np.ndarray, *, bytes_per_token: float, separate_at: int | None, name: str = "held-out rows"
) -> TextLoss:
    """Loss on held-out rows, as training computes it.

    Args:
      rows: int [rows, L + 1]; the last L tokens of each are predicted.
      bytes_per_token: of the held-out text.
      separate_at: end-of-text id at which documents are kept apart; None: attention crosses documents, as in training
        without separation.
    """
    units: list[list[Scored]] = []
    for row in rows:
        ends = [] if separate_at is None else (np.flatnonzero(row[:-1] == separate_at) + 1).tolist()
        # Each with the token after its end, which is predicted from within it.
        documents = [row[start : stop + 1].tolist() for start, stop in itertools.pairwise([0, *ends, len(row)])]
        units.append([Scored(tokens=tuple(ids), scored=len(ids) - 1) for ids in documents if len(ids) > 1])
    return _units_loss(scorer, units, bytes_per_token, name)


def conversations_loss(
    scorer: Scorer,
    rows: np.ndarray,
    targets: np.ndarray,
    starts: np.ndarray,
    *,
    answer_bytes: float,
    max_length: int,
    name: str,
) -> TextLoss:
    """Loss on the answers of packed conversations, each after the turns before it and apart from its neighbours.

    Args:
      rows: int [rows, L + 1]; targets, starts: bool, the tokens of answers and the first tokens of examples.
      answer_bytes: UTF-8 bytes of all answers.
      max_length: tokens the model reads at most; what stands before is left out.
    """
    units: list[list[Scored]] = []
    for row, is_target, begins in zip(rows, targets, starts, strict=True):
        units.append([])
        boundaries = np.flatnonzero(begins)[1:]
        for example, mask in zip(np.split(row, boundaries), np.split(is_target, boundaries), strict=True):
            edges = np.flatnonzero(np.diff(mask.astype(np.int8), prepend=0, append=0)).tolist()
            for first, end in zip(edges[::2], edges[1::2], strict=True):
                tokens = tuple(example[max(0, end - max_length - 1) : end].tolist())
                units[-1].append(Scored(tokens=tokens, scored=min(end - first, len(tokens) - 1)))
    return _units_loss(scorer, units, answer_bytes / max(1, int(targets.sum())), name)


def _units_loss(scorer: Scorer, units: Sequence[Sequence[Scored]], bytes_per_token: float, name: str) -> TextLoss:
    """The loss on units of sequences."""
    sequences = [sequence for unit in units for sequence in unit]
    with ProgressDisplay(name, len(sequences)) as progress:
        owners = [number for number, unit in enumerate(units) for _ in unit]
        results = iter(scorer.score(sequences, progress.advance, name=lambda index: f"{name}, row {owners[index]}"))
    nats = [-sum(next(results).nats for _ in unit) for unit in units]
    tokens = np.array([sum(sequence.scored for sequence in unit) for unit in units])
    return text_loss(nats, tokens, tokens * bytes_per_token)


def documents_loss(model: LanguageModel, scorer: Scorer, texts: Sequence[str], *, name: str = "documents") -> TextLoss:
    """Loss on documents, each after the token that begins a text; longer ones in windows that share one token.

    Raises:
      InputError: no text.
    """
    texts = [text for text in texts if text]
    if not texts:
        raise InputError(f"{name}: holds no text to measure the loss on")
    nats, tokens = np.zeros(len(texts)), np.zeros(len(texts), np.int64)
    context = model.config.max_length
    with ProgressDisplay(name, len(texts)) as progress:
        for start in range(0, len(texts), _DOCUMENTS_AT_ONCE):
            windows, owners = [], []
            encoded = model.tokenizer.encode_batch(texts[start : start + _DOCUMENTS_AT_ONCE], special=False)
            for number, ids in enumerate(encoded, start):
                tokens[number] = len(ids)
                with_prefix = [model.tokenizer.prefix_id, *ids]
                for first in range(0, len(ids), context):
                    window = with_prefix[first : first + context + 1]
                    windows.append(Scored(tokens=tuple(window), scored=len(window) - 1))
                    owners.append(number)
            about = functools.partial(_document_name, name, owners)
            for owner, result in zip(owners, scorer.score(windows, name=about), strict=True):
                nats[owner] -= result.nats
            progress.advance(len(encoded))
    return text_loss(nats, tokens, [len(text.encode(errors="surrogatepass")) for text in texts])


def _document_name(name: str, owners: Sequence[int], index: int) -> str:
    return f"{name}, document {owners[index]}"


def component_losses(run: str | Path, model: LanguageModel, scorer: Scorer) -> dict[str, tuple[str, TextLoss]]:
    """Kind and loss of each component of a run's mixture, on its held-out rows.

    Raises:
      InputError: the folder is not a run's, or its mixture is gone.
    """
    from diversity_jax.mixtures.mixture import Mixture
    from diversity_jax.prepare.rows import RowReader

    if not exists(join_path(run, "run.json")):
        raise InputError(f"held_out needs a run's output folder, not {run}; name texts in out_of_distribution instead")
    mixture = Mixture.load(mixture_folder(run))
    separated = not (run_settings(run).get("train") or {}).get("attend_across_documents", True)
    losses = {}
    separate_at = mixture.vocabulary.end_of_text_id if separated else None
    max_length = model.config.max_length
    for part in mixture.taken:
        split = part.manifest.splits.get("validation") if part.manifest is not None else None
        if part.manifest is None or split is None or not split.rows:
            log.warning("%s: holds out no rows, so its loss is not measured", part.name)
            continue
        rows = RowReader(part.manifest, "validation").read(np.arange(split.rows))
        if rows.targets is not None and rows.starts is not None:
            arrays = (rows.tokens, rows.targets, rows.starts)
            loss = conversations_loss(
                scorer, *arrays, answer_bytes=split.text_bytes, max_length=max_length, name=part.name
            )
        else:
            tokens, per_token = (
                rows.tokens[:, -(max_length + 1) :],
                split.text_bytes / (split.tokens + split.dropped_tokens),
            )
            loss = rows_loss(scorer, tokens, bytes_per_token=per_token, separate_at=separate_at, name=part.name)
        losses[part.name] = (part.kind, loss)
    return losses
