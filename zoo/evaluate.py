"""Scores any predictions: `python -m zoo.evaluate FILE.csv|.jsonl [--json OUT]`, by the same engine as a run."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from zoo.command import EXIT_CODES, UsageError, run
from zoo.metrics import DEFAULT_PROTOCOL

COLUMNS = ("id", "reference", "prediction")
# Columns that are found without being named: those of a run's predictions.jsonl, and of the files released with Reg2RG.
KNOWN_COLUMNS = (
    COLUMNS,
    ("AccNum", "GT_combined_report", "Pred_combined_report"),
    ("AccNum", "GT_whole_report", "Pred_whole_report"),
)


def main(argv: list[str] | None = None) -> int:
    """Scores a file; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m zoo.evaluate",
        description="Scores predicted reports against their references.",
        epilog=EXIT_CODES,
        allow_abbrev=False,
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="a .csv or .jsonl file, one study a row")
    parser.add_argument("--protocol", default=DEFAULT_PROTOCOL, help="how to score (default: %(default)s)")
    known = " | ".join("/".join(columns) for columns in KNOWN_COLUMNS)
    for what in COLUMNS:
        parser.add_argument(f"--{what}", metavar="COLUMN", help=f"the column of {what}s (default: found among {known})")
    parser.add_argument("--group", metavar="COLUMN", help="score each value of this column apart too, such as findings")
    parser.add_argument(
        "--json", type=Path, metavar="OUT.json", help="write the figures here, and OUT.per_study.csv beside them"
    )
    parser.add_argument(
        "--weights",
        type=Path,
        metavar="FOLDER",
        help="a folder with the weights of CheXbert, RadGraph, … (docs/protocols.md)",
    )
    parser.add_argument("--online", action="store_true", help="fetch weights that are not at hand from the hub")
    parser.add_argument("--rules14", action="store_true", help="add the rule labeller made for drawn radiographs")
    return run(lambda: _evaluate(parser.parse_args(argv)))


def _evaluate(options: argparse.Namespace) -> None:
    # Behind the parsing, so that --help answers at once.
    from zoo.metrics.engine import evaluate
    from zoo.metrics.lengths import length_distribution
    from zoo.metrics.pairs import Tools, default_cache
    from zoo.metrics.per_study import table_of, write_table
    from zoo.metrics.predictions import read_column, read_predictions
    from zoo.metrics.protocols import PROTOCOLS
    from zoo.metrics.regions import region_scores_of_texts
    from zoo.metrics.run import Scoring, add_rules14, group_scores
    from zoo.metrics.table import show

    if options.protocol not in PROTOCOLS:
        raise UsageError(f"there is no protocol {options.protocol!r}; choose from {', '.join(PROTOCOLS)}")
    named = [getattr(options, what) for what in COLUMNS]
    columns, rows = read_predictions(options.file, named, KNOWN_COLUMNS)
    ids, references, predictions = zip(*rows, strict=True)
    groups = read_column(options.file, options.group) if options.group else [None] * len(rows)
    if options.weights and not options.weights.is_dir():
        raise UsageError(f"--weights {options.weights}: there is no such folder")
    tools = Tools(options.weights, options.online, cache=default_cache())
    result = evaluate(references, predictions, ids, options.protocol, per_study=True, progress=True, tools=tools)
    if options.rules14:
        add_rules14(result, references, predictions, ids)
    lines = [
        {"id": name, "reference": reference, "prediction": prediction, "regions": [], "group": group}
        for (name, reference, prediction), group in zip(rows, groups, strict=True)
        if group is not None
    ]
    result |= group_scores(lines, Scoring(options.protocol, rules14=options.rules14, tools=tools), progress=True)
    result["length"] = length_distribution(references, predictions, PROTOCOLS[options.protocol].prepare)
    regions = region_scores_of_texts(references, predictions, ids, options.protocol, tools)
    if regions:
        result["regions"] = regions
    result["provenance"] |= {"file": options.file.name, "columns": dict(zip(COLUMNS, columns, strict=True))}
    if options.json:
        from zoo.run_directory import atomic_write

        write_table(options.json.with_suffix(".per_study.csv"), table_of(ids, result))
        atomic_write(options.json, json.dumps(result, indent=2) + "\n")
    show(result)


if __name__ == "__main__":
    sys.exit(main())
