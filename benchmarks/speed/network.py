"""What a pass of the network takes: against the machine's own rates, the batch and the side."""

from collections.abc import Callable
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from cleanprior.config import compose
from cleanprior.diffusion.backbones import build_backbone
from cleanprior.diffusion.denoiser import Denoiser
from cleanprior.passes import Meter

from .timing import Bench, Section, exponent, machine_rates, ratio

#: Backbone, image shape and batches of the table; the last one needs a GPU.
TABLE: tuple[tuple[str, tuple[int, int, int], tuple[int, ...]], ...] = (
    ("small", (1, 8, 8), (1, 8, 64, 256)),
    ("small", (3, 32, 32), (1, 8, 64)),
    ("medium", (3, 32, 32), (1, 8)),
)
LARGE = (("large", (3, 32, 32), (1, 64, 256)),)
#: Sides of square images whose passes are compared.
SIDES = (8, 16, 32, 64)


def denoiser(name: str, shape: tuple[int, int, int], bench: Bench, **keys: Any) -> Denoiser:
    """Return a denoiser with fresh weights on a configured backbone."""
    config = compose([f"backbone={name}"])["backbone"]
    plain = {k: v for k, v in config.items() if k not in ("name", "about", "ranges")}
    made = build_backbone(plain, shape[0], shape[0], 0)
    return Denoiser(made, 0.5, 0, "edm", **keys).to(bench.device).eval()


def passes(
    network: Denoiser, batch: int, shape: tuple[int, ...], bench: Bench
) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Return a forward pass, and a pass with its gradient, on one batch."""
    x = torch.randn(batch, *shape, device=bench.device)
    sigma = torch.full((batch,), 0.7, device=bench.device)

    def forward() -> Tensor:
        with torch.no_grad():
            found: Tensor = network(x, sigma)
            return found

    def both() -> None:
        network(x, sigma).square().sum().backward()
        network.zero_grad(set_to_none=True)

    return forward, both


def flops(network: Denoiser, shape: tuple[int, ...], bench: Bench) -> tuple[float, float]:
    """Return FLOPs of one image: forward, and forward with its gradient."""
    meter = Meter()
    forward, both = passes(network, 2, shape, bench)
    with meter.watching({"n": network}):
        forward()
        both()
    meter.price()
    priced = meter.flops["n"]
    return priced["forward"], priced["forward"] + priced["backward"]


def backbone(bench: Bench) -> Section:
    """Compare each backbone with a large product and a large convolution of the same run."""
    rates = machine_rates(bench)
    lines = []
    for name, shape, batches in TABLE + (LARGE if bench.device.type == "cuda" else ()):
        exact = denoiser(name, shape, bench)
        half = denoiser(name, shape, bench, autocast=torch.bfloat16)
        once, whole = flops(exact, shape, bench)
        for batch in batches:
            forward, both = passes(exact, batch, shape, bench)
            runs = {"forward": forward, "both": both, "bf16": passes(half, batch, shape, bench)[0]}
            seconds = bench.interleaved(f"{name}, {shape}, batch {batch}", runs)
            middle = {key: float(pd.Series(found).median()) for key, found in seconds.items()}
            lines.append(
                {
                    "backbone": name,
                    "images": "x".join(map(str, shape)),
                    "batch": batch,
                    "forward ms an image": 1e3 * middle["forward"] / batch,
                    "with gradient": 1e3 * middle["both"] / batch,
                    "bf16 gains": ratio(seconds["forward"], seconds["bf16"])[0],
                    "forward, of conv": batch * once / middle["forward"] / rates["conv"],
                    "gradient, of conv": batch * whole / middle["both"] / rates["conv"],
                }
            )
    notes = [
        f"this machine, in the same run: a convolution of 64 channels {rates['conv'] / 1e9:.1f} "
        f"GFLOP/s, a product of 768 x 768 {rates['matmul'] / 1e9:.1f} GFLOP/s; 'of conv' is the "
        "network's FLOP/s over those of that convolution"
    ]
    return Section("backbone", "A pass of the network", pd.DataFrame(lines), notes)


def scaling(bench: Bench) -> Section:
    """Time a pass over the batch and over the side, and fit exponents."""
    lines = []
    by_batch, by_side = {}, {}
    for batch in (1, 2, 8, 32, 128):
        network = denoiser("small", (1, 8, 8), bench)
        by_batch[batch] = passes(network, batch, (1, 8, 8), bench)[0]
    for side in SIDES:
        network = denoiser("small", (1, side, side), bench)
        by_side[side] = passes(network, 4, (1, side, side), bench)[0]
    for what, runs, size in (("batch", by_batch, "1x8x8"), ("side", by_side, "batch 4")):
        seconds = bench.interleaved(
            f"scaling with the {what}", {str(k): run for k, run in runs.items()}
        )
        medians = [float(pd.Series(seconds[str(k)]).median()) for k in runs]
        fitted = exponent(list(runs), medians)
        largest = exponent(list(runs)[-2:], medians[-2:])
        for k, middle in zip(runs, medians, strict=True):
            lines.append(
                {
                    "over": what,
                    "size": k,
                    "ms a pass": 1e3 * middle,
                    "times the least": ratio(seconds[str(k)], seconds[str(next(iter(runs)))])[0],
                    "exponent": fitted,
                    "of the last two": largest,
                    "at": size,
                }
            )
    note = (
        "exponent: b of the fit seconds = a size^b; of the last two sizes, where overhead is past"
    )
    return Section("scaling", "How a pass grows", pd.DataFrame(lines), [note])
