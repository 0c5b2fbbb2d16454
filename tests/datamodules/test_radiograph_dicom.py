"""DICOM radiographs: written here in every way that is read, one real file, and what is refused."""

from __future__ import annotations

import io
import os
import re

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels import apply_windowing

from datamodules.radiograph import read_grey, to_8_bit
from datamodules.study import DataFault

COMPUTED_RADIOGRAPHY = "1.2.840.10008.5.1.4.1.1.1"
TWELVE = (np.arange(60 * 64, dtype=np.uint16) % 4096).reshape(60, 64)
TWELVE[0, 0] = 4095


def write(path, stored, bits, syntax=pydicom.uid.ExplicitVRLittleEndian, frame=None, **tags):
    """A DICOM file of `stored` (row, column); `frame` is what stands in it, if that is compressed."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = COMPUTED_RADIOGRAPHY
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = "1.2.3"
    dataset.PatientName, dataset.PatientBirthDate = "Doe^Jane", "19500230"
    dataset.Rows, dataset.Columns = stored.shape[:2]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = stored.itemsize * 8, bits, bits - 1
    dataset.PixelRepresentation = int(stored.dtype.kind == "i")
    dataset.PixelData = encapsulate([frame]) if frame else stored.tobytes()
    dataset["PixelData"].VR = "OB" if frame or stored.itemsize == 1 else "OW"
    for name, value in tags.items():
        setattr(dataset, name, value)
    dataset.save_as(path, enforce_file_format=True)
    return path


def lut(entries, first, bits, packed=False):
    table = Dataset()
    table.add_new("LUTDescriptor", "SS" if first < 0 else "US", [len(entries), first, bits])
    if packed:
        table.add_new("LUTData", "OW", np.asarray(entries, np.uint8).tobytes())
    else:
        table.add_new("LUTData", "US", np.asarray(entries).tolist())
    return [table]


def picture(stored, kind, **options):
    held = io.BytesIO()
    Image.fromarray(stored).save(held, kind, **options)
    return held.getvalue()


@pytest.mark.parametrize(
    ("bits", "kind", "out"),
    [(6, np.uint8, np.uint8), (8, np.uint8, np.uint8), (10, np.uint16, np.uint16), (16, np.uint16, np.uint16)],
)
def test_values_without_a_lut_are_those_stored_at_every_depth(tmp_path, bits, kind, out):
    stored = np.linspace(0, 2**bits - 1, 70 * 50).round().astype(kind).reshape(70, 50)
    values = read_grey(write(tmp_path / "a.dcm", stored, bits))
    assert values.dtype == out and (values == stored).all() and not values.flags.writeable
    turned = read_grey(write(tmp_path / "b.dcm", stored, bits, PhotometricInterpretation="MONOCHROME1"))
    assert turned.dtype == out and turned[0, 0] == 2**bits - 1 and turned[-1, -1] == 0
    assert (turned.astype(int) + stored == 2**bits - 1).all()
    dull = write(tmp_path / "c.dcm", np.array([[1, 40]], kind), bits, PhotometricInterpretation="MONOCHROME1")
    assert read_grey(dull).tolist() == [[2**bits - 2, 2**bits - 41]]  # around the whole range, not the image's own


def test_depth_is_what_the_file_says_and_not_what_the_values_need(tmp_path):
    dark = np.full((4, 4), 200, np.uint16)
    assert read_grey(write(tmp_path / "a.dcm", dark, 12)).dtype == np.uint16


@pytest.mark.parametrize("kind", ["MONOCHROME1", "MONOCHROME2"])
def test_bits_above_the_stored_ones_do_not_show(tmp_path, kind):
    """Old files keep graphics there."""
    clean = read_grey(write(tmp_path / "a.dcm", TWELVE, 12, PhotometricInterpretation=kind))
    marked = TWELVE.copy()
    marked[10:20, 10:20] |= 0x8000
    assert (read_grey(write(tmp_path / "b.dcm", marked, 12, PhotometricInterpretation=kind)) == clean).all()


def test_signed_values_start_at_0(tmp_path):
    stored = np.array([[-2048, -1, 0, 2047]], np.int16)
    assert read_grey(write(tmp_path / "a.dcm", stored, 12)).tolist() == [[0, 2047, 2048, 4095]]


def test_dicom_goes_by_its_mark_too_as_candid_ptx_has_no_suffixes(tmp_path):
    write(tmp_path / "1.2.276.0.7230010", TWELVE, 12)
    assert (read_grey(tmp_path / "1.2.276.0.7230010") == TWELVE).all()


def test_a_rescale_changes_nothing_by_itself_and_turns_around_where_its_slope_is_negative(tmp_path):
    up = write(tmp_path / "a.dcm", TWELVE, 12, RescaleSlope=0.25, RescaleIntercept=-1024)
    assert (read_grey(up) == TWELVE).all()
    down = write(tmp_path / "b.dcm", TWELVE, 12, RescaleSlope=-2, RescaleIntercept=7)
    assert (read_grey(down) == 4095 - TWELVE).all()


def test_a_window_by_hand(tmp_path):
    stored = np.array([[999, 1000, 1500, 2000, 2001]], np.uint16)
    exact = {"WindowCenter": 1500, "WindowWidth": 1000, "VOILUTFunction": "LINEAR_EXACT"}
    assert read_grey(write(tmp_path / "a.dcm", stored, 12, **exact)).tolist() == [[0, 0, 2048, 4095, 4095]]
    inverse = write(tmp_path / "b.dcm", stored, 12, PhotometricInterpretation="MONOCHROME1", **exact)
    assert read_grey(inverse).tolist() == [[4095, 4095, 2047, 0, 0]]  # turned around after the window
    several = {"WindowCenter": [1500, 50], "WindowWidth": [1000, 10], "VOILUTFunction": "LINEAR_EXACT"}
    assert read_grey(write(tmp_path / "c.dcm", stored, 12, **several)).tolist() == [[0, 0, 2048, 4095, 4095]]
    one = write(tmp_path / "d.dcm", stored, 12, WindowCenter=1500, WindowWidth=1)
    assert read_grey(one).tolist() == [[0, 0, 4095, 4095, 4095]]


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize("rescale", [{}, {"RescaleSlope": 0.5, "RescaleIntercept": 900}])
def test_windows_are_pydicoms(tmp_path, function, rescale):
    window = {"WindowCenter": 1700.5, "WindowWidth": 801, "VOILUTFunction": function}
    path = write(tmp_path / "a.dcm", TWELVE, 12, **window, **rescale)
    slope, intercept = rescale.get("RescaleSlope", 1), rescale.get("RescaleIntercept", 0)
    theirs = (apply_windowing(TWELVE * slope + intercept, pydicom.dcmread(path)) - intercept) / slope  # 0 to 4095
    assert np.abs(read_grey(path) - theirs).max() <= 0.5 + 1e-6 and np.ptp(theirs) > 3500


def test_an_8_bit_image_with_a_window_stays_8_bit(tmp_path):
    stored = np.array([[0, 50, 100, 150, 255]], np.uint8)
    window = {"WindowCenter": 100, "WindowWidth": 100, "VOILUTFunction": "LINEAR_EXACT"}
    values = read_grey(write(tmp_path / "a.dcm", stored, 8, **window))
    assert values.dtype == np.uint8 and values.tolist() == [[0, 0, 128, 255, 255]]


@pytest.mark.parametrize("syntax", [pydicom.uid.ExplicitVRLittleEndian, pydicom.uid.ImplicitVRLittleEndian])
def test_luts_are_looked_up_and_give_their_own_depth(tmp_path, syntax):
    stored = np.array([[0, 9, 10, 300, 1009, 4000]], np.uint16)
    window = {"WindowCenter": 1, "WindowWidth": 2}
    entries = np.arange(1000)[::-1] * 65  # of the values from 10; those outside take the first or the last
    voi = write(tmp_path / "a.dcm", stored, 12, syntax, VOILUTSequence=lut(entries, 10, 16), **window)
    assert read_grey(voi).tolist() == [[64935, 64935, 64935, 709 * 65, 0, 0]]  # preferred to the window
    modality = write(tmp_path / "b.dcm", stored, 12, syntax, ModalityLUTSequence=lut(entries, 10, 16))
    assert (read_grey(modality) == read_grey(voi)).all()
    packed = lut(np.arange(1000) // 4, 10, 8, packed=True)  # 8 bits out of 12, two entries to a word
    narrow = write(tmp_path / "c.dcm", stored, 12, syntax, VOILUTSequence=packed)
    assert read_grey(narrow).dtype == np.uint8 and read_grey(narrow).tolist() == [[0, 0, 0, 72, 249, 249]]


def test_a_voi_lut_is_looked_up_in_rescaled_values(tmp_path):
    stored = np.array([[0, 1, 2]], np.uint16)
    table = lut([10, 20, 30], -100, 10)
    path = write(tmp_path / "a.dcm", stored, 12, RescaleSlope=1, RescaleIntercept=-100, VOILUTSequence=table)
    assert read_grey(path).tolist() == [[10, 20, 30]]


def test_compressed_without_loss_is_the_same_as_not_compressed(tmp_path):
    """RLE, deflated, JPEG 2000, and big endian."""
    plain = write(tmp_path / "plain.dcm", TWELVE, 12)
    rle = pydicom.dcmread(plain)
    rle.compress(pydicom.uid.RLELossless)
    rle.save_as(tmp_path / "rle.dcm")
    assert (read_grey(tmp_path / "rle.dcm") == TWELVE).all()
    write(tmp_path / "deflated.dcm", TWELVE, 12, pydicom.uid.DeflatedExplicitVRLittleEndian)
    assert (read_grey(tmp_path / "deflated.dcm") == TWELVE).all()
    sixteen = TWELVE * 16
    frame = picture(sixteen, "JPEG2000", irreversible=False, no_jp2=True)
    write(tmp_path / "j2k.dcm", sixteen, 16, pydicom.uid.JPEG2000Lossless, frame)
    assert (read_grey(tmp_path / "j2k.dcm") == sixteen).all()
    swapped = TWELVE.astype(">u2")
    write(tmp_path / "big.dcm", swapped, 12, pydicom.uid.ExplicitVRBigEndian)
    assert (read_grey(tmp_path / "big.dcm") == TWELVE).all()


@pytest.mark.parametrize("syntax", [pydicom.uid.JPEGBaseline8Bit, pydicom.uid.JPEGExtended12Bit])
def test_jpeg_is_what_pillow_makes_of_it_and_near_the_original(tmp_path, syntax):
    stored = (TWELVE // 16).astype(np.uint8)
    frame = picture(stored, "JPEG", quality=95)
    values = read_grey(write(tmp_path / "a.dcm", stored, 8, syntax, frame))
    assert (values == np.asarray(Image.open(io.BytesIO(frame)))).all()
    assert np.abs(values.astype(int) - stored).mean() < 4


def test_8_bit_from_dicom_looks_the_same_whatever_the_file_holds(tmp_path):
    """Of different depth, size and polarity; without the fraction that cutting and the depth cost."""
    rng = np.random.default_rng(0)
    scene = rng.beta(2, 3, (90, 70))
    scene[0, :2] = 0, 1
    eight, sixteen = np.rint(scene * 255).astype(np.uint8), np.rint(scene * 65535).astype(np.uint16)
    looks = [
        to_8_bit(read_grey(write(tmp_path / "a.dcm", eight, 8))),
        to_8_bit(read_grey(write(tmp_path / "b.dcm", sixteen >> 4, 12))),
        to_8_bit(read_grey(write(tmp_path / "c.dcm", 65535 - sixteen, 16, PhotometricInterpretation="MONOCHROME1"))),
        to_8_bit(read_grey(write(tmp_path / "d.dcm", sixteen[::2, ::3].copy(), 16))),
    ]
    for look in looks[:3]:
        assert look.shape == (90, 70) and look.dtype == np.uint8
        assert np.abs(look.astype(int) - looks[2]).max() <= 2
    assert looks[3].shape == (45, 24) and np.abs(looks[3].astype(int) - looks[2][::2, ::3]).max() <= 6
    assert looks[2].max() == 255 and 80 < looks[2].mean() < 140


def test_no_tag_about_a_person_is_read_nor_is_anything_warned_of(tmp_path, monkeypatch, recwarn, caplog):
    held = []
    read = pydicom.dcmread
    monkeypatch.setattr(pydicom, "dcmread", lambda *args, **options: held.append(read(*args, **options)) or held[-1])
    path = write(tmp_path / "a.dcm", TWELVE, 12)
    recwarn.clear(), caplog.clear()
    read_grey(path)
    assert "PatientName" in read(path) and "Rows" in held[0]
    assert not {"PatientName", "PatientBirthDate", "SOPInstanceUID"} & set(held[0].dir())
    assert not recwarn.list and not caplog.records


def _uncompressed(path):
    write(path, TWELVE, 12)
    os.truncate(path, path.stat().st_size // 2)


def _short(path):
    write(path, TWELVE, 12, PixelData=TWELVE.tobytes()[:-100])


def _jpeg(path):
    stored = (TWELVE // 16).astype(np.uint8)
    write(path, stored, 8, pydicom.uid.JPEGBaseline8Bit, picture(stored, "JPEG")[:400])


def _rle(path):
    write(path, TWELVE, 12)
    dataset = pydicom.dcmread(path)
    dataset.compress(pydicom.uid.RLELossless)
    dataset.PixelData = encapsulate([dataset.PixelData[16:600]])
    dataset.save_as(path)


def _deflated(path):
    write(path, TWELVE, 12, pydicom.uid.DeflatedExplicitVRLittleEndian)
    os.truncate(path, path.stat().st_size - 200)


def _image_of(bits, syntax=pydicom.uid.ExplicitVRLittleEndian, frame=None, shape=(4, 4), **tags):
    kind = {8: np.uint8, 12: np.uint16, 32: np.uint32}[bits]
    return lambda path: write(path, np.zeros(shape, kind), bits, syntax, frame, **tags)


def _report(path):
    write(path, TWELVE, 12)
    dataset = pydicom.dcmread(path)
    del dataset.PixelData
    dataset.save_as(path)


COLOUR = {"SamplesPerPixel": 3, "PlanarConfiguration": 0, "PhotometricInterpretation": "RGB"}
CONVERT = r"is not read; pip install python-gdcm, then: gdcmconv --raw IN OUT$"


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (_uncompressed, "its image cannot be read .*less than expected"),
        (_short, "its image cannot be read .*save it as a grey PNG"),
        (_jpeg, "its image cannot be read .*truncated"),
        (_rle, "its image cannot be read"),
        (_deflated, "cannot be read"),
        (_report, "holds no image"),
        (_image_of(8, shape=(4, 4, 3), **COLOUR), r"is no grey image \(RGB\)"),
        (_image_of(8, PhotometricInterpretation="PALETTE COLOR"), r"is no grey image \(PALETTE COLOR\)"),
        (_image_of(8, NumberOfFrames=3), "holds 3 frames; save the one"),
        (_image_of(32), "holds 32 bits per value"),
        (_image_of(8, pydicom.uid.JPEGExtended12Bit, b"12", BitsStored=12), rf"\(JPEG Extended .*\) {CONVERT}"),
        (_image_of(12, pydicom.uid.HTJ2KLossless, b"ht"), CONVERT),
        (_image_of(8, pydicom.uid.MPEG2MPML, b"film"), CONVERT),
        (_image_of(8, WindowCenter=10, WindowWidth=0), "there is no LINEAR window of width 0"),
        (_image_of(8, WindowCenter=10, WindowWidth=5, VOILUTFunction="CUBIC"), "there is no CUBIC window"),
        (lambda path: path.write_bytes(bytes(128) + b"DICM" + b"\x01" * 50), "a.dcm: "),
    ],
)
def test_what_cannot_be_read_is_said_in_one_line_without_a_name(tmp_path, make, expected):
    make(tmp_path / "a.dcm")
    with pytest.raises(DataFault, match=expected) as fault:
        read_grey(tmp_path / "a.dcm")
    said = str(fault.value)
    assert said.startswith(f"{tmp_path / 'a.dcm'}: ") and "\n" not in said and "Doe" not in said


@pytest.mark.parametrize("syntax", [pydicom.uid.JPEGLosslessSV1, pydicom.uid.JPEGLSLossless])
def test_what_only_gdcm_unpacks_says_so(tmp_path, syntax):
    if pydicom.pixels.get_decoder(syntax).is_available:
        pytest.skip("python-gdcm or another decoder is installed beside the lock")
    write(tmp_path / "a.dcm", TWELVE, 12, syntax, b"lossless")
    with pytest.raises(DataFault, match=re.escape(syntax.name) + ".*pip install python-gdcm"):
        read_grey(tmp_path / "a.dcm")


def test_a_real_file_cut_anywhere_is_a_fault(shared, tmp_path):
    whole = _real(shared).read_bytes()
    for share in (0.02, 0.3, 0.7, 0.99):
        (tmp_path / "a.dcm").write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(DataFault, match="a.dcm: "):
            read_grey(tmp_path / "a.dcm")


def _real(shared):
    files = sorted((shared / "real" / "cxr").glob("*.dcm"))
    if not files:
        pytest.skip(f"no real radiograph at {shared}/real/cxr")
    return files[0]


def test_a_real_jpeg_compressed_radiograph(shared, tmp_path):
    values = read_grey(_real(shared))
    assert values.shape == (1024, 1024) and values.dtype == np.uint8 and (values.min(), values.max()) == (0, 254)
    lungs, mediastinum = (values[350:550, 220:400], values[350:550, 700:800]), values[400:650, 480:600]
    assert all(np.median(lung) + 40 < np.median(mediastinum) for lung in lungs)
    plain = pydicom.dcmread(_real(shared))
    plain.decompress()
    plain.save_as(tmp_path / "plain.dcm")
    assert plain.file_meta.TransferSyntaxUID == pydicom.uid.ExplicitVRLittleEndian
    assert (read_grey(tmp_path / "plain.dcm") == values).all()
    grey = to_8_bit(values)
    assert (grey.min(), grey.max()) == (0, 255)
    assert np.median(grey[350:550, 220:400]) + 40 < np.median(grey[400:650, 480:600])
