r"""Oracle: the same denoiser trained on clean images, the upper bound of every table.

Objective: :math:`\mathbb E\, w(\sigma)\|D(x + \sigma n, \sigma) - x\|^2` (EDM, Eq. 8). It is the
one method that a training loop hands clean images to, all of them, and its row says so.

References:
    Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022),
    arXiv:2206.00364
"""

from dataclasses import dataclass

import torch
from torch import Generator
from typing_extensions import override

from cleanprior.data import Batch, Images, TrainingSet
from cleanprior.diffusion.denoiser import denoising_loss
from cleanprior.training import DenoiserMethod, Loss, Round, Session


@dataclass(kw_only=True)
class Oracle(DenoiserMethod):
    """Train on clean images: how well the pipeline does when nothing is missing.

    Arguments:
        clean_images: ``all``, or how many (the same ones that few-clean methods get).
    """

    fits_images = True
    clean_images: int | str = "all"

    @override
    def begin_round(self, number: int, round: Round, session: Session) -> TrainingSet:
        assert session.clean is not None, "the runner hands clean images to an entitled method"
        return Images(session.clean, session.measurements, torch.arange(len(session.clean)))

    @override
    def loss(self, batch: Batch, generator: Generator, turn: str) -> Loss:
        assert batch.images is not None
        return Loss(denoising_loss(self.denoiser, batch.images, generator))
