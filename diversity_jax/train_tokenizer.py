"""Train a SentencePiece tokenizer on the components of a mixture.

python -m diversity_jax.train_tokenizer --config configs/tokenizer.py --config.output=tokenizer.model
"""

import logging

from diversity_jax.core import cli
from diversity_jax.mixtures.build_config import TokenizerConfig

log = logging.getLogger(__name__)


def main(config: TokenizerConfig) -> None:
    """Trains and prints the path."""
    from diversity_jax.tokenizers.tokenizer import load_tokenizer
    from diversity_jax.tokenizers.train import train_tokenizer

    options = {
        name: getattr(config, name)
        for name in ("vocab_size", "real_to_synthetic", "model_type", "sample_characters", "seed")
    }
    path = train_tokenizer(config.components, config.output, **options)
    tokenizer = load_tokenizer(str(path))
    log.info("%s pieces; use it as vocabulary=%r", f"{tokenizer.size:,}", str(path))
    print(path)


if __name__ == "__main__":
    cli.run(main, TokenizerConfig, __doc__)
