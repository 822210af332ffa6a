"""Ambient: its loss has the conditional mean as minimiser, and sees nothing but y and a."""

import itertools
import re
from dataclasses import replace

import cleanprior.methods.ambient as ambient_module
import pytest
import torch
from cleanprior.methods.ambient import disagreement, guided
from torch import nn

from cleanprior.config import build, compose
from cleanprior.data import Batch, Measurements
from cleanprior.diffusion.denoiser import Denoiser, draw_sigma, edm_weight, per_image
from cleanprior.diffusion.samplers import Heun
from cleanprior.errors import UserError
from cleanprior.operators import RandomInpainting
from cleanprior.operators.identifiability import conditional_gram, weakest
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
    (way,) = [w for w in method.ways({"denoiser": Analytic(C, seen)}) if w.sample]
    x = way.sample(100_000, generator_for(0, "s")).flatten(1).double()
    fill = C[:, seen] @ torch.linalg.inv(C[seen][:, seen])
    expected = fill @ C[seen][:, seen] @ fill.T
    found = torch.cov(x.T)
    assert (found - expected).norm() / expected.norm() < 0.03
    assert (found - C).norm() / C.norm() > 0.05


@pytest.fixture
def trained(make_operator, make_problem, digits_data):
    def make(**changes):
        p = changes.pop("p", 0.4)
        config = compose(["method=ambient", *(f"method.{k}={v}" for k, v in changes.items())])
        method = build(config["method"])
        operator = make_operator("inpainting", (1, 8, 8), f"p={p}")
        method.setup(make_problem(operator), torch.device("cpu"))
        x = digits_data.train[:16]
        return (
            method,
            operator,
            x,
            Measurements.draw(x, operator, 0, "train").batch(torch.arange(16)),
        )

    return make


@pytest.mark.parametrize("preconditioning", ["split", "ambient_official"])
def test_the_loss_from_y_equals_the_loss_written_in_x(trained, preconditioning):
    method, operator, x, batch = trained(preconditioning=preconditioning, delta=0.2)
    generator = generator_for(0, "loss")
    a = batch.params["mask"]
    kept = further_mask(a, 0.2, generator)
    sigma = draw_sigma(16, generator, torch.device("cpu"))
    noise = torch.randn(x.shape, generator=generator)
    denoised = method.denoiser(kept * (x + per_image(sigma) * noise), sigma, kept)
    weight = edm_weight(sigma, 0.5)
    if preconditioning == "split":
        weight = kept * weight + (1 - kept) * method.hidden_weight / 0.25
    from_x = (weight * (a * (denoised - x)) ** 2).sum() / a.sum()
    from_y = method.loss(batch, generator_for(0, "loss"), "denoiser")
    torch.testing.assert_close(from_y.total, from_x, rtol=1e-6, atol=0)
    torch.testing.assert_close(sum(from_y.parts.values()), from_y.total.detach())


def test_pixels_that_are_not_observed_never_enter_the_loss(trained):
    method, _, _, batch = trained()
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
def test_without_further_corruption_hidden_outputs_have_no_gradient(trained, delta):
    method, _, _, batch = trained(delta=delta)
    method.denoiser = Recorded(method.denoiser.backbone, 0.5, 1, "split")
    method.loss(batch, generator_for(0, "loss"), "denoiser").total.backward()
    gradient = method.denoiser.output.grad
    hidden = method.denoiser.mask == 0
    assert (gradient[~hidden] != 0).any()
    assert (gradient[hidden] == 0).all() == (delta < 1e-6)
    assert (gradient[batch.params["mask"] == 0] == 0).all()


@pytest.mark.parametrize("delta", ["0", "1", "-0.1"])
def test_a_delta_outside_its_range_is_refused(delta):
    with pytest.raises(
        UserError, match=rf"ambient: delta={delta}(\.0)?; allowed: above 0 and below"
    ):
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


def test_the_loss_of_an_image_does_not_depend_on_its_batch(trained, monkeypatch):
    """With fixed further masks, levels and noise, images add up in proportion to what they show."""
    method, operator, _, batch = trained(resample_further="false")
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


def test_a_fixed_further_mask_belongs_to_its_image(trained):
    method, _, _, batch = trained(resample_further="false")
    first = method._further(batch, generator_for(0, "a"))["mask"]
    order = torch.randperm(16, generator=generator_for(0, "o"))
    shuffled = Batch(
        batch.y[order], {"mask": batch.params["mask"][order]}, batch.sigma_y, batch.index[order]
    )
    assert torch.equal(method._further(shuffled, generator_for(0, "b"))["mask"], first[order])


def test_one_step_restoration_can_paste_what_was_observed(trained):
    method, _, _, batch = trained(paste_observed="true")
    (way,) = method.ways({"denoiser": method.denoiser})
    x, evaluations = way.restore(batch, [])
    seen = batch.params["mask"].bool()
    assert evaluations == 1
    assert torch.equal(x[seen], batch.y[seen])
    assert (x[~seen] != 0).any()


FAMILIES = [("inpainting", (1, 8, 8)), ("box", (1, 8, 8)), ("compressed_sensing", (1, 4, 4))]
FAMILIES.append(("mri", (2, 8, 8)))


def linear_method(make_operator, make_problem, name, shape, *overrides, **changes):
    keys = [f"method.{k}={v}" for k, v in changes.items()]
    method = build(compose(["method=ambient", *keys])["method"])
    operator = make_operator(name, shape, *overrides)
    method.setup(make_problem(operator), torch.device("cpu"))
    return method, operator


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
    assert warned.warning(problem) == "rank"
    ignored = build(compose(["method=ambient", "method.identifiability=off"])["method"])
    assert ignored.supports(problem) is None
    assert ignored.warning(problem) == ""


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
def test_the_linear_loss_from_y_equals_the_loss_written_in_x(
    make_operator, make_problem, name, shape, override
):
    method, operator = linear_method(make_operator, make_problem, name, shape, override)
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
    gram = weight * gram + method.hidden_weight**0.5 / 0.5 * rest
    error = (gram @ (denoised - x).flatten(1).double()[:, :, None]).square().sum()
    expected = error / operator.observed(batch.y, batch.params).sum()
    loss = method.loss(batch, generator_for(0, "loss"), "denoiser")
    torch.testing.assert_close(loss.total.double(), expected, rtol=1e-4, atol=0)
    loss.total.backward()
    gradients = [p.grad for p in method.denoiser.parameters() if p.grad is not None]
    assert all(torch.isfinite(g).all() for g in gradients)


class Shrink:
    """A linear denoiser, D(x) = k x, that counts its calls and whether they kept a graph."""

    def __init__(self, k):
        self.k, self.graphs = k, []

    def __call__(self, x, sigma):
        self.graphs.append(torch.is_grad_enabled() and x.requires_grad)
        return self.k * x


def test_the_guidance_gradient_is_per_image_and_a_mean_over_masks():
    x = torch.randn((5, 1, 4, 4), generator=generator_for(0, "x"))
    level = torch.ones(5)
    first, gradient = disagreement([Shrink(0.5), Shrink(0.2)], x, level)
    torch.testing.assert_close(first, 0.5 * x)
    # mean over 16 pixels of (0.3 x)^2
    torch.testing.assert_close(gradient, 2 * 0.09 * x / 16)
    alone = torch.cat(
        [disagreement([Shrink(0.5), Shrink(0.2)], x[i : i + 1], level[:1])[1] for i in range(5)]
    )
    torch.testing.assert_close(alone, gradient)
    _, more = disagreement([Shrink(0.5)] + 3 * [Shrink(0.2)], x, level)
    torch.testing.assert_close(more, gradient)
    _, none = disagreement([Shrink(0.5)] * 4, x, level)
    assert (none == 0).all()


@pytest.mark.parametrize(("masks", "weight"), [(1, 3.0), (3, 0.0)])
def test_without_guidance_no_gradient_is_taken(masks, weight):
    through = [Shrink(0.5) for _ in range(masks)]
    noise = torch.randn((2, 1, 4, 4), generator=generator_for(0, "x"))
    guided(through, noise, [1.0, 0.5, 0.0], weight)
    assert through[0].graphs == [False, False]
    assert all(t.graphs == [] for t in through[1:])


def test_guided_steps_follow_the_corrected_equation():
    noise = torch.randn((2, 1, 4, 4), generator=generator_for(0, "x"))
    x = guided([Shrink(0.5), Shrink(0.2)], noise, [2.0, 0.5, 0.0], 1.5)
    start = 2 * noise
    step = 0.25 * start + 0.75 * 0.5 * start - 1.5 * 2 * 0.09 * start / 16
    torch.testing.assert_close(x, 0.5 * step)


@pytest.mark.parametrize(("name", "shape"), FAMILIES)
def test_the_guided_row_samples_every_family(make_operator, make_problem, name, shape):
    overrides = ["m=8"] if name == "compressed_sensing" else []
    method, _ = linear_method(
        make_operator, make_problem, name, shape, *overrides, guidance_weight=0.5, guidance_masks=3
    )
    method.sampler = Heun(3, 0.002, 80.0, 7.0)
    (_, way) = method.ways({"denoiser": method.denoiser})
    assert way.name == "guided by 3 masks"
    x = way.sample(2, generator_for(0, "s"))
    assert x.shape == (2, *shape)
    assert torch.isfinite(x).all()
    assert torch.equal(x, way.sample(2, generator_for(0, "s")))


@pytest.mark.parametrize(("name", "shape"), FAMILIES[2:])
def test_pasting_makes_any_restoration_agree_with_y(make_operator, make_problem, name, shape):
    overrides = ["m=8"] if name == "compressed_sensing" else []
    method, operator = linear_method(
        make_operator, make_problem, name, shape, *overrides, paste_observed="true"
    )
    x = 2 * torch.rand((4, *shape), generator=generator_for(0, "x")) - 1
    batch = Measurements.draw(x, operator, 0, "train").batch(torch.arange(4))
    (way,) = method.ways({"denoiser": method.denoiser})
    restored, _ = way.restore(batch, [])
    torch.testing.assert_close(operator.A(restored, batch.params), batch.y, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("identifiability=maybe", "identifiability='maybe'; allowed: refuse, warn, off"),
        ("guidance_masks=0", "guidance_masks=0; allowed: at least 1"),
        ("guidance_weight=-1", "guidance_weight=-1.*allowed: at least 0"),
    ],
)
def test_options_outside_their_range_are_refused(override, message):
    with pytest.raises(UserError, match=message):
        build(compose(["method=ambient", f"method.{override}"])["method"])
