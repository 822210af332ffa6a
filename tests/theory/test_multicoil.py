"""Two coils on 6x6 complex images of a Gaussian law: draws and the ambient loss in closed form."""

import cleanprior.methods.ambient.method as ambient_module
import pytest
import torch
from factors import two_factors

from cleanprior.config import build, compose
from cleanprior.data import Measurements
from cleanprior.operators.likelihood import Likelihood
from cleanprior.seeding import generator_for

SHAPE, D, SIGMA = (2, 6, 6), 72, 0.4


@pytest.fixture(scope="module")
def prior():
    return two_factors(SHAPE)


@pytest.fixture(scope="module")
def two_coils(make_operator):
    def make(sigma):
        keys = ("coils=2", "acceleration=2", f"sigma={sigma}")
        return make_operator("mri_multicoil", SHAPE, *keys)

    return make


def images(prior, n):
    root = torch.linalg.cholesky(prior.covariance)
    z = torch.randn((n, D), generator=generator_for(0, "images"), dtype=torch.float64)
    return (prior.mean + z @ root.T).float().reshape(n, *SHAPE)


def test_mmps_draws_have_the_moments_of_the_posterior(prior, two_coils):
    operator, draws = two_coils(0.3), 3000
    measured = Measurements.draw(images(prior, 1), operator, 0, "train")
    one = Likelihood.of(operator, measured)
    mean, covariance = prior.posterior(one)
    sampler = build(compose(["posterior=mmps"])["posterior"])
    copies = one.take(torch.zeros(draws, dtype=torch.long))
    x = sampler(prior, copies, generator_for(0, "draws")).x.flatten(1).double()
    found = torch.cov(x.T)
    assert 0.95 < found.trace() / covariance[0].trace() < 1.05
    noise = (covariance[0].trace() ** 2 + covariance[0].square().sum()) / (draws - 1)
    squared = ((found - covariance[0]).square().sum() - noise).clamp_min(0)
    assert squared.sqrt() / covariance[0].norm() < 0.08
    spread = covariance[0].trace().div(D).sqrt()
    assert (x.mean(0) - mean[0]).square().mean().sqrt() / spread < 0.12


class Linear(torch.nn.Module):
    """One affine map for each A-tilde, known by its lines."""

    sigma_data = 0.5

    def __init__(self, maps):
        super().__init__()
        self.maps, self.change = maps, None

    def forward(self, x, sigma, condition=None):
        flat = x.flatten(1).double()
        found = torch.empty_like(flat)
        for key, (matrix, offset) in self.maps.items():
            mine = (condition[:, 0, 0] == torch.tensor(key)).all(1)
            found[mine] = flat[mine] @ matrix.T + offset
        if self.change is not None:
            found = found + flat @ self.change.T
        return found.float().reshape(x.shape)


def conditional_mean(prior, operator, params):
    """E[x | u] for u = A~^H A~ (x + sigma n), as a matrix and an offset."""
    a = operator.matrix(params, 1)[0]
    gram = a.T @ a
    noisy = gram @ (prior.covariance + SIGMA**2 * torch.eye(D, dtype=torch.float64)) @ gram
    matrix = prior.covariance @ gram @ torch.linalg.pinv(noisy, rtol=1e-9, hermitian=True)
    return matrix, prior.mean - matrix @ gram @ prior.mean


@pytest.mark.parametrize("residual", ["image", "measurement"])
def test_the_ambient_loss_is_least_at_the_conditional_mean(
    prior, two_coils, make_problem, monkeypatch, residual
):
    keys = ["method=ambient", f"method.residual={residual}"]
    method = build(compose(keys)["method"])
    simulated = two_coils(0.0)
    first = simulated.draw(1, generator_for(0, "maps"))
    operator = simulated.with_law_of(first)  # the same coils for all, so that few A-tilde are there
    method.problem, method.device = make_problem(operator), torch.device("cpu")
    monkeypatch.setattr(
        ambient_module, "draw_sigma", lambda n, generator, device: torch.full((n,), SIGMA)
    )
    measured = Measurements.draw(images(prior, 6000), operator, 0, "train")
    batch = measured.batch(torch.arange(len(measured)))
    lines = operator.further(measured.params, 0, generator_for(1, "f"))["mask"].flatten(1)
    best = {}
    for key in lines.unique(dim=0).tolist():
        mask = torch.tensor(key).reshape(1, 1, 1, -1)
        best[tuple(key)] = conditional_mean(prior, operator, {**first, "mask": mask})
    assert len(best) == 5  # the centre and one of five lines
    model = method.denoiser = Linear(best)

    def loss(change=None):
        model.change = change
        return method.loss(batch, generator_for(0, "loss"), "denoiser").total.item()

    least = loss()
    for number in range(3):
        change = torch.randn((D, D), generator=generator_for(number, "change")).double() * 0.02
        up, down = loss(change), loss(-change)
        curvature = up + down - 2 * least
        assert curvature > 0
        # A parabola with its bottom at 0: its slope there is what 6,000 draws leave.
        assert abs(up - down) < 0.25 * curvature
