"""`python -m zoo.pins LOCK`: refuses a lock that holds a version known to be bad, or a package without a hash.

`zoo.doctor` asks the same of what is installed. The list is short on purpose: versions that bring harm to who reads
checkpoints or archives. `make audit` asks pypi.org about everything else.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import zoo
from zoo import command


@dataclass(frozen=True)
class BadPin:
    """Versions that must not be used, by all the names of a package: `versions` is a specifier as pip writes it."""

    packages: tuple[str, ...]
    versions: str
    reason: str


LIGHTNING = ("lightning", "pytorch-lightning")
KNOWN_BAD = (
    BadPin(LIGHTNING, ">=2.6.2,<2.6.4", "a malicious upload (GHSA-w37p-236h-pfx3)"),
    BadPin(LIGHTNING, "<2.6.6", "a checkpoint that is loaded can run code (GHSA-qqmf-gpg7-g8gw)"),
    BadPin(("torch",), "<2.6", "torch.load(weights_only=True) can run code (CVE-2025-32434)"),
    BadPin(("torch",), "<2.10", "the weights_only unpickler can be made to run code (CVE-2026-24747)"),
    BadPin(("monai",), "<1.5.2", "archives write outside their folder, pickles run code (GHSA-9rg3-9pvr-6p27)"),
)


@dataclass(frozen=True)
class Pin:
    """One package of a lock: its name, its one version, where it applies, and whether its files are fixed by hash."""

    name: str
    version: str
    requirement: Requirement
    hashed: bool

    @property
    def here(self) -> bool:
        """Whether it belongs to this interpreter and system."""
        return self.requirement.marker is None or self.requirement.marker.evaluate()


def known_bad(versions: Iterable[tuple[str, str]]) -> Iterator[str]:
    """A line about each `(package, version)` that is on the list."""
    for name, version in versions:
        for bad in KNOWN_BAD:
            if canonicalize_name(name) in bad.packages and SpecifierSet(bad.versions).contains(version, True):
                yield f"{name} {version}: {bad.reason}"
                break


def read_lock(path: Path) -> list[Pin]:
    """The packages of a `requirements.lock` as uv writes it.

    Raises:
        command.EnvironmentFault: It cannot be read, or an entry is no `name==version`.
    """
    try:
        text = path.read_text(encoding="utf-8").replace("\\\n", " ")
    except (OSError, UnicodeDecodeError) as error:
        raise command.EnvironmentFault(f"{path}: cannot be read ({error}); make lock writes it") from None
    pins = []
    for line in (line for line in text.splitlines() if line.strip() and not line.startswith("#")):
        words, *hashes = line.split("--hash=")
        try:
            requirement = Requirement(words)
            (only,) = requirement.specifier
            if only.operator != "==":
                raise ValueError
        except ValueError:
            raise command.EnvironmentFault(f"{path}: {words.strip()!r} is no name==version; make lock") from None
        pins.append(Pin(requirement.name, only.version, requirement, bool(hashes)))
    return pins


def own_lock() -> Path:
    """The checkout's lock; a wheel has none."""
    return Path(zoo.__file__).parent.parent / "requirements.lock"


def installed() -> Mapping[str, str]:
    """Package, in lower case with dashes, → version, of all that is installed."""
    found = ((each.metadata["Name"], each.version) for each in metadata.distributions())
    return {canonicalize_name(name): version for name, version in found if name}


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return command.run(lambda: check(sys.argv[1:] if argv is None else argv))


def check(argv: list[str]) -> None:
    """Checks the lock that the arguments name.

    Raises:
        command.EnvironmentFault: With what is bad in it.
    """
    if len(argv) != 1 or argv[0].startswith("-"):
        raise command.UsageError("name one lock: python -m zoo.pins requirements.lock")
    path = Path(argv[0])
    pins = read_lock(path)
    wrong = [f"{path}: {line}" for line in known_bad((pin.name, pin.version) for pin in pins)]
    wrong += [f"{path}: {pin.name} {pin.version} has no hash; make lock" for pin in pins if not pin.hashed]
    if wrong:
        raise command.EnvironmentFault("\n       ".join(wrong))
    print(f"{path}: {len(pins)} packages, each with its hashes, none of a version known to be bad")


if __name__ == "__main__":
    sys.exit(main())
