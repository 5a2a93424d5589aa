"""Hooks of mkdocs: notebooks become pages of the site."""

from pathlib import Path

from mkdocs.structure.files import File, Files
import nbformat


def on_files(files: Files, config) -> Files:
    """Adds a Markdown page for every notebook, beside the notebook itself."""
    for file in list(files):
        if file.src_uri.endswith(".ipynb"):
            path = Path(file.abs_src_path)
            page = as_markdown(path)
            files.append(File.generated(config, file.src_uri.removesuffix(".ipynb") + ".md", content=page))
    return files


def as_markdown(path: Path) -> str:
    """A notebook as one Markdown page: text, code, and what the code printed or showed."""
    parts = [f"[Download this notebook]({path.name})\n"]
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source)
            continue
        parts.append(f"```python\n{cell.source}\n```")
        for output in cell.outputs:
            data = output.get("data", {})
            if "text/html" in data:
                parts.append(data["text/html"])
            elif text := output.get("text", data.get("text/plain", "")):
                parts.append(f"```text\n{text.rstrip()}\n```")
    return "\n\n".join(parts) + "\n"
