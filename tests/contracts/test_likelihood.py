"""The likelihood of a batch: its residual, a part of it, a floor of its noise."""

import torch

from cleanprior.data import Measurements
from cleanprior.operators import Likelihood


def made(make_operator, n=4):
    operator = make_operator("inpainting", (1, 4, 4), "sigma=0.1")
    x = torch.rand(n, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return operator, x, Measurements.draw(x, operator, 0, "train")


def test_the_residual_counts_measured_entries_alone(make_operator):
    operator, x, data = made(make_operator)
    filled = Measurements(data.y + 7 * (1 - data.params["mask"]), data.params, data.sigma_y)
    residual = Likelihood.of(operator, filled).residual(x)
    assert torch.equal(residual, Likelihood.of(operator, data).residual(x))
    assert (residual[data.params["mask"] == 0] == 0).all() and residual.abs().max() > 0


def test_a_part_is_the_likelihood_of_those_measurements(make_operator):
    operator, x, data = made(make_operator)
    index = torch.tensor([2, 0])
    part = Likelihood.of(operator, data).take(index)
    assert len(part) == 2
    assert torch.equal(part.residual(x[index]), Likelihood.of(operator, data).residual(x)[index])
    assert torch.equal(part.sigma_y, data.sigma_y[index])


def test_a_floor_replaces_no_noise_and_alters_no_measurement(make_operator):
    operator, _, data = made(make_operator)
    level = torch.tensor([0.0, 0.01, 0.2, 0.0])
    given = Likelihood(operator, data.y, data.params, level)
    floored = given.with_floor(0.1)
    assert floored.sigma_y.tolist() == torch.tensor([0.1, 0.01, 0.2, 0.1]).tolist()
    assert floored.y is given.y and given.sigma_y is level


def test_one_operator_and_one_level_are_shared(make_operator):
    operator, _, data = made(make_operator)
    fixed = make_operator("denoising", (1, 4, 4))
    assert not Likelihood.of(operator, data).is_shared  # a mask of its own for each image
    assert Likelihood(fixed, data.y, {}, torch.full((4,), 0.2)).is_shared
    assert not Likelihood(fixed, data.y, {}, torch.linspace(0.1, 0.2, 4)).is_shared


def test_moving_it_leaves_the_callers_operator_where_it_is(make_operator):
    operator, _, data = made(make_operator)
    moved = Likelihood.of(operator, data).to("meta")
    assert moved.y.device.type == moved.sigma_y.device.type == moved.operator.device.type == "meta"
    assert operator.device.type == data.params["mask"].device.type == "cpu"
