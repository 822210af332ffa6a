"""A Route: one way to restore and to sample, shared by all methods or a method's own."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Generator, Tensor

from ..data.measurements import Batch
from ..diffusion.posterior import Draw
from ..seeding import generator_for

#: What a restoration can be.
KINDS = ("draws", "point")


@dataclass(frozen=True)
class Route:
    """One way to restore and to sample: a row of a table.

    As a method writes it, batches and images lie on the method's device; evaluation calls what
    :meth:`on` returns, with all on the CPU. Generators are always the CPU's.

    Attributes:
        restores_by: How it restores, e.g. ``one step``; empty where it only samples.
        samples_by: How it samples, e.g. ``fixed mask``; empty where that needs no word.
        restore: ``(batch, generators) -> Draw``, or None. It is asked for several restorations of a
            measurement, with other generators, where it draws.
        sample: ``(n, generator) -> x``, or None.
        reason: Why it does not restore or does not sample, for the notes under the table.
        kind: What a restoration is: ``draws``, one draw from p(x|y), or ``point``, an estimate that
            is the same each time. Draws are compared with draws, estimates with means of draws.

    Raises:
        ValueError: Another kind.
    """

    restores_by: str = ""
    samples_by: str = ""
    restore: Callable[[Batch, list[Generator]], Draw] | None = None
    sample: Callable[[int, Generator], Tensor] | None = None
    reason: str = ""
    kind: str = "draws"

    #: Whether it is a method's own, and not the shared samplers with the method's prior.
    is_own: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"a route of kind '{self.kind}'; allowed: {', '.join(KINDS)}")

    @property
    def name(self) -> str:
        """How it restores, in sentences."""
        return self.restores_by or "no restoration"

    @property
    def no_restoration(self) -> str:
        """Why it does not restore."""
        return self.reason or f"{self.name} does not restore"

    @property
    def no_generation(self) -> str:
        """Why it does not sample."""
        return self.reason or f"{self.name} does not sample p(x)"

    def draws(self, k: int) -> int:
        """Return how many restorations of a measurement are drawn where k are asked for."""
        return 0 if self.restore is None else k if self.kind == "draws" else 1

    def label(self, k: int) -> str:
        """Return what its row is: how it restores, and what its restorations are."""
        parts = []
        if self.restore is not None and self.kind == "point":
            parts.append(f"{self.name}: point estimate")
        elif self.restore is not None:
            parts.append(f"{self.name}: one draw" + (f", mean of {k}" if k > 1 else ""))
        if self.samples_by:
            parts.append(f"samples: {self.samples_by}")
        return "; ".join(parts) or self.name

    def samples(self, n: int, seed: int, first: int = 0) -> Tensor:
        """Return n samples of a sampling seed, from number ``first`` on."""
        assert self.sample is not None
        keys = {"first": first} if first else {}
        return self.sample(n, generator_for(seed, "own-samples", **keys)).detach()

    def on(self, device: torch.device) -> "Route":
        """Return the route for batches and images of the CPU, computed on ``device``."""
        inner_restore, inner_sample = self.restore, self.sample

        def restore(batch: Batch, generators: list[Generator]) -> Draw:
            assert inner_restore is not None
            draw = inner_restore(batch.to(device), generators)
            return replace(draw, x=draw.x.detach().cpu())

        def sample(n: int, generator: Generator) -> Tensor:
            assert inner_sample is not None
            return inner_sample(n, generator).cpu()

        return replace(
            self,
            restore=restore if inner_restore else None,
            sample=sample if inner_sample else None,
        )


__all__ = ["Route"]
