r"""A component of textbook-like passages by one model, over your own topics.

    python -m diversity_jax.generate --config configs/generate.py --config.topics.source=topics.txt \
        --config.generators[0].model=openai:gpt-4o-mini --config.budget.max_dollars=5
    python -m diversity_jax.generate --config configs/generate.py --config.topics.source=topics.txt \
        --config.generators[0].model=openai:tiny --config.generators[0].base_url=http://127.0.0.1:8080/v1 \
        --config.schema_limits=True

topics.txt holds a topic a line. Hardware: any; `--config.dry_run=True` prints calls, tokens and dollars first. Result:
runs/generate/documents/*.jsonl.zst and runs/generate/report.html. `grid.templates` names other templates; those with
personas need --config.personas.source=FILE.
"""

from diversity_jax.synthesis.config import GenerateConfig, GeneratorConfig, GridConfig, TopicsConfig


def get_config() -> GenerateConfig:
    return GenerateConfig(
        output_dir="runs/generate",
        topics=TopicsConfig(),
        grid=GridConfig(templates=("topic_styles",), generations_per_topic=10),
        generators=(GeneratorConfig(model="openai:gpt-4o-mini"),),
    )
