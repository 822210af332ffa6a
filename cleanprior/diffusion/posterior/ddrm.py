"""DDRM: denoising in the singular basis, each coordinate by its own noise level."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Generator, Tensor
from typing_extensions import override

from ...config.checks import check_share
from ...operators.base import Operator
from ...operators.levels import is_white
from ...operators.likelihood import Likelihood
from ...operators.spectral import Spectrum
from ...seeding import randn_like
from ..denoiser import Denoise
from .base import LevelSampler, level_of


@dataclass(eq=False)
class DDRM(LevelSampler):
    r"""Denoising diffusion restoration, for operators with a singular value decomposition.

    With :math:`\bar x = V^\top x`, :math:`\bar y = S^+ U^\top y`, :math:`\hat x = V^\top D`, next
    level :math:`\sigma'` and noise :math:`\tau_i = \sigma_y / s_i` of :math:`\bar y_i`:

    .. math:: \bar x'_i = \begin{cases}
        \hat x_i + \sqrt{1-\eta^2}\,\sigma' (\bar x_i - \hat x_i)/\sigma + \eta \sigma' z
            & s_i = 0 \\
        \hat x_i + \sqrt{1-\eta^2}\,\sigma' (\bar y_i - \hat x_i)/\tau_i + \eta \sigma' z
            & \sigma' < \tau_i \\
        (1-\eta_b) \hat x_i + \eta_b \bar y_i + \sqrt{\sigma'^2 - \eta_b^2 \tau_i^2}\, z
            & \sigma' \ge \tau_i \end{cases}

    Draws are narrower than the posterior by design: a hidden coordinate of unit variance ends with
    variance 0.73 at :math:`\eta` = 0.85 and 100 steps. Their spread is no uncertainty.

    Noise is drawn as an image and mapped to the spectrum: in a half spectrum white noise does not
    have unit variance.

    Arguments:
        eta: Share of fresh noise below a coordinate's noise level and on hidden coordinates.
        eta_b: Weight of :math:`\bar y` above a coordinate's noise level.
        steps, sigma_min, sigma_max, rho: see :class:`LevelSampler`.

    Raises:
        ValueError: ``eta`` or ``eta_b`` outside [0, 1]; when called, an operator without
            decomposition.

    References:
        Denoising Diffusion Restoration Models (Kawar et al., 2022), Eqs. 7-8, arXiv:2201.11793
    """

    eta: float
    eta_b: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("eta", self.eta, "0 to 1 (all noise fresh)")
        check_share("eta_b", self.eta_b, "0 to 1 (y alone)")

    @override
    def backwards_per_step(self, operator: Operator) -> int:
        return 0

    @staticmethod
    def decompose(likelihood: Likelihood) -> tuple[Spectrum, Tensor]:
        r"""Return the batch's spectrum and :math:`\tau`, infinite where nothing is measured."""
        spectrum = Spectrum.of(likelihood.operator, likelihood.params, likelihood.y)
        if spectrum is None:
            raise ValueError(
                "ddrm needs a cheap singular value decomposition (capability 'svd'); "
                f"{likelihood.operator.name} has none: use mmps, pigdm, diffpir or dps"
            )
        noise = spectrum.column(likelihood.sigma_y) / spectrum.singular.clamp_min(1e-30)
        return spectrum, torch.where(spectrum.kept, noise, torch.inf)

    @override
    def start(
        self, likelihood: Likelihood, generator: Generator | Sequence[Generator]
    ) -> Float[Tensor, "b c h w"]:
        self.check_noise(is_white(likelihood.sigma_y))
        spectrum, tau = self.decompose(likelihood)
        top = self.levels[0]
        noise = spectrum.to_spectrum(super().start(likelihood, generator)) / top
        above = tau <= top
        spread = torch.where(above, (top**2 - tau**2).clamp_min(0).sqrt(), top)
        mean = torch.where(above, spectrum.pseudo_inverse(likelihood.y), 0.0)
        return spectrum.to_image(mean + spread * noise)

    @torch.no_grad()
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
        denoised = denoise(x, level_of(x, sigma))
        spectrum, tau = self.decompose(likelihood)
        y_bar, x_hat = spectrum.pseudo_inverse(likelihood.y), spectrum.to_spectrum(denoised)
        above, hidden = lower >= tau, ~spectrum.kept
        # Noise of the mean, in units of sigma': predicted on hidden coordinates, measured below.
        predicted = (spectrum.to_spectrum(x) - x_hat) / sigma
        measured = (y_bar - x_hat) / torch.where(above | hidden, 1.0, tau)
        kept = (1 - self.eta**2) ** 0.5 * lower
        mean = torch.where(
            above,
            (1 - self.eta_b) * x_hat + self.eta_b * y_bar,
            x_hat + kept * torch.where(hidden, predicted, measured),
        )
        if lower == 0:
            return spectrum.to_image(mean)
        above_spread = (lower**2 - (self.eta_b * torch.where(above, tau, 0.0)) ** 2).clamp_min(0)
        spread = torch.where(above, above_spread.sqrt(), self.eta * lower)
        noise = spectrum.to_spectrum(randn_like(x, generator))
        return spectrum.to_image(mean + spread * noise)
