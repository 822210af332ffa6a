"""Metrics as functions: images in [-1, 1], one value an image where that makes sense."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from ...mapped import blocks, is_in_file
from ...operators.base import Params
from ...operators.levels import is_white
from ...operators.likelihood import Likelihood

#: Bytes of features in memory, where they are many.
FEATURES = 16 << 20


def psnr(x: Float[Tensor, "n c h w"], truth: Float[Tensor, "n c h w"]) -> Float[Tensor, " n"]:
    r"""Return the peak signal-to-noise ratio of each image in dB.

    .. math:: 10 \log_{10}(4 / \mathrm{MSE})

    Images are clipped to [-1, 1] (peak-to-peak 2); the MSE is over all channels and pixels.
    """
    mse = (x.clamp(-1, 1).double() - truth.double()).square().flatten(1).mean(1)
    return 10 * torch.log10(4 / mse.clamp_min(1e-12))


def psnr_minmax(
    x: Float[Tensor, "n c h w"], truth: Float[Tensor, "n c h w"]
) -> Float[Tensor, " n"]:
    r"""Return the PSNR in dB after a contrast stretch of each image, as EMDiffusion prints it.

    Image and truth are each shifted and scaled to [0, 1] by their own minimum and maximum and
    quantised to 8 bits; the peak is 1. A wrong contrast costs nothing, so it compares with that
    paper's tables only.

    References:
        An Expectation-Maximization Algorithm for Training Clean Diffusion Models from Corrupted
            Observations (Bai et al., 2024), the code's evaluation, arXiv:2407.01014
    """
    mse = (_stretched(x) - _stretched(truth)).square().mean(1)
    return 10 * torch.log10(1 / mse.clamp_min(1e-12))


def _stretched(x: Tensor) -> Tensor:
    """Return pixels (n, d) between their own minimum and maximum, in 8-bit steps of [0, 1]."""
    flat = x.double().flatten(1)
    flat = flat - flat.amin(1, keepdim=True)
    # Of a constant image nothing is left.
    flat = flat / flat.amax(1, keepdim=True).clamp_min(1e-12)
    return (flat * 255).round() / 255


def ssim_window(height: int, width: int) -> int:
    """Return the side of the SSIM window: 11, or the largest odd side that leaves 2 positions."""
    side = min(11, height - 1, width - 1)
    return max(3, side if side % 2 else side - 1)


def ssim_refusal(image_shape: Sequence[int]) -> str | None:
    """Return why SSIM has no value for images of this shape, or None."""
    height, width = image_shape[1:]
    if min(height, width) < 3:
        return f"SSIM's smallest window is 3x3; images have {height}x{width} pixels"
    return None


def ssim(x: Float[Tensor, "n c h w"], truth: Float[Tensor, "n c h w"]) -> Float[Tensor, " n"]:
    """Return the structural similarity of each image, data range 2, images clipped to [-1, 1].

    The window is Gaussian, 11x11 with std 1.5 (Wang et al., 2004); on images smaller than 12 pixels
    it is :func:`ssim_window` wide, with the std scaled alike (8x8 images: 7x7, 0.86).
    """
    height, width = x.shape[2:]
    window = ssim_window(height, width)
    # torchmetrics derives the window from sigma: 3.5 sigma each side.
    _, full = structural_similarity_index_measure(
        x.clamp(-1, 1).double(),
        truth.double(),
        gaussian_kernel=True,
        sigma=1.5 if window == 11 else (window - 1) / 2 / 3.5,
        data_range=2.0,
        reduction="none",
        return_full_image=True,
    )
    # Its own mean includes a border of mirrored pixels; Wang et al. and scikit-image leave it out.
    border = (window - 1) // 2
    inner = full[..., border : height - border, border : width - border]
    return inner.flatten(1).mean(1)


def consistency(x: Float[Tensor, "n c h w"], likelihood: Likelihood) -> Float[Tensor, " n"]:
    r"""Return :math:`\|y - A \hat x\|` per observed pixel: its root mean square, units of x.

    For a perfect restoration its expected value is sigma_y.
    """
    squared = likelihood.residual(x).double().square().flatten(1).sum(1)
    return (squared / likelihood.observed.flatten(1).sum(1).clamp_min(1)).sqrt()


def held_out_error(
    x: Float[Tensor, "n c h w"], likelihood: Likelihood, further: Params
) -> Float[Tensor, " n"]:
    r"""Return how far A x is from measured entries that the restoration has not seen.

    .. math:: \|(M - \tilde M)(A \hat x - y)\| \,/\, \|(M - \tilde M)\, y\|

    An NRMSE that needs no clean image; noise of y is in it. NaN where nothing was dropped.

    Arguments:
        x: Restorations of the measurements under ``further``.
        likelihood: The measurements as they were.
        further: Parameters of the further corruption, :meth:`Operator.further`.
    """
    kept = likelihood.operator.observed(likelihood.y, further)
    dropped = (likelihood.observed - kept).double()
    error = (dropped * likelihood.residual(x)).square().flatten(1).sum(1)
    return (error / (dropped * likelihood.y).square().flatten(1).sum(1)).sqrt()


def expected_consistency(likelihood: Likelihood) -> Float[Tensor, " n"]:
    r"""Return what :func:`consistency` is for the truth, in expectation: the noise itself.

    .. math:: \mathbb{E}\, \|\sigma_y z\| / \sqrt m
        = \sigma_y \sqrt{2 / m}\; \Gamma\big(\tfrac{m + 1}{2}\big) / \Gamma\big(\tfrac m2\big)

    with m observed numbers; of a map the root mean square, and the number that its spread is worth.
    A restoration far below it fits the noise.
    """
    m = likelihood.observed.flatten(1).sum(1).double()
    if not is_white(likelihood.sigma_y):
        # A sum of squares of different levels is close to chi-squared of fewer degrees of freedom
        # (Satterthwaite, 1946), of which there are m where all are equal.
        power = (likelihood.sigma_y.double() ** 2 * likelihood.observed).flatten(1)
        m = power.sum(1) ** 2 / power.square().sum(1).clamp_min(1e-300)
    log_ratio = torch.lgamma((m + 1) / 2) - torch.lgamma(m.clamp_min(1) / 2)
    return likelihood.level.double() * (2 / m.clamp_min(1)).sqrt() * log_ratio.exp() * (m > 0)


@dataclass(frozen=True)
class Moments:
    """Mean and covariance of features, for Frechet distances to many sets.

    Attributes:
        mean: (d,).
        covariance: (d, d).
        root: Its symmetric root.
    """

    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]
    root: NDArray[np.float64]

    @classmethod
    def of(cls, features: NDArray[np.float64] | Tensor) -> "Moments":
        """Take the moments of features, (n, d); of a tensor in a file, in blocks.

        Raises:
            ValueError: Fewer than 2 samples, or features that are not finite.
        """
        if isinstance(features, Tensor) and is_in_file(features):
            mean, covariance = _in_blocks(features)
        else:
            mean, covariance = _moments(np.asarray(features))
        values, vectors = np.linalg.eigh(covariance)
        return cls(mean, covariance, (vectors * np.sqrt(values.clip(0))) @ vectors.T)

    def distance(self, features: NDArray[np.float64]) -> float:
        """Return the Frechet distance to features, (n, d); see :func:`frechet_distance`."""
        mean, covariance = _moments(features)
        return self.distance_to(mean, covariance)

    def distance_to(self, mean: NDArray[np.float64], covariance: NDArray[np.float64]) -> float:
        """Return the Frechet distance to a Gaussian of these moments."""
        inner = np.linalg.eigvalsh(self.root @ covariance @ self.root).clip(0)
        offset = float(((self.mean - mean) ** 2).sum())
        traces = float(np.trace(self.covariance) + np.trace(covariance))
        return max(0.0, offset + traces - 2 * float(np.sqrt(inner).sum()))


def _moments(features: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    x = np.asarray(features, np.float64)
    if len(x) < 2:
        raise ValueError(f"a Frechet distance needs 2 samples on each side; got {len(x)}")
    if not np.isfinite(x).all():
        raise ValueError("features hold NaN or infinity")
    return x.mean(0), np.atleast_2d(np.cov(x.T))


def _in_blocks(features: Tensor) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean and covariance of features that are many, as :func:`_moments` does."""
    n, d = features.shape
    mean = np.zeros(d)
    for part in blocks(features, FEATURES):
        mean += part.numpy().sum(0)
    mean /= n
    covariance = np.zeros((d, d))
    for part in blocks(features, FEATURES):
        centred = part.numpy() - mean
        covariance += centred.T @ centred
    if not np.isfinite(covariance).all():
        raise ValueError("features hold NaN or infinity")
    return mean, covariance / (n - 1)


def frechet_distance(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    r"""Return the Frechet distance of two Gaussians fitted to feature sets, in float64.

    .. math:: \|\mu_1-\mu_2\|^2 + \mathrm{tr}(\Sigma_1 + \Sigma_2)
        - 2\,\mathrm{tr}\big(\Sigma_1^{1/2}\Sigma_2\Sigma_1^{1/2}\big)^{1/2}

    Arguments:
        a: Features, (n, d).
        b: Features, (m, d).

    Raises:
        ValueError: Fewer than 2 samples, or features that are not finite.

    References:
        GANs Trained by a Two Time-Scale Update Rule (Heusel et al., 2017), Eq. 6, arXiv:1706.08500
    """
    return Moments.of(a).distance(b)
