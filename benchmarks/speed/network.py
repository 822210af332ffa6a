"""What a pass of the network takes: against the machine's own rates, the batch and the side."""

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from cleanprior.config import compose
from cleanprior.data import Measurements
from cleanprior.data.measurement_files import draw_measurements, read_measurements
from cleanprior.diffusion.backbones import build_backbone
from cleanprior.diffusion.denoiser import Denoiser
from cleanprior.operators.building import build_operator
from cleanprior.passes import Meter
from cleanprior.seeding import generator_for

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
#: Numbers of measurements, their images, and batches of 64 that are read of them.
NUMBERS, MEASURED, BATCHES = (500, 2_000, 8_000), (3, 16, 16), 50


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
    """Time a pass over the batch and the side, measurements over their number; fit exponents."""
    by_batch, by_side = {}, {}
    for batch in (1, 2, 8, 32, 128):
        network = denoiser("small", (1, 8, 8), bench)
        by_batch[batch] = passes(network, batch, (1, 8, 8), bench)[0]
    for side in SIDES:
        network = denoiser("small", (1, side, side), bench)
        by_side[side] = passes(network, 4, (1, side, side), bench)[0]
    lines = _growth("a pass: images in a batch", by_batch, "1x8x8", bench)
    lines += _growth("a pass: side of an image", by_side, "batch 4", bench)
    with tempfile.TemporaryDirectory() as folder:
        drawn, read = _measured(Path(folder))
        size = "x".join(map(str, MEASURED))
        lines += _growth("draw, write, read and hash: measurements", drawn, size, bench)
        lines += _growth(f"{BATCHES} batches of 64 read: measurements", read, size, bench)
    note = (
        "exponent: b of the fit seconds = a size^b; of the last two sizes, where overhead is past"
    )
    return Section("scaling", "How costs grow", pd.DataFrame(lines), [note])


def _growth(
    what: str, runs: Mapping[int, Callable[[], Any]], at: str, bench: Bench
) -> list[dict[str, Any]]:
    """Time the same thing at several sizes; return its lines, with the fitted exponents."""
    seconds = bench.interleaved(what, {str(k): run for k, run in runs.items()})
    medians = [float(pd.Series(seconds[str(k)]).median()) for k in runs]
    fitted, largest = (exponent(list(runs)[n:], medians[n:]) for n in (0, -2))
    return [
        {
            "what": what,
            "size": k,
            "ms": 1e3 * middle,
            "times the least": ratio(seconds[str(k)], seconds[str(next(iter(runs)))])[0],
            "exponent": fitted,
            "of the last two": largest,
            "at": at,
        }
        for k, middle in zip(runs, medians, strict=True)
    ]


def _measured(folder: Path) -> tuple[dict[int, Callable[[], Any]], dict[int, Callable[[], Any]]]:
    """Return what draws measurements into a file and reads them, and what reads batches of them."""
    operator = build_operator(compose(["operator=inpainting"])["operator"], MEASURED, 0)
    drawn: dict[int, Callable[[], Any]] = {}
    read: dict[int, Callable[[], Any]] = {}
    for n in NUMBERS:
        x = torch.rand((n, *MEASURED), generator=generator_for(0, "images")) * 2 - 1
        path = folder / f"{n}.safetensors"

        def draw(x: Tensor = x, path: Path = path) -> Measurements:
            draw_measurements(path, x, operator, 0, "train")
            return read_measurements(path)

        held = draw()
        order = torch.randperm(n, generator=generator_for(0, "order"))

        def batches(held: Measurements = held, order: Tensor = order) -> None:
            for k in range(BATCHES):
                held.batch(order[64 * k % len(order) :][:64])

        drawn[n], read[n] = draw, batches
    return drawn, read
