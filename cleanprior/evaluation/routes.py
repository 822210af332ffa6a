"""Routes: every way to restore and to sample, shared or a method's own, asked by one loop.

A route is asked on a stack of its own, with copies of the measurements: no frame that a method's
code can climb to holds a clean image. (Code in the same process can still search its memory.)
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from threading import Thread
from typing import ClassVar, TypeVar

import torch
from torch import Generator, Tensor
from typing_extensions import override

from ..costs import clock
from ..data.measurements import Batch
from ..diffusion.posterior import Draw, PosteriorSampler
from ..diffusion.samplers import Sampler
from ..operators.base import Operator, take
from ..operators.likelihood import Likelihood
from ..prior import Prior, image_generators
from ..progress import Task
from ..seeding import seed_for
from ..training.route import Route

Result = TypeVar("Result")
#: Why the shared samplers restore nothing where methods are told nothing of the noise.
UNTOLD = (
    "posterior samplers take Gaussian noise: say noise.as=map, level or anscombe, whichever the "
    "kind has"
)
#: Why a denoiser that never met a whole image is not sampled by the shared sampler.
NEVER_WHOLE = "never trained on whole images: it samples by its own way, below"


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
class PriorRoute(Route):
    """The route that all methods with a denoiser share.

    Attributes:
        prior: The prior.
        sampler: The sampler of p(x).
    """

    prior: Prior | None = None
    sampler: Sampler | None = None

    is_own: ClassVar[bool] = False

    @override
    def samples(self, n: int, seed: int, first: int = 0) -> Tensor:
        assert self.prior is not None
        return self.prior.sample(n, self.sampler, seed, n, first)

    def without_restoration(self, reason: str) -> "PriorRoute":
        """Return the route that only samples, and why."""
        return replace(self, restore=None, reason=reason)

    def without_samples(self, reason: str) -> "PriorRoute":
        """Return the route that only restores, and why."""
        return replace(self, sample=None, reason=reason)


def shared_route(
    name: str, prior: Prior, posterior: PosteriorSampler, operator: Operator, sampler: Sampler
) -> PriorRoute:
    """Return the route of the samplers that all methods share.

    Arguments:
        name: The posterior sampler's name.
        prior: The prior.
        posterior: The posterior sampler.
        operator: The operator of the measurements; a copy on the prior's device is used.
        sampler: The sampler of p(x).
    """
    device = next(prior.parameters()).device
    moved = operator.to(device)

    def restore(batch: Batch, generators: list[Generator]) -> Draw:
        draw = posterior(prior, Likelihood.of(moved, batch.to(device)), generators)
        return replace(draw, x=draw.x.cpu())

    def sample(n: int, generator: Generator) -> Tensor:
        noise = torch.randn((n, *prior.image_shape), generator=generator)
        return sampler(prior, noise.to(device), generator).cpu()

    route = PriorRoute(name, restore=restore, sample=sample, prior=prior, sampler=sampler)
    is_untold = operator.noise is not None and operator.noise.told == "none"
    return route.without_restoration(UNTOLD) if is_untold else route


def routes_of(shared: PriorRoute | None, own: Sequence[Route], has_gaps: bool) -> list[Route]:
    """Return the routes of a method, the shared one first.

    Arguments:
        shared: The shared samplers with the method's prior; None for a method without denoiser.
        own: The method's own.
        has_gaps: Whether its network never met a whole image: then its own routes, where one
            samples, sample in place of the shared sampler.
    """
    if shared is None:
        return list(own)
    if has_gaps and any(route.sample is not None for route in own):
        shared = shared.without_samples(NEVER_WHOLE)
    return [shared, *own]


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
        draw = route.restore(part, generators)
        _check(draw.x, (len(rows), *shape), f"'{route.name}' returned restorations")
        found.append(draw.x.float())
        costs = (draw.evaluations, draw.backwards)
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
            x = route.samples(size, seed, first)
            _check(x, (size, *shape), f"'{route.samples_by or route.name}' returned samples")
            parts.append(x.float())
            task.advance(size)
        found.append(torch.cat(parts))
    return found, (clock() - start) / len(seeds)


def _check(x: Tensor, shape: tuple[int, ...], what: str) -> None:
    if x.shape != shape:
        raise ValueError(f"{what} of shape {tuple(x.shape)}; needed: {shape}")
