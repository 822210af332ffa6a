"""Channels beyond added noise: their laws in closed form, JPEG by another program, gradients."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from sklearn.datasets import load_sample_image

from cleanprior.config import noise as kinds
from cleanprior.config import registry
from cleanprior.config.building import build
from cleanprior.data.channels import Clipping, Erasing, Jpeg
from cleanprior.seeding import generator_for

N = 100_000
CLIPPING = Clipping(0.1, 0.05, 0.7)


def within(values, expected, errors=4.0):
    """Whether a mean is within four standard errors of what is expected."""
    values = values.double()
    return abs(values.mean().item() - expected) < errors * values.std().item() / len(values) ** 0.5


def photograph(size=64, channels=3):
    """Return parts of a photograph as a signal, (n, c, size, size)."""
    whole = torch.tensor(load_sample_image("china.jpg").copy()).permute(2, 0, 1) / 255
    parts = [whole[:, i : i + size, j : j + size] for i in (0, 128, 256) for j in (0, 192, 384)]
    x = torch.stack(parts)
    return x if channels == 3 else x.mean(1, keepdim=True)


# -- clipping ------------------------------------------------------------------------------------


@pytest.mark.parametrize("signal", (0.0, 0.1, 0.5, 0.68, 0.9))
def test_a_clipped_gaussian_has_its_mean_variance_and_shares(signal):
    r = CLIPPING.draw(torch.full((N, 1, 1, 1), signal), generator_for(0, "noise")).flatten()
    z = np.linspace(-9, 9, 400_001)
    clipped, density = np.clip(signal + 0.1 * z, 0.05, 0.7), stats.norm.pdf(z)
    assert within(r, np.trapezoid(clipped * density, z))
    square = np.trapezoid((clipped - signal) ** 2 * density, z)
    assert within((r - signal) ** 2, square)
    assert CLIPPING.variance(torch.tensor([signal])).item() == pytest.approx(square, rel=1e-4)
    for end, share in ((0.05, stats.norm.cdf), (0.7, stats.norm.sf)):
        found, exact = (r == torch.tensor(end)).float().mean().item(), share((end - signal) / 0.1)
        assert abs(found - exact) < 4 * (exact * (1 - exact) / N) ** 0.5 + 1e-6
    assert r.min() >= 0.05 and r.max() <= torch.tensor(0.7)


def test_the_variance_of_a_clipped_entry_is_that_of_a_uniform_signal():
    s = torch.rand(4 * N, 1, 1, 1, generator=generator_for(0, "signal"))
    r = CLIPPING.draw(s, generator_for(0, "noise"))
    error, told = ((r - s) ** 2).flatten(), CLIPPING.estimated(r).flatten()
    for end in (r.min(), r.max()):
        there = r.flatten() == end
        assert there.sum() > 10_000
        assert within(error[there], told[there][0].item())
    assert told[(r.flatten() > 0.3) & (r.flatten() < 0.4)].unique().item() == pytest.approx(0.01)
    assert told.mean().sqrt().item() == pytest.approx(error.mean().sqrt().item(), rel=0.02)
    assert Clipping(1e-3, 0.0, 1.0).estimated(torch.zeros(1)).item() == pytest.approx(
        2e-6 / 3, rel=0.1
    )


# -- erasing -------------------------------------------------------------------------------------


def erased(noise, n=4000, size=16, channels=3, seed=0):
    """Return what is recorded of signals of 2, of which no fill is one; where; the fills."""
    signal = torch.full((n, channels, size, size), 2.0)
    r = noise.draw(signal, generator_for(seed, "noise"))
    return r, r != 2


@pytest.mark.parametrize("shape", Erasing.SHAPES)
@pytest.mark.parametrize("p", (0.1, 0.5))
def test_a_share_is_erased_by_one_uniform_value_an_image(shape, p):
    r, where = erased(Erasing(p, shape))
    assert torch.equal(where, where[:, :1].expand_as(where)), "all channels alike"
    share = where[:, 0].flatten(1).double().mean(1)
    if shape == "pixels":
        assert within(share, p)
        assert share.std().item() == pytest.approx((p * (1 - p) / 256) ** 0.5, rel=0.1)
    else:
        assert (share - p).abs().max() < 0.04, "up to rounding"
        assert abs(share.mean().item() - p) < 0.01
    fills = torch.stack([image[image != 2].unique() for image in r]).squeeze(1)
    assert fills.shape == (4000,), "one value an image"
    assert stats.kstest(fills.numpy(), "uniform", method="asymp").pvalue > 0.01


def test_a_rectangle_is_one_of_any_place_and_shape():
    _, where = erased(Erasing(0.25, "rectangle"), channels=1)
    rows, columns = where[:, 0].any(2), where[:, 0].any(1)
    assert torch.equal(where[:, 0], rows[:, :, None] & columns[:, None])
    tall, wide = rows.sum(1), columns.sum(1)
    assert (rows[:, 1:] != rows[:, :-1]).sum(1).max() <= 2, "in one piece"
    ratio = tall / wide
    assert ratio.min() >= 0.4 and ratio.max() <= 2.4 and ratio.unique().numel() > 3
    assert abs(ratio.log().mean().item()) < 0.05
    top = rows.float().argmax(1)
    for height in tall.unique():  # from the first row to the last, each as often
        counts = top[tall == height].bincount(minlength=17 - height)
        assert len(counts) == 17 - height and stats.chisquare(counts).pvalue > 1e-3


def test_the_level_of_what_was_erased_is_told_by_what_is_left():
    noise = Erasing(0.4, "pixels")
    s = torch.rand(N // 4, 1, 2, 2, generator=generator_for(0, "signal")) ** 2
    r = noise.draw(s, generator_for(0, "noise"))
    assert within(((r - s) ** 2).mean((1, 2, 3)), noise.variance(s).mean().item())
    assert within(noise.unbiased(r).mean((1, 2, 3)), noise.variance(s).mean().item())


# -- JPEG ----------------------------------------------------------------------------------------


def by_pillow(signal, quality):
    """Encode and decode by Pillow, image by image."""
    found = []
    for image in (255 * signal.clamp(0, 1)).round().to(torch.uint8):
        pixels = image[0] if len(image) == 1 else image.permute(1, 2, 0)
        file = io.BytesIO()
        Image.fromarray(pixels.numpy()).save(file, "JPEG", quality=quality)
        decoded = torch.tensor(np.array(Image.open(file)))
        found.append(decoded[None] if len(image) == 1 else decoded.permute(2, 0, 1))
    return torch.stack(found).float() / 255


@pytest.mark.parametrize("quality", (1, 20, 100))
@pytest.mark.parametrize("channels", (1, 3))
def test_jpeg_is_that_of_another_program_bit_for_bit(channels, quality):
    signal = photograph(channels=channels) * 1.4 - 0.2  # beyond [0, 1], too
    noise = Jpeg(quality)
    r = noise.draw(signal, generator_for(0, "noise"))
    assert torch.equal(r, by_pillow(signal, quality))
    assert torch.equal(r, noise.draw(signal, generator_for(1, "noise")))
    assert torch.equal(r[3:4], noise.draw(signal[3:4], generator_for(0, "noise")))


@pytest.mark.parametrize("quality", (10, 30, 50, 90))
@pytest.mark.parametrize("what", ("digits", "grey", "colour"))
def test_jpegs_level_is_told_by_what_it_does_to_its_own_result(digits_data, what, quality):
    channels = 3 if what == "colour" else 1
    s = photograph(32, channels) if what != "digits" else (digits_data.train[:300] + 1) / 2
    noise = Jpeg(quality)
    r = noise.compressed(s)
    true = noise.variance(s).mean().sqrt().item()
    assert (r - s).square().mean().sqrt().item() == pytest.approx(true)
    assert 0.75 < noise.estimated(r).mean().sqrt().item() / true < 1.1
    assert (noise.compressed(r) - r).square().mean().sqrt().item() < 0.4 * true


# -- gradients -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", registry.options("noise"))
def test_what_is_declared_differentiable_has_the_gradient_of_a_difference(kind):
    """The derivative at fixed random numbers; where none is declared there is none."""
    card = {k: v for k, v in registry.read("noise", kind).items() if k != "about"}
    noise = build(card)
    signal = 0.1 + 0.8 * torch.rand(2, 1, 8, 8, generator=generator_for(0, "s")).double()
    weights = torch.randn(signal.shape, generator=generator_for(0, "w")).double()

    def recorded(s):
        return (weights * noise.draw(s, generator_for(0, "noise"))).sum()

    is_declared = "differentiable" in kinds.abilities(kind)
    followed = signal.clone().requires_grad_()
    value = recorded(followed)
    if not is_declared:
        found = torch.autograd.grad(value, followed)[0] if value.requires_grad else torch.zeros(1)
        assert not found.any()
        return
    (gradient,) = torch.autograd.grad(value, followed)
    step, direction = 1e-6, torch.randn(signal.shape, generator=generator_for(0, "d")).double()
    change = recorded(signal + step * direction) - recorded(signal - step * direction)
    expected = (change / (2 * step)).item()
    assert expected != 0
    assert (gradient * direction).sum().item() == pytest.approx(expected, rel=1e-4)
