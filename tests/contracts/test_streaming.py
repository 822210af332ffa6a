"""A user's file that is larger than memory: blocks of it give what all of it at once gives."""

import copy
import json
import os
import shutil

import h5py
import numpy as np
import pytest
import torch

from cleanprior import fingerprint, mapped
from cleanprior.cells import CellFolder
from cleanprior.cells.loading import shelf_of
from cleanprior.cells.run import Cell, prepare
from cleanprior.config import build, compose
from cleanprior.data import Measurements, arrays, loading, measured_arrays, measured_file, shelf
from cleanprior.data.kspace.steps import transform
from cleanprior.data.shelf import Shelf, load_from
from cleanprior.errors import UserError
from cleanprior.operators.building import build_operator

N, SHAPE = 40, (2, 8, 7)


@pytest.fixture
def small_blocks(monkeypatch):
    """A few images at a time, and everything in files."""
    for module in (measured_arrays, loading, mapped):
        monkeypatch.setattr(module, "BLOCK", 2500)
    names = ("mapped", "data.measured_arrays", "data.containers", "data.user_files")
    for name in names:
        monkeypatch.setattr(f"cleanprior.{name}.LARGE", 500)
    monkeypatch.setattr(mapped.blocks, "__defaults__", (1000,))


def _rng():
    return np.random.default_rng(0)


def _held(kind):
    """The arrays of a file, and the keys to read it by."""
    rng = _rng()
    x = rng.uniform(-1, 1, (N, *SHAPE)).astype("f4")
    x[5] = x[30]
    mask = (rng.random((N, 1, *SHAPE[1:])) > 0.3).astype("u1")
    level = np.linspace(0.1, 0.2, N)
    plain = {"y": x * mask, "sigma_y": level, "params/mask": mask}
    gaps = np.where(mask > 0, x, np.nan)
    uneven = gaps.copy()
    uneven[35, 1, 2] = np.nan
    square = rng.uniform(-1, 1, (N, 8, 8))
    large = rng.uniform(-1, 1, (6, 1, 24, 24))
    test = {f"test/{k}": v[:9] for k, v in plain.items()}
    found = {
        "plain": (plain, {}),
        "one mask": ({"y": x * mask[:1], "sigma_y": 0.1, "params/mask": mask[0, 0]}, {}),
        "channels last": (
            {k: v.transpose(0, 2, 3, 1) if v.ndim == 4 else v for k, v in plain.items()},
            {"layout": "NHWC"},
        ),
        "images last": (
            {"y": np.moveaxis(square, 0, 2), "sigma_y": 0.1, "params/m": np.ones((8, 8, N))},
            {"layout": "HWN"},
        ),
        "complex": ({"y": square + 1j * square[::-1], "sigma_y": level}, {}),
        "gaps": ({"y": gaps, "sigma_y": 0.1}, {"missing": "nan"}),
        "gaps of one channel": ({"y": uneven, "sigma_y": 0.1}, {"missing": "nan"}),
        "gaps behind masks": ({**plain, "y": gaps}, {}),
        "bytes": (
            {"y": rng.integers(0, 255, (N, 9, 8, 3)).astype("u1"), "sigma_y": 5.0},
            {"range": [0, 255]},
        ),
        "photons": (
            {"y": rng.poisson(50, (N, 8, 8)) * 2.0 + 3},
            {"range": [3, 203], "photons": [2.0, 3.0, 1.0]},
        ),
        "patches": (
            {"y": large, "sigma_y": np.arange(6) / 9, "params/mask": large > 0},
            {"patch": 8, "stride": 3},
        ),
        "levels of entries": ({"y": x, "sigma_y": 0.1 + abs(x)}, {"range": [-2, 2]}),
        "levels of channels": ({"y": x, "sigma_y": 0.1 + abs(x[:, :, :1, :1])}, {}),
        "levels of patches": ({"y": large, "sigma_y": 0.1 + abs(large)}, {"patch": 8}),
        "test arrays": ({**plain, **test, "scale": level, "test/scale": level[:9]}, {}),
        "a NaN": ({**plain, "y": uneven}, {}),
        "infinity": ({"y": np.where(x == x.max(), np.inf, x), "sigma_y": 0.1}, {}),
        "a negative level": ({**plain, "sigma_y": -level}, {}),
        "few levels": ({**plain, "sigma_y": x[:9]}, {}),
        "few masks": ({**plain, "params/mask": mask[:9]}, {}),
        "two alike": ({"y": np.repeat(x[:1], 9, 0), "sigma_y": 0.1}, {}),
        "one of test": ({**plain, **{k: v[:1] for k, v in test.items()}}, {}),
    }
    return found if kind is None else found[kind]


def _write(path, held):
    if path.suffix == ".h5":
        with h5py.File(path, "w") as file:
            for name, value in held.items():
                file[name] = value
    elif path.suffix == ".npz":
        np.savez_compressed(path, **held)
    return str(path)


def _read(path, keys):
    """All that a file gives, or its refusal."""
    try:
        data = measured_file(path, None, 0.3, **keys)
    except UserError as error:
        return str(error)
    told = [(n.text, n.is_warning) for n in data.notices]
    scales = {k: v.tolist() for k, v in data.scales.items()}
    return data.train.hash, data.test.hash, len(data.train), data.image_shape, told, scales


@pytest.mark.parametrize("kind", list(_held(None)))
def test_blocks_give_the_bytes_the_split_and_the_lines_of_the_whole(kind, tmp_path, request):
    held, keys = _held(kind)
    paths = [_write(tmp_path / f"x{suffix}", held) for suffix in (".npz", ".h5")]
    whole = [_read(path, keys) for path in paths]
    request.getfixturevalue("small_blocks")
    assert [_read(path, keys) for path in paths] == whole
    kinds = list(_held(None))
    is_refused = kinds.index(kind) > kinds.index("test arrays")
    assert isinstance(whole[0], str) == is_refused


def test_files_of_a_folder_and_its_masks_in_blocks(tmp_path, request):
    rng, folder, masks = _rng(), tmp_path / "frames", tmp_path / "masks"
    folder.mkdir()
    masks.mkdir()
    for i in range(7):
        kind = "f4" if i % 2 else "u1"
        np.save(folder / f"{i}.npy", rng.integers(0, 255, (i + 1, *SHAPE)).astype(kind))
        np.save(masks / f"{i}.npy", rng.random((1 if i % 2 else i + 1, 1, *SHAPE[1:])) > 0.3)
    keys = {"sigma_y": 3.0, "range": [0, 255], "layout": "NCHW", "mask": str(masks)}
    whole = _read(str(folder), keys)
    request.getfixturevalue("small_blocks")
    assert _read(str(folder), keys) == whole
    assert isinstance(whole, tuple)


class _Asked:
    """An array on a disk that notes how many rows are asked for at once."""

    def __init__(self, values):
        self.values, self.shape, self.dtype = values, values.shape, values.dtype
        self.most = self.rows = 0

    def __getitem__(self, rows):
        found = self.values[rows]
        self.most, self.rows = max(self.most, len(found)), self.rows + len(found)
        return found


def test_no_more_than_a_block_is_asked_for_at_once(tmp_path, monkeypatch):
    y, mask = _Asked(np.zeros((999, 1, 8, 8), "f4")), _Asked(np.ones((999, 1, 8, 8), "u1"))
    monkeypatch.setattr(measured_arrays, "BLOCK", 10 * 2 * 4 * 64)
    monkeypatch.setattr(mapped, "LARGE", 1000)
    held = {"y": y, "params/mask": mask, "sigma_y": np.array(0.1)}
    tensors, _ = measured_arrays.arrange(tmp_path / "x.h5", held, "NCHW")
    assert (y.most, y.rows, mask.most, mask.rows) == (10, 999, 10, 999)
    assert mapped.is_in_file(tensors["y"]) and mapped.is_in_file(tensors["params/mask"])
    most = [0]
    read = mapped._read

    def counted(mapping, offset, like, first, count):
        most[0] = max(most[0], count * like[:1].nbytes)
        return read(mapping, offset, like, first, count)

    monkeypatch.setattr(mapped, "_read", counted)
    Measurements.of(tmp_path / "x.h5", tensors)
    assert 0 < most[0] <= mapped.BLOCK


def test_the_splits_of_a_large_file_are_kept_and_read_without_it(small_blocks, tmp_path):
    held, keys = _held("test arrays")
    path, place = _write(tmp_path / "x.h5", held), Shelf(tmp_path / "kept", "key")
    first = load_from(place, lambda: measured_file(path, None, 0.3, **keys))
    names = {f"{part}-key.safetensors" for part in ("data", "train", "test")}
    assert set(os.listdir(place.folder)) == names, "and nothing that was only on the way"
    os.remove(path)

    def never():
        raise AssertionError("the user's file was read again")

    again = load_from(place, never)
    for split in ("train", "test"):
        assert again.split(split).hash == first.split(split).hash
        assert torch.equal(again.scales[split], first.scales[split])
        assert mapped.is_in_file(again.split(split).y)
    assert (again.name, again.image_shape, again.notices) == ("x", SHAPE, first.notices)


@pytest.mark.parametrize("part", ["train", "test", "data"])
def test_a_damaged_split_is_told_and_the_file_is_read_again(small_blocks, tmp_path, caplog, part):
    path, place = _write(tmp_path / "x.h5", _held("plain")[0]), Shelf(tmp_path / "kept", "key")
    build = lambda: measured_file(path, None, 0.3)  # noqa: E731
    first = load_from(place, build)
    content = bytearray(place.split(part).read_bytes())
    content[-3] ^= 1
    place.split(part).write_bytes(content)
    again = load_from(place, build)
    assert "the user's file is read again" in caplog.text
    assert again.train.hash == first.train.hash
    assert load_from(place, lambda: None).test.hash == first.test.hash


@pytest.mark.parametrize("kind", ["a NaN", "infinity", "two alike"])
def test_a_refusal_leaves_nothing_behind(small_blocks, tmp_path, monkeypatch, kind):
    path, place = _write(tmp_path / "x.h5", _held(kind)[0]), Shelf(tmp_path / "kept", "key")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    for call in (lambda: load_from(place, lambda: measured_file(path, None, 0.3)),
                 lambda: measured_file(path, None, 0.3)):  # fmt: skip
        with pytest.raises(UserError):
            call()
    assert os.listdir(place.folder) == os.listdir(tmp_path / "temporary") == []


def test_without_a_folder_of_runs_the_splits_are_gone_with_the_data(
    small_blocks, tmp_path, monkeypatch
):
    path = _write(tmp_path / "x.h5", _held("plain")[0])
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    data = measured_file(path, None, 0.3)
    assert os.listdir(tmp_path / "temporary") == []
    assert mapped.is_in_file(data.train.y)
    assert {y.numpy().tobytes() for y in data.train.y}.isdisjoint(
        y.numpy().tobytes() for y in data.test.y
    )


def test_a_job_has_the_training_split_alone(small_blocks, tmp_path):
    path = _write(tmp_path / "x.h5", _held("plain")[0])
    keys = ["operator=inpainting", "operator.p=0.3", "operator.sigma=0.2", "data.test_share=0.3"]
    config = compose(["method=naive", "data=measurements", f"data.path={path}", *keys])
    folder = CellFolder(tmp_path / "runs", config)
    assert prepare(folder) == ("ready", SHAPE)
    given = folder.files.training.measurements
    kept = shelf_of(folder)
    assert os.path.samefile(given, kept.split("train")), "a link, and no copy"
    plain = measured_file(path, None, 0.3)
    assert Cell(folder).measurements("test").hash == plain.test.hash
    assert set(os.listdir(given.parent)) == {"measurements.safetensors", "job.json"}


def test_a_file_may_be_larger_than_memory_where_it_is_read_by_rows(tmp_path, monkeypatch):
    path = _write(tmp_path / "x.h5", _held("plain")[0])
    monkeypatch.setattr("cleanprior.data.claims.total_bytes", lambda: 1000)
    assert len(measured_file(path, None, 0.3).train)
    with pytest.raises(UserError, match="more than this machine's memory"):
        arrays(path, "y", None, None, [-1, 1], None, None, 0.3, None)


def test_a_disk_with_too_little_room_is_told_first(small_blocks, tmp_path, monkeypatch):
    path = _write(tmp_path / "x.h5", _held("plain")[0])
    usage = shutil.disk_usage(tmp_path)._replace(free=10_000)
    monkeypatch.setattr(measured_arrays.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(UserError, match="needed: twice as much while they are split"):
        measured_file(path, None, 0.3)


def test_what_is_read_from_the_shelf_is_no_other_data_set(small_blocks, tmp_path, caplog):
    path, place = _write(tmp_path / "x.h5", _held("plain")[0]), Shelf(tmp_path / "kept", "key")
    load_from(place, lambda: measured_file(path, None, 0.3))
    other = Shelf(place.folder, "other")
    for part in (*shelf.SPLITS, "data"):
        shutil.copy(place.split(part), other.split(part))
    load_from(other, lambda: measured_file(path, None, 0.3))
    assert "belongs to something else" in caplog.text


def _scans(folder):
    """Three scans of disks by two coils: two on lines, one on points."""
    rng = _rng()
    folder.mkdir()
    rows, columns = np.mgrid[-1:1:16j, -1:1:16j]
    for i, name in enumerate("abc"):
        radius = rng.uniform(0.3, 0.8, (4, 1, 1, 1))
        disk = (rows**2 + columns**2 < radius**2) * np.stack([1 + rows, 1 - columns])
        noise = rng.normal(size=disk.shape) + 1j * rng.normal(size=disk.shape)
        k_space = transform(disk.astype(np.complex64)) + 0.003 * noise
        seen = rng.random((16, 16) if i == 2 else 16) > 0.4
        seen[..., 5:11] = True
        np.save(folder / f"{name}.npy", (k_space * seen).astype(np.complex64))


def test_scans_of_a_folder_one_after_the_other(tmp_path, request):
    _scans(tmp_path / "scans")
    keys = compose(["data=kspace", f"data.path={tmp_path / 'scans'}", "data.sigma_y=0.003"])["data"]
    whole = build(keys)
    request.getfixturevalue("small_blocks")
    found = build(keys)
    for split in ("train", "test"):
        assert found.split(split).hash == whole.split(split).hash
        assert torch.equal(found.scales[split], whole.scales[split])
    assert (found.law, found.notices, found.image_shape) == (whole.law, whole.notices, (2, 16, 16))
    assert mapped.is_in_file(found.train.y) and not mapped.is_in_file(whole.train.y)
    assert whole.train.params["mask"].shape[2] == 16, "lines are as high as points"
    operator = build_operator(compose(["data=kspace", "operator=mri_multicoil"])["operator"],
                              (2, 16, 16), 0)  # fmt: skip
    law = operator.with_law_of(found.train.params)
    assert copy.deepcopy(law).draw.maps is law.draw.maps, (
        "a copy of an operator has no copy of them"
    )


def test_a_file_is_hashed_once_for_the_processes_of_a_cell(tmp_path, monkeypatch):
    path = tmp_path / "x.npy"
    np.save(path, np.zeros((4, 2, 2)))
    monkeypatch.setattr(fingerprint, "_digests", {})
    found = fingerprint.fingerprint(path)
    assert fingerprint.known() == [], "it was written a moment ago"
    monkeypatch.setattr(fingerprint, "_digests", {})
    os.utime(path, ns=(1, 10**18))
    assert fingerprint.fingerprint(path) == found
    told = json.loads(json.dumps(fingerprint.known()))
    monkeypatch.setattr(fingerprint, "_digests", {})
    fingerprint.learn(told)
    with monkeypatch.context() as patch:
        patch.setattr(fingerprint, "_digest", None)  # what is known is not read
        assert fingerprint.fingerprint(path) == found
    shutil.copy(path, tmp_path / "other")
    os.replace(tmp_path / "other", path)
    np.save(path, np.ones((4, 2, 2)))
    os.utime(path, ns=(1, 10**18))
    assert path.stat().st_size == told[0][1][0][1]
    assert fingerprint.fingerprint(path) != found, "another file of that name, size and time"
