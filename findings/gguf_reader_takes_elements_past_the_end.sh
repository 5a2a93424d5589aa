#!/usr/bin/env bash
# gguf 0.19.0 (llama.cpp's Python package), numpy 2.4.6, Python 3.11.
#
# Expected: a GGUF file that ends within a list of its metadata is refused, and a count that cannot fit is refused at once.
# Seen: numbers past the end of the file are empty arrays, so a file of 49 bytes that claims a list of 300,000 is read
# without an error, one Python object after another: 260 MB, and a time that grows with the claim, not with the file
# (a claim of 2^60 never ends). The values are missing only when somebody asks for them. A cut list of texts is noticed,
# as IndexError.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check gguf==0.19.0 numpy==2.4.6
"$folder/venv/bin/python" - "$folder" <<'PY'
from pathlib import Path
import struct
import sys
import time
import tracemalloc

import gguf

UINT8, ARRAY, CLAIMED = 0, 9, 300_000
path = Path(sys.argv[1]) / "short.gguf"
header = b"GGUF" + struct.pack("<IQQ", 3, 0, 1)  # version 3, no tensors, one entry
path.write_bytes(header + struct.pack("<Q", 1) + b"a" + struct.pack("<IIQ", ARRAY, UINT8, CLAIMED))
tracemalloc.start()
began = time.monotonic()
field = gguf.GGUFReader(path).fields["a"]
held = tracemalloc.get_traced_memory()[0]
elements = [part.size for part in field.parts[-CLAIMED:]]
print(f"{path.stat().st_size} bytes: read in {time.monotonic() - began:.0f} s, {held / 1e6:.0f} MB held, no error")
print(f"{len(elements):,} elements, {sum(elements)} of them with a value")
assert len(elements) == CLAIMED, "behaviour changed"
assert sum(elements) == 0, "behaviour changed"
PY
