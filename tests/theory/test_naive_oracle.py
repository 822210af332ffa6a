"""The anchors of every table: what the naive fit and the oracle minimise."""

import cleanprior.methods.naive as naive_module
import pytest
import torch
from torch import nn

from cleanprior.config import build, compose
from cleanprior.data import Images, Measurements
from cleanprior.diffusion.denoiser import Denoiser, denoising_loss, draw_sigma, per_image
from cleanprior.seeding import generator_for

SIGMA = 0.4
P = 0.4
C = torch.tensor([[0.30, 0.20], [0.20, 0.25]]).double()


class Cells(Denoiser):
    """A constant image in each cell of a grid over two-pixel inputs: free to be any function."""

    def __init__(self, half_width=1.5, cell=0.2):
        super().__init__(nn.Identity(), 0.5)
        self.side = round(2 * half_width / cell)
        self.half_width, self.cell = half_width, cell
        self.table = nn.Parameter(torch.zeros(self.side**2 + 1, 2))
        self.register_buffer("centre", torch.zeros(self.side**2 + 1, 3))

    def forward(self, x, sigma, condition=None):
        v = x.flatten(1)
        place = ((v + self.half_width) / self.cell).floor().long()
        inside = ((place >= 0) & (place < self.side)).all(1)
        number = torch.where(inside, place[:, 0] * self.side + place[:, 1], self.side**2)
        with torch.no_grad():
            rows = torch.cat([v, torch.ones(len(v), 1)], 1)
            self.centre.index_add_(0, number, rows)
        return self.table[number].reshape(x.shape)


def mixture(v):
    """E[x_i | a x + sigma n = v, a_i = 1]: a mixture over whether the other pixel was seen."""
    eye = torch.eye(2, dtype=torch.float64)
    both = torch.distributions.MultivariateNormal(torch.zeros(2).double(), C + SIGMA**2 * eye)
    linear = v @ torch.linalg.inv(C + SIGMA**2 * eye) @ C
    out = torch.empty_like(v)
    for i in range(2):
        alone = SIGMA**2 * eye
        alone[i, i] += C[i, i]
        one = torch.distributions.MultivariateNormal(torch.zeros(2).double(), alone)
        shown, hidden = (1 - P) * both.log_prob(v).exp(), P * one.log_prob(v).exp()
        single = C[i, i] / (C[i, i] + SIGMA**2) * v[:, i]
        out[:, i] = (shown * linear[:, i] + hidden * single) / (shown + hidden)
    return out


def test_the_naive_minimiser_is_a_mixture_over_the_masks_of_other_pixels(
    make_operator, make_problem, monkeypatch
):
    method = build(compose(["method=naive"])["method"])
    operator = make_operator("inpainting", (1, 1, 2), f"p={P}")
    method.problem = make_problem(operator)
    model = method.denoiser = Cells()
    monkeypatch.setattr(naive_module, "draw_sigma", lambda n, g, device: torch.full((n,), SIGMA))
    root = torch.linalg.cholesky(C).float()
    at_zero, at_one = torch.zeros_like(model.table), torch.zeros_like(model.table)
    for k in range(6):
        x = torch.randn((500_000, 2), generator=generator_for(0, "x", part=k)) @ root.T
        data = Measurements.draw(x.reshape(-1, 1, 1, 2), operator, k, "train")
        batch = data.batch(torch.arange(len(data)))
        for value, total in ((0.0, at_zero), (1.0, at_one)):
            model.table.data.fill_(value)
            loss = method.loss(batch, generator_for(0, "loss", part=k), "denoiser").total
            total += torch.autograd.grad(loss, model.table)[0]
    # The loss is a parabola in each entry: its minimum from the slopes at 0 and 1.
    minimiser = (at_zero / (at_zero - at_one)).double()[:-1]
    count = model.centre[:-1, 2]
    often = count > 15_000
    v = (model.centre[:-1, :2] / count[:, None]).double()[often]
    assert often.sum() > 40
    found = minimiser[often]
    assert (found - mixture(v)).abs().max() < 0.02
    clean = v @ torch.linalg.inv(C + SIGMA**2 * torch.eye(2, dtype=torch.float64)) @ C
    assert (found - clean).abs().max() > 0.1, "the naive minimiser is not the clean one"


@pytest.fixture
def trained(make_operator, make_problem, digits_data):
    def make(name, operator_name, *overrides):
        method = build(compose([f"method={name}"])["method"])
        operator = make_operator(operator_name, (1, 8, 8), *overrides)
        method.setup(make_problem(operator), torch.device("cpu"))
        x = digits_data.train[:16]
        return method, x, Measurements.draw(x, operator, 0, "train")

    return make


def edm_loss(denoiser, x, generator):
    """EDM's loss, written out."""
    sigma = draw_sigma(len(x), generator, x.device)
    noise = torch.randn(x.shape, generator=generator)
    denoised = denoiser(x + per_image(sigma) * noise, sigma)
    weight = (sigma**2 + 0.25) / (0.5 * sigma) ** 2
    return (weight * ((denoised - x) ** 2).flatten(1).mean(1)).mean()


def test_naive_with_nothing_missing_is_the_edm_loss(trained):
    method, x, data = trained("naive", "inpainting", "p=0", "sigma=0")
    loss = method.loss(data.batch(torch.arange(16)), generator_for(0, "l"), "denoiser").total
    expected = edm_loss(method.denoiser, x, generator_for(0, "l"))
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)


def test_naive_on_noise_fits_the_noisy_images(trained):
    method, _, data = trained("naive", "denoising", "sigma=0.4")
    loss = method.loss(data.batch(torch.arange(16)), generator_for(0, "l"), "denoiser").total
    expected = edm_loss(method.denoiser, data.y, generator_for(0, "l"))
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)


def test_the_oracle_has_the_edm_loss_on_clean_images(trained):
    method, x, data = trained("oracle", "inpainting")
    batch = Images(x, data, torch.arange(16)).batch(torch.arange(16))
    loss = method.loss(batch, generator_for(0, "l"), "denoiser").total
    expected = edm_loss(method.denoiser, x, generator_for(0, "l"))
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(denoising_loss(method.denoiser, x, generator_for(0, "l")), expected)


def test_the_oracle_refuses_to_train_without_clean_images(trained):
    method, _, data = trained("oracle", "inpainting")
    from cleanprior.progress import Progress
    from cleanprior.training import Round, Session
    from cleanprior.training.checkpoint import Store

    session = Session(data, None, {}, torch.device("cpu"), Store(None), Progress(), 0)
    with pytest.raises(AssertionError, match="hands clean images to an entitled method"):
        method.begin_round(0, Round("train", 1), session)


@pytest.mark.parametrize(("p", "sigma"), [(0.4, 0.0), (0.0, 0.3)])
def test_zero_filled_measurements_have_the_covariance_of_the_formula(make_operator, p, sigma):
    """What naive learns: (1-p)^2 C off the diagonal, (1-p) C_ii on it, and the noise."""
    operator = make_operator("inpainting", (1, 1, 2), f"p={p}", f"sigma={sigma}")
    x = (
        torch.randn((400_000, 2), generator=generator_for(0, "x"))
        @ torch.linalg.cholesky(C).float().T
    )
    data = Measurements.draw(x.reshape(-1, 1, 1, 2), operator, 0, "train")
    found = torch.cov(operator.lift(data.y, data.params).flatten(1).double().T)
    expected = (1 - p) ** 2 * C
    expected.fill_diagonal_(0)
    expected += torch.diag((1 - p) * (C.diagonal() + sigma**2))
    assert (found - expected).norm() / expected.norm() < 0.01
