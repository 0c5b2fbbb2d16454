"""Runs of a study whose figures are written by hand."""

import json
from types import SimpleNamespace

import numpy as np
from PIL import Image

from zoo.metrics.per_study import write_table
from zoo.studies.design import Design, Point, Run

METRICS = ("cider", "positive/cider", "region_f1")


def design(arms, metrics=METRICS, seeds=(0, 1, 2), expect=(), plot="mean"):
    return Design("toy/s", "phantom", "What helps", metrics, seeds, expect, tuple(arms), plot)


class Written:
    """Points whose runs are folders with a `metrics.json` each."""

    def __init__(self, folder):
        self.folder, self.points = folder, []

    def add(self, arm, values, at=None, tables=None, **content):
        """A point with a value a seed, `None` for a run that is not there; by choice each with its per-study table."""
        name = arm if at is None else f"{arm} at {at}"
        runs = {}
        for seed, value in enumerate(values):
            place = self.folder / f"{name}-{seed}"
            runs[seed] = Run(SimpleNamespace(), f"{name}-{seed}", place)
            if value is not None:
                (place / "run").mkdir(parents=True)
                (place / "run" / "config.yaml").write_text("")
                metrics = {"cider": figure(value), "region_f1": figure(0.5, "region_recognition")}
                groups = {"positive": {"n": 9, "metrics": {"cider": figure(2 * value)}}}
                scored = {"phantom": True, "split": "test", "protocol": "regionformer", "version": 1, "n": 12}
                result = {**scored, "metrics": metrics, "skipped": {}, "groups": groups}
                (place / "run" / "metrics.json").write_text(json.dumps(result | content))
                if tables:
                    write_table(place / "run" / "per_study.csv", tables[seed])
        self.points.append(Point(name, arm, at, {}, runs))
        return self


def figure(value, protocol="regionformer"):
    return {"value": value, "protocol": protocol, "version": 1}


def uncut(path):
    """A plot in grey, `(row, column)`, of which nothing reaches the edge."""
    grey = np.asarray(Image.open(path).convert("L"))
    edge = np.concatenate([grey[:3].ravel(), grey[-3:].ravel(), grey[:, :3].ravel(), grey[:, -3:].ravel()])
    assert (edge == 255).all()
    return grey
