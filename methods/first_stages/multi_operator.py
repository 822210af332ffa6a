r"""Multi-operator imaging, then train.

Objective of stage 1: :math:`\|A f(y) - y\|^2 + w\,\|f(A_2 f(y) + \sigma_y z) - f(y)\|^2`,
:math:`A_2` drawn by the operator's law: what one operator hides another shows, and f must restore
its own restorations. Without noise and with images of few dimensions (fewer than what an operator
measures, by those that each operator leaves out on average) the minimiser restores exactly; for
others it is no conditional mean.

Differences: with noise R2R takes the place of the comparison with y, which would fit the noise;
deepinv recommends it or Stein's risk.

Cost: a step asks f twice. The budget counts one, the other is counted as an evaluation.

References:
    Unsupervised Learning From Incomplete Measurements for Inverse Problems (Tachella et al., 2022),
    arXiv:2201.12151
"""

from dataclasses import dataclass

from deepinv.loss import MOILoss
from deepinv.loss.loss import Loss as LossOfDeepinv
from torch import Generator, Tensor
from typing_extensions import override

from cleanprior.config.checks import check_positive
from cleanprior.data import Batch

from .base import FirstStage
from .physics import Draws, Measured, Restorer


@dataclass(kw_only=True)
class MultiOperatorThenTrain(FirstStage):
    """A restorer by what other operators would have measured, then a prior of its outputs.

    Arguments:
        needs: See :class:`cleanprior.training.Method`.
        restorer_share: See :class:`.base.FirstStage`.
        weight: w, above 0.
        alpha: See :class:`.base.FirstStage`.
        draws: See :class:`.base.FirstStage`.
        chunk: See :class:`.base.FirstStage`.

    Raises:
        ValueError: A value outside its range.
    """

    weight: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("weight", self.weight)

    @override
    def compared(
        self,
        batch: Batch,
        y: Tensor,
        physics: Measured,
        consistency: LossOfDeepinv,
        generator: Generator,
    ) -> Tensor:
        def restore(again: Tensor, of: Measured) -> Tensor:
            return self.ask(self.restorer, again, of.params, batch.sigma_y)

        draws = Draws(physics.operator, len(y), generator)
        moi = MOILoss(physics_generator=draws, apply_noise=self.is_noisy, weight=self.weight)
        x = self.ask(self.restorer, y, batch.params, self.given_noise(batch))
        self._session.count("evaluations", float(len(batch)))
        same = consistency(x_net=x, y=batch.y, physics=physics, model=None)
        return same + moi(x_net=x, physics=physics, model=Restorer(restore))
