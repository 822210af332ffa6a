"""A stranger's prior is data: it gets one line, and runs no code."""

import json

import numpy as np
import pytest
import torch
import yaml
from hostile import (
    SMALL,
    assert_refused,
    backbone,
    change,
    copied,
    device,
    nested,
    origin,
    pickled,
    pipe,
    safetensors,
    weights,
)
from safetensors.torch import load_file, save

SAMPLE = ["sample", "-n", "1", "sampler.steps=3"]
RESTORE = ["restore", "-n", "1", *SMALL]
CALL = "os.mkdir"


def calls(canary, **keys):
    return {"_target_": CALL, "path": str(canary), **keys}


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
