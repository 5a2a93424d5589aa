"""Train a SentencePiece tokenizer on the components of a mixture.

python -m diversity_jax.train_tokenizer --config configs/tokenizer.py --config.output=tokenizer.model
"""

from collections.abc import Iterable, Iterator
from fractions import Fraction
import logging

from diversity_jax.core import cli
from diversity_jax.core.progress import ProgressDisplay
from diversity_jax.mixtures.config import TokenizerConfig

log = logging.getLogger(__name__)
_PAGE_CHARACTERS = 200_000  # of each component, for the figures of the page


def main(config: TokenizerConfig) -> None:
    """Trains, writes a page beside the model, and prints the model's path, last."""
    from diversity_jax.core.stores import is_remote
    from diversity_jax.mixtures.config import token_shares
    from diversity_jax.mixtures.sources import sampled_texts
    from diversity_jax.tokenizers.sentence_piece import train_tokenizer
    from diversity_jax.tokenizers.tokenizer import load_tokenizer

    shares = token_shares(config.components, config.real_to_synthetic)
    texts = sampled_texts(config.components, shares, characters=config.sample_characters, seed=config.seed)
    with ProgressDisplay("reading text", config.sample_characters, unit="characters") as progress:
        path = train_tokenizer(
            _counted(texts, progress), config.output, vocab_size=config.vocab_size, model_type=config.model_type
        )
    tokenizer = load_tokenizer(str(path))
    log.info("%s pieces; use it as vocabulary=%r", f"{tokenizer.size:,}", str(path))
    if not is_remote(path):
        from diversity_jax.report.pages import tokenizer as page

        drawn = {
            part.name: list(sampled_texts([part], [Fraction(1)], characters=_PAGE_CHARACTERS, seed=config.seed + 1))
            for part in config.components
        }
        log.info("page: %s", page.write(path, tokenizer, drawn))
    print(path)


def _counted(texts: Iterable[str], progress: ProgressDisplay) -> Iterator[str]:
    for text in texts:
        progress.advance(len(text))
        yield text


if __name__ == "__main__":
    cli.run(main, TokenizerConfig, __doc__)
