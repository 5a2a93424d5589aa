"""Our models as a model of lm-evaluation-harness.

Registers our models with lm-evaluation-harness under the name `diversity_jax`; importing this is what does it.
"""

from collections.abc import Mapping, Sequence
import logging
from pathlib import Path
from typing import Any

from lm_eval import utils
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs

from diversity_jax.core.errors import InputError
from diversity_jax.core.progress import ProgressDisplay
from diversity_jax.evaluation.load_model import LanguageModel, open_model
from diversity_jax.evaluation.prefix_packing import Scored
from diversity_jax.evaluation.request_store import RequestStore
from diversity_jax.evaluation.sampling import Sampling
from diversity_jax.model import MeshConfig

log = logging.getLogger(__name__)
_ENCODED_AT_ONCE = 4096
_ANSWER_TOKENS = 256  # the harness's default length of an answer


class HarnessModel(TemplateLM):
    """Scores and answers the harness's requests with one of our models.

    Results do not depend on `batch_size` or on a data-parallel mesh: see `Scorer`. They equal those of the harness's
    own `hf` model on
    the same weights, tokenizer and settings: the same truncation from the left, the same windows, the same prefix
      token.

    Args:
      model: from `diversity_jax.evaluation.load_model.open_model`.
      batch_size: rows computed at once.
      store: a file that keeps finished requests; None: none are kept.
      slots: answers generated at once.
    """

    def __init__(self, model: LanguageModel, *, batch_size: int = 8, store: str | Path | None = None, slots: int = 16):
        super().__init__()
        self.model, self.batch_size, self._slots = model, int(batch_size), slots
        self._scorer = model.scorer(self.batch_size)
        self._generator = None
        self.max_length = model.config.max_length
        self.max_gen_toks = _ANSWER_TOKENS
        self.store = RequestStore(store, self.identity)

    @property
    def identity(self) -> Mapping[str, Any]:
        """What the answers depend on beside the requests."""
        config, tokenizer = self.model.config, self.model.tokenizer
        return {
            "weights": self.model.weights_hash,
            "tokenizer": [tokenizer.vocabulary.hash, tokenizer.prefix_id, tokenizer.before, tokenizer.after],
            "max_length": config.max_length,
            "compute_dtype": config.compute_dtype,
            "rope": [config.rope_theta, config.rms_norm_eps],
        }

    @property
    def eot_token_id(self) -> int:
        """Id that ends a document."""
        return self.model.tokenizer.end_of_text_id

    @property
    def prefix_token_id(self) -> int:
        """What stands for an empty context."""
        return self.model.tokenizer.prefix_id

    @property
    def tokenizer_name(self) -> str:
        """Fingerprint of the tokenizer, for the harness's request cache."""
        return self.model.tokenizer.vocabulary.hash[:16]

    def chat_template(self, chat_template: bool | str = False) -> str:
        """Source of the template in use."""
        from diversity_jax.tokenizers.chat_template import OWN_TEMPLATE

        return self.model.tokenizer.chat_template or OWN_TEMPLATE

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation as text.

        Raises:
          InputError: the template fails.
        """
        return self.model.chat(chat_history, add_generation_prompt=add_generation_prompt)

    def get_model_info(self) -> dict[str, Any]:
        """For the harness's own results file."""
        return {
            "model_num_parameters": self.model.config.parameter_count,
            "model_dtype": self.model.config.compute_dtype,
            "model_sha": self.model.weights_hash,
        }

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Ids of a text."""
        return self.model.tokenizer.encode(string, special=add_special_tokens is not False)

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Log-likelihood of each continuation given its context, and whether greedy decoding would give it."""
        pairs = [request.args for request in requests]
        encoded: list[tuple[tuple[str, str], list[int], list[int]]] = []
        for start in range(0, len(pairs), _ENCODED_AT_ONCE):
            encoded += self._encode_pairs(pairs[start : start + _ENCODED_AT_ONCE])
        return self._loglikelihood_tokens(encoded)

    def _encode_pairs(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[tuple[str, str], list[int], list[int]]]:
        """As `TemplateLM._encode_pair`, in two calls of the tokenizer instead of two a pair."""
        tokenizer = self.model.tokenizer
        moved = []  # spaces that end a context go to its continuation
        for context, continuation in pairs:
            spaces = len(context) - len(context.rstrip())
            moved.append(
                (context[: len(context) - spaces], context[len(context) - spaces :] + continuation)
                if context
                else ("", continuation)
            )
        texts = sorted(
            {text for context, continuation in moved for text in (context, context + continuation) if context}
        )
        ids = dict(zip(texts, tokenizer.encode_batch(texts), strict=True))
        out = []
        for (context, continuation), pair in zip(moved, pairs, strict=True):
            if context:
                before = ids[context]
                out.append((pair, before, ids[context + continuation][len(before) :]))
            elif pair[0]:  # a context of spaces alone: nothing stands before the continuation
                out.append((pair, tokenizer.encode(""), tokenizer.encode(continuation)[len(tokenizer.encode("")) :]))
            else:
                after = tokenizer.encode(continuation, special=False)
                begins = bool(after) and after[0] == self.prefix_token_id
                out.append((pair, after[:1], after[1:]) if begins else (pair, [self.prefix_token_id], after))
        return out

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        pieces = [self._pieces(*request) for request in requests]
        if cut := sum(len(parts) > 1 for parts in pieces):
            log.warning(
                "%d answers are longer than the model's context of %s tokens and are scored in parts",
                cut,
                f"{self.max_length:,}",
            )
        found = iter(self._score([part for parts in pieces for part in parts]))
        likelihoods = []
        for (pair, _, _), parts in zip(requests, pieces, strict=True):
            nats, greedy = zip(*(next(found) for _ in parts), strict=True)
            likelihoods.append((sum(nats), all(greedy)))
            if pair is not None:
                self.cache_hook.add_partial("loglikelihood", pair, likelihoods[-1])
        return likelihoods

    def _pieces(self, pair: tuple[str, str] | None, before: Sequence[int], after: Sequence[int]) -> list[Scored]:
        """The last `max_length + 1` tokens, of which the model reads all but the last.

        An answer that is longer than that by itself, at which the harness's own backends stop, goes in parts of half a
        context, each after what fits before it.
        """
        if not after:
            raise InputError(
                f"an empty answer cannot be scored (its context ends in {_tail(pair)}); remove the item or mend its "
                "answers"
            )
        if not before:
            raise InputError(f"the answer {_tail(pair)} has no context, not even a token that begins a text")
        whole, room = [*before, *after], self.max_length
        if len(after) <= room:
            return [Scored(tokens=tuple(whole[-(room + 1) :]), scored=len(after))]
        starts = range(len(before), len(whole), max(room // 2, 1))
        ends = [*starts[1:], len(whole)]
        return [
            Scored(tokens=tuple(whole[max(end - room - 1, 0) : end]), scored=end - start)
            for start, end in zip(starts, ends, strict=True)
        ]

    def _score(self, sequences: Sequence[Scored]) -> list[tuple[float, bool]]:
        """Scores what the store does not know yet. Rows are planned over all sequences, so resuming computes the same
        rows again.
        """
        keys = [self.store.key("loglikelihood", one.tokens, one.scored) for one in sequences]
        rows = self._scorer.plan(sequences)
        left = [row for row in rows if any(self.store.get(keys[number]) is None for number, _ in row.members)]
        waiting = sum(len(row.members) for row in left)
        with ProgressDisplay("log-likelihoods", len(sequences), completed=len(sequences) - waiting) as progress:
            for found in self._scorer.run(left):
                self.store.add([(keys[number], [one.nats, one.greedy]) for number, one in found.items()])
                progress.advance(len(found))
        return [(float(nats), bool(greedy)) for nats, greedy in (self.store.get(key) for key in keys)]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts, in windows that each predict as much as they can."""
        windows, owners = [], []
        for number, (text,) in enumerate(request.args for request in requests):
            parts = utils.get_rolling_token_windows(
                self.tok_encode(text), self.prefix_token_id, self.max_length, context_len=1
            )
            for before, after in map(utils.make_disjoint_window, parts):
                windows += self._pieces(None, before, after)
                owners.append(number)
        totals = [0.0] * len(requests)
        for owner, (nats, _) in zip(owners, self._score(windows), strict=True):
            totals[owner] += nats
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Answers, cut before the first stop string; contexts that leave no room for the answer lose their
        beginning.
        """
        wanted = [self._generation(*request.args) for request in requests]
        keys = [self.store.key("generate_until", prompt, vars(sampling)) for prompt, sampling in wanted]
        left = [number for number, key in enumerate(keys) if self.store.get(key) is None]
        if left and self._generator is None:
            from diversity_jax.evaluation.generate import Generator

            self._generator = Generator(self.model, slots=self._slots)
        with ProgressDisplay("answers", len(requests), completed=len(requests) - len(left)) as progress:
            for start in range(0, len(left), 4 * self._slots):
                part = left[start : start + 4 * self._slots]
                answers = self._generator.generate(
                    [wanted[number][0] for number in part], [wanted[number][1] for number in part]
                )
                self.store.add([(keys[number], answer.text) for number, answer in zip(part, answers, strict=True)])
                progress.advance(len(part))
        texts = [self.store.get(key) for key in keys]
        for request, text in zip(requests, texts, strict=True):
            self.cache_hook.add_partial("generate_until", request.args, text)
        return texts

    def _generation(self, context: str, settings: Mapping[str, Any]) -> tuple[list[int], Sampling]:
        kwargs = normalize_gen_kwargs(dict(settings), self.max_gen_toks)
        stop = [text for text in handle_stop_sequences(kwargs.pop("until", None), eos=None) if text]
        most = kwargs["max_gen_toks"]
        if most >= self.max_length:
            raise InputError(
                f"answers of {most:,} tokens leave no room in a context of {self.max_length:,}; set max_gen_toks lower"
            )
        prompt = self.tok_encode(context)[-(self.max_length - most) :] or [self.prefix_token_id]
        sampled = kwargs.get("do_sample", False)
        sampling = Sampling(
            max_tokens=most,
            temperature=float(kwargs.get("temperature") or 0.0) if sampled else 0.0,
            top_k=int(kwargs.get("top_k") or 0),
            top_p=float(kwargs.get("top_p") or 1.0),
            seed=int(kwargs.get("seed") or 0),
            stop=tuple(stop),
        )
        return prompt, sampling


def _tail(pair: tuple[str, str] | None) -> str:
    return "a window" if pair is None else repr((pair[1] or pair[0])[-60:])


@register_model("diversity_jax")
class DiversityJax(HarnessModel):
    """A model by the arguments of a command line.

    Args:
      checkpoint: a run's output folder, what `model.convert import` wrote, or a Hugging Face folder.
      step, tokenizer, compute_dtype, max_length: as `open_model`.
      data, fsdp, tensor: the mesh; by default rows over all devices.
      batch_size: rows computed at once; `auto` means the default, since rows are all of few lengths.
      slots: answers generated at once.
      store: a file that keeps finished requests.
    """

    def __init__(
        self,
        checkpoint: str,
        *,
        step: int | None = None,
        tokenizer: str | None = None,
        compute_dtype: str = "float32",
        max_length: int | None = None,
        data: int = -1,
        fsdp: int = 1,
        tensor: int = 1,
        batch_size: int | str = 8,
        slots: int = 16,
        store: str | None = None,
        **ignored: Any,
    ):
        if unknown := set(ignored) - {"device", "max_batch_size"}:
            raise InputError(
                f"model_args: {', '.join(sorted(unknown))} is not known here; see pydoc "
                "diversity_jax.evaluation.lm_eval_model"
            )
        model = open_model(
            checkpoint,
            step=step,
            tokenizer=tokenizer,
            compute_dtype=compute_dtype,
            max_length=max_length,
            mesh=MeshConfig(data=data, fsdp=fsdp, tensor=tensor),
        )
        super().__init__(
            model, batch_size=8 if str(batch_size).startswith("auto") else int(batch_size), store=store, slots=slots
        )
