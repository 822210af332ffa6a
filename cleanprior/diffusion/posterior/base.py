"""What posterior samplers share: the interface, and the walk down the noise levels."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Generator, Tensor
from typing_extensions import override

from ...config.checks import check_choice, check_positive, check_share
from ...errors import UserError
from ...operators.base import Operator
from ...operators.likelihood import Likelihood
from ...seeding import randn_like
from ..denoiser import Denoise
from ..samplers import ancestral_step, exponential_step, noise_levels


@dataclass(frozen=True)
class Draw:
    """One posterior draw for each measurement.

    Attributes:
        x: Restorations, (b, c, h, w).
        evaluations: Forward passes of the denoiser for one image (NFE).
        backwards: Vector-Jacobian products of the denoiser for one image.
    """

    x: Tensor
    evaluations: int
    backwards: int = 0


class PosteriorSampler(ABC):
    """Draws from p(x|y): a batch of images, each on its own."""

    #: Whether it takes noise levels that differ between entries of y, as a diagonal covariance.
    takes_maps: ClassVar[bool] = False

    def check_noise(self, is_white: bool) -> None:
        """Check that the noise is one that the sampler knows.

        Arguments:
            is_white: Whether all entries of y have one level.

        Raises:
            UserError: They have not, and it needs one.
        """
        if not is_white and not self.takes_maps:
            raise UserError(
                f"posterior: {type(self).__name__} takes one noise level an image, and here it "
                "differs between entries of y (a map sigma_y): use mmps, pigdm, diffpir or dps"
            )

    @abstractmethod
    def __call__(
        self,
        denoise: Denoise,
        likelihood: Likelihood,
        generator: Generator | Sequence[Generator],
    ) -> Draw:
        """Draw one image from p(x|y) for each measurement.

        Arguments:
            denoise: The prior's denoiser.
            likelihood: The measurements with their operator, on the denoiser's device.
            generator: One for the batch, or one an image: then results do not depend on batching.
        """


@dataclass(eq=False)
class LevelSampler(PosteriorSampler):
    """Walks from white noise down decreasing noise levels, one denoiser evaluation a level.

    Arguments:
        steps: Number of noise levels.
        sigma_min: Lowest noise level, above 0.
        sigma_max: Highest noise level.
        rho: Exponent of the level spacing (EDM, Eq. 5); null for equal ratios.
    """

    steps: int
    sigma_min: float
    sigma_max: float
    rho: float | None

    def __post_init__(self) -> None:
        """Check the numbers and lay out the levels."""
        self.levels = noise_levels(self.steps, self.sigma_min, self.sigma_max, self.rho).tolist()

    def start(
        self, likelihood: Likelihood, generator: Generator | Sequence[Generator]
    ) -> Float[Tensor, "b c h w"]:
        """Draw the state at the highest level."""
        like = likelihood.y.new_empty(len(likelihood.y), *likelihood.operator.image_shape)
        return self.levels[0] * randn_like(like, generator)

    @abstractmethod
    def step(
        self,
        denoise: Denoise,
        x: Float[Tensor, "b c h w"],
        sigma: float,
        lower: float,
        likelihood: Likelihood,
        generator: Generator | Sequence[Generator],
    ) -> Float[Tensor, "b c h w"]:
        """Go from noise level ``sigma`` to ``lower``; at ``lower`` = 0 the result is the draw."""

    @abstractmethod
    def backwards_per_step(self, operator: Operator) -> int:
        """Return the vector-Jacobian products of the denoiser in one step."""

    @override
    def __call__(
        self,
        denoise: Denoise,
        likelihood: Likelihood,
        generator: Generator | Sequence[Generator],
    ) -> Draw:
        x = self.start(likelihood, generator)
        for sigma, lower in zip(self.levels[:-1], self.levels[1:], strict=True):
            x = self.step(denoise, x, sigma, lower, likelihood, generator)
        steps = len(self.levels) - 1
        return Draw(x, steps, steps * self.backwards_per_step(likelihood.operator))


@dataclass(eq=False)
class GuidedSampler(LevelSampler):
    """Replaces the denoised image by a posterior mean and walks on with it.

    Arguments:
        steps, sigma_min, sigma_max, rho: see :class:`LevelSampler`.
        walk: ``exponential`` (:func:`cleanprior.diffusion.samplers.exponential_step`: draws keep
            their variance in few steps) or ``ancestral`` (DDPM and DDIM steps of the papers: 24
            keep 0.6 of it).
        eta: 1 for the reverse diffusion, 0 for a deterministic walk.
        sigma_data: Standard deviation of images that an exponential step is exact for.

    Raises:
        ValueError: An unknown ``walk``, ``eta`` outside [0, 1], ``sigma_data`` not above 0.
    """

    eta: float
    walk: str = field(default="ancestral", kw_only=True)
    sigma_data: float = field(default=0.5, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("walk", self.walk, ("exponential", "ancestral"))
        check_share("eta", self.eta, "0 (deterministic) to 1 (reverse diffusion)")
        check_positive("sigma_data", self.sigma_data)

    @abstractmethod
    def guide(
        self,
        denoise: Denoise,
        x: Float[Tensor, "b c h w"],
        sigma: float,
        likelihood: Likelihood,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the posterior mean given x at this level, and a correction applied after the step.

        The correction is None for samplers that change only the mean.
        """

    @override
    def step(
        self,
        denoise: Denoise,
        x: Float[Tensor, "b c h w"],
        sigma: float,
        lower: float,
        likelihood: Likelihood,
        generator: Generator | Sequence[Generator],
    ) -> Float[Tensor, "b c h w"]:
        mean, correction = self.guide(denoise, x, sigma, likelihood)
        if self.walk == "ancestral":
            x = ancestral_step(x, mean, sigma, lower, self.eta, generator)
        else:
            x = exponential_step(x, mean, sigma, lower, self.eta, self.sigma_data, generator)
        return x if correction is None else x + correction


def level_of(x: Tensor, sigma: float) -> Float[Tensor, " b"]:
    """Return one noise level for each image, all ``sigma``."""
    return torch.full((len(x),), sigma, device=x.device)


def with_graph(denoise: Denoise, x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
    """Evaluate the denoiser with a graph from its input."""
    x = x.detach().requires_grad_()
    return x, denoise(x, level_of(x, sigma))


def norms(r: Tensor) -> Tensor:
    """Euclidean norm of each row, kept as a column for broadcasting."""
    return r.flatten(1).norm(dim=1)


def draw_in_chunks(
    sampler: PosteriorSampler,
    denoise: Denoise,
    likelihood: Likelihood,
    generators: Sequence[Generator],
    chunk: int,
    advance: Callable[[int], None] = lambda n: None,
) -> Draw:
    """Run a posterior sampler over many measurements; ``advance(n)`` is told after each chunk."""
    draws = []
    for start in range(0, len(likelihood), chunk):
        part = slice(start, start + chunk)
        some = likelihood.take(part)
        draws.append(sampler(denoise, some, generators[part]))
        advance(len(some))
    return Draw(torch.cat([d.x for d in draws]), draws[0].evaluations, draws[0].backwards)
