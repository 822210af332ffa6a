"""Every method, posterior sampler and judge on a second device: nothing is mixed, nothing moved."""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import cache

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from second_device import second_device
from trained import fit, make_trainer, weights

from cleanprior.cells import CellFolder
from cleanprior.cells.run import run_cell
from cleanprior.config import build, capabilities, registry
from cleanprior.config import compose as compose_anew
from cleanprior.data import Measurements
from cleanprior.data.instrument_noise import with_noise
from cleanprior.evaluation.metrics.restoration import consistency
from cleanprior.operators.like import measured_like
from cleanprior.operators.likelihood import Likelihood
from cleanprior.prior import Prior, image_generators
from cleanprior.progress import Progress
from cleanprior.seeding import scoped_rng
from cleanprior.testing.parts import TINY
from cleanprior.training import Problem, Session
from cleanprior.training.averages import Averages
from cleanprior.training.checkpoint import Store

CPU = torch.device("cpu")
NO_CUDA = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="torch finds no CUDA device on this machine"
)
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
BATCH = 3
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


@contextmanager
def cuda_device() -> Iterator[torch.device]:
    yield torch.device("cuda", 0)


over_devices = pytest.mark.parametrize(
    "make_device",
    [
        pytest.param(second_device, id="second"),
        pytest.param(cuda_device, id="cuda", marks=NO_CUDA),
    ],
)


@cache
def composed(keys):
    return compose_anew(list(keys))


def compose(keys):
    """Compose a configuration once for all tests."""
    return deepcopy(composed(tuple(keys)))


def images(digits_data, operator_name: str) -> torch.Tensor:
    x = digits_data.train[:6].clone()
    return torch.cat([x, x.flip(0)], 1) if operator_name.startswith("mri") else x


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


def assert_alike(a, b):
    assert a.keys() == b.keys()
    for key, value in a.items():
        given = torch.as_tensor(value)
        assert given.device == CPU, key
        # Rounding moves where an iterative solve stops, to a relative residual of 1e-3.
        assert torch.allclose(given, torch.as_tensor(b[key]), rtol=1e-2, atol=2e-3), key


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


# -- operators ---------------------------------------------------------------------------------


@over_devices
@pytest.mark.parametrize("name", OPERATORS)
def test_an_operator_is_copied_to_the_device_and_computes_there(
    name, digits_data, make_operator, make_device
):
    x = images(digits_data, name)
    operator = make_operator(name, tuple(x.shape[1:]))
    params = operator.draw(len(x), torch.Generator().manual_seed(0))
    further = "further" in operator.capabilities

    def results(operator, x, params):
        g = torch.Generator().manual_seed(1)
        y = operator.measure(x, params, g)
        yield from (y, operator.A_adjoint(y, params), operator.A_dagger(y, params))
        yield from (operator.lift(y, params), operator.observed(y, params))
        yield operator.matrix(params, len(x))
        described = operator.describe(params, len(x))
        if described is not None:
            yield described
        if further:
            smaller = operator.further(params, 0.2, g)
            yield from smaller.values()
            supervised = operator.supervision(smaller, 0.2)
            if supervised is not None:
                yield supervised

    expected = list(results(operator, x, params))
    with make_device() as device:
        moved = operator.to(device)
        there = {k: v.to(device) for k, v in params.items()}
        found = list(results(moved, x.to(device), there))
        for a, b in zip(found, expected, strict=True):
            assert a.device.type == device.type
            assert torch.allclose(a.cpu(), b, atol=1e-5)
        assert (moved.device, operator.device) == (device, CPU)
        # The caller's own goes on where it was.
        assert torch.allclose(operator.A(x, params), moved.A(x.to(device), there).cpu(), atol=1e-5)


@over_devices
@pytest.mark.parametrize("kind", registry.options("noise"))
def test_an_instrument_measures_images_there_again_as_on_the_cpu(
    kind, digits_data, make_operator, make_device
):
    """Drawn where the generators are; the gradient comes back to the device."""
    config = compose(["operator=inpainting", f"noise.kind={kind}"])
    operator = with_noise(config, make_operator("inpainting", (1, 8, 8)))
    x = digits_data.train[:BATCH]
    params = operator.draw(len(x), torch.Generator().manual_seed(0))
    is_followed = "differentiable" in operator.capabilities

    def results(operator, x, params):
        x = x.clone().requires_grad_(is_followed)
        y = measured_like(operator, x, params, x[:, 0, 0, 0], torch.Generator().manual_seed(1))
        yield y.detach()
        if is_followed:
            yield torch.autograd.grad(y.sum(), x)[0]

    expected = list(results(operator, x, params))
    with make_device() as device:
        there = {k: v.to(device) for k, v in params.items()}
        found = list(results(operator.to(device), x.to(device), there))
        for a, b in zip(found, expected, strict=True):
            assert a.device.type == device.type
            assert torch.allclose(a.cpu(), b, atol=1e-5)


# -- posterior samplers ------------------------------------------------------------------------

LIBRARY = "deepinv:"
SAMPLERS = [
    *(name for name in registry.options("posterior") if name != "deepinv"),
    *(f"{LIBRARY}{name}" for name in ("DPS", "DDRM", "DiffPIR")),
    *(f"{LIBRARY}{name}DataFidelity" for name in ("DPS", "MomentMatching", "PiGDM")),
    "mmps:gmres",
    "dps:batch",
]


# Of deepinv's samplers: one operator with a decomposition, one that is wrapped.
RESTORATIONS = [
    (name, operator)
    for name in SAMPLERS
    for operator in (("inpainting", "compressed_sensing") if LIBRARY in name else OPERATORS)
]


def make_sampler(name):
    if name.startswith(LIBRARY):
        kind = name.removeprefix(LIBRARY)
        options = {"sampler": kind, "data_fidelity": None}
        if kind.endswith("DataFidelity"):
            options = {"sampler": "PosteriorDiffusion", "data_fidelity": kind}
        config = compose(["method=naive", "posterior=deepinv", "posterior.steps=2"])["posterior"]
        return build(config | options)
    name, _, option = name.partition(":")
    extra = {"gmres": "posterior.solver=gmres", "batch": "posterior.guidance=batch"}
    keys = [extra[option]] if option else []
    config = compose(["method=naive", f"posterior={name}", "posterior.steps=2", *keys])
    return build(config["posterior"])


@pytest.fixture(scope="module")
def make_prior():
    def make(operator):
        problem = Problem(operator, operator.name, dict(TINY), 0.5, operator.sigma)
        with scoped_rng(0):
            return Prior(problem.denoiser(), operator.image_shape, dict(TINY))

    return make


@over_devices
@pytest.mark.parametrize(("name", "operator_name"), RESTORATIONS)
def test_a_prior_restores_there_as_on_the_cpu(
    name, operator_name, digits_data, make_operator, make_prior, make_device
):
    sampler = make_sampler(name)
    x = images(digits_data, operator_name)[:2]
    operator = make_operator(operator_name, tuple(x.shape[1:]), "sigma=0.2")
    prior, data = make_prior(operator), Measurements.draw(x, operator, 0, "test")
    given = (data, operator, sampler, 0)
    try:
        expected = prior.restore(*given)
    except ValueError as error:
        pytest.skip(f"refused: {error}")
    with make_device() as device:
        prior.to(device)
        found = prior.restore(*given)
        assert found.x.device == CPU
        assert torch.allclose(found.x, expected.x, rtol=1e-3, atol=1e-3)
        assert (found.evaluations, found.backwards) == (expected.evaluations, expected.backwards)
        # What was handed in serves on: a judge computes A x with tensors of the CPU.
        assert operator.device == CPU
        assert torch.isfinite(consistency(found.x, Likelihood.of(operator, data))).all()
        prior.to(CPU)


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
