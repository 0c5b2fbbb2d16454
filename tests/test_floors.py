"""The floors hold: an import only ever points down, and the command floor asks for no method or dataset by name."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = ("datamodules", "lit_modules", "zoo")  # from the ground up
METHODS = sorted(path.name for path in (ROOT / "configs").iterdir() if path.is_dir() and not path.name.startswith("_"))
LAYOUTS = re.compile(r"^class \w+\(ReportDataModule\)", re.MULTILINE)
DATASETS = sorted(path.stem for path in (ROOT / "datamodules").glob("*.py") if LAYOUTS.search(path.read_text()))


def imports(source: str) -> list[tuple[int, str]]:
    """Line and dotted name of every import in a file, wherever it stands."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.append((node.lineno, node.module))
    return found


def climbing(package: str, source: str) -> list[str]:
    """The imports of a file that point to a floor above its own."""
    above = FLOORS[FLOORS.index(package) + 1 :]
    return [f"{line}: {name}" for line, name in imports(source) if name.split(".")[0] in above]


@pytest.mark.parametrize("package", FLOORS)
def test_imports_only_point_down(package: str) -> None:
    faults = {
        str(path.relative_to(ROOT)): found
        for path in (ROOT / package).rglob("*.py")
        if (found := climbing(package, path.read_text()))
    }
    assert not faults


def test_the_check_sees_an_import_that_climbs() -> None:
    assert climbing("datamodules", "def f():\n    from lit_modules.reg2rg import Reg2RG\n")
    assert climbing("lit_modules", "import zoo.metrics\n")
    assert not climbing("zoo", "import datamodules.study\nimport lit_modules.reg2rg\n")


def test_the_command_floor_names_no_method_and_no_dataset() -> None:
    named = []
    for path in (ROOT / "zoo").rglob("*.py"):
        if {"metrics", "leaderboard"} & set(path.parts):  # protocols and published figures are named after papers
            continue
        named += [
            f"{path.relative_to(ROOT)}:{node.lineno}: {node.value}"
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Constant) and node.value in {*METHODS, *DATASETS}
        ]
    assert METHODS
    assert not named
