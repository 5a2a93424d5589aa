#!/usr/bin/env bash
# ml_dtypes 0.6.0 (the bfloat16 that JAX, safetensors and TensorFlow hand to NumPy), numpy 2.4.6, Python 3.11.
#
# Expected: NumPy treats the array as it treats its own float16, whose mean it takes in float32, whose NaNs nanmean
# leaves out and sort puts last; jnp.mean of the same bfloat16 array is right.
# Seen: to NumPy bfloat16 is no kind of float, so none of this applies. Sums are carried in bfloat16, where they stop
# growing after a few hundred terms: the mean of 100,000 numbers around 2 is 0.02, the std 0.3 instead of 1, the share
# of 70 % of 100,000 is 0.0026, and sums along the first axis of a table do the same. nanmean gives NaN, and sort leaves
# an array with a NaN unsorted. No warning.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check ml_dtypes==0.6.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PY'
import ml_dtypes
import numpy as np

rng = np.random.default_rng(0)
numbers, hits = 2 + rng.normal(size=100_000), rng.random(100_000) < 0.7
table, holes = 0.3 + rng.normal(size=(20_000, 8)), [3.0, np.nan, 1.0, 2.0]


def figures(dtype):
    few = np.array(holes, dtype)
    found = {
        "mean": numbers.astype(dtype).mean(),
        "std": numbers.astype(dtype).std(),
        "share": hits.astype(dtype).mean(),
        "column": table.astype(dtype).mean(axis=0)[0],
        "nanmean": np.nanmean(few),
    }
    return {name: float(value) for name, value in found.items()}, np.sort(few).astype(float).tolist()


np.seterr(over="ignore")  # the std of so many float16 is infinite
for dtype in (np.float64, np.float16, ml_dtypes.bfloat16):
    found, ordered = figures(dtype)
    print(np.dtype(dtype).name, {name: round(value, 4) for name, value in found.items()}, "sorted", ordered)
    if dtype is not ml_dtypes.bfloat16:
        assert abs(found["mean"] - 2) < 0.01 and found["nanmean"] == 2 and ordered[:3] == [1, 2, 3], "the control is off"
assert found["mean"] < 0.1 and found["std"] < 0.5 and found["share"] < 0.01, "behaviour changed"
assert found["column"] < 0.1 and np.isnan(found["nanmean"]), "behaviour changed"
assert ordered[0] == 3 and np.isnan(ordered[1]), "behaviour changed"
PY
