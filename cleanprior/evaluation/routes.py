"""Routes: every way to restore and to sample, shared or a method's own, asked by one loop.

A route is asked on a stack of its own, with copies of the measurements: no frame that a method's
code can climb to holds a clean image. (Code in the same process can still search its memory.)
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Thread
from typing import TypeVar

import torch
from torch import Generator, Tensor

from ..costs import clock
from ..data.measurements import Batch
from ..diffusion.posterior import PosteriorSampler
from ..diffusion.samplers import Sampler
from ..operators.base import Operator, take
from ..operators.likelihood import Likelihood
from ..prior import Prior, image_generators
from ..progress import Task
from ..seeding import generator_for, seed_for
from ..training.method import Way

Result = TypeVar("Result")


@dataclass(frozen=True)
class Restored:
    """Restorations and what they cost.

    Attributes:
        x: (k, n, c, h, w): k draws, or one point estimate.
        evaluations: Forward passes of the denoiser for one image.
        backwards: Vector-Jacobian products for one image.
        seconds: Of one draw for all measurements.
    """

    x: Tensor
    evaluations: int
    backwards: int
    seconds: float


@dataclass(frozen=True)
class Route:
    """One way to restore and to sample.

    Attributes:
        name: How it restores: ``mmps``, ``one step``.
        is_own: Whether it is the method's own.
        kind: ``draws``: a restoration is one draw from p(x|y); ``point``: it is an estimate.
        restore: ``(batch, generators) -> (x, evaluations, backwards)``, or None.
        sample: ``(first, n, seed) -> x``, images number ``first`` and following; or None.
        samples: How it samples, where that is not told by the name.
        no_restoration: Why it does not restore, for the notes.
        no_generation: Why it does not sample; empty where nothing is to be said.
    """

    name: str
    is_own: bool
    kind: str
    restore: Callable[[Batch, list[Generator]], tuple[Tensor, int, int]] | None
    sample: Callable[[int, int, int], Tensor] | None
    samples: str = ""
    no_restoration: str = ""
    no_generation: str = ""

    def draws(self, k: int) -> int:
        """Return how many restorations of a measurement are drawn where k are asked for."""
        return 0 if self.restore is None else k if self.kind == "draws" else 1

    def label(self, k: int) -> str:
        """Return what a row is: how it restores, and what its restorations are."""
        parts = []
        if self.restore is not None and self.kind == "point":
            parts.append(f"{self.name}: point estimate")
        elif self.restore is not None:
            parts.append(f"{self.name}: one draw" + (f", mean of {k}" if k > 1 else ""))
        if self.samples:
            parts.append(f"samples: {self.samples}")
        return "; ".join(parts) or self.name


def shared_route(
    name: str,
    prior: Prior,
    posterior: PosteriorSampler,
    operator: Operator,
    sampler: Sampler | None,
    no_generation: str = "",
) -> Route:
    """Return the route that all methods with a denoiser share.

    Arguments:
        name: The posterior sampler's name.
        prior: The prior.
        posterior: The posterior sampler.
        operator: The operator of the measurements.
        sampler: The sampler of p(x), or None where the row has no samples.
        no_generation: Why it has none.
    """
    device = next(prior.parameters()).device
    moved = operator.to(device)

    def restore(batch: Batch, generators: list[Generator]) -> tuple[Tensor, int, int]:
        draw = posterior(prior, Likelihood.of(moved, batch.to(device)), generators)
        return draw.x.cpu(), draw.evaluations, draw.backwards

    def sample(first: int, n: int, seed: int) -> Tensor:
        assert sampler is not None
        return prior.sample(n, sampler, seed, n, first)

    return Route(
        name,
        is_own=False,
        kind="draws",
        restore=restore,
        sample=None if sampler is None else sample,
        no_generation=no_generation,
    )


def own_route(way: Way) -> Route:
    """Return the route of a method's own way."""

    def restore(batch: Batch, generators: list[Generator]) -> tuple[Tensor, int, int]:
        assert way.restore is not None
        x, evaluations = way.restore(batch, generators)
        return x.detach(), evaluations, 0

    def sample(first: int, n: int, seed: int) -> Tensor:
        assert way.sample is not None
        keys = {"first": first} if first else {}
        return way.sample(n, generator_for(seed, "own-samples", **keys)).detach()

    name = way.name or "no restoration"
    return Route(
        name,
        is_own=True,
        kind=way.kind,
        restore=None if way.restore is None else restore,
        sample=None if way.sample is None else sample,
        samples=way.samples,
        no_restoration=way.reason or f"{name} does not restore",
        no_generation=way.reason or f"{name} does not sample p(x)",
    )


def alone(work: Callable[[], Result]) -> Result:
    """Return what ``work`` returns, called on a stack of its own.

    The stack's frames lead to ``work`` and no further, so what is called finds no local variable of
    this function's callers. Errors are raised here.
    """
    results: list[Result] = []
    errors: list[BaseException] = []

    def target() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)

    thread = Thread(target=target, name="route", daemon=True)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def copied(batch: Batch) -> Batch:
    """Return a copy of measurements that shares no memory with them."""
    params = {k: v.clone() for k, v in batch.params.items()}
    return Batch(batch.y.clone(), params, batch.sigma_y.clone(), batch.index.clone())


def restore_all(
    route: Route,
    batch: Batch,
    k: int,
    seed: int,
    chunk: int,
    shape: Sequence[int],
    task: Task,
) -> Restored:
    """Ask a route for k restorations of each measurement.

    Restoration i of measurement j depends on that measurement, ``seed``, i and j only, so far as
    the route keeps to its generators.

    Arguments:
        route: A route that restores.
        batch: The measurements, n of them.
        k: Restorations of each.
        seed: Evaluation seed.
        chunk: Restorations at a time; draws of several rounds share a chunk.
        shape: Shape of one image.
        task: Told how many are done.

    Raises:
        ValueError: The route returned another shape.
    """
    assert route.restore is not None
    n = len(batch)
    start, found, costs = clock(), [], (0, 0)
    for rows in torch.arange(k * n).split(chunk):
        index = rows % n
        part = Batch(
            batch.y[index], take(batch.params, index), batch.sigma_y[index], batch.index[index]
        )
        generators = [
            image_generators(_draw_seed(seed, int(row) // n), [int(row) % n])[0] for row in rows
        ]
        x, *spent = route.restore(part, generators)
        _check(x, (len(rows), *shape), f"'{route.name}' returned restorations")
        found.append(x.float())
        costs = (spent[0], spent[1])
        task.advance(len(rows))
    x = torch.cat(found).reshape(k, n, *shape)
    return Restored(x, *costs, (clock() - start) / k)


def _draw_seed(seed: int, number: int) -> int:
    """Return the seed of a round of draws; the first is that of ``cleanprior restore``."""
    return seed if number == 0 else seed_for(seed, "draw", number=number)


def sample_all(
    route: Route, n: int, seeds: Sequence[int], chunk: int, shape: Sequence[int], task: Task
) -> tuple[list[Tensor], float]:
    """Ask a route for n samples of each sampling seed.

    Returns:
        Samples (n, c, h, w) of each seed, and the seconds of one seed.

    Raises:
        ValueError: The route returned another shape.
    """
    assert route.sample is not None
    start, found = clock(), []
    for seed in seeds:
        parts = []
        for first in range(0, n, chunk):
            size = min(chunk, n - first)
            x = route.sample(first, size, seed)
            _check(x, (size, *shape), f"'{route.samples or route.name}' returned samples")
            parts.append(x.float())
            task.advance(size)
        found.append(torch.cat(parts))
    return found, (clock() - start) / len(seeds)


def _check(x: Tensor, shape: tuple[int, ...], what: str) -> None:
    if x.shape != shape:
        raise ValueError(f"{what} of shape {tuple(x.shape)}; needed: {shape}")
