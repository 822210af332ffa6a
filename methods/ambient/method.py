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
  scored (``hidden_weight``, a number or ``auto``: 1/q of the operator, at most
  ``hidden_weight_cap``);
- A-tilde is redrawn at every step (``resample_further=false`` fixes it for each image);
- no gated convolutions (``gate=single``; ``official_double``: the authors' sigmoid of a sigmoid);
- the loss is a mean over observed entries (``reduction=sum``: a sum over pixels, mean over images,
  with which a clipped gradient is a direction only);
- no augmentation, or a flip of measurement and mask together (``augment=joint_flip``);
- boxes of A and B do not overlap (``operator.overlap=true``);
- the sampler does not clip (``clip=static``: D cut to [-1, 1], which is what the percentile of 0.99
  in the authors' "dynamic" thresholding amounts to); its masks come from the generator it is given;
- guidance: see :mod:`cleanprior.methods.ambient.guidance` (``guidance_norm=official``,
  ``average_masks``);
- operators that are not masks of pixels: the input is :math:`\tilde A^\top\tilde A x_t`, computed
  from y, with a descriptor of A-tilde as condition where there is one, and :math:`A^\top A h` is
  compared with :math:`A^\top y` (the recipe of Ambient Diffusion Posterior Sampling); where y is
  larger than x, as several coils make it, :math:`A h` is compared with y itself, since A^T would
  square how ill-conditioned they are (``residual=image`` or ``measurement`` chooses). Rows that
  A-tilde erased have ``hidden_weight``. The minimiser is the same. Preconditioning is EDM's on the
  whole image, as hidden directions are no pixels;
- noisy measurements are refused: the loss is unbiased without noise alone (``noise=ignore`` trains
  on them all the same, as Aali et al. do on scans);
- an operator under which some direction is never supervised is refused before training
  (``identifiability``).

Without an option here, because it needs what no method is given: augmentation of the clean image
before its mask (x), the logged loss on pixels that were never measured (x), class-conditional
networks (labels; measurements carry none). The authors' six output channels, of which three are
used, and their unseeded masks have none either: they change no result that one could want.

References:
    Ambient Diffusion: Learning Clean Distributions from Corrupted Data (Daras et al., 2023),
    arXiv:2305.19256
    Ambient Diffusion Posterior Sampling (Aali et al., 2024), arXiv:2403.08728
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Generator, Tensor, nn
from typing_extensions import override

from cleanprior.config.checks import check_choice
from cleanprior.data import Batch
from cleanprior.diffusion.denoiser import Denoise, Denoiser, draw_sigma, edm_weight, per_image
from cleanprior.diffusion.posterior import Draw
from cleanprior.diffusion.samplers import LevelledSampler, Sampler
from cleanprior.operators import Params
from cleanprior.operators.base import take
from cleanprior.seeding import generator_for
from cleanprior.training import DenoiserMethod, Loss, Problem, Route, View, Warning

from .further import flip_together, hidden_share
from .guidance import NORMS, Guidance
from .identifiability import weakest

#: Eigenvalues below this are zeros with rounding.
ZERO = 1e-6
#: What the denoiser and the gates of the core call the choices of a configuration.
PRECONDITIONINGS = {"split": "split", "ambient_official": "scaled_condition"}
GATES = {"none": "none", "single": "single", "official_double": "double"}
CHOICES = {
    "preconditioning": tuple(PRECONDITIONINGS),
    "identifiability": ("refuse", "warn", "off"),
    "gate": tuple(GATES),
    "reduction": ("mean", "sum"),
    "augment": ("none", "joint_flip"),
    "guidance_norm": NORMS,
    "clip": ("none", "static"),
}

#: What is compared under operators that are not masks of pixels: A^T A h and A^T y, or A h and y.
RESIDUALS = ("image", "measurement")


def hidden_block(mask: Tensor) -> str:
    """Describe where a mask (c, h, w) is 0: ``rows 2-4, columns 3-5`` (inclusive, from 0)."""
    hidden = (mask == 0).any(0)
    rows, columns = hidden.any(1).nonzero().flatten(), hidden.any(0).nonzero().flatten()
    return f"rows {rows[0]}-{rows[-1]}, columns {columns[0]}-{columns[-1]}"


@dataclass(kw_only=True)
class Ambient(DenoiserMethod):
    """Ambient Diffusion for noise-free random operators with a further corruption.

    Arguments:
        needs: See :class:`cleanprior.training.Method`.
        delta: Probability of erasing an observed pixel again, in (0, 1). Boxes, Gaussian rows and
            MRI have further corruptions of their own and do not use it.
        preconditioning: ``split`` or ``ambient_official``; for masks of pixels.
        hidden_weight: Weight of what A-tilde hides, in units of 1/sigma_data^2: a number above 0,
            or ``auto``.
        hidden_weight_cap: Largest weight that ``auto`` chooses, at least 1.
        gate: ``none``, ``single`` or ``official_double``.
        reduction: ``mean`` over observed entries, or ``sum`` over entries and mean over images.
        augment: ``none`` or ``joint_flip``; the latter for masks of pixels.
        resample_further: Redraw A-tilde at every step.
        one_step_sigma: Noise level at which the measurement is fed for one-step restoration.
        paste_observed: Make the one-step restoration agree with the measurement: copy known pixels,
            :math:`x + A^+(y - A x)` for other operators.
        identifiability: ``refuse`` an operator that leaves a direction unsupervised, ``warn``
            (the code ``rank`` beside the row), or ``off``.
        guidance_masks: M of reconstruction guidance (Eq. 3.4); below 2 there is no such row.
        guidance_weight: :math:`w_t`, the same at all levels; the penalty is a mean over pixels and
            masks. At 0 there is no such row.
        guidance_norm: ``mean`` or ``official``: half the sum over pixels and masks.
        average_masks: Guided steps go to the mean over the masks, not to the first one's image;
            with weight 0 too.
        clip: ``none``, or ``static``: what the denoiser returns inside these samplers is cut to
            [-1, 1].
        sampler: Sampler of the fixed-mask generation row; guidance takes its noise levels.
        residual: One of :data:`RESIDUALS`; None: ``measurement`` where y is larger than x.
        noise: ``ignore`` takes noisy measurements as if they were not, as Aali et al. do with
            scans; None refuses them.
    """

    gaps = "further"
    delta: float
    preconditioning: str
    hidden_weight: float | str
    hidden_weight_cap: float
    gate: str
    reduction: str
    augment: str
    resample_further: bool
    one_step_sigma: float
    paste_observed: bool
    identifiability: str
    guidance_masks: int
    guidance_weight: float
    guidance_norm: str
    average_masks: bool
    clip: str
    sampler: Sampler
    residual: str | None = None
    noise: str | None = None

    def __post_init__(self) -> None:
        if not 0 < self.delta < 1:
            raise ValueError(
                f"delta={self.delta}; allowed: above 0 and below 1 (at 0 hidden pixels are never "
                "scored and the method learns nothing about them)"
            )
        for key, allowed in CHOICES.items():
            check_choice(key, getattr(self, key), allowed)
        if self.residual is not None:
            check_choice("residual", self.residual, RESIDUALS)
        if self.noise is not None:
            check_choice("noise", self.noise, ("ignore",))
        weight = self.hidden_weight
        if not (weight == "auto" if isinstance(weight, str) else weight > 0):
            raise ValueError(f"hidden_weight={weight}; allowed: auto, or a number above 0")
        if not self.hidden_weight_cap >= 1:
            raise ValueError(f"hidden_weight_cap={self.hidden_weight_cap}; allowed: at least 1")
        if self.guidance_masks < 1:
            raise ValueError(f"guidance_masks={self.guidance_masks}; allowed: at least 1")
        if not self.guidance_weight >= 0:
            raise ValueError(f"guidance_weight={self.guidance_weight}; allowed: at least 0")
        if self.is_guided and not isinstance(self.sampler, LevelledSampler):
            raise ValueError(
                f"guidance takes the sampler's noise levels, and {type(self.sampler).__name__} has "
                "none; choose sampler=multistep or sampler=heun"
            )

    @property
    def is_guided(self) -> bool:
        """Whether several masks differ from the fixed-mask sampler."""
        return self.guidance_masks > 1 and (self.guidance_weight > 0 or self.average_masks)

    @cached_property
    def weight_of_hidden(self) -> float:
        """The weight of what A-tilde hides, units of 1/sigma_data^2; found once for ``auto``."""
        if not isinstance(self.hidden_weight, str):
            return self.hidden_weight
        generator = generator_for(0, "hidden_weight")
        share = hidden_share(self.problem.operator, self.delta, generator)
        return self.hidden_weight_cap if share == 0 else min(1 / share, self.hidden_weight_cap)

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

    @override
    def supports(self, problem: Problem) -> str | None:
        reason = super().supports(problem)
        has_pixels = "mask" in problem.operator.capabilities
        if reason is None and self.augment == "joint_flip" and not has_pixels:
            return (
                f"augment=joint_flip flips images with their masks; {problem.operator_name} has no "
                "mask of pixels; set method.augment=none"
            )
        if reason is None and self.identifiability == "refuse":
            return self.unsupervised(problem)
        return reason

    @override
    def warnings(self, problem: Problem) -> list[Warning]:
        found = super().warnings(problem)
        if self.identifiability == "warn" and self.unsupervised(problem) is not None:
            text = "some pixels are never supervised under this operator"
            found.append(Warning("rank", text))
        if problem.sigma_y > 0:
            found.append(Warning("noisy", "noise of the measurements is taken for signal"))
        return found

    @property
    def _has_pixels(self) -> bool:
        return "mask" in self.problem.operator.capabilities

    @override
    def build(self) -> None:
        if self.gate != "none":
            # In the problem's configuration, so that the saved prior is built with gates too.
            backbone = {**self.problem.backbone, "gate": GATES[self.gate]}
            self.problem = replace(self.problem, backbone=backbone)
        channels = self.problem.operator.description_channels
        preconditioning = PRECONDITIONINGS[self.preconditioning] if self._has_pixels else "edm"
        self.denoiser = self.problem.denoiser(channels, preconditioning)

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

    @override
    def loss(self, batch: Batch, generator: Generator, turn: str) -> Loss:
        operator, sd = self.problem.operator, self.denoiser.sigma_data
        further = self._further(batch, generator)
        if self.augment == "joint_flip":
            y, params, further = flip_together(batch.y, batch.params, further, generator)
            batch = replace(batch, y=y, params=params)
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
            weight = kept * edm_weight(sigma, sd) + (1 - kept) * self.weight_of_hidden / sd**2
        else:
            weight = edm_weight(sigma, sd)
        error = weight * seen * (denoised - batch.y) ** 2
        count = self._count(seen)
        kept = kept.expand_as(error)
        parts = {"kept": (error * kept).sum() / count, "erased": (error * (1 - kept)).sum() / count}
        return Loss(error.sum() / count, {k: v.detach() for k, v in parts.items()})

    def _count(self, seen: Tensor) -> Tensor | int:
        """Return what a sum of squares is divided by."""
        return len(seen) if self.reduction == "sum" else seen.sum().clamp_min(1)

    def _linear_loss(
        self,
        batch: Batch,
        further: Params,
        condition: Tensor | None,
        sigma: Tensor,
        generator: Generator,
    ) -> Loss:
        """Compare A^T A h with A^T y, or A h with y; kept and erased rows have their weights."""
        operator, sd = self.problem.operator, self.denoiser.sigma_data
        kept = operator.observed(batch.y, further)
        shape = (len(batch), *self.problem.image_shape)
        noise = torch.randn(shape, generator=generator).to(batch.y.device)
        measured = kept * batch.y + operator.A(per_image(sigma) * noise, further)
        denoised = self.denoiser(operator.A_adjoint(measured, further), sigma, condition)
        residual = operator.A(denoised, batch.params) - batch.y
        level = edm_weight(sigma, sd).sqrt().reshape(-1, *[1] * (batch.y.dim() - 1))
        erased = operator.observed(batch.y, batch.params) - kept
        weighted = [level * kept * residual, self.weight_of_hidden**0.5 / sd * erased * residual]
        is_larger = batch.y[0].numel() > denoised[0].numel()
        images = weighted
        if self.residual == "image" or (self.residual is None and not is_larger):
            images = [operator.A_adjoint(r, batch.params) for r in weighted]
        count = self._count(kept + erased)
        parts = {
            name: (image**2).sum().detach() / count
            for name, image in zip(("kept", "erased"), images, strict=True)
        }
        return Loss(((images[0] + images[1]) ** 2).sum() / count, parts)

    def routes(self, averaged: Mapping[str, nn.Module]) -> Sequence[Route]:
        """One-step restoration, and generation through fixed A-tilde (Eqs. 3.3 and 3.4)."""
        denoiser = averaged["denoiser"]
        assert isinstance(denoiser, Denoiser)
        operator = self.problem.operator

        def restore(batch: Batch, _generators: list[Generator]) -> Draw:
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
            return Draw(x, 1)

        def sample(n: int, generator: Generator) -> Tensor:
            through = self._through(denoiser, n, generator)
            noise = torch.randn((n, *self.problem.image_shape), generator=generator)
            return self.sampler(through, noise.to(_device(denoiser)), generator).cpu()

        def sample_guided(n: int, generator: Generator) -> Tensor:
            through = [self._through(denoiser, n, generator) for _ in range(self.guidance_masks)]
            noise = torch.randn((n, *self.problem.image_shape), generator=generator)
            assert isinstance(self.sampler, LevelledSampler)
            guidance = Guidance(self.guidance_weight, self.guidance_norm, self.average_masks)
            return guidance(through, noise.to(_device(denoiser)), self.sampler.levels).cpu()

        routes = [Route("one step", "fixed mask", restore, sample, kind="point")]
        if self.is_guided:
            verb = "guided by" if self.guidance_weight > 0 else "mean of"
            how = f"{verb} {self.guidance_masks} masks"
            reason = "guidance only samples"
            routes.append(Route(samples_by=how, sample=sample_guided, reason=reason))
        return routes

    @override
    def view(self, n: int, generator: Generator) -> View:
        """Draw one A-tilde for each of ``n`` images."""
        operator = self.problem.operator
        params = operator.draw(n, generator)
        drawn = operator.further(params, self.delta, generator)
        further = {k: v.to(self.device) for k, v in drawn.items()}

        def see(x: Tensor) -> Tensor:
            return operator.A(x, further)

        def show(x: Tensor) -> Tensor:
            return see(x) if self._has_pixels else operator.A_adjoint(see(x), further)

        zero = torch.zeros((n, *self.problem.image_shape), device=self.device)
        seen = operator.observed(see(zero), further)
        return View(show, see, seen, operator.describe(further, n))

    def _through(self, denoiser: Denoiser, n: int, generator: Generator) -> Denoise:
        """Draw one A-tilde for each of ``n`` images; return the denoiser behind it."""
        view = self.view(n, generator)

        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            denoised = denoiser(view.show(x), sigma, view.condition)
            return denoised.clamp(-1, 1) if self.clip == "static" else denoised

        return denoise


def _device(network: nn.Module) -> torch.device:
    return next(network.parameters()).device
