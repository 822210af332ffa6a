"""Clean data sets: sizes, ranges, splits, and what is said of files that are missing or broken."""

import gzip
import struct

import numpy as np
import pytest
import torch
from PIL import Image

from cleanprior.data import CleanData, digits, fashion_mnist, image_folder
from cleanprior.errors import UserError


def test_digits_are_1437_and_360_images_in_range(digits_data):
    assert digits_data.train.shape == (1437, 1, 8, 8)
    assert digits_data.test.shape == (360, 1, 8, 8)
    assert digits_data.image_shape == (1, 8, 8)
    for images in (digits_data.train, digits_data.test):
        assert images.dtype == torch.float32
        assert images.min() == -1
        assert images.max() == 1
    assert digits_data.train_labels.shape == (1437,)
    assert set(digits_data.test_labels.tolist()) == set(range(10))


def test_digits_are_the_same_at_every_call_and_splits_are_disjoint(digits_data):
    again = digits()
    assert torch.equal(again.train, digits_data.train)
    from sklearn.datasets import load_digits

    everything = torch.from_numpy(load_digits().images).float() / 8 - 1
    both = torch.cat([digits_data.train, digits_data.test]).flatten(1)
    ours = sorted(map(tuple, both.tolist()))
    assert ours == sorted(map(tuple, everything.flatten(1).tolist()))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_clean_image_with_nan_is_refused_and_numbered(bad):
    x = torch.zeros(5, 1, 4, 4)
    x[3, 0, 1, 1] = bad
    with pytest.raises(UserError, match="image 3 of the training split holds NaN or infinity"):
        CleanData("mine", x, torch.zeros(1, 1, 4, 4))
    with pytest.raises(UserError, match="image 3 of the test split holds NaN or infinity"):
        CleanData("mine", torch.zeros(1, 1, 4, 4), x)


def test_an_empty_split_is_refused():
    with pytest.raises(UserError, match="the test split holds no image"):
        CleanData("mine", torch.zeros(2, 1, 4, 4), torch.zeros(0, 1, 4, 4))


# -- a folder of images ----------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "images" / "more").mkdir(parents=True)
    for i in range(30):
        name = f"more/{i}.png" if i % 2 else f"{i}.png"
        pixels = rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / name)
    (tmp_path / "images" / "notes.txt").write_text("no image")
    return tmp_path / "images"


@pytest.mark.parametrize("channels", [1, 3])
def test_a_folder_is_loaded_with_its_sub_folders(folder, channels):
    data = image_folder(str(folder), 8, channels, 0.2)
    assert data.image_shape == (channels, 8, 8)
    assert len(data.train) + len(data.test) == 30
    assert 1 <= len(data.test) <= 15
    assert data.train.min() >= -1
    assert data.train.max() <= 1


def test_black_is_minus_one_white_is_one_and_the_crop_is_central(tmp_path):
    pixels = np.zeros((6, 10, 3), dtype=np.uint8)
    pixels[:, 2:5] = 255
    for name in ("a.png", "b.png", "c.png"):
        Image.fromarray(pixels).save(tmp_path / name)
    x = image_folder(str(tmp_path), 6, 3, 0.5).train[0]
    expected = torch.full((3, 6, 6), -1.0)
    expected[:, :, :3] = 1
    assert torch.equal(x, expected)


def test_adding_images_moves_no_image_to_the_other_split(folder):
    def split_of(data):
        return {tuple(x.flatten().tolist()) for x in data.test}

    before = image_folder(str(folder), 8, 1, 0.3)
    Image.fromarray(np.full((9, 9), 7, dtype=np.uint8)).save(folder / "0000.png")
    after = image_folder(str(folder), 8, 1, 0.3)
    assert split_of(before) <= split_of(after)
    assert len(after.train) + len(after.test) == 31


def test_sixteen_bit_grey_keeps_its_contrast(tmp_path):
    pixels = np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16)
    for name in ("a.png", "b.png", "c.png"):
        Image.fromarray(pixels).save(tmp_path / name)
    x = image_folder(str(tmp_path), 8, 1, 0.5).train[0, 0]
    expected = torch.from_numpy(pixels.astype(np.float32)) / 65535 * 2 - 1
    assert (x - expected).abs().max() < 1e-6


def test_pixels_of_unknown_range_are_refused(folder):
    Image.fromarray(np.full((9, 9), np.nan, dtype=np.float32)).save(folder / "nan.tiff")
    with pytest.raises(UserError, match=r"nan\.tiff' has 32-bit pixels of unknown range, and none"):
        image_folder(str(folder), 8, 1, 0.2)


@pytest.mark.parametrize("damage", ["text", "truncated", "scrambled"])
def test_an_unreadable_image_is_named(folder, damage):
    file = folder / "4.png"
    content = bytearray(file.read_bytes())
    if damage == "text":
        content = b"this is no image"
    elif damage == "truncated":
        content = content[: len(content) // 2]
    else:
        content[60:200] = b"\x00" * 140
    file.write_bytes(bytes(content))
    with pytest.raises(UserError, match=r"4\.png' is not a readable image; remove it or mend it"):
        image_folder(str(folder), 8, 3, 0.2)


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"holds 0 images; needed: at least 3.*\.png"):
        image_folder(str(tmp_path), 8, 3, 0.2)


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"is not a folder; set data\.path"):
        image_folder(str(tmp_path / "nowhere"), 8, 3, 0.2)
    with pytest.raises(UserError, match=r"needs data\.path=FOLDER"):
        image_folder(None, 8, 3, 0.2)


@pytest.mark.parametrize(("channels", "share"), [(2, 0.2), (3, 0.0), (3, 1.0)])
def test_folder_options_outside_their_range_are_refused(folder, channels, share):
    with pytest.raises(UserError, match="allowed: "):
        image_folder(str(folder), 8, channels, share)


@pytest.mark.parametrize("resolution", [0, -4])
def test_a_resolution_that_is_none_is_refused(folder, resolution):
    with pytest.raises(UserError, match=f"resolution={resolution}"):
        image_folder(str(folder), resolution, 3, 0.2)


# -- Fashion-MNIST ---------------------------------------------------------------------------------


def write_idx(path, array, compress=False):
    header = struct.pack(">BBBB", 0, 0, 8, array.ndim) + struct.pack(
        f">{array.ndim}I", *array.shape
    )
    content = header + array.astype(np.uint8).tobytes()
    if compress:
        path = path.with_name(path.name + ".gz")
        content = gzip.compress(content)
    path.write_bytes(content)


@pytest.fixture
def raw(tmp_path):
    def make(compress=False):
        folder = tmp_path / "FashionMNIST" / "raw"
        folder.mkdir(parents=True)
        rng = np.random.default_rng(0)
        for prefix, n in (("train", 12), ("t10k", 5)):
            images = rng.integers(0, 256, (n, 28, 28))
            write_idx(folder / f"{prefix}-images-idx3-ubyte", images, compress)
            write_idx(folder / f"{prefix}-labels-idx1-ubyte", np.arange(n) % 10, compress)
        return tmp_path

    return make


@pytest.mark.parametrize(("resolution", "side"), [(28, 28), (32, 32), (16, 16), (8, 8)])
def test_fashion_mnist_loads_from_its_raw_files(raw, resolution, side):
    data = fashion_mnist(str(raw()), resolution, None, False)
    assert data.train.shape == (12, 1, side, side)
    assert data.test.shape == (5, 1, side, side)
    assert data.train.min() >= -1
    assert data.train.max() <= 1
    assert data.train_labels.tolist() == [*range(10), 0, 1]


def test_fashion_mnist_loads_from_compressed_raw_files(raw):
    data = fashion_mnist(str(raw(compress=True)), 28, None, False)
    assert data.train.shape == (12, 1, 28, 28)


def test_fashion_mnist_limit_keeps_the_first_training_images(raw):
    root = str(raw())
    data, everything = fashion_mnist(root, 28, 7, False), fashion_mnist(root, 28, None, False)
    assert torch.equal(data.train, everything.train[:7])
    assert torch.equal(data.test, everything.test)


def test_fashion_mnist_without_files_says_where_they_belong(tmp_path):
    message = r"is not in '.*FashionMNIST/raw' and download is false; set data\.path to the folder"
    with pytest.raises(UserError, match=message):
        fashion_mnist(str(tmp_path), 28, None, False)


def test_a_truncated_fashion_mnist_is_refused(raw):
    root = raw()
    file = root / "FashionMNIST" / "raw" / "train-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(UserError, match="train-images-idx3-ubyte' is damaged; remove it"):
        fashion_mnist(str(root), 28, None, False)


def test_fashion_mnist_refuses_another_resolution(tmp_path):
    with pytest.raises(UserError, match="resolution=20 is not offered; allowed: 8, 16, 28, 32"):
        fashion_mnist(str(tmp_path), 20, None, False)
