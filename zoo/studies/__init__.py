"""Studies: a grid of recipes × seeds, its runs, and what came out of them."""
