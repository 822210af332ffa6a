"""A stranger's TIFF, FITS, NIfTI or DICOM is data: one line, no other file, no bomb, no decoder."""

import struct

import instruments
import numpy as np
import pytest
from hostile import device, pickled, pipe

from cleanprior.data import arrays
from cleanprior.data.containers import named_arrays
from cleanprior.errors import UserError

FRAMES = np.random.default_rng(0).integers(0, 1000, (6, 8, 8)).astype(np.uint16)


def patched(path, old, new):
    """Replace bytes of a file, once."""
    content = path.read_bytes()
    assert content.count(old) >= 1
    path.write_bytes(content.replace(old, new, 1))
    return path


def tag(number, kind, value):
    """Return an entry of a little-endian TIFF with one value."""
    return struct.pack("<HHI", number, kind, 1) + struct.pack("<I", value)


def huge_tiff(path, compression=1, side=1 << 20):
    """Write a page that claims side x side pixels of 8 bits and holds 16 bytes."""
    tags = [(256, side), (257, side), (258, 8), (259, compression), (262, 1), (273, 8), (277, 1)]
    tags += [(278, side), (279, 16)]
    body = struct.pack("<H", len(tags)) + b"".join(tag(n, 4, v) for n, v in tags) + bytes(4)
    path.write_bytes(b"II*\0" + struct.pack("<I", 24) + bytes(16) + body)
    return path


def external_ome(path):
    """Write an OME-TIFF whose second half lies in another file."""
    other = instruments.ome(path.with_name("secret.ome.tif"), FRAMES[3:])
    instruments.ome(path, FRAMES[:3])
    import tifffile

    text = tifffile.tiffcomment(path)
    block = '<TiffData IFD="0" FirstT="3"><UUID FileName="{}">urn:uuid:1</UUID></TiffData>'
    text = text.replace('SizeT="3"', 'SizeT="6"')
    text = text.replace("</Pixels>", block.format(other.name) + "</Pixels>")
    tifffile.tiffcomment(path, text)
    return path


def fits_card(path, key, value):
    instruments.fits(path, FRAMES)
    content = path.read_bytes()
    place = content.index(key.ljust(8).encode() + b"=")
    path.write_bytes(content[: place + 10] + str(value).rjust(20).encode() + content[place + 30 :])
    return path


def nifti_claims(path, *dims):
    instruments.nifti(path, FRAMES)
    content = bytearray(path.read_bytes())
    content[40:56] = struct.pack("<8h", 3, *dims, 1, 1, 1, 1)
    path.write_bytes(bytes(content))
    return path


def bytes_in(path, content):
    path.write_bytes(content)
    return path


FILES = {
    "TIFF that claims a terabyte": (lambda d, c: huge_tiff(d / "m.tif"), "claims"),
    "packed TIFF that claims a terabyte": (lambda d, c: huge_tiff(d / "m.tif", 8), "claims"),
    "packed TIFF that expands": (
        lambda d, c: instruments.tiff(
            d / "m.tif", np.zeros((24, 4096, 4096), np.uint8), compression="zlib"
        ),
        "holds hardly anything but one value",
    ),
    "TIFF of JPEG": (lambda d, c: huge_tiff(d / "m.tif", 7, 64), "is compressed by JPEG"),
    "TIFF that is a pickle": (lambda d, c: bytes_in(d / "m.tif", pickled(c)), "is damaged"),
    "TIFF cut in half": (
        lambda d, c: bytes_in(
            d / "m.tif", instruments.tiff(d / "x.tif", FRAMES).read_bytes()[:300]
        ),
        "is damaged|claims",
    ),
    "TIFF that is a pipe": (lambda d, c: pipe(d / "m.tif"), "is not a file"),
    "TIFF without end": (lambda d, c: device(d / "m.tif"), "is not a file"),
    "OME-TIFF in two files": (lambda d, c: external_ome(d / "m.ome.tif"), "in another file"),
    "FITS that claims a terabyte": (lambda d, c: fits_card(d / "m.fits", "NAXIS1", 1 << 40), "."),
    "FITS that claims a gigabyte": (
        lambda d, c: fits_card(d / "m.fits", "NAXIS1", 1 << 26),
        "claims|is damaged",
    ),
    "FITS that is a pickle": (lambda d, c: bytes_in(d / "m.fits", pickled(c)), "is damaged"),
    "FITS that is a pipe": (lambda d, c: pipe(d / "m.fits"), "is not a file"),
    "NIfTI that claims a terabyte": (
        lambda d, c: nifti_claims(d / "m.nii", 30000, 30000, 500),
        "claims",
    ),
    "packed NIfTI that expands": (
        lambda d, c: instruments.nifti(d / "m.nii.gz", np.zeros((24, 4096, 4096), np.uint8)),
        "holds hardly anything but one value",
    ),
    "NIfTI that is a pickle": (lambda d, c: bytes_in(d / "m.nii", pickled(c)), "is damaged"),
    "NIfTI that is a pipe": (lambda d, c: pipe(d / "m.nii"), "is not a file"),
    "DICOM that claims a gigabyte": (
        lambda d, c: instruments.dicom(d / "m.dcm", FRAMES[0], Rows=60000, Columns=60000),
        "claims",
    ),
    "DICOM in runs": (
        lambda d, c: patched(
            instruments.dicom(d / "m.dcm", FRAMES[0]),
            b"1.2.840.10008.1.2.1\0",
            b"1.2.840.10008.1.2.5\0",
        ),
        "keeps its pixels compressed",
    ),
    "DICOM that is deflated": (
        lambda d, c: patched(
            instruments.dicom(d / "m.dcm", FRAMES[0]),
            b"1.2.840.10008.1.2.1\0",
            b"1.2.840.10008.1.2.1.99"[:20],
        ),
        "keeps its pixels compressed|is damaged",
    ),
    "DICOM that is a pickle": (lambda d, c: bytes_in(d / "m.dcm", pickled(c)), "is damaged"),
    "DICOM that is a pipe": (lambda d, c: pipe(d / "m.dcm"), "is not a file"),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", FILES)
def test_a_strangers_file_is_one_line(tmp_path, name):
    make, message = FILES[name]
    path = make(tmp_path, tmp_path / "canary")
    with pytest.raises(UserError, match=message) as caught, named_arrays(path) as found:
        for get in found.values():
            get()
    assert str(path) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "canary").exists()


def test_a_folder_with_a_pipe_or_a_device_is_one_line(tmp_path):
    for i, frame in enumerate(FRAMES):
        instruments.tiff(tmp_path / f"{i}.tif", frame)
    for make in (pipe, device):
        make(tmp_path / "x.tif")
        with pytest.raises(UserError, match=r"x\.tif' is not a file"):
            defaults = dict.fromkeys(("key", "test_key", "layout", "resolution", "channels"))
            arrays(str(tmp_path), range=[0, 1000], test_share=0.3, limit=None, **defaults)
