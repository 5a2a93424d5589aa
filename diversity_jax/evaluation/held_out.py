"""Loss on text the model was not trained on, in nats per token and bits per byte, with standard errors."""

from collections.abc import Sequence
from dataclasses import dataclass
import itertools
import logging
import math
from pathlib import Path

import numpy as np

from diversity_jax.core.errors import InputError
from diversity_jax.core.progress import ProgressDisplay
from diversity_jax.evaluation.load_model import LanguageModel, mixture_folder, run_settings
from diversity_jax.evaluation.loglikelihood import Scored, Scorer

log = logging.getLogger(__name__)
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


def text_loss(
    nats: Sequence[float] | np.ndarray, tokens: Sequence[int] | np.ndarray, text_bytes: Sequence[float] | np.ndarray
) -> TextLoss:
    """Ratios of sums over independent units, with the linearised standard error of a ratio."""
    nats_U, tokens_U, bytes_U = (np.asarray(values, np.float64) for values in (nats, tokens, text_bytes))
    bits_U = nats_U / math.log(2)
    per_token, per_byte = float(nats_U.sum() / tokens_U.sum()), float(bits_U.sum() / bytes_U.sum())
    n = len(nats_U)

    def error(values: np.ndarray, sizes: np.ndarray, ratio: float) -> float | None:
        return float(np.sqrt(n / (n - 1) * np.sum((values - ratio * sizes) ** 2)) / sizes.sum()) if n > 1 else None

    return TextLoss(
        nats_per_token=per_token,
        bits_per_byte=per_byte,
        nats_error=error(nats_U, tokens_U, per_token),
        bits_error=error(bits_U, bytes_U, per_byte),
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
    sequences, owners = [], []
    for number, row in enumerate(rows):
        ends = [] if separate_at is None else (np.flatnonzero(row[:-1] == separate_at) + 1).tolist()
        for start, stop in itertools.pairwise([0, *ends, len(row)]):
            document = row[start : stop + 1]  # with the token after its end, which is predicted from within it
            if len(document) > 1:
                sequences.append(Scored(tokens=tuple(document.tolist()), scored=len(document) - 1))
                owners.append(number)
    return _units_loss(scorer, sequences, owners, len(rows), bytes_per_token, name)


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
    sequences, owners = [], []
    for number, (row, is_target, begins) in enumerate(zip(rows, targets, starts, strict=True)):
        boundaries = np.flatnonzero(begins)[1:]
        for example, mask in zip(np.split(row, boundaries), np.split(is_target, boundaries), strict=True):
            edges = np.flatnonzero(np.diff(mask.astype(np.int8), prepend=0, append=0)).tolist()
            for first, end in zip(edges[::2], edges[1::2], strict=True):
                tokens = tuple(example[max(0, end - max_length - 1) : end].tolist())
                sequences.append(Scored(tokens=tokens, scored=min(end - first, len(tokens) - 1)))
                owners.append(number)
    return _units_loss(scorer, sequences, owners, len(rows), answer_bytes / max(1, int(targets.sum())), name)


def _units_loss(
    scorer: Scorer, sequences: Sequence[Scored], owners: Sequence[int], units: int, bytes_per_token: float, name: str
) -> TextLoss:
    """The loss on sequences, summed over the units that own them."""
    nats, tokens = np.zeros(units), np.zeros(units, np.int64)
    with ProgressDisplay(name, len(sequences)) as progress:
        results = scorer.score(sequences, progress.advance)
    for owner, sequence, result in zip(owners, sequences, results, strict=True):
        nats[owner] -= result.nats
        tokens[owner] += sequence.scored
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
            for owner, result in zip(owners, scorer.score(windows), strict=True):
                nats[owner] -= result.nats
            progress.advance(len(encoded))
    return text_loss(nats, tokens, [len(text.encode(errors="surrogatepass")) for text in texts])


def component_losses(run: Path, model: LanguageModel, scorer: Scorer) -> dict[str, tuple[str, TextLoss]]:
    """Kind and loss of each component of a run's mixture, on its held-out rows.

    Raises:
      InputError: the folder is not a run's, or its mixture is gone.
    """
    from diversity_jax.mixtures.mixture import Mixture
    from diversity_jax.prepare.rows import RowReader

    if not (run / "run.json").exists():
        raise InputError(
            f"held_out needs a run's output folder; {run} is none: leave held_out off, or name texts in "
            "out_of_distribution"
        )
    mixture = Mixture.load(mixture_folder(run))
    separated = not (run_settings(run).get("train") or {}).get("attend_across_documents", True)
    losses = {}
    for part in mixture.taken:
        split = part.manifest.splits.get("validation") if part.manifest is not None else None
        if part.manifest is None or split is None or not split.rows:
            log.warning("%s: holds out no rows, so its loss is not measured", part.name)
            continue
        rows = RowReader(part.manifest, "validation").read(np.arange(split.rows))
        if rows.targets is not None and rows.starts is not None:
            loss = conversations_loss(
                scorer,
                rows.tokens,
                rows.targets,
                rows.starts,
                answer_bytes=split.text_bytes,
                max_length=model.config.max_length,
                name=part.name,
            )
        else:
            loss = rows_loss(
                scorer,
                rows.tokens[:, -(model.config.max_length + 1) :],
                bytes_per_token=split.text_bytes / (split.tokens + split.dropped_tokens),
                separate_at=mixture.vocabulary.end_of_text_id if separated else None,
                name=part.name,
            )
        losses[part.name] = (part.kind, loss)
    return losses
