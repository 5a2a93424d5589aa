"""The code as a whole: imports only go down the layers, light modules stay light, and names are standard terms."""

import ast
from collections.abc import Iterator
import importlib
import json
from pathlib import Path
import re
import warnings

import pytest

from scripts.checks import layers
from tests.processes import run_python

ROOT = Path(__file__).resolve().parents[1]


def test_imports_only_go_down_and_never_in_a_circle(capsys):
    known = layers.modules()
    with capsys.disabled():
        print(f"\n{layers.summary(known)}")
    assert layers.upward_imports(known) == []
    assert layers.cycles(known) == []


def test_the_layer_count_sees_an_upward_import_and_a_cycle(tmp_path, monkeypatch):
    for name, text in {
        "core/files.py": "def f():\n    from diversity_jax.study import run",
        "study/run.py": "import diversity_jax.study.graph",
        "study/graph.py": "from diversity_jax.study.run import x",
        "llm/a.py": "from diversity_jax.corpus import b",
        "corpus/b.py": "",
    }.items():
        path = tmp_path / "diversity_jax" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr(layers, "ROOT", tmp_path)
    monkeypatch.setattr(layers, "PACKAGE", tmp_path / "diversity_jax")
    known = layers.modules()
    assert layers.upward_imports(known) == [
        "diversity_jax/core/files.py:2 imports study.run",
        "diversity_jax/llm/a.py:1 imports corpus.b",
    ]
    assert layers.cycles(known) == [["study.graph", "study.run"]]


def test_every_module_is_in_a_layer_and_only_entry_points_stand_at_the_top():
    known = layers.modules()
    assert all(layers.layer_of(module) >= 0 for module in known if module)
    loose = [module for module, path in known.items() if "." not in module and path.name != "__init__.py"]
    for module in [*loose, *layers.COMMANDS]:
        text = known[module].read_text()
        assert "__main__" in text or "def main(" in text, module
        assert text.count("\n") < 60, module


def test_importing_the_package_is_instant_and_pulls_in_nothing():
    code = (
        "import sys, time; began = time.process_time(); import diversity_jax; taken = time.process_time() - began\n"
        "heavy = [name for name in ('tensorflow', 'jax', 'numpy', 'seqio', 'matplotlib', 'sklearn') if name in "
        "sys.modules]\n"
        "print(taken < 0.2, heavy)"
    )
    assert run_python(code).split() == ["True", "[]"]


# Packages that take a tenth of a second or more to import, and what each command needs of them to say how it is used.
HEAVY = {
    *("aiohttp", "asyncio", "flax", "httpx", "jax", "lm_eval", "matplotlib", "numpy", "openai", "optax"),
    *("orbax", "pandas", "pyarrow", "scipy", "seqio", "sentencepiece", "sklearn", "statsmodels", "tensorflow"),
    *("tokenizers", "torch", "transformers"),
}
_NUMPY = frozenset({"numpy"})
NEEDED_FOR_HELP = {
    **dict.fromkeys(
        ("audit", "evaluate", "generate", "generate_text", "report", "score", "serve", "study", "train"), _NUMPY
    ),
    **dict.fromkeys(
        ("mixtures.build", "mixtures.export", "mixtures.fetch", "mixtures.prepare", "train_tokenizer"), _NUMPY
    ),
    **dict.fromkeys(("model.convert", "training.compile"), _NUMPY),
    **dict.fromkeys(("mixtures.show", "study.page"), frozenset[str]()),
    "lm_eval": _NUMPY | {"lm_eval"},
}


def modules_after(code: str) -> set[str]:
    """Top-level modules that a fresh Python holds when it has run the code and exits."""
    output = run_python(
        "import atexit, sys\n"
        "atexit.register(lambda: print('modules', *{name.partition('.')[0] for name in sys.modules}))\n" + code
    )
    return set(output.splitlines()[-1].split()[1:])


def test_every_command_is_in_the_table_of_what_help_imports():
    known = layers.modules()
    commands = {
        name.removesuffix(".__main__")
        for name, path in known.items()
        if 'if __name__ == "__main__"' in path.read_text()
    }
    workers = {"aot.worker", "core.chips", "prepare.workers", "tokenizers.template_process"}
    assert commands - workers - {"__main__"} == set(NEEDED_FOR_HELP)  # the last runs the others


_HELP_IN_CHILDREN = """
import json, os, runpy, sys, traceback
import numpy  # which all of these may import: once for all, since starting Python and NumPy is most of the time
for command in {commands}:
    read, write = os.pipe()
    if not os.fork():
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.argv = ["x", "--help"]
        try:
            try:
                runpy.run_module("diversity_jax." + command, run_name="__main__")
            except SystemExit as end:
                assert not end.code, end
            os.write(write, json.dumps(sorted({{name.partition(".")[0] for name in sys.modules}})).encode())
        except BaseException:
            traceback.print_exc()  # and nothing is written, which the parent cannot read
        os._exit(0)
    os.close(write)
    print(json.dumps([command, json.load(os.fdopen(read))]))
    os.wait()
"""


@pytest.fixture(scope="module")
def imported_by_help():
    """Top-level modules that each command that may import NumPy holds when it has said how it is used."""
    commands = sorted(command for command, needed in NEEDED_FOR_HELP.items() if needed >= _NUMPY)
    lines = run_python(_HELP_IN_CHILDREN.format(commands=commands)).splitlines()
    return {command: set(modules) for command, modules in map(json.loads, lines)}


@pytest.mark.parametrize("command", sorted(NEEDED_FOR_HELP))
def test_help_imports_nothing_heavy(command, imported_by_help):
    run = f"sys.argv = ['x', '--help']\nimport runpy; runpy.run_module('diversity_jax.{command}', run_name='__main__')"
    imported = imported_by_help[command] if command in imported_by_help else modules_after(run)
    assert imported >= {"diversity_jax", "runpy"}
    assert imported & HEAVY <= NEEDED_FOR_HELP[command]


def test_an_import_that_help_does_not_need_is_seen():
    assert modules_after("import diversity_jax.model.llama") & HEAVY >= {"jax", "flax"}


def test_public_names_of_a_package_are_found_and_not_hidden_by_its_modules():
    for package in ("cluster_agent", "corpus", "embedders", "llm", "model", "synthesis"):
        module = importlib.import_module(f"diversity_jax.{package}")
        assert not set(module.__all__) & {path.stem for path in Path(module.__file__).parent.glob("*.py")}, package
        for name in module.__all__:
            assert getattr(module, name).__class__.__name__ != "module", (package, name)
        with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
            module.nothing  # noqa: B018


def test_the_training_path_runs_without_the_data_packages():
    blocked = (
        "tensorflow",
        "seqio",
        "tensorflow_datasets",
        "ml_collections",
        "clu",
        "sklearn",
        "openai",
        "google.generativeai",
        "matplotlib",
    )
    code = (
        f"import sys\nfor name in {blocked}: sys.modules[name] = None\nimport diversity_jax.training.loop, "
        "diversity_jax.model\nprint('ok')"
    )
    assert run_python(code, JAX_PLATFORMS="cpu").strip() == "ok"


def test_no_package_loads_a_heavy_package_on_import():
    heavy = (
        "tensorflow",
        "seqio",
        "sklearn",
        "matplotlib",
        "openai",
        "google.generativeai",
        "google.genai",
        "pyarrow",
        "sentencepiece",
    )
    code = (
        "import sys, diversity_jax.corpus.sources, diversity_jax.llm.engine, diversity_jax.report.page\n"
        "import diversity_jax.cluster_agent.score, diversity_jax.mixtures.builder, diversity_jax.training.run\n"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    assert run_python(code, JAX_PLATFORMS="cpu").strip() == "[]"


def test_every_config_loads():
    code = (
        "import dataclasses, pathlib, sys\n"
        "from diversity_jax.core import config as config_files\n"
        "for path in sorted(pathlib.Path('configs').rglob('*.py')):\n"
        "    config = config_files.load_file(str(path), object)\n"
        "    assert dataclasses.is_dataclass(config) and config.__dataclass_params__.frozen, path\n"
        '    assert len(path.read_text().split(\'"""\')[1]) > 100, path\n'
        "print(*(name for name in ('jax', 'tensorflow') if name in sys.modules), 'ok')"
    )
    assert run_python(code, JAX_PLATFORMS="cpu").strip() == "ok"


def test_every_name_in_the_architecture_exists():
    known = layers.modules()
    text = (ROOT / "docs" / "architecture.md").read_text()
    names = {name for name in re.findall(r"`((?:[a-z_]+\.)+\w+)`", text) if name.split(".")[0] in known}
    assert len(names) > 40
    for name in names:
        parts = name.split(".")
        split = max(end for end in range(1, len(parts) + 1) if ".".join(parts[:end]) in known)
        target = importlib.import_module("diversity_jax." + ".".join(parts[:split]))
        for part in parts[split:]:
            target = getattr(target, part)


def test_a_deprecated_call_of_this_project_fails_tests_and_one_of_others_does_not():
    with pytest.raises(DeprecationWarning):
        warnings.warn_explicit("old", DeprecationWarning, "step.py", 1, module="diversity_jax.training.step")
    warnings.warn_explicit("old", DeprecationWarning, "other.py", 1, module="somebody_else")


_CONFIGURED = r"\bPath\((config|options|arguments|study|source)\."


def test_no_configured_path_is_made_a_local_one():
    """A `Path` spoils a URL; folders that `published` and `local_copy` gave are local whatever was configured."""
    # Behind `published`, or refused by name (a study).
    allowed = (
        "api/scoring.py",
        "audit.py",
        "score.py",
        "scoring",
        "evaluation/run.py",
        "mixtures/build",
        "report",
        "study",
        "synthesis",
    )
    lines = []
    for path in sorted((ROOT / "diversity_jax").rglob("*.py")):
        name = path.relative_to(ROOT / "diversity_jax").as_posix()
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if re.search(_CONFIGURED, line) and not name.startswith(allowed):
                lines.append(f"{name}:{number}: {line.strip()}")
    assert not lines


# Words that the code used before for what has a usual name, and words that say nothing of what they name.
FORMER_NAMES = {
    *("grants", "grant", "heirs", "Standing", "Stock", "ingredients", "pieces", "tail", "marks", "workplace"),
    *("hygiene", "Pass", "fates", "asking", "drawing", "growing", "producing", "ledger", "Entry", "claim"),
    *("settle", "patience", "door", "ahead", "narrow", "hurried", "Outlook", "fly_pilot", "forgive", "forget"),
    *("bring", "sitting", "sittings", "cuts", "slope", "ruler", "card", "cards", "whole", "one", "found", "place"),
    *("said", "kept", "roof", "floor", "room"),
}
# Where such a word stays; docs/decisions.md says why ("Fixed bytes are kept where files depend on them").
NAMES_THAT_STAY = {
    "hygiene": ("diversity_jax/mixtures/config.py", "diversity_jax/prepare/", "tests/golden/"),
    "ledger": ("diversity_jax/llm/types.py",),
    "sittings": ("diversity_jax/training/throughput.py",),
    "kept": ("diversity_jax/cluster_agent/canaries.py", "diversity_jax/cluster_agent/groupings.py"),
    "place": ("diversity_jax/core/artifacts.py",),
    "ruler": ("diversity_jax/", "scripts/checks/encoded_brackets.py", "tests/test_cluster_agent_ruler.py"),
    "slope": ("diversity_jax/cluster_agent/", "diversity_jax/report/"),
    "pieces": ("diversity_jax/tokenizers/",),
}


def identifiers(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Names of classes, functions, arguments, imports and everything that is assigned, each with its line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node.lineno
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr, node.lineno
        elif isinstance(node, ast.alias):
            yield node.asname or node.name.rpartition(".")[2], node.lineno
        elif isinstance(node, ast.ExceptHandler) and node.name:
            yield node.name, node.lineno


def former_names(path: str, text: str) -> Iterator[tuple[str, int, str]]:
    """Every former name that a file gives to something: its path, the line and the name."""
    for name, line in identifiers(ast.parse(text)):
        if name.strip("_") in FORMER_NAMES:
            yield path, line, name


def stays(path: str, name: str) -> bool:
    return path.startswith(NAMES_THAT_STAY.get(name.strip("_"), ("nowhere",)))


def test_nothing_is_named_by_a_former_name():
    folders = ("diversity_jax", "scripts", "tests")
    files = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    uses = [use for path in files for use in former_names(path.relative_to(ROOT).as_posix(), path.read_text())]
    assert [f"{path}:{line} {name}" for path, line, name in uses if not stays(path, name)] == []
    for word, folders in NAMES_THAT_STAY.items():
        for folder in folders:
            assert any(name.strip("_") == word and path.startswith(folder) for path, _, name in uses), (word, folder)


def test_a_former_name_is_seen():
    text = "from a.b import ledger\nclass Standing: pass\ndef settle(heirs): self._door = [one for one in heirs]\n"
    text += "try: pass\nexcept OSError as found: place = len(_cards := ())\n"
    names = ["ledger", "Standing", "settle", "heirs", "_door", "one", "found", "place", "_cards"]
    assert sorted(name for _, _, name in former_names("scripts/x.py", text)) == sorted(names)
    assert stays("diversity_jax/llm/types.py", "ledger")
    assert not stays("diversity_jax/llm/engine.py", "ledger")
