"""Studies: grids of data recipes, trained and evaluated, and the statistics of their outcomes over diversity."""
