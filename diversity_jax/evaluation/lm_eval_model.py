"""The model type `diversity_jax` of lm-evaluation-harness; importing this module registers it."""

from collections.abc import Mapping, Sequence
import functools
import json
import logging
import os
from pathlib import Path
from typing import Any

from lm_eval import utils
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs

from diversity_jax.core.errors import InputError
from diversity_jax.core.files import content_hash, disk_errors_named
from diversity_jax.core.progress import ProgressDisplay
from diversity_jax.evaluation.generate import Generator
from diversity_jax.evaluation.load_model import LanguageModel, encode_pairs, open_model, windows
from diversity_jax.evaluation.loglikelihood import Likelihood, Scored
from diversity_jax.evaluation.sampling import Sampling
from diversity_jax.model import MeshConfig
from diversity_jax.tokenizers.chat_template import OWN_TEMPLATE
from diversity_jax.tokenizers.tokenizer import NOTHING_BEGINS

log = logging.getLogger(__name__)
_PAIRS_PER_ENCODING = 4096
_ANSWER_TOKENS = 256  # the harness's default length of an answer
_IDENTITY_KEY = "diversity_jax identity"  # in the harness's file of answers, whose own keys are hashes


class RequestStore:
    """Answers of finished requests by the request's hash, in a JSON-lines file from which an evaluation resumes.

    The first line holds the hash of `identity`, the model and its settings. Answers of another identity, and those from
    an incomplete or invalid line on, are dropped. Without a path, answers are stored in memory only.
    """

    def __init__(self, path: str | Path | None, identity: Mapping[str, Any]):
        self._answers: dict[str, Any] = {}
        path, head = Path(path or os.devnull), ["identity", content_hash(identity)]
        self._path, intact_bytes = str(path), 0
        if path.is_file():
            with open(path, "rb") as lines:
                for line in lines:
                    try:
                        key, value = json.loads(line)
                    except (ValueError, TypeError, RecursionError):
                        break
                    if not line.endswith(b"\n") or not (_is_answer(value) and isinstance(key, str)):
                        break
                    if intact_bytes == 0 and [key, value] != head:
                        break
                    if intact_bytes:
                        self._answers[key] = value
                    intact_bytes += len(line)
        path.parent.mkdir(parents=True, exist_ok=True)
        with disk_errors_named(self._path):
            self._file = open(path, "ab")  # noqa: SIM115 - stays open for appending
            if path.is_file():
                self._file.truncate(intact_bytes)
            if not intact_bytes:
                self._file.write(json.dumps(head).encode() + b"\n")
                self._file.flush()

    def __len__(self) -> int:
        return len(self._answers)

    @staticmethod
    def key(*request: Any) -> str:
        """Hash of a request."""
        return content_hash(request)[:32]

    def get(self, key: str, kind: type) -> Any:
        """The answer; None where there is none of this type."""
        answer = self._answers.get(key)
        return answer if isinstance(answer, kind) else None

    def add(self, answers: Sequence[tuple[str, Any]]) -> None:
        """Stores answers, flushed to the operating system.

        Raises:
          InputError: the disk is full.
        """
        self._answers.update(answers)
        with disk_errors_named(self._path):
            self._file.write(b"".join(json.dumps(answer).encode() + b"\n" for answer in answers))
            self._file.flush()

    def close(self) -> None:
        with disk_errors_named(self._path):
            self._file.close()


def _is_answer(value: Any) -> bool:
    """Whether a value is a text, or a pair of nats and whether greedy decoding gives the text."""
    is_pair = isinstance(value, list) and len(value) == 2
    return isinstance(value, str) or (is_pair and type(value[0]) in (int, float) and isinstance(value[1], bool))


class HarnessModel(TemplateLM):
    """Scores and answers the harness's requests with one of our models.

    Results do not depend on `batch_size` or on a data-parallel mesh: see `Scorer`. They equal those of the harness's
    own `hf` model on the same weights, tokenizer and settings: the same truncation from the left, the same windows, the
    same prefix token. One exception: where a tokenizer adds a token before every text, `hf` has that token twice before
    a rolling text and scores the second; here it occurs once and is never predicted, as in `hf` with
    `add_bos_token=False`.

    Args:
      batch_size: rows computed at once.
      store: file of finished requests; see `RequestStore`.
      slots: answers generated at once.
    """

    def __init__(self, model: LanguageModel, *, batch_size: int = 8, store: str | Path | None = None, slots: int = 16):
        super().__init__()
        self.model, self.batch_size, self._slots = model, int(batch_size), slots
        self._scorer = model.scorer(self.batch_size)
        self.max_length = model.config.max_length
        self.max_gen_toks = _ANSWER_TOKENS
        config, tokenizer = model.config, model.tokenizer
        identity = {  # what the answers depend on beside the requests
            "weights": model.weights_hash,
            "tokenizer": [tokenizer.vocabulary.hash, tokenizer.prefix_id, tokenizer.before, tokenizer.after],
            "max_length": config.max_length,
            "compute_dtype": config.compute_dtype,
            "rope": [config.rope_theta, config.rms_norm_eps],
            **config.changed_switches,
        }
        self.store, self._identity = RequestStore(store, identity), content_hash(identity)

    def set_cache_hook(self, cache_hook: Any) -> None:
        """Called by the harness with its `--use_cache` file, whose answers it takes without asking for the model.

        Raises:
          InputError: the file holds answers of another model or other settings.
        """
        answers = cache_hook.dbdict
        if answers is not None:
            if len(answers) and answers.get(_IDENTITY_KEY) != self._identity:
                raise InputError(
                    f"use_cache {answers.filename}: holds answers of another model or of other settings, which the "
                    "harness would take for this model's; name another file"
                )
            answers[_IDENTITY_KEY] = self._identity
        super().set_cache_hook(cache_hook)

    @functools.cached_property
    def _generator(self) -> Generator:
        return Generator(self.model, slots=self._slots)

    @property
    def eot_token_id(self) -> int:
        """Id that ends a document."""
        return self.model.tokenizer.end_of_text_id

    @property
    def prefix_token_id(self) -> int | None:
        """Id that replaces an empty context; None: the model has none."""
        return self.model.tokenizer.prefix_id

    @property
    def tokenizer_name(self) -> str:
        """Fingerprint of the tokenizer, for the harness's request cache."""
        return self.model.tokenizer.vocabulary.hash[:16]

    def chat_template(self, chat_template: bool | str = False) -> str:
        """Source of the template in use."""
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
        """Log-likelihood of each continuation given its context, and whether greedy decoding gives it.

        Raises:
          InputError: a log-likelihood is not finite; the message names the task and its first such item.
        """
        pairs = [request.args for request in requests]
        self._refuse_empty(requests)
        encoded: list[tuple[tuple[str, str], list[int], list[int]]] = []
        for start in range(0, len(pairs), _PAIRS_PER_ENCODING):
            encoded += encode_pairs(self.model.tokenizer, pairs[start : start + _PAIRS_PER_ENCODING])
        return self._loglikelihood_tokens(encoded, names=list(map(_item_name, requests)))

    def _refuse_empty(self, requests: Sequence[Any]) -> None:
        """Raises `InputError` for an empty context where the model has no prefix token."""
        if self.prefix_token_id is None:
            for request in requests:
                if not request.args[0]:
                    raise InputError(f"{_item_name(request)}: {NOTHING_BEGINS}")

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], *, names: Sequence[str] = (), **kwargs: Any
    ) -> list[tuple[float, bool]]:
        divisions = [windows(*request, self.max_length) for request in requests]
        if divided := sum(len(parts) > 1 for parts in divisions):
            text = "%d answers are longer than the model's context of %d tokens and are scored in parts"
            log.warning(text, divided, self.max_length)
        owners = [number for number, parts in enumerate(divisions) for _ in parts]
        labels = [names[owner] if names else f"request {owner}" for owner in owners]
        results = iter(self._score([window for parts in divisions for window in parts], labels))
        likelihoods = []
        for (pair, _, _), parts in zip(requests, divisions, strict=True):
            nats, greedy = zip(*(next(results) for _ in parts), strict=True)
            likelihoods.append((sum(nats), all(greedy)))
            if pair is not None:
                self.cache_hook.add_partial("loglikelihood", pair, likelihoods[-1])
        return likelihoods

    def _score(self, sequences: Sequence[Scored], names: Sequence[str]) -> list[tuple[float, bool]]:
        """Log-likelihoods, from the store where it holds them. Rows are packed from all sequences, so that a resumed
        evaluation computes the same rows.

        Raises:
          InputError: a log-likelihood is not finite; none of its batch is stored.
        """
        keys = [self.store.key("loglikelihood", sequence.tokens, sequence.scored) for sequence in sequences]
        rows = self._scorer.plan(sequences)
        pending = [row for row in rows if any(self.store.get(keys[number], list) is None for number, _ in row.members)]
        completed = len(sequences) - sum(len(row.members) for row in pending)
        with ProgressDisplay("log-likelihoods", len(sequences), completed=completed) as progress:
            for batch in self._scorer.run(pending):
                self._scorer.refuse_not_finite(batch, sequences, names.__getitem__)
                self.store.add([(keys[number], [result.nats, result.greedy]) for number, result in batch.items()])
                progress.advance(len(batch))
        answers = (self.store.get(key, list) for key in keys)
        likelihoods = [Likelihood(nats=float(nats), greedy=bool(greedy)) for nats, greedy in answers]
        # An earlier version may have stored figures that are not finite.
        self._scorer.refuse_not_finite(dict(enumerate(likelihoods)), sequences, names.__getitem__)
        return [(result.nats, result.greedy) for result in likelihoods]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of texts, in disjoint windows of the context's length.

        Without a prefix token the first token of each text is not scored, with a warning.
        """
        sequences, owners, prefix = [], list[int](), self.prefix_token_id
        if prefix is None:
            log.warning("this model has no token that begins a text: the first token of each text is given, not scored")
        for number, (text,) in enumerate(request.args for request in requests):
            ids = self.tok_encode(text, add_special_tokens=False)
            first, ids = (prefix, ids) if prefix is not None else (ids[0] if ids else None, ids[1:])
            parts = utils.get_rolling_token_windows(ids, first, self.max_length, context_len=1)
            for context, predicted in map(utils.make_disjoint_window, parts):
                sequences += windows(None, context, predicted, self.max_length)
                owners.append(number)
        totals = [0.0] * len(requests)
        names = [_item_name(requests[owner]) for owner in owners]
        for owner, (nats, _) in zip(owners, self._score(sequences, names), strict=True):
            totals[owner] += nats
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Answers, cut before the first stop string; contexts are truncated from the left to leave it room."""
        self._refuse_empty(requests)
        generations = [self._generation(*request.args) for request in requests]
        keys = [self.store.key("generate_until", prompt, vars(sampling)) for prompt, sampling in generations]
        pending = [number for number, key in enumerate(keys) if self.store.get(key, str) is None]
        size = 4 * self._slots  # answers between two writes to the store
        with ProgressDisplay("answers", len(requests), completed=len(requests) - len(pending)) as progress:
            for start in range(0, len(pending), size):
                numbers = pending[start : start + size]
                prompts, settings = zip(*(generations[number] for number in numbers), strict=True)
                names = [_item_name(requests[number]) for number in numbers]
                answers = self._generator.generate(prompts, settings, name=names.__getitem__)
                self.store.add([(keys[number], answer.text) for number, answer in zip(numbers, answers, strict=True)])
                progress.advance(len(numbers))
        texts = [self.store.get(key, str) for key in keys]
        for request, text in zip(requests, texts, strict=True):
            self.cache_hook.add_partial("generate_until", request.args, text)
        return texts

    def _generation(self, context: str, settings: Mapping[str, Any]) -> tuple[list[int], Sampling]:
        kwargs = normalize_gen_kwargs(dict(settings), self.max_gen_toks)
        stop = [text for text in handle_stop_sequences(kwargs.pop("until", None), eos=None) if text]
        max_tokens = kwargs["max_gen_toks"]
        if max_tokens >= self.max_length:
            limit = f"must be below the model's context of {self.max_length:,} tokens"
            raise InputError(f"max_gen_toks={max_tokens}: {limit}")
        prompt = self.model.tokenizer.encode_prompt(context)[-(self.max_length - max_tokens) :]
        sampling = Sampling(
            max_tokens=max_tokens,
            temperature=float(kwargs.get("temperature") or 0.0) if kwargs.get("do_sample", False) else 0.0,
            top_k=int(kwargs.get("top_k") or 0),
            top_p=float(kwargs.get("top_p") or 1.0),
            seed=int(kwargs.get("seed") or 0),
            stop=tuple(stop),
        )
        return prompt, sampling


def _item_name(request: Any) -> str:
    """`TASK, item N` for a request of the harness, counted from 0."""
    return f"{getattr(request, 'task_name', None) or 'task'}, item {getattr(request, 'doc_id', '?')}"


@register_model("diversity_jax")
class DiversityJax(HarnessModel):
    """A `HarnessModel` from the harness's `model_args`.

    Args:
      checkpoint, source: as `open_model`; `device` and `max_batch_size`, which the harness adds, are ignored.
      data, fsdp, tensor: the mesh; by default rows over all devices.
      batch_size, slots, store: as `HarnessModel`; a batch size of `auto` is the default.
    """

    def __init__(
        self,
        checkpoint: str,
        *,
        data: int = -1,
        fsdp: int = 1,
        tensor: int = 1,
        batch_size: int | str = 8,
        slots: int = 16,
        store: str | None = None,
        **source: Any,
    ):
        for ignored in ("device", "max_batch_size"):
            source.pop(ignored, None)
        known = ("step", "tokenizer", "compute_dtype", "max_length")
        if unknown := sorted(source.keys() - known):
            raise InputError(f"model_args: {', '.join(unknown)} is not known here; expected {', '.join(known)}")
        model = open_model(checkpoint, mesh=MeshConfig(data=data, fsdp=fsdp, tensor=tensor), **source)
        size = 8 if str(batch_size).startswith("auto") else int(batch_size)
        super().__init__(model, batch_size=size, store=store, slots=slots)
