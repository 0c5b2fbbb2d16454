"""A package of its own: radgraph installs a top-level package `tests`, which would hide a folder without this file."""
