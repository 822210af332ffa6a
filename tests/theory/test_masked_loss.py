"""The masked loss: the conditional mean of what a mask shows, nothing about what it hides."""

import itertools

import cleanprior.methods.masked_loss as masked_module
import pytest
import torch
from torch import nn

from cleanprior.config import build, compose
from cleanprior.data import Measurements
from cleanprior.diffusion.denoiser import Denoiser, draw_sigma, per_image
from cleanprior.seeding import generator_for

SIGMA = 0.4
C = torch.tensor([[0.30, 0.20], [0.20, 0.25]]).double()


class LinearPerMask(Denoiser):
    """One matrix for each mask of two pixels."""

    def __init__(self):
        super().__init__(nn.Identity(), 0.5, 1)
        self.matrices = nn.Parameter(torch.zeros(4, 2, 2))

    def forward(self, x, sigma, condition=None):
        number = (condition.flatten(1) @ torch.tensor([1.0, 2.0])).long()
        return (self.matrices[number] @ x.flatten(1)[:, :, None])[:, :, 0].reshape(x.shape)


def make_method(make_operator, make_problem, shape, *overrides):
    method = build(compose(["method=masked_loss"])["method"])
    operator = make_operator("inpainting", shape, *overrides)
    method.setup(make_problem(operator), torch.device("cpu"))
    return method, operator


def test_the_minimiser_is_the_conditional_mean_given_the_mask(
    make_operator, make_problem, monkeypatch
):
    """Unlike the naive fit, no mixture over masks; hidden pixels have no gradient at all."""
    method, operator = make_method(make_operator, make_problem, (1, 8, 8))
    operator = make_operator("inpainting", (1, 1, 2), "p=0.4")
    method.problem = make_problem(operator)
    model = method.denoiser = LinearPerMask()
    monkeypatch.setattr(masked_module, "draw_sigma", lambda n, g, d: torch.full((n,), SIGMA))
    x = torch.randn((800_000, 2), generator=generator_for(0, "x"))
    x = x @ torch.linalg.cholesky(C).float().T
    data = Measurements.draw(x.reshape(-1, 1, 1, 2), operator, 0, "train")
    batch = data.batch(torch.arange(len(data)))

    def gradient(at):
        model.matrices.data.copy_(at)
        loss = method.loss(batch, generator_for(0, "l"), "denoiser").total
        return torch.autograd.grad(loss, model.matrices)[0].double()

    slope = -gradient(torch.zeros(4, 2, 2))
    hessian = torch.zeros(4, 2, 2, 2).double()
    for j in range(2):
        unit = torch.zeros(4, 2, 2)
        unit[:, :, j] = 1
        hessian[:, :, :, j] = gradient(unit) + slope
    for mask in itertools.product((0, 1), repeat=2):
        number = mask[0] + 2 * mask[1]
        shown = torch.diag(torch.tensor(mask).double())
        noisy = shown @ C @ shown + SIGMA**2 * torch.eye(2, dtype=torch.float64)
        expected = C @ shown @ torch.linalg.inv(noisy)
        for i in range(2):
            if mask[i]:
                found = torch.linalg.solve(hessian[number, i], slope[number, i])
                assert (found - expected[i]).abs().max() < 0.02
            else:
                assert (slope[number, i] == 0).all()
                assert (hessian[number, i] == 0).all()


def test_with_nothing_missing_it_is_the_edm_loss(make_operator, make_problem, digits_data):
    method, operator = make_method(make_operator, make_problem, (1, 8, 8), "p=0")
    x = digits_data.train[:16]
    data = Measurements.draw(x, operator, 0, "train")
    found = method.loss(data.batch(torch.arange(16)), generator_for(0, "l"), "denoiser").total
    generator = generator_for(0, "l")
    sigma = draw_sigma(16, generator, x.device)
    noise = torch.randn(x.shape, generator=generator)
    denoised = method.denoiser(x + per_image(sigma) * noise, sigma, torch.ones_like(x))
    weight = (sigma**2 + 0.25) / (0.5 * sigma) ** 2
    expected = (weight * ((denoised - x) ** 2).flatten(1).mean(1)).mean()
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("count", ["50", "500"])
def test_a_small_oracle_is_the_oracle_with_fewer_images(count):
    from cleanprior.methods.oracle import Oracle

    method = build(compose([f"method=oracle_{count}"])["method"])
    assert type(method) is Oracle
    assert method.clean_images == int(count)


def test_it_refuses_operators_without_random_masks(make_operator, make_problem):
    method = build(compose(["method=masked_loss"])["method"])
    for name in ("denoising", "blur"):
        reason = method.supports(make_problem(make_operator(name, (1, 8, 8))))
        assert f"with one fixed {name} the part that it hides is never supervised" in reason
