"""Every method on a second device: nothing is mixed, nothing moved; training and whole cells."""

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from devices import BATCH, CPU, assert_alike, compose, images, over_devices
from trained import fit, make_trainer, weights

from cleanprior.cells import CellFolder
from cleanprior.cells.run import run_cell
from cleanprior.config import build, capabilities, registry
from cleanprior.data import Measurements
from cleanprior.prior import image_generators
from cleanprior.progress import Progress
from cleanprior.training import Problem, Session
from cleanprior.training.averages import Averages
from cleanprior.training.checkpoint import Store

METHODS = [m for m in registry.methods() if m not in registry.presets()]
OPERATORS = registry.options("operator")


def is_met(name: str, operator_name: str) -> bool:
    """Whether an operator meets a method's needs; a method may refuse it for other reasons."""
    method, operator = registry.read("method", name), registry.read("operator", operator_name)
    facts = capabilities.ProblemFacts.of({**operator, "name": operator_name})
    return capabilities.refusal({**method, "name": name}, facts) is None


# oracle_50 and oracle_500 are oracle with fewer images.
METHODS = [m for m in METHODS if not m.startswith("oracle_")]
CELLS = [(m, o) for m in METHODS for o in OPERATORS if is_met(m, o)]
# Every phase of a method in a few evaluations.
CHEAP = {
    "em": [
        "method.posterior.steps=2",
        "method.scale_images=2",
        "method.scales=[0.5,1.0]",
        "method.clean_images=4",
    ],
    "sure_score": ["method.stages=2"],
    "em_mmps": [
        "method.resume_rounds=2",
        "method.narrow_rounds=1",
        "method.posterior.steps=2",
        "method.gaussian_iterations=1",
    ],
    "flowdiff": [
        "method.couplings=2",
        "method.hidden=8",
        "method.context=8",
        "method.gaussian_iterations=1",
        "method.final_draws=1",
    ],
}


def run_method(name, operator_name, digits_data, backbone, device, options=()):
    """Set up a method, do all its rounds, sample and restore; return every number on the way."""
    cheap = ["sampler.steps=2", *CHEAP.get(name, []), *options]
    config = compose([f"method={name}", f"operator={operator_name}", *cheap])
    x = images(digits_data, operator_name)
    operator = build(config["operator"], image_shape=tuple(x.shape[1:]))
    method = build(config["method"])
    problem = Problem(operator, operator_name, backbone, 0.5, operator.sigma)
    if method.supports(problem) is not None:
        pytest.skip(f"{name} does not support {operator_name}")
    data = Measurements.draw(x, operator, 0, "train")
    found = {}
    method.setup(problem, device)
    networks = dict(method.networks())
    averages = Averages(networks, 0.9)
    clean = x if method.clean_images else None
    session = Session(data, clean, averages.modules, device, Store(None), Progress(), 0)
    rounds = list(enumerate(method.rounds(100)))
    for number, plan in rounds[:2] + rounds[2:][-2:]:
        training_set = method.begin_round(number, plan, session)
        for turn in dict.fromkeys(plan.turns if networks else ()):
            batch = training_set.batch(torch.arange(BATCH) % len(training_set)).to(device)
            loss = method.loss(batch, torch.Generator().manual_seed(number), turn)
            loss.total.backward()
            key = f"round {number} {turn}"
            found |= {f"{key} {k}": v.item() for k, v in loss.parts.items()}
            found[f"{key} loss"] = loss.total.item()
            gradients = [p.grad for p in networks[turn].parameters() if p.grad is not None]
            assert gradients
            found[f"{key} gradient"] = sum(g.square().sum().item() for g in gradients) ** 0.5
    prior = method.prior(averages.modules)
    if prior is not None:
        found["samples"] = prior.sample(2, build(config["sampler"]), 0)
    batch = data.batch(torch.arange(2))
    for route in method.routes_on_cpu(averages.modules):
        if route.restore is not None:
            draw = route.restore(batch, image_generators(0, range(2)))
            found[f"{route.name} restored"] = draw.x
        if route.sample is not None:
            found[f"{route.name} sampled"] = route.sample(2, torch.Generator().manual_seed(0))
    assert operator.device == CPU
    return found


@over_devices
@pytest.mark.parametrize(("name", "operator_name"), CELLS)
def test_a_method_learns_samples_and_restores_there(
    name, operator_name, digits_data, tiny_backbone, make_device
):
    with make_device() as device:
        found = run_method(name, operator_name, digits_data, tiny_backbone, device)
    for key, value in found.items():
        given = torch.as_tensor(value)
        assert given.device == CPU, key
        assert torch.isfinite(given).all(), key


# Each method with its defaults, then options that have code of their own.
VARIANTS = [
    *((name, next(o for m, o in reversed(CELLS) if m == name), []) for name in METHODS),
    ("em_mmps", "blur", ["method.gaussian=low_rank", "method.low_rank_iterations=1"]),
    ("em_mmps", "inpainting", ["method.gaussian=low_rank", "method.low_rank_iterations=1"]),
    ("em", "inpainting", ["method.reuse=true", "method.stop=residual", "method.patience=1"]),
    ("em", "inpainting", ["method.handoff=minmax_png", "method.posterior.guidance=batch"]),
    ("flowdiff", "inpainting", ["method.flow=conv", "method.conv_hidden=8", "method.rank=4"]),
    ("flowdiff", "blur", ["method.flow=conv", "method.conv_hidden=8", "method.rank=4"]),
    ("ambient", "inpainting", ["method.augment=joint_flip", "method.resample_further=false"]),
    ("ambient", "inpainting", ["method.guidance_masks=3", "method.gate=single"]),
    ("ambient", "box", ["method.hidden_weight=auto"]),
    ("ambient_tweedie", "denoising", ["method.consistency.weight=1.0"]),
    ("ambient_tweedie", "inpainting", ["method.operator_mode=ambient_o"]),
    ("ambient_tweedie", "denoising", ["method.augment=after_noise"]),
    ("gsure", "inpainting", ["method.schedule=official", "method.probe=gaussian"]),
    ("sure_score", "denoising", ["method.divergence=finite", "method.levels=official"]),
    ("sure_score", "blur", ["method.operator_mode=ignore"]),
    ("ambient_gan", "inpainting", ["method.loss_function=wgan_gp", "method.scale=inverse_keep"]),
]


@over_devices
@pytest.mark.parametrize(("name", "operator_name", "options"), VARIANTS)
def test_a_method_learns_there_what_it_learns_on_the_cpu(
    name, operator_name, options, digits_data, tiny_backbone, make_device
):
    given = (name, operator_name, digits_data, tiny_backbone)
    expected = run_method(*given, CPU, options)
    with make_device() as device:
        assert_alike(run_method(*given, device, options), expected)


# -- training and whole cells ------------------------------------------------------------------


class Stopped(Exception):
    pass


@over_devices
def test_training_there_is_resumed_from_a_checkpoint(setting, tmp_path, make_device):
    def trained(device, folder=None, stop_at=None):
        trainer = make_trainer(steps=8, checkpoint_seconds=0)
        trainer.device = device
        method, *others = setting("em_mmps")
        calls, loss = [], method.loss

        def counted(*arguments):
            calls.append(1)
            if len(calls) == stop_at:
                raise Stopped
            return loss(*arguments)

        method.loss = counted
        return fit((method, *others), 0, folder, trainer)[0]

    expected = weights(trained(CPU))
    with make_device() as device:
        with pytest.raises(Stopped):
            trained(device, tmp_path, stop_at=7)
        found = weights(trained(device, tmp_path))
        assert {v.device.type for v in found.values()} == {device.type}
        for key, value in found.items():
            assert torch.allclose(value.cpu(), expected[key], rtol=1e-2, atol=1e-4), key


TINY_CELL = [
    "data=arrays",
    "training.budget=24",
    "training.batch=4",
    "training.precision=fp32",
    "backbone.hid_channels=[8,16]",
    "posterior.steps=2",
    "sampler.steps=2",
    "evaluation.features=pixels",
    "evaluation.samples=50",
    "evaluation.sampling_seeds=[0]",
    "evaluation.draws=2",
]


@over_devices
@pytest.mark.parametrize(
    ("name", "operator_name"),
    [
        ("ambient", "inpainting"),
        ("em", "inpainting"),
        ("flowdiff", "box"),
        ("ambient_gan", "inpainting"),
        ("observations", "downsampling"),
    ],
)
def test_a_whole_cell_ends_there_with_the_record_of_the_cpu(
    name, operator_name, digits_data, tmp_path, monkeypatch, make_device
):
    np.save(tmp_path / "x.npy", digits_data.train[:32].numpy())
    keys = [f"method={name}", f"operator={operator_name}", *TINY_CELL, *CHEAP.get(name, [])]
    config = compose([*keys, f"data.path={tmp_path / 'x.npy'}", "data.range=[-1,1]"])
    expected = run_cell(CellFolder(tmp_path / "cpu", config), Progress())
    with make_device() as there:

        class OnDevice(Accelerator):
            device = property(lambda self: there)

        monkeypatch.setattr("cleanprior.training.trainer.Accelerator", OnDevice)
        found = run_cell(CellFolder(tmp_path / "there", config), Progress())
    assert found["status"] == expected["status"] == "done"
    assert found["device"] == str(there)
    assert found["costs"].keys() == expected["costs"].keys()
    for ours, cpu in zip(found["rows"], expected["rows"], strict=True):
        assert ours["missing"] == cpu["missing"]
        assert ours["metrics"].keys() == cpu["metrics"].keys()
        for key in {"psnr", "psnr_point", "consistency", "proximal_fd"} & cpu["metrics"].keys():
            assert ours["metrics"][key] == pytest.approx(cpu["metrics"][key], rel=0.05)
