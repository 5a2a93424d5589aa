"""The notebooks of the documentation run completely, and the site includes them."""

import os
from pathlib import Path

from nbclient import NotebookClient
import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


def shown(cells):
    """Which code cells show something."""
    return [bool(cell.outputs) for cell in cells if cell.cell_type == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    book = nbformat.read(path, as_version=4)
    stored = shown(book.cells)
    NotebookClient(book, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert shown(book.cells) == stored
    assert sum(stored) >= 4


def test_the_site_is_built_with_every_notebook(tmp_path):
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path), strict=True))
    for path in NOTEBOOKS:
        page = (tmp_path / "notebooks" / path.stem / "index.html").read_text()
        assert "import diversity_jax" in page
        assert (tmp_path / "notebooks" / path.name).exists()
    assert "effective clusters" in (tmp_path / "notebooks" / "score_your_data" / "index.html").read_text()
