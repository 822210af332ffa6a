"""A Prior is saved whole or not at all, loads anywhere, and draws the same whatever the chunk."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

import cleanprior.prior as prior_module
from cleanprior.data import Measurements
from cleanprior.diffusion.backbones import build_backbone
from cleanprior.diffusion.denoiser import PRECONDITIONINGS, Denoiser
from cleanprior.diffusion.posterior import DPS, MMPS
from cleanprior.diffusion.samplers import Heun
from cleanprior.errors import UserError
from cleanprior.prior import Prior
from cleanprior.seeding import generator_for, scoped_rng

SHAPE = (1, 8, 8)
WEIGHTS = "weights.safetensors"


def make_prior(backbone, seed=0, condition=0, preconditioning="edm", shape=SHAPE):
    with scoped_rng(seed):
        network = build_backbone(backbone, shape[0], shape[0], condition)
        for p in network.parameters():
            p.data += 0.05 * torch.randn_like(p)
    denoiser = Denoiser(network, 0.5, condition, preconditioning)
    return Prior(denoiser, shape, backbone, {"method": "naive", "seed": seed})


@pytest.fixture
def prior(tiny_backbone):
    return make_prior(tiny_backbone)


@pytest.fixture
def noisy():
    return torch.randn((8, *SHAPE), generator=generator_for(0, "x"))


# -- saved and loaded ------------------------------------------------------------------------------


@pytest.mark.parametrize("condition", [0, 1])
@pytest.mark.parametrize("preconditioning", PRECONDITIONINGS)
def test_a_loaded_prior_is_bit_equal(tiny_backbone, noisy, tmp_path, condition, preconditioning):
    prior = make_prior(tiny_backbone, 3, condition, preconditioning)
    prior.save(tmp_path / "p")
    loaded = Prior.load(tmp_path / "p")
    state = prior.denoiser.state_dict()
    assert loaded.denoiser.state_dict().keys() == state.keys()
    assert all(torch.equal(v, state[k]) for k, v in loaded.denoiser.state_dict().items())
    assert torch.equal(loaded(noisy, 0.3), prior(noisy, 0.3))
    assert (loaded.image_shape, loaded.about) == (SHAPE, prior.about)
    assert loaded.parameters_count == prior.parameters_count > 1000
    assert not loaded.denoiser.training
    assert not any(p.requires_grad for p in loaded.parameters())


def test_nothing_is_pickled(prior, tmp_path):
    prior.save(tmp_path / "p")
    files = sorted(p.name for p in (tmp_path / "p").iterdir())
    assert files == [*("README.md", "model_index.json", "prior.yaml"), "scheduler", WEIGHTS]
    assert load_file(tmp_path / "p" / "weights.safetensors")
    assert isinstance(yaml.safe_load((tmp_path / "p" / "prior.yaml").read_text()), dict)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["p"]


def test_a_prior_needs_no_methods_code(prior, tmp_path):
    prior.save(tmp_path / "p")
    code = (
        "import sys\n"
        "from cleanprior.prior import Prior\n"
        f"Prior.load({str(tmp_path / 'p')!r})\n"
        "print([m for m in sys.modules if m.startswith('cleanprior.methods')])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_saving_does_not_change_the_prior(prior, noisy, tmp_path):
    before = prior(noisy, 0.5)
    prior.save(tmp_path / "deep" / "er" / "p")
    assert torch.equal(prior(noisy, 0.5), before)


@pytest.mark.parametrize("missing", ["prior.yaml", "weights.safetensors"])
def test_a_missing_file_is_named(prior, tmp_path, missing):
    prior.save(tmp_path / "p")
    (tmp_path / "p" / missing).unlink()
    with pytest.raises(UserError, match=f"is not a saved prior: '{missing}' is missing"):
        Prior.load(tmp_path / "p")


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"is not a saved prior: 'prior\.yaml' is missing"):
        Prior.load(tmp_path / "nowhere")


@pytest.mark.parametrize("change", ["flip", "truncate", "empty"])
def test_damaged_weights_are_refused(prior, tmp_path, change):
    prior.save(tmp_path / "p")
    file = tmp_path / "p" / "weights.safetensors"
    content = bytearray(file.read_bytes())
    if change == "flip":
        content[-5] ^= 1
    file.write_bytes({"flip": content, "truncate": content[:-40], "empty": b""}[change])
    with pytest.raises(UserError, match=r"is damaged: its sha256 is not the one in prior\.yaml"):
        Prior.load(tmp_path / "p")


def test_a_card_cut_anywhere_is_refused(prior, tmp_path):
    prior.save(tmp_path / "p")
    card = tmp_path / "p" / "prior.yaml"
    lines = card.read_text().splitlines(keepends=True)
    for n in range(len(lines) - len(prior.about)):
        card.write_text("".join(lines[:n]))
        with pytest.raises(UserError, match=r"p' (is damaged|has format)"):
            Prior.load(tmp_path / "p")


def test_a_number_that_changed_in_the_card_is_told(prior, tmp_path):
    prior.save(tmp_path / "p")
    card = tmp_path / "p" / "prior.yaml"
    text = card.read_text()
    assert text.count("sigma_data: 0.5") == 1
    card.write_text(text.replace("sigma_data: 0.5", "sigma_data: 0.7"))
    with pytest.raises(UserError, match=r"the content of prior\.yaml has another hash"):
        Prior.load(tmp_path / "p")
    card.write_text(text.replace("seed: 0", "seed: 1"))  # of its origin anybody may say more
    assert Prior.load(tmp_path / "p").about["seed"] == 1


@pytest.mark.parametrize("content", ["{", "[]", "\x00", "just words"])
def test_a_card_that_is_no_card_is_refused(prior, tmp_path, content):
    prior.save(tmp_path / "p")
    (tmp_path / "p" / "prior.yaml").write_text(content)
    with pytest.raises(UserError, match="is damaged"):
        Prior.load(tmp_path / "p")


def test_another_format_is_refused(prior, tmp_path):
    prior.save(tmp_path / "p")
    card = tmp_path / "p" / "prior.yaml"
    card.write_text(card.read_text().replace("format: 2", "format: 3"))
    with pytest.raises(UserError, match="has format 3; this version reads formats 1 and 2"):
        Prior.load(tmp_path / "p")


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "builtins.eval",
        "pathlib.Path",
        "subprocess.Popen",
        "no.such.thing",
        "torch.nn.Linear",  # a network, and none that anybody has registered
        "antigravity.Network",  # a module whose import does something
        ["os.system"],
    ],
)
def test_a_card_cannot_call_what_is_no_network(prior, tmp_path, monkeypatch, target):
    prior.save(tmp_path / "p")
    called = []
    monkeypatch.setattr(os, "system", lambda *a, **k: called.append(a))
    card = tmp_path / "p" / "prior.yaml"
    for key in ("hid_channels", None):
        content = yaml.safe_load(card.read_text())
        if key is None:
            content["backbone"] = {"_target_": target, "_args_": ["true"]}
        else:
            content["backbone"][key] = {"_target_": target, "_args_": ["true"]}
        (tmp_path / "p" / "prior.yaml").write_text(yaml.safe_dump(content))
        told = "allowed: list|is that of no installed configuration"
        with pytest.raises(UserError, match=told):
            Prior.load(tmp_path / "p")
    assert not called and "antigravity" not in sys.modules


# -- overwritten -----------------------------------------------------------------------------------


def refuse(*_, **__):
    raise OSError("No space left on device")


def refuse_half_written(tensors, path, **_):
    Path(path).write_bytes(b"half")
    raise OSError("No space left on device")


@pytest.mark.parametrize("failing", ["save_file", "half", "card", "replace"])
def test_a_failed_overwrite_leaves_the_old_prior(
    tiny_backbone, noisy, tmp_path, monkeypatch, failing
):
    old, new = make_prior(tiny_backbone, 1), make_prior(tiny_backbone, 2)
    old.save(tmp_path / "p")
    with monkeypatch.context() as m:
        if failing == "save_file":
            m.setattr(prior_module, "save_file", refuse)
        elif failing == "half":
            m.setattr(prior_module, "save_file", refuse_half_written)
        elif failing == "card":
            m.setattr(prior_module.yaml, "safe_dump", refuse)
        else:
            calls, replace = [], os.replace

            def fail_second(a, b):
                calls.append(a)
                return refuse() if len(calls) == 2 else replace(a, b)

            m.setattr(os, "replace", fail_second)
        with pytest.raises(UserError, match="cannot write the prior to .*No space left on device"):
            new.save(tmp_path / "p")
    assert torch.equal(Prior.load(tmp_path / "p")(noisy, 0.5), old(noisy, 0.5))
    assert [p.name for p in tmp_path.iterdir()] == ["p"]


def test_an_overwrite_replaces_the_old_prior(tiny_backbone, noisy, tmp_path):
    make_prior(tiny_backbone, 1).save(tmp_path / "p")
    new = make_prior(tiny_backbone, 2)
    new.save(tmp_path / "p")
    assert torch.equal(Prior.load(tmp_path / "p")(noisy, 0.5), new(noisy, 0.5))
    assert [p.name for p in tmp_path.iterdir()] == ["p"]


# -- as a denoiser ---------------------------------------------------------------------------------


def test_the_noise_level_may_be_a_number_or_a_tensor_of_any_usual_shape(prior, noisy):
    expected = prior(noisy, 0.1)
    assert expected.shape == noisy.shape
    for sigma in (
        torch.tensor(0.1),
        torch.tensor([0.1]),
        torch.full((8,), 0.1),
        torch.full((8, 1, 1, 1), 0.1),
    ):
        assert torch.equal(prior(noisy, sigma), expected)
    assert not torch.equal(prior(noisy, 0.2), expected)


def test_each_image_is_denoised_at_its_own_level(prior, noisy):
    levels = torch.linspace(0.05, 2, 8)
    together = prior(noisy, levels)
    for i in range(8):
        alone = prior(noisy[i : i + 1], levels[i].item())
        torch.testing.assert_close(alone[0], together[i], rtol=1e-5, atol=1e-6)


def test_a_prior_works_inside_deepinv(prior, noisy):
    from deepinv.optim.prior import RED

    red = RED(denoiser=prior)
    torch.testing.assert_close(red.grad(noisy, 0.2), noisy - prior(noisy, 0.2))


def test_evaluations_are_counted(prior, noisy):
    prior.denoiser.evaluations = 0
    prior(noisy, 0.2)
    prior(noisy[:3], 0.2)
    assert prior.denoiser.evaluations == 11


# -- drawing ---------------------------------------------------------------------------------------


def test_a_sample_depends_only_on_its_seed_and_number(prior):
    sampler = Heun(4, 0.05, 5.0, 7.0)
    x = prior.sample(8, sampler, seed=1, chunk=8)
    assert x.shape == (8, *SHAPE)
    torch.testing.assert_close(prior.sample(8, sampler, seed=1, chunk=3), x, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(prior.sample(2, sampler, 1, first=5), x[5:7], rtol=1e-4, atol=1e-5)
    assert torch.equal(prior.sample(8, sampler, seed=1, chunk=8), x)
    assert not torch.allclose(prior.sample(8, sampler, seed=2), x, atol=1e-2)


@pytest.fixture
def posteriors():
    return {
        "dps": DPS(5, 0.05, 5.0, 7.0, 1.0, 0.5, True, "norm"),
        "mmps": MMPS(5, 0.05, 5.0, 7.0, 1.0, 2, 1e-3, 2.0, 0.05),
    }


@pytest.mark.parametrize("name", ["dps", "mmps"])
@pytest.mark.parametrize("operator_name", ["inpainting", "blur", "denoising"])
def test_a_restoration_does_not_depend_on_its_batch(
    prior, posteriors, make_operator, digits_data, name, operator_name
):
    operator = make_operator(operator_name, SHAPE, "sigma=0.1")
    data = Measurements.draw(digits_data.test[:8], operator, 0, "test")
    draws = [prior.restore(data, operator, posteriors[name], 0, chunk) for chunk in (1, 3, 8)]
    assert draws[0].x.shape == data.y.shape
    for draw in draws[:2]:
        torch.testing.assert_close(draw.x, draws[2].x, rtol=1e-3, atol=1e-4)
        assert (draw.evaluations, draw.backwards) == (draws[2].evaluations, draws[2].backwards)
    again = prior.restore(data, operator, posteriors[name], 0, 8)
    assert torch.equal(again.x, draws[2].x)
    other = prior.restore(data, operator, posteriors[name], 1, 8)
    assert not torch.allclose(other.x, draws[2].x, atol=1e-3)


def test_drawing_leaves_the_global_generator_alone(prior, posteriors, make_operator, digits_data):
    operator = make_operator("inpainting", SHAPE, "sigma=0.1")
    data = Measurements.draw(digits_data.test[:2], operator, 0, "test")
    before = torch.get_rng_state()
    prior.sample(2, Heun(3, 0.05, 5.0, 7.0), 0)
    prior.restore(data, operator, posteriors["mmps"], 0)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_prior_without_numbers_gives_shapes_and_nothing_else(prior, make_operator, tmp_path):
    operator = make_operator("inpainting", SHAPE, "sigma=0.1")
    data = Measurements.draw(torch.zeros(2, *SHAPE), operator, 0, "test")
    prior.to("meta")
    x = torch.empty(2, *SHAPE, device="meta")
    assert prior(x, torch.ones(2, device="meta")).shape == x.shape
    for call in (
        lambda: prior.sample(2),
        lambda: prior.restore(data, operator),
        lambda: prior.save(tmp_path / "prior"),
    ):
        with pytest.raises(UserError, match="the prior's weights: a tensor on torch's meta device"):
            call()
    assert list(tmp_path.iterdir()) == []
