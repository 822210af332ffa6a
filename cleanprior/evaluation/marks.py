r"""Marks: results that cannot be what they seem.

``range``: samples or restorations leave the range of the data. ``leak?``: a restoration is nearer
to the truth than its measurement allows. The yardstick is the posterior of the Gaussian of the
clean training images,

.. math:: \frac1d \operatorname{tr}\big(\Sigma^{-1} + A^\top A / \sigma_y^2\big)^{-1},

the mean square error of the best linear restorer: 0 where noise and null space allow an exact one.
A restorer that knows more than covariances is better by a few dB; one that is :data:`ALLOWED` times
better has seen the truth, or the data are simpler than they look. So that copies of training images
among the test images do not count, an image's yardstick is at most its distance to the nearest
training image.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..operators.levels import flat, is_white
from ..operators.likelihood import Likelihood
from ..progress import Progress
from .metrics.features import SILENT

#: Images lie in [-1, 1]; what lies beyond twice that counts.
LIMIT = 2.0
#: Share of values beyond the limit that is let pass.
SHARE = 1e-3
#: How many times better than the best linear restorer a restorer may be: 17 dB.
ALLOWED = 50.0
#: Images that the yardstick is computed for: at most, and where a dense solve takes seconds.
IMAGES, FEW = 32, 2
#: Numbers in the dense matrices of all of them together, about: a few seconds.
WORK = 4e9
#: Training images that the Gaussian is fitted to, at most.
FITTED = 10_000
#: Numbers of an image, at most: it needs a dense matrix.
SIZE = 3072


def out_of_range(x: Tensor, what: str) -> dict[str, str]:
    """Return the mark ``range`` where more than :data:`SHARE` of the values are beyond the limit.

    Arguments:
        x: Images of any leading shape.
        what: What they are, for the sentence.
    """
    share = (x.abs() > LIMIT).double().mean().item()
    if share <= SHARE:
        return {}
    return {
        "range": f"{what} leave the range of the data: {share:.1%} of their values lie beyond "
        f"twice [-1, 1], up to {x.abs().max().item():.3g}; distances and PSNR cut them off"
    }


@dataclass(frozen=True)
class Leak:
    """The least error that measurements allow.

    Attributes:
        index: Which images were looked at, (m,).
        bound: Mean square error of the best linear restorer of each, (m,).
    """

    index: Int[Tensor, " m"]
    bound: Float[Tensor, " m"]

    @classmethod
    def of(
        cls,
        train: Tensor,
        truth: Tensor,
        likelihood: Likelihood,
        progress: Progress = SILENT,
    ) -> "Leak | None":
        """Fit the Gaussian; None where images have more than :data:`SIZE` numbers.

        Arguments:
            train: Clean training images.
            truth: Clean images of the measurements.
            likelihood: The measurements with their operator.
            progress: Where to show it.
        """
        d = train[0].numel()
        if d > SIZE or len(train) < 2:
            return None
        count = min(len(truth), max(FEW, min(IMAGES, int(WORK / d**3))))
        index = torch.linspace(0, len(truth) - 1, count).round().long()
        fitted = torch.linspace(0, len(train) - 1, min(FITTED, len(train))).long()
        covariance = torch.cov(train[fitted].flatten(1).double().T).reshape(d, d)
        bounds = []
        with progress.task("least error of the measurements", count) as task:
            for j in index:
                one = likelihood.take(j[None])
                # A floor in the noise's place: without noise, what A shows is known exactly.
                level = flat(one.sigma_y.double(), one.y)[0].clamp_min(1e-4)
                if one.y[0].numel() > d and is_white(one.sigma_y):
                    known = _known_of_gram(one, covariance, float(level))
                else:
                    (A,) = one.operator.matrix(one.params, 1)
                    seen = covariance @ A.T
                    inner = A @ seen + level**2 * torch.eye(len(A), dtype=torch.float64)
                    gain = torch.linalg.solve(inner, seen.T)
                    known = (seen * gain.T).sum()
                variance = (covariance.trace() - known).clamp_min(0) / d
                nearest = min(_distance(part, truth[j]) for part in train.split(4096))
                bounds.append(min(variance.item(), nearest))
                task.advance()
        return cls(index, torch.tensor(bounds, dtype=torch.float64))

    def mark(self, x: Tensor, truth: Tensor) -> dict[str, str]:
        """Return the mark ``leak?`` where restorations are better than :data:`ALLOWED` explains."""
        error = (x[self.index].clamp(-1, 1).double() - truth[self.index]).square()
        found, bound = error.mean().item(), self.bound.mean().item()
        # 1e-8: rounding of float32 images, where the measurement does determine the image.
        if bound <= 1e-8 or found * ALLOWED >= bound:
            return {}
        return {
            "leak?": f"restorations are nearer to the truth (mean square error {found:.2g}) than "
            f"noise and null space allow (the best linear restorer: {bound:.2g}): the truth "
            "reached the method, or the data are simpler than they look"
        }


def _known_of_gram(one: Likelihood, covariance: Tensor, level: float) -> Tensor:
    r"""Return what y takes of the variance, :math:`\mathrm{tr}\, C (G C + s^2 I)^{-1} G C`.

    With :math:`G = A^\top A`: where y is larger than x this is the smaller system.
    """
    d = len(covariance)
    basis = torch.eye(d).reshape(d, *one.operator.image_shape)
    gram = torch.cat(
        [
            one.operator.A_adjoint(one.operator.A(part, params), params)
            for part in basis.split(256)
            for params in [{k: v.expand(len(part), *v.shape[1:]) for k, v in one.params.items()}]
        ]
    )
    seen = gram.flatten(1).double() @ covariance
    inner = seen + level**2 * torch.eye(d, dtype=torch.float64)
    return (covariance * torch.linalg.solve(inner, seen).T).sum()


def _distance(images: Tensor, x: Tensor) -> float:
    """Return the mean square difference of an image to the nearest of several."""
    return (images - x).square().flatten(1).mean(1).min().item()
