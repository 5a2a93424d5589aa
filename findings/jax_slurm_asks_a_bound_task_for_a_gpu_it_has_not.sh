#!/usr/bin/env bash
# jax 0.12.0.1 (also 0.10.2), Python 3.12. The environments are those that srun of Slurm 22.05.8 made.
#
# Expected: jax.distributed.initialize() without arguments takes the GPUs of a Slurm task, as its docstring promises.
# Seen: it takes the ordinal SLURM_LOCALID whatever the task was given. A task that Slurm bound to a GPU of its own
# (--gpus-per-task=1, CUDA_VISIBLE_DEVICES=3) sees one device, ordinal 0, and is told to use ordinal 3; one task a node with eight
# GPUs uses one and leaves seven idle, without a word. Open MPI's detection does the same with the local rank.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.12}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check jax==0.12.0.1 jaxlib==0.12.0
cat >"$folder/start.py" <<'PY'
import os
import sys

import jax
from jax._src import xla_bridge

jax.distributed.initialize(num_processes=1, process_id=0)  # the others need not run to see what is chosen
visible, taken = os.environ["CUDA_VISIBLE_DEVICES"], xla_bridge.CUDA_VISIBLE_DEVICES.value
print(f"{sys.argv[1]:16} CUDA_VISIBLE_DEVICES={visible:16} jax_cuda_visible_devices={taken}")
assert taken == os.environ["SLURM_LOCALID"], "behaviour changed"
PY
start() { # TITLE LOCAL_ID TASKS VISIBLE
  JAX_PLATFORMS=cpu SLURM_JOB_ID=$((RANDOM % 4096)) SLURM_STEP_NODELIST=localhost SLURM_NTASKS="$3" SLURM_PROCID="$2" SLURM_LOCALID="$2" \
    SLURM_GPUS_ON_NODE=8 CUDA_VISIBLE_DEVICES="$4" "$folder/venv/bin/python" "$folder/start.py" "$1"
}
start "bound to one" 3 8 3
start "one task a node" 0 1 0,1,2,3,4,5,6,7
