"""An exported run's model card (Mitchell et al., arXiv:1810.03993), in what a run can tell; the hub reads its head."""

from __future__ import annotations

import hashlib
import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from lit_modules.report_generator import Requirement
from zoo.config import Config, import_target
from zoo.metrics.table import absent_metrics, label

NOTICE = "**Research use only; not a medical device.** Nothing it writes may guide the care of a patient."
PHANTOM = (
    "**Phantom**: it was trained and tested on drawn patients. What it says about a real one means nothing, and its "
    "figures tell nothing about patients."
)
REAL = (
    "It was trained on patients' images and reports, and a language model may repeat what it has read: share it only "
    "with those whom the terms of the data allow to read the reports."
)
OWN = re.compile(r"(?<![\w/])checkpoints/phantom-")  # the project's own stand-ins for published weights
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Exported:
    """What a card is written of; nothing in it names a place on this machine.

    Attributes:
        folder: The export, whole but for the card.
        config: Its configuration.
        recipe: The recipe's own settings, by section; empty where the recipe is not here.
        to_give: Dotted key of a setting that the reader must give → the name of what was given here.
        frozen: State-dict prefix → what brings the frozen weights that the export lacks.
        needs: What the method needs beside it.
        metrics: The run's.
        provenance: The run's.
    """

    folder: Path
    config: Config
    recipe: Mapping[str, Mapping[str, Any]]
    to_give: Mapping[str, str]
    frozen: Mapping[str, str]
    needs: Sequence[Requirement]
    metrics: Mapping[str, Any]
    provenance: Mapping[str, Any]

    @property
    def phantom(self) -> bool:
        """Whether it knows drawn patients alone."""
        return bool(self.metrics.get("phantom") or self.provenance.get("phantom"))

    @property
    def foreign(self) -> list[Requirement]:
        """What it needs of others: all but the project's own stand-ins."""
        return [need for need in self.needs if not OWN.search(f"{need.what} {need.how}")]

    @property
    def method(self) -> Any:
        """The method's class."""
        return import_target(self.config.values["model"]["class"])

    @property
    def data(self) -> Any:
        """The dataset's class."""
        return import_target(self.config.values["data"]["class"])


def model_card(export: Exported) -> str:
    """`README.md`: a head in YAML, and what a reader must know."""
    config, phantom = export.config, export.phantom
    kind = "CTs" if export.method.modality == "ct" else "radiographs"
    sections = {
        "Intended use": "Research on report generation and on how it is measured: to compare with, and to go on "
        f"training from. It has read {kind} as its data hold them; nothing is known of it on others.",
        "Use": _use(export),
        "Method": _doc(export.method),
        "Data": _data(export),
        "Licence": _licence(export),
        "Recipe": _recipe(export),
        "Metrics": _metrics(export.metrics, phantom),
        "Provenance": _provenance(export),
    }
    parts = [f"# {config.method}, recipe {config.recipe}", f"{NOTICE} {PHANTOM if phantom else REAL}"]
    parts += [f"## {name}\n{text}" for name, text in sections.items()]
    return f"---\n{_head(export)}\n---\n" + "\n\n".join(parts) + "\n"


def _head(export: Exported) -> str:
    """The YAML that the hub reads."""
    config, metrics, name = export.config, export.metrics, export.data.__name__
    results = [
        EvalResult(
            task_type="image-to-text",
            task_name="radiology report generation",
            dataset_type=name.lower(),
            dataset_name=f"{name}, phantom" if export.phantom else name,
            dataset_split=metrics.get("split"),
            metric_type=key,
            metric_name=f"{label(key, metrics)} (protocol {entry['protocol']}, version {entry['version']})",
            metric_value=round(entry["value"], 6),
        )
        for key, entry in metrics["metrics"].items()
        if entry["value"] is not None and math.isfinite(entry["value"])
    ]
    own = export.phantom and not export.foreign
    return ModelCardData(
        language="en",
        license="apache-2.0" if own else "other",
        license_name=None if own else "terms-of-its-data-and-of-the-weights-below-it",
        library_name="rrg-zoo",
        pipeline_tag="image-to-text",
        tags=["radiology", "report-generation", export.method.modality, config.method]
        + (["phantom"] if export.phantom else []),
        base_model=[need.what for need in export.foreign if HUB_ID.fullmatch(need.what)] or None,
        model_name=f"{config.method}-{config.recipe}",
        eval_results=results or None,
    ).to_yaml()


def _use(export: Exported) -> str:
    given = "".join(f', {key.removeprefix("model.")}="/path/to/{name}"' for key, name in export.to_give.items())
    lines = ["```python", "import zoo", "", f'model = zoo.load("/path/to/this/folder"{given})', "```"]
    if export.frozen:
        lines += ["", "Frozen weights are not in `model.safetensors`; they come from:", ""]
        lines += [f"* `{prefix}*`: `{source}`" for prefix, source in export.frozen.items()]
    if (export.folder / "adapter").is_dir():
        lines += ["", "`adapter/` holds the low-rank adapters alone, which peft puts into that language model:", ""]
        lines += ["```python", "from peft import PeftModel", ""]
        lines += ['model = PeftModel.from_pretrained(language_model, "/path/to/this/folder/adapter")', "```"]
    return "\n".join(lines)


def _doc(kind: Any) -> str:
    """What a class's file says at its head."""
    return (sys.modules[kind.__module__].__doc__ or kind.__doc__ or kind.__name__).strip()


def _data(export: Exported) -> str:
    head = _doc(export.data).split("\n\n")[0]
    drawn = "Drawn patients (phantom), laid out as this dataset:\n\n" if export.phantom else ""
    fingerprint = export.provenance.get("data_fingerprint", "unknown")
    return f"{drawn}{head}\n\nFingerprint of the studies: `{fingerprint}`. No study, report or id is in this folder."


def _licence(export: Exported) -> str:
    if export.phantom and not export.foreign:
        return "Apache-2.0, as the project: the patients are drawn, and so are those behind the weights it began with."
    lines = ["None is given here. The weights are made of what others own, and stay under its terms:", ""]
    lines += [] if export.phantom else [f"* the data, {export.data.__name__}: the agreement that you signed for it;"]
    lines += [f"* `{need.what}`: {need.how};" for need in export.foreign]
    return "\n".join(lines)


def _recipe(export: Exported) -> str:
    config = export.config
    chosen = "".join(f" --with {name}" for name in config.ablations)
    text = f"`python -m zoo.fit --method {config.method} --recipe {config.recipe}{chosen}`, set as in `config.yaml`."
    changes = config.differences(export.recipe) if export.recipe else {}
    rows = [
        f"| `{key}` | `{there}` | `{here}` |"
        for key, (there, here) in changes.items()
        if not str(here).startswith("/path/to/")
    ]
    if not rows:
        return text
    return "\n".join([text, "", "| setting | in the recipe | here |", "|---|---|---|", *rows])


def _metrics(metrics: Mapping[str, Any], phantom: bool) -> str:
    baselines: Mapping[str, Any] = metrics.get("baselines") or {}
    title = f"{'Phantom, not patients. ' if phantom else ''}Protocol `{metrics['protocol']}` version "
    title += f"{metrics['version']}, {metrics.get('split', 'test')} split, {metrics['n']} studies"
    title += f", {metrics['n_empty_predictions']} predictions empty" if metrics["n_empty_predictions"] else ""
    names = ["", "value", "95 % interval", *(name.replace("_", " ") for name in baselines)]
    lines = [f"{title}; definitions: `metrics.json`, `provenance`.", "", _row(names), _row(["---"] * len(names))]
    for key, entry in metrics["metrics"].items():
        rest = [_figure(baseline["metrics"].get(key, {}).get("value")) for baseline in baselines.values()]
        interval = ", ".join(map(_figure, entry.get("ci95") or ()))
        lines.append(_row([label(key, metrics), _figure(entry["value"]), f"[{interval}]" if interval else "–", *rest]))
    for (reason, _), absent in absent_metrics(metrics).items():
        lines += ["", f"Absent: {', '.join(absent)} ({reason})."]
    return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _provenance(export: Exported) -> str:
    made = export.provenance
    git, seconds = made.get("git") or {}, made.get("earlier_seconds", 0.0) + made.get("wall_seconds", 0.0)
    with (export.folder / "model.safetensors").open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    rows = {
        "model.safetensors": f"sha256 `{sha256}`",
        "code": f"commit `{git['commit']}`{', changed since' if git.get('changed') else ''}" if git else "no checkout",
        "configuration": f"sha256 `{made.get('config_hash', 'unknown')}`, before paths were taken out",
        "seed": str(made.get("seed", "unknown")),
        "devices": ", ".join(made.get("devices", [])),
        "time": f"{seconds / 3600:.2f} hours",
        "versions": ", ".join(f"{name} {version}" for name, version in made.get("versions", {}).items()),
    }
    return "\n".join(f"* {name}: {text}" for name, text in rows.items())
