#!/usr/bin/env bash
# orbax-checkpoint 0.12.8 (CheckpointManager), jax 0.10.2, Python 3.11.
#
# Expected: best_fn, best_mode="min" and max_to_keep=3 keep the three checkpoints of the lowest evaluation loss, and one
# whose loss is NaN ranks last.
# Seen: checkpoints are sorted by the bare number, and every comparison with NaN is false, so a NaN splits the list into
# parts that are never merged. After losses of 2.5, 2.0, 1.8, NaN, 4.0, 3.5 and 3.2 those of 1.8 and 2.0 are gone and
# 4.0, 3.5 and 3.2 are kept; best_step names 3.2. With max_to_keep=1 the NaN itself replaces the best. The same losses
# without the NaN are kept rightly.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2 orbax-checkpoint==0.12.8 \
  numpy==2.4.6 flax==0.12.8
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - "$folder" <<'PY'
import logging
import math
from pathlib import Path
import sys

import numpy as np
import orbax.checkpoint as ocp

logging.disable(logging.CRITICAL)
LOSSES = [2.5, 2.0, 1.8, math.nan, 4.0, 3.5, 3.2]


def left(name, losses, keep):
    """Losses of the checkpoints on disk after a run, and that of best_step."""
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, best_fn=lambda metrics: metrics["loss"], best_mode="min")
    with ocp.CheckpointManager(Path(sys.argv[1]) / name, options=options) as manager:
        for step, loss in enumerate(losses):
            manager.save(step, args=ocp.args.StandardSave({"w": np.ones(3)}), metrics={"loss": loss})
            manager.wait_until_finished()
        return sorted(losses[step] for step in manager.all_steps()), losses[manager.best_step()]


control = left("control", [loss for loss in LOSSES if loss == loss], 3)
spoiled, single = left("spoiled", LOSSES, 3), left("single", LOSSES[:4], 1)
print(f"without the NaN: kept {control[0]}, best {control[1]}")
print(f"with the NaN: kept {spoiled[0]}, best {spoiled[1]}; the first four steps with max_to_keep=1: kept {single[0]}")
assert control == ([1.8, 2.0, 2.5], 1.8), "the control is off"
assert spoiled == ([3.2, 3.5, 4.0], 3.2), "behaviour changed"
assert math.isnan(single[0][0]), "behaviour changed"
PY
