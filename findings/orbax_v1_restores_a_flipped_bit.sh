#!/usr/bin/env bash
# orbax-checkpoint 0.12.8 (v1 API) with jax 0.10.2, Python 3.11.
#
# Expected: a checkpoint that was damaged on disk is refused; its format, OCDBT, ends each of its index files with a CRC.
# Seen: the arrays themselves carry no checksum. Of single bits flipped at regular places of the file that holds an array,
# nearly all give back other numbers without an error or a log line; only what is hit of the index is noticed.
# A NumPy template of another shape is not compared either: the array comes back in the shape that was saved.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2 orbax-checkpoint==0.12.8 \
  numpy==2.4.6 flax==0.12.8
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - "$folder" <<'PY'
from collections import Counter
import logging
from pathlib import Path
import shutil
import sys

import numpy as np
from orbax.checkpoint import v1 as ocp

logging.disable(logging.CRITICAL)
work, saved = Path(sys.argv[1]), np.arange(4096, dtype=np.float32)
whole = work / "whole"
ocp.save_checkpointables(whole, {"params": {"w": saved}})


def restored(folder, template=saved):
    """What comes back, or the error's class."""
    try:
        return ocp.load_checkpointables(folder, {"params": {"w": template}})["params"]["w"]
    except Exception as error:
        return type(error).__name__


assert np.array_equal(restored(whole), saved)
assert restored(whole, np.zeros((64, 64), np.float32)).shape == (4096,)
data = max((path for path in whole.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
outcomes = Counter()
for place in range(0, data.stat().st_size, 97):
    copy = work / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(whole, copy)
    content = bytearray(data.read_bytes())
    content[place] ^= 1
    (copy / data.relative_to(whole)).write_bytes(content)
    found = restored(copy)
    same = not isinstance(found, str) and np.array_equal(found, saved)
    outcomes[found if isinstance(found, str) else "as saved" if same else "other numbers, no error"] += 1
print(dict(outcomes))
assert outcomes["other numbers, no error"] > sum(outcomes.values()) / 2, "behaviour changed"
PY
