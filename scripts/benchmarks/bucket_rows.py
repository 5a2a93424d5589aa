"""Input wait, memory and requests of hosts that read a mixture's rows from a local Cloud Storage server at a set speed.

    python scripts/benchmarks/bucket_rows.py --hosts 4 --tokens-per-second 200000 --seconds 30

Each host is a process that reads its part of every batch, at that many tokens a second over all hosts, with the loader
and the read-ahead thread of training. Prints for each host the share of time spent waiting for rows after the first
batch, the growth of memory, the number of requests, and bytes requested over bytes of its own rows.
"""

import argparse
from fractions import Fraction
import os
from pathlib import Path
import resource
import subprocess
import sys
import tempfile
import time

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))


def host(url: str, number: int, options: argparse.Namespace) -> None:
    """Reads as one host, and prints how it went."""
    from diversity_jax.mixtures.mixture import Mixture
    from diversity_jax.prepare import rows
    from diversity_jax.training.data import ReadAhead

    asked, usual = [], rows.read_range

    def counted(path, start, size):
        asked.append((str(path), size))
        return usual(path, start, size)

    rows.read_range = counted
    mixture, batch = Mixture.load(url), options.batch_size
    loader, own = mixture.loader(batch_size=batch, cache_gb=options.cache_gb), batch // options.hosts
    part = slice(number * own, (number + 1) * own)
    pace = batch * mixture.sequence_length / options.tokens_per_second
    steps = int(options.seconds / pace)
    waits, memory, began = [], 0, 0.0
    batches = ReadAhead(lambda step: {"tokens": loader.batch(step, part).tokens}, 0, steps)
    for step, _, waited in batches:
        if step == 0:
            began, memory = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        else:
            waits.append(waited)
        time.sleep(max(0.0, began + (step + 1) * pace - time.perf_counter()))
    batches.close()
    seconds = time.perf_counter() - began
    rows = [size for path, size in asked if path.endswith(".bin")]
    used = steps * own * mixture.taken[0].prepared.row_bytes
    gained = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) / 1024
    speed = steps * own * mixture.sequence_length / seconds
    print(
        f"host {number} of {options.hosts}: {speed:,.0f} tokens/s, input wait {100 * sum(waits) / seconds:.2f} %, "
        f"memory +{gained:.0f} MB, {len(rows)} requests for {sum(rows):,} bytes of rows; {used:,} were used",
        flush=True,
    )


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--hosts", type=int, default=1)
    flags.add_argument("--tokens-per-second", type=float, default=200_000)
    flags.add_argument("--seconds", type=float, default=30)
    flags.add_argument("--batch-size", type=int, default=64)
    flags.add_argument("--cache-gb", type=float, default=1.0)
    flags.add_argument("--as-host", type=int)
    flags.add_argument("--url")
    options = flags.parse_args()
    if options.as_host is not None:
        host(options.url, options.as_host, options)
        return
    from diversity_jax.core.stores import remote
    from tests import gcs_server
    from tests.mixture_folders import build_mixture

    with tempfile.TemporaryDirectory() as scratch, gcs_server.serving() as environment:
        folder = build_mixture(
            Path(scratch) / "m", {"a": Fraction(1, 3), "b": Fraction(2, 3)}, sequence_length=1024, documents=20_000
        )
        os.environ.update(environment)
        url = f"gs://{gcs_server.BUCKET}/mixture"
        remote(url)[0].put(f"{folder}/", f"{gcs_server.BUCKET}/mixture/", recursive=True)
        processes = [
            subprocess.Popen(
                [sys.executable, __file__, *sys.argv[1:], "--as-host", str(number), "--url", url],
                env={**os.environ, "DIVERSITY_JAX_CACHE": f"{scratch}/cache{number}"},
            )
            for number in range(options.hosts)
        ]
        sys.exit(max(process.wait() for process in processes))


if __name__ == "__main__":
    main()
