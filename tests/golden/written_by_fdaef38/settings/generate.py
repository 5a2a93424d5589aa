"""Passages over twelve topics in rounds of eight; the server's address comes from the command line."""

from dataclasses import replace

from configs import generate


def get_config():
    base = generate.get_config()
    grid = replace(
        base.grid, templates=("topic_styles_persona",), generations_per_topic=2, documents_per_round=8, documents=24
    )
    return replace(
        base,
        output_dir="synthesis",
        topics=replace(base.topics, source="topics.txt"),
        personas=replace(base.personas, source="personas.txt"),
        grid=grid,
        generators=(replace(base.generators[0], model="openai:gpt-4o-mini"),),
        engine=replace(base.engine, progress="off", max_in_flight=1, backoff_seconds=0.01),
    )
