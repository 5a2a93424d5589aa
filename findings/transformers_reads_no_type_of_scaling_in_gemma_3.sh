#!/usr/bin/env bash
# transformers 5.24.0, torch 2.13.0 (CPU), Python 3.11.
#
# Expected: rope_scaling with `type`, as configurations were written before `rope_type`, scales the positions of every
# model: version 5 says that it still reads it, and does so in Llama.
# Seen: for Gemma 3 and OLMo 3 the factor stays in the configuration, but rope_type becomes "default": positions are not
# scaled, so that texts beyond the first length get other logits than meant. A log line calls the factor unrecognized.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
cat > "$folder/show.py" <<'PY'
import transformers
from transformers import AutoConfig, AutoModel

scaled = {}
for kind, has_kinds in {"llama": False, "gemma3_text": True, "olmo3": True}.items():
    sizes = {"num_hidden_layers": 1, "hidden_size": 32, "intermediate_size": 32, "vocab_size": 64, "head_dim": 8}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 4}
    if has_kinds:
        sizes["layer_types"] = ["full_attention"]
    base = {}
    for scaling in ({"type": "linear", "factor": 8.0}, None):
        config = AutoConfig.for_model(kind, **sizes, **({"rope_scaling": scaling} if scaling else {}))
        model = AutoModel.from_config(config)
        buffers = dict(model.rotary_emb.named_buffers())
        frequencies = buffers["full_attention_inv_freq" if has_kinds else "inv_freq"]
        base[scaling is not None] = float(frequencies[0])
    scaled[kind] = base[False] / base[True]
print(transformers.__version__, scaled)
assert scaled == {"llama": 8.0, "gemma3_text": 1.0, "olmo3": 1.0}, "behaviour changed"
PY
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.24.0 torch==2.13.0 numpy
"$folder/venv/bin/python" "$folder/show.py"
