"""Complete synthesis runs with a server on loopback: files are complete, checked, resumable and ready for a mixture."""

import asyncio
from collections import Counter
import json
import logging
import multiprocessing
import random
import re
import sqlite3
import time
from types import SimpleNamespace

import pytest

from diversity_jax import generate
from diversity_jax.cluster_agent import AgentConfig
from diversity_jax.core.errors import InputError
from diversity_jax.core.run_info import describe
from diversity_jax.corpus import CorpusConfig, open_corpus
from diversity_jax.llm import BudgetConfig, EngineConfig
from diversity_jax.report.pages import synthesis
from diversity_jax.synthesis.config import (
    GenerateConfig,
    GeneratorConfig,
    GridConfig,
    PersonasConfig,
    QualityConfig,
    SteeringConfig,
    SynthesisConfig,
    TopicsConfig,
)
from diversity_jax.synthesis.run import run
from diversity_jax.synthesis.store import Store
from diversity_jax.synthesis.templates import TEMPLATES
from diversity_jax.synthesis.topic_expansion import load_topics
from tests.kills import kills
from tests.llm_server import Faults, serve, serve_process
from tests.synthesis_answers import generation, refusing, write
from tests.words_by_language import WORDS, as_text, changed, random_words

PERSONAS = (
    "A baker of bread",
    "A diver in cold seas",
    "A judge of horses",
    "A student of law",
    "A maker of glass",
    "A driver of trains",
)


@pytest.fixture
def folder(tmp_path):
    lines = [f"field {n % 3}/area {n % 6}/{'narrow' if n % 2 else 'wide'} subject {n}\tone, two" for n in range(24)]
    (tmp_path / "topics.txt").write_text("\n".join(lines))
    (tmp_path / "personas.txt").write_text("\n".join(PERSONAS))
    return tmp_path


def settings(folder, url, **changes):
    generators = changes.pop("generators", (GeneratorConfig(model="openai:gpt-4o-mini", base_url=url),))
    common = {
        "output_dir": str(folder / "out"),
        "topics": TopicsConfig(source=str(folder / "topics.txt")),
        "personas": PersonasConfig(source=str(folder / "personas.txt")),
        "grid": GridConfig(templates=("topic_styles_persona",), generations_per_topic=2, documents_per_round=16),
        "engine": EngineConfig(progress="off", max_in_flight=16, backoff_seconds=0.01),
    }
    return SynthesisConfig(generators=generators, **(common | changes))


def documents(store):
    return list(store.documents())


def test_every_template_gives_a_component(folder):
    with serve(generation) as server:
        grid = GridConfig(templates=tuple(TEMPLATES), generations_per_topic=1, documents_per_round=40)
        store = run(settings(folder, server.openai_url, grid=grid))
        stages = {json.loads(body)["response_format"]["json_schema"]["name"] for _, body in server.bodies}
    assert stages <= {f"generate_{name}" for name in TEMPLATES}
    written = documents(store)
    assert Counter(document["template"] for document in written) == dict.fromkeys(TEMPLATES, 24)
    assert len({document["id"] for document in written}) == 96
    assert all((document["persona"] in PERSONAS) == ("persona" in document["template"]) for document in written)
    assert {document["style"] for document in written if "styles" in document["template"]} <= {
        "textbook_narrative",
        "textbook_academic",
        "blog_post",
        "wikihow",
    }
    corpus = list(open_corpus(CorpusConfig(source=store.documents_pattern)))
    assert [document.text for document in corpus] == [document["text"] for document in written]
    assert all(
        document["prompt_hash"] and document["model"] == "openai:gpt-4o-mini" and document["seed"] == 0
        for document in written
    )
    assert (synthesis.write(store, [])).read_text().count("<section") >= 5


def test_flaws_are_counted_drawn_again_and_kept(folder):
    draw = random.Random(0)

    def sometimes(stage, samples, payload):
        made = generation(stage, samples, payload)
        if draw.random() < 0.25:
            made["question"]["answer"] = "none of these"
        return made

    with serve(sometimes, faults=Faults(truncated=0.1, refused=0.1)) as server:
        store = run(settings(folder, server.openai_url))
        attempts = server.attempts
    outcomes = sum(
        (Counter(generation_round["outcomes"]["openai:gpt-4o-mini"]) for generation_round in store.rounds), Counter()
    )
    rejects = list(store.rejects())
    assert outcomes.total() == attempts
    assert Counter(reject["reason"] for reject in rejects) == outcomes - Counter(accepted=outcomes["accepted"])
    assert {"truncated", "refused", "answer_not_an_option"} <= set(outcomes)
    assert len(documents(store)) + sum(generation_round["given_up"] for generation_round in store.rounds) == 48
    assert max(reject["attempt"] for reject in rejects) <= 2


@pytest.mark.parametrize("documents_per_round", [3, 16])
def test_a_generator_that_always_refuses_stops_before_the_budget_is_gone(folder, documents_per_round):
    with serve(refusing) as server:
        grid = GridConfig(generations_per_topic=2, documents_per_round=documents_per_round)
        config = settings(folder, server.openai_url, grid=grid, budget=BudgetConfig(max_calls=10_000))
        with pytest.raises(InputError, match=r"none of its last 30 answers was usable \(refused 30\)"):
            run(config)
        assert server.attempts < 60
    assert len(list(Store(config.output_dir).rejects())) == server.attempts


def test_one_bad_generator_of_two_leaves_its_cells_to_the_other(folder):
    def by_model(stage, samples, payload):
        return (refusing if payload["model"] == "bad" else generation)(stage, samples, payload)

    with serve(by_model) as server:
        two = tuple(GeneratorConfig(model=f"openai:{name}", base_url=server.openai_url) for name in ("bad", "good"))
        store = run(
            settings(folder, server.openai_url, generators=two, quality=QualityConfig(give_up_after=8, attempts=9))
        )
    written = documents(store)
    assert len({document["id"] for document in written}) == len(written) == 48
    assert {document["generator"] for document in written} == {"openai:good"}
    assert "openai:bad" in store.rounds[0]["stopped_generators"]


@pytest.mark.parametrize("near_duplicate", [0.6, 1.0])
def test_one_that_repeats_itself_is_found_out(folder, near_duplicate):
    same = write("one", random.Random(0), persona=True, topics=False)
    with serve(lambda *_: same) as server, pytest.raises(InputError, match="near_duplicate"):
        run(settings(folder, server.openai_url, quality=QualityConfig(near_duplicate=near_duplicate)))


@pytest.mark.parametrize("language", WORDS)
def test_every_language_meets_the_same_floor_and_its_near_copies_are_found(folder, language):
    draw, originals, repeats = random.Random(0), [], []

    def sometimes_repeating(stage, samples, payload):
        if originals and draw.random() < 0.3:
            first, *others = draw.choice(originals)
            passages = [changed(draw, first, language), *others]  # one word of 120
            repeats.append(passages)
        else:
            passages = [random_words(draw, language, 40) for _ in range(3)]
            originals.append(passages)
        made = write("one", draw, persona=True, topics=False, language=language)
        for passage, words in zip(made["passages"], passages, strict=True):
            passage["text"] = as_text(words, language)
        return made

    with serve(sometimes_repeating) as server:
        store = run(settings(folder, server.openai_url, quality=QualityConfig(max_passage_words=50, attempts=9)))
    outcomes = sum(
        (Counter(generation_round["outcomes"]["openai:gpt-4o-mini"]) for generation_round in store.rounds), Counter()
    )
    assert outcomes.keys() == {"accepted", "near_duplicate"}
    assert outcomes["accepted"] == len(documents(store)) == 48
    assert len(repeats) > 10
    assert 0.95 * len(repeats) <= outcomes["near_duplicate"] <= len(repeats)
    assert (language == "english") == any(
        re.search(r"Question|Answer|Explanation", document["text"]) is not None for document in documents(store)
    )


def test_the_budget_ends_a_run_that_goes_on_later(folder):
    with serve(generation) as server:
        store = run(settings(folder, server.openai_url, budget=BudgetConfig(max_calls=20)))
        assert len(documents(store)) == 20
        assert "max_calls" in store.rounds[-1]["ended"]
        store = run(settings(folder, server.openai_url))
        assert server.attempts == 48
    assert len({document["id"] for document in documents(store)}) == 48
    assert synthesis.write(store, []).exists()


def test_other_settings_in_the_same_folder_are_refused_and_nothing_is_recorded(folder):
    with serve(generation) as server:
        config = settings(folder, server.openai_url)
        generate.main(GenerateConfig(**vars(config)))
        before = {path: path.read_bytes() for path in (folder / "out").rglob("*.json*")}
        assert folder / "out" / "run.json" in before
        with pytest.raises(InputError, match=r"begun with other settings \(seed\)"):
            generate.main(GenerateConfig(**{**vars(config), "seed": 1}))
        describe(["python -m diversity_jax.train"], {"optimizer": {}}).save(folder / "other")
        with pytest.raises(InputError, match="holds no generated component, but what"):
            generate.main(GenerateConfig(**{**vars(config), "output_dir": str(folder / "other")}))
        assert {path: path.read_bytes() for path in (folder / "out").rglob("*.json*")} == before


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"personas": PersonasConfig()}, "personas: there are none"),
        ({"topics": TopicsConfig()}, "topics: none of source, documents and root"),
        ({"topics": TopicsConfig(source="nowhere.txt")}, "nowhere.txt: no such file"),
        ({"grid": GridConfig(templates=("nothing",))}, "'nothing' is unknown"),
        ({"temperature": 3.0}, "temperature: 3.0 is outside 0 to 2"),
    ],
)
def test_bad_settings_are_one_line(folder, changes, words):
    with pytest.raises(InputError, match=words):
        run(settings(folder, "http://127.0.0.1:9/v1", **changes))


def test_a_file_of_topics_that_has_changed_since_is_said(folder, caplog):
    config = settings(folder, "http://127.0.0.1:9/v1")
    expander = SimpleNamespace(calls=0, dollars=0.0, failures={})
    for addition, is_told in (("", False), ("", False), ("\nfield 9/another", True)):
        with (folder / "topics.txt").open("a") as file:
            file.write(addition)
        assert len(asyncio.run(load_topics(config, expander, Store(config.output_dir)))) == 24
        assert ("topics.txt: has changed since" in caplog.text) == is_told


def test_empty_files_are_one_line(folder):
    for name, words in (("topics.txt", "topics: there are none"), ("personas.txt", "holds no persona")):
        content = (folder / name).read_text()
        (folder / name).write_text("\n \n")
        with pytest.raises(InputError, match=words):
            run(settings(folder, "http://127.0.0.1:9/v1"))
        (folder / name).write_text(content)


def rich_and_dull(stage, samples, payload):
    """One generator writes on the subject that is asked for, the other on one of two subjects whatever is asked."""
    if payload["model"] != "dull":
        return generation(stage, samples, payload)
    return write(f"dull {random.randrange(2)}", random.Random(), persona=True, topics=False)


def generators_named(url, *names):
    return tuple(GeneratorConfig(model=f"openai:{name}", base_url=url) for name in names)


def wide_topics(folder, count):
    (folder / "topics.txt").write_text("\n".join(f"field/area {n % 9}/wide subject {n}" for n in range(count)))


def test_the_loop_moves_to_the_arm_that_pays_and_says_so(folder):
    wide_topics(folder, 150)
    with serve(rich_and_dull) as server:
        two = generators_named(server.openai_url, "rich", "dull")
        grid = GridConfig(
            templates=("topic_styles_persona",),
            generations_per_topic=4,
            documents_per_round=100,
            mixed=False,
            documents=500,
        )
        steering = SteeringConfig(arms=("generator",), min_gain_per_dollar=0.5, new_seeds=4)
        store = run(settings(folder, server.openai_url, generators=two, grid=grid, steering=steering))
    made = Counter(document["generator"] for document in documents(store))
    assert made["openai:rich"] > 2 * made["openai:dull"]
    assert "topic_styles_persona x openai:dull" in store.rounds[-1]["arms_stopped"]
    assert store.rounds[-1]["effective_clusters"] > 2 * store.rounds[1]["effective_clusters"]
    assert any(generation_round["new_topics"] for generation_round in store.rounds)
    text = synthesis.write(store, []).read_text()
    assert "What the loop decided" in text
    assert "stopped in round" in text


def test_the_judge_can_be_the_measure(folder):
    wide_topics(folder, 60)
    with serve(rich_and_dull) as server:
        two = generators_named(server.openai_url, "rich", "dull")
        grid = GridConfig(
            templates=("topic_styles_persona",),
            generations_per_topic=2,
            documents_per_round=80,
            mixed=False,
            documents=160,
        )
        agent = AgentConfig(samples_per_grouping=10, criteria_sets=1, proposals=3)
        steering = SteeringConfig(arms=("generator",), metric="judge", groupings_per_look=24)
        store = run(settings(folder, server.openai_url, generators=two, grid=grid, steering=steering, agent=agent))
    for generation_round in store.rounds:
        gains = {verdict["arm"].split(":")[1]: verdict["gain"] for verdict in generation_round["verdicts"]}
        assert gains["rich"] > gains["dull"]
    made = store.rounds[-1]["arm_documents"]
    assert made["topic_styles_persona x openai:rich"] > 5 * made["topic_styles_persona x openai:dull"]


def test_topics_and_personas_can_come_from_the_model(folder):
    (folder / "documents.txt").write_text("Kilns climb a hundred degrees an hour.")
    documents_ = CorpusConfig(source=str(folder / "documents.txt"))
    with serve(generation) as server:
        config = settings(
            folder, server.openai_url, topics=TopicsConfig(root="Pottery", levels=3, branching=4, limit=12)
        )
        config = settings(
            folder, server.openai_url, topics=config.topics, personas=PersonasConfig(documents=documents_, shown=2)
        )
        store = run(config)
        assert len({document["topic"] for document in documents(store)}) == 12
        other = settings(
            folder, server.openai_url, output_dir=str(folder / "other"), topics=TopicsConfig(documents=documents_)
        )
        assert {document["topic"] for document in documents(run(other))} == {"Knowledge/Kilns"}


def _child(config):
    logging.disable(logging.CRITICAL)
    run(config)


def _paid(path):
    with sqlite3.connect(path) as connection:
        return (
            connection.execute("SELECT count(*) FROM answers").fetchone()[0]
            + connection.execute("SELECT count(*) FROM failures").fetchone()[0]
        )


@pytest.mark.slow
def test_killed_at_random_moments_nothing_is_paid_twice_written_twice_or_lost(folder):
    fork, draw = multiprocessing.get_context("fork"), random.Random(3)
    in_flight, lost, killed, times = 4, 0, 0, kills(3)
    with serve_process(
        "tests.synthesis_answers:generation", latency_seconds=0.02, faults=Faults(refused=0.1)
    ) as server:
        config = settings(
            folder,
            server.openai_url,
            grid=GridConfig(templates=("topic_styles_persona",), generations_per_topic=12, documents_per_round=24),
            engine=EngineConfig(progress="off", max_in_flight=in_flight),
            quality=QualityConfig(attempts=6),
        )
        while True:
            child = fork.Process(target=_child, args=(config,))
            before = server.stats()["attempts"]
            child.start()
            if killed < times:
                until = before + draw.randrange(1, 16)
                while child.is_alive() and server.stats()["attempts"] < until:
                    time.sleep(0.003)
                child.kill()
            child.join()
            if child.exitcode == 0:
                break
            killed += 1
            time.sleep(0.05)
            now_lost = server.stats()["attempts"] - lost - _paid(folder / "out" / "ledger.sqlite")
            assert 0 <= now_lost <= 3 * in_flight  # what was in flight; nothing that was on disk is asked again
            lost += now_lost
        assert server.stats()["attempts"] - lost == _paid(folder / "out" / "ledger.sqlite")
    assert killed == times
    store = Store(folder / "out")
    ids = [document["id"] for document in store.documents()]
    assert len(ids) == len(set(ids)) == 24 * 12 - sum(generation_round["given_up"] for generation_round in store.rounds)
    accepted_and_refused = len(ids) + sum(1 for _ in store.rejects())
    assert accepted_and_refused == _paid(
        folder / "out" / "ledger.sqlite"
    )  # every paid answer is a document or on record
