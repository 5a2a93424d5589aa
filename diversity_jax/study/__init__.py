"""Studies: grids of data recipes trained and judged, and what their outcomes say about diversity."""
