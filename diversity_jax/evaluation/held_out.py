"""Loss on text the model was not trained on, in nats per token and bits per byte, with standard errors."""

from collections.abc import Sequence
from dataclasses import dataclass
import itertools
import math

import numpy as np

from diversity_jax.core.errors import InputError
from diversity_jax.core.progress import ProgressDisplay
from diversity_jax.evaluation.load_model import LanguageModel
from diversity_jax.evaluation.loglikelihood import Scorer
from diversity_jax.evaluation.prefix_packing import Scored

_DOCUMENTS_AT_ONCE = 1024


@dataclass(frozen=True, kw_only=True)
class TextLoss:
    """Loss on one text.

    Attributes:
      nats_per_token, bits_per_byte: means over all tokens and all UTF-8 bytes.
      nats_error, bits_error: their standard errors over units; None for a single unit.
      units: rows or documents; tokens: predicted; text_bytes: of the text they stand for.
    """

    nats_per_token: float
    bits_per_byte: float
    nats_error: float | None
    bits_error: float | None
    units: int
    tokens: int
    text_bytes: float


def text_loss(nats: Sequence[float], tokens: Sequence[int], text_bytes: Sequence[float]) -> TextLoss:
    """Ratios of sums over independent units, with the linearised standard error of a ratio."""
    nats, tokens, text_bytes = (np.asarray(values, np.float64) for values in (nats, tokens, text_bytes))
    per_token, per_byte = nats.sum() / tokens.sum(), nats.sum() / text_bytes.sum() / math.log(2)

    def error(values, sizes, ratio):
        if len(values) < 2:
            return None
        residuals = values - ratio * sizes
        return float(np.sqrt(len(values) / (len(values) - 1) * np.sum(residuals**2)) / sizes.sum())

    return TextLoss(
        nats_per_token=float(per_token),
        bits_per_byte=float(per_byte),
        nats_error=error(nats, tokens, per_token),
        bits_error=error(nats / math.log(2), text_bytes, per_byte),
        units=len(nats),
        tokens=int(tokens.sum()),
        text_bytes=float(text_bytes.sum()),
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
    pieces, owners = [], []
    for number, row in enumerate(rows):
        for piece in _pieces(row, separate_at):
            pieces.append(Scored(tokens=tuple(piece.tolist()), scored=len(piece) - 1))
            owners.append(number)
    return _units_loss(scorer, pieces, owners, len(rows), bytes_per_token, name)


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
    """Loss on the answers of packed conversations, each after what was said before it and apart from its neighbours.

    Args:
      rows: int [rows, L + 1]; targets, starts: bool, the tokens of answers and the first tokens of examples.
      answer_bytes: UTF-8 bytes of all answers.
      max_length: tokens the model reads at most; what stands before is left out.
    """
    pieces, owners = [], []
    for number, (row, is_target, begins) in enumerate(zip(rows, targets, starts, strict=True)):
        places = np.flatnonzero(begins)[1:]
        for example, mask in zip(np.split(row, places), np.split(is_target, places), strict=True):
            ends = np.flatnonzero(np.diff(mask.astype(np.int8), append=0) == -1) + 1
            firsts = np.flatnonzero(np.diff(mask.astype(np.int8), prepend=0) == 1)
            for first, end in zip(firsts.tolist(), ends.tolist(), strict=True):
                tokens = tuple(example[max(0, end - max_length - 1) : end].tolist())
                pieces.append(Scored(tokens=tokens, scored=min(end - first, len(tokens) - 1)))
                owners.append(number)
    return _units_loss(scorer, pieces, owners, len(rows), answer_bytes / max(1, int(targets.sum())), name)


def _units_loss(
    scorer: Scorer, pieces: Sequence[Scored], owners: Sequence[int], units: int, bytes_per_token: float, name: str
) -> TextLoss:
    """The loss on pieces, summed over the units that own them."""
    nats, tokens = np.zeros(units), np.zeros(units, np.int64)
    with ProgressDisplay(name, len(pieces)) as progress:
        for owner, piece, found in zip(owners, pieces, scorer.score(pieces, progress.advance), strict=True):
            nats[owner] -= found.nats
            tokens[owner] += piece.scored
    return text_loss(nats, tokens, tokens * bytes_per_token)


def _pieces(row: np.ndarray, separate_at: int | None) -> list[np.ndarray]:
    """The row, or its documents, each with the token after its end, which is predicted from within it."""
    if separate_at is None:
        return [row]
    starts = [0, *(np.flatnonzero(row[:-1] == separate_at) + 1).tolist(), len(row)]
    pieces = [row[start : stop + 1] for start, stop in itertools.pairwise(starts)]
    return [piece for piece in pieces if len(piece) > 1]


def documents_loss(model: LanguageModel, scorer: Scorer, texts: Sequence[str], *, name: str = "documents") -> TextLoss:
    """Loss on whole documents, each after the token that begins a text; longer ones in windows that share one token.

    Raises:
      InputError: no text.
    """
    texts = [text for text in texts if text]
    if not texts:
        raise InputError(f"{name}: holds no text to measure the loss on")
    nats, tokens = [], []
    with ProgressDisplay(name, len(texts)) as progress:
        for start in range(0, len(texts), _DOCUMENTS_AT_ONCE):
            windows, owners = [], []
            encoded = model.tokenizer.encode_batch(texts[start : start + _DOCUMENTS_AT_ONCE], special=False)
            for number, ids in enumerate(encoded):
                whole = [model.tokenizer.prefix_id, *ids]
                for first in range(0, len(ids), model.config.max_length):
                    window = whole[first : first + model.config.max_length + 1]
                    windows.append(Scored(tokens=tuple(window), scored=len(window) - 1))
                    owners.append(number)
            sums = np.zeros(len(encoded))
            for owner, found in zip(owners, scorer.score(windows), strict=True):
                sums[owner] -= found.nats
            nats += sums.tolist()
            tokens += [len(ids) for ids in encoded]
            progress.advance(len(encoded))
    return text_loss(nats, tokens, [len(text.encode(errors="surrogatepass")) for text in texts])
