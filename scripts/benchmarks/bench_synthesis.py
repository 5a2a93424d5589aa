#!/usr/bin/env python
"""Time and memory of merging many topics, and generations per second against a server that answers at once.

    python scripts/benchmarks/bench_synthesis.py topics --topics=620000
    python scripts/benchmarks/bench_synthesis.py generations --calls=6000 --in_flight=64

`topics` makes paths of the demo grammar's words, a tenth of them twice with another spelling, and prints how many of
those were merged and how many different topics were merged wrongly; limits are 15 minutes and 6 GB. `generations`
requests documents of topic_styles_persona from a server in another process: through the engine alone (response cache on
disk), and through full rounds with their checks; the limit is 1,000 a second through the engine.
"""

import argparse
import asyncio
import dataclasses
import itertools
import os
from pathlib import Path
import random
import resource
import sys
import tempfile
import time

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from diversity_jax.llm import Engine, EngineConfig
from diversity_jax.synthesis.arms import Cell, GenerationGrid
from diversity_jax.synthesis.config import GeneratorConfig, GridConfig, QualityConfig, SynthesisConfig
from diversity_jax.synthesis.demo_grammar import load_grammar
from diversity_jax.synthesis.generate_round import RoundGenerator
from diversity_jax.synthesis.templates import TEMPLATES
from diversity_jax.synthesis.topic_deduplication import merge_topics
from diversity_jax.synthesis.topics import Topic
from tests.llm_server import serve_process
from tests.synthesis_answers import words_for

_SPELLINGS = {
    "exact": lambda names, draw: names,
    "upper case": lambda names, draw: (*names[:-1], names[-1].upper()),
    "filler": lambda names, draw: (*names[:-1], f"Introduction to the {names[-1]}"),
    "plural": lambda names, draw: (*names[:-1], names[-1] + "s"),
    "typing error": lambda names, draw: (*names[:-1], _mistyped(names[-1], draw)),
}


def _mistyped(name: str, draw: random.Random) -> str:
    """Two letters of the longest word change places."""
    word = max(name.split(), key=len)
    position = draw.randrange(1, len(word) - 2)
    return name.replace(word, word[:position] + word[position + 1] + word[position] + word[position + 2 :])


def make_topics(count: int, seed: int = 0) -> tuple[list[Topic], list[tuple[int, str]]]:
    """Different topics and, mixed among them, a tenth again; for each its topic's number and how it was spelt ("" for
    the first).
    """
    draw = random.Random(seed)
    fields = load_grammar().fields
    word_lists = [
        (field, position)
        for field in fields
        for position in itertools.product(field.things, field.parts, field.processes, field.quantities)
    ]
    people = [(field.name, person) for field in fields for person in field.people]
    words = unlike_words(600)
    different: dict[str, tuple[str, ...]] = {}  # no two have the same last name
    while len(different) < count * 10 // 11:
        field, (thing, part, process, quantity) = draw.choice(word_lists)
        _, person = draw.choice(people)
        middle = draw.choice((f"{thing} and {person}", f"{thing} in {draw.choice(field.places)}", thing))
        first, second = sorted(draw.sample(words, 2))
        above = (field.name, middle, f"{quantity} of the {part}", f"{process} by the {person}")
        different.setdefault(f"{first} {second} {process}", above)
    names = [(*above, last) for last, above in different.items()]
    numbered = [(number, "", item) for number, item in enumerate(names)]
    for number in draw.sample(range(len(names)), count - len(names)):
        kind = draw.choice(list(_SPELLINGS))
        numbered.append((number, kind, _SPELLINGS[kind](names[number], draw)))
    draw.shuffle(numbered)
    return [Topic(item) for _, _, item in numbered], [(number, kind) for number, kind, _ in numbered]


def unlike_words(count: int) -> list[str]:
    """Made-up words, no two of which could be taken for spellings of one word."""
    from rapidfuzz import fuzz, process

    results: list[str] = []
    for word in words_for("bench", 20 * count):
        if len(results) < count and not process.extractOne(word, results, scorer=fuzz.ratio, score_cutoff=70):
            results.append(word)
    return results


def bench_topics(count: int) -> None:
    """Prints time, memory, and what was found."""
    topics, truth = make_topics(count)
    began = time.perf_counter()
    merged = merge_topics(topics)
    taken = time.perf_counter() - began
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(
        f"{merged}\n{taken:.0f} s of 900 ({taken / 900:.2f}), {memory:.2f} GB of 6 ({memory / 6:.2f}), load "
        f"{os.getloadavg()[0]:.1f}"
    )
    remaining = {topic.path for topic in merged.topics}
    spellings: dict[int, list[tuple[str, bool]]] = {}
    for topic, (number, kind) in zip(topics, truth, strict=True):
        spellings.setdefault(number, []).append((kind, topic.path in remaining))
    print(
        f"{len(spellings):,} different topics, "
        f"{sum(not any(stands for _, stands in item) for item in spellings.values()):,} merged wrongly"
    )
    for kind in _SPELLINGS:
        planted = [item for item in spellings.values() if any(spelling == kind for spelling, _ in item)]
        results = sum(sum(stands for _, stands in item) <= 1 or kind == "exact" for item in planted)
        print(f"planted again, {kind:13} {len(planted):7,}, found {results / max(len(planted), 1):.1%}")


def _grid(config: SynthesisConfig) -> GenerationGrid:
    topics = [Topic(("Field", f"area {number % 50}", f"subject {number}"), ("one", "two")) for number in range(2000)]
    personas = [f"A reader of kind {number} who likes the subject and knows little of it" for number in range(200)]
    return GenerationGrid(config, {"topic_styles_persona": TEMPLATES["topic_styles_persona"]}, topics, personas)


async def bench_generations(calls: int, in_flight: int) -> None:
    """Prints calls a second and CPU a call, of the engine alone and of full rounds."""
    with serve_process("scripts.benchmarks.bench_synthesis:instant") as server, tempfile.TemporaryDirectory() as folder:
        generator = GeneratorConfig(model="openai:m", base_url=server.openai_url)
        config = SynthesisConfig(
            generators=(generator,),
            grid=GridConfig(),
            quality=QualityConfig(near_duplicate=0.99),
            engine=EngineConfig(max_in_flight=in_flight, progress="off"),
        )
        grid = _grid(config)
        arm = next(iter(grid.arms))
        cells = [Cell(arm=arm, topic=number % 2000, generation=number // 2000) for number in range(calls)]
        for name in ("engine", "full round"):
            engine = dataclasses.replace(config.engine, ledger=f"{folder}/{name}.sqlite")
            async with Engine(generator.model, base_url=generator.base_url, config=engine) as opened:
                rounds = RoundGenerator(grid, {generator.label: opened}, config)
                requests = [grid.request(cell, ())[0] for cell in cells]
                wall, cpu = time.perf_counter(), time.process_time()
                if name == "engine":
                    await asyncio.gather(*map(opened.complete, requests))
                else:
                    await rounds.generate(cells, avoid=(), round_number=0)
                wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            print(
                (
                    f"{name:12} {calls / wall:7.0f} generations/s, {1e3 * cpu / calls:.2f} ms CPU each, load "
                    f"{os.getloadavg()[0]:.1f}"
                ),
                flush=True,
            )


_cached: dict = {}


def instant(stage: str, samples: list, payload: dict) -> str:
    """One answer, made once: the server costs next to nothing."""
    if not _cached:
        import json

        from tests.synthesis_answers import write

        _cached["answer"] = json.dumps(write("bench", random.Random(0), persona=True, topics=False, passages=4))
    return _cached["answer"]


def main():
    """Runs the chosen benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("topics", "generations"))
    parser.add_argument("--topics", type=int, default=620_000)
    parser.add_argument("--calls", type=int, default=6000)
    parser.add_argument("--in_flight", type=int, default=64)
    flags = parser.parse_args()
    if flags.what == "topics":
        bench_topics(flags.topics)
    else:
        asyncio.run(bench_generations(flags.calls, flags.in_flight))


if __name__ == "__main__":
    main()
