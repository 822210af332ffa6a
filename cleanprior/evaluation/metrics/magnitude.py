r"""Metrics of complex images as MRI prints them: of the magnitude, within the object.

Magnitudes have no phase, which scanners' images have by accident, and a background of air would
flatter every number. The object is where the reference's magnitude exceeds a share of its maximum,
its holes filled.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.ndimage import binary_fill_holes
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from .restoration import ssim_window


def magnitude(x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n h w"]:
    """Return the magnitude of images of two channels, real and imaginary part, in float64.

    Raises:
        ValueError: Images of another number of channels.
    """
    if x.shape[1] != 2:
        raise ValueError(f"of complex images (2 channels); these have {x.shape[1]}")
    return x.double().norm(dim=1)


def object_mask(reference: Float[Tensor, "n h w"], share: float) -> Bool[Tensor, "n h w"]:
    """Return the pixels of the object: above a share of the largest magnitude, holes filled.

    Arguments:
        reference: Magnitudes.
        share: Share of each image's maximum, in [0, 1).
    """
    above = reference > share * reference.flatten(1).amax(1)[:, None, None]
    filled = np.stack([binary_fill_holes(one) for one in above.numpy()])
    return torch.from_numpy(filled)


@dataclass(frozen=True)
class MagnitudeMetric:
    """A metric of magnitudes within the object, one value an image.

    Arguments:
        kind: ``nrmse`` (lower is better), ``psnr`` in dB with the reference's maximum as peak, or
            ``ssim`` with that maximum as data range (both: higher is better).
        share: See :func:`object_mask`; at 0 all pixels that are not exactly 0.

    Raises:
        ValueError: Another kind, a share outside [0, 1), or images that are not complex.
    """

    kind: str
    share: float

    def __post_init__(self) -> None:
        if self.kind not in ("nrmse", "psnr", "ssim"):
            raise ValueError(f"kind={self.kind}; allowed: nrmse, psnr, ssim")
        if not 0 <= self.share < 1:
            raise ValueError(f"share={self.share}; allowed: a share, [0, 1)")

    def __call__(
        self, restored: Float[Tensor, "n 2 h w"], truth: Float[Tensor, "n 2 h w"]
    ) -> Float[Tensor, " n"]:
        """Return the metric of each image; NaN where the reference is 0 everywhere."""
        x, reference = magnitude(restored), magnitude(truth)
        inside = object_mask(reference, self.share).double()
        peak = reference.flatten(1).amax(1)
        if self.kind == "ssim":
            quality = _ssim_map(x / peak[:, None, None], reference / peak[:, None, None])
            return (quality * inside).flatten(1).sum(1) / inside.flatten(1).sum(1)
        squared = ((x - reference).square() * inside).flatten(1).sum(1)
        if self.kind == "psnr":
            mse = squared / inside.flatten(1).sum(1)
            return 10 * torch.log10(peak.square() / mse.clamp_min(1e-12 * peak.square()))
        return (squared / (reference.square() * inside).flatten(1).sum(1)).sqrt()


def _ssim_map(x: Tensor, truth: Tensor) -> Tensor:
    """Return the structural similarity at each pixel, data range 1, borders mirrored."""
    window = ssim_window(*x.shape[1:])
    _, full = structural_similarity_index_measure(
        x[:, None],
        truth[:, None],
        gaussian_kernel=True,
        sigma=1.5 if window == 11 else (window - 1) / 2 / 3.5,
        data_range=1.0,
        reduction="none",
        return_full_image=True,
    )
    return full[:, 0]


__all__ = ["MagnitudeMetric", "magnitude", "object_mask"]
