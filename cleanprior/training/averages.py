"""Weight averages of networks."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


class Averages:
    """Exponential averages of networks, with a warm-up so that early weights fade.

    Arguments:
        networks: The networks.
        decay: Final decay a step, in [0, 1).
    """

    def __init__(self, networks: Mapping[str, nn.Module], decay: float) -> None:
        self.decay = decay
        self.models = {k: AveragedModel(n, multi_avg_fn=self._average) for k, n in networks.items()}
        self.modules = {k: m.module.eval().requires_grad_(False) for k, m in self.models.items()}

    @torch.no_grad()
    def _average(self, averaged: Any, current: Any, seen: Tensor | int) -> None:
        # Warm-up of the decay, (1 + t) / (10 + t): the average is never older than the run.
        decay = min(self.decay, (1 + float(seen)) / (10 + float(seen)))
        torch._foreach_lerp_(averaged, current, 1 - decay)

    def update(self, name: str, network: nn.Module) -> None:
        """Include a network's present weights."""
        self.models[name].update_parameters(network)
