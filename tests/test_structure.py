"""What holds for the code as a whole: imports run down the floors, and light things stay light."""

import ast
import os
from pathlib import Path
import subprocess
import sys

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "diversity_jax"
FLOORS = (
    ("errors", "storage", "progress"),
    ("corpus", "llm", "model", "report"),
    ("cluster_agent", "metrics", "evaluation"),
    ("mixtures", "synthesis"),
    ("training",),
)
ROOF = len(FLOORS)
ENTRY_POINTS = ("mixtures/build.py", "mixtures/prepare.py", "mixtures/show.py")
"""Commands that lie in a room but compose what the roof composes; nothing imports them."""


def floor_of(module: str) -> int:
    return next((number for number, rooms in enumerate(FLOORS) if module in rooms), ROOF)


def imported_rooms(path: Path) -> set[str]:
    """Rooms of this package that a file imports, wherever in the file."""
    rooms, tree = set(), ast.parse(path.read_text())
    # A room's own command reaches up for its command line; importing the room does not run that.
    tree.body = [node for node in tree.body if not (isinstance(node, ast.If) and "__main__" in ast.unparse(node.test))]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "diversity_jax":
            rooms |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("diversity_jax."):
            rooms.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            rooms |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("diversity_jax.")}
    return rooms


FILES = sorted(path for path in PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_down_the_floors(path):
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    floor = ROOF if str(path.relative_to(PACKAGE)) in ENTRY_POINTS else floor_of(room)
    for other in imported_rooms(path) - {room, "__version__"}:
        if floor < ROOF:
            assert floor_of(other) < floor or (floor_of(other) == floor == 0), f"{room} imports {other}"


def test_nothing_imports_an_entry_point():
    names = tuple("diversity_jax." + path.removesuffix(".py").replace("/", ".") for path in ENTRY_POINTS)
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                found = [node.module or ""] + [f"{node.module}.{alias.name}" for alias in node.names]
            else:
                found = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not set(found) & set(names), path


def run_python(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env={**os.environ, **environment}, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_is_instant_and_pulls_in_nothing():
    code = (
        "import sys, time; began = time.perf_counter(); import diversity_jax; taken = time.perf_counter() - began\n"
        "heavy = [name for name in ('tensorflow', 'jax', 'numpy', 'seqio', 'matplotlib', 'sklearn') if name in sys.modules]\n"
        "print(taken < 0.2, heavy)"
    )
    assert run_python(code).split() == ["True", "[]"]


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
        f"import sys\nfor name in {blocked}: sys.modules[name] = None\nimport diversity_jax.training.loop, diversity_jax.model\nprint('ok')"
    )
    assert run_python(code, JAX_PLATFORMS="cpu").strip() == "ok"


def test_no_room_loads_a_heavy_package_on_import():
    heavy = ("tensorflow", "seqio", "sklearn", "matplotlib", "openai", "google.generativeai", "google.genai", "pyarrow", "sentencepiece")
    code = (
        "import sys, diversity_jax.corpus, diversity_jax.llm, diversity_jax.report.page, diversity_jax.cluster_agent\n"
        "import diversity_jax.mixtures.builder, diversity_jax.config\n"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    assert run_python(code, JAX_PLATFORMS="cpu").strip() == "[]"


def test_every_config_loads():
    code = (
        "import pathlib, dataclasses\n"
        "from diversity_jax import config_files\n"
        "for path in sorted(pathlib.Path('configs').rglob('*.py')):\n"
        "    config = config_files.load_file(str(path), object)\n"
        "    assert dataclasses.is_dataclass(config) and config.__dataclass_params__.frozen, path\n"
        '    assert len(path.read_text().split(\'"""\')[1]) > 100, path\n'
        "print('ok')"
    )
    assert run_python(code, JAX_PLATFORMS="cpu").strip() == "ok"
