"""Backbones: bare networks that map (image, noise embedding, condition) to an image."""

from collections.abc import Sequence
from typing import Any

import torch
from azula.nn.layers import SineEncoding
from azula.nn.unet import UNet as AzulaUNet
from jaxtyping import Float
from torch import Tensor, nn

from ..config.checks import check_choice
from .gating import gate_convolutions


class UNet(nn.Module):
    """azula's modulated U-Net with a sine encoding of the noise level.

    Arguments:
        in_channels: Channels of the input image.
        out_channels: Channels of the output image.
        cond_channels: Channels of the condition, concatenated to the input.
        hid_channels: Channels at each depth.
        hid_blocks: Residual blocks at each depth.
        mod_features: Size of the noise embedding.
        norm: ``group``, ``layer`` or ``rms``.
        dropout: Dropout rate in [0, 1].
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        cond_channels: int,
        hid_channels: Sequence[int],
        hid_blocks: Sequence[int],
        mod_features: int,
        norm: str,
        dropout: float,
    ) -> None:
        super().__init__()
        self.embed = nn.Sequential(
            SineEncoding(mod_features),
            nn.Linear(mod_features, mod_features),
            nn.SiLU(),
            nn.Linear(mod_features, mod_features),
        )
        self.unet = AzulaUNet(
            in_channels,
            out_channels,
            cond_channels,
            hid_channels=tuple(hid_channels),
            hid_blocks=tuple(hid_blocks),
            mod_features=mod_features,
            norm=norm,
            dropout=dropout or None,
        )

    def forward(
        self,
        x: Float[Tensor, "b c h w"],
        c_noise: Float[Tensor, " b"],
        condition: Float[Tensor, "b k h w"] | None = None,
    ) -> Float[Tensor, "b d h w"]:
        """Apply the network.

        Arguments:
            x: Scaled noisy image.
            c_noise: Noise embedding input, a quarter of log sigma (EDM, Table 1).
            condition: Condition at unit scale, or None.
        """
        # The sine encoding covers integers in [0, 1e4]; c_noise is about [-2, 1].
        return self.unet(x, self.embed(250.0 * (c_noise + 2.0)), condition)


def build_backbone(
    config: dict[str, Any], in_channels: int, out_channels: int, cond_channels: int
) -> nn.Module:
    """Construct the backbone that a configuration of the group ``backbone`` describes.

    Its key ``gate``, which a method may add, gates the convolutions of whatever network it is
    (:func:`~cleanprior.diffusion.gating.gate_convolutions`); it is saved with the prior.
    """
    from ..config import build

    own = {k: v for k, v in config.items() if k != "gate"}
    network: nn.Module = build(
        own, in_channels=in_channels, out_channels=out_channels, cond_channels=cond_channels
    )
    return gate_convolutions(network, config.get("gate", "none"))


def parameter_count(module: nn.Module) -> int:
    """Return the number of trainable numbers."""
    return sum(p.numel() for p in module.parameters())


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """Return the dtype that the backbone runs in while training, or None for float32.

    Arguments:
        precision: ``auto``, ``fp32`` or ``bf16``. ``auto`` is bf16 where the device multiplies
            matrices in it: GPUs that say so, CPUs with AMX.
        device: The device.
    """
    check_choice("precision", precision, ("auto", "fp32", "bf16"))
    if precision == "fp32":
        return None
    if precision == "bf16":
        return torch.bfloat16
    if device.type == "cuda":
        # Before compute capability 8 torch reports bf16 as supported, and emulates it.
        is_native = torch.cuda.get_device_capability(device)[0] >= 8
        return torch.bfloat16 if is_native else None
    has_amx = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    return torch.bfloat16 if device.type == "cpu" and has_amx() else None
