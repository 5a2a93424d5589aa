"""Reports: a self-contained HTML page for each run, and its figures as PNG and SVG files."""
