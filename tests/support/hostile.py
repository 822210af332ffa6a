"""Files that somebody made to be read by somebody else: what a row of a table of them needs."""

import hashlib
import io
import json
import os
import pickle
import shutil
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import yaml

from cleanprior import cli
from cleanprior.diffusion.backbones import build_backbone
from cleanprior.diffusion.denoiser import Denoiser
from cleanprior.prior import Prior
from cleanprior.testing.parts import TINY

#: Steps enough to draw something.
SMALL = ["posterior.steps=3", "sampler.steps=3"]


class Payload:
    """Unpickled, it makes a folder: the canary."""

    def __init__(self, canary):
        self.canary = str(canary)

    def __reduce__(self):
        return os.mkdir, (self.canary,)


def pickled(canary):
    return pickle.dumps(Payload(canary))


def command(monkeypatch, capsys, *arguments):
    """Run a command in this process; return its exit code, stderr and stdout."""
    monkeypatch.setattr(sys, "argv", ["cleanprior", *map(str, arguments)])
    capsys.readouterr()
    code = cli._run()
    told = capsys.readouterr()
    return code, told.err, told.out


def save_prior(folder):
    """Save a prior of a few thousand weights that says that it was trained on digits."""
    made = Prior(Denoiser(build_backbone(TINY, 1, 1, 0), 0.5, 0), (1, 8, 8), dict(TINY))
    made.about = {
        "config": {
            "operator": {"name": "inpainting", "p": 0.25},
            "data": {"name": "digits"},
            "data_seed": 0,
        }
    }
    made.save(folder)
    return folder


def copied(prior, folder):
    shutil.copytree(prior, folder)
    return folder


def change(folder, **keys):
    """Replace keys of a prior's card; ``None`` leaves one out."""
    path = folder / "prior.yaml"
    card = yaml.safe_load(path.read_text()) | {"sha256": None} | keys
    path.write_text(yaml.safe_dump({k: v for k, v in card.items() if v is not None}))
    return folder


def backbone(folder, **keys):
    card = yaml.safe_load((folder / "prior.yaml").read_text())
    return change(folder, backbone={**card["backbone"], **keys})


def origin(folder, **keys):
    card = yaml.safe_load((folder / "prior.yaml").read_text())
    return change(folder, about={"config": {**card["about"]["config"], **keys}})


def weights(folder, content):
    """Replace a prior's weights, with the hash that belongs to them."""
    (folder / "weights.safetensors").write_bytes(content)
    return change(folder, weights_sha256=hashlib.sha256(content).hexdigest())


def safetensors(header, body=b""):
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def measured(path, **arrays):
    """Write measurements of digits (a mask, y, a noise level) with some arrays replaced."""
    n = 4
    mask = (np.random.default_rng(0).random((n, 1, 8, 8)) > 0.5).astype(np.float32)
    held = {"y": mask * 0.5, "params/mask": mask, "sigma_y": np.zeros(n, np.float32)} | arrays
    np.savez(path, **{k: v for k, v in held.items() if v is not None})
    return path


def npy_header(shape, dtype="<f4"):
    buffer = io.BytesIO()
    described = {"descr": dtype, "fortran_order": False, "shape": tuple(shape)}
    np.lib.format.write_array_header_1_0(buffer, described)
    return buffer.getvalue()


def npz(path, members):
    """Write an archive of raw members."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def zarr2(path, chunk=b"", **keys):
    """Write a zarr 2 array of four float32 as files, whatever version of zarr is installed."""
    path.mkdir()
    card = {
        "zarr_format": 2,
        "shape": [4, 8, 8],
        "chunks": [4, 8, 8],
        "dtype": "<f4",
        "compressor": None,
        "fill_value": 0,
        "order": "C",
        "filters": None,
    }
    (path / ".zarray").write_text(json.dumps(card | keys))
    if chunk:
        (path / "0.0.0").write_bytes(chunk)
    return path


def zarr3(path, **keys):
    path.mkdir()
    card = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [4, 8, 8],
        "data_type": "float32",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [4, 8, 8]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 0.0,
        "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
        "attributes": {},
        "storage_transformers": [],
    }
    (path / "zarr.json").write_text(json.dumps(card | keys))
    return path


def pictures(folder, n=12):
    """Write pictures of 8x8 pixels."""
    from PIL import Image

    folder.mkdir()
    for i in range(n):
        pixels = np.random.default_rng(i).integers(0, 256, (8, 8)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


def png_header(width, height):
    """Return a PNG that claims a size and holds no pixels."""
    import struct
    import zlib

    def chunk(kind, body):
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    size = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


def pipe(path):
    """Put a named pipe that nobody writes to in the place of a file."""
    path = Path(path)
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    return path


def device(path):
    """Put a link to a device without end in the place of a file."""
    path = Path(path)
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/zero")
    return path


@pytest.fixture(scope="module")
def prior(tmp_path_factory):
    return save_prior(tmp_path_factory.mktemp("priors") / "prior")


@pytest.fixture
def canary(tmp_path, monkeypatch):
    """A folder that must not come into being; a module that would make it when imported."""
    path = tmp_path / "canary"
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "hostile_module.py").write_text(
        f"import os\nos.mkdir({str(path)!r})\nclass Network: pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    return path


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return lambda *arguments: command(monkeypatch, capsys, *arguments)


def assert_refused(result, message, canary, codes=(2,)):
    code, told, shown = result
    assert not canary.exists(), "the payload was run"
    assert "Traceback" not in told + shown
    assert code in codes, (code, told, shown)
    assert message in told, told
    lines = [line for line in told.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and len(lines[0]) < 1500, told


def nested(depth):
    return "[" * depth + "]" * depth


def named(path, make):
    make(path)
    return path
