"""Checks a submission from its own two files: every figure against the per-study table, and that no text is in it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datamodules.study import DataFault
from zoo.leaderboard.submission import ENTRY, FILES, FORMAT, NEVER, REASONS, sha256

if TYPE_CHECKING:
    from zoo.metrics.per_study import StudyTable
    from zoo.metrics.protocols import Protocol

TOLERANCE = 1e-9
BESIDE = ("region_recognition", "phantom_findings")  # protocols of figures that a run has beside its texts'
_KEYS_BESIDE = re.compile(r"region_(precision|recall|f1)|phantom_findings_(micro|macro)_(precision|recall|f1)")
_SHORT = re.compile(r"[\w+][\w .,;+()&%°'±=@/-]{0,79}")  # a name; nothing that a report could hide in
_WORDS = 10
_HEX = {"config_sha256": 64, "data_fingerprint": 64, "predictions_sha256": 64, "per_study_sha256": 64, "git_commit": 40}
_TOP = {"format", "name", "method", "dataset", "split", "phantom", "status", "protocol", "version", "n",
        "n_empty_predictions", "metrics", "skipped", "provenance"}  # fmt: skip
_OPTIONAL = {"subset", "method_id", "recipe", "classes", "baselines", "regions"}
_PROVENANCE = {*_HEX, "environment", "seed", "created_from"}
_CLASS = {"precision", "recall", "f1", "support", "predicted"}
_RECOGNITION = {"precision", "recall", "f1", "tp", "fp", "fn"}


def check(folder: Path, name: str | None = None) -> tuple[list[str], list[str]]:
    """Recomputes a submission.

    Args:
        folder: The submission.
        name: The name that it must have; by default the folder's.

    Returns:
        Every difference in one line, and the figures that `per_study.csv` cannot prove: those beside the protocol's
        own (regions, the phantom's findings), the baselines' and the regions', and values of the whole file.
    """
    from zoo.leaderboard.submission import _json
    from zoo.metrics.per_study import read_table
    from zoo.metrics.protocols import PROTOCOLS

    try:
        content = _json(folder / "submission.json")
        faults = outer_faults(folder, content, name or folder.resolve().name)
        if faults:
            return faults, []
        rules = PROTOCOLS[content["protocol"]]
        if content["version"] != rules.version:
            return [
                f"scored with version {content['version']} of {rules.id}, and this program has version "
                f"{rules.version}: score the predictions anew"
            ], []
        table = read_table(folder / "per_study.csv")
    except DataFault as fault:
        return [str(fault)], []
    faults = [
        *_table_faults(content, table, rules),
        *_figure_faults(content, table),
        *_class_faults(content, table, rules),
    ]
    beside = [key for key, entry in content["metrics"].items() if entry["protocol"] != rules.id]
    beside += [f"{key} (overall)" for key, entry in content["metrics"].items() if "overall" in entry]
    return faults, beside + [part for part in ("baselines", "regions") if content.get(part)]


def outer_faults(folder: Path, content: Mapping[str, Any], name: str) -> list[str]:
    """What can be told without computing: fields, names, hashes, stray files, text where none belongs."""
    from zoo.leaderboard.board import STATUSES
    from zoo.metrics.protocols import PROTOCOLS

    if content.get("format") != FORMAT:
        return [f"format {content.get('format')!r}: this program reads format {FORMAT}"]
    faults = list(_texts(content, "submission.json"))
    faults += _fields("submission.json", content, _TOP, _OPTIONAL)
    if faults:
        return faults
    words = [
        key for key in ("name", "method", "dataset", "split", "status", "protocol") if not isinstance(content[key], str)
    ]
    if words:
        return [f"{', '.join(words)}: not a text"]
    if content["name"] != name:
        faults.append(f"name {content['name']!r}: must be the folder's, {name!r}")
    if content["status"] not in STATUSES[1:]:
        faults.append(f"status {content['status']!r}: must be {' or '.join(STATUSES[1:])}")
    if not isinstance(content["phantom"], bool):
        faults.append(f"phantom {content['phantom']!r}: must be true or false")
    for key in ("n", "n_empty_predictions", "version"):
        if not isinstance(content[key], int) or content[key] < (key != "n_empty_predictions"):
            faults.append(f"{key} {content[key]!r}: not a count")
    rules = PROTOCOLS.get(content["protocol"])
    if rules is None:
        return [*faults, f"protocol {content['protocol']!r}: there is none; there are {', '.join(PROTOCOLS)}"]
    if rules.id == NEVER:
        faults.append(f"protocol {NEVER}: its figures stay off the leaderboard")
    if isinstance(content["version"], int) and content["version"] > rules.version:
        faults.append(f"version {content['version']} of {rules.id}: this program knows version {rules.version}")
    for part in ("metrics", "skipped", "provenance", "classes", "baselines", "regions"):
        if not isinstance(content.get(part, {}), dict):
            return [*faults, f"{part}: not an object"]
    try:
        faults += _inner(content, rules)
    except (AttributeError, TypeError, KeyError) as error:
        faults.append(f"not built like a submission ({type(error).__name__}: {error})")
    return faults + _files(folder, content)


def _texts(found: Any, place: str) -> Iterator[str]:
    """Strings and keys that are no short name: where a report's text or a path could be."""
    if isinstance(found, dict):
        for key, value in found.items():
            faults = list(_texts(key, f"a name in {place}"))  # which is not quoted: it may be a text
            yield from faults or _texts(value, f"{place}: {key}")
    elif isinstance(found, list):
        for value in found:
            yield from _texts(value, place)
    elif isinstance(found, str) and (not _SHORT.fullmatch(found) or len(found.split()) > _WORDS):
        yield f"{place}: holds {len(found)} characters that are no short name; texts and paths do not belong here"
    elif isinstance(found, float) and not math.isfinite(found):
        yield f"{place}: not a finite number"


def _fields(place: str, found: Mapping[str, Any], needed: Iterable[str], optional: Iterable[str] = ()) -> list[str]:
    needed, known = set(needed), {*needed, *optional}
    faults = [f"{place}: lacks {', '.join(sorted(needed - set(found)))}"] if needed - set(found) else []
    return faults + ([f"{place}: unknown: {', '.join(sorted(set(found) - known))}"] if set(found) - known else [])


def _inner(content: Mapping[str, Any], rules: Protocol) -> Iterator[str]:
    yield from _metric_fields("metrics", content["metrics"], rules, content["version"])
    for key, entry in content["skipped"].items():
        if key not in rules.metrics and key not in BESIDE:
            yield f"skipped {key}: {rules.id} has no such metric"
        yield from _fields(f"skipped {key}", entry, ("value", "status", "reason"))
        if entry.get("value") is not None or entry.get("reason") not in (*REASONS.values(), "other", "failed"):
            yield f"skipped {key}: not an absent figure with a known reason"
    corpora = {metric.corpus.name: metric.corpus for metric in rules.metrics.values() if metric.corpus}
    for key, labels in content.get("classes", {}).items():
        if key not in corpora or set(labels) - set(corpora[key].labels):
            yield f"classes {key}: labels that {rules.id} does not have"
        for label, entry in labels.items():
            yield from _fields(f"classes {key} {label}", entry, _CLASS)
    for key, entry in content.get("baselines", {}).items():
        yield from _fields(f"baseline {key}", entry, ("metrics",))
        yield from _metric_fields(f"baseline {key}", entry["metrics"], rules, content["version"])
    for key, entry in content.get("regions", {}).items():
        yield from _fields(f"region {key}", entry, ("n", "recognition", "metrics"))
        yield from _fields(f"region {key} recognition", entry["recognition"], (), _RECOGNITION)
        yield from _metric_fields(f"region {key}", entry["metrics"], rules, content["version"])
    made = content["provenance"]
    yield from _fields("provenance", made, _PROVENANCE)
    if not all(isinstance(version, str) for version in made["environment"].values()):
        yield "provenance environment: not versions of packages"
    if not isinstance(made["seed"], int | None) or made["created_from"] not in ("run", "predictions"):
        yield "provenance: seed must be a number, created_from run or predictions"
    for key, length in _HEX.items():
        found = made.get(key)
        if found is not None and not (isinstance(found, str) and re.fullmatch(rf"[0-9a-f]{{{length}}}", found)):
            yield f"provenance {key}: not {length} hexadecimal digits"


def _metric_fields(place: str, metrics: Mapping[str, Any], rules: Protocol, version: int) -> Iterator[str]:
    for key, entry in metrics.items():
        yield from _fields(f"{place} {key}", entry, ("value", "protocol", "version"), ENTRY)
        if key.startswith(NEVER):
            yield f"{place} {key}: figures of {NEVER} stay off the leaderboard"
        elif entry.get("protocol") == rules.id:
            if key not in rules.metrics:
                yield f"{place} {key}: {rules.id} has no such metric"
            if entry.get("version") != version:
                yield f"{place} {key}: version {entry.get('version')}, and the submission says {version}"
        elif entry.get("protocol") not in BESIDE or not _KEYS_BESIDE.fullmatch(key):
            yield f"{place} {key}: of protocol {entry.get('protocol')!r}, and the submission is of {rules.id}"
        ends = entry.get("ci95")
        numbers = [entry.get("value"), *(entry[part] for part in ("std", "overall") if part in entry)]
        if ends is not None:
            numbers += ends if isinstance(ends, list) and len(ends) == 2 else [None]
        if any(isinstance(number, bool) or not isinstance(number, int | float) for number in numbers):
            yield f"{place} {key}: not a figure"


def _files(folder: Path, content: Mapping[str, Any]) -> list[str]:
    stray = sorted(path.name for path in folder.iterdir() if path.name not in FILES)
    faults = [f"holds {', '.join(stray)}: only {' and '.join(FILES)} belong into a submission"] if stray else []
    table = folder / "per_study.csv"
    if not table.is_file():
        return [*faults, "per_study.csv is missing"]
    if sha256(table.read_bytes()) != content["provenance"].get("per_study_sha256"):
        faults.append("per_study.csv is not the one that was submitted: its sha256 differs")
    return faults


def _table_faults(content: Mapping[str, Any], table: StudyTable, rules: Protocol) -> Iterator[str]:
    from zoo.metrics.per_study import UNITS, statistics_columns

    known = {*UNITS, *rules.metrics}
    for metric in rules.metrics.values():
        known |= set(statistics_columns(metric.corpus)) if metric.corpus else set()
    strange = [column for column in table.columns if column not in known]
    if strange:  # not quoted: a name may hold a report's text
        places = ", ".join(str(list(table.columns).index(column) + 2) for column in strange[:5])
        yield f"per_study.csv: {len(strange)} columns that {rules.id} does not have (number {places})"
    if (table.protocol, table.version) != (content["protocol"], content["version"]):
        yield f"per_study.csv is of {table.protocol} version {table.version}"
    if len(table.ids) != content["n"]:
        yield f"n {content['n']}: per_study.csv has {len(table.ids)} studies"
    plain = sum(not re.fullmatch(r"[0-9a-f]{16}", study) for study in table.ids)
    if plain:
        yield f"per_study.csv: {plain} ids are not hashed (16 hexadecimal digits)"


def _figure_faults(content: Mapping[str, Any], table: StudyTable) -> Iterator[str]:
    import numpy as np

    from zoo.metrics.significance import bootstrap_ci, resample

    stated = {key: entry for key, entry in content["metrics"].items() if entry["protocol"] == content["protocol"]}
    keys, n, start = table.keys(), len(table.ids), 0
    provable = {key: table.metric(key) for key in keys}
    tables = [statistics for statistics, _ in provable.values()]
    drawn = resample(np.concatenate(tables, axis=1), table.clusters) if tables else None
    for key, (statistics, aggregate) in provable.items():
        columns = slice(start, start + statistics.shape[1])
        start = columns.stop
        if key not in stated:
            yield f"{key}: left out of submission.json, though per_study.csv holds it"
            continue
        yield from _compare(f"{key} value", stated[key]["value"], float(aggregate(statistics.sum(0), n)))
        interval = None if drawn is None else bootstrap_ci(drawn[0][:, columns], aggregate, drawn[1])
        for end, is_, should in zip(
            ("low", "high"), stated[key].get("ci95") or (None, None), interval or (None, None), strict=True
        ):
            yield from _compare(f"{key} ci95 {end}", is_, should)
        if "std" in stated[key] and key in table.columns:
            yield from _compare(f"{key} std", stated[key]["std"], float(table.columns[key].std()))
    for key in stated:
        if key not in provable:
            yield f"{key}: per_study.csv lacks its columns, so nobody can check it"


def _class_faults(content: Mapping[str, Any], table: StudyTable, rules: Protocol) -> Iterator[str]:
    import numpy as np

    from zoo.metrics.labels import class_figures

    for key, labels in content.get("classes", {}).items():
        corpus = next(metric.corpus for metric in rules.metrics.values() if metric.corpus and metric.corpus.name == key)
        columns = [f"{key}.{column}" for column in corpus.columns]
        if not set(columns) <= set(table.columns):
            yield f"classes {key}: per_study.csv lacks its columns, so nobody can check it"
            continue
        sums = np.array([table.columns[column].sum() for column in columns])
        for label, should in class_figures(sums, corpus.labels).items():
            for figure, value in should.items():
                yield from _compare(f"classes {key} {label} {figure}", labels.get(label, {}).get(figure), value)


def _compare(what: str, stated: float | None, computed: float | None) -> Iterator[str]:
    if (stated is None) != (computed is None) or (
        stated is not None and computed is not None and not abs(stated - computed) <= TOLERANCE
    ):
        yield f"{what}: submission.json says {stated}, per_study.csv gives {computed}"
