"""`load_model`: a trained or imported model for a Python program."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
import functools
import os
from typing import Any, overload

from diversity_jax.core.config import with_fields
from diversity_jax.core.errors import InputError
from diversity_jax.core.formats import Shown, Table, compact, count
from diversity_jax.evaluation.answers import encode_pairs, windows
from diversity_jax.evaluation.config import GenerateTextConfig, ModelSource
from diversity_jax.evaluation.generate import Generator
from diversity_jax.evaluation.load_model import LanguageModel
from diversity_jax.evaluation.loglikelihood import Likelihood, Scorer
from diversity_jax.evaluation.run import generate_text, open_source
from diversity_jax.tokenizers.tokenizer import NOTHING_BEGINS

Messages = Sequence[Mapping[str, Any]]
"""A conversation: mappings with `role` and `content`."""


@dataclass(frozen=True, kw_only=True, repr=False)
class Model(Shown):
    """A model that is ready to write and to judge text.

    Attributes:
      model: weights on their devices, tokenizer and sizes.
      slots: answers generated at once, and rows scored at once.
    """

    model: LanguageModel
    slots: int = 16

    @functools.cached_property
    def _generator(self) -> Generator:
        return Generator(self.model, slots=self.slots)

    @functools.cached_property
    def _scorer(self) -> Scorer:
        return self.model.scorer(self.slots)

    @overload
    def generate(self, prompts: str, **settings: Any) -> str: ...
    @overload
    def generate(self, prompts: list[str] | list[Messages], **settings: Any) -> list[str]: ...
    def generate(self, prompts: str | list[str] | list[Messages], **settings: Any) -> str | list[str]:
        """What the model writes after a prompt, or after each of several.

        Args:
          prompts: a text, or a list of texts and of conversations (lists of mappings with `role` and `content`).
          settings: `max_tokens`, `temperature` (0: always the likeliest token), `top_k`, `top_p`, `seed`, `stop`,
            `samples` (answers a prompt, which then follow each other), `chat`, `system_prompt`: the fields of the
            command `generate-text`.

        Raises:
          InputError: an unknown setting, or a prompt that is empty or longer than the model's context.
        """
        given = [prompts] if isinstance(prompts, str) else list(prompts)
        for name in ("model", "prompt", "prompts_file", "output", "overwrite", "slots"):
            if name in settings:
                raise InputError(f"{name}: is a field of the command; here it has no meaning")
        asked = [{"prompt": each} if isinstance(each, str) else {"messages": list(each)} for each in given]
        config = with_fields(GenerateTextConfig(), settings)
        answers = [each["text"] for each in generate_text(self.model, asked, config, self._generator)]
        return answers[0] if isinstance(prompts, str) and config.samples == 1 else answers

    @overload
    def loglikelihood(self, texts: str) -> Likelihood: ...
    @overload
    def loglikelihood(self, texts: list[str] | list[tuple[str, str]]) -> list[Likelihood]: ...
    def loglikelihood(self, texts: str | list[str] | list[tuple[str, str]]) -> Likelihood | list[Likelihood]:
        """How likely texts are: `nats`, natural logarithms, and `greedy`, whether every token was the likeliest.

        Args:
          texts: a text, or a list of texts and of pairs (context, continuation), of which the continuation is judged.
            Texts longer than the context are judged in parts of half a context.

        Raises:
          InputError: an empty text or continuation, or weights that give no finite number.
        """
        given = [texts] if isinstance(texts, str) else list(texts)
        pairs = [("", each) if isinstance(each, str) else (each[0], each[1]) for each in given]
        if self.model.tokenizer.prefix_id is None and not all(context for context, _ in pairs):
            raise InputError(f"a text without a context: {NOTHING_BEGINS}")
        parts = [windows(*each, self.model.config.max_length) for each in encode_pairs(self.model.tokenizer, pairs)]
        scored = iter(self._scorer.score([window for each in parts for window in each]))
        results = []
        for each in parts:
            found = [next(scored) for _ in each]
            results.append(Likelihood(nats=sum(one.nats for one in found), greedy=all(one.greedy for one in found)))
        return results[0] if isinstance(texts, str) else results

    def table(self) -> Table:
        """Its sizes and tokenizer."""
        config, tokenizer = self.model.config, self.model.tokenizer
        rows = [
            ("parameters", compact(config.parameter_count)),
            ("layers, hidden size", f"{config.num_layers}, {count(config.hidden_size)}"),
            ("context, tokens", count(config.max_length)),
            ("vocabulary", f"{tokenizer.vocabulary.kind}, {count(tokenizer.vocabulary.size)} ids"),
            ("computes in", config.compute_dtype),
        ]
        return Table(title=f"Model {self.model.name}", columns=("", "value"), rows=rows)


def load_model(path: str | os.PathLike, *, slots: int = 16, **settings: Any) -> Model:
    """A model of a training run, of `convert import` or of a Hugging Face folder, on this machine's devices.

    >>> import diversity_jax as dj
    >>> model = dj.load_model(model_folder, tokenizer="bytes")
    >>> type(model.generate("The ", max_tokens=4))
    <class 'str'>
    >>> len(model.generate(["The ", "A "], max_tokens=4, temperature=0.8, seed=1))
    2
    >>> pairs = [("The cat sat on the", " mat"), ("The cat sat on the", " sky")]
    >>> [each.nats < 0 for each in model.loglikelihood(pairs)]
    [True, True]

    Args:
      path: a run's output folder, what `convert import` wrote, or a Hugging Face folder.
      slots: answers generated, and rows scored, at once.
      settings: other fields of `ModelSource`: `step`, `tokenizer`, `compute_dtype`, `max_length`, `mesh`.

    Raises:
      InputError: no model there, a damaged one, or an unknown setting.
    """
    source = with_fields(ModelSource(checkpoint=os.fspath(path)), settings)
    return Model(model=open_source(source), slots=slots)
