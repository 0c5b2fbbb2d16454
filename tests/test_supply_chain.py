"""Nothing that is read can run code or write elsewhere: what the sources call, and the archive that they unpack."""

import ast
import importlib.util
import io
import sys
import tarfile
from pathlib import Path

import pytest

from datamodules.study import DataFault
from zoo import command
from zoo.metrics import radgraph

ROOT = Path(__file__).parents[1]
FLOORS = ("datamodules", "lit_modules", "zoo")
RUNS_CODE = {"eval", "exec", "compile", "__import__"}
UNPICKLES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
ONLINE = {
    "socket",
    "ssl",
    "urllib.request",
    "http.client",
    "http.server",
    "httpx",
    "requests",
    "aiohttp",
    "ftplib",
    "smtplib",
}
MAY_GO_ONLINE = {"zoo/registry/transfer.py"}  # zoo.download
MAY_OPEN_SOCKETS = {"zoo/processes.py"}  # whether the first process of a run is there


def dangers(source: str) -> list[str]:
    """Line and call of all that can run code, or write anywhere, because of what stands in a file."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in UNPICKLES and node.attr != "UnpicklingError":
            found.append((node.lineno, ast.unparse(node)))
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in UNPICKLES:
            found.append((node.lineno, ast.unparse(node)))
        if isinstance(node, ast.Call) and _is_danger(node):
            found.append((node.lineno, ast.unparse(node.func)))
    return [f"{line}: {what}" for line, what in found]


def _is_danger(call: ast.Call) -> bool:
    given = {word.arg: ast.unparse(word.value) for word in call.keywords}
    name = ast.unparse(call.func)
    method = name.rsplit(".", 1)[-1]
    return (
        name in RUNS_CODE
        or name in ("os.system", "os.popen", "tempfile.mktemp", "torch.hub.load", "runpy.run_path")
        or given.get("shell", "False") != "False"
        or given.get("trust_remote_code", "False") != "False"
        or given.get("allow_pickle", "False") != "False"
        or (name == "torch.load" and given.get("weights_only") != "True")
        or ("ckpt_path" in given and given.get("weights_only") != "True")
        or (name.startswith("yaml.") and method.endswith(("load", "load_all")) and not _is_safe(name, given))
        or (method in ("extract", "extractall") and given.get("filter") != "'data'")
        or method == "unpack_archive"
    )


def _is_safe(name: str, given: dict[str, str]) -> bool:
    return name.startswith("yaml.safe_load") or "SafeLoader" in given.get("Loader", "")


def online(source: str) -> set[str]:
    """The modules that a file imports to reach other machines."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names & ONLINE


def sources() -> dict[str, str]:
    files = [path for floor in FLOORS for path in sorted((ROOT / floor).rglob("*.py"))]
    return {path.relative_to(ROOT).as_posix(): path.read_text() for path in files}


def test_no_file_of_the_zoo_runs_what_it_reads() -> None:
    assert not {name: found for name, source in sources().items() if (found := dangers(source))}


def test_no_command_imports_what_fetches_code_from_the_hub(tmp_path, monkeypatch) -> None:
    (tmp_path / "kernels.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "kernels", raising=False)
    assert importlib.util.find_spec("kernels")
    assert command.run(lambda: None) == 0
    assert importlib.util.find_spec("kernels") is None  # as transformers asks
    with pytest.raises(ImportError):
        importlib.import_module("kernels")


def test_only_downloads_reach_other_machines() -> None:
    reaching = {name: found for name, source in sources().items() if (found := online(source))}
    assert {name for name, found in reaching.items() if found - {"socket"}} == MAY_GO_ONLINE
    assert set(reaching) - MAY_GO_ONLINE <= MAY_OPEN_SOCKETS


@pytest.mark.parametrize(
    "source",
    [
        "eval(text)",
        "pickle.load(file)",
        "from pickle import loads",
        "yaml.load(text)",
        "yaml.unsafe_load(text)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "trainer.fit(model, ckpt_path=path)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "np.load(path, allow_pickle=True)",
        "archive.extractall(folder)",
        "shutil.unpack_archive(path)",
        "subprocess.run(line, shell=True)",
    ],
)
def test_the_check_sees(source: str) -> None:
    assert dangers(source)


def test_the_check_sees_who_goes_online_and_lets_the_harmless_pass() -> None:
    assert online("def f():\n    from urllib import request") and online("import httpx")
    harmless = "model.eval(); torch.load(p, weights_only=True); yaml.load(t, Loader=yaml.SafeLoader); json.load(f)"
    assert not dangers(harmless) and not online("from urllib.parse import quote")


def packed(path: Path, name: str, **of_member: object) -> Path:
    """An archive of one good file and one member."""
    with tarfile.open(path, "w:gz") as archive:
        for each, properties in (("config.json", {}), (name, of_member)):
            member = tarfile.TarInfo(each)
            member.size = 2
            for key, value in properties.items():
                setattr(member, key, value)
            archive.addfile(member, io.BytesIO(b"{}"))
    return path


@pytest.mark.parametrize(
    ("name", "of_member", "why"),
    [
        ("../outside", {}, "outside its own folder"),
        ("a/../../outside", {}, "outside its own folder"),
        ("/tmp/outside", {}, "outside its own folder"),
        ("link", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd", "size": 0}, "a link or a device"),
        ("link", {"type": tarfile.LNKTYPE, "linkname": "config.json", "size": 0}, "a link or a device"),
        ("device", {"type": tarfile.CHRTYPE, "size": 0}, "a link or a device"),
        ("pipe", {"type": tarfile.FIFOTYPE, "size": 0}, "a link or a device"),
    ],
)
def test_an_archive_cannot_write_outside_its_folder(tmp_path, name, of_member, why) -> None:
    folder = tmp_path / "within" / "folder"
    with pytest.raises(DataFault, match=f"a.tar.gz: refused, .*{why}"):
        radgraph.unpack(packed(tmp_path / "a.tar.gz", name, **of_member), folder)
    assert {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()} == {
        "a.tar.gz",
        "within/folder/config.json",
    }


def test_an_archive_may_not_unpack_to_too_much(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(radgraph, "UNPACKED", 3)
    with pytest.raises(DataFault, match="more than 3 bytes"):
        radgraph.unpack(packed(tmp_path / "a.tar.gz", "weights.th"), tmp_path / "folder")
    assert not (tmp_path / "folder" / "weights.th").exists()


def test_a_whole_archive_is_unpacked_and_a_cut_one_is_a_fault(tmp_path) -> None:
    archive = packed(tmp_path / "a.tar.gz", "vocabulary/labels.txt")
    radgraph.unpack(archive, tmp_path / "folder")
    assert (tmp_path / "folder" / "vocabulary" / "labels.txt").read_bytes() == b"{}"
    archive.write_bytes(archive.read_bytes()[:-30])
    with pytest.raises(DataFault, match="cannot be unpacked"):
        radgraph.unpack(archive, tmp_path / "other")
