"""Train a SentencePiece tokenizer on the components of a mixture.

python -m diversity_jax.train_tokenizer --config configs/tokenizer.py --config.output=tokenizer.model
"""

import logging

from diversity_jax.core import cli
from diversity_jax.mixtures.config import TokenizerConfig

log = logging.getLogger(__name__)


def main(config: TokenizerConfig) -> None:
    """Trains and prints the path."""
    from diversity_jax.mixtures.config import token_shares
    from diversity_jax.mixtures.sources import sampled_texts
    from diversity_jax.tokenizers.tokenizer import load_tokenizer
    from diversity_jax.tokenizers.train import train_tokenizer

    shares = token_shares(config.components, config.real_to_synthetic)
    texts = sampled_texts(config.components, shares, characters=config.sample_characters, seed=config.seed)
    path = train_tokenizer(texts, config.output, vocab_size=config.vocab_size, model_type=config.model_type)
    log.info("%s pieces; use it as vocabulary=%r", f"{load_tokenizer(str(path)).size:,}", str(path))
    print(path)


if __name__ == "__main__":
    cli.run(main, TokenizerConfig, __doc__)
