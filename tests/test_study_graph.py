"""Steps of a study are keyed by all they depend on, run once by any number of processes, and survive kills."""

from collections import Counter
import dataclasses
import errno
import json
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from diversity_jax.core.errors import InputError
from diversity_jax.evaluation.config import EvaluateConfig, ModelSource
from diversity_jax.mixtures.config import BuildConfig, Component, MixtureConfig
from diversity_jax.model import LLAMA
from diversity_jax.study import run as study_run
from diversity_jax.study.config import Factor, Level, Recipe, StudyConfig, plan
from diversity_jax.study.graph import StepStore, dependents, run_steps, stale, step_states
from diversity_jax.study.run import stale_lines
from diversity_jax.synthesis.config import GenerateConfig, GrammarComponent
from diversity_jax.synthesis.demo_grammar import GrammarConfig
from diversity_jax.training.run import Config
from tests import study_worker
from tests.processes import wait_until


def worker(folder, seconds):
    settings = json.dumps({"folder": str(folder), "seconds": seconds})
    return subprocess.Popen([sys.executable, "-m", "tests.study_worker", settings])


def notes(folder):
    return Counter((folder / "notes.txt").read_text().splitlines())


def test_two_processes_do_no_step_twice(tmp_path):
    workers = [worker(tmp_path, 0.05), worker(tmp_path, 0.05)]
    assert [process.wait(60) for process in workers] == [0, 0]
    assert set(notes(tmp_path).values()) == {1}
    assert len(notes(tmp_path)) == 24


def test_killed_at_random_moments_it_goes_on_and_finished_steps_are_not_repeated(tmp_path):
    generator = random.Random(0)
    store, steps = StepStore(tmp_path / "steps"), study_worker.steps(0.05)
    for _ in range(4):
        process = worker(tmp_path, 0.05)
        wait_until((tmp_path / "notes.txt").exists, seconds=20)
        time.sleep(generator.uniform(0.0, 0.3))
        process.send_signal(signal.SIGKILL)
        process.wait()
        finished = set(step_states(steps, store).done)
        ends = {line for line in notes(tmp_path) if line.startswith("end")}
        assert len(ends) - len(finished) in (0, 1)  # between the end of a step and its record
    assert not step_states(steps, store).failed
    progress = run_steps(steps, store, study_worker.commands(tmp_path, store), study_worker.CODES)
    assert len(progress.done) == 12
    seen = notes(tmp_path)
    assert sum(seen[line] for line in seen if line.startswith("end")) <= 12 + 4
    assert all(seen[f"end {kind} {number}"] >= 1 for kind in study_worker.CODES for number in range(6))


def test_a_failed_step_stops_only_what_needs_it_and_is_tried_again_when_forgiven(tmp_path):
    store, steps = StepStore(tmp_path / "steps"), study_worker.steps(0.0, fail="first 2")
    progress = run_steps(steps, store, study_worker.commands(tmp_path, store), study_worker.CODES)
    assert (len(progress.done), len(progress.failed), len(progress.blocked)) == (10, 1, 1)
    key = progress.failed[0]
    assert store.failure(key)["reason"] == "this one cannot be done; it was asked to fail"
    assert "InputError" in store.log_file(key).read_text()
    store.clear_failures(list(steps))
    assert key in step_states(steps, store).waiting


def test_a_step_that_is_told_to_stop_is_neither_done_nor_failed(tmp_path):
    store, steps = StepStore(tmp_path / "steps"), study_worker.steps(0.0, pairs=1)

    def stopped(config):
        raise SystemExit(143)

    with pytest.raises(SystemExit):
        run_steps(steps, store, {"first": stopped}, study_worker.CODES)
    states = step_states(steps, store)
    assert (len(states.waiting), states.failed) == (2, ())


def test_results_of_changed_code_are_named_with_the_room(tmp_path):
    store, steps = StepStore(tmp_path / "steps"), study_worker.steps(0.0)
    run_steps(steps, store, study_worker.commands(tmp_path, store), study_worker.CODES)
    assert stale(steps, store, study_worker.CODES) == {}
    changed = stale(steps, store, study_worker.CODES | {"second": {"room": "2"}})
    assert all(contents == ["room"] for contents in changed.values())
    assert all(key.startswith("second") for key in changed)
    (line,) = stale_lines(steps, changed)
    assert line.startswith("stale: 6 second made before diversity_jax/room changed (second-")
    assert line.endswith(" and 3 more)")


def test_steps_made_again_take_with_them_what_was_made_from_them(tmp_path):
    store, steps = StepStore(tmp_path / "steps"), study_worker.steps(0.0, pairs=2)
    run_steps(steps, store, study_worker.commands(tmp_path, store), study_worker.CODES)
    first = next(iter(steps))
    later = dependents(steps, [first])
    assert [steps[key].needs for key in later] == [(first,)]
    store.invalidate([first, *later])
    run_steps(steps, store, study_worker.commands(tmp_path, store), study_worker.CODES)
    seen = notes(tmp_path)
    assert (seen["end first 0"], seen["end second 0"], seen["end first 1"], seen["end second 1"]) == (2, 2, 1, 1)
    assert not [line for line in seen if line.startswith("going on")]  # not from its own finished work


def test_a_result_that_is_recorded_but_gone_is_named_by_what_would_read_it(tmp_path):
    store, steps = StepStore(tmp_path / "steps"), study_worker.steps(0.0, pairs=1)
    first, second = steps
    run_steps(steps, store, study_worker.commands(tmp_path, store), study_worker.CODES)
    store.invalidate([second])
    shutil.rmtree(store.output(first))
    run_steps(steps, store, study_worker.commands(tmp_path, store), study_worker.CODES)
    assert f"the result of {first} is recorded but gone; remove " in store.failure(second)["reason"]


def study(**changes):
    recipe = Recipe(
        generate=GenerateConfig(
            grammar=(GrammarComponent(path="{output}/a.jsonl", grammar=GrammarConfig(topics=4, documents=10)),)
        ),
        build=BuildConfig(
            output_dir="",
            mixture=MixtureConfig(
                name="m", components=(Component(name="a", kind="real", corpus="{generate}/a.jsonl"),)
            ),
        ),
        train=Config(output_dir="", prepared="{build}", model=LLAMA["llama_tiny"](vocab_size=384)),
        evaluate=EvaluateConfig(model=ModelSource(checkpoint="{train}")),
    )
    topics = Factor(
        name="topics", levels=tuple(Level(name=n, set={"generate.grammar[0].grammar.topics": n}) for n in (1, 2, 3))
    )
    return StudyConfig(
        **{"name": "s", "output_dir": "out", "factors": (topics,), "seeds": (0, 1), "recipe": recipe} | changes
    )


def test_recipes_share_the_steps_that_they_have_in_common(tmp_path):
    planned = plan(study(), StepStore(tmp_path))
    assert Counter(step.kind for step in planned.steps.values()) == {
        "generate": 3,
        "build": 3,
        "train": 6,
        "evaluate": 6,
    }
    build_step = planned.steps[planned.runs[0].keys["build"]]
    assert build_step.needs == (planned.runs[0].keys["generate"],)
    assert build_step.config.mixture.components[0].corpus.source == str(
        tmp_path / build_step.needs[0] / "output" / "a.jsonl"
    )
    assert str(tmp_path) not in json.dumps(build_step.settings)


def test_keys_do_not_depend_on_the_folder_but_on_everything_upstream(tmp_path):
    here, there = plan(study(), StepStore(tmp_path)), plan(study(), StepStore(tmp_path / "elsewhere"))
    assert list(here.steps) == list(there.steps)
    longer = dataclasses.replace(study().recipe.generate.grammar[0].grammar, documents=11)
    component = dataclasses.replace(study().recipe.generate.grammar[0], grammar=longer)
    other = plan(
        study(recipe=dataclasses.replace(study().recipe, generate=GenerateConfig(grammar=(component,)))),
        StepStore(tmp_path),
    )
    assert not set(here.steps) & set(other.steps)


def test_a_renamed_configuration_class_keeps_its_former_name_in_keys(tmp_path):
    steps = plan(study(), StepStore(tmp_path)).steps
    settings = json.dumps(next(step.settings for step in steps.values() if step.kind == "build"))
    assert '"type": "Hygiene"' in settings
    assert '"type": "Filtering"' not in settings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"factors": (Factor(name="f", levels=(Level(name="a", set={"train.train.stepps": 3}),)),)},
            "factor 'f', level 'a': train.train.stepps: train.train has no field 'stepps'; did you mean 'steps'?",
        ),
        (
            {"factors": (Factor(name="f", levels=(Level(name="a", set={}), Level(name="b", set={}))),)},
            "f a and f b make the same recipe: these levels set the same; leave one out",
        ),
        ({"seed_fields": ("train.sead",)}, "seed_fields: train.sead: train has no field 'sead'"),
        ({"seed_fields": ()}, "seeds 0 and 1 come to the same evaluate: seed_fields names no field for them"),
        ({"seeds": ()}, "give different seeds, at least one"),
    ],
)
def test_a_study_that_makes_no_sense_is_refused_before_anything_runs(changes, message, tmp_path):
    with pytest.raises(InputError) as error:
        plan(study(**changes), StepStore(tmp_path / "none"))
    assert message in str(error.value)
    assert not (tmp_path / "none").exists()


def test_a_step_may_only_read_what_comes_before_it(tmp_path):
    recipe = dataclasses.replace(study().recipe, train=dataclasses.replace(study().recipe.train, prepared="{score}"))
    with pytest.raises(InputError, match=r"the recipe's train names \{score\}; steps before it are generate, build"):
        plan(study(recipe=recipe), StepStore(tmp_path))


def test_a_factor_names_its_levels_differently():
    with pytest.raises(InputError, match="two levels of one name"):
        Factor(name="f", levels=(Level(name=5, set={}), Level(name=5.0, set={})))


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "done.json"), 2, "error: done.json: No space left .*"),
        (KeyboardInterrupt(), 130, "interrupted; run the same command again to go on"),
    ],
)
def test_another_process_of_a_study_ends_with_one_line(error, status, line, tmp_path, monkeypatch, capsys):
    def fail(*_):
        raise error

    monkeypatch.setattr(study_run, "end_with_parent", lambda parent: None)
    monkeypatch.setattr(study_run.study_config, "plan", fail)
    with pytest.raises(SystemExit) as ended:
        study_run._work(SimpleNamespace(output_dir=tmp_path, processes=1), 0)
    assert ended.value.code == status
    assert re.fullmatch(f"{line}\n", capsys.readouterr().err)
