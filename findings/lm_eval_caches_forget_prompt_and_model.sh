#!/usr/bin/env bash
# lm_eval 0.4.13, datasets 5.2.0, Python 3.11.
#
# Expected: a cache of requests is keyed by what makes them (the task's prompt, the seed of its few-shot examples, its
# documents), and a cache of answers by the model that gave them; what has changed is computed anew.
# Seen: cache_requests=True (--cache_requests true) goes by the task's name, the number of shots and the tokenizer's
# name: an edited doc_to_text, another fewshot_random_seed and another list of samples are ignored, and the requests of
# the first run are scored under the new configuration, which the results then record. use_cache (--use_cache PATH)
# goes by the text of a request alone: a second model with the same path is never called and gets the scores of the
# first.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check lm_eval==0.4.13 datasets==5.2.0
HF_HOME="$folder/hf" HF_HUB_OFFLINE=1 LM_HARNESS_CACHE_PATH="$folder/requests" \
  "$folder/venv/bin/python" - "$folder/answers" 2>"$folder/errors" <<'PY' || { cat "$folder/errors"; exit 1; }
import sys

from datasets import Dataset
import lm_eval
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager

MANAGER = TaskManager(include_defaults=False)
ROWS = Dataset.from_list([{"question": f"{n} + {n}", "answer": 0, "choices": ["a", "b"]} for n in range(8)])


class Model(LM):
    """Prefers one choice always, and remembers the contexts that it was asked about."""

    def __init__(self, preferred):
        super().__init__()
        self.preferred, self.contexts = preferred, []

    def loglikelihood(self, requests):
        self.contexts += [request.args[0] for request in requests]
        return [(-1.0 if request.args[1].strip() == self.preferred else -2.0, False) for request in requests]

    generate_until = loglikelihood_rolling = None


def evaluate(model, prompt, seed=0, **options):
    """(accuracy, the prompt that the results record)."""
    task = {
        "task": "sums",
        "custom_dataset": lambda **_: {"train": ROWS, "test": ROWS},
        "training_split": "train",
        "test_split": "test",
        "num_fewshot": 2,
        "output_type": "multiple_choice",
        "doc_to_text": prompt,
        "doc_to_target": "answer",
        "doc_to_choice": "choices",
        "metric_list": [{"metric": "acc"}],
    }
    options |= {"task_manager": MANAGER, "bootstrap_iters": 0}
    ran = lm_eval.simple_evaluate(model, tasks=[task], fewshot_random_seed=seed, **options)
    return ran["results"]["sums"]["acc,none"], ran["configs"]["sums"]["doc_to_text"]


OLD, NEW = "Q: {{question}}", "Compute {{question}} ="
first, edited, reseeded, fresh, fresh_seed, some = (Model("a") for _ in range(6))
evaluate(first, OLD, cache_requests=True)
recorded = evaluate(edited, NEW, cache_requests=True)[1]
evaluate(reseeded, OLD, seed=1, cache_requests=True)
evaluate(fresh, NEW), evaluate(fresh_seed, OLD, seed=1)
evaluate(some, OLD, cache_requests=True, samples={"sums": [7]})
print(f"prompt now {recorded!r}; asked with the cache {edited.contexts[0]!r}, without {fresh.contexts[0]!r}")
print(f"one sample asked for: {len(set(some.contexts))} contexts; another seed: {reseeded.contexts == first.contexts=}")
assert fresh.contexts[0].startswith("Compute") and fresh_seed.contexts != first.contexts, "the control is off"
assert recorded == NEW and edited.contexts == reseeded.contexts == some.contexts == first.contexts, "behaviour changed"

good, bad, alone = Model("a"), Model("b"), Model("b")
scores = [evaluate(model, OLD, use_cache=sys.argv[1])[0] for model in (good, bad)] + [evaluate(alone, OLD)[0]]
print(f"use_cache: first model {scores[0]}, second {scores[1]} ({len(bad.contexts)} requests); without {scores[2]}")
assert scores == [1.0, 1.0, 0.0] and not bad.contexts, "behaviour changed"
PY
