r"""Memorisation: how near samples are to training images, against how near held-out images are.

Two measures, both small for an image that was not trained on:

- ``memorised``: share of samples whose cosine similarity to a training image (of features) exceeds
  a threshold that only 0.1 % of held-out images exceed;
- ``memorised_ratio``: share of samples whose nearest training image is three times nearer (in
  pixels) than the second nearest.

The threshold is computed from the data at hand. Ambient Diffusion's constants, .95 and .75 (Daras
et al., 2023), hold for DINOv2 features of faces only.

References:
    Extracting Training Data from Diffusion Models (Carlini et al., 2023), arXiv:2301.13188
    On Memorization in Diffusion Models (Gu et al., 2023): the ratio 1/3, arXiv:2310.02664
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

CHUNK = 1024


@dataclass(frozen=True)
class Memorisation:
    """How near samples are to training images.

    Attributes:
        share: Share of samples above the threshold; about .001 where nothing is memorised.
        ratio_share: Share of samples whose nearest training image, in pixels, is at most a third as
            far as the second nearest.
        nearest: Training image most similar to each sample, (n,).
        similarity: That similarity, (n,).
    """

    share: float
    ratio_share: float
    nearest: Int[Tensor, " n"]
    similarity: Float[Tensor, " n"]

    def closest(self, count: int) -> Int[Tensor, " k"]:
        """Return the samples most similar to a training image, the most similar first."""
        return self.similarity.argsort(descending=True, stable=True)[:count]


def nearest_similarity(
    features: NDArray[np.float64], training: NDArray[np.float64]
) -> tuple[Float[Tensor, " n"], Int[Tensor, " n"]]:
    """Return the largest cosine similarity to a training image, and which image that is.

    Features are centred at the training mean: without that, features that are all positive are
    all alike.
    """
    centre = torch.from_numpy(training).mean(0)
    t = F.normalize(torch.from_numpy(training) - centre)
    x = F.normalize(torch.from_numpy(features) - centre)
    best = [(part @ t.T).max(1) for part in x.split(CHUNK)]
    return torch.cat([b.values for b in best]), torch.cat([b.indices for b in best])


def threshold(
    held_out: NDArray[np.float64], training: NDArray[np.float64], quantile: float = 0.999
) -> float:
    """Return the quantile of held-out images' similarity to their nearest training image.

    With fewer than 1 / (1 - quantile) held-out images it is close to their maximum.
    """
    return torch.quantile(nearest_similarity(held_out, training)[0], quantile).item()


def ratio_share(x: Float[Tensor, "n c h w"], training: Float[Tensor, "m c h w"]) -> float:
    """Return the share of images with d1 <= d2 / 3, distances in pixels to training images.

    An exact copy has d1 = 0 and counts, also where the training set holds its original twice
    (d1 = d2 = 0).
    """
    flat = training.clamp(-1, 1).flatten(1).double()
    found = []
    for part in x.clamp(-1, 1).flatten(1).double().split(CHUNK):
        two = torch.cdist(part, flat).topk(2, dim=1, largest=False).indices
        # Exactly, not by products: a copy is at 0.
        distances = (part[:, None] - flat[two]).norm(dim=2).sort(dim=1).values
        found.append(3 * distances[:, 0] <= distances[:, 1])
    return torch.cat(found).double().mean().item()


def memorisation(
    x: Float[Tensor, "n c h w"],
    features: NDArray[np.float64],
    training: Float[Tensor, "m c h w"],
    training_features: NDArray[np.float64],
    limit: float,
) -> Memorisation:
    """Compare samples with the training images.

    Arguments:
        x: Samples.
        features: Their features, (n, d).
        training: Clean training images, at least 2.
        training_features: Their features, (m, d).
        limit: The similarity above which a sample counts, from :func:`threshold`.
    """
    similarity, nearest = nearest_similarity(features, training_features)
    return Memorisation(
        share=(similarity > limit).double().mean().item(),
        ratio_share=ratio_share(x, training),
        nearest=nearest,
        similarity=similarity,
    )
