"""Training a SentencePiece model on sampled text."""

from collections.abc import Iterable
import os
from pathlib import Path

from diversity_jax.core.errors import InputError
from diversity_jax.core.files import writing
from diversity_jax.core.stores import is_remote

_LINE_BYTES = 4096  # texts are cut to this length in UTF-8; SentencePiece skips sentences beyond its maximum


def train_tokenizer(texts: Iterable[str], path: str | Path, *, vocab_size: int, model_type: str = "bpe") -> Path | str:
    """Trains a SentencePiece model with byte fallback, digits apart and white space kept, and writes it to `path`.

    Args:
      texts: what it is trained on; read once.
      path: ends in `.model`.
      vocab_size: number of pieces, with `<unk>`, `<s>`, `</s>` and 256 bytes among them.
      model_type: `bpe` or `unigram`.

    Raises:
      InputError: `path` has another ending, or the text is too little for so many pieces.
    """
    import sentencepiece

    characters = _LINE_BYTES // 4
    if not os.fspath(path).endswith(".model"):
        raise InputError(f"{path}: a SentencePiece model's name ends in .model; rename the output")
    lines = (text[start : start + characters] for text in texts for start in range(0, len(text), characters))
    with writing(path) as out:
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=lines,
                model_writer=out,
                vocab_size=vocab_size,
                model_type=model_type,
                character_coverage=0.9995,
                byte_fallback=True,
                split_digits=True,
                allow_whitespace_only_pieces=True,
                remove_extra_whitespaces=False,
                normalization_rule_name="identity",
                max_sentence_length=4 * _LINE_BYTES,
                minloglevel=2,
            )
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise InputError(f"vocab_size={vocab_size}: SentencePiece refuses ({reason})") from None
    return path if is_remote(path) else Path(path)
