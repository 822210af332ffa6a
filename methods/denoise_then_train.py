r"""Restore, then train: a restoration network first, then a prior of what it returns.

Objective. Stage 1: a restorer f. Stage 2, on the frozen :math:`\hat x = f(y)` of every measurement,
computed once: :math:`\mathbb E\, w(\sigma)\|D(\hat x + \sigma n, \sigma) - \hat x\|^2`. Restorers:

- ``sure`` (:class:`DenoiseThenTrain`): a denoiser fitted by Stein's risk,
  :math:`\|f(y) - y\|^2 + 2\sigma_y^2\,\mathrm{div} f(y) - \sigma_y^2`, for images with Gaussian
  noise, on ``restorer_share`` of the budget;
- the pseudo-inverse (:class:`PinvThenTrain`): :math:`A^+ y` cut to [-1, 1], for any linear
  operator; nothing is trained in stage 1. Unlike ``naive`` it fits every pixel, the filled ones
  too, and deconvolves, noise included.

Both priors learn the law of what stage 1 returns, see :mod:`cleanprior.methods.two_stage`.

Difference from published instances: both stages share one budget, and the restorations stay
floating-point tensors.

Cost: a step of stage 1 sees each image twice (f and its derivative); the budget counts one, the
other and the pass over all measurements are counted as evaluations.

References:
    Monte-Carlo SURE (Ramani et al., 2008), for stage 1
    Robust multi-coil MRI reconstruction via self-supervised denoising (Aali et al., 2025), a
    two-stage instance for MRI
"""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn
from typing_extensions import override

from cleanprior.config.checks import check_choice
from cleanprior.data import Batch, Images, Measurements, TrainingSet
from cleanprior.diffusion.denoiser import Denoiser, denoising_loss
from cleanprior.training import DenoiserMethod, Loss, OneStep, Round, Session
from cleanprior.training.stein import PROBES, denoise_and_divergence, draw_probe, stein_risk

from .two_stage import Restore, RestoreThenTrain


@dataclass(kw_only=True)
class DenoiseThenTrain(RestoreThenTrain):
    """A denoiser by Stein's risk, then a prior of its outputs.

    Arguments:
        needs: See :class:`cleanprior.training.Method`.
        restorer_share: See :class:`.two_stage.RestoreThenTrain`.
        probe: Probe of the divergence, ``rademacher`` or ``gaussian``.
        chunk: See :class:`.two_stage.RestoreThenTrain`.

    Raises:
        ValueError: A value outside its range.
    """

    #: Stage 1 trains the prior's own network, which the prior then begins without.
    first = "denoiser"

    probe: str

    def __post_init__(self) -> None:
        check_choice("probe", self.probe, PROBES)
        super().__post_init__()

    def build(self) -> None:
        """Make the networks; when the prior starts anew, the restorer is the one of stage 1."""
        self.denoiser = self.problem.denoiser()
        self.restorer = self.problem.denoiser().requires_grad_(False)
        self.take_up_restorer()

    @override
    def restoration(self, restorer: nn.Module) -> Restore:
        assert isinstance(restorer, Denoiser)
        return OneStep(restorer)

    @override
    def restorer_loss(self, batch: Batch, generator: Generator) -> Tensor:
        probe = draw_probe(self.probe, batch.y, generator)
        f, divergence = denoise_and_divergence(self.denoiser, batch.y, batch.sigma_y, probe)
        self._session.count("evaluations", float(len(batch)))
        return stein_risk(f, divergence, batch.y, batch.sigma_y).mean()


@dataclass(kw_only=True)
class PinvThenTrain(DenoiserMethod):
    """A prior of pseudo-inverses.

    Arguments:
        needs: See :class:`cleanprior.training.Method`.
        chunk: Measurements restored at a time, 1 or more.

    Raises:
        ValueError: A value outside its range.
    """

    fits_images = True
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
