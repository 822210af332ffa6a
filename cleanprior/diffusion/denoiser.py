r"""The denoiser :math:`D(x_\sigma, \sigma) \approx \mathbb E[x \mid x_\sigma]`, EDM-preconditioned.

Noise is variance-exploding: :math:`x_\sigma = x + \sigma n`, images in [-1, 1].

References:
    Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022),
    Table 1, arXiv:2206.00364
"""

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from ..config.checks import check_choice
from ..seeding import randn_like
from ..transfer import to_device

#: Least batch for which reduced precision pays where no gradient of weights is taken: on one core
#: with AMX bf16 takes 0.9 times as long as fp32 with 8 images, 0.75 with 64, 0.55 from 256 on.
REDUCED_BATCH = 64
#: Least noise level at which a denoiser is asked, EDM's own; only clean images are below it.
SIGMA_MIN = 0.002
PRECONDITIONINGS = ("edm", "split", "scaled_condition")


@runtime_checkable
class Denoise(Protocol):
    """Anything that maps a noisy image and its noise level to the posterior mean."""

    def __call__(self, x: Tensor, sigma: Tensor, /) -> Tensor:
        """Return E[x | x_sigma], shape of ``x``; ``sigma`` has shape (b,)."""
        ...


def per_image(sigma: Float[Tensor, " b"]) -> Float[Tensor, "b 1 1 1"]:
    """Shape one number an image so that it multiplies images."""
    return sigma.reshape(-1, 1, 1, 1)


class Denoiser(nn.Module):
    r"""A backbone with EDM preconditioning and an optional condition.

    .. math:: D = c_{skip} x_\sigma + c_{out} F(c_{in} x_\sigma, c_{noise}, \mathrm{condition})

    The condition is concatenated **after** input scaling, so that a mask channel keeps unit scale
    at every noise level. With ``split``, pixels that the condition hides (0) bypass skip and output
    scaling, :math:`D = \sigma_d F` there: their input is 0 and not noise, so EDM's scaling, which
    vanishes as sigma -> 0, would leave them unable to move.

    Arguments:
        backbone: Network called as ``backbone(x, c_noise, condition)``.
        sigma_data: Standard deviation of the data, :math:`\sigma_d`.
        condition_channels: Channels of the condition; 0 for an unconditional denoiser.
        preconditioning: ``edm``, ``split`` or ``scaled_condition`` (the condition is scaled with
            the input and hidden pixels are treated as noisy ones).
        autocast: dtype in which the backbone runs while training, and in batches of at least
            :data:`REDUCED_BATCH` afterwards; None for float32 throughout.

    Attributes:
        evaluations: Images that went through the backbone so far.
    """

    def __init__(
        self,
        backbone: nn.Module,
        sigma_data: float,
        condition_channels: int = 0,
        preconditioning: str = "edm",
        autocast: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_choice("preconditioning", preconditioning, PRECONDITIONINGS)
        # A backbone that undoes the scaling must know it.
        own = getattr(backbone, "sigma_data", sigma_data)
        if own != sigma_data:
            raise ValueError(f"backbone.sigma_data={own}, and training.sigma_data={sigma_data}")
        self.backbone = backbone
        self.sigma_data = sigma_data
        self.condition_channels = condition_channels
        self.preconditioning = preconditioning
        self.autocast = autocast
        self.evaluations = 0

    def forward(
        self,
        x: Float[Tensor, "b c h w"],
        sigma: Float[Tensor, " b"],
        condition: Float[Tensor, "b k h w"] | None = None,
    ) -> Float[Tensor, "b c h w"]:
        """Denoise.

        Arguments:
            x: Noisy images; hidden pixels 0 where the condition hides them.
            sigma: Noise level of each image, above 0.
            condition: Mask at unit scale, 1 = seen. A conditional denoiser that is given none
                takes every pixel as seen.
        """
        self.evaluations += len(x)
        if self.condition_channels and condition is None:
            condition = x.new_ones(len(x), self.condition_channels, *x.shape[2:])
        s = per_image(sigma)
        total = (s**2 + self.sigma_data**2).sqrt()
        c_in, c_skip, c_out = 1 / total, (self.sigma_data / total) ** 2, s * self.sigma_data / total
        seen = condition
        if condition is not None and self.preconditioning == "scaled_condition":
            condition = condition * c_in
        is_large = self.training or len(x) >= REDUCED_BATCH
        use_autocast = is_large and self.autocast is not None
        kind = "cpu" if x.is_meta else x.device.type  # shapes alone: no precision to choose
        with torch.autocast(kind, self.autocast, enabled=use_autocast):
            output = self.backbone(c_in * x, sigma.log() / 4, condition)
        output = output.to(x.dtype)
        if self.preconditioning != "split" or seen is None:
            return c_skip * x + c_out * output
        return seen * (c_skip * x + c_out * output) + (1 - seen) * self.sigma_data * output


def edm_weight(sigma: Float[Tensor, " b"], sigma_data: float) -> Float[Tensor, "b 1 1 1"]:
    r"""EDM's loss weight :math:`(\sigma^2+\sigma_d^2)/(\sigma\sigma_d)^2`, one number an image."""
    return per_image((sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2)


def draw_sigma(
    n: int, generator: Generator, device: torch.device, mean: float = -1.2, std: float = 1.2
) -> Float[Tensor, " n"]:
    r"""Draw training noise levels, :math:`\log\sigma \sim N(-1.2, 1.2^2)` (EDM, Table 1)."""
    normal = torch.randn(n, generator=generator, device=generator.device)
    return to_device((mean + std * normal).exp(), device)


def denoising_loss(
    denoiser: Denoiser, x: Float[Tensor, "b c h w"], generator: Generator
) -> Float[Tensor, ""]:
    r"""EDM's loss, :math:`\mathbb E\, w(\sigma) \|D(x + \sigma n, \sigma) - x\|^2` a pixel."""
    sigma = draw_sigma(len(x), generator, x.device)
    error = (denoiser(x + per_image(sigma) * randn_like(x, generator), sigma) - x) ** 2
    return (edm_weight(sigma, denoiser.sigma_data) * error).mean()
