"""A stranger's file of arrays is data: it gets one line, and runs no code."""

import json

import hostile
import numpy as np
import pytest
from hostile import (
    SMALL,
    assert_refused,
    device,
    measured,
    named,
    nested,
    npy_header,
    npz,
    pickled,
    pipe,
    safetensors,
    zarr2,
    zarr3,
)


def hdf5(path, make):
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        make(h5py, file)
    return path


def secret(folder):
    """A file whose bytes are none of the measurements'."""
    h5py = pytest.importorskip("h5py")
    with h5py.File(folder / "secret.h5", "w") as file:
        file["y"] = np.full((4, 1, 8, 8), 0.25, np.float32)
    (folder / "secret.bin").write_bytes(np.full(256, 0.25, np.float32).tobytes())
    return folder


def linked(folder):
    secret(folder)
    return hdf5(folder / "m.h5", lambda h, f: f.__setitem__("y", h.ExternalLink("secret.h5", "/y")))


def stored_outside(folder):
    secret(folder)
    place = [(str(folder / "secret.bin"), 0, 1024)]
    return hdf5(
        folder / "m.h5", lambda h, f: f.create_dataset("y", (4, 1, 8, 8), "f4", external=place)
    )


def virtual(folder):
    secret(folder)

    def make(h5py, file):
        layout = h5py.VirtualLayout((4, 1, 8, 8), "f4")
        layout[:] = h5py.VirtualSource(str(folder / "secret.h5"), "y", (4, 1, 8, 8))
        file.create_virtual_dataset("y", layout)

    return hdf5(folder / "m.h5", make)


def circular(h5py, file):
    file["a/b"] = h5py.SoftLink("/a")


def consolidated(folder):
    path = folder / "m.zarr"
    inner = zarr2(path, filters=[{"id": "pickle"}])
    text = json.loads((inner / ".zarray").read_text())
    (path / ".zarray").unlink()
    (path / ".zgroup").write_text('{"zarr_format": 2}')
    (path / ".zmetadata").write_text(json.dumps({"metadata": {"y/.zarray": text}}))
    return path


def group(folder):
    path = folder / "m.zarr"
    path.mkdir()
    (path / ".zgroup").write_text('{"zarr_format": 2}')
    return path


def zarr_with(folder, make):
    path = zarr2(folder / "m.zarr")
    make(path / "0.0.0")
    return path


def zeros(shape):
    return npy_header(shape) + bytes(4 * int(np.prod(shape)))


ARRAYS = {
    "npy of pickles": (
        lambda d, c: named(d / "m.npy", lambda p: np.save(p, [hostile.Payload(c)], True)),
        "Python objects",
    ),
    "npy that is a pickle": (
        lambda d, c: named(d / "m.npy", lambda p: p.write_bytes(pickled(c))),
        "is damaged",
    ),
    "npy that is an archive": (
        lambda d, c: measured(d / "m.npz").rename(d / "m.npy"),
        "it is an archive",
    ),
    "npy that claims 40 TB": (
        lambda d, c: named(d / "m.npy", lambda p: p.write_bytes(npy_header([10**13]))),
        "is damaged",
    ),
    "npy whose header calls": (
        lambda d, c: named(
            d / "m.npy",
            lambda p: p.write_bytes(
                npy_header([4]).replace(b"(4,)", f"os.mkdir('{c}')".encode()[:4])
            ),
        ),
        "is damaged",
    ),
    "npz of pickles": (
        lambda d, c: measured(d / "m.npz", y=np.array([hostile.Payload(c)])),
        "allow_pickle",
    ),
    "npz that claims 40 TB": (
        lambda d, c: npz(d / "m.npz", {"y.npy": npy_header([10**13])}),
        "claims 36.4 TB",
    ),
    "npz that claims more than it holds": (
        lambda d, c: npz(d / "m.npz", {"y.npy": npy_header([10**6])}),
        "and holds fewer",
    ),
    "npz that claims less than nothing": (
        lambda d, c: npz(d / "m.npz", {"y.npy": npy_header([-4])}),
        "is damaged",
    ),
    "npz of compressed zeros": (
        lambda d, c: npz(d / "m.npz", {"y.npy": zeros([10**6, 1, 8, 9])}),
        "it holds hardly anything but one value",
    ),
    "npz cut in half": (
        lambda d, c: named(
            measured(d / "m.npz"), lambda p: p.write_bytes(p.read_bytes()[: p.stat().st_size // 2])
        ),
        "is damaged",
    ),
    "npz that is a pipe": (lambda d, c: pipe(d / "m.npz"), "is not a file"),
    "npy without end": (lambda d, c: device(d / "m.npy"), "is not a file"),
    "npz whose names leave the folder": (
        lambda d, c: npz(d / "m.npz", {"../../y.npy": zeros([4, 1, 8, 8])}),
        "holds no array 'y'; found: ../../y",
    ),
    "HDF5 that points to another file": (lambda d, c: linked(d), "points to another file by 'y'"),
    "HDF5 stored in another file": (lambda d, c: stored_outside(d), "in another file"),
    "HDF5 made of another file": (lambda d, c: virtual(d), "in another file"),
    "HDF5 groups without end": (lambda d, c: hdf5(d / "m.h5", circular), "without end"),
    "HDF5 that claims 256 TB": (
        lambda d, c: hdf5(
            d / "m.h5",
            lambda h, f: f.create_dataset("y", (2**40, 8, 8), "f4", chunks=(64, 8, 8)),
        ),
        "claims 256 TB",
    ),
    "HDF5 that expands 10^5 times": (
        lambda d, c: hdf5(
            d / "m.h5", lambda h, f: f.create_dataset("y", (2**20, 9, 9), "f4", chunks=(64, 9, 9))
        ),
        "hardly anything but one value",
    ),
    "HDF5 of objects": (
        lambda d, c: hdf5(d / "m.h5", lambda h, f: f.create_dataset("y", (4,), h.string_dtype())),
        "holds values of type object",
    ),
    "HDF5 with a type for an array": (
        lambda d, c: hdf5(d / "m.h5", lambda h, f: f.__setitem__("y", np.dtype("f4"))),
        "holds no array",
    ),
    "HDF5 that is a text": (
        lambda d, c: named(d / "m.h5", lambda p: p.write_text("#!/bin/sh")),
        "is damaged",
    ),
    "zarr of pickles": (
        lambda d, c: zarr2(d / "m.zarr", pickled(c), filters=[{"id": "pickle"}]),
        "the codec 'pickle'",
    ),
    "zarr compressed by pickle": (
        lambda d, c: zarr2(d / "m.zarr", pickled(c), compressor={"id": "pickle"}),
        "the codec 'pickle'",
    ),
    "zarr of objects": (
        lambda d, c: zarr2(d / "m.zarr", pickled(c), dtype="|O"),
        "holds objects",
    ),
    "zarr with pickles in its summary": (lambda d, c: consolidated(d), "the codec 'pickle'"),
    "zarr 3 of pickles": (
        lambda d, c: zarr3(d / "m.zarr", codecs=[{"name": "numcodecs.pickle"}]),
        "the codec 'numcodecs.pickle'",
    ),
    "zarr 3 of pickles in a shard": (
        lambda d, c: zarr3(
            d / "m.zarr",
            codecs=[{"name": "sharding_indexed", "configuration": {"codecs": [{"name": "eval"}]}}],
        ),
        "the codec 'eval'",
    ),
    "zarr that claims 256 TB": (
        lambda d, c: zarr2(group(d) / "y", shape=[2**40, 8, 8]).parent,
        "claims 256 TB",
    ),
    "zarr nested too deep": (
        lambda d, c: named(
            zarr2(d / "m.zarr"),
            lambda p: (
                (p / ".zattrs").write_text("{}") and (p / ".zarray").write_text(nested(100_000))
            ),
        ),
        "nested too deep",
    ),
    "zarr with a pipe": (lambda d, c: zarr_with(d, pipe), "holds '0.0.0', which is no file"),
    "zarr with a link out": (
        lambda d, c: zarr_with(d, lambda p: p.symlink_to(secret(d) / "secret.bin")),
        "holds a link that leaves it",
    ),
    "safetensors that claim 40 TB": (
        lambda d, c: named(
            d / "m.safetensors",
            lambda p: p.write_bytes(
                safetensors(
                    {"y": {"dtype": "F32", "shape": [10**13], "data_offsets": [0, 4 * 10**13]}}
                )
            ),
        ),
        "is damaged",
    ),
    "safetensors with a header of 2^60 bytes": (
        lambda d, c: named(
            d / "m.safetensors", lambda p: p.write_bytes((1 << 60).to_bytes(8, "little") + b"{}")
        ),
        "is damaged",
    ),
    "safetensors that are a pickle": (
        lambda d, c: named(d / "m.safetensors", lambda p: p.write_bytes(pickled(c))),
        "is damaged",
    ),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", ARRAYS)
def test_a_strangers_arrays(run, prior, canary, tmp_path, name):
    make, message = ARRAYS[name]
    if "zarr" in name:
        pytest.importorskip("zarr")
    (tmp_path / "data").mkdir()
    file = make(tmp_path / "data", canary)
    result = run("restore", prior, "--measurements", file, *SMALL)
    assert_refused(result, message, canary)
    assert not list((tmp_path / "work").iterdir())
