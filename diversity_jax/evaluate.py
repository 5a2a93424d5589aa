"""Evaluate a checkpoint: the paper's eight benchmarks or any task of lm-evaluation-harness, and held-out text; also
against another checkpoint.

    python -m diversity_jax.evaluate --config configs/evaluate_paper.py --config.model.checkpoint=runs/quickstart
    python -m diversity_jax.evaluate --config configs/evaluate_paper.py --config.model.checkpoint=DIR \\
        --config.data_dir=FILES

Run again with the same output_dir to continue after an interruption; finished requests are not scored again.
"""

import logging
import sys

from diversity_jax.core import cli
from diversity_jax.core.artifacts import locked_folder
from diversity_jax.core.buckets import public_name, writes_to
from diversity_jax.core.files import local_folder, write_json
from diversity_jax.evaluation.config import EvaluateConfig

log = logging.getLogger(__name__)


@writes_to("output_dir")
def main(config: EvaluateConfig) -> None:
    """Writes results.json, samples, requests and the page; prints the page's path last."""
    import jax

    from diversity_jax.core import run_info
    from diversity_jax.evaluation import run
    from diversity_jax.report.pages import evaluation
    from diversity_jax.training.runtime import keep_programs

    keep_programs("user")
    output_dir = local_folder(config.output_dir, "output_dir")
    run.check_folder(config)
    with locked_folder(output_dir):
        results = run.evaluate(config)
        run_info.describe(sys.argv, config, jax.devices()).save(output_dir)
        write_json(output_dir / "results.json", results)
        for line in run.summary(results):
            log.info(line)
        page = evaluation.write(output_dir, results)
    print(public_name(page))


if __name__ == "__main__":
    cli.run(main, EvaluateConfig, __doc__)
