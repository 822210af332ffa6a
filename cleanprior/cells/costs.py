"""What a record says of costs: passes and FLOPs of training, of one restoration, of one sample."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from ..data.measurements import Measurements
from ..evaluation.routes import PriorRoute, alone
from ..passes import Meter
from ..prior import image_generators
from ..seeding import scoped_rng
from ..training.report import TrainingReport
from ..training.route import Route
from .fields import Record

Costs = dict[str, Any]
#: Measurements restored to be counted: solvers stop early for one image, seldom for a batch.
RESTORED = 8


def training_costs(report: TrainingReport) -> Costs:
    """Return the passes and FLOPs of all networks in training, E-steps included.

    Arguments:
        report: What training counted, in all processes.

    Returns:
        ``train_flops`` (None where a network cannot be counted), ``train_forwards``,
        ``train_backwards`` (images), ``train_cpu_seconds``; ``passes``, ``pass_flops`` and
        ``uncounted`` by network.
    """
    meter = Meter()
    meter.restore(report.passes, report.pass_flops, report.uncounted)
    flops = meter.total_flops()
    return {
        "train_flops": flops,
        "train_forwards": meter.total("forward"),
        "train_backwards": meter.total("backward", "vjp"),
        "train_cpu_seconds": sum(report.cpu_seconds.values()),
        "passes": report.passes,
        "pass_flops": report.pass_flops,
        "uncounted": report.uncounted,
    }


def spent(training: Mapping[str, Any], costs: Mapping[str, Any]) -> Costs:
    """Return what a prior says of the costs of its training, for whoever goes on from it.

    Arguments:
        training: The report's values.
        costs: Of :func:`training_costs`.

    Returns:
        ``images`` that the budgeted network saw, ``seconds``, ``flops`` (None where a network
        cannot be counted), ``forwards``, ``backwards``, ``evaluations`` of E-steps.
    """
    return {
        "images": training["images"],
        "seconds": sum(training["seconds"].values()),
        "flops": costs["train_flops"],
        "forwards": costs["train_forwards"],
        "backwards": costs["train_backwards"],
        "evaluations": training["costs"].get("evaluations", 0),
    }


def use_costs(
    networks: Mapping[str, nn.Module], routes: Sequence[Route], measured: Measurements
) -> list[Costs]:
    """Restore a few measurements and draw one sample by every route, and count the passes.

    Arguments:
        networks: The averaged networks, the prior's too.
        routes: The shared samplers and the method's own.
        measured: Held-out measurements.

    Returns:
        ``restore_flops, restore_forwards, restore_backwards, sample_flops, sample_forwards``, for
        one image, of each route; absent for what it cannot do.
    """
    n = min(RESTORED, len(measured))
    batch = measured.batch(torch.arange(n))
    found = []
    for route in routes:
        restore = route.restore
        found.append(
            _count(
                networks,
                n,
                restore and partial(restore, batch, image_generators(0, range(n))),
                route.sample and partial(route.samples, 1, 0),
            )
        )
    return found


def add_use_costs(
    record: Record,
    averaged: Mapping[str, nn.Module],
    shared: PriorRoute | None,
    own: Sequence[Route],
    measured: Measurements,
) -> None:
    """Add what one restoration and one sample cost to a record and to its rows.

    Arguments:
        record: Changed here.
        averaged: The averaged networks.
        shared: The shared samplers with the prior, or None without a prior.
        own: The method's own routes.
        measured: Held-out measurements.
    """
    routes, watched = list(own), dict(averaged)
    if shared is not None:
        routes.insert(0, shared)
        if shared.prior is not None and not any(
            shared.prior.denoiser is n for n in averaged.values()
        ):
            watched["prior"] = shared.prior.denoiser
    counted = alone(partial(use_costs, watched, routes, measured))
    for row, costs in zip(record["rows"], counted, strict=True):
        row["costs"] = costs
    # The record's own: the shared samplers, or the first route that does it.
    for costs in reversed(counted):
        record["costs"] |= costs


def _count(
    networks: Mapping[str, nn.Module],
    measurements: int,
    restore: Callable[[], Any] | None,
    sample: Callable[[], Any] | None,
) -> Costs:
    found: Costs = {}
    for name, use, images in (("restore", restore, measurements), ("sample", sample, 1)):
        if use is None:
            continue
        meter = Meter()
        with scoped_rng(0), meter.watching(networks):
            use()
        meter.is_on = False
        flops, backwards = meter.total_flops(), meter.total("backward", "vjp")
        found[f"{name}_flops"] = None if flops is None else flops / images
        found[f"{name}_forwards"] = meter.total("forward") / images
        if backwards:
            found[f"{name}_backwards"] = backwards / images
    return found
