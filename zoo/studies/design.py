"""What a study is: `configs/<method>/studies/<study>.yaml` read, checked, and resolved into runs."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from zoo.command import UsageError, first_comment
from zoo.config import Config, compose
from zoo.layers import Layer, flatten, read_layer
from zoo.leaderboard.render import BESIDE
from zoo.metrics.protocols import PROTOCOLS

KEYS, ARM_KEYS = ("metrics", "seeds", "plot", "expect", "arms"), ("with", "set", "along", "after")
PLOTS = ("mean", "box")  # means and sds over seeds; boxes over cases
SEEDED = ("run.seed", "data.seed")  # what a seed sets
INIT = "model.init_from"  # what `after` sets
# Settings that decide where and how a run is made, not what comes out of it.
PLACE = {"run.folder", "run.checkpoint_every", "data.num_workers", "data.store", "trainer.enable_progress_bar",
         "trainer.enable_model_summary", "trainer.log_every_n_steps", "trainer.profiler"}  # fmt: skip


@dataclass(frozen=True)
class Arm:
    """One line of the grid: a recipe with ablations and settings, and a key that it varies.

    Attributes:
        name: Its name in tables.
        ablations: As `--with`.
        settings: Dotted key → value.
        along: Dotted key → values, all of one length; the first key is the axis. Empty: the arm is a single point.
        after: The point whose runs' tested checkpoints, seed by seed, its runs begin from, a stage after a stage.
        origin: `file:line` of `after`.
    """

    name: str
    ablations: tuple[str, ...]
    settings: Mapping[str, Any]
    along: Mapping[str, Sequence[Any]]
    after: str | None = None
    origin: str = ""

    def points(self) -> Iterator[tuple[str, Any, dict[str, Any]]]:
        """Name, place on the axis (`None` without one) and settings of each point."""
        if not self.along:
            yield self.name, None, dict(self.settings)
        for values in zip(*self.along.values(), strict=True):
            along = dict(zip(self.along, values, strict=True))
            yield f"{self.name} at {values[0]}", values[0], {**self.settings, **along}


@dataclass(frozen=True)
class Design:
    """A study as its file has it, for one recipe.

    Attributes:
        name: `<method>/<study>`.
        recipe: One of the method's.
        description: The file's first comment.
        metrics: Keys of the `metrics` of `metrics.json`, or `<group>/<key>` of one of its groups; the first one leads.
        seeds: Each a run of every point.
        expect: Pairs of points: the first one's metrics were found larger than the second one's.
        arms: In the file's order.
        plot: What `plot.png` shows, one of `PLOTS`.
    """

    name: str
    recipe: str
    description: str
    metrics: tuple[str, ...]
    seeds: tuple[int, ...]
    expect: tuple[tuple[str, str], ...]
    arms: tuple[Arm, ...]
    plot: str = PLOTS[0]

    @property
    def method(self) -> str:
        """The method's name."""
        return self.name.partition("/")[0]

    @property
    def axis(self) -> str | None:
        """The dotted key that arms vary, where any does."""
        return next((key for arm in self.arms for key in arm.along), None)

    def stages(self) -> list[Arm]:
        """The arms, each behind the one that it comes after; else in the file's order."""
        owners = {name: arm for arm in self.arms for name, _, _ in arm.points()}

        def stage(arm: Arm) -> int:
            return 1 + stage(owners[arm.after]) if arm.after else 0

        return sorted(self.arms, key=stage)


@dataclass(frozen=True, eq=False)
class Run:
    """One configuration with one seed.

    Attributes:
        config: With `run.folder` set to `folder`; `model.init_from` is set when the run that this one is after is done.
        digest: Of all settings but those of `PLACE` and `log`, with the digest of the run that this one is after as
            `model.init_from`; studies with the same digest share the run.
        folder: Where the run's folder is made, with `log.txt`, `lock` and `settings.yaml` beside it.
        after: The run whose tested checkpoint this one begins from.
    """

    config: Config
    digest: str
    folder: Path
    after: Run | None = None

    @property
    def stage(self) -> int:
        """The number of runs that must be done before it."""
        return 0 if self.after is None else 1 + self.after.stage


@dataclass(frozen=True, eq=False)
class Point:
    """A row of the study's table.

    Attributes:
        name: `<arm>`, or `<arm> at <value>`.
        arm: Its arm's name.
        at: Its place on the arm's axis; `None` without one.
        settings: What the arm sets here, ablations under `with`, the point that it begins from under `after`.
        runs: Seed → run.
    """

    name: str
    arm: str
    at: Any
    settings: Mapping[str, Any]
    runs: Mapping[int, Run]


# Reading


def read_design(name: str, path: Path, recipe: str) -> Design:
    """Reads a study's file; what its `when: {<recipe>: …}` says about the recipe is laid over the rest.

    Args:
        name: `<method>/<study>`.
        path: Its file.
        recipe: One of the method's recipes.

    Raises:
        UsageError: Everything that is wrong with the file, one line each.
    """
    layer = read_layer(path, recipe)
    errors = _unknown(layer, layer.values, "", KEYS)
    if layer.method or layer.recipe or layer.ablations:
        errors.append(f"{layer.name}: method, recipe and with do not stand in a study's head; arms have `with`")
    metrics = _distinct(layer, layer.values.get("metrics"), "metrics", str, errors)
    seeds = _distinct(layer, layer.values.get("seeds"), "seeds", int, errors)
    arms = [_arm(layer, str(key), entry or {}, errors) for key, entry in _mapping(layer, "arms", errors).items()]
    if not arms:
        errors.append(f"{layer.name}: a study needs arms: {{<name>: {{with: […], set: {{…}}, along: {{…}}}}}}")
    axes = {next(iter(arm.along)) for arm in arms if arm.along}
    if len(axes) > 1:
        errors.append(f"{layer.origin('arms')}: arms vary along different keys ({', '.join(sorted(axes))}); take one")
    names = [point for arm in arms for point, _, _ in arm.points()]
    errors += [
        f"{layer.origin('arms')}: two points are called {twice!r}" for twice, n in Counter(names).items() if n > 1
    ]
    errors += [line for metric in metrics if (line := _unknown_metric(layer, metric))]
    errors += _wrong_stages(arms)
    plot = str(layer.values.get("plot") or PLOTS[0])
    if plot not in PLOTS:
        errors.append(f"{layer.origin('plot')}: plot is {' or '.join(PLOTS)}, not {plot!r}{_hint(plot, PLOTS)}")
    expect = [_pair(layer, text, names, errors) for text in layer.values.get("expect") or ()]
    if errors:
        raise UsageError("\n       ".join(errors))
    return Design(name, recipe, first_comment(path), tuple(metrics), tuple(seeds), tuple(expect), tuple(arms), plot)


def _arm(layer: Layer, name: str, entry: Any, errors: list[str]) -> Arm:
    place = f"arms.{name}"
    if not isinstance(entry, Mapping):
        errors.append(f"{layer.origin(place)}: arm {name!r} is written {{with: […], set: {{…}}, along: {{…}}}}")
        return Arm(name, (), {}, {})
    errors += _unknown(layer, entry, f"{place}.", ARM_KEYS)
    ablations, settings, along = entry.get("with") or [], entry.get("set") or {}, entry.get("along") or {}
    after = None if entry.get("after") is None else str(entry["after"])
    if not (isinstance(ablations, list) and isinstance(settings, Mapping) and isinstance(along, Mapping)):
        errors.append(f"{layer.origin(place)}: arm {name!r}: `with` is a list, `set` and `along` have keys")
        return Arm(name, (), {}, {})
    settings, along = flatten(settings), flatten(along)
    lengths = {len(values) if isinstance(values, list) else 0 for values in along.values()}
    if lengths and (len(lengths) > 1 or lengths == {0}):
        errors.append(f"{layer.origin(f'{place}.along')}: the keys of `along` need lists of one length")
        along = {}
    axis: list[Any] = next(iter(along.values()), [])
    if any(isinstance(value, (list, Mapping)) or axis.count(value) > 1 for value in axis):
        errors.append(
            f"{layer.origin(f'{place}.along')}: the axis, the first key of `along`, needs distinct plain values"
        )
        along = {}
    own = (*SEEDED, "run.folder", *([INIT] if after else []))
    taken = [key for key in (*settings, *along) if key in own]
    errors += [f"{layer.origin(place)}: arm {name!r} must not set {key}: the study does" for key in taken]
    return Arm(name, tuple(map(str, ablations)), settings, along, after, layer.origin(f"{place}.after"))


def _wrong_stages(arms: Sequence[Arm]) -> list[str]:
    """Arms after a point that is not there, and arms that wait for themselves."""
    owners = {name: arm for arm in arms for name, _, _ in arm.points()}
    errors = []
    for arm in arms:
        chain = [arm]
        while (before := owners.get(chain[-1].after or "")) and before not in chain:
            chain.append(before)
        several = next((other for other in arms if other.along and other.name == arm.after), None)
        if before is arm:
            way = " after ".join(repr(each.name) for each in (*chain, arm))
            errors.append(f"{arm.origin}: no run of these could be the first one: {way}")
        elif several:
            names = ", ".join(name for name, _, _ in several.points())
            errors.append(f"{arm.origin}: arm {arm.after!r} has several points; take one: {names}")
        elif arm.after and arm.after not in owners:
            hint = _hint(arm.after, list(owners))
            errors.append(f"{arm.origin}: the study has no point {arm.after!r} to come after{hint}")
    return errors


def _mapping(layer: Layer, key: str, errors: list[str]) -> Mapping[str, Any]:
    value = layer.values.get(key) or {}
    if isinstance(value, Mapping):
        return value
    errors.append(f"{layer.origin(key)}: {key} has a name for each entry")
    return {}


def _distinct(layer: Layer, values: Any, key: str, kind: type, errors: list[str]) -> list[Any]:
    good = isinstance(values, list) and values and all(type(value) is kind for value in values)
    if not good or len(set(values)) < len(values):
        errors.append(f"{layer.origin(key)}: {key} is a list of distinct {'names' if kind is str else 'whole numbers'}")
        return []
    return values


def _unknown(layer: Layer, values: Mapping[str, Any], prefix: str, known: Sequence[str]) -> list[str]:
    return [
        f"{layer.origin(prefix + str(key))}: there is no {key!r} here, only {', '.join(known)}{_hint(str(key), known)}"
        for key in values
        if key not in known
    ]


def _unknown_metric(layer: Layer, metric: str) -> str:
    key = metric.rpartition("/")[2]
    known = {name for protocol in PROTOCOLS.values() for name in protocol.metrics}
    if key in known or key.startswith(tuple(BESIDE)):
        return ""
    return f"{layer.origin('metrics')}: no protocol has a metric {key!r}{_hint(key, sorted(known))}"


def _pair(layer: Layer, text: Any, names: Sequence[str], errors: list[str]) -> tuple[str, str]:
    better, sign, worse = (part.strip() for part in str(text).partition(" > "))
    if not sign or " > " in worse:
        errors.append(f"{layer.origin('expect')}: {text!r}: expectations are pairs, written `A > B`")
        return "", ""
    for name in (better, worse):
        if name not in names:
            errors.append(f"{layer.origin('expect')}: the study has no point {name!r}{_hint(name, names)}")
    return better, worse


def _hint(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, 1)
    return f"; did you mean {near[0]}?" if near else ""


# Resolving


def plan(design: Design, overrides: Sequence[str], output: Path, allow_missing: bool = False) -> list[Point]:
    """Resolves every point of a study with every seed.

    Args:
        design: The study.
        overrides: `key=value` arguments, which hold for all runs.
        output: The folder whose `runs/` holds the runs.
        allow_missing: Whether required settings may be missing.

    Raises:
        UsageError: Everything that is wrong, one line each.
    """
    errors = _refused(design, overrides)
    points: dict[str, Point] = {}
    known: dict[str, Run] = {}
    for arm in design.stages():
        errors += _untrained(arm, points)
        for name, at, settings in arm.points():
            runs = {}
            for seed in design.seeds:
                arguments = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
                arguments += [f"{key}={seed}" for key in SEEDED]
                try:
                    config = compose(
                        design.method, design.recipe, arm.ablations, [*arguments, *overrides], allow_missing
                    )
                except UsageError as error:
                    errors.append(f"arm {arm.name!r}: {error}")
                    break  # the other seeds have the same errors
                if arm.after and INIT not in flatten(config.values):
                    model = config.values["model"]["class"]
                    errors.append(f"{arm.origin}: {model} has no setting init_from: it cannot begin from a checkpoint")
                    break
                run = _run(config, output, points[arm.after].runs.get(seed) if arm.after else None)
                runs[seed] = known.setdefault(run.digest, run)
            shown = ({"with": list(arm.ablations)} if arm.ablations else {}) | settings
            points[name] = Point(name, arm.name, at, shown | ({"after": arm.after} if arm.after else {}), runs)
    if errors:
        raise UsageError("\n       ".join(dict.fromkeys(errors)))
    return [points[name] for arm in design.arms for name, _, _ in arm.points()]


def _untrained(arm: Arm, points: Mapping[str, Point]) -> Iterator[str]:
    """That the point which the arm comes after is not trained, and which one to take instead."""
    before = points.get(arm.after or "")
    if before and any(run.config.untrained for run in before.runs.values()):
        tested = before.settings.get("after")
        instead = f"come after {tested!r}, whose checkpoint it tests" if tested else "come after one that is trained"
        what = f"{arm.after!r} is trained for 0 epochs (trainer.max_epochs) and leaves no checkpoint"
        yield f"{arm.origin}: {what}; {instead}"


def _refused(design: Design, overrides: Sequence[str]) -> list[str]:
    """Arguments that would undo what the study varies."""
    own = {key: f"arm {arm.name!r} sets it" for arm in design.arms for key in (*arm.settings, *arm.along)}
    own |= dict.fromkeys([INIT] if any(arm.after for arm in design.arms) else [], "arms begin from others' checkpoints")
    own |= dict.fromkeys(SEEDED, "give --seeds") | {"run.folder": "give --output"}
    keys = [text.partition("=")[0] for text in overrides]
    return [f"{key}=… cannot be given for the whole study: {own[key]}" for key in keys if key in own]


def _run(config: Config, output: Path, after: Run | None) -> Run:
    settings = {key: value for key, value in flatten(config.values).items() if key not in PLACE}
    settings = {key: value for key, value in settings.items() if not key.startswith("log.")}
    if after:
        settings[INIT] = after.digest  # and not where its checkpoint lies
    identity = json.dumps([config.method, config.recipe, settings], sort_keys=True)
    digest = hashlib.sha256(identity.encode()).hexdigest()
    folder = output / "runs" / f"{config.method}-{config.recipe}-{digest[:12]}"
    values = config.values | {"run": config.values["run"] | {"folder": str(folder)}}
    return Run(replace(config, values=values), digest, folder, after)
