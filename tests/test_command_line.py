"""The command `diversity-jax`: arguments without a file, help of every field, completion, and wrong input."""

import ast
import dataclasses
import importlib
import inspect
import os
from pathlib import Path
import shlex
import shutil
import subprocess
import sys
import typing

import pytest

import diversity_jax as dj
from diversity_jax.core import config as config_files
from diversity_jax.core.commands import COMMANDS
from diversity_jax.core.errors import InputError
from diversity_jax.core.field_docs import all_texts, fields_of, fields_text, part_of
from diversity_jax.core.options import Options, candidates, packaged_configs
from diversity_jax.core.run_info import _command
from diversity_jax.evaluation.config import ModelSource
from diversity_jax.model.convert import read_model
from scripts import reference

ROOT = Path(__file__).resolve().parents[1]
CONFIGURED = {name: command for name, command in COMMANDS.items() if command.config}


def run(*arguments, cwd):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "diversity_jax", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, check=False, timeout=300)


def canonical(line):
    name, *words = line.split()
    return Options(COMMANDS[name], words).canonical


@pytest.mark.parametrize(
    ("line", "same"),
    [
        ("score a.jsonl b.jsonl", "--config configs/score.py --config.corpus=a.jsonl,b.jsonl"),
        ("score -j openai:a b.txt", "--config configs/score.py --config.corpus=b.txt --config.judge=openai:a"),
        ("score a.jsonl -n30", "--config configs/score.py --config.corpus=a.jsonl --config.agent.groupings=30"),
        ("score a.jsonl --dry-run", "--config configs/score.py --config.corpus=a.jsonl --config.dry_run=True"),
        ("score --dry-run false a.jsonl", "--config configs/score.py --config.corpus=a.jsonl --config.dry_run=false"),
        ("score a --no-agent.verify", "--config configs/score.py --config.corpus=a --config.agent.verify=False"),
        ("score -- --odd.jsonl", "--config configs/score.py --config.corpus=--odd.jsonl"),
        ("score - --output-dir=out", "--config configs/score.py --config.corpus=- --config.output_dir=out"),
        ("score own.py a.jsonl", "--config own.py --config.corpus=a.jsonl"),
        ("score a --config own.py --config.alpha=0.1", "--config own.py --config.corpus=a --config.alpha=0.1"),
        ("train quickstart -s 20", "--config configs/quickstart.py --config.train.steps=20"),
        ("train texts.jsonl", "--config configs/my_text.py:texts.jsonl"),
        ("train --mixture.components[0].share 2 x.py", "--config x.py --config.mixture.components[0].share=2"),
        ("evaluate runs/a -t arc_easy", "--config configs/evaluate_paper.py --config.model.checkpoint=runs/a "
         "--config.tasks=arc_easy"),
        ("study studies/tiny", "--config configs/studies/tiny.py"),
        ("compile llama_7b --topology v5e:4x4 --search", "--config configs/llama_7b.py --topology v5e:4x4 --search"),
        ("prepare a.txt --runner DirectRunner --region R", "--config configs/prepare.py --config.corpus.source=a.txt "
         "--config.runner=DirectRunner --region R"),
        ("score --help agent.", "--help agent. --config configs/score.py"),
    ],
)  # fmt: skip
def test_arguments_are_those_of_a_module_with_a_file(line, same):
    assert canonical(line) == same.split()


def test_a_prompt_may_hold_anything():
    words = ["runs/a", "The cat, -- it", "--temperature", "-0.5"]
    assert Options(COMMANDS["generate-text"], words).fields == [
        ("prompt", "The cat, -- it"),
        ("model.checkpoint", "runs/a"),
        ("temperature", "-0.5"),
    ]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("score a --judg offline", "--judg: there is no such option; did you mean --judge?"),
        ("score a --groupings 3", "did you mean --agent.groupings?"),
        ("score a --groupngs=3", "did you mean --agent.groupings?"),
        ("score a --output-dir", "--output-dir: a value is missing"),
        ("score a --output-dir --dry-run", "--output-dir: a value is missing"),
        ("score a -x", "-x: is no option; the short ones are -j (--judge)"),
        ("score a,b c", "a,b: has a comma"),
        ("evaluate runs/a runs/b", "runs/b: is one argument too many; this command takes CHECKPOINT"),
        ("build texts.jsonl", "texts.jsonl: is one argument too many; this command takes a configuration file"),
        ("train a.jsonl b.jsonl", "b.jsonl: is one argument too many"),
    ],
)
def test_wrong_options_are_one_line(line, words):
    with pytest.raises(InputError) as error:
        canonical(line)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_scores_files_without_a_configuration_file(tmp_path):
    for name, words in (("wide", ["a ferry at high tide", "the court and the bank", "bees on clover"]), ("b", ["tax"])):
        lines = [f'{{"text": "On day {day} {word} {day}"}}' for day in range(20) for word in words]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    done = run("score", "wide.jsonl", "b.jsonl", "-n", 40, "--output-dir", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["out/report.html"]
    info = (tmp_path / "out" / "run.json").read_text()
    assert "python -m diversity_jax score wide.jsonl b.jsonl -n 40 --output-dir out" in info
    refused = run("score", "b.jsonl", "--output-dir", "out", cwd=tmp_path)
    assert refused.returncode == 2
    assert refused.stderr.splitlines()[-1] == (
        "error: --output-dir: out holds scores of other text (b, wide); give another folder, or --overwrite=True to "
        "replace them"
    )


def test_the_record_of_a_command_holds_no_headers():
    words = ["/env/bin/diversity-jax", "score", "--judge-endpoint.headers", "X: secret", "--judge_endpoint.query=k=1"]
    assert _command(words) == "diversity-jax score --judge-endpoint.headers '***' '--judge_endpoint.query=***'"


@pytest.mark.parametrize(("arguments", "words"), [
    (["scor"], "scor: there is no such command; did you mean score?"),
    (["score", "a.jsonl", "--agent.groupings=x"], "--agent.groupings=x: is not a value of type int"),
    (["score", "--help", "agnt."], "there is no such field or part; did you mean agent?"),
    (["score"], "--corpus is not set"),
])  # fmt: skip
def test_wrong_commands_are_one_line(arguments, words, tmp_path):
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not any(tmp_path.iterdir())


def config_types(kind, types):
    """A configuration's dataclasses, those of its parts too."""
    if kind in types:
        return types
    types.add(kind)
    for each in (*kind.__mro__[1:], *(part_of(hint)[0] for hint in typing.get_type_hints(kind).values())):
        if each is not None and dataclasses.is_dataclass(each):
            config_types(each, types)
    return types


def test_every_field_is_documented_once():
    types = set()
    for command in CONFIGURED.values():
        config_types(command.config_type(), types)
    assert len(types) > 40
    for kind in types:
        own = [name for name in inspect.get_annotations(kind) if name in kind.__dataclass_fields__]
        texts, hints = all_texts(kind), typing.get_type_hints(kind)
        for name in own:
            count = len(texts.get(name, []))
            assert count == 1 or (count == 0 and part_of(hints[name])[0]), f"{kind.__name__}.{name}: {count} texts"
        assert set(texts) <= set(kind.__dataclass_fields__), kind


@pytest.mark.parametrize("name", CONFIGURED)
def test_help_lists_every_field_with_its_meaning(name):
    kind = CONFIGURED[name].config_type()
    fields = list(fields_of(kind))
    assert {field.name for field in dataclasses.fields(kind)} <= {field.name for field in fields}
    text = fields_text(fields, "", "--config.", {})
    for field in fields:
        assert f"  --config.{field.name}" in text
        assert field.text
        assert "dataclass" not in field.text


def test_help_shows_the_values_of_a_file():
    config = config_files.load_file(str(ROOT / "configs" / "quickstart.py"), object)
    text = fields_text(fields_of(type(config), config), "mixture.components", "--", {})
    assert "--mixture.components[3].name  (text, few_topics)" in text
    assert "--train" not in text


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["sco"], ["score"]),
        (["score", "--judge", "off"], ["offline"]),
        (["score", "--judge", "=", "off"], ["offline"]),
        (["score", "--judge=off"], ["--judge=offline"]),
        (["score", "--dry-run", "t"], ["true"]),
        (["score", "--agent.gro"], ["--agent.groupings"]),
        (["score", "--agen"], ["--agent."]),
        (["study", "studies/ti"], ["studies/tiny"]),
        (["score", "--help", "agent"], ["agent."]),
        (["completion", "b"], ["bash"]),
        (["score", "a.jso"], []),
        (["nothing", "--x"], []),
    ],
)
def test_completion(words, expected):
    assert candidates(words) == expected


# zsh completes only at a terminal, so its two functions are replaced by ones that print what would be offered.
_COMPLETES = {
    "fish": "source {script}; complete -C 'diversity-jax score --output-d'",
    "zsh": "compdef() {{}}; compadd() {{ print -r -- ${{@:#(--|-S|)}} }}\n"
    "source {script}; words=(diversity-jax score --output-d); CURRENT=3; _diversity_jax",
}


def test_the_scripts_for_shells_complete(tmp_path):
    script = run("completion", "bash", cwd=tmp_path).stdout
    (tmp_path / "diversity-jax").write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m diversity_jax "$@"\n')
    (tmp_path / "diversity-jax").chmod(0o755)
    code = (
        f"{script}\nCOMP_WORDS=(diversity-jax score --output-d)\nCOMP_CWORD=2\n_diversity_jax\necho ${{COMPREPLY[@]}}"
    )
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.stdout.split() == ["--output-dir"], done.stderr
    for shell, complete in _COMPLETES.items():
        if shutil.which(shell):
            path = tmp_path / f"script.{shell}"
            path.write_text(run("completion", shell, cwd=tmp_path).stdout)
            code = complete.format(script=shlex.quote(str(path)))
            done = subprocess.run([shell, "-c", code], capture_output=True, text=True, env=environment, check=False)
            assert done.stdout.split() == ["--output-dir"], done.stderr


def test_ready_configurations_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert {"quickstart", "score", "studies/tiny"} <= set(packaged_configs())
    for command in CONFIGURED.values():
        for path in filter(None, (command.default_config, command.default_config_for_text)):
            assert Path(config_files.packaged_path(path)).is_file(), path
        assert isinstance(
            command.default_config and config_files.load_file(command.default_config, command.config_type()), object
        )


def test_a_ready_configuration_that_builds_on_another_loads_from_any_folder(tmp_path, monkeypatch):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "own.py").write_text("STEPS = 7\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", *(each for each in sys.path if Path(each).resolve() != ROOT)])
    for name in [name for name in sys.modules if name.partition(".")[0] == "configs"]:
        monkeypatch.delitem(sys.modules, name)
    kind = COMMANDS["study"].config_type()
    assert isinstance(config_files.load_file("configs/studies/smoke.py", kind), kind)
    assert importlib.import_module("configs.own").STEPS == 7


def test_messages_name_no_class_of_a_configuration():
    kinds = set()
    for command in CONFIGURED.values():
        config_types(command.config_type(), kinds)
    names = {kind.__name__ for kind in kinds} - {"Config", "Chat", "Level", "Factor", "Machine", "Component", "Recipe"}
    for path in (ROOT / "diversity_jax").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "InputError":
                texts = [part.value for part in ast.walk(node) if isinstance(part, ast.Constant)]
                for text in filter(lambda each: isinstance(each, str), texts):
                    assert not any(f"{name}" in text.split() for name in names), (path, text)


@pytest.mark.parametrize(
    ("files", "what"),
    [
        (["scoring.json", "scorecard.json", "run.json"], "a scoring"),
        (["mixture.json", "scorecards"], "a built mixture"),
        (["results.json", "run.json", "samples"], "an evaluation"),
        (["analysis.json", "run.json", "steps"], "a study"),
        (["audit.json", "run.json"], "an audit of a judge"),
        (["documents", "rounds", "run.json"], "a generated component"),
        (["manifest.json"], "a prepared component"),
    ],
)
def test_a_folder_of_another_command_is_called_what_it_is(tmp_path, files, what):
    folder = tmp_path / "given"
    for name in files:
        (folder / name).mkdir(parents=True)
    for refused in (
        lambda: ModelSource(checkpoint=str(folder)).check_named(),
        lambda: dj.load_model(folder),
        lambda: read_model(folder),
    ):
        with pytest.raises(InputError, match=f"given: holds {what}.*, not a model"):
            refused()
    if not what.endswith("component"):
        with pytest.raises(InputError, match=f"given: holds {what}, not text"):
            dj.score(folder)
    if what != "a built mixture":
        with pytest.raises(InputError, match=f"mixture.json: no such file; the folder holds {what}"):
            dj.load_mixture(folder)


def test_the_reference_is_current():
    assert reference.outdated() == []


def test_help_that_nobody_reads_to_its_end_ends_quietly():
    command = f"{shlex.quote(sys.executable)} -m diversity_jax score --help | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (141, "")
