"""Reconstruction guidance: gradients of each image, its steps, its options."""

from dataclasses import replace

import pytest
import torch
from cleanprior.methods.ambient.guidance import Guidance

from cleanprior.diffusion.samplers import Heun, Sampler
from cleanprior.seeding import generator_for

PLAIN = Guidance(1.0)
FAMILIES = [("inpainting", (1, 8, 8)), ("box", (1, 8, 8)), ("compressed_sensing", (1, 4, 4))]
FAMILIES.append(("mri", (2, 8, 8)))


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
    first, gradient = PLAIN.disagreement([Shrink(0.5), Shrink(0.2)], x, level)
    torch.testing.assert_close(first, 0.5 * x)
    # mean over 16 pixels of (0.3 x)^2
    torch.testing.assert_close(gradient, 2 * 0.09 * x / 16)
    alone = torch.cat(
        [
            PLAIN.disagreement([Shrink(0.5), Shrink(0.2)], x[i : i + 1], level[:1])[1]
            for i in range(5)
        ]
    )
    torch.testing.assert_close(alone, gradient)
    _, more = PLAIN.disagreement([Shrink(0.5)] + 3 * [Shrink(0.2)], x, level)
    torch.testing.assert_close(more, gradient)
    _, none = PLAIN.disagreement([Shrink(0.5)] * 4, x, level)
    assert (none == 0).all()


@pytest.mark.parametrize(("masks", "weight"), [(1, 3.0), (3, 0.0)])
def test_without_guidance_no_gradient_is_taken(masks, weight):
    through = [Shrink(0.5) for _ in range(masks)]
    noise = torch.randn((2, 1, 4, 4), generator=generator_for(0, "x"))
    Guidance(weight)(through, noise, [1.0, 0.5, 0.0])
    assert through[0].graphs == [False, False]
    assert all(t.graphs == [] for t in through[1:])


def test_guided_steps_follow_the_corrected_equation():
    noise = torch.randn((2, 1, 4, 4), generator=generator_for(0, "x"))
    x = Guidance(1.5)([Shrink(0.5), Shrink(0.2)], noise, [2.0, 0.5, 0.0])
    start = 2 * noise
    step = 0.25 * start + 0.75 * 0.5 * start - 1.5 * 2 * 0.09 * start / 16
    torch.testing.assert_close(x, 0.5 * step)


@pytest.mark.parametrize(("name", "shape"), FAMILIES)
def test_the_guided_row_samples_every_family(ambient_on, name, shape):
    overrides = ["m=8"] if name == "compressed_sensing" else []
    method, _ = ambient_on(name, shape, *overrides, guidance_weight=0.5, guidance_masks=3)
    method.sampler = Heun(3, 0.002, 80.0, 7.0)
    (_, route) = method.routes({"denoiser": method.denoiser})
    assert (route.restores_by, route.samples_by) == ("", "guided by 3 masks")
    x = route.sample(2, generator_for(0, "s"))
    assert x.shape == (2, *shape)
    assert torch.isfinite(x).all()
    assert torch.equal(x, route.sample(2, generator_for(0, "s")))


class Straight(Sampler):
    """Denoises once: it has no noise levels to walk down."""

    def __call__(self, denoise, noise, generator=None):
        return denoise(noise, torch.ones(len(noise)))


def test_guidance_asks_for_a_sampler_with_noise_levels(ambient_on):
    method, _ = ambient_on("inpainting", (1, 8, 8))
    assert isinstance(replace(method, sampler=Straight()).sampler, Straight)
    with pytest.raises(ValueError, match="Straight has none; choose sampler=multistep or"):
        replace(method, sampler=Straight(), guidance_weight=0.5)


def test_the_official_penalty_is_half_the_sum_over_masks_and_pixels():
    x = torch.randn((5, 1, 4, 4), generator=generator_for(0, "x"))
    through = [Shrink(0.5), Shrink(0.2), Shrink(0.2), Shrink(0.2)]
    _, gradient = Guidance(1.0, "official").disagreement(through, x, torch.ones(5))
    torch.testing.assert_close(gradient, 3 * 0.09 * x)


@pytest.mark.parametrize("weight", [0.0, 1.5])
def test_averaged_steps_go_to_the_mean_over_masks(weight):
    noise = torch.randn((2, 1, 4, 4), generator=generator_for(0, "x"))
    through = [Shrink(0.5), Shrink(0.2)]
    x = Guidance(weight, is_averaged=True)(through, noise, [2.0, 0.5, 0.0])
    start = 2 * noise
    step = 0.25 * start + 0.75 * 0.35 * start - weight * 2 * 0.09 * start / 16
    torch.testing.assert_close(x, 0.35 * step)
