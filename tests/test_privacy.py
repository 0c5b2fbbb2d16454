"""No way out of the machine, and a patient's text and name only where SECURITY.md says, of every command and method."""

import gzip
import os
import re
import shutil
import tempfile
import zipfile
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
import wandb

from datamodules.candid_ptx_tables import read_films
from datamodules.padchest_gr_tables import read_entries
from datamodules.radgenome_chestct import read_region_reports
from datamodules.study import DataFault
from lit_modules.nets.backbones import at_hand, build_tokenizer, located
from tests.no_network import no_network
from zoo import command
from zoo.config import compose, import_target
from zoo.doctor import main as doctor
from zoo.evaluate import main as evaluate
from zoo.export import main as export
from zoo.fit import main as fit
from zoo.predict import main as predict
from zoo.prepare import main as prepare

ROOT = Path(__file__).parents[1]
METHODS = sorted(path.parent.name for path in (ROOT / "configs").glob("*/phantom.yaml"))
WRITTEN, SAID, NAME = "quaggawritten", "quaggasaid", "quaggaperson"  # in reports, in predictions, in headers of files
WORDS = (WRITTEN, SAID, NAME)
MAY_HOLD = {  # of what a run leaves; of an examination that zoo.predict was given there is no report
    "predictions.jsonl": {WRITTEN, SAID},
    "gallery.html": {WRITTEN, SAID},
    "report.json": {SAID},
    "report.html": {SAID},
}


def mark(root: Path) -> None:
    """Puts a sentence behind every sentence of a dataset's reports, and a person into its images' headers."""
    for path in root.rglob("*"):
        if path.suffix in (".csv", ".json", ".txt") and path.name != "PHANTOM.json" and "splits" not in path.parts:
            path.write_text(re.sub(r'(?<=[a-z])\.(?=[\s",])', f". Known to Mr {WRITTEN}.", path.read_text()))
        elif path.name.startswith("2.25."):
            mark_dicom(path)
        elif path.name.endswith(".nii.gz"):
            content = bytearray(gzip.decompress(path.read_bytes()))
            content[148 : 148 + len(NAME)] = NAME.encode()  # the header's `descrip`
            path.write_bytes(gzip.compress(content, 1))
            assert NAME.encode() in bytes(nibabel.load(path).header["descrip"])


def mark_dicom(path: Path) -> None:
    """A person in every kind of tag that may hold one: names, numbers, dates, places, UIDs, private tags, overlays."""
    dataset = pydicom.dcmread(path)
    for tag in ("PatientName", "PatientID", "AccessionNumber", "InstitutionName", "ReferringPhysicianName", "StudyID",
                "OperatorsName", "PatientComments", "StudyDescription", "SeriesDescription", "ImageComments",
                "DeviceSerialNumber", "StationName", "RequestingPhysician", "AdditionalPatientHistory"):  # fmt: skip
        setattr(dataset, tag, NAME)
    dataset.PatientBirthDate, dataset.PatientAge = "19341127", "091Y"
    dataset.private_block(0x0009, NAME, create=True).add_new(0x01, "LO", NAME)
    dataset.add_new(0x60000022, "LO", NAME)  # an overlay's description, and its pixels
    dataset.add_new(0x60003000, "OW", NAME.encode())
    dataset.file_meta.SourceApplicationEntityTitle = NAME
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = "1.2.19341127"  # the file's name is its id
    dataset.save_as(path, enforce_file_format=True)


def held(path: Path) -> set[str]:
    """Which of the words stand in a file, in any letters, packed or not."""
    content = path.read_bytes()
    if content[:2] == b"\x1f\x8b":
        content += gzip.decompress(content)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            content += b"".join(archive.read(name) for name in archive.namelist())
    return {word for word in WORDS if word.encode() in content.lower()}


@pytest.fixture
def watched(tmp_path, monkeypatch):
    """A home, a folder for temporary files and a cache of the test's own, so that whatever is written is found."""
    for variable, name in {"HOME": "home", "ZOO_CACHE": "cache", "TMPDIR": "tmp", "XDG_CACHE_HOME": "xdg"}.items():
        (tmp_path / name).mkdir()
        monkeypatch.setenv(variable, str(tmp_path / name))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    wandb.teardown()  # else the next tests' runs would be written by the process of this one's, …
    os.environ.pop("WANDB_MODE", None)  # … and offline, which Lightning notes here


def loose_files(data) -> list[str]:
    """One study's files as `zoo.predict` takes them."""
    files = data.studies("test")[0].files
    options = [f"--{name}={files[name]}" for name in ("image", "volume") if name in files]
    folders = sorted({path.parent for name, path in files.items() if name.startswith("masks/")})
    if "image" in files and (data.root / "masks" / files["image"].stem).is_dir():
        folders = [data.root / "masks"]
    return options + [f"--masks={folder}" for folder in folders]


@pytest.mark.parametrize("method", METHODS)
def test_nothing_leaves_the_machine_and_text_stays_where_it_may_be(method, watched, monkeypatch, capfd) -> None:
    # Whole paths: W&B's own process lives as long as the tests do, in the folder where the first of them was.
    settings = [f"data.root={watched}/data", f"run.folder={watched}/runs", "data.phantom=4", "data.global_batch_size=4"]
    config = compose(method, "phantom", [], settings)
    data = config.build("data")
    data.draw_phantom(4, 4)
    mark(watched / "data")
    given = set((watched / "data").rglob("*"))
    generator = import_target(config.values["model"]["class"])
    generate = generator.generate

    def say_more(self, batch):
        return [replace(said, text=f"{said.text} {SAID}", raw=f"{said.raw} {SAID}") for said in generate(self, batch)]

    monkeypatch.setattr(generator, "generate", say_more)
    training = ["trainer.max_epochs=1", "trainer.limit_train_batches=1", "log.wandb=offline"]
    with no_network(watched / "tried.txt") as tried:
        assert fit(["--method", method, *settings, *training, "data.micro_batch_size=4"]) == 0
        (run,) = (watched / "runs").iterdir()
        assert predict([f"--checkpoint={run}", "--output=page", *loose_files(data)]) in (0, 1)  # 1: a silent region
        assert evaluate([str(run / "predictions.jsonl"), "--json", "scores.json"]) == 0
        assert export([str(run)]) == 0
        assert prepare(["--method", method, *settings]) == 0
        assert doctor([]) in (0, 4)
    assert tried.read_text() == ""
    out, err = capfd.readouterr()
    assert not [word for word in WORDS if word in (out + err).lower()]
    written = [path for path in watched.rglob("*") if path.is_file() and path not in given]
    assert [path for path in written if path.suffix == ".wandb"]
    holding = {path.name: found for path in written if (found := held(path))}
    assert holding == MAY_HOLD


@pytest.mark.parametrize(
    ("crash", "shown"),
    [
        (lambda text: {}[text], "KeyError: …"),
        (lambda text: float(text), "ValueError: could not convert string to float: …"),
        (lambda text: text.encode("ascii"), "UnicodeEncodeError: …"),
        (
            lambda text: np.zeros((3, 4)) @ np.zeros((5, 6)),
            "ValueError: matmul: Input operand 1 has a mismatch",
        ),
    ],
)
def test_a_crash_tells_where_and_what_but_not_the_text_that_it_stumbled_over(crash, shown, watched, capsys) -> None:
    text = "".join(("Mr Whistle", "down ä\n", "is ", "ill"))  # so that the source's own line does not hold it

    def body() -> None:
        try:
            crash(text)
        except ValueError as error:
            raise RuntimeError("and again") from error

    assert command.run(body) == 1
    (log,) = (watched / "tmp").iterdir()
    for told in (capsys.readouterr().err, log.read_text()):
        assert any(line.startswith(shown) for line in told.splitlines())
        assert "test_privacy.py" in told and "Whistledown" not in told and "is ill" not in told
    assert log.stat().st_mode & 0o077 == 0


def test_a_report_in_the_wrong_column_is_not_quoted(tmp_path) -> None:
    report = "Seen is Mr Whistledown."
    (tmp_path / "films.csv").write_text(f"SOPInstanceUID,EncodedPixels,Report\n{report},-1,1.2\n")
    (tmp_path / "regions.csv").write_text(f"Volumename,Anatomy,Sentence\na,{report},lung\n")
    (tmp_path / "a_final_separated.csv").write_text(f"StudyID,ImageID,report_en,boxes,split\na,b,train,,{report}\n")
    with pytest.raises(DataFault) as of_films:
        read_films(tmp_path / "films.csv")
    with pytest.raises(DataFault) as of_sentences:
        read_entries(tmp_path)
    _, (fault,) = read_region_reports(tmp_path / "regions.csv")
    for told in (str(of_films.value), str(of_sentences.value), fault.what):
        assert "csv:2: " in told and "(a text of 23 characters)" in told and "Whistledown" not in told


def test_a_model_in_the_hubs_cache_is_read_without_asking_the_hub(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    kept = tmp_path / "models--someone--llama"
    (kept / "refs").mkdir(parents=True)
    (kept / "refs" / "main").write_text("f5db02d")
    shutil.copytree(ROOT / "checkpoints" / "phantom-llama", kept / "snapshots" / "f5db02d")
    with no_network(tmp_path / "tried.txt") as tried:
        assert at_hand("someone/llama") and not at_hand("someone/else")
        assert len(build_tokenizer("someone/llama")("lung").input_ids) > 1
        assert located("someone/llama") == str(kept / "snapshots" / "f5db02d")
        assert located("someone/else") == "someone/else" and located("phantom:llama") == "phantom:llama"
    assert tried.read_text() == ""
