"""Whether a fine-tuned model answers in the form it was taught, beside the model it began with: held-out questions, answers that end.

    python scripts/measure_format.py runs/sft_tiny --before runs/llama_tiny

Questions are the run's own held-out ones, token for token as in training. An answer is in form where the model ends it by itself within
`--max-tokens`, it holds text, and it does not go on to write the template's next question. Greedy, and sampled at temperature 1, where the
spread of answers is the model's own.
"""

import argparse
from pathlib import Path
import statistics
from typing import Any

TEMPERATURES = (0.0, 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path, help="a fine-tuned run's output folder")
    parser.add_argument("--before", type=Path, help="the model that it began with")
    parser.add_argument("--answers", type=int, default=100)
    parser.add_argument("--max-tokens", type=int, default=400)
    options = parser.parse_args()
    from diversity_jax.model_files import open_model

    tuned = open_model(options.run)
    asked = questions(options.run, options.answers, tuned.config.max_length - options.max_tokens)
    models = {"before": open_model(options.before, max_length=tuned.config.max_length)} if options.before else {}
    print(f"{len(asked)} held-out questions, answers of {options.max_tokens} tokens at most")
    print(f"{'model':<8} {'temperature':>11} {'ended':>7} {'in form':>8} {'median tokens':>14}  first answer")
    for name, model in (models | {"after": tuned}).items():
        for temperature in TEMPERATURES:
            print(_line(name, temperature, answer(model, asked, options.max_tokens, temperature), tuned))


def questions(run: Path, count: int, longest: int) -> list[list[int]]:
    """Token ids of held-out conversations up to their first answer, those of at most `longest`."""
    import numpy as np

    from diversity_jax.mixtures.mixture import Mixture
    from diversity_jax.mixtures.rows import RowReader
    from diversity_jax.model_files import mixture_folder

    found = []
    for part in Mixture.load(mixture_folder(run)).taken:
        rows = RowReader(part.manifest, "validation")
        marked = rows.read_marked(np.arange(rows.rows))
        for tokens, targets, starts in zip(marked.tokens, marked.targets, marked.starts, strict=True):
            for piece, is_target in zip(*(np.split(values, np.flatnonzero(starts)[1:]) for values in (tokens, targets)), strict=True):
                if is_target.any() and is_target.argmax() <= longest:
                    found.append(piece[: is_target.argmax()].tolist())
    return found[:count]


def answer(model: Any, asked: list[list[int]], max_tokens: int, temperature: float) -> list[Any]:
    """An answer to each question, each with its own seed."""
    from diversity_jax.evaluation.generator import Generator
    from diversity_jax.evaluation.sampling import Sampling

    settings = [Sampling(max_tokens=max_tokens, temperature=temperature, seed=number) for number in range(len(asked))]
    return Generator(model, slots=32).generate(asked, settings)


def _line(name: str, temperature: float, answers: list[Any], tuned: Any) -> str:
    heading = tuned.chat([{"role": "user", "content": "?"}], add_generation_prompt=False).partition("?")[0].strip()
    ended = [one for one in answers if one.finish_reason == "stop"]
    in_form = [one for one in ended if one.text.strip() and not (heading and heading in one.text)]
    length = statistics.median(len(one.tokens) for one in answers)
    shares = f"{100 * len(ended) / len(answers):>6.0f}% {100 * len(in_form) / len(answers):>7.0f}%"
    return f"{name:<8} {temperature:>11g} {shares} {length:>14.0f}  {' '.join(answers[0].text.split())[:90]!r}"


if __name__ == "__main__":
    main()
