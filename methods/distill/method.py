r"""Restoration score distillation (RSD): a one-step generator of what a denoiser was taught.

A second stage. The rounds of another method, the teacher, come first, as they would by themselves:
its weights are those of its own row. Then three networks begin with its averaged weights: the
teacher :math:`f_\phi`, which stays as it is, a fake denoiser :math:`f_\psi`, and the generator
:math:`G(z) = D_\theta(\sigma_{init} z, \sigma_{init})`. They take turns:

- the fake learns by the teacher's own loss, on measurements of generated images, simulated with
  the operators of other training images and fresh noise: it becomes what the teacher would be if
  images had the generator's law;
- the generator minimises, for noisy generated images :math:`x_\sigma`, without measurement noise,

.. math:: \mathbb E\,\omega\, c\cdot[(f_\phi(x_\sigma) - x) - \alpha c],\quad
    c = f_\phi(x_\sigma) - f_\psi(x_\sigma),\quad
    \omega^{-1} = \overline{|x - f_\phi(x_\sigma)|}

which is the score identity estimate of the Fisher divergence of both laws
(:mod:`cleanprior.methods.distill.alignment`). Gradients go through both denoisers into
:math:`x_\sigma`, and into no weight but the generator's.

A teacher that is told a mask (``ambient``) is compared through new masks, on the pixels that they
show, where it is exact; its generator takes a mask too, in training and in sampling. A teacher that
fits restorations (``em``) has a fake that fits the generated images themselves. A teacher that
takes measurements for images (``naive``) is compared through new measurements. What is wrong in the
teacher stays wrong: of a Gaussian law it was taught wrongly, the generator has the wrong variance.

Differences from the authors' code, with the option that restores them:

- under masks their fake fits the pixels that the further mask shows, while the teacher fits all
  observed ones (``fake_loss=visible``); here both have the same loss;
- no augmentation (``augment=after_noise``: scale, rotation and anisotropic scale of the noisy
  fakes, their level unchanged);
- levels are drawn as theirs, down to ``sigma_min``, below the noise of y, where neither denoiser of
  noisy images was trained (``lowest=sigma_y`` cuts there);
- a loss that is not finite stops the run, status ``diverged``. Theirs drops such samples and sets
  such gradients to numbers: no option, since it hides that the run failed;
- the checkpoint is chosen by the proximal distance (``cleanprior snapshots``), which needs no clean
  image, and never by the FD to clean images;
- no scale of the generator's loss (``loss_scale``: 100 in theirs, for half precision; with AdamW it
  decides only how often the gradient is clipped).

Budget: ``teacher_share`` below 1 divides the shared budget between the teacher's batches and the
generator's. At 1 the teacher is the row of its own method, with the whole budget, and the
distillation comes on top, ``extra`` times the budget: seconds, passes and FLOPs show it. Fakes'
steps are costs in both.

A generator has no denoiser: it samples, by one evaluation, and does not restore.

References:
    Score Distillation Beyond Acceleration: Generative Modeling from Corrupted Data (Zhang et al.,
    2025), arXiv:2505.13377
    Denoising Score Distillation (Chen et al., 2025), arXiv:2503.07578
    Score identity Distillation (Zhou et al., 2024), arXiv:2404.04057
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor, nn
from typing_extensions import override

from cleanprior.config.capabilities import by_teacher
from cleanprior.config.checks import check_choice, check_positive
from cleanprior.data import Batch, TrainingSet
from cleanprior.diffusion.denoiser import Denoiser, draw_sigma, edm_weight, per_image
from cleanprior.operators.like import measured_like
from cleanprior.prior import Prior
from cleanprior.seeding import randn_like
from cleanprior.training import (
    DenoiserMethod,
    Loss,
    Method,
    Problem,
    Round,
    Route,
    Session,
    View,
    Warning,
)

from ..ambient_tweedie.augmentation import augment
from .alignment import Alignment, Levels

#: Images that are drawn together.
CHUNK = 256
#: Probability of each warp of ``augment=after_noise``: that of ambient-laws.
WARPED = 0.12
NAME = "distil"


@dataclass(kw_only=True)
class Distill(Method):
    r"""A one-step generator, distilled from another method's denoiser.

    Arguments:
        needs: See :class:`cleanprior.training.Method`.
        teacher: The method that is trained first; one that learns a denoiser.
        teacher_share: Share of the budget that the teacher has, in (0, 1].
        extra: Generator steps where ``teacher_share`` is 1, as a share of the budget, above 0.
        alpha: :math:`\alpha`, at least 0.
        generator_lr: Peak learning rate of G.
        fake_lr: Peak learning rate of the fake denoiser.
        fake_steps: Steps of the fake before each of G, at least 1: it must lead.
        beta1: Adam's decay of G's mean gradient, in [0, 1).
        loss_scale: What G's loss is multiplied with, above 0.
        sigma_init: :math:`\sigma_{init}`, units of x, above 0.
        sigma_min: Least level at which laws are compared, units of x.
        sigma_max: Largest level of the scale that levels are drawn from.
        rho: Bends that scale.
        time_max: Share of that scale, from below, that is drawn from, in (0, 1].
        lowest: ``official``: down to ``sigma_min``; ``sigma_y``: no level below the noise of y.
        fake_loss: ``same`` as the teacher's, or ``visible``: what a view of the teacher shows.
        augment: ``none`` or ``after_noise``, of the fakes where y is an image.

    Raises:
        ValueError: A value outside its range, or a teacher without a denoiser.
    """

    teacher: DenoiserMethod
    teacher_share: float
    extra: float
    alpha: float
    generator_lr: float
    fake_lr: float
    fake_steps: int
    beta1: float
    loss_scale: float
    sigma_init: float
    sigma_min: float
    sigma_max: float
    rho: float
    time_max: float
    lowest: str
    fake_loss: str
    augment: str

    budgeted = "generator"

    def __post_init__(self) -> None:
        if not isinstance(self.teacher, DenoiserMethod):
            raise ValueError(
                f"teacher={type(self.teacher).__name__} learns no denoiser that could be distilled"
            )
        if not 0 < self.teacher_share <= 1:
            raise ValueError(f"teacher_share={self.teacher_share}; allowed: above 0 and at most 1")
        if not 0 <= self.beta1 < 1:
            raise ValueError(f"beta1={self.beta1}; allowed: [0, 1)")
        if not self.alpha >= 0:
            raise ValueError(f"alpha={self.alpha}; allowed: at least 0")
        if self.fake_steps < 1:
            raise ValueError(f"fake_steps={self.fake_steps}; allowed: at least 1")
        for key in ("extra", "generator_lr", "fake_lr", "loss_scale", "sigma_init"):
            check_positive(key, getattr(self, key))
        check_choice("lowest", self.lowest, ("official", "sigma_y"))
        check_choice("fake_loss", self.fake_loss, ("same", "visible"))
        check_choice("augment", self.augment, ("none", "after_noise"))
        self.levels = Levels(self.sigma_min, self.sigma_max, self.rho, self.time_max)

    @override
    def supports(self, problem: Problem) -> str | None:
        found = self.teacher.supports(problem)
        reason = super().supports(problem)
        return reason if found is None else by_teacher(self.name, found).reason

    @override
    def warnings(self, problem: Problem) -> list[Warning]:
        """Return the teacher's; a generator that takes masks is asked as it was trained."""
        has_view = type(self.teacher).view is not DenoiserMethod.view
        found = [w for w in self.teacher.warnings(problem) if not (has_view and w.code == "shift")]
        if self.teacher_share == 1:
            text = f"distilled beside the shared budget, by {self.extra:g} of it in generator steps"
            found.append(Warning("beside", f"{text}; the costs hold both stages"))
        return found

    @property
    @override
    def begun(self) -> str:
        return self.teacher.begun

    # -- networks and rounds -------------------------------------------------------------------

    @override
    def setup(self, problem: Problem, device: torch.device) -> None:
        self.teacher.setup(problem, device)
        super().setup(problem, device)

    @override
    def build(self) -> None:
        """Make the teacher's networks as it makes them itself, and two copies of its denoiser."""
        self.teacher.build()
        self.denoiser: Denoiser = self.teacher.denoiser
        self.fake, self.generator = (copy.deepcopy(self.denoiser) for _ in range(2))
        rates = {"generator": self.generator_lr, "fake": self.fake_lr}
        self.learning_rates = {**self.teacher.learning_rates, **rates}
        self.betas = {**self.teacher.betas, **dict.fromkeys(rates, (self.beta1, 0.999))}
        self.student = self._student()

    def _student(self) -> DenoiserMethod:
        """Return the teacher with the fake as its denoiser: its loss is the fake's."""
        student = copy.copy(self.teacher)
        student.denoiser = self.fake
        return student

    @override
    def networks(self) -> Mapping[str, nn.Module]:
        return {**self.teacher.networks(), "fake": self.fake, "generator": self.generator}

    @override
    def is_budgeted(self, network: str) -> bool:
        """Return whether it is the teacher's; the generator's steps are a cost beside a whole one.

        Where they share a budget both are.
        """
        if network == "generator":
            return self.teacher_share < 1
        return self.teacher.is_budgeted(network)

    @override
    def followed(self, steps: Mapping[str, int]) -> int:
        """Return the generator's steps: what is chosen from snapshots is a generator."""
        return steps["generator"]

    @override
    def first_stage(self) -> Method | None:
        return self.teacher if self.teacher_share == 1 else None

    def rounds(self, budget: int) -> Sequence[Round]:
        """Plan the teacher's rounds, and then the distillation.

        Raises:
            ValueError: A budget of one step, which two networks cannot share.
        """
        is_whole = self.teacher_share == 1
        if not is_whole and budget < 2:
            raise ValueError(f"teacher_share={self.teacher_share} divides a budget of one step")
        first = budget if is_whole else min(max(1, round(budget * self.teacher_share)), budget - 1)
        rest = max(1, round(budget * self.extra)) if is_whole else budget - first
        self._taught = list(self.teacher.rounds(first))
        turns = ("fake",) * self.fake_steps + ("generator",)
        return [*self._taught, Round(NAME, rest, turns, begin="averaged")]

    @override
    def begin_round(self, number: int, round: Round, session: Session) -> TrainingSet:
        self._session, self._is_distilling = session, round.name == NAME
        if not self._is_distilling:
            return self.teacher.begin_round(number, round, session)
        if not self.teacher.fits_images:
            # Its loss is that of its last round.
            self.teacher.begin_round(len(self._taught) - 1, self._taught[-1], session)
            self.student = self._student()
        taught = session.averaged["denoiser"].state_dict()
        for name in ("fake", "generator"):
            session.averaged[name].load_state_dict(taught)
        self._parts: dict[str, Tensor] = {}
        return session.measurements

    # -- losses --------------------------------------------------------------------------------

    def generate(self, network: nn.Module, n: int, random: Generator) -> Tensor:
        """Return n images of a generator, (n, c, h, w); one evaluation each."""
        z = torch.randn((n, *self.problem.image_shape), generator=random).to(self.device)
        view = self.teacher.view(n, random)
        level = torch.full((n,), self.sigma_init, device=self.device)
        return network(view.show(self.sigma_init * z), level, view.condition)

    @override
    def loss(self, batch: Batch, generator: Generator, turn: str) -> Loss:
        """Return the teacher's loss in its rounds; then that of the fake, or of the generator."""
        if not self._is_distilling:
            return self.teacher.loss(batch, generator, turn)
        # Each network's gradient only in its own turn; what is only asked drops nothing out.
        self.fake.requires_grad_(turn == "fake").train(turn == "fake")
        self.generator.requires_grad_(turn == "generator")
        index = torch.randint(len(self._session.measurements), (len(batch),), generator=generator)
        other = self._session.measurements.batch(index).to(self.device)
        if turn == "fake":
            loss = self._fake_loss(other, generator)
            self._parts = {"fake": loss.total.detach()}
            return loss
        x = self.teacher.fitted(
            self.generate(self.generator, len(batch), generator), other, generator
        )
        found = self.align(self._session.averaged["denoiser"], self.fake, x, generator)
        total = self.loss_scale * (found.weights() * found.terms(self.alpha)).mean()
        # The history keeps the last turn of a step: this one tells of the fake's too.
        return Loss(total, {**self._parts, "difference": found.gap()})

    def align(self, teacher: nn.Module, fake: nn.Module, x: Tensor, random: Generator) -> Alignment:
        """Compare two denoisers on noisy images, at levels and through views that are drawn."""
        above = self.problem.sigma_y if self.lowest == "sigma_y" else 0.0
        sigma = self.levels.draw(len(x), random, above).to(x.device)
        noise = randn_like(x.detach(), random)
        return Alignment.of(teacher, fake, x, sigma, noise, self.teacher.view(len(x), random))

    def _fake_loss(self, like: Batch, random: Generator) -> Loss:
        """Return the loss of the fake on images of the generator, measured as ``like`` was."""
        with torch.no_grad():
            x = self.generate(self.generator, len(like), random)
            y = measured_like(self.problem.operator, x, like.params, like.sigma_y, random)
        if self.fake_loss == "visible":
            view = self.teacher.view(len(x), random)
            if view.condition is not None:
                return self._visible_loss(x, view, random)
        if self.augment == "after_noise" and self.problem.operator.is_image(y):
            y = augment(y, self.augment, WARPED, random)
        return self.student.loss(replace(like, y=y, images=x), random, "denoiser")

    def _visible_loss(self, x: Tensor, view: View, random: Generator) -> Loss:
        sigma = draw_sigma(len(x), random, x.device)
        shown = view.show(x + per_image(sigma) * randn_like(x, random))
        error = view.see(self.fake(shown, sigma, view.condition) - x)
        seen = torch.ones_like(error) if view.seen is None else view.seen.expand_as(error)
        weight = edm_weight(sigma, self.fake.sigma_data).reshape(-1, *[1] * (error.dim() - 1))
        return Loss((weight * seen * error**2).sum() / seen.sum().clamp_min(1))

    # -- results -------------------------------------------------------------------------------

    def prior(self, averaged: Mapping[str, nn.Module]) -> Prior | None:
        """Return None: a generator has no score."""
        return None

    def routes(self, averaged: Mapping[str, nn.Module]) -> Sequence[Route]:
        """Sample by one evaluation of the averaged generator."""
        network = averaged["generator"]

        @torch.no_grad()
        def sample(n: int, generator: Generator) -> Tensor:
            sizes = [min(CHUNK, n - first) for first in range(0, n, CHUNK)]
            return torch.cat([self.generate(network, k, generator) for k in sizes]).cpu()

        reason = "no denoiser: a generator only samples"
        return [Route(samples_by="one step", sample=sample, reason=reason)]
