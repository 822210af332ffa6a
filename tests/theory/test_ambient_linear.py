"""Ambient on every family of operators: what is supervised, and the loss of linear measurements."""

import re

import pytest
import torch
from cleanprior.methods.ambient.identifiability import conditional_gram, weakest

from cleanprior.config import build, compose
from cleanprior.data import Measurements
from cleanprior.diffusion.denoiser import draw_sigma, edm_weight, per_image
from cleanprior.operators import RandomInpainting
from cleanprior.seeding import generator_for
from cleanprior.training.warning import codes

FAMILIES = [("inpainting", (1, 8, 8)), ("box", (1, 8, 8)), ("compressed_sensing", (1, 4, 4))]
FAMILIES.append(("mri", (2, 8, 8)))


@pytest.mark.parametrize(
    ("name", "shape", "overrides"),
    [
        ("inpainting", (1, 1, 3), ("p=0.4",)),
        ("box", (1, 2, 3), ("side=1",)),
        ("box", (1, 2, 4), ("side=1", "overlap=true")),
        ("mri", (2, 1, 6), ("acceleration=1", "centre_lines=2", "further_lines=2")),
        ("mri", (2, 1, 6), ("acceleration=2", "centre_lines=1", "further_lines=1")),
    ],
)
def test_closed_forms_of_the_expected_gram_agree_with_averages(
    make_operator, name, shape, overrides
):
    operator = make_operator(name, shape, *overrides)
    draws = conditional_gram(operator, 0.3, 20_000, 400, generator_for(0, "g"))
    assert draws
    for further, gram in draws:
        expected = operator.supervision(further, 0.3)[0].sort().values
        found = torch.linalg.eigvalsh(gram)
        # At least 400 draws of 0/1 entries: 5 standard errors.
        assert (found - expected).abs().max() < 5 * 0.5 / 400**0.5


def test_a_dropped_gaussian_row_is_a_new_one(make_operator):
    operator = make_operator("compressed_sensing", (1, 2, 2), "m=2")
    rows = torch.randn((100_000, 4), generator=generator_for(0, "r")).double() / 2**0.5
    further = {"matrix": torch.zeros(1, 2, 4), "rows": torch.tensor([[1.0, 0.0]])}
    further["matrix"][0, 0] = torch.tensor([1.0, -0.5, 0.2, 0.1])
    kept = operator.matrix(further, 1)[0]
    average = kept.T @ kept + rows.T @ rows / len(rows)
    expected = operator.supervision(further, 0.1)[0]
    assert (torch.linalg.eigvalsh(average) - expected).abs().max() < 0.02


@pytest.mark.parametrize(("name", "shape"), FAMILIES)
def test_every_shipped_family_is_identifiable(make_operator, make_problem, name, shape):
    method = build(compose(["method=ambient"])["method"])
    operator = make_operator(name, shape, *(["m=8"] if name == "compressed_sensing" else []))
    assert method.supports(make_problem(operator)) is None
    eigenvalue, _ = weakest(operator, 0.1, generator_for(0, "g"))
    assert 0 < eigenvalue <= 1


def test_overlapping_boxes_are_refused_before_training(make_operator, make_problem):
    problem = make_problem(make_operator("box", (1, 8, 8), "side=3", "overlap=true"))
    method = build(compose(["method=ambient"])["method"])
    reason = method.supports(problem)
    assert reason is not None
    assert re.search(r"hides a pixel block \(rows \d-\d, columns \d-\d\)", reason)
    warned = build(compose(["method=ambient", "method.identifiability=warn"])["method"])
    assert warned.supports(problem) is None
    assert codes(warned.warnings(problem)) == "shift+rank"
    ignored = build(compose(["method=ambient", "method.identifiability=off"])["method"])
    assert ignored.supports(problem) is None
    assert codes(ignored.warnings(problem)) == "shift"


class Stranger(RandomInpainting):
    """A family without closed form, whose further corruption always hides the first pixel."""

    def further(self, params, delta, generator):
        return {"mask": params["mask"] * torch.tensor([0.0, 1.0, 1.0])}

    def draw(self, n, generator):
        return {"mask": super().draw(n, generator)["mask"] * torch.tensor([0.0, 1.0, 1.0])}

    def supervision(self, further, delta):
        return None


def test_a_family_without_closed_form_is_checked_by_monte_carlo(make_problem):
    method = build(compose(["method=ambient"])["method"])
    operator = Stranger((1, 1, 3), 0.4, False, 0.0)
    reason = method.supports(make_problem(operator))
    assert reason is not None
    assert "is never supervised" in reason


@pytest.mark.parametrize(
    ("name", "shape", "override"),
    [("compressed_sensing", (1, 4, 4), "m=8"), ("mri", (2, 8, 8), "sigma=0")],
)
def test_the_linear_loss_from_y_equals_the_loss_written_in_x(ambient_on, name, shape, override):
    method, operator = ambient_on(name, shape, override)
    x = 2 * torch.rand((16, *shape), generator=generator_for(0, "x")) - 1
    batch = Measurements.draw(x, operator, 0, "train").batch(torch.arange(16))
    generator = generator_for(0, "loss")
    further = operator.further(batch.params, method.delta, generator)
    sigma = draw_sigma(16, generator, torch.device("cpu"))
    noise = torch.randn(x.shape, generator=generator)
    noisy = operator.A(x + per_image(sigma) * noise, further)
    denoised = method.denoiser(
        operator.A_adjoint(noisy, further), sigma, operator.describe(further, 16)
    )
    full = operator.matrix(batch.params, 16)
    part = operator.matrix(further, 16)
    gram = part.mT @ part
    rest = full.mT @ full - gram
    weight = edm_weight(sigma, 0.5).double().sqrt()[:, 0]
    gram = weight * gram + method.weight_of_hidden**0.5 / 0.5 * rest
    error = (gram @ (denoised - x).flatten(1).double()[:, :, None]).square().sum()
    expected = error / operator.observed(batch.y, batch.params).sum()
    loss = method.loss(batch, generator_for(0, "loss"), "denoiser")
    torch.testing.assert_close(loss.total.double(), expected, rtol=1e-4, atol=0)
    loss.total.backward()
    gradients = [p.grad for p in method.denoiser.parameters() if p.grad is not None]
    assert all(torch.isfinite(g).all() for g in gradients)


@pytest.mark.parametrize(("name", "shape"), FAMILIES[2:])
def test_pasting_makes_any_restoration_agree_with_y(ambient_on, name, shape):
    overrides = ["m=8"] if name == "compressed_sensing" else []
    method, operator = ambient_on(name, shape, *overrides, paste_observed="true")
    x = 2 * torch.rand((4, *shape), generator=generator_for(0, "x")) - 1
    batch = Measurements.draw(x, operator, 0, "train").batch(torch.arange(4))
    (route,) = method.routes({"denoiser": method.denoiser})
    restored = route.restore(batch, []).x
    torch.testing.assert_close(operator.A(restored, batch.params), batch.y, rtol=1e-4, atol=1e-4)
