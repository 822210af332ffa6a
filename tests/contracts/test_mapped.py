"""Tensors in a file: the same numbers as in memory, and no more memory than what is read."""

import gc
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from cleanprior.data import Measurements
from cleanprior.data.measurement_files import (
    draw_measurements,
    read_measurements,
    write_measurements,
)
from cleanprior.errors import UserError
from cleanprior.mapped import blocks, bytes_of, map_tensors, rows
from cleanprior.operators import parts
from cleanprior.seeding import generator_for


@pytest.fixture
def pair(tmp_path):
    """Tensors in memory, and the same in a file."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randn(50, 2, 3, generator=generator)
    held = {"y": y, "mask": y > 0, "count": torch.arange(50), "none": torch.zeros(50, 0)}
    save_file(held, tmp_path / "held.safetensors", metadata={"json": "{}"})
    found, metadata = map_tensors(tmp_path / "held.safetensors")
    assert metadata == {"json": "{}"}
    return held, found


@pytest.mark.parametrize(
    "index",
    [
        torch.tensor([7, 2, 7, 49]),
        torch.arange(3, 20),
        torch.tensor([5]),
        torch.tensor([], dtype=torch.long),
        torch.tensor([-1, 0]),
        torch.tensor([[1, 2], [3, 4]]),
        torch.arange(50) % 3 == 0,
        torch.tensor([1, 2], dtype=torch.int32),
        slice(4, 9),
        slice(None, None, 7),
    ],
    ids=str,
)
def test_rows_of_a_file_are_those_of_memory(pair, index):
    for name, held in pair[0].items():
        taken = rows(pair[1][name], index)
        assert taken.dtype == held.dtype
        assert torch.equal(taken, held[index]) and torch.equal(rows(held, index), held[index])
        part = pair[1][name][10:40]  # a part of a file is a file too
        if isinstance(index, slice) or int(index.max() if len(index) else 0) < 30 > len(index):
            assert torch.equal(rows(part, index), held[10:40][index])


def test_a_position_beyond_the_end_is_refused(pair):
    for tensor in (pair[0]["y"], pair[1]["y"]):
        with pytest.raises(IndexError):
            rows(tensor, torch.tensor([3, 50]))


@pytest.mark.parametrize("size", [1, 100, 1 << 20])
def test_blocks_are_all_rows_in_their_order(pair, size):
    for name, held in pair[0].items():
        for tensor in (held, pair[1][name], held.expand(2, *held.shape)[0]):
            found = list(blocks(tensor, size))
            assert torch.equal(torch.cat(found), held)
            assert all(len(b) == 1 or b.nbytes <= size for b in found)


def test_the_bytes_of_a_number_that_was_expanded():
    """One noise level for the one image of a file."""
    one = torch.tensor(0.25).expand(1)
    assert bytes(bytes_of(one)) == torch.tensor([0.25]).numpy().tobytes()


def test_what_is_written_into_a_tensor_does_not_reach_the_file(pair, tmp_path):
    before = (tmp_path / "held.safetensors").read_bytes()
    pair[1]["y"][0] = 7
    assert pair[1]["y"][0, 0, 0] == 7
    assert (tmp_path / "held.safetensors").read_bytes() == before


def test_a_file_can_be_read_when_its_name_is_gone_and_is_closed_with_its_tensors(pair, tmp_path):
    (tmp_path / "held.safetensors").unlink()
    assert torch.equal(rows(pair[1]["y"], torch.tensor([3, 1])), pair[0]["y"][[3, 1]])
    opened = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None
    pair[1].clear()
    gc.collect()
    if opened is not None:
        assert len(os.listdir("/proc/self/fd")) < opened


def test_measurements_in_a_file_are_those_in_memory(make_operator, tmp_path):
    operator = make_operator("inpainting", (1, 8, 8), "sigma=0.1")
    drawn = Measurements.draw(torch.zeros(40, 1, 8, 8), operator, 0, "train")
    write_measurements(tmp_path / "m.safetensors", drawn)
    found = read_measurements(tmp_path / "m.safetensors", "m")
    assert found.hash == drawn.hash
    index = torch.tensor([30, 2, 39])
    one, other = drawn.batch(index), found.batch(index)
    assert torch.equal(one.y, other.y) and torch.equal(one.sigma_y, other.sigma_y)
    assert torch.equal(one.params["mask"], other.params["mask"])
    for some in (slice(3, 9), index, torch.arange(40) > 20):
        assert found[some].hash == drawn[some].hash


GROWTH = """
import sys
from pathlib import Path
import torch
from cleanprior.cells.folder import TrainingFiles
from cleanprior.progress import Progress
from cleanprior.training.job import Job
torch.set_num_threads(1)

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()  # ru_maxrss is the parent's too
    return next(int(line.split()[1]) >> 10 for line in lines if line.startswith("VmHWM"))

peaks = []
for name in sys.argv[1:]:
    files = TrainingFiles(Path(name))
    job = Job.read(files)
    read = peak()  # the training sets the mark back
    assert job.train(files, Progress())["status"] == "done"
    peaks.append(max(read, peak()))
print(peaks[2] - peaks[1])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the mark is read from /proc")
def test_a_training_is_no_larger_on_more_measurements(tmp_path):
    """4 MB of measurements, and again, then 64 MB of them, in one process."""
    from cleanprior.cells.folder import TrainingFiles
    from cleanprior.config import compose
    from cleanprior.operators.building import build_operator
    from cleanprior.training.job import Job

    keys = ["training.budget=32", "training.batch=8", "backbone.hid_channels=[8,8]"]
    config = compose(["method=ambient", "training.device=cpu", *keys])
    shape = (3, 32, 32)
    operator = build_operator(config["operator"], shape, 0)
    folders = [tmp_path / name for name in ("first", "few", "many")]
    for n, folder in zip((250, 250, 4000), folders, strict=True):
        measured = Measurements.draw(torch.zeros(n, *shape), operator, 0, "train")
        Job(config, shape, False, measured, None).write(TrainingFiles(folder))
    out = subprocess.run(
        [sys.executable, "-c", GROWTH, *map(str, folders)],
        # What is freed is given back at once: no growth by chance.
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"},
        capture_output=True,
        text=True,
    )
    assert out.returncode == 0, out.stderr
    assert int(out.stdout) < 20


@pytest.mark.parametrize(
    ("name", "shape", "keys"),
    [
        ("inpainting", (3, 16, 16), []),
        ("inpainting", (1, 5, 3), ["per_channel=true"]),
        ("box", (1, 8, 8), []),
        ("denoising", (1, 3, 3), []),
        ("blur", (3, 16, 16), []),
        ("motion_blur", (1, 15, 14), []),
        ("downsampling", (3, 16, 16), []),
        ("mri", (2, 16, 16), []),
        ("compressed_sensing", (1, 8, 8), []),
    ],
)
@pytest.mark.parametrize("n", [15, 48, 203])
@pytest.mark.parametrize("sigma", [0, 0.1])
def test_drawing_in_parts_gives_the_bytes_of_one_call(
    make_operator, monkeypatch, tmp_path, name, shape, keys, n, sigma
):
    operator = make_operator(name, shape, f"sigma={sigma}", *keys)
    x = torch.rand(n, *shape, generator=torch.Generator().manual_seed(1)) * 2 - 1
    params = operator.draw(n, generator_for(7, "operator", split="test"))
    y = operator.measure(x, params, generator_for(7, "noise", split="test"))
    whole = Measurements(y, params, torch.full((n,), operator.sigma))
    monkeypatch.setattr(parts, "PART", 20 * x[:1].nbytes)
    count = len(list(parts.measure_parts(operator, x, params, torch.Generator())))
    assert count == (1 if name == "compressed_sensing" else {15: 1, 48: 3, 203: 12}[n])
    assert Measurements.draw(x, operator, 7, "test").hash == whole.hash
    path = tmp_path / "drawn.safetensors"
    assert draw_measurements(path, x, operator, 7, "test").hash == whole.hash
    assert read_measurements(path, "drawn").hash == whole.hash
    assert load_file(path).keys() == whole.tensors().keys()
    for key, value in load_file(path).items():
        assert torch.equal(value, whole.tensors()[key])


def test_an_operator_that_says_nothing_of_its_parts_measures_at_once(make_operator, monkeypatch):
    """What inherits from a built-in one may draw in another way."""
    monkeypatch.setattr(parts, "PART", 4096)
    operator = make_operator("denoising", (1, 8, 8), "sigma=0.1")
    heir = type("Heir", (type(operator),), {})((1, 8, 8), 0.1)
    x = torch.zeros(64, 1, 8, 8)
    assert len(list(parts.measure_parts(operator, x, {}, torch.Generator()))) == 4
    assert len(list(parts.measure_parts(heir, x, {}, torch.Generator()))) == 1


def test_drawing_nan_leaves_no_file(make_operator, monkeypatch, tmp_path):
    operator = make_operator("denoising", (1, 8, 8), "sigma=0.1")
    monkeypatch.setattr(parts, "PART", 4096)
    x = torch.zeros(64, 1, 8, 8)
    x[40, 0, 0, 0] = float("nan")
    with pytest.raises(UserError, match="NaN or infinity in 'y'"):
        draw_measurements(tmp_path / "drawn.safetensors", x, operator, 0, "train")
    assert list(tmp_path.iterdir()) == []


def test_what_is_written_into_a_tensor_is_what_its_rows_are(pair):
    _, found = pair
    found["y"][2:4].zero_()
    index = torch.tensor([1, 2, 3])
    assert torch.equal(rows(found["y"], index), found["y"][1:4])
    assert rows(found["y"], index)[1:].abs().sum() == 0
    assert torch.equal(torch.cat(list(blocks(found["y"], 24))), found["y"])
