"""Answers given their contexts, as ids and as the windows in which a model reads them: what log-likelihoods are of."""

from collections.abc import Sequence

from diversity_jax.core.errors import InputError
from diversity_jax.evaluation.loglikelihood import Scored
from diversity_jax.tokenizers.tokenizer import ModelTokenizer

Pair = tuple[str, str]
"""A context and what follows it."""


def encode_pairs(tokenizer: ModelTokenizer, pairs: Sequence[Pair]) -> list[tuple[Pair, list[int], list[int]]]:
    """Pairs with the ids of context and answer, as lm-evaluation-harness's `TemplateLM._encode_pair` makes them, in one
    call of the tokenizer: spaces that end a context are moved to its answer.

    An empty context is replaced by `tokenizer.prefix_id`, which must be there.
    """
    contexts = [context.rstrip() for context, _ in pairs]
    complete = [(stripped, "".join(pair)) for stripped, pair in zip(contexts, pairs, strict=True) if pair[0]]
    texts = sorted({text for both in complete for text in both})
    ids = dict(zip(texts, tokenizer.encode_batch(texts), strict=True))
    encoded = []
    for stripped, pair in zip(contexts, pairs, strict=True):
        if pair[0]:
            context = ids[stripped]
            encoded.append((pair, context, ids["".join(pair)][len(context) :]))
        else:
            answer = tokenizer.encode(pair[1], special=False)
            prefix = tokenizer.prefix_id
            assert prefix is not None  # checked by callers
            begins = bool(answer) and answer[0] == prefix
            context, answer = (answer[:1], answer[1:]) if begins else ([prefix], answer)
            encoded.append((pair, context, answer))
    return encoded


def windows(pair: Pair | None, context: Sequence[int], answer: Sequence[int], most: int) -> list[Scored]:
    """The last `most + 1` tokens, of which the model reads all but the last.

    An answer that is longer than that by itself goes in parts of half a context, each after what fits before it.

    Args:
      pair: for the message; None: a window of a text.
      most: tokens that the model reads at once.

    Raises:
      InputError: the answer or the context is empty.
    """
    shown = "a window" if pair is None else repr((pair[1] or pair[0])[-60:])
    if not answer or not context:
        empty = "answer" if context else "context"
        raise InputError(f"an empty {empty} cannot be scored ({shown}); remove the item or mend its answers")
    tokens = [*context, *answer]
    if len(answer) <= most:
        return [Scored(tokens=tuple(tokens[-(most + 1) :]), scored=len(answer))]
    starts = range(len(context), len(tokens), max(most // 2, 1))
    ends = [*starts[1:], len(tokens)]
    return [
        Scored(tokens=tuple(tokens[max(end - most - 1, 0) : end]), scored=end - start)
        for start, end in zip(starts, ends, strict=True)
    ]
