#!/usr/bin/env bash
# transformers 5.24.0, Python 3.11.
#
# Expected: a rope_theta that config.json names is the base of the rotary wavelengths, or the file is refused.
# Seen: in two kinds of file it is replaced by the class's default without an error or a log line:
#   - a rope_scaling (the usual recipe for longer contexts) beside rope_parameters, in which version 5 saves rope_theta:
#     the whole of rope_parameters is dropped;
#   - OLMo 3 in version 4's style with a rope_theta of its own: the entry is taken out by the layers that see all tokens,
#     and those with a window get 500000.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.24.0
"$folder/venv/bin/python" - <<'PY'
from transformers import LlamaConfig, Olmo3Config

saved = LlamaConfig(rope_theta=500000.0).to_dict()
longer = LlamaConfig.from_dict({**saved, "rope_scaling": {"rope_type": "linear", "factor": 4.0}})
print("saved:", saved["rope_parameters"])
print("with rope_scaling beside:", longer.rope_parameters)
assert saved["rope_parameters"]["rope_theta"] == 500000.0, "behaviour changed"
assert longer.rope_parameters["rope_theta"] == 10000.0, "behaviour changed"

olmo = Olmo3Config.from_dict({"model_type": "olmo3", "rope_theta": 20000.0})
print("OLMo 3 with rope_theta 20000:", olmo.rope_parameters)
assert olmo.rope_parameters["full_attention"]["rope_theta"] == 20000.0, "behaviour changed"
assert olmo.rope_parameters["sliding_attention"]["rope_theta"] == 500000.0, "behaviour changed"
PY
