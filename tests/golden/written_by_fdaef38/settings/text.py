"""Four small components of demo text, for `python -m diversity_jax.generate`."""

from dataclasses import replace

from configs import quickstart_text

TOPICS = {"web": (40, 120), "varied": (60, 90), "lean": (6, 60), "dull": (2, 60)}


def get_config():
    base = quickstart_text.get_config()
    first = base.grammar[0]
    sizes = {"shortest_words": 50, "longest_words": 80}
    components = [
        replace(
            first,
            path=f"text/{name}.jsonl.gz",
            grammar=replace(first.grammar, topics=topics, documents=documents, seed=number, **sizes),
        )
        for number, (name, (topics, documents)) in enumerate(TOPICS.items())
    ]
    return replace(base, grammar=tuple(components))
