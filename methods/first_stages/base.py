r"""What self-supervised first stages share: what f is given, how it restores, noise.

f is the shared backbone. Its input is the image that a user would look at (y, or :math:`A^+ y`) and
the operator's description; its level is the noise of y, and where A is not the identity what
:math:`A^+` leaves out beside it, :math:`(\sigma_y^2 + \sigma_d^2)^{1/2}`, at which EDM's output
scale is that of images.

With noise, :math:`y + \alpha\sigma_y\omega` takes the place of y, and R2R's loss
:math:`\|A f(y + \alpha\sigma_y\omega) - (y - \sigma_y\omega/\alpha)\|^2` that of a comparison with
y: its target is independent of its input, and f becomes :math:`E[x \mid y + \alpha\sigma_y\omega]`.
The restoration is the mean over ``draws`` of them, :math:`\omega` and :math:`-\omega` in turn.
Without noise the restoration is made to agree with y, :math:`x + A^+(y - A x)`.

References:
    Recorrupted-to-Recorrupted (Pang et al., 2021), section 3; deepinv's ``R2RLoss`` is the general
    form of Monroy et al. (2025)
"""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from deepinv.loss import MCLoss
from deepinv.loss.loss import Loss as LossOfDeepinv
from jaxtyping import Float
from torch import Generator, Tensor, nn
from typing_extensions import override

from cleanprior.data import Batch
from cleanprior.diffusion.denoiser import SIGMA_MIN, Denoiser
from cleanprior.diffusion.posterior import Draw
from cleanprior.operators import Params
from cleanprior.operators.levels import column
from cleanprior.seeding import generator_for, randn_like
from cleanprior.training import Problem, Warning

from ..two_stage import Restore, RestoreThenTrain
from .physics import Measured, Recorrupted, deepinv_alpha, noisy, quiet_products

#: Applied to the input of f and its description, or to its output.
Move = Callable[[Tensor], Tensor]


def as_it_is(x: Tensor) -> Tensor:
    """Return x."""
    return x


@dataclass(kw_only=True)
class FirstStage(RestoreThenTrain):
    r"""A restorer that is told the operator, by a loss of deepinv, and a prior of its outputs.

    Arguments:
        needs: See :class:`cleanprior.training.Method`.
        restorer_share: See :class:`..two_stage.RestoreThenTrain`.
        alpha: :math:`\alpha` of R2R, above 0, where y has noise: f is given noise of
            :math:`(1+\alpha^2)^{1/2}\sigma_y`, its target has :math:`(1+1/\alpha^2)^{1/2}\sigma_y`.
        draws: Evaluations that a restoration is the mean of, where there is something to average; 1
            takes y as it is.
        chunk: See :class:`..two_stage.RestoreThenTrain`.

    Raises:
        ValueError: A value outside its range.
    """

    also_budgeted: ClassVar[tuple[str, ...]] = ("restorer",)

    alpha: float
    draws: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.alpha < float("inf"):
            raise ValueError(f"alpha={self.alpha}; allowed: above 0")
        if self.draws < 1:
            raise ValueError(f"draws={self.draws}; allowed: 1 or more")

    @override
    def warnings(self, problem: Problem) -> list[Warning]:
        text = (
            "the prior is that of point estimates, whose law is smoother than that of images; the "
            f"restorer took {self.restorer_share:.0%} of the budget"
        )
        return [*super().warnings(problem), Warning("smooth", text)]

    def build(self) -> None:
        """Make the prior's network and f, which is that of stage 1 when the prior begins."""
        self.denoiser = self.problem.denoiser()
        self.restorer = self.problem.denoiser(self.problem.operator.description_channels)
        self.take_up_restorer()

    @property
    @override
    def route_name(self) -> str:
        count = self._evaluations
        share = f"restorer, {self.restorer_share:.0%} of the budget"
        return f"{share}, {'one step' if count == 1 else f'mean of {count}'}"

    @property
    def is_noisy(self) -> bool:
        """Whether some measurement has noise."""
        return self.problem.sigma_y > 0

    @property
    def _evaluations(self) -> int:
        """Evaluations of a restoration."""
        return self.draws if self.is_noisy else 1

    # -- stage 1 -------------------------------------------------------------------------------

    @override
    def restorer_loss(self, batch: Batch, generator: Generator) -> Tensor:
        operator = self.problem.operator
        y, consistency = batch.y, MCLoss()
        if self.is_noisy:
            level = self.alpha * batch.sigma_y
            y = noisy(batch.y, level, operator, batch.params, generator)
            consistency = Recorrupted(y, deepinv_alpha(self.alpha))
        physics = Measured(operator, batch.params, batch.sigma_y, generator, batch.y)
        with quiet_products():
            return self.compared(batch, y, physics, consistency, generator)

    @abstractmethod
    def compared(
        self,
        batch: Batch,
        y: Tensor,
        physics: Measured,
        consistency: LossOfDeepinv,
        generator: Generator,
    ) -> Tensor:
        """Return the loss of stage 1.

        Arguments:
            batch: Measurements.
            y: What f is given: the measurements, recorrupted where they have noise.
            physics: The batch's operators.
            consistency: deepinv's comparison of A f(y) with the measurements.
            generator: The only source of randomness.
        """

    def ask(
        self,
        restorer: nn.Module,
        y: Float[Tensor, "b ..."],
        params: Params,
        noise: Float[Tensor, " b"],
        move: Move = as_it_is,
    ) -> Float[Tensor, "b c h w"]:
        """Return f(y) under these parameters.

        Arguments:
            restorer: f.
            y: Measurements.
            params: Of their operators.
            noise: Noise level of each measurement that is given.
            move: Applied to the input and the description.
        """
        operator = self.problem.operator
        told = operator.describe(params, len(y))
        is_identity = "identity" in operator.capabilities
        missing = 0.0 if is_identity else self.problem.sigma_data
        level = (noise**2 + missing**2).sqrt().clamp_min(SIGMA_MIN)
        u = move(operator.lift(y, params))
        return restorer(u, level, None if told is None else move(told))

    def given_noise(self, batch: Batch) -> Float[Tensor, " b"]:
        """Return the noise level of what f is given in stage 1."""
        return batch.sigma_y * (1 + self.alpha**2) ** 0.5 if self.is_noisy else batch.sigma_y

    # -- restoration ---------------------------------------------------------------------------

    @override
    def restoration(self, restorer: nn.Module) -> Restore:
        assert isinstance(restorer, Denoiser)

        @torch.no_grad()
        def restore(batch: Batch, _generators: list[Generator]) -> Draw:
            count = self._evaluations
            total = torch.zeros(1, device=batch.y.device)
            for k in range(count):
                y, noise = self._recorrupted(batch, k, count)
                total = total + self.restored(restorer, y, batch.params, noise, k)
            x = total / count
            if not self.is_noisy:
                operator = self.problem.operator
                residual = batch.y - operator.A(x, batch.params)
                x = x + operator.A_dagger(residual, batch.params)
            return Draw(x, count)

        return restore

    def restored(
        self, restorer: nn.Module, y: Tensor, params: Params, noise: Tensor, k: int
    ) -> Tensor:
        """Return the k-th of the evaluations that a restoration is the mean of."""
        return self.ask(restorer, y, params, noise)

    def _recorrupted(self, batch: Batch, k: int, count: int) -> tuple[Tensor, Tensor]:
        """Return what f is given in the k-th evaluation, and its noise; a last one alone has y.

        The noise is the same for each image, so that none depends on its batch.
        """
        if not self.is_noisy or (k == count - 1 and count % 2):
            return batch.y, batch.sigma_y
        one = randn_like(batch.y[:1], generator_for(0, "recorruption", pair=k // 2))
        level = self.alpha * column(batch.sigma_y, batch.y)
        seen = self.problem.operator.observed(batch.y, batch.params)
        sign = 1 - 2 * (k % 2)
        return batch.y + sign * level * one * seen, self.given_noise(batch)
