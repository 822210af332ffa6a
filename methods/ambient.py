r"""Ambient Diffusion: corrupt the measurements further, score on everything that was seen.

Objective (Eq. 3.2): :math:`J = \mathbb E\,\|A (h(\tilde A x_t, \tilde A, \sigma) - x)\|^2`, with
:math:`\tilde A = B A`, :math:`A x = y` and :math:`\tilde A x_t = B y + \sigma \tilde A n`. If
:math:`E[A^\top A \mid \tilde A]` has full rank, the unique minimiser is
:math:`E[x \mid \tilde A x_t, \tilde A]` (Theorem 4.1). Any positive weight that depends only on
:math:`(\tilde A, \sigma, \mathrm{pixel})` keeps the minimiser.

Differences from the paper and the authors' code, each with its option:

- the mask enters at unit scale after input scaling, and hidden pixels bypass EDM's skip and output
  scaling (``preconditioning=split``; ``ambient_official`` restores the authors' form, in which the
  weight of hidden pixels is unbounded as sigma -> 0);
- hidden pixels are weighted by about 1/q, q the probability that a pixel hidden by A-tilde is
  scored (``hidden_weight``);
- A-tilde is redrawn at every step (``resample_further=false`` fixes it for each image);
- the loss sees y only, never the clean image.

References:
    Ambient Diffusion: Learning Clean Distributions from Corrupted Data (Daras et al., 2023),
    arXiv:2305.19256
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from cleanprior.data import Batch
from cleanprior.diffusion.denoiser import Denoiser, draw_sigma, edm_weight, per_image
from cleanprior.diffusion.samplers import Sampler
from cleanprior.operators import Params
from cleanprior.operators.base import take
from cleanprior.prior import Prior
from cleanprior.seeding import generator_for
from cleanprior.training import Loss, Method, Way


@dataclass(kw_only=True)
class Ambient(Method):
    """Ambient Diffusion for noise-free random masks.

    Arguments:
        needs: See :class:`cleanprior.training.Method`.
        delta: Probability of erasing an observed pixel again, in (0, 1).
        preconditioning: ``split`` or ``ambient_official``.
        hidden_weight: Weight of pixels hidden by A-tilde, in units of 1/sigma_data^2, above 0.
        resample_further: Redraw A-tilde at every step.
        one_step_sigma: Noise level at which the measurement is fed for one-step restoration.
        paste_observed: Copy known pixels into the one-step restoration.
        sampler: Sampler of the fixed-mask generation row.
    """

    needs: Sequence[str] = ("FIXED", "FURTHER", "MASK", "NOISE")
    delta: float
    preconditioning: str
    hidden_weight: float
    resample_further: bool
    one_step_sigma: float
    paste_observed: bool
    sampler: Sampler

    def __post_init__(self) -> None:
        if not 0 < self.delta < 1:
            raise ValueError(
                f"delta={self.delta}; allowed: above 0 and below 1 (at 0 hidden pixels are never "
                "scored and the method learns nothing about them)"
            )
        if self.preconditioning not in ("split", "ambient_official"):
            raise ValueError(
                f"preconditioning={self.preconditioning!r}; allowed: split, ambient_official"
            )

    def build(self) -> None:  # noqa: D102
        channels = self.problem.operator.description_channels
        self.denoiser = self.problem.denoiser(channels, self.preconditioning)

    def networks(self) -> Mapping[str, nn.Module]:  # noqa: D102
        return {"denoiser": self.denoiser}

    def _further(self, batch: Batch, generator: Generator) -> Params:
        operator = self.problem.operator
        if self.resample_further:
            return operator.further(batch.params, self.delta, generator)
        rows = [
            operator.further(
                take(batch.params, slice(i, i + 1)),
                self.delta,
                generator_for(self.problem.seed, "further", image=int(number)),
            )
            for i, number in enumerate(batch.index)
        ]
        return {k: torch.cat([r[k] for r in rows]) for k in rows[0]}

    def loss(self, batch: Batch, generator: Generator, turn: str) -> Loss:  # noqa: D102
        operator, sd = self.problem.operator, self.denoiser.sigma_data
        further = self._further(batch, generator)
        sigma = draw_sigma(len(batch), generator, batch.y.device)
        noise = torch.randn(batch.y.shape, generator=generator).to(batch.y.device)
        noisy = operator.A(batch.y + per_image(sigma) * noise, further)
        mask = operator.describe(further, len(batch))
        denoised = self.denoiser(noisy, sigma, mask)
        seen, kept = operator.observed(batch.y, batch.params), mask
        assert kept is not None
        if self.preconditioning == "split":
            weight = kept * edm_weight(sigma, sd) + (1 - kept) * self.hidden_weight / sd**2
        else:
            weight = edm_weight(sigma, sd)
        error = weight * seen * (denoised - batch.y) ** 2
        count = seen.sum().clamp_min(1)
        kept = kept.expand_as(error)
        parts = {"kept": (error * kept).sum() / count, "erased": (error * (1 - kept)).sum() / count}
        return Loss(error.sum() / count, {k: v.detach() for k, v in parts.items()})

    def prior(self, averaged: Mapping[str, nn.Module]) -> Prior | None:  # noqa: D102
        return self.make_prior(averaged["denoiser"])

    def ways(self, averaged: Mapping[str, nn.Module]) -> Sequence[Way]:
        """One-step restoration, and generation through one fixed A-tilde an image (Eq. 3.3)."""
        denoiser = averaged["denoiser"]
        assert isinstance(denoiser, Denoiser)
        operator = self.problem.operator

        def restore(batch: Batch, generators: list[Generator]) -> tuple[Tensor, int]:
            level = torch.full((len(batch),), self.one_step_sigma, device=batch.y.device)
            mask = operator.describe(batch.params, len(batch))
            with torch.no_grad():
                x = denoiser(batch.y, level, mask)
            if self.paste_observed:
                seen = operator.observed(batch.y, batch.params)
                x = seen * batch.y + (1 - seen) * x
            return x, 1

        def sample(n: int, generator: Generator) -> Tensor:
            device = next(denoiser.parameters()).device
            params = operator.draw(n, generator)
            further = {
                k: v.to(device) for k, v in operator.further(params, self.delta, generator).items()
            }
            mask = operator.describe(further, n)

            def denoise(x: Tensor, sigma: Tensor) -> Tensor:
                return denoiser(operator.A(x, further), sigma, mask)

            noise = torch.randn((n, *self.problem.image_shape), generator=generator)
            return self.sampler(denoise, noise.to(device), generator).cpu()

        return [Way("one step; samples: fixed mask", restore, sample)]
