r"""Splitting and equivariant splitting, then train.

Objective of ``ssdu_then_train``: y is split at random, M = M1 + M2, and f, which is given M1 y and
told M1, is compared with the rest, :math:`\|M_2 A f(M_1 y) - M_2 y\|^2`. M2 y has noise of its own,
so the minimiser is :math:`E[x \mid M_1 y]` where operators vary between images, in all that M2 may
show. Splits are the operator's further corruptions: entries of a mask with probability
1 - ``split_ratio``, lines of k-space, a second box, a row.

Objective of ``es_then_train``: f is averaged over a group, :math:`R(y, A) = E_g T_g f(y, A T_g)`,
and :math:`\|M_2 A R - M_2 y\|^2 + \|M_1 A R - M_1 y\|^2`, each a mean over its entries. Under one
fixed mask, too, where the transforms of it show everything: a rank test says so.

Differences:

- f's own entries M1 are in no comparison of SSDU. Without noise they are y; with noise R2R
  compares them (deepinv's ``EquivariantSplittingLoss`` without a group);
- restoration gives f all of y, as SSDU does; equivariant splitting averages ``draws`` elements of
  the group, and not splits;
- one element of the group an image and step, where the paper's average takes all of them: the
  minimiser is an f that is equivariant by itself;
- SSDU keeps the middle of k-space in M1, and so do these splits; it unrolls a solver, f does not.

References:
    Self-supervised learning of physics-guided reconstruction neural networks without fully sampled
    reference data (SSDU; Yaman et al., 2020)
    Noise2Self (Batson and Royer, 2019), arXiv:1901.11365, for masks
    Equivariant Splitting (Sechaud et al., 2026), arXiv:2510.00929
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from deepinv.loss import EquivariantSplittingLoss, MCLoss, SplittingLoss
from deepinv.loss.loss import Loss as LossOfDeepinv
from torch import Generator, Tensor, nn
from typing_extensions import override

from cleanprior.config.checks import check_choice
from cleanprior.data import Batch
from cleanprior.operators import Params
from cleanprior.operators.symmetry import SYMMETRIES, elements, moved, unshown
from cleanprior.seeding import generator_for
from cleanprior.training import Problem, Warning

from .base import FirstStage
from .physics import Group, Measured, Restorer, Split


@dataclass(kw_only=True)
class SplitThenTrain(FirstStage):
    """A restorer by split measurements, then a prior of its outputs.

    Arguments:
        needs: See :class:`cleanprior.training.Method`.
        restorer_share: See :class:`.base.FirstStage`.
        split_ratio: Share of the seen pixels that f is given, in (0, 1); boxes, rows and lines have
            further corruptions of their own and do not use it.
        alpha: See :class:`.base.FirstStage`.
        draws: See :class:`.base.FirstStage`.
        chunk: See :class:`.base.FirstStage`.

    Raises:
        ValueError: A value outside its range.
    """

    split_ratio: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.split_ratio < 1:
            raise ValueError(f"split_ratio={self.split_ratio}; allowed: above 0 and below 1")

    @override
    def compared(
        self,
        batch: Batch,
        y: Tensor,
        physics: Measured,
        consistency: LossOfDeepinv,
        generator: Generator,
    ) -> Tensor:
        split = Split(physics.operator, batch.params, y, 1 - self.split_ratio, generator)
        loss = self.split_loss(split, consistency, generator)

        def restore(given: Tensor, of: object) -> Tensor:
            back = getattr(of, "T_inv", None)
            noise = self.given_noise(batch)
            if back is None:
                return self.ask(self.restorer, given, split.kept, noise)
            return self.ask(self.restorer, given, split.kept, noise, back)

        model = loss.adapt_model(Restorer(restore))
        x = model(y, physics, update_parameters=True)
        return loss(x_net=x, y=batch.y, physics=physics, model=model)

    def split_loss(
        self, split: Split, consistency: LossOfDeepinv, generator: Generator
    ) -> LossOfDeepinv:
        """Return deepinv's loss."""
        if not self.is_noisy:
            return SplittingLoss(mask_generator=split)
        return EquivariantSplittingLoss(
            mask_generator=split, consistency_loss=consistency, prediction_loss=MCLoss()
        )


@dataclass(kw_only=True)
class EquivariantThenTrain(SplitThenTrain):
    """A restorer by equivariant splitting, then a prior of its outputs.

    Arguments:
        needs: See :class:`cleanprior.training.Method`.
        group: Symmetries that the images are declared to have, at least one of ``flip``, ``turn``
            and ``shift``.
        restorer_share: See :class:`.base.FirstStage`.
        split_ratio: See :class:`SplitThenTrain`.
        alpha: See :class:`.base.FirstStage`.
        draws: See :class:`.base.FirstStage`; elements of the group, at most.
        chunk: See :class:`.base.FirstStage`.

    Raises:
        ValueError: A value outside its range.
    """

    group: Sequence[str]

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.group:
            raise ValueError(f"group=[]; allowed: one or more of {', '.join(SYMMETRIES)}")
        for symmetry in self.group:
            check_choice("group", symmetry, SYMMETRIES)

    @override
    def supports(self, problem: Problem) -> str | None:
        reason = super().supports(problem)
        return reason or unshown(problem.operator, problem.operator_name, self.group, "group")

    @override
    def warnings(self, problem: Problem) -> list[Warning]:
        text = f"the restorer is told that images have {', '.join(self.group)}: wrong where not"
        # Of one fixed operator the rank test has said that transforms show the rest.
        is_shown = "fixed" in problem.operator.capabilities
        found = [w for w in super().warnings(problem) if w.code != "null" or not is_shown]
        return [*found, Warning("invariant", text)]

    @override
    def build(self) -> None:
        """Make the networks; choose what restorations average, the same for all images."""
        super().build()
        found = elements(self.problem.image_shape, self.group)
        order = torch.randperm(len(found), generator=generator_for(0, "restorer"))
        self._elements = found[order[: self.draws]]

    @override
    def split_loss(
        self, split: Split, consistency: LossOfDeepinv, generator: Generator
    ) -> LossOfDeepinv:
        return EquivariantSplittingLoss(
            mask_generator=split,
            consistency_loss=consistency,
            prediction_loss=MCLoss(),
            transform=Group(self.group, generator),
        )

    @property
    @override
    def _evaluations(self) -> int:
        return self.draws if self.is_noisy else len(self._elements)

    @override
    def restored(
        self, restorer: nn.Module, y: Tensor, params: Params, noise: Tensor, k: int
    ) -> Tensor:
        places = self._elements[k % len(self._elements)].expand(len(y), -1)
        x = self.ask(restorer, y, params, noise, lambda u: moved(u, places.argsort(1)))
        return moved(x, places)
