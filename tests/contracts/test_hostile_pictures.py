"""A stranger's pictures and archives are data: one line, no code, nothing written."""

import gzip
import shutil
import zipfile

import pytest
from hostile import (
    assert_refused,
    device,
    named,
    pickled,
    pictures,
    pipe,
    png_header,
)


def folder_with(folder, make):
    pictures(folder)
    make(folder / "x.png")
    return ["train", "data=folder", f"data.path={folder}", "data.resolution=8"]


def archive(path, members):
    with zipfile.ZipFile(path, "w") as made:
        for name, content in members.items():
            made.writestr(name, content)
    return ["train", "data=zip", f"data.path={path}", "data.resolution=8"]


def idx(folder, images):
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for split in ("train", "t10k"):
        for part in ("images-idx3-ubyte", "labels-idx1-ubyte"):
            (raw / f"{split}-{part}.gz").write_bytes(images)
    return ["train", "data=mnist", f"data.path={folder}"]


def old_mnist(folder, canary):
    place = folder / "MNIST" / "processed"
    place.mkdir(parents=True)
    for name in ("training.pt", "test.pt"):
        (place / name).write_bytes(pickled(canary))
    return ["train", "data=mnist", f"data.path={folder}"]


PICTURES = {
    "a pipe among pictures": (lambda d, c: folder_with(d / "p", pipe), "is a named pipe"),
    "a device among pictures": (lambda d, c: folder_with(d / "p", device), "is a device"),
    "a picture of 10^10 pixels": (
        lambda d, c: folder_with(d / "p", lambda p: p.write_bytes(png_header(10**5, 10**5))),
        "decompression bomb",
    ),
    "a picture of 10^8 pixels that are not there": (
        lambda d, c: folder_with(d / "p", lambda p: p.write_bytes(png_header(10**4, 10**4))),
        "is not a readable image",
    ),
    "a picture that is a pickle": (
        lambda d, c: folder_with(d / "p", lambda p: p.write_bytes(pickled(c))),
        "it is no picture",
    ),
    "an archive of pickles": (
        lambda d, c: archive(d / "a.zip", {f"{i}.png": pickled(c) for i in range(4)}),
        "it is no picture",
    ),
    "an archive that is a text": (
        lambda d, c: (
            named(d / "a.zip", lambda p: p.write_text("x"))
            and ["train", "data=zip", f"data.path={d / 'a.zip'}"]
        ),
        "is damaged or not a readable zip",
    ),
    "a compressed file of zeros": (
        lambda d, c: idx(d, gzip.compress(b"\0\0\x08\x01\0\0\0\x04" + bytes(10**7))),
        "is damaged",
    ),
    "a compressed file that claims 2^90 bytes": (
        lambda d, c: idx(d, gzip.compress(b"\0\0\x08\x03" + b"\x7f\xff\xff\xff" * 3)),
        "more than this machine's memory",
    ),
    "files of an old version that are pickles": (lambda d, c: old_mnist(d, c), "MNIST is not in"),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", PICTURES)
def test_a_strangers_pictures(run, canary, tmp_path, name):
    make, message = PICTURES[name]
    (tmp_path / "data").mkdir()
    result = run(*make(tmp_path / "data", canary), "method=naive", "training.device=cpu")
    assert_refused(result, message, canary)


def test_an_archive_writes_nothing(run, tmp_path):
    files = pictures(tmp_path / "p")
    members = {f"/{p.name}": p.read_bytes() for p in files.iterdir()}
    shutil.rmtree(files)
    before = sorted(tmp_path.rglob("*"))
    from cleanprior.data.image_files import image_zip

    archive(tmp_path / "a.zip", members)
    data = image_zip(str(tmp_path / "a.zip"), 8, 1, 0.2, None, False)
    assert len(data.train) + len(data.test) == 12
    assert sorted(tmp_path.rglob("*")) == sorted([*before, tmp_path / "a.zip"])
