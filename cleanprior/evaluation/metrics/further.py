"""Metrics of restorations that plug-ins add, by their names in ``configs/metric``."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ...config import build, registry
from ...metric_names import is_built_in

#: ``(restored, truth) -> one value an image``: (n, c, h, w) twice, in [-1, 1] -> (n,).
Metric = Callable[[Tensor, Tensor], Tensor]


def check_names(names: Sequence[str]) -> None:
    """Refuse names that a record could not tell apart.

    Raises:
        ValueError: No list, a name twice, or one of a built-in metric.
    """
    if isinstance(names, str) or len(set(names)) < len(names):
        raise ValueError(f"metrics={names}; allowed: a list of different names, e.g. [my_own]")
    for name in names:
        if is_built_in(name) or name.endswith("_point"):
            raise ValueError(f"metrics: '{name}' is the name of a built-in metric; choose another")


def further_metrics(names: Sequence[str]) -> dict[str, Metric]:
    """Build metrics by their names.

    Raises:
        UserError: No such metric, or its constructor refuses a value of its YAML.
    """
    return {name: build({**registry.read("metric", name), "name": name}) for name in names}


def values_of(
    name: str, metric: Metric, x: Float[Tensor, "n c h w"], truth: Float[Tensor, "n c h w"]
) -> Float[Tensor, " n"]:
    """Return one value an image; the metric is handed copies.

    Raises:
        ValueError: It raised an error itself, or returned something else; the message says what.
    """
    try:
        found = torch.as_tensor(metric(x.clone(), truth.clone())).detach().cpu()
    except Exception as error:  # the boundary of somebody's code
        raise ValueError(f"{name} raised {type(error).__name__}: {error}") from error
    if tuple(found.shape) != (len(x),):
        raise ValueError(f"{name} returned shape {tuple(found.shape)}; needed: ({len(x)},)")
    return found.double()


__all__ = ["Metric", "check_names", "further_metrics", "values_of"]
