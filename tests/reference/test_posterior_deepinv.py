"""Operators and posterior samplers against deepinv's and azula's own, on the same denoiser."""

import math

import deepinv
import pytest
import torch
from azula.denoise import GaussianDenoiser
from azula.guidance.mmps import MMPSDenoiser
from azula.linalg.covariance import FullCovariance, IsotropicCovariance
from azula.noise import VESchedule
from deepinv.physics import BlurFFT, Inpainting
from deepinv.physics import Denoising as DenoisingPhysics
from deepinv.physics.functional.blur import gaussian_blur
from deepinv.sampling.noisy_datafidelity import DPSDataFidelity

from cleanprior.data import Measurements
from cleanprior.diffusion.posterior import DPS, MMPS
from cleanprior.operators.likelihood import Likelihood
from cleanprior.seeding import generator_for

SHAPE = (1, 2, 3)


@pytest.fixture
def images(digits_data):
    return digits_data.test[:5]


def test_inpainting_is_deepinvs(make_operator, images):
    operator = make_operator("inpainting", (1, 8, 8))
    params = operator.draw(5, generator_for(0, "p"))
    for i in range(5):
        physics = Inpainting(img_size=(1, 8, 8), mask=params["mask"][i])
        x, own = images[i : i + 1], {"mask": params["mask"][i : i + 1]}
        y = physics.A(x)
        assert torch.equal(operator.A(x, own), y)
        assert torch.equal(operator.A_adjoint(y, own), physics.A_adjoint(y))
        assert torch.equal(operator.A_dagger(y, own), physics.A_dagger(y))


def test_denoising_is_deepinvs(make_operator, images):
    operator, physics = make_operator("denoising", (1, 8, 8)), DenoisingPhysics()
    assert torch.equal(operator.A(images, {}), physics.A(images))
    assert torch.equal(operator.A_adjoint(images, {}), physics.A_adjoint(images))


@pytest.mark.parametrize("std", [0.7, 1.0])
def test_blur_is_deepinvs_with_its_own_gaussian_kernel(make_operator, images, std):
    kernel = gaussian_blur(sigma=(std, std))
    size = kernel.shape[-1]
    operator = make_operator("blur", (1, 8, 8), f"kernel_size={min(size, 7)}", f"blur_std={std}")
    physics = BlurFFT(img_size=(1, 8, 8), filter=kernel[..., : min(size, 7), : min(size, 7)])
    if size > 7:
        cut = (size - 7) // 2
        kernel = kernel[..., cut : cut + 7, cut : cut + 7]
        physics = BlurFFT(img_size=(1, 8, 8), filter=kernel / kernel.sum())
    torch.testing.assert_close(operator.A(images, {}), physics.A(images), rtol=1e-4, atol=1e-5)
    y = physics.A(images)
    torch.testing.assert_close(
        operator.A_adjoint(y, {}), physics.A_adjoint(y), rtol=1e-4, atol=1e-5
    )


class AsDeepinv(deepinv.models.Denoiser):
    """The Gaussian denoiser in deepinv's convention."""

    def __init__(self, gaussian):
        super().__init__()
        self.gaussian = gaussian

    def forward(self, x, sigma, **_):
        return self.gaussian(x, torch.as_tensor(sigma).flatten().expand(len(x)))


@pytest.fixture
def masked(make_operator, gaussian):
    operator = make_operator("inpainting", SHAPE, "p=0.3", "sigma=0.1")
    data = Measurements.draw(
        0.5 * torch.randn((6, *SHAPE), generator=generator_for(0, "x")), operator, 1, "train"
    )
    x = torch.randn((6, *SHAPE), generator=generator_for(0, "t"))
    return operator, data, x


@pytest.mark.parametrize("sigma", [0.1, 1.0, 5.0])
def test_dps_guidance_is_deepinvs(gaussian, masked, sigma):
    """Their ``norm`` is ours; their ``annealed`` is our ``squared`` at another variance."""
    operator, data, x = masked
    physics = Inpainting(img_size=SHAPE, mask=data.params["mask"])
    physics.noise_model = deepinv.physics.GaussianNoise(0.1)
    problem = Likelihood.of(operator, data)
    annealed = (0.1**2 + sigma**2) / 0.1**2
    for ours, theirs, factor in (("norm", "norm", 1.0), ("squared", "annealed", annealed)):
        fidelity = DPSDataFidelity(denoiser=AsDeepinv(gaussian), guidance=theirs)
        expected = factor * fidelity.grad(x.clone(), data.y, physics, sigma)
        sampler = DPS(2, 0.1, 1.0, 7.0, 1.0, 1.0, False, ours)
        _, found = sampler.gradient(gaussian, x, sigma, problem)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * factor)


@pytest.mark.parametrize("sigma", [0.05, 0.5, 5.0])
def test_the_mmps_mean_is_azulas(gaussian, masked, sigma):
    """Both converged; azula works on one operator at a time and on flat vectors."""
    operator, data, x = masked
    low, high = 0.01, 10.0
    schedule = VESchedule(low, high)
    t = torch.tensor((math.log(sigma) - math.log(low)) / (math.log(high) - math.log(low)))
    values, vectors = torch.linalg.eigh(gaussian.covariance)
    law = GaussianDenoiser(gaussian.mean, FullCovariance(vectors, values), schedule)
    problem = Likelihood.of(operator, data)
    sampler = MMPS(2, 0.1, 1.0, 7.0, 1.0, 12, 1e-8, float("inf"), 0.0)
    ours, _ = sampler.guide(gaussian, x, sigma, problem)
    for i in range(6):
        seen = data.params["mask"][i].flatten().bool()
        if not seen.any():
            continue
        y = data.y[i].flatten()[seen].double()
        theirs = MMPSDenoiser(
            law,
            y[None],
            lambda v, seen=seen: v[..., seen],
            IsotropicCovariance(torch.tensor(0.01, dtype=torch.float64)),
            solver="cg",
            iterations=12,
        )
        expected = theirs(x[i].flatten()[None].double(), t.double()).mean
        torch.testing.assert_close(ours[i].flatten().double(), expected[0], rtol=1e-3, atol=1e-4)
