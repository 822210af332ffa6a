"""What a record says of costs: passes and FLOPs of training, of one restoration, of one sample."""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from .data.measurements import Measurements
from .diffusion.posterior import PosteriorSampler
from .diffusion.samplers import Sampler
from .operators.base import Operator
from .passes import Meter
from .prior import Prior, image_generators
from .seeding import generator_for, scoped_rng
from .training.method import Way
from .training.report import TrainingReport

Costs = dict[str, Any]
#: Measurements restored to be counted: solvers stop early for one image, seldom for a batch.
RESTORED = 8


def training_costs(report: TrainingReport, processes: int = 1) -> Costs:
    """Return the passes and FLOPs of all networks in training, E-steps included.

    Arguments:
        report: What training counted.
        processes: How many trained alike.

    Returns:
        ``train_flops`` (None where a network cannot be counted), ``train_forwards``,
        ``train_backwards`` (images), ``train_cpu_seconds``; ``passes``, ``pass_flops`` and
        ``uncounted`` by network.
    """
    meter = Meter()
    meter.restore(report.passes, report.pass_flops, report.uncounted)
    flops = meter.total_flops()
    return {
        "train_flops": None if flops is None else processes * flops,
        "train_forwards": processes * meter.total("forward"),
        "train_backwards": processes * meter.total("backward", "vjp"),
        "train_cpu_seconds": sum(report.cpu_seconds.values()),
        "passes": report.passes,
        "pass_flops": report.pass_flops,
        "uncounted": report.uncounted,
    }


def use_costs(
    networks: Mapping[str, nn.Module],
    prior: Prior | None,
    posterior: PosteriorSampler,
    sampler: Sampler,
    ways: Sequence[Way],
    measured: Measurements,
    operator: Operator,
) -> list[Costs]:
    """Restore a few measurements and draw one sample in every way, and count the passes.

    Arguments:
        networks: The averaged networks.
        prior: The prior, or None for a method without a denoiser.
        posterior: The shared posterior sampler.
        sampler: The shared sampler of p(x).
        ways: The method's own ways.
        measured: Held-out measurements.
        operator: Their operator; a copy is used.

    Returns:
        ``restore_flops, restore_forwards, restore_backwards, sample_flops, sample_forwards``, for
        one image, of the shared samplers (empty without a prior), then of each own way; absent for
        what it cannot do.
    """
    operator = copy.deepcopy(operator)
    n = min(RESTORED, len(measured))
    batch = measured.batch(torch.arange(n))

    def restore(p: Prior) -> Callable[[], Any]:
        return lambda: p.restore(batch, operator, posterior, 0)

    def in_way(way: Way) -> tuple[Callable[[], Any] | None, Callable[[], Any] | None]:
        own, draw = way.restore, way.sample
        return (
            None if own is None else lambda: own(batch, image_generators(0, range(n))),
            None if draw is None else lambda: draw(1, generator_for(0, "own-samples")),
        )

    shared: list[Costs] = [{}]
    watched = dict(networks)
    if prior is not None:
        if not any(prior.denoiser is n for n in networks.values()):
            watched["prior"] = prior.denoiser
        draw_one = prior.sample
        shared = [_count(watched, n, restore(prior), lambda: draw_one(1, sampler, 0))]
    return shared + [_count(watched, n, *in_way(way)) for way in ways]


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
