"""Noise levels of GSURE-Diffusion: EDM's law and the authors' schedule, above a floor."""

import math

import pytest
import torch
from cleanprior.methods.gsure import draw_official, draw_sigma_above, official_levels

from cleanprior.seeding import generator_for


@pytest.mark.parametrize("floor", [0.0, 1e-4, 0.2, 0.5, 5.0])
def test_levels_are_edms_above_their_floor(floor):
    n = 200_000
    sigma = draw_sigma_above(torch.full((n,), floor), generator_for(0, "s"))
    assert sigma.min() >= floor
    assert sigma.isfinite().all()
    below = torch.special.ndtr(torch.tensor((math.log(max(floor, 1e-9)) + 1.2) / 1.2)).item()
    cut = max(0.3, 2 * floor)
    at = torch.special.ndtr(torch.tensor((math.log(cut) + 1.2) / 1.2)).item()
    share = (sigma < cut).double().mean().item()
    assert share == pytest.approx((at - below) / (1 - below), abs=0.01)


@pytest.mark.parametrize("sigma_y", [0.01, 0.3])
def test_the_official_levels_begin_just_above_the_noise(sigma_y):
    levels = official_levels(sigma_y)
    assert len(levels) == 1000
    assert (levels.diff() > 0).all()
    assert levels[0].item() == pytest.approx(sigma_y / (1 - sigma_y**2) ** 0.5)
    # The last step alone adds variance 0.02 of what is left.
    kept = 1 / (1 + levels[-2:] ** 2)
    assert (kept[1] / kept[0]).item() == pytest.approx(0.98)


def test_official_draws_are_levels_above_the_floor_alike():
    levels = official_levels(0.01).float()
    n, floor = 100_000, 0.99999 * float(levels[500])
    drawn = draw_official(torch.full((n,), floor), 0.01, generator_for(0, "s"))
    assert torch.isin(drawn, levels).all()
    assert drawn.min() == levels[500]
    assert (drawn < levels[750]).double().mean().item() == pytest.approx(0.5, abs=0.01)
    above = torch.full((10,), 1e4)
    assert torch.equal(draw_official(above, 0.01, generator_for(0, "s")), above)
