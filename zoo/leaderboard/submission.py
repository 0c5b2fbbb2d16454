"""Submissions: a run's or a file's figures with the numbers that prove them, and without a word of any report.

A submission is a folder of two files. `submission.json` holds the figures and where they come from; `per_study.csv`
holds each study's statistics under a hashed id. Every figure and interval can be recomputed from the second.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datamodules.study import DataFault
from zoo.command import UsageError
from zoo.leaderboard.board import Figure, Row

if TYPE_CHECKING:
    from zoo.metrics.per_study import StudyTable

FORMAT = 1
FILES = ("submission.json", "per_study.csv")
NEVER = "rules14"  # a labeller for the phantom's radiographs; its figures stay off the leaderboard
ENTRY = ("value", "ci95", "std", "overall", "protocol", "version")
# Why a figure is absent, in words that cannot carry a text or a path: what to look for in the reason → what is said.
REASONS = {"weight": "weights", "checkpoint": "weights", "wordnet": "WordNet", "java": "Java"}


def add_run(folder: Path, to: Path, name: str | None = None, **said: Any) -> Path:
    """Writes the submission of a finished run.

    Args:
        folder: The run's folder.
        to: Where submissions lie.
        name: The submission's name; by default the run's.
        **said: `method`, `dataset`, `split` in place of what the run says.

    Returns:
        The submission's folder.

    Raises:
        UsageError: The run is not finished, lacks its per-study table, or the name is taken.
        DataFault: The run's files do not agree with each other.
    """
    from zoo.metrics.per_study import read_table

    files = {file: folder / file for file in ("provenance.json", "metrics.json", "predictions.jsonl", "config.yaml")}
    missing = [file for file, path in files.items() if not path.is_file()]
    made = _json(files["provenance.json"]) if "provenance.json" not in missing else {}
    if missing or made.get("status") != "done":
        state = f"lacks {', '.join(missing)}" if missing else f"status: {made.get('status')}"
        raise UsageError(f"{folder} is no finished run ({state}); finish it: python -m zoo.fit --resume {folder}")
    if not (folder / "per_study.csv").is_file():
        raise UsageError(
            f"{folder} has no per_study.csv, which proves the figures: test the run again with python -m zoo.fit "
            f"--resume {folder}, or add {files['predictions.jsonl']} with --method, --dataset, --split and --protocol"
        )
    config = _config(files["config.yaml"])
    metrics = _json(files["metrics.json"])
    recipe = " ".join([str(config["recipe"]), *(f"with {ablation}" for ablation in config.get("with") or ())])
    content = {
        "method": said.get("method") or known_method(config["method"]),
        "method_id": config["method"],
        "recipe": recipe,
        "dataset": said.get("dataset") or known_dataset(config["data"]["class"].rpartition(":")[2]),
        "split": said.get("split") or metrics["split"],
        "phantom": bool(metrics["phantom"]),
        "status": "reproduced",
    }
    provenance = {
        "config_sha256": made.get("config_hash"),
        "data_fingerprint": made.get("data_fingerprint"),
        "environment": made.get("versions", {}),
        "predictions_sha256": sha256(files["predictions.jsonl"].read_bytes()),
        "seed": made.get("seed"),
        "git_commit": (made.get("git") or {}).get("commit"),
        "created_from": "run",
    }
    return _write(to, name or folder.resolve().name, content, metrics, provenance, read_table(folder / "per_study.csv"))


def add_predictions(file: Path, to: Path, name: str | None = None, **said: Any) -> Path:
    """Scores a file of predictions and writes its submission.

    Args:
        file: `.csv` or `.jsonl`, with columns as `zoo.evaluate` finds them.
        to: Where submissions lie.
        name: The submission's name; by default made of method, dataset and protocol.
        **said: `method`, `dataset`, `split`, `protocol`, and by choice `subset`, `status` and `phantom`.

    Raises:
        UsageError: One of them is missing, or the name is taken.
        DataFault: The file is at fault.
    """
    from zoo.environment import versions
    from zoo.evaluate import KNOWN_COLUMNS
    from zoo.metrics.engine import evaluate
    from zoo.metrics.per_study import table_of
    from zoo.metrics.predictions import read_predictions

    needed = [f"--{key}" for key in ("method", "dataset", "split", "protocol") if not said.get(key)]
    if needed:
        raise UsageError(f"{file} does not say what it is of: give {', '.join(needed)}")
    protocol, status = str(said["protocol"]), said.get("status") or "recomputed"
    if status == "reported":
        raise UsageError("--status reported is for figures printed in papers; say recomputed or reproduced")
    _, rows = read_predictions(file, (None, None, None), KNOWN_COLUMNS)
    ids, references, predictions = zip(*rows, strict=True)
    metrics = evaluate(references, predictions, ids, protocol, per_study=True, progress=True)
    table = table_of(ids, metrics)
    content = {key: said[key] for key in ("method", "dataset", "split")}
    content |= {"subset": said["subset"]} if said.get("subset") else {}
    content |= {"phantom": bool(said.get("phantom")), "status": status}
    pairs = json.dumps(sorted(zip(ids, references, strict=True)), ensure_ascii=False)
    provenance = {
        "config_sha256": None,
        "data_fingerprint": sha256(pairs.encode("utf-8", "surrogatepass")),
        "environment": versions(),
        "predictions_sha256": sha256(file.read_bytes()),
        "seed": None,
        "git_commit": None,
        "created_from": "predictions",
    }
    made_of = [said["method"], said["dataset"], said.get("subset"), protocol]
    return _write(to, name or " ".join(filter(None, made_of)), content, metrics, provenance, table)


def _write(
    to: Path,
    name: str,
    content: Mapping[str, Any],
    metrics: Mapping[str, Any],
    provenance: Mapping[str, Any],
    table: StudyTable,
) -> Path:
    from zoo.leaderboard.check import check
    from zoo.metrics.per_study import StudyTable, write_table
    from zoo.run_directory import atomic_write, sync_folder

    name = re.sub(r"[^a-z0-9._]+", "-", name.lower()).strip("-.")[:80]
    if not name:
        raise UsageError("the submission's name holds no letter or digit; give another with --name")
    target, partial = to / name, to / f".{name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    columns = {column: values for column, values in table.columns.items() if not column.startswith(NEVER)}
    hashed = StudyTable([hashed_id(study) for study in table.ids], columns, table.protocol, table.version)
    write_table(partial / "per_study.csv", hashed)
    proof = {"per_study_sha256": sha256((partial / "per_study.csv").read_bytes())}
    record = {"format": FORMAT, "name": name, **content, **_figures_of(metrics), "provenance": {**provenance, **proof}}
    atomic_write(partial / "submission.json", json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    faults, _ = check(partial, name)
    taken = target.exists()
    same = taken and all(_content(target / file) == _content(partial / file) for file in FILES)
    if faults or taken:
        shutil.rmtree(partial)
    if faults:
        raise DataFault("\n       ".join(faults))
    if taken and not same:
        raise UsageError(f"{target} exists and holds something else; give another name with --name")
    if not taken:
        partial.rename(target)
        sync_folder(to)
    return target


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def _figures_of(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """What a submission takes over from `metrics.json`: figures, and neither texts nor paths."""

    def entries(found: Mapping[str, Any]) -> dict[str, Any]:
        return {
            key: {part: entry[part] for part in ENTRY if part in entry}
            for key, entry in found.items()
            if not key.startswith(NEVER)
        }

    result: dict[str, Any] = {key: metrics[key] for key in ("protocol", "version", "n", "n_empty_predictions")}
    result["metrics"] = entries(metrics["metrics"])
    if metrics.get("classes"):
        result["classes"] = {key: value for key, value in metrics["classes"].items() if not key.startswith(NEVER)}
    result["skipped"] = {
        key: {"value": None, "status": entry["status"], "reason": reason_kind(entry)}
        for key, entry in metrics["skipped"].items()
        if not key.startswith(NEVER)
    }
    if metrics.get("baselines"):
        result["baselines"] = {
            key: {"metrics": entries(value["metrics"])} for key, value in metrics["baselines"].items()
        }
    if metrics.get("regions"):
        result["regions"] = {
            key: {"n": value["n"], "recognition": value["recognition"], "metrics": entries(value["metrics"])}
            for key, value in metrics["regions"].items()
        }
    return result


def reason_kind(entry: Mapping[str, Any]) -> str:
    """Why a figure is absent, in one word of a closed list."""
    words = f"{entry.get('reason', '')} {entry.get('how_to', '')}".casefold()
    known = next((kind for sign, kind in REASONS.items() if sign in words), "other")
    return known if entry["status"] == "skipped" else "failed"


def hashed_id(study: str) -> str:
    """What stands for a study's id: the same study has the same in every submission."""
    return hashlib.sha256(study.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def sha256(content: bytes) -> str:
    """Of a file, in hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def known_dataset(name: str) -> str:
    """The name under which the board knows a DataModule's dataset: that which begins alike, but for hyphens."""
    plain = re.sub(r"\W", "", name).casefold()
    for row in _published():
        known = re.sub(r"\W", "", row.dataset).casefold()
        if known.startswith(plain) or plain.startswith(known):
            return row.dataset
    return name


def known_method(method_id: str) -> str:
    """A method's name as its paper writes it, else its id."""
    return next((row.method for row in _published() if row.method_id == method_id), method_id)


def _published() -> list[Row]:
    from zoo.leaderboard.board import HOME, reported

    return [row for path in sorted((HOME / "reported").glob("*.yaml")) for row in reported(path)]


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataFault(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(content, dict):
        raise DataFault(f"{path}: not a JSON object")
    return content


def _config(path: Path) -> dict[str, Any]:
    import yaml

    try:
        content = yaml.safe_load(path.read_text("utf-8"))
        content["method"], content["recipe"], content["data"]["class"]
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise DataFault(f"{path}: not a run's configuration ({type(error).__name__})") from error
    return content


# Reading


def read_submission(folder: Path) -> dict[str, Any]:
    """A submission's `submission.json`, found to agree with itself and with its table's hash.

    Raises:
        DataFault: It does not; one line for each difference.
    """
    from zoo.leaderboard.check import outer_faults

    content = _json(folder / "submission.json")
    faults = outer_faults(folder, content, folder.name)
    if faults:
        raise DataFault("\n       ".join(f"{folder}: {fault}" for fault in faults))
    return content


def rows_of(folder: Path) -> list[Row]:
    """A submission's rows: one for each protocol among its figures, for each trivial baseline, for each region."""
    content = read_submission(folder)
    whole = {"absent": content["skipped"], "subset": content.get("subset")}
    rows = _rows(content, folder, content["method"], content["metrics"], content["n"], **whole)
    for baseline, entry in content.get("baselines", {}).items():
        rows += _rows(content, folder, baseline.replace("_", " "), entry["metrics"], content["n"], baseline=baseline)
    recognised = content["metrics"].get("region_f1")
    for region, entry in content.get("regions", {}).items():
        rows += _rows(content, folder, content["method"], entry["metrics"], entry["n"], subset=region)
        if recognised:
            own = entry["recognition"]
            rules = {key: recognised[key] for key in ("protocol", "version")}
            named = {f"region_{key}": {"value": own[key], **rules} for key in ("precision", "recall", "f1")}
            rows += _rows(content, folder, content["method"], named, own["tp"] + own["fn"], subset=region)
    return rows


def _rows(
    content: Mapping[str, Any],
    folder: Path,
    method: str,
    metrics: Mapping[str, Any],
    n: int,
    absent: Mapping[str, Any] | None = None,
    baseline: str | None = None,
    subset: str | None = None,
) -> list[Row]:
    """A row for each protocol among the metrics."""
    found: dict[tuple[str, int], dict[str, Figure]] = {(content["protocol"], content["version"]): {}} if absent else {}
    for key, entry in metrics.items():
        own = found.setdefault((entry["protocol"], entry["version"]), {})
        own[key] = Figure(entry["value"], entry.get("std"), tuple(entry["ci95"]) if entry.get("ci95") else None)
        if "overall" in entry:
            own[f"{key}_overall"] = Figure(entry["overall"])
    parts = [part for part in (content["name"], baseline, subset) if part]
    provenance = {**content["provenance"], "folder": str(folder), **({"baseline": baseline} if baseline else {})}
    return [
        Row(
            id="/".join(parts if protocol == content["protocol"] else [*parts, protocol]),
            method=method,
            paper=content["name"],
            table=None,
            dataset=content["dataset"],
            split=content["split"],
            protocol=protocol,
            version=version,
            status=content["status"],
            phantom=content["phantom"],
            subset=subset,
            n=n,
            figures=figures,
            absent=absent or {} if protocol == content["protocol"] else {},
            group="" if baseline else content.get("recipe", ""),
            provenance=provenance,
            method_id=None if baseline else content.get("method_id"),
        )
        for (protocol, version), figures in found.items()
    ]
