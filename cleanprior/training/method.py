"""The interface of a method: how a prior is learned from measurements."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from ..config.capabilities import WARNINGS, ProblemFacts, refusal
from ..config.noise import APPROXIMATIONS
from ..data.measurements import Batch, Measurements, TrainingSet
from ..diffusion.backbones import build_backbone
from ..diffusion.denoiser import Denoiser
from ..operators.base import ImageShape, Operator
from ..prior import Prior
from ..progress import Progress
from ..seeding import generator_for, scoped_rng, seed_for
from .checkpoint import Store
from .route import Route
from .warning import Warning


@dataclass(frozen=True)
class Problem:
    """What is to be learned from: everything a method may know before it sees a measurement.

    Attributes:
        operator: The forward operator; :meth:`Method.setup` takes a copy to its device.
        operator_name: Its name, for sentences.
        backbone: Configuration of the backbone, the same for every method.
        sigma_data: Standard deviation of the data for EDM preconditioning.
        sigma_y: Largest noise level of the measurements.
        autocast: dtype of the backbone while training, or None.
        seed: Training seed.
        has_start: Whether networks begin with the weights of another prior.
    """

    operator: Operator
    operator_name: str
    backbone: dict[str, Any]
    sigma_data: float
    sigma_y: float
    autocast: torch.dtype | None = None
    seed: int = 0
    has_start: bool = False

    @property
    def image_shape(self) -> ImageShape:
        """Shape of one image, (channels, height, width)."""
        return self.operator.image_shape

    def denoiser(self, condition_channels: int = 0, preconditioning: str = "edm") -> Denoiser:
        """Build a denoiser with fresh weights on the shared backbone configuration."""
        channels = self.image_shape[0]
        backbone = build_backbone(self.backbone, channels, channels, condition_channels)
        return Denoiser(
            backbone, self.sigma_data, condition_channels, preconditioning, self.autocast
        )


@dataclass(frozen=True)
class Round:
    """One pass of training on one training set.

    Attributes:
        name: Shown in progress and records.
        steps: Steps; a step is one of each turn.
        turns: Networks that take an optimiser step, in order; a name may stand several times.
        begin: ``continue`` with the last round's state; ``averaged``: new optimiser and average,
            from the averaged weights; ``scratch``: new weights too.
    """

    name: str
    steps: int
    turns: tuple[str, ...] = ("denoiser",)
    begin: str = "continue"


@dataclass(frozen=True)
class Loss:
    """A scalar to minimise and named parts to log."""

    total: Tensor
    parts: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass
class Session:
    """What the Trainer hands to a method at the beginning of a round.

    Attributes:
        measurements: The measurements; the same object in every round.
        clean: The few clean images that the method is entitled to, in [-1, 1], or None.
        averaged: The averaged (EMA) networks, in eval mode.
        device: Where the networks live.
        store: Results computed once, found again after an interruption.
        progress: Where to show what takes time.
        costs: Counts that the record shows: ``evaluations``, ``backwards``, and the method's own.
    """

    measurements: Measurements
    clean: Tensor | None
    averaged: Mapping[str, nn.Module]
    device: torch.device
    store: Store
    progress: Progress
    seed: int
    costs: dict[str, float] = field(default_factory=dict)
    log: dict[str, Any] = field(default_factory=dict)

    def generator(self, role: str, **keys: int | str) -> Generator:
        """Return the generator of a named stream of this run."""
        return generator_for(self.seed, role, **keys)

    def generators(self, role: str, numbers: Sequence[int], **keys: int | str) -> list[Generator]:
        """Return one generator an image."""
        return [generator_for(self.seed, role, image=i, **keys) for i in numbers]

    def count(self, name: str, amount: float) -> None:
        """Add to a cost."""
        self.costs[name] = self.costs.get(name, 0) + amount

    def gathered(
        self,
        phase: str,
        total: int,
        keys: Sequence[str],
        compute: Callable[[int], tuple[dict[str, Tensor], dict[str, float]]],
    ) -> Float[Tensor, "n c h w"]:
        """Return images that are computed in parts; a part on disk is not computed again.

        Arguments:
            phase: What is shown while it takes time.
            total: How many images there are.
            keys: One a part, in the order of the images.
            compute: Returns the images of a part, as ``x`` on the CPU, and their costs, by its
                number; see :meth:`.checkpoint.Store.all`.
        """
        parts = []
        with self.progress.task(phase, total) as task:
            for tensors, costs in self.store.all(keys, compute):
                for name, amount in costs.items():
                    self.count(name, amount)
                parts.append(tensors["x"])
                task.advance(len(tensors["x"]))
        return torch.cat(parts)


@dataclass(kw_only=True)
class Method(ABC):
    """How a prior is learned from measurements. It owns no loop and sees no clean image.

    A subclass is a dataclass: its fields are the keys of its YAML. Networks are made in
    :meth:`build`, under a seeded scope.

    One rule for devices: nobody moves what he was handed. From :meth:`setup` on, ``self.problem``
    has an operator of its own on ``self.device``, where the networks, the batches of
    :meth:`loss` and their parameters are too. What a session holds (measurements, clean images,
    stored results) is on the CPU, and so are generators: draw with one, then move the numbers. A
    closed form on the CPU takes a copy, ``self.problem.operator.to("cpu")``.

    Arguments:
        needs: Keys of :data:`cleanprior.config.capabilities.NEEDS`, which its YAML gives;
            what does not hold is the reason of a refusal.
        clean_images: Clean images that the method is entitled to: a count, or ``all``.
    """

    needs: Sequence[str] = ()
    clean_images: int | str = 0

    #: What waives a need, by need, as its YAML says: see
    #: :func:`cleanprior.config.capabilities.required`.
    unless: ClassVar[Mapping[str, str]] = MappingProxyType({})
    #: The network whose batches are the budget that all methods share.
    budgeted = "denoiser"
    #: Networks that the same budget pays for, e.g. the restorer of a stage before the denoiser's.
    also_budgeted: ClassVar[tuple[str, ...]] = ()
    #: Capability of operators that leave gaps in what the network is trained on: it never met a
    #: whole image. Empty for a method whose network learns to be asked for whole images.
    gaps: ClassVar[str] = ""
    #: Learning rate of a network, where it is not the Trainer's.
    learning_rates: Mapping[str, float] = field(default_factory=dict, init=False, repr=False)
    #: AdamW's decay rates of a network, where they are not (0.9, 0.999).
    betas: Mapping[str, tuple[float, float]] = field(default_factory=dict, init=False, repr=False)

    #: The configuration that :func:`cleanprior.method` built it from, or None.
    config: Mapping[str, Any] | None = field(default=None, init=False, repr=False, compare=False)

    @property
    def name(self) -> str:
        """The class's name in sentences; tables use the name of the configuration."""
        return type(self).__name__

    @property
    def begun(self) -> str:
        """The network that takes the weights of ``training.start``."""
        return self.budgeted

    @property
    def noise_floor(self) -> float:
        """Noise level that the likelihood takes where y has none; 0 for a method without."""
        return 0.0

    def supports(self, problem: Problem) -> str | None:
        """Return None, or the reason shown in the table (``skipped: ...``).

        What the YAML's needs say; a method adds what only its numbers can tell.
        """
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.init}
        facts = ProblemFacts(problem.operator_name, problem.operator.capabilities, problem.sigma_y)
        found = refusal({**values, "name": self.name, "unless": self.unless}, facts)
        return None if found is None else found.reason

    def warnings(self, problem: Problem) -> list[Warning]:
        """Return what a reader must know of the results: codes beside the row, with sentences."""
        found = {
            "null": "null_space" in problem.operator.capabilities,
            "floor": problem.sigma_y == 0 and self.noise_floor > 0,
            "shift": self.has_gaps(problem),
            **dict.fromkeys(APPROXIMATIONS, False),
        }
        if problem.operator.noise is not None and problem.operator.noise.told in APPROXIMATIONS:
            found[problem.operator.noise.told] = True
        return [Warning(code, WARNINGS[code]) for code, is_there in found.items() if is_there]

    def has_gaps(self, problem: Problem) -> bool:
        """Whether the network is trained on incomplete images and asked for complete ones.

        A mask that leaves half of the images whole leaves no gap.
        """
        operator = problem.operator
        if self.gaps not in operator.capabilities:
            return False
        if self.gaps != "mask":
            return True
        params = operator.draw(64, generator_for(0, "gaps"))
        y = operator.A(torch.zeros(64, *operator.image_shape), params)
        return operator.observed(y, params).flatten(1).amin(1).mean().item() < 0.5

    def setup(self, problem: Problem, device: torch.device) -> None:
        """Remember the problem, with a copy of its operator on ``device``, and build the networks.

        Weights are drawn on the CPU from the training seed: the same on every device.
        """
        self.problem = replace(problem, operator=problem.operator.to(device))
        self.device = device
        with scoped_rng(seed_for(problem.seed, "weights")):
            self.build()
        for network in self.networks().values():
            network.to(device)

    @abstractmethod
    def build(self) -> None:
        """Make the networks. Called once, with torch's global generator seeded for this run."""

    @abstractmethod
    def networks(self) -> Mapping[str, nn.Module]:
        """Return what the Trainer optimises, averages and saves, by name."""

    def first_stage(self) -> "Method | None":
        """Return the method whose own row this one begins with, or None.

        Its rounds, with the whole budget, are then the first ones of :meth:`rounds`, and its
        networks are among :meth:`networks`: where that row is finished they are not trained again.
        """
        return None

    def rounds(self, budget: int) -> Sequence[Round]:
        """Plan the rounds.

        Arguments:
            budget: Steps of the budgeted networks; the turns of all rounds must add up to it.
        """
        return [Round("train", budget)]

    def is_budgeted(self, network: str) -> bool:
        """Whether the budget that all methods share pays for a network's steps."""
        return network == self.budgeted or network in self.also_budgeted

    def spent(self, steps: Mapping[str, int]) -> int:
        """Return how much of the budget these steps are.

        Arguments:
            steps: Steps taken, by network.
        """
        return sum(count for name, count in steps.items() if self.is_budgeted(name))

    def followed(self, steps: Mapping[str, int]) -> int:
        """Return the steps that snapshots follow, of those taken, by network."""
        return self.spent(steps)

    def planned(self, rounds: Sequence[Round]) -> int:
        """Return how much of the budget the rounds of a plan take."""
        return sum(r.steps for r in rounds for turn in r.turns if self.is_budgeted(turn))

    def begin_round(self, number: int, round: Round, session: Session) -> TrainingSet:
        """Return what the round trains on. E-steps live here.

        Called again when an interrupted round is resumed: results that cost time belong in
        ``session.store``.
        """
        return session.measurements

    @abstractmethod
    def loss(self, batch: Batch, generator: Generator, turn: str) -> Loss:
        """Return the loss of one turn.

        Arguments:
            batch: Measurements, and restorations where the round trains on them.
            generator: The only source of randomness.
            turn: Name of the network that takes the step.
        """

    @abstractmethod
    def prior(self, averaged: Mapping[str, nn.Module]) -> Prior | None:
        """Return what was learned, with averaged weights, or None for a method without denoiser."""

    def routes(self, averaged: Mapping[str, nn.Module]) -> Sequence[Route]:
        """Return the method's own ways to restore and sample, on its device; each is a row."""
        return []

    def routes_on_cpu(self, averaged: Mapping[str, nn.Module]) -> list[Route]:
        """Return :meth:`routes` as evaluation calls them: batches and images on the CPU."""
        return [route.on(self.device) for route in self.routes(averaged)]

    def make_prior(self, denoiser: nn.Module) -> Prior:
        """Wrap an averaged denoiser as a :class:`Prior`."""
        assert isinstance(denoiser, Denoiser)
        return Prior(denoiser, self.problem.image_shape, self.problem.backbone)
