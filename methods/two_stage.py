r"""Restore, then train: what all methods share whose prior is one of restorations.

Stage 1 trains a restorer f on ``restorer_share`` of the budget. Stage 2 trains the prior on the
rest, on the frozen :math:`\hat x = f(y)` of every measurement, computed once:
:math:`\mathbb E\, w(\sigma)\|D(\hat x + \sigma n, \sigma) - \hat x\|^2`.

The prior learns the law of what the restorer returns. A restorer that minimises a squared error is
a conditional mean, and the law of means is narrower than that of images: for an exact
:math:`E[x|y]` of Gaussian images of covariance C that is :math:`C (C + \sigma_y^2 I)^{-1} C`,
always below C.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Generator, Tensor, nn
from typing_extensions import override

from cleanprior.data import Batch, Images, TrainingSet
from cleanprior.diffusion.denoiser import Denoiser, denoising_loss
from cleanprior.diffusion.posterior import Draw
from cleanprior.training import DenoiserMethod, Loss, Problem, Round, Route, Session

#: Restores a batch; the generators have no part in a point estimate.
Restore = Callable[[Batch, list[Generator]], Draw]


@dataclass(kw_only=True)
class RestoreThenTrain(DenoiserMethod):
    """A restorer on a share of the budget, then a prior of its outputs on the rest.

    A subclass makes ``self.denoiser`` and ``self.restorer`` in :meth:`build`.

    Arguments:
        needs: See :class:`cleanprior.training.Method`.
        restorer_share: Share of the budget spent on the restorer, in (0, 1).
        chunk: Measurements restored at a time, 1 or more.

    Raises:
        ValueError: A value outside its range.
    """

    fits_images = True
    #: The network that stage 1 trains, and whose average restores.
    first: ClassVar[str] = "restorer"

    restorer_share: float
    chunk: int
    restorer: Denoiser = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 0 < self.restorer_share < 1:
            raise ValueError(
                f"restorer_share={self.restorer_share}; allowed: above 0 and below 1 (the rest of "
                "the budget trains the prior)"
            )
        if self.chunk < 1:
            raise ValueError(f"chunk={self.chunk}; allowed: 1 or more")

    @abstractmethod
    def restorer_loss(self, batch: Batch, generator: Generator) -> Tensor:
        """Return the loss of stage 1."""

    @abstractmethod
    def restoration(self, restorer: nn.Module) -> Restore:
        """Return how a network that stage 1 has trained restores."""

    @override
    def setup(self, problem: Problem, device: torch.device) -> None:
        self._restorer_state: dict[str, Tensor] = {}
        super().setup(problem, device)

    def take_up_restorer(self) -> None:
        """Give ``self.restorer`` the weights of stage 1, once there are any."""
        if self._restorer_state:
            self.restorer.load_state_dict(self._restorer_state)

    @override
    def networks(self) -> Mapping[str, nn.Module]:
        return {"denoiser": self.denoiser, "restorer": self.restorer}

    def rounds(self, budget: int) -> Sequence[Round]:
        """Plan both stages."""
        first = max(1, round(budget * self.restorer_share))
        return [
            Round("restorer", first, (self.first,)),
            Round("prior", budget - first, begin="scratch"),
        ]

    @override
    def begin_round(self, number: int, round: Round, session: Session) -> TrainingSet:
        self._session = session
        if round.name == "restorer":
            return session.measurements
        data = session.measurements
        stored, costs = session.store.once("restorations", lambda: self._restore_all(session))
        for name, amount in costs.items():
            session.count(name, amount)
        images = stored.pop("images")
        self._restorer_state = {k.removeprefix("restorer."): v for k, v in stored.items()}
        return Images(images, data, torch.arange(len(data)))

    def _restore_all(self, session: Session) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Return the restoration of every measurement and the weights that made them."""
        restorer, data = session.averaged[self.first], session.measurements
        restore = self.restoration(restorer)
        draws = [
            restore(data.batch(part).to(session.device), [])
            for part in torch.arange(len(data)).split(self.chunk)
        ]
        images = torch.cat([draw.x.cpu() for draw in draws])
        weights = {f"restorer.{k}": v.cpu() for k, v in restorer.state_dict().items()}
        return {"images": images, **weights}, {
            "evaluations": float(sum(draw.evaluations * len(draw.x) for draw in draws))
        }

    @override
    def loss(self, batch: Batch, generator: Generator, turn: str) -> Loss:
        if batch.images is not None:
            return Loss(denoising_loss(self.denoiser, batch.images, generator))
        return Loss(self.restorer_loss(batch, generator))

    def routes(self, averaged: Mapping[str, nn.Module]) -> Sequence[Route]:
        """Restoration by stage 1."""
        restore = self.restoration(averaged["restorer"])
        return [Route(self.route_name, restore=restore, kind="point")]

    @property
    def route_name(self) -> str:
        """How the restorer's row is called."""
        return "restorer, one step"
