r"""Any method with a leak: its measurements are drawn anew from clean images as it trains.

Objective: that of another method, ``of``. Several public training scripts hold clean images and
draw a mask, or noise, each time that an image comes. What they report is then no training on
corrupted data: after E epochs a pixel that is missing with probability p was hidden every time only
with :math:`p^E`, and the mean of E noisy copies has :math:`\sigma_y^2 / E`. This method does so on
purpose, in each batch, and for a method with E-steps in each round; everything else is the same. A
table with both rows says what the habit is worth.

Its row has the clean images that it was handed, all of them, the warning ``leak``, and is never
ranked against a row without.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor, nn
from typing_extensions import override

from cleanprior.config.capabilities import WARNINGS
from cleanprior.data import Batch, Images, Measurements, TrainingSet
from cleanprior.prior import Prior
from cleanprior.training import (
    DenoiserMethod,
    Loss,
    Method,
    Problem,
    Round,
    Route,
    Session,
    Warning,
)


@dataclass(kw_only=True)
class Leaky(Method):
    """Another method, whose measurements are never the same twice.

    Arguments:
        needs: See :class:`cleanprior.training.Method`.
        clean_images: ``all``: those that are measured again and again.
        of: The method; one that is handed no clean image itself.

    Raises:
        ValueError: The method learns no denoiser, or is handed clean images.
    """

    clean_images: int | str = "all"
    of: DenoiserMethod

    def __post_init__(self) -> None:
        if not isinstance(self.of, DenoiserMethod):
            raise ValueError(f"of={type(self.of).__name__} learns no denoiser that could leak")
        if self.of.clean_images:
            raise ValueError(
                f"of={type(self.of).__name__} is handed {self.of.clean_images} clean images; "
                "allowed: a method that is handed none"
            )
        self.budgeted = self.of.budgeted

    @property
    @override
    def noise_floor(self) -> float:
        return self.of.noise_floor

    @override
    def supports(self, problem: Problem) -> str | None:
        return super().supports(problem) or self.of.supports(problem)

    @override
    def warnings(self, problem: Problem) -> list[Warning]:
        return [*self.of.warnings(problem), Warning("leak", WARNINGS["leak"])]

    @override
    def has_gaps(self, problem: Problem) -> bool:
        return self.of.has_gaps(problem)

    @override
    def is_budgeted(self, network: str) -> bool:
        return self.of.is_budgeted(network)

    @override
    def followed(self, steps: Mapping[str, int]) -> int:
        return self.of.followed(steps)

    @property
    @override
    def begun(self) -> str:
        return self.of.begun

    @override
    def setup(self, problem: Problem, device: torch.device) -> None:
        self.of.setup(problem, device)
        self.problem, self.device = self.of.problem, device
        self.learning_rates, self.betas = self.of.learning_rates, self.of.betas

    def build(self) -> None:
        """Make the networks of the other method."""
        self.of.build()

    @override
    def networks(self) -> Mapping[str, nn.Module]:
        return self.of.networks()

    @override
    def rounds(self, budget: int) -> Sequence[Round]:
        return self.of.rounds(budget)

    @override
    def begin_round(self, number: int, round: Round, session: Session) -> TrainingSet:
        assert session.clean is not None, "the runner hands clean images to an entitled method"
        drawn = self._drawn(session.clean, number, session)
        found = self.of.begin_round(number, round, replace(session, measurements=drawn, clean=None))
        self._is_measured = found is drawn
        if not self._is_measured:
            return found
        return Images(session.clean, drawn, torch.arange(len(drawn)))

    def _drawn(self, clean: Tensor, number: int, session: Session) -> Measurements:
        """Return measurements of a round, another one's than the last."""
        operator = self.problem.operator.to("cpu")
        return Measurements.draw(clean, operator, session.seed, f"leak-{number}")

    @override
    def loss(self, batch: Batch, generator: Generator, turn: str) -> Loss:
        if not self._is_measured:
            return self.of.loss(batch, generator, turn)
        assert batch.images is not None
        operator = self.problem.operator
        params = {k: v.to(self.device) for k, v in operator.draw(len(batch), generator).items()}
        y = operator.measure(batch.images, params, generator)
        return self.of.loss(replace(batch, y=y, params=params, images=None), generator, turn)

    def prior(self, averaged: Mapping[str, nn.Module]) -> Prior | None:
        """Return that of the other method."""
        return self.of.prior(averaged)

    @override
    def routes(self, averaged: Mapping[str, nn.Module]) -> Sequence[Route]:
        return self.of.routes(averaged)
