"""Operators, noise and posterior samplers on a second device: as on the CPU."""

import pytest
import torch
from devices import BATCH, CPU, compose, images, over_devices

from cleanprior.config import build, registry
from cleanprior.data import Measurements
from cleanprior.data.instrument_noise import with_noise
from cleanprior.evaluation.metrics.restoration import consistency
from cleanprior.operators.like import measured_like
from cleanprior.operators.likelihood import Likelihood
from cleanprior.prior import Prior
from cleanprior.seeding import scoped_rng
from cleanprior.testing.parts import TINY
from cleanprior.training import Problem

OPERATORS = registry.options("operator")


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
