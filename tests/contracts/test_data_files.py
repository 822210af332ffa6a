"""Picture files as data sets: zip archives, AFHQ, CelebA; shipped splits, classes, limits."""

import os
import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.datasets
from PIL import Image

from cleanprior.data import afhq, celeba, image_folder, image_zip
from cleanprior.errors import UserError

REAL = Path(os.environ.get("CLEANPRIOR_TEST_DATA", "data"))


def picture(value, size=(9, 7)):
    """A picture of one colour, 3 * value, as the bytes of a PNG."""
    out = BytesIO()
    Image.new("RGB", size, (3 * value,) * 3).save(out, "PNG")
    return out.getvalue()


def write_zip(path, names):
    with zipfile.ZipFile(path, "w") as archive:
        for i, name in enumerate(names):
            archive.writestr(name, picture(i))
    return str(path)


def write_folder(root, names):
    for i, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(picture(i))
    return str(root)


def values(x):
    """The value of each one-coloured image, 0 to 85."""
    return ((x[:, 0, 0, 0] + 1) * 127.5 / 3).round().int().tolist()


SHIPPED = [f"{s}/{c}/{i}.png" for s in ("train", "val") for c in ("cat", "dog") for i in range(6)]


@pytest.mark.parametrize("write", [write_zip, write_folder])
def test_a_zip_and_a_folder_of_the_same_pictures_are_the_same_images(tmp_path, write):
    names = [f"{c}/{i}.png" for c in "ab" for i in range(20)]
    load = image_zip if write is write_zip else image_folder
    data = load(write(tmp_path / "x.zip", names), 4, 1, 0.3, None, False)
    other = image_folder(write_folder(tmp_path / "y", names), 4, 1, 0.3, None, False)
    assert torch.equal(data.train, other.train)
    assert torch.equal(data.test, other.test)
    assert sorted(values(data.train) + values(data.test)) == list(range(40))


def test_images_are_not_in_the_order_of_their_classes(tmp_path):
    """The first images, those that evaluation restores, are of all classes."""
    names = [f"train/{c}/{i}.png" for c in "ab" for i in range(40)]
    names += [f"test/{c}/{i}.png" for c in "ab" for i in range(40)]
    data = image_zip(write_zip(tmp_path / "x.zip", names), 4, 1, 0.3, 10, True)
    assert 2 <= data.train_labels.sum() <= 8
    assert 2 <= data.test_labels[:10].sum() <= 8


@pytest.mark.parametrize("test_folder", ["test", "val", "valid", "validation"])
@pytest.mark.parametrize("top", ["", "set/deep/"])
def test_a_shipped_split_is_kept(tmp_path, test_folder, top):
    names = [top + n.replace("val/", f"{test_folder}/") for n in SHIPPED]
    data = image_zip(write_zip(tmp_path / "x.zip", names), 4, 3, 0.1, None, True)
    assert sorted(values(data.train)) == list(range(12))
    assert sorted(values(data.test)) == list(range(12, 24))
    for images, labels in ((data.train, data.train_labels), (data.test, data.test_labels)):
        assert labels.tolist() == [(v % 12) // 6 for v in values(images)]


@pytest.mark.parametrize("extra", ["extra/0.png", "masks/a/0.png", "0.png"])
def test_pictures_beside_train_and_test_are_left_out_and_the_split_is_kept(tmp_path, extra):
    data = image_zip(write_zip(tmp_path / "x.zip", [*SHIPPED, extra]), 4, 1, 0.1, None, True)
    assert sorted(values(data.train)) == list(range(12))
    assert sorted(values(data.test)) == list(range(12, 24))
    loud = [n.text for n in data.notices if n.is_warning]
    assert f"1 pictures beside these folders are left out, e.g. {extra}" in loud[0]


def test_a_limit_takes_training_images_only_and_they_do_not_change_with_it(tmp_path):
    path = write_zip(tmp_path / "x.zip", SHIPPED)
    few, all_ = (image_zip(path, 4, 1, 0.1, n, False) for n in (5, None))
    assert torch.equal(few.train, all_.train[:5])
    assert torch.equal(few.test, all_.test)


def test_labels_need_a_folder_for_each_class(tmp_path):
    flat = write_zip(
        tmp_path / "flat.zip", [f"{s}/{i}.png" for s in ("train", "test") for i in "ab"]
    )
    with pytest.raises(UserError, match="labels=true takes each image's folder as its class"):
        image_zip(flat, 4, 1, 0.1, None, True)


@pytest.mark.parametrize(
    "how", ["text", "unknown compression", "broken picture", "missing", "none", "empty"]
)
def test_a_zip_that_cannot_be_read_is_refused(tmp_path, how):
    path = tmp_path / "x.zip"
    if how == "text":
        path.write_text("no archive")
        message = "is damaged or not a readable zip archive"
    elif how == "unknown compression":
        write_zip(path, [f"{i}.png" for i in range(4)])
        with zipfile.ZipFile(path) as archive:
            starts = [info.header_offset + 8 for info in archive.infolist()]
            first = archive.start_dir
        raw = bytearray(path.read_bytes())
        for start in (*starts, first + 10):  # where the method of a member is written
            raw[start : start + 2] = (99).to_bytes(2, "little")
        path.write_bytes(raw)
        message = r"x\.zip:\d\.png' is not a readable image.*That compression method"
    elif how == "broken picture":
        with zipfile.ZipFile(path, "w") as archive:
            for i in range(4):
                archive.writestr(f"{i}.png", picture(i)[:40] if i == 2 else picture(i))
        message = r"x\.zip:2\.png' is not a readable image"
    elif how == "missing":
        message = r"is not a file; set data\.path to a zip archive"
    elif how == "none":
        with pytest.raises(UserError, match=r"data=zip needs data\.path=FILE\.zip"):
            image_zip(None, 4, 1, 0.1, None, False)
        return
    else:
        write_zip(path, ["notes.txt", "__MACOSX/0.png"])
        message = "holds 0 images; needed: at least 3"
    with pytest.raises(UserError, match=message):
        image_zip(str(path), 4, 1, 0.1, None, False)


# -- AFHQ and CelebA -------------------------------------------------------------------------------


def test_afhq_keeps_its_split_and_one_animal_where_asked(tmp_path):
    path = write_folder(tmp_path / "afhq", SHIPPED)
    every, dogs = afhq(path, None, 4, 3, None), afhq(path, "dog", 4, 3, None)
    assert every.image_shape == (3, 4, 4)
    assert set(every.train_labels.tolist()) == {0, 1}
    assert sorted(values(dogs.train)) == list(range(6, 12))
    assert sorted(values(dogs.test)) == list(range(18, 24))
    assert (dogs.name, dogs.train_labels) == ("afhq-dog", None)
    with pytest.raises(UserError, match="unknown animal 'cats'.*Did you mean 'cat'"):
        afhq(path, "cats", 4, 3, None)
    with pytest.raises(UserError, match="must hold 'train' and 'val'"):
        afhq(write_folder(tmp_path / "flat", ["a/0.png", "b/1.png"]), None, 4, 3, None)


def test_celeba_reads_a_plain_folder_of_images(tmp_path):
    path = write_folder(tmp_path / "hq", [f"{i:05}.png" for i in range(20)])
    data = celeba(path, 4, 3, 0.3, None, False)
    plain = image_folder(path, 4, 3, 0.3)
    assert data.name == "celeba"
    assert torch.equal(data.train, plain.train)
    with pytest.raises(UserError, match="CelebA is not in 'data' and download is false"):
        celeba(None, 4, 3, 0.3, None, False)


def test_celeba_in_torchvisions_layout_keeps_the_published_partition(tmp_path, monkeypatch):
    """Validation images are in neither split. (The md5 is of the real lists.)"""
    names = [f"{i:06}.png" for i in range(1, 10)]
    write_folder(tmp_path / "celeba" / "img_align_celeba", names)
    lists = {
        "list_eval_partition.txt": [f"{n} {i % 3}" for i, n in enumerate(names)],
        "identity_CelebA.txt": [f"{n} 1" for n in names],
        "list_bbox_celeba.txt": ["9", "x y w h", *(f"{n} 0 0 1 1" for n in names)],
        "list_landmarks_align_celeba.txt": ["9", "a b", *(f"{n} 0 0" for n in names)],
        "list_attr_celeba.txt": ["9", "bald young", *(f"{n} 1 -1" for n in names)],
    }
    with pytest.raises(UserError, match="CelebA is not complete in .* and download is false"):
        celeba(str(tmp_path), 4, 3, 0.1, None, False)
    for name, lines in lists.items():
        (tmp_path / "celeba" / name).write_text("\n".join(lines) + "\n")
    monkeypatch.setattr(torchvision.datasets.CelebA, "_check_integrity", lambda self: True)
    data = celeba(str(tmp_path), 4, 3, 0.1, 2, False)
    assert values(data.train) == [0, 3]
    assert values(data.test) == [2, 5, 8]


# -- real archives, where they are at hand --------------------------------------------------------


@pytest.mark.skipif(not (REAL / "cifar10_jpeg.zip").is_file(), reason="the archive is not at hand")
def test_the_jpeg_copy_of_cifar10(tmp_path):
    archive = zipfile.ZipFile(REAL / "cifar10_jpeg.zip")
    names = [n for n in archive.namelist() if n.endswith("7.jpg")][::40]
    with zipfile.ZipFile(tmp_path / "few.zip", "w") as few:
        for name in names:
            few.writestr(name, archive.read(name))
    data = image_zip(str(tmp_path / "few.zip"), 32, 3, 0.1, None, True)
    assert data.image_shape == (3, 32, 32)
    assert len(data.test) == sum(n.startswith("test/") for n in names)
    assert set(data.test_labels.tolist()) == set(range(10))
    assert 0.3 < data.train.std() < 0.7
    assert np.isfinite(data.train.numpy()).all()
