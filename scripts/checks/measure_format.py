"""Whether a fine-tuned model answers held-out questions in the trained format, compared with the model before tuning.

    python scripts/checks/measure_format.py runs/sft_tiny --before runs/llama_tiny

Questions are the run's own held-out ones, token for token as in training. `loss` is that of their answers, in nats per
token. `P(end)` is the mean probability of the token that ends an answer, at the end of the data's answer and a quarter,
half and three quarters through it: high and low for a model that knows the format. A generated answer is in the format
if it ends by itself within `--max-tokens`, holds text, and does not continue with the template's next question; answers
are generated greedily and at temperature 1.
"""

import argparse
import dataclasses
import math
from pathlib import Path
import statistics
import sys
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

TEMPERATURES = (0.0, 1.0)
Example = tuple[list[int], list[int]]  # token ids of a question, and of its answer with the token that ends it


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path, help="a fine-tuned run's output folder")
    parser.add_argument("--before", type=Path, help="the model that it began with")
    parser.add_argument("--answers", type=int, default=100)
    parser.add_argument("--max-tokens", type=int, default=400)
    options = parser.parse_args()
    from diversity_jax.evaluation.load_model import open_model

    tuned = open_model(options.run)
    examples = held_out(options.run, options.answers, tuned.config.max_length - options.max_tokens)
    lengths = [len(answer) for _, answer in examples]
    own = 100 * sum(length <= options.max_tokens for length in lengths) / len(lengths)
    print(
        f"{len(examples)} held-out questions; {own:.0f} % of the data's answers have at most {options.max_tokens} "
        "tokens"
    )
    print(f"their median: {statistics.median(lengths):.0f} tokens")
    models = {}
    if options.before:
        before = open_model(options.before)  # its own context may be shorter
        longer = dataclasses.replace(before.config, max_length=tuned.config.max_length)
        models["before"] = dataclasses.replace(before, config=longer)
    for name, model in (models | {"after": tuned}).items():
        loss, over, inside = likelihoods(model, examples)
        print(
            (
                f"{name}: loss {loss:.3f}; P(end) {100 * over:.2f} % where the answer is over, {100 * inside:.2f} % "
                "inside it"
            ),
            flush=True,
        )
        for temperature in TEMPERATURES:
            print(_line(temperature, written(model, examples, options.max_tokens, temperature), tuned), flush=True)


def held_out(run: Path, count: int, longest: int) -> list[Example]:
    """Held-out conversations up to the end of their first answer, those whose question has at most `longest` tokens."""
    import numpy as np

    from diversity_jax.evaluation.load_model import mixture_folder
    from diversity_jax.mixtures.mixture import Mixture
    from diversity_jax.prepare.rows import RowReader

    results = []
    for part in Mixture.load(mixture_folder(run)).taken:
        rows = RowReader(part.manifest, "validation")
        marked = rows.read(np.arange(rows.rows))
        for tokens, targets, starts in zip(marked.tokens, marked.targets, marked.starts, strict=True):
            for document, is_target in zip(
                *(np.split(values, np.flatnonzero(starts)[1:]) for values in (tokens, targets)), strict=True
            ):
                first = int(is_target.argmax())
                if is_target.any() and first <= longest:
                    end = first + int(
                        (~is_target[first:]).argmax() if not is_target[first:].all() else len(is_target) - first
                    )
                    results.append((document[:first].tolist(), document[first:end].tolist()))
    return results[:count]


def likelihoods(model: Any, examples: list[Example]) -> tuple[float, float, float]:
    """Mean nats per token of an answer, and mean probabilities of the ending token at its end and inside it."""
    from diversity_jax.evaluation.loglikelihood import Scored

    complete, ends = [], {"over": [], "inside": []}
    for asked, answer in examples:
        complete.append(Scored(tokens=(*asked, *answer), scored=len(answer)))
        positions = {"over": [len(answer) - 1], "inside": [len(answer) * part // 4 for part in (1, 2, 3)]}
        for kind, results in positions.items():
            ends[kind] += [Scored(tokens=(*asked, *answer[:position], answer[-1]), scored=1) for position in results]
    scorer = model.scorer()
    nats = -sum(item.nats for item in scorer.score(complete)) / sum(item.scored for item in complete)
    over, inside = (
        statistics.mean(math.exp(item.nats) for item in scorer.score(ends[kind])) for kind in ("over", "inside")
    )
    return nats, over, inside


def written(model: Any, examples: list[Example], max_tokens: int, temperature: float) -> list[Any]:
    """Generates an answer to each question, each with its own seed."""
    from diversity_jax.evaluation.generate import Generator
    from diversity_jax.evaluation.sampling import Sampling

    settings = [
        Sampling(max_tokens=max_tokens, temperature=temperature, seed=number) for number in range(len(examples))
    ]
    return Generator(model, slots=32).generate([asked for asked, _ in examples], settings)


def _line(temperature: float, answers: list[Any], tuned: Any) -> str:
    heading = tuned.chat([{"role": "user", "content": "?"}], add_generation_prompt=False).partition("?")[0].strip()
    ended = [item for item in answers if item.finish_reason == "stop"]
    in_form = [item for item in ended if item.text.strip() and not (heading and heading in item.text)]
    median = statistics.median(len(item.tokens) for item in answers)
    shares = (
        f"{100 * len(ended) / len(answers):3.0f} % end by themselves, {100 * len(in_form) / len(answers):3.0f} % "
        "in form"
    )
    return (
        f"  temperature {temperature:g}: {shares}, median {median:.0f} tokens; the first: "
        f"{' '.join(answers[0].text.split())[:80]!r}"
    )


if __name__ == "__main__":
    main()
