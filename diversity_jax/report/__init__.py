"""Reports: one self-contained HTML page a run, with its figures as PNG and SVG files beside it."""
