"""Training a SentencePiece model on a mixture's components, each in its share."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from diversity_jax.core.errors import InputError
from diversity_jax.core.files import writing
from diversity_jax.corpus import open_corpus
from diversity_jax.mixtures.config import Component, token_shares

_LINE_BYTES = 4096


def train_tokenizer(
    components: Sequence[Component],
    path: str | Path,
    *,
    vocab_size: int,
    real_to_synthetic: tuple[float, float] | None = None,
    model_type: str = "bpe",
    sample_characters: int = 50_000_000,
    seed: int = 0,
) -> Path:
    """Trains a SentencePiece model with byte fallback, digits apart and white space kept, and writes it to `path`.

    Args:
      components: text; each gives its share of `sample_characters`, or all it has.
      path: ends in `.model`.
      vocab_size: number of pieces, with `<unk>`, `<s>`, `</s>` and 256 bytes among them.
      model_type: `bpe` or `unigram`.

    Raises:
      InputError: `path` has another ending, or the text is too little for so many pieces.
    """
    import sentencepiece

    path = Path(path)
    if path.suffix != ".model":
        raise InputError(f"{path}: a SentencePiece model's name ends in .model; rename the output")
    shares = token_shares(components, real_to_synthetic)
    with writing(path) as out:
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=_lines(components, [float(share) * sample_characters for share in shares], seed),
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
            raise InputError(
                f"vocab_size={vocab_size}: SentencePiece refuses ({str(error).strip().splitlines()[-1]})"
            ) from None
    return path


def _lines(components: Sequence[Component], characters: Sequence[float], seed: int) -> Iterator[str]:
    """Pieces of documents, at most `characters[i]` from component i."""
    for component, budget in zip(components, characters, strict=True):
        if budget < 1:
            continue
        for document in open_corpus(component.corpus).sample(max(1, int(budget // 200)), seed=seed):
            if budget <= 0:
                break
            text = document.text[: int(budget) + 1]
            budget -= len(text)
            yield from (text[start : start + _LINE_BYTES // 4] for start in range(0, len(text), _LINE_BYTES // 4))
