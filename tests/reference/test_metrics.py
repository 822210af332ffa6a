"""Metrics against closed forms and independent references; features; the protocol."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from skimage.metrics import structural_similarity

from cleanprior.data import CleanData, Measurements
from cleanprior.errors import UserError
from cleanprior.evaluation.metrics.features import Classifier, Pixels, choose
from cleanprior.evaluation.metrics.restoration import (
    consistency,
    frechet_distance,
    psnr,
    ssim,
    ssim_window,
)
from cleanprior.operators.likelihood import Likelihood


def test_psnr_of_a_constant_offset_is_its_closed_form() -> None:
    x = torch.zeros(3, 2, 8, 8)
    for d in (0.1, 0.5):
        expected = 20 * math.log10(2 / d)
        assert torch.allclose(psnr(x + d, x), torch.tensor(expected, dtype=torch.float64))


def test_psnr_clips_to_the_range_of_images() -> None:
    truth = torch.ones(1, 1, 4, 4)
    assert psnr(truth + 5, truth).item() == pytest.approx(10 * math.log10(4 / 1e-12))


def test_psnr_of_noise_is_20_db() -> None:
    """baselines.md: sigma = 0.2 on a constant-0 image, unclipped in effect (5 sigma inside)."""
    noise = 0.2 * torch.randn(400, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    assert psnr(noise, torch.zeros_like(noise)).mean().item() == pytest.approx(20.0, abs=0.05)


@pytest.mark.parametrize("side", [8, 12, 28])
def test_ssim_equals_scikit_image(side: int) -> None:
    generator = torch.Generator().manual_seed(side)
    truth = torch.rand(2, 1, side, side, generator=generator) * 2 - 1
    x = (truth + 0.3 * torch.randn(truth.shape, generator=generator)).clamp(-1, 1)
    window = ssim_window(side, side)
    sigma = 1.5 if window == 11 else (window - 1) / 2 / 3.5
    for i in range(2):
        expected = structural_similarity(
            x[i, 0].double().numpy(),
            truth[i, 0].double().numpy(),
            gaussian_weights=True,
            sigma=sigma,
            truncate=3.5,
            use_sample_covariance=False,
            data_range=2.0,
        )
        assert ssim(x, truth)[i].item() == pytest.approx(expected, abs=1e-6)


def test_consistency_is_the_noise_level_for_the_truth(digits_data, make_operator) -> None:
    operator = make_operator("inpainting", (1, 8, 8), "sigma=0.3")
    x = digits_data.train
    data = Measurements.draw(x, operator, 0, "train")
    found = consistency(x, Likelihood.of(operator, data)).square().mean().sqrt().item()
    assert found == pytest.approx(0.3, rel=0.02)


def test_frechet_distance_is_the_closed_form_of_gaussians() -> None:
    rng = np.random.default_rng(0)
    a = rng.standard_normal((400, 5)) @ rng.standard_normal((5, 5))
    b = rng.standard_normal((300, 5)) @ rng.standard_normal((5, 5)) + 1
    ca, cb = np.cov(a.T), np.cov(b.T)
    root = scipy.linalg.sqrtm(ca @ cb).real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(ca + cb - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)


def test_frechet_distance_of_a_set_with_itself_is_zero_in_any_order() -> None:
    rng = np.random.default_rng(1)
    a = rng.standard_normal((200, 8))
    b = rng.standard_normal((200, 8)) * 2
    assert frechet_distance(a, a) < 1e-6
    assert frechet_distance(a, b[::-1]) == pytest.approx(frechet_distance(a, b), rel=1e-9)
    scaled = frechet_distance(a, 2 * a + 3)
    spread = np.trace(np.cov(a.T))
    mean = ((a.mean(0) + 3) ** 2).sum()
    assert scaled == pytest.approx(mean + spread, rel=1e-6)


def test_frechet_distance_refuses_what_it_cannot_compute() -> None:
    with pytest.raises(ValueError, match="needs 2 samples"):
        frechet_distance(np.zeros((1, 3)), np.zeros((5, 3)))
    with pytest.raises(ValueError, match="NaN"):
        frechet_distance(np.full((3, 2), np.nan), np.zeros((5, 2)))


def test_the_classifier_is_good_cached_and_the_same_each_time(digits_data, tmp_path) -> None:
    first = Classifier.of(digits_data, tmp_path)
    assert first.accuracy > 0.95
    (file,) = tmp_path.glob("*.safetensors")
    before = file.stat().st_mtime_ns
    again = Classifier.of(digits_data, tmp_path)
    assert file.stat().st_mtime_ns == before
    assert np.array_equal(first(digits_data.test), again(digits_data.test))


def test_features_fall_back_on_nothing_silently(digits_data) -> None:
    bare = CleanData("bare", digits_data.train, digits_data.test)
    assert isinstance(choose("auto", bare, None), Pixels)
    assert "pixels" in choose("auto", bare, None).name
    with pytest.raises(UserError, match="features=classifier needs labels"):
        choose("classifier", bare, None)
    with pytest.raises(UserError, match="allowed: auto, classifier, pixels"):
        choose("vgg", bare, None)
