r"""The paper's ablation of the cluster agent: effects of K, N, J, M, the stages and the judge on a corpus's score.

    python -m diversity_jax.study --config configs/studies/agent.py --config.dry_run=True
    # without a language model: minutes on any CPU
    python -m diversity_jax.study --config configs/studies/agent.py --config.recipe.score.corpus=texts.jsonl.gz \
        --config.recipe.score.judge=offline --config.only="setting=base|K 5|K 15|K 20|N 100|N 1000"

Nothing is trained. Data: documents of the Topic template over 300,000 topics (data/topic), and hand-written criteria
(data/criteria.json). Judges: OPENAI_API_KEY, and for Llama an OpenAI-compatible server on 127.0.0.1:8000. Hardware: any
CPU.
Expected: the page compares the paper's cluster scores with these; effective clusters should not depend on K, N, J and
M.
"""

from diversity_jax.cluster_agent import AgentConfig
from diversity_jax.scoring.config import ScoreConfig
from diversity_jax.study.config import Factor, Level, Recipe, StudyConfig


def _level(name: str, published: float | None, **fields: object) -> Level:
    results = {} if published is None else {"scored cluster_score": published}
    return Level(name=name, set={field.replace("__", "."): value for field, value in fields.items()}, published=results)


LEVELS = (
    _level("base", 3.99),
    *(
        _level(f"K {k}", score, score__agent__samples_per_grouping=k)
        for k, score in ((5, 5.12), (15, 3.48), (20, 3.13))
    ),
    *(_level(f"N {n}", score, score__agent__groupings=n) for n, score in ((100, 4.15), (1000, 3.71), (10_000, 4.02))),
    _level("J 3", None, score__agent__samples_per_proposal=3),
    _level("J 10", None, score__agent__samples_per_proposal=10),
    _level("M 5 x 10", None, score__agent__proposals=10),
    _level("M 5 x 40", None, score__agent__proposals=40),
    _level(
        "hand-written criteria, no second look",
        2.67,
        score__agent__criteria="data/criteria.json",
        score__agent__verify=False,
    ),
    _level("no second look", 3.74, score__agent__verify=False),
    _level("GPT-3.5", 3.83, score__judge="openai:gpt-3.5-turbo"),
    _level("GPT-4o", 3.92, score__judge="openai:gpt-4o"),
    _level(
        "Llama-3.1",
        3.76,
        score__judge="openai:meta-llama/Llama-3.1-8B-Instruct",
        score__judge_base_url="http://127.0.0.1:8000/v1",
    ),
)


def get_config() -> StudyConfig:
    return StudyConfig(
        name="agent",
        output_dir="runs/studies/agent",
        factors=(Factor(name="setting", levels=LEVELS),),
        seeds=(0, 1, 2),
        seed_fields=("score.agent.seed",),
        recipe=Recipe(
            score=ScoreConfig(
                corpus="data/topic/*.jsonl.zst",
                judge="openai:gpt-4",
                agent=AgentConfig(groupings=5000, samples_per_grouping=10),
            ),
        ),
    )
