"""Which files are read and which images are held out: links, hidden files, names of splits."""

import os
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from cleanprior import fingerprint as files
from cleanprior.data import CleanData, arrays, image_folder, image_zip
from cleanprior.data.splits import LEAST_HELD_OUT, held_out, role, shipped_split
from cleanprior.errors import UserError
from cleanprior.fingerprint import fingerprint


def fill(root, names):
    """Write a different picture under each name."""
    rng = np.random.default_rng(len(names))
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(root / name)
    return root


def load(root, **options):
    return image_folder(str(root), 8, 1, 0.3, **options)


def texts(data):
    return " ".join(n.text for n in data.notices)


def some(folder, n=4):
    return [f"{folder}/{i}.png" for i in range(n)]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *((n, "train") for n in ("train", "Training", "TRAIN", "train2017", "seg_train", "trn")),
        *((n, "test") for n in ("test", "Testing", "val", "valid", "validation", "test_set")),
        *((n, "") for n in ("trains", "cat", "contest", "values", "train_test", "", "3")),
    ],
)
def test_the_role_of_a_folder_is_told_by_the_words_in_its_name(name, expected):
    assert role(name) == expected


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train/a", "test/a"),
        ("Training/glioma", "Testing/glioma"),
        ("TRAIN", "VALID"),
        ("deep/set/train2017", "deep/set/val2017"),
        ("DIV2K_train_HR", "DIV2K_valid_HR"),
        ("cat/train", "cat/test"),
        ("data/cat/training", "data/cat/val"),
    ],
)
def test_a_split_that_the_data_ship_is_taken_and_told(tmp_path, train, test):
    data = load(fill(tmp_path / "x", some(train, 8) + some(test, 4)))
    assert (len(data.train), len(data.test)) == (8, 4)
    assert "8 images for training and 4 held out, the split that they come with" in texts(data)


def test_both_test_and_validation_are_held_out(tmp_path):
    names = some("train", 6) + some("test", 3) + some("val", 2)
    data = load(fill(tmp_path / "x", names))
    assert (len(data.train), len(data.test)) == (6, 5)
    assert "(train/ and test/, val/)" in texts(data)


def test_a_split_by_hash_is_told(tmp_path):
    data = load(fill(tmp_path / "x", some("a", 10) + some("b", 10)))
    assert f"{len(data.train)} images for training and {len(data.test)} held out, by a hash" in (
        texts(data)
    )
    assert shipped_split(["train/1.png", "train/2.png", "bus/3.png"]) is None


def test_a_shipped_test_split_of_one_image_is_refused(tmp_path):
    with pytest.raises(UserError, match="the test split holds one image; needed: at least 2"):
        load(fill(tmp_path / "x", some("train", 6) + some("test", 1)))


@pytest.mark.parametrize("share", [1e-9, 0.1, 0.999])
@pytest.mark.parametrize("n", [3, 4, 12, 40])
def test_at_least_two_are_held_out_and_something_is_left(n, share):
    is_test = held_out([f"{i}" for i in range(n)], share)
    assert LEAST_HELD_OUT <= is_test.sum() < n


def test_equal_keys_stay_together_and_too_few_are_refused():
    is_test = held_out(list("aabbbccd"), 1e-9)
    for key in "abcd":
        assert len({bool(t) for t, k in zip(is_test, "aabbbccd", strict=True) if k == key}) == 1
    assert is_test.sum() >= 2
    for keys in (["a"], ["a", "b"], ["a"] * 9):
        with pytest.raises(UserError, match="needed: at least 3 different ones"):
            held_out(keys, 0.1)


# -- links, hidden files ---------------------------------------------------------------------------


def test_links_to_folders_and_files_are_followed(tmp_path):
    fill(tmp_path / "elsewhere", some("a", 4))
    root = fill(tmp_path / "x", some("train", 8))
    (root / "test").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (root / "train" / "more.png").symlink_to(fill(tmp_path, ["one.png"]) / "one.png")
    data = load(root)
    assert (len(data.train), len(data.test)) == (9, 4)
    before = fingerprint(root)
    fill(tmp_path / "elsewhere", ["a/new.png"])
    assert fingerprint(root) != before
    (tmp_path / "link").symlink_to(root, target_is_directory=True)
    assert torch.equal(load(tmp_path / "link").train, load(root).train)


def test_a_loop_of_links_ends(tmp_path):
    root = fill(tmp_path / "x", some("a", 6))
    (root / "a" / "again").symlink_to(root, target_is_directory=True)
    data = load(root)
    assert len(data.train) + len(data.test) == 6
    assert fingerprint(root) is not None


HIDDEN = [".ipynb_checkpoints/0.png", "a/._0.png", "__MACOSX/a/._0.png", "@eaDir/0.png", ".x.png"]


@pytest.mark.parametrize("write", ["folder", "zip"])
def test_hidden_pictures_are_left_out_and_counted(tmp_path, write):
    plain = fill(tmp_path / "plain", some("a", 12))
    root = fill(tmp_path / "x", some("a", 12))
    for name in HIDDEN:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"no picture")
    if write == "zip":
        with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
            archive.mkdir("a")
            for path in root.rglob("*"):
                if path.is_file():
                    archive.write(path, path.relative_to(root))
        data = image_zip(str(tmp_path / "x.zip"), 8, 1, 0.3, None, False)
    else:
        data = load(root)
        assert fingerprint(root) == fingerprint(plain)
    assert torch.equal(data.train, load(plain).train)
    assert "5 hidden pictures (.name, __MACOSX) are left out" in texts(data)


def test_a_hidden_root_is_read(tmp_path):
    assert len(load(fill(tmp_path / ".cache" / "x", some("a", 8))).test) >= 2


def test_folders_called_like_pictures_upper_case_and_equal_names(tmp_path):
    names = [f"{c}/0.PNG" for c in "abcdef"] + ["x.png/0.Jpg", "x.png/deep.tif/1.JPEG"]
    data = load(fill(tmp_path / "x", names))
    assert len(data.train) + len(data.test) == 8


def test_a_zip_with_the_separator_of_windows(tmp_path):
    fill(tmp_path, some("x", 9))
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for i in range(9):
            name = f"{'Training' if i < 6 else 'Testing'}\\{i}.png"
            archive.write(tmp_path / "x" / f"{i}.png", name)
    data = image_zip(str(tmp_path / "x.zip"), 8, 1, 0.3, None, False)
    assert (len(data.train), len(data.test)) == (6, 3)


def test_other_files_are_told_when_they_are_many(tmp_path):
    root = fill(tmp_path / "x", some("a", 12))
    (root / "notes.txt").write_text("one note is nothing to tell")
    assert "other files" not in texts(load(root))
    for i in range(3):
        (root / f"{i}.heic").write_bytes(b"")
    assert "other files are left out: 3 .heic" in texts(load(root))


# -- copies ----------------------------------------------------------------------------------------


def test_copies_of_training_images_among_the_held_out_are_told(tmp_path):
    root = fill(tmp_path / "x", some("train", 8) + some("test", 4))
    assert "are copies" not in texts(load(root))
    (root / "test" / "copy.png").write_bytes((root / "train" / "0.png").read_bytes())
    assert "1 of the 5 held-out images are copies of training images" in texts(load(root))
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (30, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "x.npz", a=pixels, b=pixels[:5])
    data = arrays(str(tmp_path / "x.npz"), "a", "b", None, None, None, None, 0.1, None)
    assert "5 of the 5 held-out images are copies" in texts(data)


def test_a_test_split_of_one_image_is_no_test_split():
    with pytest.raises(UserError, match="holds one image; needed: at least 2"):
        CleanData("mine", torch.zeros(4, 1, 2, 2), torch.zeros(1, 1, 2, 2))


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    root = fill(tmp_path / "x", some("a", 8))

    def refuse(folder):
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(files, "os", SimpleNamespace(scandir=refuse, path=os.path))
    with pytest.raises(UserError, match="x' cannot be read: Permission denied"):
        load(root)
    with pytest.raises(UserError, match="x' cannot be read: Permission denied"):
        fingerprint(root)
