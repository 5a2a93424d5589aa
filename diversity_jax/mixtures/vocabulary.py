"""The tokenizer of a mixture: the one that is named, or one trained on the mixture's own text."""

from collections import Counter
from collections.abc import Sequence
import logging
from pathlib import Path

from diversity_jax.core.config import plain_for_keys
from diversity_jax.core.errors import InputError
from diversity_jax.core.files import content_hash, exists, join_path, read_json, write_json
from diversity_jax.core.stores import is_remote
from diversity_jax.mixtures.config import TRAINED, MixtureConfig, token_shares
from diversity_jax.mixtures.sources import sampled_texts
from diversity_jax.tokenizers.tokenizer import Tokenizer
from diversity_jax.tokenizers.tokenizer import load_tokenizer
from diversity_jax.tokenizers.train import train_tokenizer

log = logging.getLogger(__name__)

_SAMPLE_CHARACTERS = 10_000_000
_LEAST_CHARACTERS = 100_000  # of less text bytes are the better tokenizer
_CHARACTERS_PER_PIECE = 200  # so that even rare pieces are seen some dozens of times
_STEP, _LEAST_PIECES, _MOST_PIECES = 128, 512, 8192
_FIXED_PIECES = 259  # bytes, and the three special ones
_COVERED = 0.9995  # share of the text whose characters are pieces, as `train_tokenizer` has it


def open_vocabulary(config: MixtureConfig, folder: str | Path) -> Tokenizer:
    """The mixture's tokenizer; with `trained` the one in the mixture's folder, which is made where there is none yet.

    Made once: a mixture that is built again in `folder` from the same components has the same tokenizer.

    Raises:
      InputError: it cannot be read, or the folder of a tokenizer to be trained is not on a disk.
    """
    if config.vocabulary != TRAINED:
        return load_tokenizer(config.vocabulary, end_of_text=config.end_of_text)
    if is_remote(folder):
        remedy = "train one with diversity_jax.train_tokenizer, and name it"
        raise InputError(f"mixture.vocabulary={TRAINED!r}: needs a folder on a disk, not {folder}; {remedy}")
    record, made_of = Path(folder) / "tokenizer.model.json", _made_of(config)
    if not exists(record) or read_json(record).get("made_of") != made_of:
        write_json(record, {"made_of": made_of, "vocabulary": _train(config, Path(folder) / "tokenizer.model")})
    name = read_json(record)["vocabulary"]
    return load_tokenizer(name if name == "bytes" else str(join_path(folder, name)), end_of_text=config.end_of_text)


def _made_of(config: MixtureConfig) -> str:
    parts = [[plain_for_keys(part.corpus), part.share, part.kind] for part in config.components]
    return content_hash([parts, config.real_to_synthetic, config.shares_of, config.seed])


def _train(config: MixtureConfig, path: Path) -> str:
    """Trains a tokenizer; returns its file's name, or `bytes` where there is too little text."""
    is_weight = config.shares_of == "epochs"
    shares = token_shares(config.components, config.real_to_synthetic, is_weight=is_weight)
    log.info("%s: reading up to %s characters to make a tokenizer of", config.name, f"{_SAMPLE_CHARACTERS:,}")
    texts = list(sampled_texts(config.components, shares, characters=_SAMPLE_CHARACTERS, seed=config.seed))
    characters = sum(map(len, texts))
    if characters < _LEAST_CHARACTERS:
        log.info("%s: %s characters are too few for a tokenizer of their own: bytes", config.name, f"{characters:,}")
        return "bytes"
    pieces = _pieces(texts, characters)
    log.info("%s: training a tokenizer of %s pieces on %s characters", config.name, f"{pieces:,}", f"{characters:,}")
    train_tokenizer(texts, path, vocab_size=pieces)
    return path.name


def _pieces(texts: Sequence[str], characters: int) -> int:
    """How many pieces suit so much text: a multiple of 128 that holds its characters and as many words and parts."""
    counts, covered, alphabet = Counter[str](), 0, 0
    for text in texts:
        counts.update(text)
    for _, count in counts.most_common():
        if covered >= _COVERED * characters:
            break
        covered, alphabet = covered + count, alphabet + 1
    wanted = min(max(characters // _CHARACTERS_PER_PIECE, _LEAST_PIECES), _MOST_PIECES)
    return -(-max(wanted, 2 * alphabet + _FIXED_PIECES) // _STEP) * _STEP
