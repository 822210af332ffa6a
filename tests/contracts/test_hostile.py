"""What comes from outside is data: each file of a stranger gets one line, and runs no code."""

import gzip
import io
import json
import shutil
import zipfile

import hostile
import numpy as np
import pytest
import torch
import yaml
from hostile import (
    SMALL,
    backbone,
    change,
    copied,
    device,
    measured,
    npy_header,
    npz,
    origin,
    pickled,
    pictures,
    pipe,
    png_header,
    safetensors,
    weights,
    zarr2,
    zarr3,
)
from rich.console import Console
from safetensors.torch import load_file, save

from cleanprior.data import hub
from cleanprior.errors import UserError
from cleanprior.progress import Progress

SAMPLE, RESTORE = ["sample", "-n", "1", "sampler.steps=3"], ["restore", "-n", "1", *SMALL]
CALL = "os.mkdir"


@pytest.fixture(scope="module")
def prior(tmp_path_factory):
    return hostile.save_prior(tmp_path_factory.mktemp("priors") / "prior")


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
    return lambda *arguments: hostile.command(monkeypatch, capsys, *arguments)


def assert_refused(result, message, canary, codes=(2,)):
    code, told, shown = result
    assert not canary.exists(), "the payload was run"
    assert "Traceback" not in told + shown
    assert code in codes, (code, told, shown)
    assert message in told, told
    lines = [line for line in told.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and len(lines[0]) < 1500, told


# -- a stranger's prior ----------------------------------------------------------------------------


def calls(canary, **keys):
    return {"_target_": CALL, "path": str(canary), **keys}


def nested(depth):
    return "[" * depth + "]" * depth


BOMB = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [{','.join(['*' + a] * 10)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
INCEPTION = "torch_fidelity.feature_extractor_inceptionv3.FeatureExtractorInceptionV3"


def reference(canary):
    return "${oc.create:{_target_:os.mkdir,path:" + str(canary) + "}}"


def unpickles(canary):
    """A real network whose constructor unpickles a file."""
    file = canary.with_name("weights.pth")
    file.write_bytes(pickled(canary))
    return {
        "_target_": INCEPTION,
        "name": "a",
        "features_list": ["2048"],
        "feature_extractor_weights_path": str(file),
    }


def other_weights(folder, edit):
    tensors = load_file(folder / "weights.safetensors")
    edit(tensors)
    return weights(folder, save(tensors))


def not_a_number(tensors):
    next(iter(tensors.values())).view(-1)[0] = float("nan")


def wider(tensors):
    name = next(iter(tensors))
    tensors[name] = torch.zeros(3, *tensors[name].shape)


def sparse(folder):
    with open(folder / "weights.safetensors", "wb") as file:
        file.truncate(8 << 40)
    return folder


def card(folder, text):
    (folder / "prior.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder


PRIORS = {
    "a reference that calls": (
        lambda p, c: backbone(p, hid_blocks=reference(c)),
        "backbone.hid_blocks is",
    ),
    "a reference in a list": (
        lambda p, c: backbone(p, hid_blocks=[1, reference(c)]),
        "backbone.hid_blocks is",
    ),
    "a reference as a word": (
        lambda p, c: backbone(p, norm="${oc.env:HOME}"),
        "backbone.norm is '${oc.env:HOME}'",
    ),
    "a call as the backbone": (
        lambda p, c: change(p, backbone=calls(c)),
        "'os.mkdir' is that of no installed configuration",
    ),
    "a call below the backbone": (
        lambda p, c: backbone(p, hid_blocks=calls(c)),
        "backbone.hid_blocks is",
    ),
    "a call in a list": (lambda p, c: backbone(p, hid_blocks=[calls(c)]), "hid_blocks is"),
    "a network that unpickles": (
        lambda p, c: change(p, backbone=unpickles(c)),
        "is that of no installed configuration",
    ),
    "a module that acts when imported": (
        lambda p, c: change(p, backbone={"_target_": "hostile_module.Network"}),
        "'hostile_module.Network' is that of no installed configuration",
    ),
    "a name that leaves its folder": (
        lambda p, c: backbone(p, name="../../x"),
        "unknown backbone '../../x'",
    ),
    "a name that is no word": (lambda p, c: backbone(p, name=["small"]), "has no name"),
    "arguments by place": (lambda p, c: backbone(p, _args_=["x"]), "unknown key 'backbone._args_'"),
    "a partial call": (lambda p, c: backbone(p, _partial_=True), "'backbone._partial_'"),
    "no backbone": (lambda p, c: change(p, backbone=[1]), "its backbone is no name with values"),
    "a gate that is no word": (lambda p, c: backbone(p, gate=calls(c)), "backbone.gate is"),
    "an unknown gate": (lambda p, c: backbone(p, gate="evil"), "evil"),
    "NaN": (lambda p, c: backbone(p, dropout=float("nan")), "backbone.dropout is nan"),
    "a text for a number": (lambda p, c: backbone(p, mod_features="16"), "mod_features is '16'"),
    "layers of 10^18 weights": (
        lambda p, c: backbone(p, hid_channels=[10**9, 10**9]),
        "its networks are larger than",
    ),
    "10^9 layers": (lambda p, c: backbone(p, hid_blocks=[10**9, 1]), "are larger than"),
    "a number of 40 digits": (lambda p, c: backbone(p, mod_features=10**40), "mod_features is"),
    "images of 10^12 pixels": (
        lambda p, c: change(p, image_shape=[1, 10**6, 10**6]),
        "its image_shape is",
    ),
    "a shape of words": (lambda p, c: change(p, image_shape=["a", 8, 8]), "image_shape is"),
    "a noise level of NaN": (lambda p, c: change(p, sigma_data=float("nan")), "sigma_data is nan"),
    "a noise level that calls": (lambda p, c: change(p, sigma_data=calls(c)), "sigma_data is"),
    "10^30 channels": (lambda p, c: change(p, condition_channels=10**30), "condition_channels is"),
    "an unknown preconditioning": (lambda p, c: change(p, preconditioning="x"), "preconditioning"),
    "a list for a format": (lambda p, c: change(p, format=[1]), "has format [1]"),
    "YAML that calls": (
        lambda p, c: card(p, f"!!python/object/apply:os.mkdir ['{c}']"),
        "is not YAML",
    ),
    "YAML that repeats itself 10^9 times": (lambda p, c: card(p, BOMB), "stands for more than"),
    "YAML that holds itself": (lambda p, c: card(p, "a: &a [*a]"), "nested too deep"),
    "YAML of 50,000 lists within lists": (lambda p, c: card(p, nested(50_000)), "nest"),
    "a card of 2 MB": (lambda p, c: card(p, "a: " + "x" * (2 << 20)), "has more than"),
    "a card of zeros": (lambda p, c: card(p, bytes(64)), "is damaged"),
    "a card that is a pipe": (lambda p, c: pipe(p / "prior.yaml").parent, "is a named pipe"),
    "a card without end": (lambda p, c: device(p / "prior.yaml").parent, "is a device"),
    "weights that are a pipe": (
        lambda p, c: pipe(p / "weights.safetensors").parent,
        "is a named pipe",
    ),
    "weights without end": (lambda p, c: device(p / "weights.safetensors").parent, "is a device"),
    "weights that are a pickle": (lambda p, c: weights(p, pickled(c)), "is damaged"),
    "weights of 8 TB": (lambda p, c: sparse(p), "larger than this machine's memory"),
    "weights that claim 40 TB": (
        lambda p, c: weights(
            p,
            safetensors(
                {"a": {"dtype": "F32", "shape": [10**13], "data_offsets": [0, 4 * 10**13]}}
            ),
        ),
        "is damaged",
    ),
    "weights of NaN": (lambda p, c: other_weights(p, not_a_number), "hold NaN or infinity"),
    "weights of another shape": (
        lambda p, c: other_weights(p, wider),
        "its weights are not those of its network",
    ),
    "weights that lack one": (
        lambda p, c: other_weights(p, lambda t: t.pop(next(iter(t)))),
        "is None, and the network's is",
    ),
}


@pytest.mark.timeout(30)
@pytest.mark.parametrize("name", PRIORS)
def test_a_strangers_prior(run, prior, canary, tmp_path, name):
    make, message = PRIORS[name]
    folder = make(copied(prior, tmp_path / "theirs"), canary)
    result = run(SAMPLE[0], folder, *SAMPLE[1:])
    assert_refused(result, message, canary)
    assert not list((tmp_path / "work").iterdir()), "nothing is written"


ORIGINS = {
    "data that call": ({"data": {"name": "digits", "_target_": "hostile_module.Network"}}, None),
    "an operator that calls": (
        {"operator": {"name": "inpainting", "_target_": CALL, "path": "CANARY"}},
        "unknown key 'operator.path'",
    ),
    "a value that calls": (
        {"operator": {"name": "inpainting", "p": {"_target_": CALL, "path": "CANARY"}}},
        "operator.p=",
    ),
    "a value that is a reference": (
        {"operator": {"name": "inpainting", "p": "${oc.create:{_target_:os.mkdir,path:CANARY}}"}},
        "operator.p=${oc.create",
    ),
    "an operator outside of its folder": ({"operator": {"name": "../../x"}}, "'../../x'"),
    "data of a module": ({"data": {"name": "hostile_module.Network"}}, "unknown data set"),
    "data that are no keys": ({"data": "digits"}, "its data is not a configuration"),
    "NaN for a share": ({"operator": {"name": "inpainting", "p": float("nan")}}, "operator.p="),
    "an archive that is a pipe": ({"data": {"name": "zip", "path": "PIPE"}}, "is not a file"),
    "arrays that are a pipe": ({"data": {"name": "arrays", "path": "PIPE"}}, "has no known ending"),
    "a repository that is a script": (
        {"data": {"name": "huggingface", "repository": "SCRIPT"}},
        "",
    ),
}


@pytest.mark.timeout(30)
@pytest.mark.parametrize("name", ORIGINS)
def test_where_a_strangers_prior_says_that_it_comes_from(run, prior, canary, tmp_path, name):
    keys, message = ORIGINS[name]
    script = tmp_path / "script"
    script.mkdir()
    (script / "script.py").write_text(f"import os\nos.mkdir({str(canary)!r})\n")
    text = json.dumps(keys).replace("CANARY", str(canary)).replace("SCRIPT", str(script))
    text = text.replace("PIPE", str(pipe(tmp_path / "pipe")))
    folder = origin(copied(prior, tmp_path / "theirs"), **yaml.safe_load(text))
    result = run(RESTORE[0], folder, *RESTORE[1:])
    if message is None:  # what it would call is not read
        assert result[0] == 0 and not canary.exists(), result
    else:
        assert_refused(result, message, canary)


def test_a_prior_of_format_1_is_read(run, prior, tmp_path, canary):
    folder = copied(prior, tmp_path / "old")
    old = yaml.safe_load((folder / "prior.yaml").read_text())
    del old["backbone"]["name"], old["sha256"]
    old["backbone"]["_target_"] = "cleanprior.diffusion.backbones.UNet"
    (folder / "prior.yaml").write_text(yaml.safe_dump(old | {"format": 1}))
    drawn = []
    for place in (folder, prior):
        code, told, _ = run("sample", place, "-n", "1", "--to", "x", "sampler.steps=3")
        assert code == 0, told
        drawn.append(np.load("x.npz")["x"])
    assert (drawn[0] == drawn[1]).all()


# -- a stranger's file of arrays -------------------------------------------------------------------


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


def named(path, make):
    make(path)
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
        "holds no array 'y'",
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


# -- a stranger's pictures -------------------------------------------------------------------------


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


# -- names and values of the command line, requests ------------------------------------------------

LINES = {
    "a bench outside of its folder": (["bench", "--bench", "../../x"], "unknown bench '../../x'"),
    "a table outside of its folder": (["bench", "--table", "../x"], "unknown table '../x'"),
    "data outside of their folder": (["train", "data=../../x"], "'../../x'"),
    "an operator by its path": (["train", "operator=/etc/passwd"], "'/etc/passwd'"),
    "a method that is a reference": (["train", "method=${oc.env:HOME}"], "unknown method"),
    "what a part calls": (
        ["train", f"operator._target_={CALL}"],
        "unknown key 'operator._target_'",
    ),
    "a value that calls": (
        ["train", "method=em", "method.posterior={_target_: os.mkdir, path: CANARY}"],
        "'method.posterior' has keys of its own",
    ),
    "a reference for a number": (
        ["train", "operator.p=${oc.env:HOME}"],
        "operator.p=${oc.env:HOME}",
    ),
    "a reference for a path": (
        ["train", "data=folder", "data.path=${oc.env:HOME}"],
        "'${oc.env:HOME}' is not a folder",
    ),
    "a group of Hydra's": (["train", "hydra.run.dir=CANARY"], "unknown key 'hydra.run.dir'"),
    "a deletion": (["train", "~method"], "is not an override"),
    "escapes of a terminal": (["train", "method=\x1b[31mred\x07"], r"\x1b[31mred\x07"),
    "lines within a name": (["train", "method=a\nerror: b"], "unknown method 'a error: b'"),
}


@pytest.mark.timeout(30)
@pytest.mark.parametrize("name", LINES)
def test_names_and_values(run, canary, tmp_path, name):
    arguments, message = LINES[name]
    result = run(*(a.replace("CANARY", str(canary)) for a in arguments))
    assert_refused(result, message, canary)
    assert "\x1b" not in result[1] and not list((tmp_path / "work").iterdir())


ASKED = {
    "bench": "default",
    "table": None,
    "scale": "cpu",
    "methods": None,
    "operators": None,
    "data": None,
    "seeds": None,
    "overrides": [],
    "with_references": True,
}
REQUESTS = {
    "a bench outside of its folder": (json.dumps(ASKED | {"bench": "../../x"}), "unknown bench"),
    "a value that calls": (
        json.dumps(ASKED | {"overrides": [f"training.budget={{_target_: {CALL}}}"]}),
        "training.budget={_target_: os.mkdir}",
    ),
    "what a part calls": (
        json.dumps(ASKED | {"overrides": [f"backbone._target_={CALL}"]}),
        "unknown key",
    ),
    "a number for a bench": (json.dumps(ASKED | {"bench": 3}), ""),
    "methods that are numbers": (json.dumps(ASKED | {"methods": [3]}), ""),
    "operators that are keys": (json.dumps(ASKED | {"operators": [{"a": 1}]}), ""),
    "a key too many": (json.dumps(ASKED | {"__class__": "x"}), "is damaged"),
    "lists within lists": (nested(100_000), "is damaged"),
    "a number of 10,000 digits": ("1" * 10_000, "is damaged"),
    "2 MB": (json.dumps(ASKED | {"data": "x" * (2 << 20)}), "holds no request.json"),
}


@pytest.mark.timeout(30)
@pytest.mark.parametrize("name", REQUESTS)
def test_a_strangers_request(run, canary, tmp_path, name):
    text, message = REQUESTS[name]
    folder = tmp_path / "runs" / "tables" / "x"
    folder.mkdir(parents=True)
    (folder / "request.json").write_text(text)
    assert_refused(run("report", folder), message, canary)
    assert [p.name for p in folder.iterdir()] == ["request.json"]


# -- texts that something else would read as its own language --------------------------------------


def test_brackets_are_no_markup_of_a_console():
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=True, width=120)
    with Progress(console).live() as progress, progress.task("train · [/x]", 3) as task:
        task.advance(1, note="[/bold] [red]")
        progress.say("naive failed: [/x] [link=file:///etc/passwd]")
        assert progress.bars is not None
        progress.bars.refresh()
    assert "train · [/x]" in shown.getvalue() and "[/bold] [red]" in shown.getvalue()
    assert "[link=file:///etc/passwd]" in shown.getvalue()


@pytest.mark.parametrize(("version", "given"), [("2.14.0", 1), ("3.6.0", 1), ("4.0.0", 0)])
def test_a_repository_runs_no_script(monkeypatch, version, given):
    asked = []

    class Library:
        __version__ = version

        @staticmethod
        def load_dataset(*arguments, **options):
            asked.append(options)
            raise ValueError("it holds a script")

    monkeypatch.setattr(hub, "optional", lambda *_: Library)
    with pytest.raises(UserError, match="it holds a script"):
        hub.huggingface("a/b", None, "train", None, None, None, 8, 1, 0.1, None)
    assert asked == [{"trust_remote_code": False}] * given or (not given and asked == [{}])
