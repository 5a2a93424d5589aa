"""A benchmark made of any corpus: which of several passages continues the beginning of a document.

For machines without benchmark files, and for domains that have none.
"""

from dataclasses import dataclass
import itertools
import json
from pathlib import Path
import random

from diversity_jax.core.errors import InputError
from diversity_jax.core.files import writing
from diversity_jax.corpus import CorpusConfig, open_corpus

FILE = "hellaswag_validation.jsonl"


@dataclass(frozen=True, kw_only=True)
class ContinuationsConfig:
    """The benchmark.

    Attributes:
      output_dir: the folder that `hellaswag_validation.jsonl` is written to.
      corpus: documents that no model under test was trained on.
      skip_documents: number of first documents to leave out, such as those a model was trained on.
      items: questions at most, each of a document of its own.
      choices: passages offered.
      context_words, ending_words: length of the beginning and of each passage.
      seed: of the wrong passages and the order.
    """

    output_dir: str
    corpus: CorpusConfig
    skip_documents: int = 0
    items: int = 400
    choices: int = 4
    context_words: int = 24
    ending_words: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("items", 1), ("choices", 2), ("context_words", 1), ("ending_words", 1)):
            if getattr(self, name) < least:
                raise InputError(f"continuations.{name}={getattr(self, name)}: must be at least {least}")


def write(config: ContinuationsConfig) -> None:
    """Writes the items in HellaSwag's form, so that `evaluate --config.tasks=hellaswag --config.data_dir=FOLDER` runs
    them.

    Wrong passages are taken from other documents of the same corpus at the same position, so that neither length nor
    style gives the answer away.

    Raises:
      InputError: fewer long enough, different documents than choices.
    """
    least = config.context_words + config.ending_words
    endings_by_beginning: dict[str, str] = {}
    for document in itertools.islice(open_corpus(config.corpus), config.skip_documents, None):
        words = document.text.split()
        if len(words) >= least:
            ending = " ".join(words[config.context_words : least])
            endings_by_beginning.setdefault(" ".join(words[: config.context_words]), ending)
        if len(endings_by_beginning) == config.items:
            break
    endings = sorted(set(endings_by_beginning.values()))
    if len(endings) < config.choices:
        raise InputError(
            f"{config.corpus.source}: {len(endings)} documents of at least {least} words differ, {config.choices} "
            "choices need as many; take a larger corpus or fewer words"
        )
    generator = random.Random(config.seed)
    with writing(Path(config.output_dir) / FILE, "w") as file:
        for beginning, ending in endings_by_beginning.items():
            sampled = generator.sample(endings, config.choices)
            offered = [other for other in sampled if other != ending][: config.choices - 1]
            label = generator.randrange(config.choices)
            offered.insert(label, ending)
            item = {"activity_label": "Text", "ctx_a": beginning, "ctx_b": "", "endings": offered, "label": label}
            file.write(json.dumps(item) + "\n")
