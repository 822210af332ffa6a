r"""Recorrupted-to-recorrupted, then train.

Objective of stage 1: :math:`\|f(y + \alpha\sigma_y\omega) - (y - \sigma_y\omega/\alpha)\|^2`,
:math:`\omega \sim N(0, I)`. Both noises are independent, so that the minimiser is
:math:`E[x \mid y + \alpha\sigma_y\omega]`. For images with Gaussian noise;
where A hides something, f is told A and nothing teaches it what lies there.

Differences: the noise is drawn here, see :class:`.physics.Recorrupted`; the restorations that are
averaged have opposite noise in pairs.

References:
    Recorrupted-to-Recorrupted: Unsupervised Deep Learning for Image Denoising (Pang et al., 2021)
    Generalized Recorrupted-to-Recorrupted (Monroy et al., 2025), deepinv's ``R2RLoss``
"""

from dataclasses import dataclass

from deepinv.loss.loss import Loss as LossOfDeepinv
from torch import Generator, Tensor
from typing_extensions import override

from cleanprior.data import Batch

from .base import FirstStage
from .physics import Measured


@dataclass(kw_only=True)
class RecorruptThenTrain(FirstStage):
    """A denoiser by R2R, then a prior of its outputs; arguments of :class:`.base.FirstStage`."""

    @override
    def compared(
        self,
        batch: Batch,
        y: Tensor,
        physics: Measured,
        consistency: LossOfDeepinv,
        generator: Generator,
    ) -> Tensor:
        x = self.ask(self.restorer, y, batch.params, self.given_noise(batch))
        return consistency(x_net=x, y=batch.y, physics=physics, model=None)
