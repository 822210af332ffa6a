r"""A ``UNet2DModel`` of diffusers as a backbone, in EDM's or in DDPM's parametrisation.

A DDPM network predicts the noise of :math:`x_t = \sqrt{\bar\alpha_t} x + \sqrt{1 - \bar\alpha_t} n
= (x + \sigma n) / \sqrt{1 + \sigma^2}` with :math:`\sigma_t = \sqrt{(1 - \bar\alpha_t) /
\bar\alpha_t}`. Asked at :math:`x_\sigma`, it is given :math:`x_\sigma / \sqrt{1 + \sigma^2}` and
the (fractional) timestep of sigma, and its answer is the denoiser

.. math:: D(x_\sigma, \sigma) = x_\sigma - \sigma \, \epsilon(x_\sigma / \sqrt{1+\sigma^2}, t)

which this backbone returns as the F of EDM's preconditioning, :math:`F = (D - c_{skip} x_\sigma) /
c_{out}`: a denoiser around it is D, for every method and sampler.

References:
    Denoising Diffusion Probabilistic Models (Ho et al., 2020), Eq. 4 and 11, arXiv:2006.11239
    Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022),
    Table 1 and appendix C.3.1, arXiv:2206.00364
"""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..config.checks import check_choice
from ..errors import unknown
from ..extras import optional

PARAMETRISATIONS = ("edm", "ddpm")
#: Timesteps that a schedule may have; those of published networks have 1,000 or 4,000.
STEPS = 100_000
PREDICTIONS = ("epsilon", "v_prediction", "sample")


class UNet2D(nn.Module):
    """diffusers' ``UNet2DModel`` under EDM's preconditioning.

    Arguments:
        in_channels: Channels of the input image.
        out_channels: Channels of the output image.
        cond_channels: Channels of the condition, concatenated to the input.
        unet: Configuration of the ``UNet2DModel``; its channels are those above.
        parametrisation: ``edm``, the network is F itself, or ``ddpm``.
        prediction: What a ddpm network predicts: ``epsilon`` (the noise), ``v_prediction`` or
            ``sample``. An edm network of ``v_prediction`` is -F; it has no ``sample``.
        schedule: Noise of the timesteps of a ddpm network: the keys of a ``DDPMScheduler``.
        sigma_data: That of the preconditioning around it.

    Raises:
        UserError: diffusers is not installed; an unknown key.
        ValueError: A network of classes, an embedding of sigma itself, a schedule that ends
            without any signal, or of more than :data:`STEPS`.
    """

    log_sigmas: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        cond_channels: int,
        unet: Mapping[str, Any],
        parametrisation: str,
        prediction: str,
        schedule: Mapping[str, Any],
        sigma_data: float,
    ) -> None:
        super().__init__()
        check_choice("parametrisation", parametrisation, PARAMETRISATIONS)
        is_edm = parametrisation == "edm"
        check_choice("prediction", prediction, PREDICTIONS[:2] if is_edm else PREDICTIONS)
        library = optional("diffusers", "use a UNet2DModel", "hub")
        self.parametrisation, self.prediction = parametrisation, prediction
        self.sigma_data = sigma_data
        _check_keys("unet", library.UNet2DModel, unet)
        for key in ("class_embed_type", "num_class_embeds"):
            if unet.get(key) is not None:
                raise ValueError(f"{key}={unet[key]}: a network that is told a class is no prior")
        kind = unet.get("time_embedding_type", "positional")
        check_choice("time_embedding_type", kind, ("positional", "learned"))
        self.is_learned = kind == "learned"
        channels = {"in_channels": in_channels + cond_channels, "out_channels": out_channels}
        self.unet: nn.Module = library.UNet2DModel(**{**unet, **channels})
        if is_edm:
            return
        _check_keys("schedule", library.DDPMScheduler, schedule)
        steps = schedule.get("num_train_timesteps", 1000)
        if type(steps) is not int or not 2 <= steps <= STEPS:
            raise ValueError(f"num_train_timesteps={steps!r:.40}; allowed: 2 to {STEPS:,}")
        if schedule.get("rescale_betas_zero_snr"):
            raise ValueError("rescale_betas_zero_snr: the last timestep has no noise level")
        signal = library.DDPMScheduler(**schedule).alphas_cumprod.double()
        levels = ((1 - signal) / signal).log() / 2
        self.register_buffer("log_sigmas", levels.float(), persistent=False)

    def forward(
        self,
        x: Float[Tensor, "b c h w"],
        c_noise: Float[Tensor, " b"],
        condition: Float[Tensor, "b k h w"] | None = None,
    ) -> Float[Tensor, "b d h w"]:
        """Apply the network; see :class:`cleanprior.diffusion.backbones.UNet`."""
        if self.parametrisation == "edm":
            output = self._network(x, c_noise, condition)
            return -output if self.prediction == "v_prediction" else output
        sigma = (4 * c_noise).exp().reshape(-1, 1, 1, 1)
        total = (sigma**2 + self.sigma_data**2).sqrt()
        noisy, scale = total * x, (1 + sigma**2).sqrt()
        output = self._network(noisy / scale, self.timestep(4 * c_noise), condition)
        if self.prediction == "epsilon":
            denoised = noisy - sigma * output
        elif self.prediction == "sample":
            denoised = output
        else:
            denoised = (noisy / scale - sigma * output) / scale
        skip, out = (self.sigma_data / total) ** 2, sigma * self.sigma_data / total
        return (denoised - skip * noisy) / out

    def _network(self, x: Tensor, time: Tensor, condition: Tensor | None) -> Tensor:
        """Return the output of the ``UNet2DModel`` in float32, whatever it computes in."""
        given = x if condition is None else torch.cat((x, condition), 1)
        output: Tensor = self.unet(given, time, return_dict=False)[0]
        return output.to(x.dtype)

    def timestep(self, log_sigma: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """Return the timestep of each noise level, between those of the schedule by ln sigma.

        Noise levels beyond the schedule have its first or its last timestep.
        """
        levels = self.log_sigmas
        last = len(levels) - 1
        below = (torch.searchsorted(levels, log_sigma.contiguous()) - 1).clamp(0, max(0, last - 1))
        above = (below + 1).clamp(max=last)
        gap = (levels[above] - levels[below]).clamp_min(1e-12)
        found = (below + (log_sigma - levels[below]) / gap).clamp(0, last)
        return found.round().long() if self.is_learned else found


def _check_keys(name: str, part: Any, given: Mapping[str, Any]) -> None:
    """Refuse keys that a class of diffusers does not have.

    Raises:
        UserError: One that it has not, with those that it has.
    """
    allowed = [k for k in inspect.signature(part.__init__).parameters if k != "self"]
    for key in given:
        if key not in allowed:
            raise unknown(f"key of {name}", str(key), allowed)
