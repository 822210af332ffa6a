r"""Restore, then train: a restoration network first, then a prior of what it returns.

Objective. Stage 1: a restorer f. Stage 2, on the frozen :math:`\hat x = f(y)` of every measurement,
computed once: :math:`\mathbb E\, w(\sigma)\|D(\hat x + \sigma n, \sigma) - \hat x\|^2`. Restorers:

- ``sure`` (:class:`DenoiseThenTrain`): a denoiser fitted by Stein's risk,
  :math:`\|f(y) - y\|^2 + 2\sigma_y^2\,\mathrm{div} f(y) - \sigma_y^2`, for images with Gaussian
  noise, on ``restorer_share`` of the budget;
- the pseudo-inverse (:class:`PinvThenTrain`): :math:`A^+ y` cut to [-1, 1], for any linear
  operator; nothing is trained in stage 1. Unlike ``naive`` it fits every pixel, the filled ones
  too, and deconvolves, noise included.

The prior learns the law of what the restorer returns. For an exact :math:`E[x|y]` of Gaussian
images of covariance C that is :math:`C (C + \sigma_y^2 I)^{-1} C`, always below C.

Difference from published instances: both stages share one budget, and the restorations stay
floating-point tensors.

Cost: a step of stage 1 sees each image twice (f and its derivative); the budget counts one, the
other and the pass over all measurements are counted as evaluations.

References:
    Monte-Carlo SURE (Ramani et al., 2008), for stage 1
    Robust multi-coil MRI reconstruction via self-supervised denoising (Aali et al., 2025), a
    two-stage instance for MRI
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn
from typing_extensions import override

from cleanprior.config.checks import check_choice
from cleanprior.data import Batch, Images, Measurements, TrainingSet
from cleanprior.diffusion.denoiser import Denoiser, denoising_loss
from cleanprior.training import DenoiserMethod, Loss, OneStep, Problem, Round, Route, Session
from cleanprior.training.stein import PROBES, denoise_and_divergence, draw_probe, stein_risk


@dataclass(kw_only=True)
class DenoiseThenTrain(DenoiserMethod):
    """A denoiser by Stein's risk, then a prior of its outputs.

    Arguments:
        needs: See :class:`cleanprior.training.Method`.
        restorer_share: Share of the budget spent on the restorer, in (0, 1).
        probe: Probe of the divergence, ``rademacher`` or ``gaussian``.
        chunk: Measurements restored at a time.

    Raises:
        ValueError: A value outside its range.
    """

    restorer_share: float
    probe: str
    chunk: int

    def __post_init__(self) -> None:
        check_choice("probe", self.probe, PROBES)
        if not 0 < self.restorer_share < 1:
            raise ValueError(
                f"restorer_share={self.restorer_share}; allowed: above 0 and below 1 (the rest of "
                "the budget trains the prior)"
            )
        if self.chunk < 1:
            raise ValueError(f"chunk={self.chunk}; allowed: 1 or more")

    @override
    def setup(self, problem: Problem, device: torch.device) -> None:
        self._restorer_state: dict[str, Tensor] = {}
        super().setup(problem, device)

    def build(self) -> None:
        """Make the networks; when the prior starts anew, the restorer is the one of stage 1."""
        self.denoiser = self.problem.denoiser()
        self.restorer = self.problem.denoiser().requires_grad_(False)
        if self._restorer_state:
            self.restorer.load_state_dict(self._restorer_state)

    @override
    def networks(self) -> Mapping[str, nn.Module]:
        return {"denoiser": self.denoiser, "restorer": self.restorer}

    def rounds(self, budget: int) -> Sequence[Round]:
        """Plan both stages; the denoiser of the first becomes the restorer of the second."""
        first = max(1, round(budget * self.restorer_share))
        return [Round("restorer", first), Round("prior", budget - first, begin="scratch")]

    @override
    def begin_round(self, number: int, round: Round, session: Session) -> TrainingSet:
        self._session, self._is_restorer = session, round.name == "restorer"
        if self._is_restorer:
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
        restorer, data = session.averaged["denoiser"], session.measurements
        assert isinstance(restorer, Denoiser)
        parts = [
            OneStep(restorer)(data.batch(part).to(session.device), []).x.cpu()
            for part in torch.arange(len(data)).split(self.chunk)
        ]
        weights = {f"restorer.{k}": v.cpu() for k, v in restorer.state_dict().items()}
        return {"images": torch.cat(parts), **weights}, {"evaluations": float(len(data))}

    @override
    def loss(self, batch: Batch, generator: Generator, turn: str) -> Loss:
        if batch.images is not None:
            return Loss(denoising_loss(self.denoiser, batch.images, generator))
        probe = draw_probe(self.probe, batch.y, generator)
        f, divergence = denoise_and_divergence(self.denoiser, batch.y, batch.sigma_y, probe)
        self._session.count("evaluations", float(len(batch)))
        return Loss(stein_risk(f, divergence, batch.y, batch.sigma_y).mean())

    def routes(self, averaged: Mapping[str, nn.Module]) -> Sequence[Route]:
        """Restoration by stage 1, one evaluation."""
        restorer = averaged["restorer"]
        assert isinstance(restorer, Denoiser)
        return [Route("restorer, one step", restore=OneStep(restorer), kind="point")]


@dataclass(kw_only=True)
class PinvThenTrain(DenoiserMethod):
    """A prior of pseudo-inverses.

    Arguments:
        needs: See :class:`cleanprior.training.Method`.
        chunk: Measurements restored at a time, 1 or more.

    Raises:
        ValueError: A value outside its range.
    """

    chunk: int

    def __post_init__(self) -> None:
        if self.chunk < 1:
            raise ValueError(f"chunk={self.chunk}; allowed: 1 or more")

    @override
    def begin_round(self, number: int, round: Round, session: Session) -> TrainingSet:
        data = session.measurements
        stored, _ = session.store.once("restorations", lambda: (self._invert(data), {}))
        return Images(stored["images"], data, torch.arange(len(data)))

    def _invert(self, data: Measurements) -> dict[str, Tensor]:
        """Return A^+ y of every measurement; noise over tiny singular values is cut to [-1, 1]."""
        operator = self.problem.operator.to("cpu")
        batches = (data.batch(part) for part in torch.arange(len(data)).split(self.chunk))
        parts = [operator.A_dagger(b.y, b.params).clamp(-1, 1) for b in batches]
        return {"images": torch.cat(parts)}

    @override
    def loss(self, batch: Batch, generator: Generator, turn: str) -> Loss:
        assert batch.images is not None
        return Loss(denoising_loss(self.denoiser, batch.images, generator))
