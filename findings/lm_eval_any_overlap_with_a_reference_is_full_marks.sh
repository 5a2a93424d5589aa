#!/usr/bin/env bash
# lm_eval 0.4.13, datasets 5.2.0, Python 3.11.
#
# Expected: where doc_to_target gives a list of references, a graded metric such as the F1 of words is the best over the
# references (as SQuAD takes it), and a list of one reference scores as the reference itself does.
# Seen: per document the harness asks whether any score is not zero, and writes 1.0 if so. It does this for a metric that is a
# function of the task: an answer that shares "the" with one of its references gets full marks, without an error or a log line.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check lm_eval==0.4.13 datasets==5.2.0
HF_HOME="$folder/hf" HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - 2>"$folder/errors" <<'PY' || { cat "$folder/errors"; exit 1; }
from collections import Counter

from datasets import Dataset
import lm_eval
from lm_eval.api.model import LM

ANSWER = "it was in december of that year and the men of the other party came a month later"
REFERENCES = [["the south pole"], ["amundsen and his men"], ["a ship of the line"]]


class OneAnswer(LM):
    def generate_until(self, requests):
        return [ANSWER] * len(requests)

    loglikelihood = loglikelihood_rolling = None


def f1(references, predictions):
    wanted, given = references[0].split(), predictions[0].split()
    return 2 * (Counter(wanted) & Counter(given)).total() / (len(wanted) + len(given))


def score(targets):
    rows = Dataset.from_list([{"question": "?", "target": target} for target in targets])
    task = {
        "task": "answers",
        "custom_dataset": lambda **_: {"test": rows},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "question",
        "doc_to_target": "target",
        "generation_kwargs": {"until": ["\n"]},
        "metric_list": [{"metric": f1, "aggregation": "mean", "higher_is_better": True}],
    }
    results = lm_eval.simple_evaluate(model=OneAnswer(), tasks=[task], bootstrap_iters=0)["results"]["answers"]
    return results["f1,none"]


best = [max(f1([reference], [ANSWER]) for reference in references) for references in REFERENCES]
expected = sum(best) / len(best)
as_text, as_list = score([reference for reference, in REFERENCES]), score(REFERENCES)
two = score([[*references, "nothing in common"] for references in REFERENCES])
print(f"mean of the best F1 {expected:.3f}; the harness: reference as text {as_text:.3f}, list of one {as_list}, of two {two}")
assert abs(as_text - expected) < 1e-9 and expected < 0.3, "the control is off"
assert as_list == two == 1.0, "behaviour changed"
PY
