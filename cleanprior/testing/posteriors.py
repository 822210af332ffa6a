"""What every posterior sampler promises."""

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Generator, Tensor

from ..config import build
from ..data.measurements import Measurements
from ..diffusion.denoiser import Denoise
from ..diffusion.posterior import Draw, PosteriorSampler, draw_in_chunks
from ..gaussian.dense import GaussianPrior
from ..operators.base import Operator
from ..operators.likelihood import Likelihood
from ..prior import image_generators
from .cards import check_card, composed
from .parts import make_operator, no_global_randomness, uniform


def gaussian_denoiser(operator: Operator) -> GaussianPrior:
    """Return the exact denoiser of white Gaussian images of an operator's shape."""
    d = torch.Size(operator.image_shape).numel()
    mean = torch.zeros(d, dtype=torch.float64)
    return GaussianPrior(mean, 0.25 * torch.eye(d, dtype=torch.float64), operator.image_shape)


def check_batches(
    make: Callable[[], PosteriorSampler],
    denoise: Denoise,
    data: Measurements,
    operator: Operator,
    chunks: tuple[int, ...] = (1, 3),
    seed: int = 4,
) -> Draw:
    """Check that an image depends on its measurement and its generator only.

    Not on the batch that it is in, nor on what was drawn before, nor on global randomness; the
    measurements stay as they are.

    Arguments:
        make: Makes the sampler.
        denoise: A denoiser.
        data: Measurements.
        operator: Their operator.
        chunks: Sizes of batches that are tried.
        seed: Seed of the images' generators.

    Returns:
        The draw of all measurements in one batch.
    """
    n = len(data)

    def draw(chunk: int) -> Draw:
        generators = image_generators(seed, range(n))
        return draw_in_chunks(make(), denoise, Likelihood.of(operator, data), generators, chunk)

    with no_global_randomness():
        together = draw(n)
    assert together.x.shape == (n, *operator.image_shape), "a draw has another shape"
    assert together.x.isfinite().all(), "a draw is not finite"
    assert not together.x.requires_grad, "a draw leaves a graph behind"
    for chunk in chunks:
        torch.testing.assert_close(draw(chunk).x, together.x, rtol=1e-4, atol=1e-5)
    assert torch.equal(draw(n).x, together.x), "the same generators give another draw"
    assert data._digest() == data.hash, "the measurements were changed"
    return together


def check_counts(
    sampler: PosteriorSampler,
    denoise: Denoise,
    likelihood: Likelihood,
    generator: Generator | list[Generator],
) -> Draw:
    """Check that a draw says how often it asked the denoiser, and went back through it.

    Returns:
        The draw.
    """
    counts = {"forward": 0, "backward": 0}

    def counted(x: Tensor, sigma: Tensor) -> Tensor:
        counts["forward"] += 1
        denoised = denoise(x, sigma)
        if denoised.requires_grad:

            def add(_gradient: Tensor) -> None:
                counts["backward"] += 1

            denoised.register_hook(add)
        return denoised

    with no_global_randomness():
        draw = sampler(counted, likelihood, generator)
    told = {"forward": draw.evaluations, "backward": draw.backwards}
    assert counts == told, f"it says {told} and it was {counts}"
    assert not draw.x.requires_grad, "a draw leaves a graph behind"
    return draw


class PosteriorContract:
    """Tests of one posterior sampler.

    Attributes:
        name: Its configuration.
        operators: Operators, with noise of level 0.1; the images have 1x4x4 pixels.
    """

    name: ClassVar[str]
    operators: ClassVar[tuple[str, ...]] = ("inpainting", "denoising")

    def make(self) -> PosteriorSampler:
        """Build the sampler."""
        sampler: PosteriorSampler = build(composed("posterior", self.name))
        return sampler

    def problem(self, operator: str) -> tuple[Operator, Measurements]:
        """Return an operator and four measurements."""
        made = make_operator(operator, (1, 4, 4), "sigma=0.1")
        return made, Measurements.draw(uniform((4, 1, 4, 4)), made, 0, "test")

    def test_the_yaml_has_a_key_for_every_argument(self) -> None:
        check_card("posterior", self.name)

    def test_an_image_does_not_depend_on_its_batch(self) -> None:
        for name in self.operators:
            operator, data = self.problem(name)
            check_batches(self.make, gaussian_denoiser(operator), data, operator)

    def test_evaluations_and_backward_passes_are_those_counted(self) -> None:
        for name in self.operators:
            operator, data = self.problem(name)
            denoise, generators = gaussian_denoiser(operator), image_generators(0, range(len(data)))
            check_counts(self.make(), denoise, Likelihood.of(operator, data), generators)

    def test_no_gradient_is_needed_from_outside(self) -> None:
        operator, data = self.problem(self.operators[0])
        generators = image_generators(0, range(len(data)))
        likelihood = Likelihood.of(operator, data)
        with torch.no_grad():
            draw = self.make()(gaussian_denoiser(operator), likelihood, generators)
        assert draw.x.isfinite().all()
