"""One of several processes that test failures of each other: python -m tests.together_process CASE ID COUNT PORT
FOLDER
"""

from pathlib import Path
import time

import jax
from jax.experimental import multihost_utils

from diversity_jax.core import cli
from diversity_jax.core.errors import InputError
from diversity_jax.training.distributed import DistributedConfig, start_distributed
from diversity_jax.training.runtime import check_shared, in_first_process, shared_failures, together


def main(arguments: list[str]) -> None:
    case, number, count, port, folder = arguments
    own = int(number)
    start_distributed(
        DistributedConfig(coordinator=f"localhost:{port}", num_processes=int(count), process_id=own, timeout_seconds=60)
    )
    with shared_failures():
        print("joined", time.time(), flush=True)
        act(case, own, int(count), Path(folder))
        print("done", flush=True)


def act(case: str, own: int, count: int, folder: Path) -> None:
    """Runs the part of a case that belongs to process `own`."""

    def fail() -> None:
        raise InputError("prepared=/data/mixture: no such folder")

    if case == "none":
        together(lambda: time.sleep(own))
        in_first_process(lambda: None)
        check_shared(folder, "output_dir")
    elif case == "first":
        in_first_process(fail)
    elif case == "last":
        together(fail if own == count - 1 else lambda: None)
    elif case == "folder":
        check_shared(folder if own != 1 else folder / "elsewhere", "output_dir")
    elif case in ("collective", "stuck"):
        multihost_utils.sync_global_devices("begin")
        if own == count - 1:
            raise ValueError("a row that cannot be read")
        if case == "stuck":  # as a process whose GPUs wait for those of another
            time.sleep(600)
        multihost_utils.sync_global_devices("never")
    assert jax.process_count() == count


if __name__ == "__main__":
    cli.run_plain(main, __doc__)
