"""Calibration: exact posterior draws are calibrated, too sure and too unsure ones are told."""

import pytest
import torch

from cleanprior.evaluation.calibration import calibrate, open_pixels
from cleanprior.operators.likelihood import Likelihood

K = 8


def posterior_draws(gaussian, width=1.0, n=3000, k=K, sigma_y=0.2):
    """Truth, and k draws of its exact posterior given half of its noisy pixels, spread scaled."""
    generator = torch.Generator().manual_seed(0)

    def randn(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    mean, covariance = gaussian.mean, gaussian.covariance
    seen = torch.tensor([0, 2, 3])
    x = mean + randn(n, 6) @ torch.linalg.cholesky(covariance).T
    y = x[:, seen] + sigma_y * randn(n, 3)
    gain = covariance[:, seen] @ torch.linalg.inv(
        covariance[seen][:, seen] + sigma_y**2 * torch.eye(3, dtype=torch.float64)
    )
    centre = mean + (y - mean[seen]) @ gain.T
    root = torch.linalg.cholesky(covariance - gain @ covariance[seen])
    drawn = centre + width * randn(k, n, 6) @ root.T
    return drawn.reshape(k, n, 1, 2, 3), x.reshape(n, 1, 2, 3)


def everywhere(x):
    return torch.ones_like(x, dtype=torch.bool)


@pytest.mark.parametrize("k", [2, 8])
def test_exact_posterior_draws_are_calibrated(gaussian, k):
    """18,000 pixels: the ratio within 2 %, coverage within 1 % (se about .3 %), flat ranks."""
    drawn, x = posterior_draws(gaussian, k=k)
    found = calibrate(drawn, x, everywhere(x))
    assert found.spread_ratio == pytest.approx(1, abs=0.02)
    assert abs(found.spread_ratio - 1) < 4 * found.spread_ratio_se
    assert found.coverage == pytest.approx(0.9, abs=0.01)
    assert len(found.ranks) == k + 1
    assert sum(found.ranks) == pytest.approx(1)
    assert found.rank_deviation < 0.02


def test_too_narrow_draws_are_below_and_too_wide_ones_above(gaussian):
    """The closed form: spread w s against error (1 + w^2 / k) s^2, both corrected for k."""
    for width in (0.5, 2.0):
        drawn, x = posterior_draws(gaussian, width)
        found = calibrate(drawn, x, everywhere(x))
        expected = width * ((1 + 1 / K) / (1 + width**2 / K)) ** 0.5
        assert found.spread_ratio == pytest.approx(expected, rel=0.02)
        assert (found.coverage < 0.8) == (width < 1)
        assert found.rank_deviation > 0.1
        edges = found.ranks[0] + found.ranks[-1]
        assert (edges > 2 / (K + 1)) == (width < 1)


def test_a_shift_is_told_by_the_ranks(gaussian):
    drawn, x = posterior_draws(gaussian)
    found = calibrate(drawn + 0.3, x, everywhere(x))
    assert found.ranks[0] > 2 * found.ranks[-1]
    assert found.spread_ratio < 0.95


def test_the_standard_error_is_the_spread_between_sets_of_images(gaussian):
    """30 sets of 100 images: the mean of the errors against the standard deviation, within 40 %."""
    drawn, x = posterior_draws(gaussian)
    sets = [
        calibrate(drawn[:, i : i + 100], x[i : i + 100], everywhere(x[:100]))
        for i in range(0, 3000, 100)
    ]
    ratios = torch.tensor([s.spread_ratio for s in sets])
    errors = torch.tensor([s.spread_ratio_se for s in sets])
    assert errors.mean().item() == pytest.approx(ratios.std().item(), rel=0.4)


def test_only_open_pixels_count(gaussian):
    drawn, x = posterior_draws(gaussian, n=500)
    is_open = everywhere(x)
    is_open[..., 0] = False
    whole = calibrate(drawn, x, is_open)
    drawn[..., 0] = 100
    assert calibrate(drawn, x, is_open) == whole


def test_ties_are_split_among_their_ranks():
    """Truth 0; samples 0 and 1: it may stand first or second. Samples -1 and 1: second."""
    drawn = torch.tensor([[0.0, -1.0], [1.0, 1.0]]).reshape(2, 2, 1, 1, 1)
    x = torch.zeros(2, 1, 1, 1)
    assert calibrate(drawn, x, everywhere(x)).ranks == [0.25, 0.75, 0]


def test_what_cannot_be_calibrated_says_why(gaussian):
    drawn, x = posterior_draws(gaussian, n=10)
    with pytest.raises(ValueError, match="all alike"):
        calibrate(drawn[:1].expand(4, -1, -1, -1, -1), x, everywhere(x))
    with pytest.raises(ValueError, match="at least 2"):
        calibrate(drawn[:1], x, everywhere(x))
    with pytest.raises(ValueError, match="no pixel open"):
        calibrate(drawn, x, ~everywhere(x))


def test_open_pixels_are_those_that_the_measurement_does_not_determine(make_operator):
    generator = torch.Generator().manual_seed(0)
    clean, noisy = torch.zeros(5), torch.full((5,), 0.1)
    masks = make_operator("inpainting", (1, 8, 8))
    params = masks.draw(5, generator)
    expected = params["mask"] == 0
    assert 0.3 < expected.float().mean() < 0.7
    y = torch.zeros(5, 1, 8, 8)
    assert torch.equal(open_pixels(Likelihood(masks, y, params, clean), generator), expected)
    assert open_pixels(Likelihood(masks, y, params, noisy), generator).all()
    coarse = make_operator("downsampling", (1, 8, 8), "sigma=0.0")
    assert open_pixels(Likelihood(coarse, y, {}, clean), generator).all()
    identity = make_operator("denoising", (1, 8, 8), "sigma=0.0")
    assert not open_pixels(Likelihood(identity, y, {}, clean), generator).any()
