"""Ambient: its loss has the conditional mean as minimiser, and sees nothing but y and a."""

import itertools
import re
from dataclasses import replace

import cleanprior.methods.ambient.method as ambient_module
import pytest
import torch
from torch import nn

from cleanprior.config import build, compose
from cleanprior.data import Batch, Measurements
from cleanprior.diffusion.denoiser import Denoiser, draw_sigma, edm_weight, per_image
from cleanprior.diffusion.samplers import Heun
from cleanprior.errors import UserError
from cleanprior.operators.masks import further_mask
from cleanprior.seeding import generator_for

SHAPE = (1, 1, 3)
SIGMA = 0.4
C = torch.tensor([[0.30, 0.18, -0.06], [0.18, 0.25, 0.10], [-0.06, 0.10, 0.20]]).double()


def make_method(make_operator, make_problem, shape=SHAPE, p=0.5, **changes):
    overrides = [f"method.{k}={v}" for k, v in changes.items()]
    method = build(compose(["method=ambient", *overrides])["method"])
    operator = make_operator("inpainting", shape, f"p={p}")
    method.problem = make_problem(operator)
    method.device = torch.device("cpu")
    return method, operator


class LinearPerMask(Denoiser):
    """One matrix for each mask: general enough to hold the conditional mean of a Gaussian."""

    def __init__(self, d):
        super().__init__(nn.Identity(), 0.5, 1, "split")
        self.matrices = nn.Parameter(torch.zeros(2**d, d, d))
        self.powers = 2.0 ** torch.arange(d)

    def forward(self, x, sigma, condition=None):
        number = (condition.flatten(1) @ self.powers).long()
        rows = self.matrices[number]
        return (rows @ x.flatten(1)[:, :, None])[:, :, 0].reshape(x.shape)


def conditional_mean(covariance, seen, sigma):
    """C A~^T (A~ (C + s^2 I) A~^T)^-1, as a matrix that reads the whole image."""
    d = len(covariance)
    w = torch.zeros(d, d, dtype=torch.float64)
    noisy = covariance[seen][:, seen] + sigma**2 * torch.eye(int(seen.sum()), dtype=torch.float64)
    w[:, seen] = torch.linalg.solve(noisy, covariance[seen]).T
    return w


@pytest.mark.parametrize("preconditioning", ["split", "ambient_official"])
def test_the_minimiser_is_the_conditional_mean_for_every_mask(
    make_operator, make_problem, monkeypatch, preconditioning
):
    """The loss is quadratic in one matrix a mask: its gradients give the normal equations."""
    method, operator = make_method(
        make_operator, make_problem, delta=0.3, preconditioning=preconditioning
    )
    monkeypatch.setattr(
        ambient_module, "draw_sigma", lambda n, generator, device: torch.full((n,), SIGMA)
    )
    model = method.denoiser = LinearPerMask(3)
    root = torch.linalg.cholesky(C).float()
    hessian, slope = torch.zeros(8, 3, 3, 3).double(), torch.zeros(8, 3, 3).double()
    for k in range(4):
        noise = torch.randn((400_000, 3), generator=generator_for(0, "x", part=k))
        data = Measurements.draw((noise @ root.T).reshape(-1, *SHAPE), operator, k, "train")
        batch = data.batch(torch.arange(len(data)))

        def gradient(at, batch=batch, k=k):
            model.matrices.data.copy_(at)
            loss = method.loss(batch, generator_for(0, "loss", part=k), "denoiser").total
            return torch.autograd.grad(loss, model.matrices)[0].double()

        at_zero = gradient(torch.zeros(8, 3, 3))
        slope -= at_zero
        for j in range(3):
            unit = torch.zeros(8, 3, 3)
            unit[:, :, j] = 1
            hessian[:, :, :, j] += gradient(unit) - at_zero
    worst = 0.0
    for mask in itertools.product((False, True), repeat=3):
        seen = torch.tensor(mask)
        if not seen.any():
            continue
        number = int((seen * torch.tensor([1, 2, 4])).sum())
        expected = conditional_mean(C, seen, SIGMA)
        for i in range(3):
            inside = hessian[number, i][seen][:, seen]
            fitted = torch.linalg.solve(inside, slope[number, i][seen])
            worst = max(worst, (fitted - expected[i, seen]).abs().max().item())
    assert worst <= 0.02


class Analytic(Denoiser):
    """The conditional mean under one fixed further mask."""

    def __init__(self, covariance, seen):
        super().__init__(nn.Identity(), 0.5, 1, "split")
        self.anchor = nn.Parameter(torch.zeros(1))
        self.covariance, self.seen = covariance, seen

    def forward(self, x, sigma, condition=None):
        assert torch.equal(condition[0].flatten().bool(), self.seen)
        assert (x.flatten(1)[:, ~self.seen] == 0).all()
        w = conditional_mean(self.covariance, self.seen, sigma[0].item())
        return (x.flatten(1).double() @ w.T).reshape(x.shape).to(x.dtype)


def test_the_fixed_mask_sampler_is_exact_where_seen_and_mean_where_hidden(
    make_operator, make_problem, monkeypatch
):
    method, operator = make_method(make_operator, make_problem)
    method.sampler = Heun(128, 0.002, 80.0, 7.0)
    seen = torch.tensor([True, False, True])
    fixed = seen.float().reshape(1, 1, 1, 3)
    monkeypatch.setattr(
        operator,
        "further",
        lambda params, delta, g: {"mask": fixed.expand(len(params["mask"]), -1, -1, -1)},
    )
    (route,) = [w for w in method.routes({"denoiser": Analytic(C, seen)}) if w.sample]
    x = route.sample(100_000, generator_for(0, "s")).flatten(1).double()
    fill = C[:, seen] @ torch.linalg.inv(C[seen][:, seen])
    expected = fill @ C[seen][:, seen] @ fill.T
    found = torch.cov(x.T)
    assert (found - expected).norm() / expected.norm() < 0.03
    assert (found - C).norm() / C.norm() > 0.05


@pytest.mark.parametrize("preconditioning", ["split", "ambient_official"])
def test_the_loss_from_y_equals_the_loss_written_in_x(ambient_on_digits, preconditioning):
    method, operator, x, batch = ambient_on_digits(preconditioning=preconditioning, delta=0.2)
    generator = generator_for(0, "loss")
    a = batch.params["mask"]
    kept = further_mask(a, 0.2, generator)
    sigma = draw_sigma(16, generator, torch.device("cpu"))
    noise = torch.randn(x.shape, generator=generator)
    denoised = method.denoiser(kept * (x + per_image(sigma) * noise), sigma, kept)
    weight = edm_weight(sigma, 0.5)
    if preconditioning == "split":
        weight = kept * weight + (1 - kept) * method.weight_of_hidden / 0.25
    from_x = (weight * (a * (denoised - x)) ** 2).sum() / a.sum()
    from_y = method.loss(batch, generator_for(0, "loss"), "denoiser")
    torch.testing.assert_close(from_y.total, from_x, rtol=1e-6, atol=0)
    torch.testing.assert_close(sum(from_y.parts.values()), from_y.total.detach())


def test_pixels_that_are_not_observed_never_enter_the_loss(ambient_on_digits):
    method, _, _, batch = ambient_on_digits()
    filled = batch.y + 100 * (1 - batch.params["mask"])
    spoiled = replace(batch, y=filled)
    one = method.loss(batch, generator_for(0, "loss"), "denoiser").total
    other = method.loss(spoiled, generator_for(0, "loss"), "denoiser").total
    assert torch.equal(one, other)


class Recorded(Denoiser):
    """Keeps its output, so that a test can ask for the gradient there."""

    def forward(self, x, sigma, condition=None):
        self.output = super().forward(x, sigma, condition)
        self.output.retain_grad()
        self.mask = condition
        return self.output


@pytest.mark.parametrize("delta", [1e-9, 0.3])
def test_without_further_corruption_hidden_outputs_have_no_gradient(ambient_on_digits, delta):
    method, _, _, batch = ambient_on_digits(delta=delta)
    method.denoiser = Recorded(method.denoiser.backbone, 0.5, 1, "split")
    method.loss(batch, generator_for(0, "loss"), "denoiser").total.backward()
    gradient = method.denoiser.output.grad
    hidden = method.denoiser.mask == 0
    assert (gradient[~hidden] != 0).any()
    assert (gradient[hidden] == 0).all() == (delta < 1e-6)
    assert (gradient[batch.params["mask"] == 0] == 0).all()


@pytest.mark.parametrize("delta", ["0", "1", "-0.1"])
def test_a_delta_outside_its_range_is_refused(delta):
    with pytest.raises(UserError, match=rf"method\.delta={delta}; allowed: \(0, 1\)"):
        build(compose(["method=ambient", f"method.delta={delta}"])["method"])


@pytest.mark.parametrize(
    ("operator_name", "sigma", "reason"),
    [
        ("denoising", "0", "with one fixed denoising the part that it hides is never supervised"),
        ("blur", "0", "with one fixed blur the part that it hides is never supervised"),
        ("inpainting", "0.1", r"cannot use noisy measurements \(sigma_y=0\.1\)"),
        ("denoising", "0.2", "cannot use noisy measurements|with one fixed denoising"),
    ],
)
def test_ambient_refuses_fixed_operators_and_noise(
    make_operator, make_problem, operator_name, sigma, reason
):
    method = build(compose(["method=ambient"])["method"])
    problem = make_problem(make_operator(operator_name, (1, 8, 8), f"sigma={sigma}"))
    refusal = method.supports(problem)
    assert refusal is not None
    assert re.search(reason, refusal)
    assert method.supports(make_problem(make_operator("inpainting", (1, 8, 8), "sigma=0"))) is None


def test_the_loss_of_an_image_does_not_depend_on_its_batch(ambient_on_digits, monkeypatch):
    """With fixed further masks, levels and noise, images add up in proportion to what they show."""
    method, operator, _, batch = ambient_on_digits(resample_further="false")
    level, noise = (
        torch.linspace(0.1, 2, 16),
        torch.randn((16, 1, 8, 8), generator=generator_for(0, "n")),
    )
    place = [0]
    monkeypatch.setattr(
        ambient_module, "draw_sigma", lambda n, g, d: level[place[0] : place[0] + n]
    )
    monkeypatch.setattr(
        torch, "randn", lambda shape, generator=None: noise[place[0] : place[0] + shape[0]]
    )
    together = method.loss(batch, generator_for(0, "loss"), "denoiser").total
    shown = batch.params["mask"].expand_as(batch.y).flatten(1).sum(1)
    total = 0.0
    for i in range(16):
        place[0] = i
        part = slice(i, i + 1)
        alone = Batch(
            batch.y[part],
            {"mask": batch.params["mask"][part]},
            batch.sigma_y[part],
            batch.index[part],
        )
        total += method.loss(alone, generator_for(0, "loss"), "denoiser").total * shown[i]
    torch.testing.assert_close(total / shown.sum(), together, rtol=1e-5, atol=0)


def test_a_fixed_further_mask_belongs_to_its_image(ambient_on_digits):
    method, _, _, batch = ambient_on_digits(resample_further="false")
    first = method._further(batch, generator_for(0, "a"))["mask"]
    order = torch.randperm(16, generator=generator_for(0, "o"))
    shuffled = Batch(
        batch.y[order], {"mask": batch.params["mask"][order]}, batch.sigma_y, batch.index[order]
    )
    assert torch.equal(method._further(shuffled, generator_for(0, "b"))["mask"], first[order])


def test_one_step_restoration_can_paste_what_was_observed(ambient_on_digits):
    method, _, _, batch = ambient_on_digits(paste_observed="true")
    (route,) = method.routes({"denoiser": method.denoiser})
    draw = route.restore(batch, [])
    x, evaluations = draw.x, draw.evaluations
    seen = batch.params["mask"].bool()
    assert evaluations == 1
    assert torch.equal(x[seen], batch.y[seen])
    assert (x[~seen] != 0).any()
