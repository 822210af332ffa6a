"""Patches of large images: no pixel is in both splits, every position, measurements with masks."""

import instruments
import numpy as np
import pytest
import torch

from cleanprior.data import arrays, measured_file
from cleanprior.data.patches import Patches
from cleanprior.errors import UserError


def load(path, **options):
    defaults = dict.fromkeys(("key", "test_key", "layout", "range", "resolution", "channels"))
    return arrays(str(path), **({**defaults, "test_share": 0.2, "limit": None} | options))


def numbered(height, width, start=0):
    """An image whose pixels are all different: a patch tells where it was."""
    return (start + np.arange(height * width)).reshape(height, width).astype(np.float64)


def pixels(patches, low, high):
    """Return the numbers of the pixels of patches in [-1, 1]."""
    return set(((patches.double() + 1) / 2 * (high - low) + low).round().long().flatten().tolist())


@pytest.mark.parametrize("stride", [None, 3, 1])
def test_one_image_has_no_pixel_in_both_splits(tmp_path, stride):
    np.save(tmp_path / "x.npy", numbered(96, 80))
    data = load(tmp_path / "x.npy", patch=8, stride=stride, range=[0, 96 * 80], layout="HW")
    assert data.image_shape == (1, 8, 8) and len(data.test) >= 2
    both = [pixels(x, 0, 96 * 80) for x in (data.train, data.test)]
    assert not both[0] & both[1]
    total = sum(map(len, both))
    # Blocks waste nothing on a grid; patches that touch a held-out block are left out.
    assert total > (0.99 if stride is None else 0.9) * 96 * 80 - 96 * 8
    assert "of different blocks of 1 image" in " ".join(n.text for n in data.notices)
    # A patch is a square of the image as it lies there.
    corner = ((data.train[5, 0, 0, 0].double() + 1) / 2 * 96 * 80).round().long().item()
    expected = numbered(96, 80)[corner // 80 :, corner % 80 :][:8, :8]
    found = (data.train[5, 0].double() + 1) / 2 * 96 * 80
    torch.testing.assert_close(found, torch.from_numpy(expected), atol=1e-2, rtol=0)


def test_whole_images_are_held_out_where_there_are_several(tmp_path):
    (tmp_path / "x").mkdir()
    sizes = [(20, 33), (24, 24), (16, 40), (31, 17), (20, 20)]
    start = 0
    for i, (h, w) in enumerate(sizes):
        instruments.tiff(tmp_path / "x" / f"{i}.tif", numbered(h, w, start).astype(np.float32))
        start += h * w
    data = load(tmp_path / "x", patch=8, stride=4, range=[0, start])
    both = [pixels(x, 0, start) for x in (data.train, data.test)]
    assert not both[0] & both[1] and both[1]
    owners = np.repeat(np.arange(5), [h * w for h, w in sizes])
    assert not {owners[p] for p in both[0]} & {owners[p] for p in both[1]}


def test_every_position_and_a_limit():
    patches = Patches(4, 1)
    assert len(patches.corners(10, 9, 1)) == 7 * 6
    names = ["a", "b", "c"]
    train, test, _ = patches.split(names, [(10, 9)] * 3, 0.3)
    held = set(test[:, 0].tolist())
    assert not held & set(train[:, 0].tolist()) and len(train) == (3 - len(held)) * 42
    some = patches.draw(train, 20, 1, "train")
    assert len(some) == 20 == len({tuple(p) for p in some.tolist()})
    assert torch.equal(some, patches.draw(train, 20, 1, "train"))


def test_what_cannot_be_cut_is_refused(tmp_path):
    np.save(tmp_path / "x.npy", numbered(40, 40))
    for options, message in (
        ({"patch": 64}, "patch=64 is larger than image"),
        ({"patch": 30}, "too few patches|needed: at least 3"),
        ({"patch": 0}, "patch=0 is not a size"),
        ({"patch": 8, "stride": 9}, "stride=9; allowed: from 1 to patch=8"),
        ({"stride": 2}, "stride=2 is that of patches"),
        ({"patch": 8, "test_key": "y"}, "leave data.test_key out"),
    ):
        with pytest.raises(UserError, match=message):
            load(tmp_path / "x.npy", range=[0, 1600], **({"layout": "HW"} | options))
    import cleanprior.data.patches as module

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "total_bytes", lambda: 10_000)
        with pytest.raises(UserError, match=r"set data.limit to at most \d+"):
            load(tmp_path / "x.npy", range=[0, 1600], layout="HW", patch=8, stride=1)


def test_measurements_are_cut_with_their_masks(tmp_path, make_operator):
    y = np.random.default_rng(0).normal(size=(64, 72))
    y[np.random.default_rng(1).random(y.shape) < 0.3] = np.nan
    path = instruments.fits(tmp_path / "x.fits", y.astype(np.float32))
    options = {"missing": "nan", "sigma_y": 0.1, "patch": 8}
    data = measured_file(str(path), None, 0.2, **options)
    assert data.image_shape == (1, 8, 8) and len(data.train) + len(data.test) == 72
    assert torch.equal(data.train.y != 0, data.train.params["mask"] > 0)
    data.check(make_operator("inpainting", (1, 8, 8), "p=0.3", "sigma=0.1"))
    with pytest.raises(UserError, match="data.patch cuts y, and blur mixes pixels; leave it out"):
        data.check(make_operator("blur", (1, 8, 8), "sigma=0.1"))
    seen = {row.numpy().tobytes() for row in data.train.y}
    assert not any(row.numpy().tobytes() in seen for row in data.test.y)


def test_a_large_image_is_a_data_set(tmp_path):
    image = np.random.default_rng(0).integers(0, 4096, (2048, 2048), dtype=np.uint16)
    instruments.tiff(tmp_path / "x.tif", image)
    data = load(tmp_path / "x.tif", patch=64, stride=1, limit=500, range=[0, 4095])
    assert data.train.shape == (500, 1, 64, 64) and len(data.test) > 80
    assert "500 of 3" in " ".join(n.text for n in data.notices)  # of some 3 million positions
