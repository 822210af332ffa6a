r"""What is logged of restorations: how they fit their measurements, and how much they explain."""

import torch
from jaxtyping import Float
from torch import Tensor

from cleanprior.data import Batch
from cleanprior.notices import Notice, tell
from cleanprior.operators import Likelihood, Operator
from cleanprior.operators.levels import column
from cleanprior.training import Session

from ..em.steps import fit_of
from .channel import Channel, drawn_like

#: Measurements whose variance is compared.
COMPARED = 2048
#: Share of the measured variance that the first restorations must explain: EM leaves a start that
#: is too narrow only slowly (v' - v ~ v^2).
NARROW = 0.5
#: Variance of the signal, in units of that of the noise, below which nothing is compared.
LEAST = 0.02


def log_restorations(
    channel: Channel, number: int, x: Float[Tensor, "n c h w"], chunk: int, session: Session
) -> None:
    r"""Log how restorations fit, and the share of the measured variance that they explain.

    ``residual`` and ``residual_ratio`` are those of :func:`cleanprior.methods.em.steps.fit_of`; a
    conditional network that does not look at y has a ratio above 1. ``spread`` is the variance of
    simulated measurements of x over that of the real ones, both less the noise: 1 at a fixed point.

    Arguments:
        channel: The channel.
        number: The round; of the first one a narrow start is told.
        x: One restoration of each measurement, on the CPU.
        chunk: Restorations at a time.
        session: The run.
    """
    operator, data = channel.operator.to("cpu"), session.measurements
    index = torch.arange(len(data))
    mean, ratio = fit_of(Likelihood.of(operator, data), index, x, 0.0, chunk)
    generator = session.generator("spread", round=number)
    chosen = torch.randperm(len(data), generator=generator)[:COMPARED]
    real = data.batch(chosen)
    like = drawn_like(data, len(chosen), generator)
    device = channel.operator.device
    new = channel.simulate(x[chosen].to(device), like.to(device), generator).to("cpu")
    signal, noise = signal_of(operator, real)
    found: dict[str, float | None] = {"residual": mean, "residual_ratio": ratio}
    if signal > LEAST * noise:
        found["spread"] = signal_of(operator, new)[0] / signal
    for key, value in found.items():
        if value is not None:
            session.log[key] = [*session.log.get(key, []), value]
    spread = found.get("spread")
    if number == 0 and spread is not None and spread < NARROW:
        text = (
            f"the first restorations explain {spread:.0%} of the variance of the measurements; "
            "EM leaves a start that is too narrow only slowly: expect a prior that is too narrow"
        )
        tell([Notice(text, is_warning=True)])


def signal_of(operator: Operator, batch: Batch) -> tuple[float, float]:
    """Return the variance of measured entries, less that of the noise, and the latter.

    The noise counts only where it is Gaussian. Units of x squared; every entry has its own mean.
    """
    y = batch.y.double()
    seen = operator.observed(batch.y, batch.params).double()
    centre = (seen * y).sum(0) / seen.sum(0).clamp_min(1)
    count = seen.sum().clamp_min(1)
    total = (seen * (y - centre) ** 2).sum() / count
    if "gaussian" not in operator.capabilities:
        return total.item(), 0.0
    noise = (seen * column(batch.sigma_y, y).double() ** 2).sum() / count
    return (total - noise).item(), noise.item()


__all__ = ["log_restorations", "signal_of"]
