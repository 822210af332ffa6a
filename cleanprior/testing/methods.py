"""What every method promises."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor

from ..config import build, capabilities, compose, registry
from ..data.measurements import Batch, Measurements
from ..operators.base import take
from ..prior import Prior, image_generators
from ..progress import Progress
from ..training.averages import Averages
from ..training.checkpoint import Store
from ..training.method import Method, Problem, Session
from .blindness import check_clean_images_are_out_of_reach
from .cards import check_card, composed
from .parts import TINY, images_for, no_global_randomness
from .training import Setting, assert_same, fit, make_setting, make_trainer, weights


@dataclass(frozen=True)
class Cell:
    """A method on an operator with a few digits: nothing is set up yet.

    Attributes:
        name: The method.
        operator: The operator.
        method: Built from its YAML.
        problem: What it is to learn from, with a backbone of a few thousand weights.
        x: Clean images.
        data: Their measurements.
    """

    name: str
    operator: str
    method: Method
    problem: Problem
    x: Tensor
    data: Measurements

    @classmethod
    def of(
        cls,
        name: str,
        operator: str,
        overrides: Sequence[str] = (),
        backbone: dict[str, Any] | None = None,
    ) -> "Cell":
        """Build the parts of a cell by their names."""
        config = compose([f"method={name}", f"operator={operator}", *overrides])
        x = images_for(operator)
        built = build(config["operator"], image_shape=tuple(x.shape[1:]))
        problem = Problem(built, operator, dict(backbone or TINY), 0.5, built.sigma)
        data = Measurements.draw(x, built, 0, "train")
        return cls(name, operator, build(config["method"]), problem, x, data)


def check_refusal(cell: Cell) -> None:
    """Check that a refusal is a sentence, and that ``cleanprior list`` says the same."""
    reason = cell.method.supports(cell.problem)
    assert reason is not None
    assert len(reason) > 20, f"a refusal is a sentence: '{reason}'"
    described = registry.read("operator", cell.operator)
    facts = capabilities.ProblemFacts.of({**described, "name": cell.operator})
    told = capabilities.refusal(composed("method", cell.name), facts)
    assert told is not None, "list and training agree on what may be trained"


def check_method(cell: Cell, folder: Path) -> None:
    """Check loss, gradients, prior and routes of a method on an operator, or its refusal.

    Arguments:
        cell: Method and operator.
        folder: An empty folder, for the saved prior.
    """
    if cell.method.supports(cell.problem) is not None:
        check_refusal(cell)
        return
    with no_global_randomness():
        _check_parts(cell, folder)


def _check_parts(cell: Cell, folder: Path) -> None:
    method, data, device = cell.method, cell.data, torch.device("cpu")
    method.setup(cell.problem, device)
    networks = dict(method.networks())
    averages = Averages(networks, 0.9)
    shape = (3, *cell.x.shape[1:])
    clean = cell.x if method.clean_images else None
    session = Session(data, clean, averages.modules, device, Store(None), Progress(), 0)
    plan = method.rounds(100)
    training_set = method.begin_round(0, plan[0], session)
    for turn in dict.fromkeys(plan[0].turns if networks else ()):
        batch = training_set.batch(torch.arange(8) % len(training_set))
        loss = method.loss(batch, Generator().manual_seed(0), turn)
        again = method.loss(batch, Generator().manual_seed(0), turn)
        assert torch.isfinite(loss.total), f"the loss of '{turn}' is {loss.total.item()}"
        assert torch.equal(loss.total, again.total), "the generator is the only randomness"
        loss.total.backward()
        norms = [p.grad.norm() for p in networks[turn].parameters() if p.grad is not None]
        assert norms, f"no weight of '{turn}' has a gradient"
        assert all(torch.isfinite(n) for n in norms), f"a gradient of '{turn}' is not finite"
        assert max(norms) > 0, f"all gradients of '{turn}' are 0"
    prior = method.prior(averages.modules)
    if prior is not None:
        check_prior(prior, shape, folder / "prior")
    check_routes(method, averages, data.batch(torch.arange(3)), shape)


def check_prior(prior: Prior, shape: tuple[int, ...], folder: Path) -> None:
    """Check that a prior samples, and is the same after it was saved and loaded."""
    prior.save(folder)
    loaded = Prior.load(folder)
    noisy = torch.randn(shape, generator=Generator().manual_seed(1))
    assert torch.equal(loaded(noisy, 0.3), prior(noisy, 0.3)), "a loaded prior is another one"
    sampler = build(compose(["sampler.steps=3"])["sampler"])
    assert prior.sample(3, sampler, 0).shape == shape, "samples have another shape"


def check_routes(method: Method, averages: Averages, batch: Batch, shape: tuple[int, ...]) -> None:
    """Check the method's own routes to restore and sample."""
    for route in method.routes(averages.modules):
        name = f"route '{route.label(1)}'"
        assert route.restore is not None or route.sample is not None, f"{name} does nothing"
        if route.restore is not None:
            draw = route.restore(batch, image_generators(0, range(3)))
            assert draw.x.shape == shape, f"{name} restores another shape"
            assert torch.isfinite(draw.x).all(), f"{name} restores what is not finite"
            assert draw.evaluations >= 0
            first = slice(0, 1)
            one = Batch(
                batch.y[first], take(batch.params, first), batch.sigma_y[first], batch.index[first]
            )
            single = route.restore(one, image_generators(0, range(1))).x
            assert torch.allclose(single, draw.x[:1], atol=1e-4), "an image depends on its batch"
        if route.sample is not None:
            drawn = route.sample(3, Generator().manual_seed(0))
            assert drawn.shape == shape, f"{name} samples another shape"


def check_budget(cell: Cell, budget: int = 1500) -> None:
    """Check that the turns of all rounds add up to the budget that all methods share."""
    method = cell.method
    if method.supports(cell.problem) is None:
        method.setup(cell.problem, torch.device("cpu"))
        if method.networks():
            planned = method.planned(method.rounds(budget))
            assert planned == budget, f"the rounds take {planned} steps of a budget of {budget}"


def check_method_card(name: str) -> None:
    """Check that the YAML of a method answers without torch what its class would answer."""
    card = check_card("method", name)
    method = build(composed("method", name))
    capabilities.required(card)
    for key in ("needs", "clean_images"):
        own = getattr(method, key)
        same = list(card[key]) == list(own) if key == "needs" else card[key] == own
        assert same, f"{key} is {card[key]} in the YAML and {own} in what it builds"


def check_never_reads_x(name: str, overrides: tuple[str, ...] = ()) -> None:
    """Check that the weights do not change when the clean images become NaN after measuring."""
    built = make_setting(name, overrides)
    if built[3] is not None:
        return  # entitled to clean images
    expected, _ = fit(built)
    x = images_for("inpainting", len(built[2])).clone()
    spoiled: Setting = make_setting(name, overrides, x=x)
    x.fill_(float("nan"))
    networks, report = fit(spoiled)
    assert report.status == "done", f"with NaN in the place of clean images: {report.status}"
    assert_same(weights(networks), weights(expected))


class MethodContract:
    """Tests of one method, on every operator that is installed.

    Attributes:
        name: Its configuration.
        overrides: Keys that make it fast enough for tests, e.g. ``("method.draws=2",)``.
        operators: Operators; None for all that are installed.
    """

    name: ClassVar[str]
    overrides: ClassVar[tuple[str, ...]] = ()
    operators: ClassVar[Sequence[str] | None] = None

    def cells(self) -> Sequence[Cell]:
        """Return the method on each operator."""
        names = registry.readable("operator") if self.operators is None else self.operators
        return [Cell.of(self.name, operator, self.overrides) for operator in names]

    def test_the_yaml_has_a_key_for_every_argument(self) -> None:
        check_method_card(self.name)

    def test_it_learns_samples_and_saves_or_says_why_not(self, tmp_path: Path) -> None:
        learned = 0
        for cell in self.cells():
            try:
                check_method(cell, tmp_path / cell.operator)
            except AssertionError as error:
                raise AssertionError(f"on operator {cell.operator}: {error}") from error
            learned += cell.method.supports(cell.problem) is None
        assert learned, "it supports no operator"

    def test_the_rounds_take_the_whole_budget(self) -> None:
        for cell in self.cells():
            check_budget(cell)

    def test_the_same_seed_gives_the_same_weights(self) -> None:
        runs = []
        for _ in range(2):
            networks, report = fit(make_setting(self.name, self.overrides), trainer=make_trainer(6))
            assert report.status == "done", report.status
            runs.append(weights(networks))
        assert_same(*runs)

    def test_clean_images_are_never_read(self) -> None:
        check_never_reads_x(self.name, self.overrides)

    def test_clean_images_cannot_be_reached(self) -> None:
        setting = make_setting(self.name, self.overrides)
        check_clean_images_are_out_of_reach(setting, images_for("inpainting", len(setting[2])))


__all__ = [
    "Cell",
    "MethodContract",
    "check_budget",
    "check_method",
    "check_method_card",
    "check_never_reads_x",
    "check_prior",
    "check_refusal",
    "check_routes",
]
