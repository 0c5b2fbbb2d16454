"""The README's commands work: the fast ones are run, the long ones with `--dry-run`, make's with `-n`."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(?:bash|sh)\n(.*?)```", README, re.DOTALL)
COMMANDS = [
    line.split("  #")[0].strip()
    for block in BLOCKS
    for line in block.replace("\\\n", " ").splitlines()
    if line.strip() and not line.lstrip().startswith("#")
]
EXAMPLES = re.compile(r"runs/|\.nii\.gz$|\.png$|\.csv$|/path/to/")


def test_the_readme_shows_commands() -> None:
    assert any("make demo" in command for command in COMMANDS)
    assert any("make test" in command for command in COMMANDS)
    assert any("zoo.fit --method reg2rg" in command for command in COMMANDS)


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("make ")])
def test_make(command: str) -> None:
    done = subprocess.run([*command.split(), "-n"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "zoo.fit" in done.stdout or "pytest" in done.stdout


def tried(command: str) -> tuple[str, ...]:
    """What is run of a command: a dry run where it trains, the help where it names the reader's own files."""
    module, *arguments = re.sub(r"^.*?-m (?=zoo\.)", "", command).split()
    if module in ("zoo.fit", "zoo.study") and arguments:
        return module, *(one for one in arguments if one != "--dry-run"), "--dry-run"
    return (module, "--help") if any(map(EXAMPLES.search, arguments)) else (module, *arguments)


@pytest.mark.parametrize("command", dict.fromkeys(tried(line) for line in COMMANDS if "zoo." in line), ids=" ".join)
def test_zoo(command: tuple[str, ...], tmp_path: Path) -> None:
    module, *arguments = command
    arguments = [str(tmp_path / argument) if argument.endswith(".html") else argument for argument in arguments]
    line = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert done.stdout


@pytest.mark.parametrize("link", re.findall(r"\]\(((?!https?:|#)[^)]+)\)", README))
def test_links_point_at_files(link: str) -> None:
    assert (ROOT / link).exists()


def test_nothing_but_make_and_zoo_is_asked_for() -> None:
    known = re.compile(r"(make |(\S*/)?python -m zoo\.|git clone |cd )")
    others = [command for command in COMMANDS if not known.match(command)]
    assert not others, others
