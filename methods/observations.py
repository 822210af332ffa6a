r"""Observations: what one has before training anything: y itself where it is an image, else A^+ y.

A method below this row on a metric has made things worse.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn
from typing_extensions import override

from cleanprior.data import Batch, Measurements, TrainingSet
from cleanprior.diffusion.posterior import Draw
from cleanprior.prior import Prior
from cleanprior.training import Loss, Method, Round, Route, Session


@dataclass(kw_only=True)
class Observations(Method):
    """Train nothing: lift the measurements to images."""

    @override
    def build(self) -> None:
        self._measurements: Measurements | None = None

    @override
    def networks(self) -> Mapping[str, nn.Module]:
        return {}

    @override
    def begin_round(self, number: int, round: Round, session: Session) -> TrainingSet:
        self._measurements = session.measurements
        return session.measurements

    @override
    def loss(self, batch: Batch, generator: Generator, turn: str) -> Loss:
        raise AssertionError("observations have no network to train")

    @override
    def prior(self, averaged: Mapping[str, nn.Module]) -> Prior | None:
        return None

    def _restore(self, batch: Batch, generators: list[Generator]) -> Draw:
        return Draw(self.problem.operator.lift(batch.y, batch.params), 0)

    def _sample(self, n: int, generator: Generator) -> Tensor:
        assert self._measurements is not None
        # With replacement: as many as are asked for.
        index = torch.randint(len(self._measurements), (n,), generator=generator)
        batch = self._measurements.batch(index).to(self.device)
        return self.problem.operator.lift(batch.y, batch.params)

    @override
    def routes(self, averaged: Mapping[str, nn.Module]) -> Sequence[Route]:
        assert self._measurements is not None
        is_image = self.problem.operator.is_image(self._measurements.y[:1])
        name = "y itself" if is_image else self.problem.operator.lifted
        return [Route(name, restore=self._restore, sample=self._sample, kind="point")]
