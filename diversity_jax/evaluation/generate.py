"""Text generation with continuous batching over a paged key/value cache."""

import bisect
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
import itertools
import operator
from typing import Any

import jax
from jax.sharding import NamedSharding
import numpy as np

from diversity_jax.core.errors import InputError
from diversity_jax.evaluation.cache_blocks import (
    BlockPool,
    CacheRow,
    RowLayout,
    blocks_for,
    blocks_that_fit,
    refuse_too_small,
    release_zeros,
)
from diversity_jax.evaluation.generation_request import (
    GeneratedText,
    GenerationRequest,
    TextStream,
    TokenConstraint,
    accepted_tokens,
    not_a_number,
    token_logprob,
)
from diversity_jax.evaluation.load_model import LanguageModel
from diversity_jax.evaluation.sampling import Sampling, decode_tokens, score_prompt
from diversity_jax.model.cache import BlockReads, Cache, cached_hidden_states, empty_cache
from diversity_jax.model.llama import Params
from diversity_jax.model.sharding import row_shards, spec

_PREFILL_TOKENS = 16  # tokens of a prompt in a row of a prefill call; a prompt's last row is padded
_PREFILL_ROWS = (2, 8, 32)  # compiled numbers of such rows on an accelerator; on a CPU 8 keep a core busy
_LEAST_LONGEST = 2048  # the cache is made for sequences of at least this length, in tokens, or of the context
_PREFILL_ROWS_A_STEP = 64  # most rows of a shard between two decoding steps, so that long prompts delay others little


class Generator:
    """Generates many answers at once.

    Sequences allocate blocks of the cache as they grow. Requests are admitted in order; where a running one finds no
    free block, the youngest is preempted: its blocks are freed, and it waits to be prefilled again.

    Args:
      slots: answers generated together; rounded up to a multiple of the row shards.
      steps: tokens decoded in one call of the compiled program; tokens after the end of an answer are discarded.
      memory_gb: most memory of each device for keys and values; None: most of the free memory.
    """

    def __init__(self, model: LanguageModel, *, slots: int = 16, steps: int = 8, memory_gb: float | None = None):
        config, mesh = model.config, model.mesh
        self._shards = row_shards(mesh)
        self._rows = -(-slots // self._shards)  # of each shard
        self.model, self.slots, self._steps, self._memory_gb = model, self._rows * self._shards, steps, memory_gb
        # Compiled numbers of rows; the smallest that suffices runs, since time grows little up to four times the rows.
        smaller = itertools.takewhile(lambda size: size < self._rows, (4**n for n in range(16)))
        self._sizes = [*smaller, self._rows]
        self._on_host = mesh.devices.flat[0].platform == "cpu"
        self._prefill_sizes = (4, 8) if self._on_host else _PREFILL_ROWS
        size = model.tokenizer.vocabulary.size
        self._words = -(-size // 32)

        def fill_cache(params: Params, cache: Cache, *arrays: Any) -> Cache:
            return cached_hidden_states(config, params, cache, *arrays, mesh=mesh)[1]

        compiled = partial(jax.jit, donate_argnums=1)
        self._fill_cache = compiled(fill_cache)
        self._score_prompt = compiled(partial(score_prompt, config, mesh, size), static_argnames="with_top")
        stop_ids = tuple(sorted(i for i in model.tokenizer.stop_ids if i < config.vocab_size))
        self._decode = compiled(partial(decode_tokens, config, mesh, size, stop_ids), static_argnames="with_top")
        self._numbers = itertools.count()
        self._fit = 0  # blocks of each shard that fit into memory; 0: not known yet
        self._least_rows = 1
        self._longest = 0  # blocks of the longest sequence that the cache is made for
        self._pool = BlockPool(0, self._shards)
        self._cache: Cache | None = None
        # Appended to by any thread, emptied by the generator's thread.
        self._waiting: deque[GenerationRequest] = deque()
        self._running: list[GenerationRequest] = []  # in the order of their numbers

    def reserve(self, tokens: int) -> None:
        """Sizes the cache for a sequence of this many tokens in each slot, or for as many as fit, at least one.

        Raises:
          InputError: one does not fit.
        """
        config, blocks = self.model.config, blocks_for(tokens)
        if blocks <= self._longest and self._pool.blocks > blocks:
            return
        self._fit = self._fit or blocks_that_fit(config, self.model.mesh, self._memory_gb)
        refuse_too_small(config, self._fit, tokens, self._memory_gb)
        if self._running:
            return
        # Powers of two, since programs are compiled for each size.
        blocks = blocks_for(max(tokens, min(config.max_length, _LEAST_LONGEST)))
        self._longest = min(1 << (blocks - 1).bit_length(), max(blocks_for(config.max_length), blocks))
        self._pool = BlockPool(min(self._rows * self._longest + 1, self._fit), self._shards)
        self._cache = None

    def _request(
        self, prompt: Sequence[int], sampling: Sampling, name: str = "the prompt", **fields: Any
    ) -> GenerationRequest:
        config = self.model.config
        if not prompt:
            raise InputError(f"{name} is empty; give at least one token")
        if min(prompt) < 0 or max(prompt) >= config.vocab_size:
            raise InputError(f"{name} holds an id outside the model's vocabulary of {config.vocab_size:,}")
        if len(prompt) + sampling.max_tokens > config.max_length:
            raise InputError(
                f"{name} has {len(prompt):,} tokens and asks for up to {sampling.max_tokens:,} more; "
                f"the model's context holds {config.max_length:,}: shorten the prompt or lower max_tokens"
            )
        stream = TextStream(self.model.tokenizer.decode, sampling.stop, min_tokens=sampling.min_tokens)
        number = next(self._numbers)
        return GenerationRequest(number=number, prompt=list(prompt), sampling=sampling, stream=stream, **fields)

    def compile(self) -> None:
        """Compiles the programs for all numbers of rows, without log-probabilities and constraints."""
        for size in self._sizes:
            self.generate([[self.model.tokenizer.end_of_text_id] * 2] * (size * self._shards), Sampling(max_tokens=1))

    def submit(
        self,
        prompt: Sequence[int],
        sampling: Sampling,
        on_progress: Callable[[GenerationRequest], None],
        constraint: TokenConstraint | None = None,
    ) -> GenerationRequest:
        """Queues a prompt for `step`; safe from any thread.

        Raises:
          InputError: an empty prompt, an id outside the vocabulary, or more tokens than the model's context or the
            cache holds.
        """
        request = self._request(prompt, sampling, on_progress=on_progress, constraint=constraint)
        self.reserve(self.model.config.max_length)
        self._waiting.append(request)
        return request

    @property
    def load(self) -> int:
        """Requests waiting or running."""
        return len(self._waiting) + len(self._running)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling | Sequence[Sampling],
        *,
        name: Callable[[int], str] = "prompt {}".format,
    ) -> list[GeneratedText]:
        """Answers to all prompts, in order.

        Args:
          name: of a prompt by its number from 0, for errors.

        Raises:
          InputError: as `submit`, before anything is generated; or log-probabilities are not finite, with the name of
            the first such prompt.
        """
        settings = [sampling] * len(prompts) if isinstance(sampling, Sampling) else sampling
        requests = [self._request(*pair, name(n)) for n, pair in enumerate(zip(prompts, settings, strict=True))]
        self.reserve(max((request.longest for request in requests), default=1))
        self._waiting.extend(requests)
        # The last answers run in programs of as many rows as the first: compiling others would take longer.
        self._least_rows = min(self._rows, -(-len(requests) // self._shards))
        try:
            while self.step():
                pass
        finally:
            self._least_rows = 1
        for number, request in enumerate(requests):
            if request.failure is not None:
                raise InputError(f"{name(number)}: {request.failure}") from request.failure
        return [request.answer for request in requests if request.answer is not None]

    def step(self, *, admit: bool = True) -> bool:
        """Admits waiting prompts, prefills a part of them and extends answers by up to `steps` tokens.

        Returns:
          Whether any request is left.
        """
        self._open()
        for request in [request for request in self._running if request.cancelled]:
            self._release(request)
        if admit:
            self._admit()
        for _ in range(-(-_PREFILL_ROWS_A_STEP // self._prefill_sizes[-1])):
            self._prefill()
        self._finish_prompts()
        ready = self._allocate([request for request in self._running if request.is_prefilled])
        bits = self._allowed(ready)
        if ready := [request for request in ready if request in self._running]:
            self._decode_next(ready, bits)
        return bool(self._running or self._waiting)

    def abandon(self, failure: Exception, *, waiting: bool = False) -> None:
        """After an exception in `step`: fails running and, if asked, `waiting` requests, and drops the cache."""
        failed = list(self._running)
        self._running.clear()
        self._pool, self._cache = BlockPool(self._pool.blocks, self._shards), None
        while waiting and self._waiting:
            failed.append(self._waiting.popleft())
        for request in failed:
            request.fail(failure)

    def restart(self) -> None:
        """Makes a new cache and generates one token as a test, before waiting requests are admitted."""
        self._cache = None
        request = self._request([self.model.tokenizer.end_of_text_id] * 2, Sampling(max_tokens=1))
        self._start(request, 0)
        self.step(admit=False)

    def _open(self) -> None:
        """Allocates the cache, layer by layer, where there is none."""
        if self._cache is not None:
            return
        if not self._pool.blocks:
            self.reserve(self.model.config.max_length)
        sharding = NamedSharding(self.model.mesh, spec("batch", "kv_heads", None, None))
        blocks = self._pool.blocks * self._shards
        make = jax.jit(partial(empty_cache, self.model.config, blocks), out_shardings=sharding)
        layers = []
        for _ in range(self.model.config.num_layers):
            layers.append(make())
            for array in layers[-1]:
                release_zeros(array)
        self._cache = tuple(layers)

    def _admit(self) -> None:
        """Starts waiting requests in order while slots and blocks are free, and one more block for each running one."""
        while self._waiting and len(self._running) < self.slots:
            request = self._waiting[0]
            if not request.cancelled:
                running = [sum(other.shard == shard for other in self._running) for shard in range(self._shards)]
                with_row = [shard for shard in range(self._shards) if running[shard] < self._rows]
                shard = max(with_row, key=self._pool.free)
                needed = blocks_for(min(request.length + self._steps, request.longest))
                if self._pool.free(shard) < needed + running[shard]:
                    return
                self._start(request, shard)
            self._waiting.popleft()

    def _start(self, request: GenerationRequest, shard: int) -> None:
        request.shard, request.blocks, request.cached = shard, self._pool.take(shard, blocks_for(request.length)), 0
        bisect.insort(self._running, request, key=operator.attrgetter("number"))

    def _release(self, request: GenerationRequest) -> None:
        self._running.remove(request)
        self._pool.give_back(request.shard, request.blocks)
        request.blocks = []

    def _allocate(self, ready: Sequence[GenerationRequest]) -> list[GenerationRequest]:
        """Allocates blocks for the next tokens, preempting the youngest requests where too few are free; the rest."""
        running = []
        for request in ready:
            needed = blocks_for(min(request.length - 1 + self._steps, request.longest)) - len(request.blocks)
            while request in self._running and self._pool.free(request.shard) < needed:
                youngest = next(other for other in reversed(self._running) if other.shard == request.shard)
                self._release(youngest)
                if not youngest.tokens:
                    youngest.logprobs.clear()
                self._waiting.appendleft(youngest)
            if request in self._running:
                request.blocks += self._pool.take(request.shard, needed)
                running.append(request)
        return [request for request in running if request in self._running]

    def _prefill(self) -> None:
        """Adds tokens of prompts to the cache, in turn from all; not the last token, which is decoded."""
        unread = [request for request in self._running if not request.is_prefilled]
        if not unread:
            return
        kind = unread[0].scoring
        parts: list[tuple[GenerationRequest, int, int]] = []
        rows, most = [0] * self._shards, self._prefill_sizes[-1]
        unread = [request for request in unread if request.scoring == kind]
        while unread := [request for request in unread if not request.is_prefilled and rows[request.shard] < most]:
            for request in unread:
                if rows[request.shard] < most:
                    start, end = request.cached, min(request.cached + _PREFILL_TOKENS, request.length - 1)
                    parts.append((request, start, end))
                    request.cached, rows[request.shard] = end, rows[request.shard] + 1
        cache_rows = [CacheRow(request.shard, request.blocks, start, end) for request, start, end in parts]
        layout = RowLayout(cache_rows, self._shards, self._prefill_sizes)
        tokens = np.zeros((2, layout.total, _PREFILL_TOKENS), np.int32)
        for index, (request, start, end) in zip(layout.indices, parts, strict=True):
            known = request.known
            tokens[:, index, : end - start] = known[start:end], known[start + 1 : end + 1]
        positions = layout.array([start for _, start, _ in parts])
        arrays = positions, layout.written(_PREFILL_TOKENS, 1)[0], self._reads(layout)
        if kind is None:
            self._cache = self._fill_cache(self.model.params, self._cache, tokens[0], *arrays)
            return
        out, self._cache = self._score_prompt(self.model.params, self._cache, *tokens, *arrays, with_top=kind)
        out = jax.device_get(out)
        for index, (request, start, end) in zip(layout.indices, parts, strict=True):
            shown = request.sampling.top_logprobs or 0
            row = {name: value[index] for name, value in out.items()}
            for i in range(start, end):
                before, token = request.prompt[i : i + 2]
                request.logprobs.append(token_logprob(before, token, row, i - start, shown))

    def _reads(self, layout: RowLayout) -> BlockReads:
        config = self.model.config
        window = None if config.layers_without_window else config.sliding_window
        return layout.reads(self._longest, window, on_host=self._on_host)

    def _finish_prompts(self) -> None:
        """Ends requests whose prompt is in the cache and that need no answer, or have log-probabilities of NaN."""
        for request in [request for request in self._running if request.is_prefilled and not request.tokens]:
            if any(np.isnan(token.logprob) for token in request.logprobs):
                self._fail(request, not_a_number("a token of the prompt"))
            elif request.sampling.max_tokens == 0:
                self._finish(request, "length")
                request.on_progress(request)

    def _allowed(self, ready: Sequence[GenerationRequest]) -> dict[int, np.ndarray]:
        """Bit sets of the ids that may be next, by the number of each constrained request."""
        bits = {}
        for request in ready:
            if request.constraint is not None:
                bits[request.number] = np.full(self._words, 0xFFFFFFFF, np.uint32)
                try:
                    request.constraint.fill(bits[request.number])
                except InputError as error:
                    self._fail(request, error)
        return bits

    def _decode_next(self, ready: Sequence[GenerationRequest], bits: Mapping[int, np.ndarray]) -> None:
        # Sampled tokens are wasted where a constraint refuses them; fewer steps save time only if all have constraints.
        steps = 1 if all(request.single_steps for request in ready) else self._steps
        rows = [CacheRow(r.shard, r.blocks, r.length - 1, r.length - 1 + steps) for r in ready]
        layout = RowLayout(rows, self._shards, [size for size in self._sizes if size >= self._least_rows])
        types = {"temperature": np.float32, "top_k": np.int32, "top_p": np.float32}
        settings = {name: layout.array([getattr(r.sampling, name) for r in ready], to) for name, to in types.items()}
        settings["seed"] = layout.array([request.sampling.seed & 0xFFFFFFFF for request in ready], np.uint32)
        settings["end_from"] = layout.array([len(r.prompt) + r.sampling.min_tokens - 1 for r in ready])
        allowed = None  # without constraints a faster program runs
        if any(request.constraint for request in ready):
            allowed = np.full((layout.total, self._words), 0xFFFFFFFF, np.uint32)
            for index, request in zip(layout.indices, ready, strict=True):
                allowed[index] = bits.get(request.number, 0xFFFFFFFF)
        tokens = layout.array([(request.tokens or request.prompt)[-1] for request in ready])
        arrays = layout.array([row.start for row in rows]), layout.written(1, steps), self._reads(layout)
        with_top = any(request.sampling.top_logprobs for request in ready)
        arguments = self.model.params, self._cache, tokens, *arrays, settings, allowed
        out, self._cache = self._decode(*arguments, with_top=with_top)
        out = jax.device_get(out)
        for index, request in zip(layout.indices, ready, strict=True):
            self._take_tokens(request, {name: value[:, index] for name, value in out.items()})

    def _take_tokens(self, request: GenerationRequest, out: dict[str, np.ndarray]) -> None:
        sampling, constraint = request.sampling, request.constraint
        tokens = out["tokens"].tolist()
        if constraint is not None and not np.isnan(out["logprobs"][0]):
            try:
                tokens = accepted_tokens(request, constraint, tokens)
            except InputError as error:
                self._fail(request, error)
                return
        for step, token in enumerate(tokens):
            if np.isnan(out["logprobs"][step]):
                self._fail(request, not_a_number(f"token {len(request.tokens)} of the answer"))
                return
            if (shown := sampling.top_logprobs) is not None:
                before = (request.tokens or request.prompt)[-1]
                request.logprobs.append(token_logprob(before, token, out, step, shown))
            request.tokens.append(token)
            request.cached = request.length - 1
            ended = token in self.model.tokenizer.stop_ids and not sampling.ignore_end
            if not ended:
                request.stream.add(token)
            ended |= constraint is not None and constraint.finished and step == len(tokens) - 1
            if ended or request.stream.stopped or len(request.tokens) >= sampling.max_tokens:
                self._finish(request, "stop" if ended or request.stream.stopped else "length")
                break
        request.on_progress(request)

    def _fail(self, request: GenerationRequest, failure: Exception) -> None:
        self._release(request)
        request.fail(failure)

    def _finish(self, request: GenerationRequest, reason: str) -> None:
        request.stream.finish()
        request.answer = GeneratedText(
            text=request.stream.text,
            tokens=tuple(request.tokens),
            finish_reason="stop" if request.stream.stopped else reason,
            logprobs=tuple(request.logprobs),
        )
        self._release(request)
