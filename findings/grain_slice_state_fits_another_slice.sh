#!/usr/bin/env bash
# grain 0.2.18, Python 3.11 and 3.12.
#
# Expected: each host reads its slice, dataset[host::hosts], and keeps its iterator's state; where the job goes on with
# another number of hosts, the states are refused, as those of a DataLoader with an IndexSampler are.
# Seen: a state is a position in whatever slice it meets. States of 4 hosts that read 30 of 96 batches, set on 2 hosts,
# are taken without a word: 240 of the 480 records that the job has seen come again.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check grain==0.2.18
"$folder/venv/bin/python" - <<'PY'
import itertools

import grain

RECORDS, BATCH, STEPS = 1536, 16, 30


def open_slice(host, hosts):
    records = grain.MapDataset.source(list(range(RECORDS))).shuffle(seed=0)
    return iter(records[host::hosts].to_iter_dataset().batch(BATCH // hosts))


seen, states = set(), []
for host in range(4):
    batches = open_slice(host, 4)
    seen |= {int(record) for batch in itertools.islice(batches, STEPS) for record in batch}
    states.append(batches.get_state())
after = []
for host in range(2):
    batches = open_slice(host, 2)
    batches.set_state(states[host])
    after += [int(record) for batch in batches for record in batch]
again = len(seen & set(after))
print(f"before the stop {len(seen)} records of {RECORDS}; after it {again} of them again")
assert (len(seen), again) == (480, 240), "behaviour changed"
PY
