r"""Observations: what one has before training anything: y itself where it is an image, else A^+ y.

A method below this row on a metric has made things worse.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from cleanprior.data import Batch, Measurements, TrainingSet
from cleanprior.diffusion.posterior import Draw
from cleanprior.prior import Prior
from cleanprior.training import Loss, Method, Round, Route, Session


@dataclass(kw_only=True)
class Observations(Method):
    """Train nothing: lift the measurements to images."""

    def build(self) -> None:  # noqa: D102
        self._measurements: Measurements | None = None

    def networks(self) -> Mapping[str, nn.Module]:  # noqa: D102
        return {}

    def begin_round(self, number: int, round: Round, session: Session) -> TrainingSet:  # noqa: D102
        self._measurements = session.measurements
        return session.measurements

    def loss(self, batch: Batch, generator: Generator, turn: str) -> Loss:  # noqa: D102
        raise AssertionError("observations have no network to train")

    def prior(self, averaged: Mapping[str, nn.Module]) -> Prior | None:  # noqa: D102
        return None

    def _restore(self, batch: Batch, generators: list[Generator]) -> Draw:
        return Draw(self.problem.operator.lift(batch.y, batch.params), 0)

    def _sample(self, n: int, generator: Generator) -> Tensor:
        assert self._measurements is not None
        # With replacement: as many as are asked for.
        index = torch.randint(len(self._measurements), (n,), generator=generator)
        batch = self._measurements.batch(index).to(self.device)
        return self.problem.operator.lift(batch.y, batch.params)

    def routes(self, averaged: Mapping[str, nn.Module]) -> Sequence[Route]:  # noqa: D102
        assert self._measurements is not None
        is_image = self.problem.operator.is_image(self._measurements.y[:1])
        name = "y itself" if is_image else "A^+ y"
        return [Route(name, restore=self._restore, sample=self._sample, kind="point")]
