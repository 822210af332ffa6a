"""deepinv's own posterior samplers, on our priors, operators and generators."""

import copy
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import deepinv
import torch
from deepinv.optim import L2
from deepinv.physics import DecomposablePhysics, GaussianNoise, LinearPhysics
from torch import Generator, Tensor, nn
from typing_extensions import override

from ...config.checks import check_positive
from ...errors import unknown
from ...operators.base import Operator, Params
from ...operators.levels import is_white
from ...operators.likelihood import Likelihood
from ...seeding import scoped_rng
from ..denoiser import Denoise
from .base import Draw, PosteriorSampler

SAMPLERS = ("DDRM", "DPS", "DiffPIR", "PosteriorDiffusion")
FIDELITIES = ("DPSDataFidelity", "MomentMatchingDataFidelity", "PiGDMDataFidelity")
#: What divides by sigma_y.
NOISY_ONLY = ("DiffPIR", "MomentMatchingDataFidelity", "PiGDMDataFidelity")
#: Arguments that the wrapper sets itself.
OWN = ("self", "denoiser", "model", "data_fidelity", "device", "dtype", "rng", "verbose")


class DeepinvSampler(PosteriorSampler):
    """A class of ``deepinv.sampling``, run on one measurement at a time.

    Its samplers hold one operator and one noise level a call and draw from torch's global stream:
    each image gets a copy of the physics with its own parameters, and a global stream seeded from
    its generator and put back afterwards. Images stay in [-1, 1]; DiffPIR works in [0, 1] and is
    given the measurement, the denoiser and the noise of the rescaled image.

    Arguments:
        sampler: ``DDRM``, ``DPS``, ``DiffPIR`` or ``PosteriorDiffusion``, which here runs a
            variance-exploding diffusion with ancestral steps.
        data_fidelity: Guidance of ``PosteriorDiffusion``: ``DPSDataFidelity``,
            ``MomentMatchingDataFidelity`` or ``PiGDMDataFidelity``; null for the others.
        steps: Noise levels.
        sigma_min: The least noise level that the denoiser is asked for, above 0.
        options: Further arguments of the class, of the data fidelity and of
            ``VarianceExplodingDiffusion``, by their names in deepinv.

    Raises:
        UserError: An unknown class or option.
        ValueError: Numbers outside their range; when called, a sampler that needs noise or a
            decomposition where there is none, or a result that is not finite.

    References:
        DeepInverse: A Python package for solving imaging inverse problems with deep learning
        (Tachella et al., 2025), arXiv:2505.20160
    """

    def __init__(
        self,
        sampler: str,
        data_fidelity: str | None,
        steps: int,
        sigma_min: float,
        options: Mapping[str, Any],
    ) -> None:
        if sampler not in SAMPLERS:
            raise unknown("deepinv sampler", sampler, SAMPLERS)
        guided = sampler == "PosteriorDiffusion"
        if guided and data_fidelity not in FIDELITIES:
            raise unknown("data_fidelity", str(data_fidelity), FIDELITIES)
        if not guided and data_fidelity is not None:
            raise ValueError(
                f"data_fidelity={data_fidelity} is for sampler=PosteriorDiffusion; "
                f"{sampler} brings its own: set data_fidelity=null"
            )
        if steps < 2:
            raise ValueError(f"steps={steps}; allowed: at least 2")
        check_positive("sigma_min", sigma_min)
        self.sampler = sampler
        self.data_fidelity = data_fidelity
        self.steps = steps
        self.sigma_min = sigma_min
        self.options = dict(options)
        self._check_options()

    def _check_options(self) -> None:
        taken = {"DDRM": ("sigmas",), "DPS": ("num_steps",), "DiffPIR": ("max_iter", "sigma")}
        reserved = (*OWN, *taken.get(self.sampler, ()), "sigma_min")
        allowed = sorted({k for part in self._parts() for k in _arguments(part)} - set(reserved))
        if self.sampler == "DDRM":
            allowed.append("sigma_max")
        for key in self.options:
            if key not in allowed:
                raise unknown(f"option of deepinv's {self.sampler}", key, allowed)

    def _parts(self) -> list[Callable[..., Any]]:
        if self.sampler != "PosteriorDiffusion":
            return [getattr(deepinv.sampling, self.sampler)]
        assert self.data_fidelity is not None
        fidelity = getattr(deepinv.sampling, self.data_fidelity)
        return [fidelity, deepinv.sampling.VarianceExplodingDiffusion]

    def _make(self, denoiser: nn.Module, sigma_y: float, device: torch.device) -> nn.Module:
        """Construct deepinv's sampler for one image."""
        sampling, options = deepinv.sampling, dict(self.options)
        if self.sampler == "DDRM":
            top = float(options.pop("sigma_max", 1.0))
            sigmas = torch.logspace(math.log10(top), math.log10(self.sigma_min), self.steps)
            return sampling.DDRM(denoiser, sigmas=sigmas.tolist(), **options)
        if self.sampler == "DPS":
            options.setdefault("minus_one_one", False)
            return sampling.DPS(denoiser, num_steps=self.steps, device=device, **options)
        if self.sampler == "DiffPIR":
            return sampling.DiffPIR(
                denoiser, L2(), sigma=sigma_y, max_iter=self.steps, device=device, **options
            )
        made = [
            part(**{k: v for k, v in options.items() if k in _arguments(part)}, **own)
            for part, own in zip(
                self._parts(),
                ({}, {"sigma_min": self.sigma_min, "device": device}),
                strict=True,
            )
        ]
        times = torch.linspace(1, 0, self.steps, dtype=torch.float64, device=device)
        solver = sampling.DDPMSolver(timesteps=times)
        return sampling.PosteriorDiffusion(
            made[0], denoiser, made[1], solver, device=device, minus_one_one=False
        )

    @override
    def __call__(
        self,
        denoise: Denoise,
        likelihood: Likelihood,
        generator: Generator | Sequence[Generator],
    ) -> Draw:
        self._check(likelihood)
        counts: dict[str, list[int]] = {"evaluations": [], "backwards": []}
        images = []
        for i in range(len(likelihood)):
            g = generator if isinstance(generator, Generator) else generator[i]
            seed = int(torch.randint(2**62, (1,), generator=g, device=g.device))
            with scoped_rng(seed):
                denoiser, x = self._draw(denoise, likelihood.take(slice(i, i + 1)))
            if not torch.isfinite(x).all():
                raise ValueError(
                    f"deepinv's {self.sampler} returned NaN or infinity for image {i}; "
                    "lower its guidance (posterior.options) or use another sampler"
                )
            images.append(x)
            counts["evaluations"].append(denoiser.evaluations)
            counts["backwards"].append(denoiser.backwards)
        return Draw(torch.cat(images), max(counts["evaluations"]), max(counts["backwards"]))

    def _check(self, likelihood: Likelihood) -> None:
        operator = likelihood.operator
        if self.sampler == "DDRM" and not (
            "svd" in operator.capabilities and isinstance(operator.physics, DecomposablePhysics)
        ):
            raise ValueError(
                "DDRM needs a cheap singular value decomposition (capability 'svd'); "
                f"{operator.name} has none: use PosteriorDiffusion or DPS"
            )
        self.check_noise(is_white(likelihood.sigma_y))
        for name in (self.sampler, self.data_fidelity):
            if name in NOISY_ONLY and (likelihood.sigma_y <= 0).any():
                raise ValueError(
                    f"{name} needs noise: it divides by sigma_y, which is 0 here; "
                    "use sampler=DPS or DDRM"
                )

    def _draw(self, denoise: Denoise, likelihood: Likelihood) -> tuple["CountedDenoiser", Tensor]:
        """Run deepinv's sampler on one measurement, from torch's global stream."""
        operator, params, y = likelihood.operator, likelihood.params, likelihood.y
        sigma_y = float(likelihood.sigma_y)
        ones = y.new_ones(1, *operator.image_shape)
        halves = self.sampler == "DiffPIR"
        with torch.no_grad():
            offset = likelihood.A(ones)  # also leaves this image's parameters in the physics
            physics = _physics(operator, params, ones, sigma_y / 2 if halves else sigma_y)
        denoiser = CountedDenoiser(denoise, halves, self.sigma_min)
        level = sigma_y / 2 if halves else sigma_y
        made = self._make(denoiser, level, y.device)
        if halves:
            return denoiser, 2 * made((y + offset * likelihood.observed) / 2, physics) - 1
        # A copy: DDRM divides its measurements in place where U is the identity.
        return denoiser, made(y.clone(), physics).to(y.dtype).detach()


def _physics(operator: Operator, params: Params, like: Tensor, sigma_y: float) -> LinearPhysics:
    """Return physics of one image that need no parameters, with its noise level.

    A decomposable one is a copy of the operator's, as its last call left it.
    """
    if isinstance(operator.physics, DecomposablePhysics):
        physics = copy.deepcopy(operator.physics)
        # DDRM indexes coordinates by the singular values: one for each.
        shape = physics.V_adjoint(like).shape
        physics.mask = torch.as_tensor(physics.mask, device=like.device).expand(shape).clone()
    else:
        physics = BoundPhysics(operator, params)
    # deepinv reads the level of noise-free data from a Gaussian of level 0.
    physics.noise_model = GaussianNoise(sigma_y).to(like.device)
    return physics


class BoundPhysics(LinearPhysics):  # type: ignore[misc]
    """An operator with the parameters of one image, in deepinv's convention.

    Arguments:
        operator: The operator.
        params: Parameters of one image.
    """

    def __init__(self, operator: Operator, params: Params) -> None:
        super().__init__()
        self.operator = operator
        self.params = params

    def A(self, x: Tensor) -> Tensor:
        """Apply the forward operator, in float32: deepinv's solvers hold float64 states."""
        return self.operator.A(x.float(), self.params).to(x.dtype)

    def A_adjoint(self, y: Tensor) -> Tensor:
        """Apply the adjoint operator."""
        return self.operator.A_adjoint(y.float(), self.params).to(y.dtype)

    def A_dagger(self, y: Tensor) -> Tensor:
        """Apply the pseudo-inverse."""
        return self.operator.A_dagger(y.float(), self.params).to(y.dtype)


def _arguments(part: Callable[..., Any]) -> set[str]:
    """Return the named arguments of a constructor."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    found = inspect.signature(part).parameters.values()
    return {p.name for p in found if p.kind in kinds}


class CountedDenoiser(deepinv.models.Denoiser):  # type: ignore[misc]
    """Our denoiser in deepinv's convention.

    Arguments:
        denoise: The denoiser, images in [-1, 1].
        halves: Whether images and noise arrive in units of [0, 1].
        sigma_min: Least noise level, in units of [-1, 1].

    Attributes:
        evaluations: Forward passes so far.
        backwards: Backward passes so far.
    """

    def __init__(self, denoise: Denoise, halves: bool, sigma_min: float) -> None:
        super().__init__()
        self.denoise = denoise
        self.halves = halves
        self.sigma_min = sigma_min
        self.evaluations = 0
        self.backwards = 0

    def forward(self, x: Tensor, sigma: Tensor | float, *_: Any) -> Tensor:
        """Return the denoised image, in the units of ``x``."""
        self.evaluations += 1
        level = torch.as_tensor(sigma, dtype=x.dtype, device=x.device).flatten().expand(len(x))
        if self.halves:
            inner = self.denoise(2 * x - 1, (2 * level).clamp_min(self.sigma_min))
            return (inner + 1) / 2
        denoised = self.denoise(x, level.clamp_min(self.sigma_min))
        if denoised.requires_grad:
            denoised.register_hook(self._count)
        return denoised

    def _count(self, gradient: Tensor) -> None:
        self.backwards += 1
