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
- the loss sees y only, never the clean image;
- operators that are not masks of pixels: the input is :math:`\tilde A^\top\tilde A x_t`, computed
  from y, with a descriptor of A-tilde as condition where there is one, and :math:`A^\top A h` is
  compared with :math:`A^\top y` (the recipe of Ambient Diffusion Posterior Sampling); rows that
  A-tilde erased have ``hidden_weight``. The minimiser is the same. Preconditioning is EDM's on the
  whole image, as hidden directions are no pixels;
- an operator under which some direction is never supervised is refused before training
  (``identifiability``).

References:
    Ambient Diffusion: Learning Clean Distributions from Corrupted Data (Daras et al., 2023),
    arXiv:2305.19256
    Ambient Diffusion Posterior Sampling (Aali et al., 2024), arXiv:2403.08728
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from cleanprior.data import Batch
from cleanprior.diffusion.denoiser import Denoise, Denoiser, draw_sigma, edm_weight, per_image
from cleanprior.diffusion.samplers import Heun, Sampler
from cleanprior.operators import Params
from cleanprior.operators.base import take
from cleanprior.operators.identifiability import weakest
from cleanprior.prior import Prior
from cleanprior.seeding import generator_for
from cleanprior.training import Loss, Method, Problem, Way

#: Eigenvalues below this are zeros with rounding.
ZERO = 1e-6


def hidden_block(mask: Tensor) -> str:
    """Describe where a mask (c, h, w) is 0: ``rows 2-4, columns 3-5`` (inclusive, from 0)."""
    hidden = (mask == 0).any(0)
    rows, columns = hidden.any(1).nonzero().flatten(), hidden.any(0).nonzero().flatten()
    return f"rows {rows[0]}-{rows[-1]}, columns {columns[0]}-{columns[-1]}"


@dataclass(kw_only=True)
class Ambient(Method):
    """Ambient Diffusion for noise-free random operators with a further corruption.

    Arguments:
        needs: See :class:`cleanprior.training.Method`.
        delta: Probability of erasing an observed pixel again, in (0, 1). Boxes, Gaussian rows and
            MRI have further corruptions of their own and do not use it.
        preconditioning: ``split`` or ``ambient_official``; for masks of pixels.
        hidden_weight: Weight of what A-tilde hides, in units of 1/sigma_data^2, above 0.
        resample_further: Redraw A-tilde at every step.
        one_step_sigma: Noise level at which the measurement is fed for one-step restoration.
        paste_observed: Make the one-step restoration agree with the measurement: copy known pixels,
            :math:`x + A^+(y - A x)` for other operators.
        identifiability: ``refuse`` an operator that leaves a direction unsupervised, ``warn``
            (the code ``rank`` beside the row), or ``off``.
        guidance_masks: M of reconstruction guidance (Eq. 3.4); below 2 there is no such row.
        guidance_weight: :math:`w_t`, the same at all levels; the penalty is a mean over pixels and
            masks. At 0 there is no such row.
        sampler: Sampler of the fixed-mask generation row; guidance takes its noise levels.
    """

    needs: Sequence[str] = ("FIXED", "FURTHER", "NOISE")
    delta: float
    preconditioning: str
    hidden_weight: float
    resample_further: bool
    one_step_sigma: float
    paste_observed: bool
    identifiability: str
    guidance_masks: int
    guidance_weight: float
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

        if self.identifiability not in ("refuse", "warn", "off"):
            raise ValueError(
                f"identifiability={self.identifiability!r}; allowed: refuse, warn, off"
            )
        if self.guidance_masks < 1:
            raise ValueError(f"guidance_masks={self.guidance_masks}; allowed: at least 1")
        if not self.guidance_weight >= 0:
            raise ValueError(f"guidance_weight={self.guidance_weight}; allowed: at least 0")
        if self.is_guided and not isinstance(self.sampler, Heun):
            raise ValueError("guidance takes the noise levels of sampler=heun; choose that one")

    @property
    def is_guided(self) -> bool:
        """Whether reconstruction guidance differs from the fixed-mask sampler."""
        return self.guidance_masks > 1 and self.guidance_weight > 0

    def unsupervised(self, problem: Problem) -> str | None:
        """Return the sentence on what the operator leaves unsupervised, or None."""
        operator = problem.operator
        found = weakest(operator, self.delta, generator_for(0, "identifiability"))
        if found is None or found[0] > ZERO:
            return None
        mask = operator.describe(found[1], 1) if "mask" in operator.capabilities else None
        what = "a direction" if mask is None else f"a pixel block ({hidden_block(mask[0])})"
        return (
            f"{self.name} cannot use {problem.operator_name}: this operator hides {what} under "
            "further corruption that no image compatible with it shows, so it is never supervised; "
            "set method.identifiability=warn to train all the same"
        )

    def supports(self, problem: Problem) -> str | None:  # noqa: D102
        reason = super().supports(problem)
        if reason is None and self.identifiability == "refuse":
            return self.unsupervised(problem)
        return reason

    def warning(self, problem: Problem) -> str:  # noqa: D102
        code = super().warning(problem)
        if self.identifiability == "warn" and self.unsupervised(problem) is not None:
            return f"{code}+rank" if code else "rank"
        return code

    @property
    def _has_pixels(self) -> bool:
        return "mask" in self.problem.operator.capabilities

    def build(self) -> None:  # noqa: D102
        channels = self.problem.operator.description_channels
        preconditioning = self.preconditioning if self._has_pixels else "edm"
        self.denoiser = self.problem.denoiser(channels, preconditioning)

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
        condition = operator.describe(further, len(batch))
        if not self._has_pixels:
            return self._linear_loss(batch, further, condition, sigma, generator)
        noise = torch.randn(batch.y.shape, generator=generator).to(batch.y.device)
        noisy = operator.A(batch.y + per_image(sigma) * noise, further)
        denoised = self.denoiser(noisy, sigma, condition)
        seen, kept = (
            operator.observed(batch.y, batch.params),
            operator.describe(further, len(batch)),
        )
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

    def _linear_loss(
        self,
        batch: Batch,
        further: Params,
        condition: Tensor | None,
        sigma: Tensor,
        generator: Generator,
    ) -> Loss:
        """Compare A^T A h with A^T y, rows of A-tilde and erased rows each with their weight."""
        operator, sd = self.problem.operator, self.denoiser.sigma_data
        kept = operator.observed(batch.y, further)
        shape = (len(batch), *self.problem.image_shape)
        noise = torch.randn(shape, generator=generator).to(batch.y.device)
        measured = kept * batch.y + operator.A(per_image(sigma) * noise, further)
        denoised = self.denoiser(operator.A_adjoint(measured, further), sigma, condition)
        residual = operator.A(denoised, batch.params) - batch.y
        level = edm_weight(sigma, sd).sqrt().reshape(-1, *[1] * (batch.y.dim() - 1))
        erased = operator.observed(batch.y, batch.params) - kept
        weighted = [level * kept * residual, self.hidden_weight**0.5 / sd * erased * residual]
        images = [operator.A_adjoint(r, batch.params) for r in weighted]
        count = (kept + erased).sum().clamp_min(1)
        parts = {
            name: (image**2).sum().detach() / count
            for name, image in zip(("kept", "erased"), images, strict=True)
        }
        return Loss(((images[0] + images[1]) ** 2).sum() / count, parts)

    def prior(self, averaged: Mapping[str, nn.Module]) -> Prior | None:  # noqa: D102
        return self.make_prior(averaged["denoiser"])

    def ways(self, averaged: Mapping[str, nn.Module]) -> Sequence[Way]:
        """One-step restoration, and generation through fixed A-tilde (Eqs. 3.3 and 3.4)."""
        denoiser = averaged["denoiser"]
        assert isinstance(denoiser, Denoiser)
        operator = self.problem.operator

        def restore(batch: Batch, generators: list[Generator]) -> tuple[Tensor, int]:
            level = torch.full((len(batch),), self.one_step_sigma, device=batch.y.device)
            condition = operator.describe(batch.params, len(batch))
            u = batch.y if self._has_pixels else operator.A_adjoint(batch.y, batch.params)
            with torch.no_grad():
                x = denoiser(u, level, condition)
            if self.paste_observed and self._has_pixels:
                seen = operator.observed(batch.y, batch.params)
                x = seen * batch.y + (1 - seen) * x
            elif self.paste_observed:
                x = x + operator.A_dagger(batch.y - operator.A(x, batch.params), batch.params)
            return x, 1

        def sample(n: int, generator: Generator) -> Tensor:
            through = self._through(denoiser, n, generator)
            noise = torch.randn((n, *self.problem.image_shape), generator=generator)
            return self.sampler(through, noise.to(_device(denoiser)), generator).cpu()

        def sample_guided(n: int, generator: Generator) -> Tensor:
            through = [self._through(denoiser, n, generator) for _ in range(self.guidance_masks)]
            noise = torch.randn((n, *self.problem.image_shape), generator=generator)
            assert isinstance(self.sampler, Heun)
            return guided(
                through, noise.to(_device(denoiser)), self.sampler.levels, self.guidance_weight
            ).cpu()

        ways = [Way("one step; samples: fixed mask", restore, sample)]
        if self.is_guided:
            ways.append(Way(f"guided by {self.guidance_masks} masks", sample=sample_guided))
        return ways

    def _through(self, denoiser: Denoiser, n: int, generator: Generator) -> Denoise:
        """Draw one A-tilde for each of ``n`` images; return the denoiser behind it."""
        operator, device = self.problem.operator, _device(denoiser)
        params = operator.draw(n, generator)
        further = {
            k: v.to(device) for k, v in operator.further(params, self.delta, generator).items()
        }
        condition = operator.describe(further, n)

        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            u = operator.A(x, further)
            return denoiser(
                u if self._has_pixels else operator.A_adjoint(u, further), sigma, condition
            )

        return denoise


def _device(network: nn.Module) -> torch.device:
    return next(network.parameters()).device


def disagreement(through: Sequence[Denoise], x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    r"""Return D_1 and the gradient of :math:`\mathrm{mean}_{m>1}\|D_1 - D_m\|^2 / d` by x.

    Each image has its own penalty, a mean over its pixels and the other masks: neither the batch
    size nor M (with equal masks) changes its gradient.
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        first, *others = (denoise(x, sigma) for denoise in through)
        penalty = torch.stack([(first - o).square().flatten(1).mean(1) for o in others]).mean(0)
        (gradient,) = torch.autograd.grad(penalty.sum(), x)
    return first.detach(), gradient


@torch.no_grad()
def guided(
    through: Sequence[Denoise], noise: Tensor, levels: Sequence[float], weight: float
) -> Tensor:
    r"""Sample with reconstruction guidance (Eq. 3.4), its coefficients' sign corrected.

    .. math:: x' = \gamma x + (1 - \gamma) D_1 - w \nabla_x
        \mathrm{mean}_{m>1}\|D_1 - D_m\|^2, \quad \gamma = \sigma' / \sigma

    Arguments:
        through: The denoiser behind each of M operators A-tilde. With one, or ``weight`` 0, no
            gradient is taken.
        noise: Unit white noise.
        levels: Decreasing noise levels, the last 0; there the result is D_1.
        weight: w, at least 0.
    """
    x = noise.double() * levels[0]
    for sigma, lower in zip(levels[:-1], levels[1:], strict=True):
        level = torch.full((len(x),), sigma, device=x.device)
        if lower == 0:
            return through[0](x.float(), level)
        if len(through) == 1 or weight == 0:
            denoised, gradient = through[0](x.float(), level), None
        else:
            denoised, gradient = disagreement(through, x.float(), level)
        x = denoised + lower / sigma * (x - denoised)
        if gradient is not None:
            x = x - weight * gradient
    raise AssertionError("the levels end at 0")
