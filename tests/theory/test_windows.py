"""A denoiser by windows: exact where pixels are independent, with the right spread."""

import pytest
import torch

from cleanprior.diffusion.posterior import MMPS
from cleanprior.diffusion.windows import Windows, starts
from cleanprior.errors import UserError
from cleanprior.operators.likelihood import Likelihood


@pytest.mark.parametrize(
    ("whole", "part", "overlap"),
    [(8, 8, 0.5), (9, 8, 0.5), (50, 8, 0.0), (64, 16, 0.75), (4096, 64, 0.5)],
)
def test_windows_cover_every_pixel_and_reach_both_ends(whole, part, overlap):
    found = starts(whole, part, overlap)
    assert found[0] == 0 and found[-1] == whole - part
    steps = [b - a for a, b in zip(found[:-1], found[1:], strict=True)]
    assert all(0 < s <= max(1, round(part * (1 - overlap))) for s in steps)


def white(x, sigma):
    """The exact denoiser of white Gaussian images of variance 1/4."""
    return x * 0.25 / (0.25 + sigma[:, None, None, None] ** 2)


def test_windows_of_a_pointwise_denoiser_are_that_denoiser():
    windows = Windows(white, (1, 8, 8), (1, 21, 30))
    x = torch.randn(3, 1, 21, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sigma = torch.tensor([0.1, 1.0, 5.0], dtype=torch.float64)
    torch.testing.assert_close(windows(x, sigma), white(x, sigma))
    # The graph reaches every pixel, through checkpoints too.
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(windows(x, sigma).sum(), x)
    expected = (0.25 / (0.25 + sigma**2))[:, None, None, None].expand_as(x)
    torch.testing.assert_close(gradient, expected)


def test_draws_keep_their_variance_where_windows_overlap(make_operator):
    shape = (1, 20, 20)
    operator = make_operator("denoising", shape, "sigma=0.5")
    n = 64
    generator = torch.Generator().manual_seed(1)
    x = 0.5 * torch.randn(n, *shape, generator=generator)
    y = x + 0.5 * torch.randn(n, *shape, generator=generator)
    likelihood = Likelihood(operator, y, {}, torch.full((n,), 0.5))
    from cleanprior.config import build, compose

    sampler = build(compose([])["posterior"])
    assert isinstance(sampler, MMPS)
    draws = sampler(Windows(white, (1, 8, 8), shape), likelihood, generator).x
    error = draws - y / 2  # the posterior mean; its variance is 1/8
    assert error.var().item() == pytest.approx(0.125, rel=0.1)
    by_place = error.var(0)[0]
    assert by_place.std() / by_place.mean() < 1.5 * (2 / n) ** 0.5  # no place stands out


def test_smaller_images_and_other_channels_are_refused():
    for shape in ((1, 7, 30), (3, 21, 30)):
        with pytest.raises(UserError, match=r"the prior makes \(1, 8, 8\)"):
            Windows(white, (1, 8, 8), shape)
