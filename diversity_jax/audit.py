"""How far hostile documents move a score: a copy of the sample with planted injections is scored beside the clean one.

python -m diversity_jax.audit --config configs/score.py --config.corpus=texts.jsonl.gz --config.agent.groupings=300
"""

import logging
from pathlib import Path

from diversity_jax.core import cli
from diversity_jax.core.files import write_json
from diversity_jax.scoring.config import ScoreConfig

log = logging.getLogger(__name__)


def main(config: ScoreConfig) -> None:
    """Audits every corpus of the configuration; writes `audit.json`, whose path it prints last."""
    from diversity_jax.cluster_agent import audit, open_judge
    from diversity_jax.scoring.run import open_corpora

    results = {}
    for name, corpus in open_corpora(config).items():
        judge = open_judge(config, [corpus], Path(config.output_dir) / "ledger.sqlite")
        result = audit(corpus, judge, config.agent, share=config.hostile_share)
        log.info("%s: %s", name, result)
        results[name] = result.to_json()
    path = Path(config.output_dir) / "audit.json"
    write_json(path, results)
    print(path)


if __name__ == "__main__":
    cli.run(main, ScoreConfig, __doc__)
