"""Our samplers' pieces against deepinv's, and deepinv's own samplers behind our interface."""

import deepinv
import pytest
import torch
from deepinv.physics import GaussianNoise, Inpainting

from cleanprior.config import build, compose
from cleanprior.data import Measurements
from cleanprior.diffusion.posterior import DDRM, DeepinvSampler, DiffPIR, PiGDM, draw_in_chunks
from cleanprior.diffusion.posterior import ddrm as ddrm_module
from cleanprior.errors import UserError
from cleanprior.operators.likelihood import Likelihood
from cleanprior.prior import image_generators
from cleanprior.seeding import generator_for, scoped_rng
from cleanprior.testing import posteriors as promises

SHAPE = (1, 2, 3)


class AsDeepinv(deepinv.models.Denoiser):
    """The Gaussian denoiser in deepinv's convention."""

    def __init__(self, gaussian):
        super().__init__()
        self.gaussian = gaussian

    def forward(self, x, sigma, **_):
        level = torch.as_tensor(sigma, dtype=x.dtype).flatten().expand(len(x))
        return self.gaussian(x, level)


def measured(make_operator, name="inpainting", sigma=0.1, n=6):
    extra = ["kernel_size=1"] if name == "blur" else []
    operator = make_operator(name, SHAPE, f"sigma={sigma}", *extra)
    x = 0.5 * torch.randn((n, *SHAPE), generator=generator_for(0, "x"))
    return operator, Measurements.draw(x, operator, 1, "train")


# -- pieces ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [0.1, 1.0, 5.0])
def test_pigdm_guidance_of_unit_variance_data_is_deepinvs(gaussian, make_operator, sigma):
    operator, data = measured(make_operator)
    x = torch.randn((6, *SHAPE), generator=generator_for(0, "t"))
    physics = Inpainting(img_size=SHAPE, mask=data.params["mask"])
    physics.noise_model = GaussianNoise(0.1)
    theirs = deepinv.sampling.PiGDMDataFidelity(AsDeepinv(gaussian))
    gradient = theirs.grad(x, data.y, physics, torch.tensor(sigma))
    problem = Likelihood.of(operator, data)
    mean, _ = PiGDM(2, 0.1, 1.0, 7.0, 1.0, 1.0, 20, 1e-6).guide(gaussian, x, sigma, problem)
    denoised = gaussian(x, torch.full((6,), sigma))
    torch.testing.assert_close(mean, denoised - sigma**2 * gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["inpainting", "blur", "denoising"])
@pytest.mark.parametrize("sigma", [0.1, 1.0, 5.0])
def test_the_diffpir_pull_is_deepinvs_proximal_step(make_operator, name, sigma):
    operator, data = measured(make_operator, name)
    z = torch.randn((6, *SHAPE), generator=generator_for(0, "t"))
    level = torch.linspace(0.05, 0.5, 6)
    sampler = DiffPIR(2, 0.1, 1.0, 7.0, 4.0, 0.3, 0.0, 20, 1e-6)
    problem = Likelihood(operator, data.y, data.params, level)
    ours = sampler.pull(z, sigma, problem)
    operator.A(z, data.params)
    gamma = (sigma**2 / (4.0 * level**2)).reshape(-1, 1, 1, 1)
    theirs = operator.physics.prox_l2(z, data.y, gamma)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("eta", [0.0, 0.6])
def test_ddrm_means_are_deepinvs(gaussian, make_operator, monkeypatch, eta):
    """Without noise both walk alike; deepinv's noise is smaller by the square root of 2."""
    operator, data = measured(make_operator, n=1)
    levels = [5.0, 2.0, 0.7, 0.2, 0.06, 0.03]
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)
    monkeypatch.setattr(ddrm_module, "randn_like", lambda x, g: torch.zeros_like(x))
    monkeypatch.setattr(ddrm_module.LevelSampler, "start", lambda s, p, g: torch.zeros_like(p.y))
    physics = Inpainting(img_size=SHAPE, mask=data.params["mask"][0])
    physics.noise_model = GaussianNoise(0.1)
    reference = deepinv.sampling.DDRM(AsDeepinv(gaussian), levels, eta, 0.9, eps=0.0)
    # deepinv starts a seen coordinate at its measurement, whatever its weight.
    theirs = reference(data.y, physics)
    sampler = DDRM(2, 0.1, 1.0, 7.0, eta, 0.9)
    sampler.levels = levels
    problem = Likelihood.of(operator, data)
    x = sampler.start(problem, generator_for(0, "d"))
    for sigma, lower in zip(levels[:-1], levels[1:], strict=True):
        x = sampler.step(gaussian, x, sigma, lower, problem, generator_for(0, "d"))
    ours = gaussian(x, torch.tensor(levels[-1:]))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


# -- deepinv's samplers ----------------------------------------------------------------------------

CHOICES = {
    "DDRM": ("DDRM", None, {"eta": 0.5, "sigma_max": 5.0}),
    "DPS": ("DPS", None, {"schedule": "ve", "weight": 0.5}),
    "DiffPIR": ("DiffPIR", None, {"lambda_": 3.0}),
    "dps": ("PosteriorDiffusion", "DPSDataFidelity", {"sigma_max": 10.0, "weight": 0.3}),
    "mmps": ("PosteriorDiffusion", "MomentMatchingDataFidelity", {"sigma_max": 10.0}),
    "pigdm": ("PosteriorDiffusion", "PiGDMDataFidelity", {"sigma_max": 10.0, "alpha": 1.0}),
}
each = pytest.mark.parametrize("choice", sorted(CHOICES))


def chosen(choice, steps=8):
    sampler, fidelity, options = CHOICES[choice]
    return DeepinvSampler(sampler, fidelity, steps, 0.02, options)


@each
@pytest.mark.parametrize("name", ["inpainting", "blur", "denoising"])
def test_a_draw_depends_on_its_measurement_and_generator_only(
    gaussian, make_operator, choice, name
):
    operator, data = measured(make_operator, name, n=4)

    def make():
        return chosen(choice)

    together = promises.check_batches(make, gaussian, data, operator, chunks=(1,))
    assert together.evaluations >= 7
    assert (together.backwards > 0) == (choice not in ("DDRM", "DiffPIR"))
    # A stranger's call in between leaves its parameters in the physics, and no trace in a draw.
    operator.A(data.y[:1], {k: 0 * v[:1] for k, v in data.params.items()})
    again = promises.check_batches(make, gaussian, data, operator, chunks=())
    assert torch.equal(again.x, together.x)


@each
def test_evaluations_and_backward_passes_are_those_counted_and_follow_the_steps(
    gaussian, make_operator, choice
):
    operator, data = measured(make_operator, n=1)
    counts, levels = {"forward": 0, "backward": 0}, []

    def denoise(x, sigma):
        counts["forward"] += 1
        levels.append(float(sigma.min()))
        denoised = gaussian(x, sigma)
        if denoised.requires_grad:
            denoised.register_hook(lambda g: counts.__setitem__("backward", counts["backward"] + 1))
        return denoised

    found = []
    for steps in (5, 9):
        counts.update(forward=0, backward=0)
        draw = chosen(choice, steps)(
            denoise, Likelihood.of(operator, data), image_generators(4, range(1))
        )
        assert counts == {"forward": draw.evaluations, "backward": draw.backwards}
        found.append(draw.evaluations)
    # One evaluation a level, or two where the guidance asks for its own.
    assert found[1] - found[0] in (4, 8)
    assert min(levels) >= 0.0199
    assert choice == "DiffPIR" or min(levels) == pytest.approx(0.02)


@pytest.mark.parametrize("choice", ["DDRM", "DiffPIR", "mmps", "pigdm"])
def test_an_image_has_its_own_noise_level(gaussian, make_operator, choice):
    operator, data = measured(make_operator, n=2)
    y, mask = data.y[[0, 0]], data.params["mask"][[0, 0]]

    def draw(numbers, *levels):
        return chosen(choice)(
            gaussian,
            Likelihood(operator, y[numbers], {"mask": mask[numbers]}, torch.tensor(levels)),
            image_generators(4, numbers),
        ).x

    together = draw([0, 1], 0.05, 0.5)
    torch.testing.assert_close(together[1:], draw([1], 0.5), rtol=1e-4, atol=1e-5)
    assert (together[1:] - draw([1], 0.05)).abs().max() > 1e-2


@pytest.mark.parametrize("choice", ["DPS", "DiffPIR", "dps", "mmps", "pigdm"])
@pytest.mark.parametrize("name", ["compressed_sensing", "downsampling"])
def test_operators_without_decomposition_keep_their_own_parameters(make_operator, choice, name):
    def denoise(x, sigma):
        return x * 0.25 / (0.25 + sigma.reshape(-1, 1, 1, 1) ** 2)

    operator = make_operator(name, (1, 8, 8), "sigma=0.1")
    x = 0.5 * torch.randn((3, 1, 8, 8), generator=generator_for(0, "x"))
    data = Measurements.draw(x, operator, 1, "train")

    def draw(chunk):
        parts = (Likelihood.of(operator, data), image_generators(4, range(3)))
        return draw_in_chunks(chosen(choice), denoise, *parts, chunk)

    together = draw(3)
    assert together.x.shape == x.shape
    torch.testing.assert_close(draw(1).x, together.x, rtol=1e-4, atol=1e-5)


def test_dps_behind_the_interface_is_deepinvs(gaussian, make_operator):
    operator, data = measured(make_operator, n=2)
    generators = image_generators(4, range(2))
    # Below deepinv's own least level, 0.001, so that the floor of our wrapper changes nothing.
    sampler = DeepinvSampler("DPS", None, 8, 1e-4, CHOICES["DPS"][2])
    draw = sampler(gaussian, Likelihood.of(operator, data), generators)
    for i in range(2):
        physics = Inpainting(img_size=SHAPE, mask=data.params["mask"][i])
        physics.noise_model = GaussianNoise(0.1)
        seed = int(torch.randint(2**62, (1,), generator=image_generators(4, [i])[0]))
        with scoped_rng(seed):
            reference = deepinv.sampling.DPS(
                AsDeepinv(gaussian), "ve", num_steps=8, weight=0.5, minus_one_one=False
            )
            expected = reference(data.y[i : i + 1], physics)
        torch.testing.assert_close(draw.x[i : i + 1], expected.float(), rtol=1e-4, atol=1e-5)


def test_moment_matching_of_deepinv_draws_from_the_posterior(gaussian, make_operator):
    operator, data = measured(make_operator, n=1)
    n = 80
    y, mask = data.y.expand(n, *SHAPE), {"mask": data.params["mask"].expand(n, 1, 2, 3)}
    sigma_y = data.sigma_y.expand(n)
    options = {"sigma_max": 20.0, "alpha": 1.0, "cg_max_iter": 6}
    sampler = DeepinvSampler("PosteriorDiffusion", "MomentMatchingDataFidelity", 40, 0.02, options)
    x = (
        sampler(gaussian, Likelihood(operator, y, mask, sigma_y), generator_for(0, "d"))
        .x.flatten(1)
        .double()
    )
    mean, covariance = gaussian.posterior(Likelihood.of(operator, data))
    error = (x.mean(0) - mean[0]).abs() / (covariance[0].diagonal() / n).sqrt()
    assert error.max() < 5
    ratio = x.var(0) / covariance[0].diagonal()
    assert ((ratio > 0.5) & (ratio < 1.6)).all()


def test_diffpir_of_deepinv_gets_the_rescaled_problem(gaussian, make_operator):
    """Its draw explains the measurement of [-1, 1] images to about the noise."""
    operator, data = measured(make_operator, sigma=0.05, n=20)
    sampler = DeepinvSampler("DiffPIR", None, 60, 0.01, {"lambda_": 1.0, "zeta": 0.3})
    draw = sampler(gaussian, Likelihood.of(operator, data), image_generators(0, range(20)))
    problem = Likelihood.of(operator, data)
    misfit = problem.residual(draw.x).square().sum() / data.params["mask"].sum()
    assert misfit < 4 * 0.05**2


def test_a_large_seed_of_one_generator_gives_different_images(gaussian, make_operator):
    operator, data = measured(make_operator, n=1)
    y, mask = data.y.expand(2, *SHAPE), {"mask": data.params["mask"].expand(2, 1, 2, 3)}
    sigma_y = data.sigma_y.expand(2)
    x = chosen("dps")(gaussian, Likelihood(operator, y, mask, sigma_y), generator_for(0, "d")).x
    assert not torch.allclose(x[0], x[1], atol=1e-3)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("DDRN", None, 9, 0.1, {}), UserError, r"unknown deepinv sampler 'DDRN'.*mean 'DDRM'"),
        (
            ("PosteriorDiffusion", "PiGDMDataFidelty", 9, 0.1, {}),
            UserError,
            r"unknown data_fidelity 'PiGDMDataFidelty'.*Did you mean 'PiGDMDataFidelity'",
        ),
        (("PosteriorDiffusion", None, 9, 0.1, {}), UserError, "unknown data_fidelity 'None'"),
        (("DPS", "DPSDataFidelity", 9, 0.1, {}), ValueError, "DPS brings its own"),
        (("DDRM", None, 9, 0.1, {"etta": 1}), UserError, r"unknown option.*'etta'.*mean 'eta"),
        (("DPS", None, 9, 0.1, {"denoiser": 1}), UserError, "unknown option of deepinv's DPS"),
        (("DPS", None, 1, 0.1, {}), ValueError, "steps=1; allowed: at least 2"),
        (("DPS", None, 9, 0.0, {}), ValueError, r"sigma_min=0\.0; allowed: above 0"),
    ],
)
def test_a_mistake_is_refused_with_what_is_allowed(arguments, error, message):
    with pytest.raises(error, match=message):
        DeepinvSampler(*arguments)


def test_needs_are_refused_by_name(gaussian, make_operator):
    operator, data = measured(make_operator, sigma=0)
    call = (gaussian, Likelihood.of(operator, data), generator_for(0, "d"))
    for choice in ("DiffPIR", "mmps", "pigdm"):
        with pytest.raises(ValueError, match="needs noise: it divides by sigma_y"):
            chosen(choice)(*call)
    operator.capabilities = operator.capabilities - {"svd"}
    with pytest.raises(ValueError, match=r"DDRM needs a cheap singular value decomposition"):
        chosen("DDRM")(*call)


def test_a_result_that_is_not_finite_is_an_error(make_operator):
    operator, data = measured(make_operator)
    call = (Likelihood.of(operator, data), generator_for(0, "d"))
    with pytest.raises(ValueError, match="returned NaN or infinity for image 0"):
        chosen("DDRM")(lambda x, sigma: x / 0, *call)


def test_the_yaml_takes_a_class_and_its_options():
    config = compose(
        ["method=naive", "posterior=deepinv", "posterior.sampler=DDRM", "+posterior.options.eta=0"]
    )
    sampler = build(config["posterior"])
    assert (sampler.sampler, sampler.options) == ("DDRM", {"eta": 0})
