"""Every method, posterior sampler and judge on a second device: nothing is mixed, nothing moved."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from second_device import second_device

from cleanprior import registry
from cleanprior.config import build, compose
from cleanprior.data import Measurements
from cleanprior.prior import image_generators
from cleanprior.progress import Progress
from cleanprior.training import Problem, Session
from cleanprior.training.averages import Averages
from cleanprior.training.checkpoint import Store

CPU = torch.device("cpu")
NO_CUDA = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="torch finds no CUDA device on this machine"
)
CELLS = [(m, o) for m in registry.methods() for o in registry.options("operator")]
BATCH = 3
# Every phase of a method in a few evaluations.
CHEAP = {
    "em": ["method.posterior.steps=2", "method.scale_images=2", "method.scales=[0.5,1.0]"],
    "sure_score": ["method.stages=2"],
    "em_mmps": ["method.posterior.steps=2", "method.gaussian_iterations=1"],
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


def images(digits_data, operator_name: str) -> torch.Tensor:
    x = digits_data.train[:6].clone()
    return torch.cat([x, x.flip(0)], 1) if operator_name == "mri" else x


def run_method(name, operator_name, digits_data, backbone, device):
    """Set up a method, do all its rounds, sample and restore; return every number on the way."""
    config = compose(
        [f"method={name}", f"operator={operator_name}", "sampler.steps=2", *CHEAP.get(name, [])]
    )
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
    for number, plan in enumerate(method.rounds(100)):
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
    for way in method.own_ways(averages.modules):
        if way.restore is not None:
            found[f"{way.name} restored"] = way.restore(batch, image_generators(0, range(2)))[0]
        if way.sample is not None:
            found[f"{way.name} sampled"] = way.sample(2, torch.Generator().manual_seed(0))
    assert operator.device == CPU
    return found


def assert_alike(a, b):
    assert a.keys() == b.keys()
    for key, value in a.items():
        given = torch.as_tensor(value)
        assert given.device == CPU, key
        assert torch.allclose(given, torch.as_tensor(b[key]), rtol=1e-3, atol=1e-4), key


@over_devices
@pytest.mark.parametrize(("name", "operator_name"), CELLS)
def test_a_method_learns_there_what_it_learns_on_the_cpu(
    name, operator_name, digits_data, tiny_backbone, make_device
):
    expected = run_method(name, operator_name, digits_data, tiny_backbone, CPU)
    with make_device() as device:
        found = run_method(name, operator_name, digits_data, tiny_backbone, device)
    assert_alike(found, expected)
