"""GSURE-Diffusion: unbiased loss, variance of its input, minimisers, refusals."""

import math

import pytest
import torch
from cleanprior.methods.gsure import GSURE, official_levels
from deepinv.physics import Inpainting

from cleanprior.config import build, compose
from cleanprior.data import Measurements
from cleanprior.operators import Operator
from cleanprior.operators.spectral import Spectrum
from cleanprior.seeding import bernoulli, generator_for, randn_like
from cleanprior.training import Problem
from cleanprior.training.averages import Averages
from cleanprior.training.warning import codes


class Scaled(Operator):
    """Each pixel missing with probability p, the others multiplied by fixed singular values."""

    capabilities = frozenset({"random", "svd", "same_shape", "gaussian"})

    def __init__(self, values, p, sigma):
        super().__init__(Inpainting(img_size=(1, 1, len(values))), (1, 1, len(values)), sigma)
        self.values, self.p = torch.tensor(values), p

    def draw(self, n, generator):
        return {"mask": self.values * bernoulli((n, 1, 1, len(self.values)), 1 - self.p, generator)}

    def observed(self, y, params):
        return (params["mask"] > 0).to(y)


class Fixed(Scaled):
    """The same singular values for all images."""

    capabilities = frozenset({"fixed", "svd", "same_shape", "gaussian"})

    def draw(self, n, generator):
        return {"mask": self.values.expand(n, 1, 1, len(self.values))}


def simulate(operator, n, covariance, mean=None):
    """Return n draws of N(mean, covariance) and their measurements' loss."""
    d = len(covariance)
    root = torch.linalg.cholesky(covariance.double())
    noise = torch.randn((n, d), generator=generator_for(0, "x"), dtype=torch.float64)
    x = noise @ root.T + (0 if mean is None else mean)
    x = x.float().reshape(n, *operator.image_shape)
    params = operator.draw(n, generator_for(0, "p"))
    y = operator.A(x, params)
    y = y + operator.sigma * randn_like(y, generator_for(0, "z")) * operator.observed(y, params)
    return x, y, params


def gsure_of(operator, y, params, weight=None, probe="rademacher", div_weight="unbiased"):
    spectrum = Spectrum.of(operator, params, y)
    weight = torch.ones(spectrum.singular.shape[1:]) if weight is None else weight
    level = torch.full((len(y),), operator.sigma)
    return GSURE(spectrum, y, level, weight, probe, div_weight)


def linear(matrix):
    return lambda x, sigma: (x.flatten(1) @ matrix.T.to(x)).reshape(x.shape)


COVARIANCE = torch.tensor([[0.3, 0.1, 0.05], [0.1, 0.25, -0.08], [0.05, -0.08, 0.4]])


def bias(operator, matrix, sigma, n, probe="rademacher", div_weight="unbiased", target="y"):
    """Return the z-score of (loss with target y-bar) - (loss with target x-bar)."""
    x, y, params = simulate(operator, n, COVARIANCE)
    weight = torch.tensor([1.5, 0.7, 2.0]).reshape(1, 1, 3)
    gsure = gsure_of(operator, y, params, weight, probe, div_weight)
    level = torch.full((n,), sigma)
    data, divergence = gsure(linear(matrix), level, generator_for(3, "l"))
    x_t = gsure.noised(level, generator_for(3, "l"))
    denoised, kept = linear(matrix)(x_t, level), gsure.spectrum.kept
    truth = (kept * weight * (denoised - x) ** 2).flatten(1).sum(1)
    constant = (weight * gsure.variance).flatten(1).sum(1)
    if target == "x_t":
        # The same objective with target x_t: noise sigma^2 on every kept coordinate.
        data = (kept * weight * (denoised - x_t) ** 2).flatten(1).sum(1)
        divergence = 2 * sigma**2 * (kept * weight * matrix.diagonal()).flatten(1).sum(1)
        constant = sigma**2 * (kept * weight).flatten(1).sum(1)
    difference = (data + divergence - constant - truth).double()
    difference = difference.detach()
    return float(difference.mean() / (difference.std() / n**0.5))


MATRIX = torch.tensor([[0.8, 0.1, -0.2], [0.3, 0.6, 0.1], [-0.1, 0.2, 0.9]])


@pytest.mark.parametrize("probe", ["rademacher", "gaussian"])
@pytest.mark.parametrize("target", ["y", "x_t"])
def test_the_loss_is_unbiased(probe, target):
    operator = Scaled([0.6, 0.9, 1.2], 0.4, 0.3)
    assert abs(bias(operator, MATRIX, 0.7, 1_000_000, probe, target=target)) <= 4


def test_the_official_weight_of_the_divergence_is_biased():
    operator = Scaled([1.0, 1.0, 1.0], 0.4, 0.3)
    assert abs(bias(operator, torch.eye(3), 0.7, 100_000)) <= 4
    assert abs(bias(operator, torch.eye(3), 0.7, 100_000, div_weight="official")) > 10


def test_the_official_weight_of_the_divergence_is_its_formula():
    """2 (1 - alpha-bar) Lambda d/dx_VP, with alpha-bar = 1 / (1 + sigma^2)."""
    operator, sigma = Scaled([0.6, 0.9, 1.2], 0.4, 0.3), 0.7
    _, y, params = simulate(operator, 20, COVARIANCE)
    weight = torch.tensor([1.5, 0.7, 2.0]).reshape(1, 1, 3)
    gsure = gsure_of(operator, y, params, weight, div_weight="official")
    diagonal = torch.tensor([0.5, 0.2, 0.9])
    level = torch.full((20,), sigma)
    _, found = gsure(linear(diagonal.diag()), level, generator_for(0, "l"))
    kept = (gsure.spectrum.kept * weight).flatten(1) @ diagonal
    torch.testing.assert_close(found, 2e-4 * sigma**2 / (1 + sigma**2) ** 0.5 * kept)


@pytest.mark.parametrize("sigma", [0.5, 0.7, 3.0])
def test_the_input_has_noise_sigma_on_kept_and_missing_coordinates(sigma):
    operator = Scaled([0.6, 0.9, 1.2], 0.4, 0.3)
    n = 200_000
    x, y, params = simulate(operator, n, COVARIANCE)
    gsure = gsure_of(operator, y, params)
    noise = gsure.noised(torch.full((n,), sigma), generator_for(1, "l")) - gsure.spectrum.kept * x
    kept = gsure.spectrum.kept
    for i in range(3):
        here = kept[..., i].flatten()
        for chosen in (here, ~here):
            variance = noise[..., i].flatten()[chosen].var()
            assert variance.item() == pytest.approx(sigma**2, rel=0.015)


def test_a_level_below_the_noise_of_y_bar_is_an_error():
    operator = Scaled([0.6, 0.9, 1.2], 0.4, 0.3)
    _, y, params = simulate(operator, 100, COVARIANCE)
    with pytest.raises(AssertionError, match="sigma is below sigma_y / s"):
        gsure_of(operator, y, params).noised(torch.full((100,), 0.49), generator_for(0, "l"))


@pytest.mark.parametrize("name", ["blur", "inpainting", "mri"])
def test_the_loss_is_that_of_a_dense_decomposition(make_operator, name):
    """In float64, on 8x8 images: half spectra, complex coordinates and masks."""
    if name.startswith("mri"):
        pytest.importorskip("cleanprior.operators.mri")
    shape = (2, 8, 8) if name.startswith("mri") else (1, 8, 8)
    operator = make_operator(name, shape, "sigma=0.05")
    operator.physics.double()
    n, d = 3, math.prod(shape)
    x = torch.randn((n, *shape), generator=generator_for(0, "x"), dtype=torch.float64)
    params = {k: v.double() for k, v in operator.draw(n, generator_for(0, "p")).items()}
    if name == "blur":
        operator.physics.angle = operator.physics.angle.to(torch.complex128)
    y = operator.A(x, params)
    y = y + 0.05 * randn_like(y, generator_for(0, "z")) * operator.observed(y, params)
    matrix = torch.randn((d, d), generator=generator_for(0, "m"), dtype=torch.float64) / d**0.5
    spectrum = Spectrum.of(operator, params, y)
    level = torch.full((n,), 0.05, dtype=torch.float64)
    weight = torch.full(spectrum.singular.shape[1:], 1.7, dtype=torch.float64)
    gsure = GSURE(spectrum, y, level, weight, "rademacher", "unbiased")
    sigma = torch.full((n,), 20.0, dtype=torch.float64)
    data, divergence = gsure(linear(matrix), sigma, generator_for(1, "l"))

    generator = generator_for(1, "l")
    noise = torch.randn(x.shape, generator=generator, dtype=torch.float64).flatten(1)
    v = (2 * bernoulli(x.shape, 0.5, generator) - 1).double().flatten(1)
    columns = torch.eye(d, dtype=torch.float64).reshape(d, *shape)
    for i in range(n):
        own = {k: w[i : i + 1].expand(d, *w.shape[1:]) for k, w in params.items()}
        a = operator.A(columns, own).flatten(1).T
        u, s, vt = torch.linalg.svd(a)
        kept = (s > 1e-5).double()
        tau = torch.where(s > 1e-5, 0.05 / s, 0.0)
        y_bar = torch.where(s > 1e-5, (u.T @ y[i].flatten()) / s, 0.0)
        x_t = vt.T @ (y_bar + (20.0**2 - tau**2).sqrt() * (vt @ noise[i]))
        error = kept * (vt @ (matrix @ x_t) - y_bar)
        torch.testing.assert_close(data[i], 1.7 * error.square().sum(), rtol=1e-5, atol=1e-5)
        probe = vt.T @ (kept * (vt @ v[i]))
        expected = 2 * probe @ (vt.T @ (1.7 * tau**2 * (vt @ (matrix @ probe))))
        torch.testing.assert_close(divergence[i], expected, rtol=1e-5, atol=1e-5)


def minimise(gsure, sigma, features, start):
    """Return the least-squares correction of ``start`` by features, in closed form."""
    n = len(gsure.y)
    level = torch.full((n,), sigma)
    count = features(torch.zeros_like(gsure.y[:1])).shape[-1]

    def objective(theta):
        def denoise(x, _):
            flat = start(x).flatten(1) + torch.einsum("bf,df->bd", features(x), theta)
            return flat.reshape(x.shape)

        data, divergence = gsure(denoise, level, generator_for(5, "l"))
        return (data + divergence).mean()

    theta = torch.zeros(gsure.y[0].numel(), count)
    gradient = torch.autograd.functional.jacobian(objective, theta).flatten()
    hessian = torch.autograd.functional.hessian(objective, theta)
    step = torch.linalg.solve(hessian.reshape(theta.numel(), -1).double(), -gradient.double())
    return step.reshape(theta.shape).float()


def test_with_nothing_missing_the_minimiser_is_the_denoiser_of_clean_images():
    operator = Fixed([1.0, 1.0, 1.0], 0.0, 0.3)
    sigma = 0.6
    _, y, params = simulate(operator, 400_000, COVARIANCE)
    gsure = gsure_of(operator, y, params)
    found = minimise(gsure, sigma, lambda x: x.flatten(1), torch.zeros_like)
    expected = COVARIANCE @ torch.linalg.inv(COVARIANCE + sigma**2 * torch.eye(3))
    assert (found - expected).abs().max() < 0.02


@pytest.mark.parametrize("sigma_y", [0.0, 0.2])
def test_the_minimiser_averages_over_the_masks_of_other_coordinates(sigma_y):
    """Two pixels, each missing with probability 0.4: the reason of the warning ``shift``."""
    covariance = torch.tensor([[1.0, 0.8], [0.8, 1.0]])
    q, sigma = 0.6, 0.5
    operator = Scaled([1.0, 1.0], 1 - q, sigma_y)
    _, y, params = simulate(operator, 400_000, covariance)
    gsure = gsure_of(operator, y, params, torch.full((1, 1, 2), 1 / q))

    def mixture(x):
        """E[x_i | x_t, P_ii = 1]: the other coordinate is seen with probability q or pure noise."""
        flat = x.flatten(1)
        means = []
        for i in (0, 1):
            pair = flat if i == 0 else flat.flip(1)
            seen = covariance + sigma**2 * torch.eye(2)
            hidden = torch.diag(torch.tensor([1 + sigma**2, sigma**2]))
            logs = []
            for c, share in ((seen, q), (hidden, 1 - q)):
                law = torch.distributions.MultivariateNormal(torch.zeros(2), c)
                logs.append(law.log_prob(pair) + math.log(share))
            belief = torch.softmax(torch.stack(logs, -1), -1)
            both = (pair @ torch.linalg.inv(seen)) @ covariance[0]
            alone = pair[:, 0] / (1 + sigma**2)
            means.append(belief[:, 0] * both + belief[:, 1] * alone)
        return torch.stack(means, 1).reshape(x.shape)

    def features(x):
        a, b = x.flatten(1).unbind(1)
        return torch.stack([torch.ones_like(a), a, b, a * b, a.tanh(), b.tanh()], 1)

    theta = minimise(gsure, sigma, features, mixture)
    grid = torch.cartesian_prod(*2 * [torch.linspace(-1.0, 1.0, 9)]).reshape(-1, 1, 1, 2)
    assert torch.einsum("bf,df->bd", features(grid), theta).abs().max() < 0.02
    full = (grid.flatten(1) @ torch.linalg.inv(covariance + sigma**2 * torch.eye(2))) @ covariance
    assert (mixture(grid).flatten(1) - full).abs().max() > 0.1, "what sampling would need"


# -- the method ------------------------------------------------------------------------------------


def method(*overrides):
    return build(compose(["method=gsure", *[f"method.{o}" for o in overrides]])["method"])


def problem_of(operator, tiny_backbone):
    return Problem(operator, operator.name, tiny_backbone, 0.5, operator.sigma)


def test_refusals_say_what_is_missing(make_operator, tiny_backbone):
    def reason(operator):
        return method().supports(problem_of(operator, tiny_backbone))

    blur = make_operator("blur", (1, 8, 8), "kernel_size=5", "blur_std=1.5")
    assert "s_min=" in reason(blur) and "sigma >= sigma_y / s" in reason(blur)
    masked = reason(Fixed([1.0, 0.0, 1.0, 0.0], 0.0, 0.1))
    assert "2 of 4 coordinates are never observed" in masked
    other = make_operator("inpainting", (1, 8, 8))
    other.capabilities = other.capabilities - {"svd"}
    assert "needs a cheap SVD" in reason(other)
    for name in ("inpainting", "denoising"):
        assert reason(make_operator(name, (1, 8, 8))) is None


def test_the_warning_says_that_sampling_sees_what_training_did_not(make_operator, tiny_backbone):
    for name, code in (("inpainting", "shift"), ("denoising", "")):
        operator = make_operator(name, (1, 8, 8), "sigma=0.1")
        assert codes(method().warnings(problem_of(operator, tiny_backbone))) == code


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("w=one", r"w=one; allowed: coverage, ones"),
        ("div_weight=x", r"div_weight=x; allowed: unbiased, official"),
        ("probe=x", r"probe=x; allowed: rademacher, gaussian"),
        ("schedule=x", r"schedule=x; allowed: edm, official"),
        ("min_singular=0", r"min_singular=0; allowed: \(0, 1\]"),
    ],
)
def test_unknown_choices_are_refused(override, message):
    with pytest.raises(ValueError, match=message):
        method(override)


class Rooms:
    """The part of a session that begin_round reads."""

    device = torch.device("cpu")

    def __init__(self, measurements):
        self.measurements = measurements


@pytest.mark.parametrize("w", ["coverage", "ones"])
def test_weights_are_one_over_the_share_of_images_that_show_a_coordinate(
    make_operator, digits_data, tiny_backbone, w
):
    operator = make_operator("inpainting", (1, 8, 8), "p=0.4")
    data = Measurements.draw(digits_data.train[:600], operator, 0, "train")
    trained = method(f"w={w}")
    trained.setup(problem_of(operator, tiny_backbone), torch.device("cpu"))
    trained.begin_round(0, None, Rooms(data))
    share = data.params["mask"].mean(0)
    expected = 1 / share if w == "coverage" else torch.ones_like(share)
    torch.testing.assert_close(trained.weight(), expected)


def test_noisy_images_are_sampled_down_to_the_least_trained_level(make_operator, tiny_backbone):
    operator = make_operator("denoising", (1, 8, 8), "sigma=0.5")
    trained = method()
    trained.setup(problem_of(operator, tiny_backbone), torch.device("cpu"))
    assert trained.floor == pytest.approx(0.5)
    asked = []
    averages = Averages(dict(trained.networks()), 0.9)
    denoiser = averages.modules["denoiser"]
    denoiser.register_forward_pre_hook(lambda m, args: asked.append(float(args[1].min())))
    (route,) = trained.routes(averages.modules)
    assert route.sample(2, generator_for(0, "s")).shape == (2, 1, 8, 8)
    assert min(asked) == pytest.approx(0.5)
    clean = make_operator("inpainting", (1, 8, 8))
    trained = method()
    trained.setup(problem_of(clean, tiny_backbone), torch.device("cpu"))
    assert trained.routes(averages.modules) == []


def test_noise_free_masks_have_no_divergence(make_operator, digits_data):
    operator = make_operator("inpainting", (1, 8, 8))
    data = Measurements.draw(digits_data.train[:4], operator, 0, "train")
    gsure = gsure_of(operator, data.y, data.params)
    _, divergence = gsure(lambda x, s: 3 * x, torch.full((4,), 0.5), generator_for(0, "l"))
    assert (divergence == 0).all()


@pytest.mark.parametrize("schedule", ["edm", "official"])
def test_the_official_schedule_is_not_weighted(
    make_operator, digits_data, tiny_backbone, monkeypatch, schedule
):
    operator = make_operator("inpainting", (1, 8, 8), "sigma=0.1")
    data = Measurements.draw(digits_data.train[:8], operator, 0, "train")
    keys = ["probe=gaussian", "div_weight=official"] if schedule == "official" else []
    trained = method(f"schedule={schedule}", *keys)
    trained.setup(problem_of(operator, tiny_backbone), torch.device("cpu"))
    trained.begin_round(0, None, Rooms(data))
    asked = []
    inner = GSURE.__call__

    def spy(self, denoise, sigma, generator):
        asked.append((sigma, inner(self, denoise, sigma, generator)))
        is_official = (self.probe, self.div_weight) == ("gaussian", "official")
        assert is_official == (schedule == "official")
        assert torch.equal(self.weight, trained.weight())
        return asked[-1][1]

    monkeypatch.setattr(GSURE, "__call__", spy)
    total = trained.loss(data.batch(torch.arange(8)), generator_for(0, "l"), "denoiser").total
    ((sigma, (values, divergence)),) = asked
    weight = 1.0 if schedule == "official" else (sigma**2 + 0.25) / (0.5 * sigma) ** 2
    torch.testing.assert_close(total, (weight * (values + divergence)).mean() / 64)
    is_official = torch.isin(sigma, official_levels(0.1).float()).all()
    assert is_official == (schedule == "official")
