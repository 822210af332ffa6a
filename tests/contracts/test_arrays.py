"""Images in arrays, and the data sets that other libraries load: MNIST, CIFAR-10, the hub."""

import pickle
import struct
import sys
from types import ModuleType, SimpleNamespace

import h5py
import numpy as np
import pytest
import torch
import torchvision.datasets
from PIL import Image
from safetensors.numpy import save_file

from cleanprior.data import array_sources, arrays, cifar10, huggingface, mnist
from cleanprior.errors import UserError

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 6, 6, 3), dtype=np.uint8)


def load(path, key=None, test_key=None, layout=None, range=None, resolution=None, **rest):
    options = {"channels": None, "test_share": 0.3, "limit": None} | rest
    return arrays(str(path), key, test_key, layout, range, resolution, **options)


def expected(pixels):
    return torch.from_numpy(pixels.astype(np.float32) / 127.5 - 1).permute(0, 3, 1, 2)


def save(path, **named):
    if path.suffix == ".npy":
        np.save(path, *named.values())
    elif path.suffix == ".npz":
        np.savez(path, **named)
    elif path.suffix == ".h5":
        with h5py.File(path, "w") as file:
            for name, value in named.items():
                file[name] = value
    else:
        save_file(named, path)
    return path


def everything(data):
    return torch.cat([data.train, data.test])


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".h5", ".safetensors"])
def test_every_format_gives_the_same_images_and_the_same_split(tmp_path, suffix, monkeypatch):
    monkeypatch.setattr(array_sources, "CHUNK", 7)
    data = load(save(tmp_path / f"x{suffix}", images=PIXELS))
    reference = load(save(tmp_path / "y.npy", images=PIXELS))
    assert torch.equal(data.train, reference.train)
    assert torch.equal(data.test, reference.test)
    rows = {tuple(x.flatten().tolist()) for x in everything(data)}
    assert rows == {tuple(x.flatten().tolist()) for x in expected(PIXELS)}
    assert data.image_shape == (3, 6, 6)
    assert 4 <= len(data.test) <= 20


def test_the_split_follows_the_content_and_copies_stay_together(tmp_path):
    data = load(save(tmp_path / "x.npy", a=PIXELS))
    twice = np.concatenate([PIXELS[::-1], PIXELS])
    again = load(save(tmp_path / "y.npy", a=twice))
    held = {tuple(x.flatten().tolist()) for x in data.test}
    assert {tuple(x.flatten().tolist()) for x in again.test} == held
    assert len(again.test) == 2 * len(data.test)


def test_a_shipped_test_split_and_a_limit(tmp_path):
    path = save(tmp_path / "x.npz", x_train=PIXELS[:30], x_test=PIXELS[30:])
    data = load(path, "x_train", "x_test", limit=8)
    assert torch.equal(data.train, expected(PIXELS[:8]))
    assert torch.equal(data.test, expected(PIXELS[30:]))


@pytest.mark.parametrize(
    ("dtype", "low", "high"), [("uint8", 0, 255), ("uint16", 0, 65535), ("bool", 0, 1)]
)
def test_unsigned_integers_are_scaled_by_the_range_of_their_type(tmp_path, dtype, low, high):
    ramp = np.zeros((6, 5, 5), dtype=dtype)
    ramp[:, 0, 0], ramp[:, 1, 1] = low, high
    ramp[:, 2, 2] = np.arange(6) % 2
    x = everything(load(save(tmp_path / "x.npy", a=ramp)))
    assert x[0, 0, 0, 0] == -1
    assert x[0, 0, 1, 1] == 1


def test_a_range_is_needed_for_floats_and_rules_over_an_integer_type(tmp_path):
    floats = save(tmp_path / "f.npy", a=PIXELS[..., 0].astype(np.float32) / 100)
    with pytest.raises(
        UserError, match=r"float32 values.*images: 0 to 2\.5[0-9]*\); set data\.range"
    ):
        load(floats)
    x = everything(load(floats, range=[0, 2.55]))
    assert (x.min(), x.max()) == (-1, 1)
    with pytest.raises(UserError, match=r"data\.range=\[0, 1\] does not cover them"):
        load(floats, range=[0, 1])
    twelve_bits = save(tmp_path / "i.npy", a=PIXELS[..., 0].astype(np.uint16) * 16)
    assert everything(load(twelve_bits, range=[0, 4080])).max() == 1
    with pytest.raises(UserError, match="is not a range; allowed"):
        load(floats, range=[1, 0])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_infinity_are_refused(tmp_path, bad):
    x = np.zeros((8, 5, 5), np.float32)
    x[5, 1, 2] = bad
    with pytest.raises(UserError, match="holds NaN or infinity in images"):
        load(save(tmp_path / "x.npy", a=x), range=[-1, 1])


@pytest.mark.parametrize(
    ("shape", "layout"),
    [
        ((9, 5, 6, 3), "NHWC"),
        ((9, 1, 5, 6), "NCHW"),
        ((20, 5, 6), "NHW"),
        ((9, 6, 6), "NHW"),
        ((9, 2, 5, 6), "NCHW"),
    ],
)
def test_a_layout_is_told_by_the_axis_of_channels(tmp_path, shape, layout):
    pixels = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    path = save(tmp_path / "x.npy", a=pixels)
    data = load(path)
    sizes = dict(zip(layout, shape, strict=True))
    assert data.image_shape == (sizes.get("C", 1), sizes["H"], sizes["W"])
    assert torch.equal(data.train, load(path, layout=layout).train)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((9, 3, 6, 3), r"could be several things; set data\.layout"),
        ((9, 5, 6, 7), "could be several things; set data.layout .NCHW: 9 images of 5x6x7; NHWC"),
        ((9, 5), "needed: .n, h, w. or 4 axes"),
    ],
)
def test_an_ambiguous_layout_is_refused(tmp_path, shape, message):
    with pytest.raises(UserError, match=message):
        load(save(tmp_path / "x.npy", a=np.zeros(shape, np.uint8)))


def test_complex_images_become_two_channels(tmp_path):
    z = np.linspace(-1, 1, 4 * 9).reshape(4, 3, 3).astype(np.complex64) * (1 + 0.5j)
    x = load(save(tmp_path / "x.npy", a=z), layout="NHW", range=[-1, 1]).train
    assert x.shape[1:] == (2, 3, 3)
    torch.testing.assert_close(x[:, 1], x[:, 0] / 2)


def test_resizing_averages_blocks_and_grey_and_rgb_turn_into_each_other(tmp_path):
    path = save(tmp_path / "x.npy", a=PIXELS)
    full, small = load(path).train, load(path, resolution=3).train
    blocks = full.unfold(2, 2, 2).unfold(3, 2, 2).mean((-1, -2))
    torch.testing.assert_close(small, blocks)
    assert load(path, resolution=5).image_shape == (3, 5, 5)
    grey = load(path, channels=1).train
    weights = torch.tensor([0.299, 0.587, 0.114]).reshape(3, 1, 1)
    torch.testing.assert_close(grey, (full * weights).sum(1, keepdim=True), atol=2e-4, rtol=0)
    one = save(tmp_path / "y.npy", a=PIXELS[..., :1])
    assert load(one, channels=3).image_shape == (3, 6, 6)
    two = save(tmp_path / "z.npy", a=PIXELS[..., :2])
    with pytest.raises(UserError, match="channels=1, and the images have 2; allowed: 2"):
        load(two, channels=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "holds several arrays: a, b; choose one by data.key=NAME"),
        ({"key": "c"}, "holds no array 'c'; found: a, b"),
        (
            {"key": "a", "layout": "HCW"},
            "layout='HCW' is not offered; allowed: NCHW, NHWC, NHW, HWN, HWCN",
        ),
        ({"key": "a", "layout": "NCHW"}, "layout=NCHW has 4 axes"),
        ({"key": "a", "limit": 0}, "limit=0"),
    ],
)
def test_options_that_do_not_fit_the_file_are_refused(tmp_path, options, message):
    path = save(tmp_path / "x.npz", a=PIXELS[..., 0], b=PIXELS)
    with pytest.raises(UserError, match=message):
        load(path, **options)


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".h5", ".safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.6])
def test_a_damaged_file_is_refused(tmp_path, suffix, share):
    path = save(tmp_path / f"x{suffix}", images=PIXELS)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(UserError, match="is damaged or not a file of arrays"):
        load(path)


@pytest.mark.parametrize("library", ["h5py", "zarr"])
def test_a_missing_library_says_how_to_install_it(tmp_path, monkeypatch, library):
    monkeypatch.setitem(sys.modules, library, None)
    path = tmp_path / ("x.h5" if library == "h5py" else "x.zarr")
    path.mkdir() if library == "zarr" else path.write_bytes(b"")
    with pytest.raises(
        UserError, match=rf"'{library}' is needed.*pip install 'cleanprior\[data\]'"
    ):
        load(path)


def test_zarr(tmp_path):
    zarr = pytest.importorskip("zarr")
    group = zarr.open_group(str(tmp_path / "x.zarr"), mode="w")
    group["images"] = PIXELS
    data = load(tmp_path / "x.zarr")
    assert torch.equal(data.train, load(save(tmp_path / "x.npy", a=PIXELS)).train)


def test_an_unknown_ending_and_a_missing_path_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"has no known ending; allowed: \.npy, \.npz"):
        load(tmp_path / "x.mat")
    with pytest.raises(UserError, match=r"data=arrays needs data\.path=FILE"):
        arrays(None, None, None, None, None, None, None, 0.1, None)


# -- data sets that other libraries load ----------------------------------------------------------


def test_mnist_loads_from_its_raw_files(tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for prefix, n in (("train", 12), ("t10k", 5)):
        for part, values in (
            ("images-idx3", np.full((n, 28, 28), 255)),
            ("labels-idx1", np.ones(n)),
        ):
            header = struct.pack(">BBBB", 0, 0, 8, values.ndim)
            header += struct.pack(f">{values.ndim}I", *values.shape)
            (raw / f"{prefix}-{part}-ubyte").write_bytes(header + values.astype(np.uint8).tobytes())
    data = mnist(str(tmp_path), 28, 3, 7, False)
    assert data.train.shape == (7, 3, 28, 28)
    assert data.train.unique().tolist() == [1]
    assert mnist(str(tmp_path), 16, 1, None, False).image_shape == (1, 16, 16)
    with pytest.raises(UserError, match=r"MNIST is not in '.*MNIST/raw' and download is false"):
        mnist(str(tmp_path / "nowhere"), 28, 1, None, False)


def test_cifar10_keeps_its_splits_and_labels(tmp_path, monkeypatch):
    """By torchvision's class; the md5 of the real files are not those of these."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    pixels = np.random.default_rng(2).integers(0, 256, (4, 3072), dtype=np.uint8)
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        content = {"data": pixels, "labels": [3, 1, 4, 1]}
        (folder / name).write_bytes(pickle.dumps(content))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    with pytest.raises(UserError, match="CIFAR-10 is not in .* and download is false"):
        cifar10(str(tmp_path), 32, 3, None, False)
    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", lambda *_: True)
    data = cifar10(str(tmp_path), 32, 3, 6, False)
    assert data.train_labels.tolist() == [3, 1, 4, 1, 3, 1]
    first = torch.from_numpy(pixels.astype(np.float32) / 127.5 - 1).reshape(4, 3, 32, 32)
    torch.testing.assert_close(data.test, first)
    assert cifar10(str(tmp_path), 16, 1, None, False).train.shape == (20, 1, 16, 16)


class Split(list):
    """Rows with features, as the library ``datasets`` has them."""

    features = {"picture": type("Image", (), {})(), "digit": type("ClassLabel", (), {})()}


@pytest.fixture
def hub(monkeypatch):
    """A stand-in for the library, which is an extra: a data set of one-coloured pictures."""
    rows = [{"picture": Image.new("L", (8, 8), 8 * i), "digit": i % 2} for i in range(30)]
    sets = {"shipped": {"train": Split(rows[:20]), "test": Split(rows[20:])}}
    sets["plain"] = {"train": Split(rows)}
    library = ModuleType("datasets")

    def load_dataset(name, subset=None):
        if name not in sets:
            raise FileNotFoundError(f"no data set {name}")
        return sets[name]

    library.load_dataset = load_dataset
    monkeypatch.setitem(sys.modules, "datasets", library)
    return SimpleNamespace(rows=rows)


def from_hub(name, split="train", test_split=None, column=None, label=None, limit=None):
    return huggingface(name, None, split, test_split, column, label, 4, 1, 0.3, limit)


def test_the_hub_keeps_a_shipped_split_and_finds_the_column_of_images(hub):
    data = from_hub("shipped", label="digit", limit=6)
    assert data.train.shape == (6, 1, 4, 4)
    assert data.test.shape == (10, 1, 4, 4)
    assert data.train_labels.tolist() == [0, 1] * 3
    plain = from_hub("plain")
    assert len(plain.train) + len(plain.test) == 30
    assert 2 <= len(plain.test) <= 18


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "nowhere"}, "the data set 'nowhere' was not loaded: no data set nowhere"),
        ({"split": "trian"}, "has no split 'trian'; it has: train, test. Did you mean 'train'"),
        ({"column": "digit"}, "no column of images 'digit'; columns of images: picture"),
        ({"label": "class"}, "has no column 'class'; it has: picture, digit"),
        ({"name": None}, "data=huggingface needs data.repository=NAME"),
    ],
)
def test_the_hub_says_what_there_is(hub, options, message):
    with pytest.raises(UserError, match=message):
        from_hub(**{"name": "shipped"} | options)


def test_without_the_library_the_hub_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"'datasets' is needed.*pip install 'cleanprior\[data\]'"):
        from_hub("shipped")
