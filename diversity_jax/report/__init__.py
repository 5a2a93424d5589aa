"""Pages for people: one self-contained HTML file a run, its figures inside and as PNG beside it."""
