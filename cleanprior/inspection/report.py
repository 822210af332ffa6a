"""Look at a user's file: its arrays, noise and gaps, the operator, and the command to run."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data.array_files import files_of, is_folder_of_files
from ..data.containers import named_arrays, whole
from ..data.contents import LEAST_SHARE, ranges_for
from ..data.layouts import ByImage, scanned
from ..data.measured_arrays import arrange
from ..data.measurements import Measurements
from ..data.reading import Reading
from ..data.user_files import Held, read_held
from ..errors import UserError
from ..operators.base import ImageShape
from .advice import Inspection, commands, judge
from .gaps import Gaps, gaps_of, law_of, places
from .noise import Noise, noise_of
from .problem import Guess, guess

#: Bins of the histogram, and its marks from none to many.
BINS, MARKS = 56, " .:-=+*#@"
#: Side of patches that are advised, and images below which they are.
PATCH, FEW = 64, 200
#: Arrays that are listed.
_LISTED = 12


def contents(path: Path) -> list[str]:
    """Return a line for each array of a file, or for the files of a folder.

    Raises:
        UserError: It cannot be read.
    """
    if is_folder_of_files(path):
        names = files_of(path)
        kinds = sorted({Path(n).suffix.lower() for n in names})
        first = contents(path / names[0])
        return [f"{len(names)} files ({', '.join(kinds)}); the first, {names[0]}:", *first]
    lines = []
    with named_arrays(path) as found:
        for name, get in list(found.items())[:_LISTED]:
            rows = get()
            values = whole(rows)
            axes = f", axes {rows.axes}" if hasattr(rows, "axes") else ""
            lines.append(f"{name}: {_shape(values.shape)} {values.dtype}{axes}, {_span(values)}")
        if len(found) > _LISTED:
            lines.append(f"and {len(found) - _LISTED} more arrays")
    return lines


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "one number"


def _span(values: NDArray[Any]) -> str:
    if values.size == 0 or values.dtype.kind not in "biufc":
        return "no numbers"
    sizes = np.abs(values) if values.dtype.kind == "c" else values
    finite = sizes[np.isfinite(sizes)]
    if finite.size == 0:
        return "none of them a number"
    what = "magnitude " if values.dtype.kind == "c" else ""
    if finite.min() == finite.max():
        return f"{what}{_n(finite.min())} everywhere"
    return f"{what}{_n(finite.min())} to {_n(finite.max())}"


def _n(value: Any) -> str:
    return f"{float(value):.5g}"


def histogram(values: NDArray[Any]) -> list[str]:
    """Return a histogram of one line, with its ends below: the root of the counts, from . to @."""
    finite = values[np.isfinite(values)]
    counts, edges = np.histogram(finite, BINS)
    level = np.ceil((len(MARKS) - 1) * np.sqrt(counts / max(counts.max(), 1))).astype(int)
    left, right = _n(edges[0]), _n(edges[-1])
    line = "".join(MARKS[i] for i in level)
    return [f"|{line}|", left + right.rjust(BINS + 2 - len(left))]


def inspect(path: Path, reading: Reading, image_shape: ImageShape | None) -> Inspection:
    """Look at a user's measurements.

    Arguments:
        path: The file or folder.
        reading: What the user says of it; what he does not say is told from the numbers.
        image_shape: (channels, height, width) of the images, where y has another.

    Raises:
        UserError: It cannot be read as measurements; :func:`contents` shows what it holds.
    """
    found = Inspection()
    held = read_held(path, image_shape, reading)
    y = _images(held)
    scan = scanned(held.train["y"].shape)
    if scan is not None:
        n, _, coils, height, width = held.train["y"].shape
        found.say("y", f"{n} scans: k-space of {height}x{width}, {coils} coils, in two parts")
        _tell_mask(found, held)
    elif y is None:
        found.say("y", f"{_shape(held.train['y'].shape)}: no images but vectors")
        if image_shape is None:
            raise UserError(
                f"'{path}' holds y of vectors; set data.image_shape=[channels,height,width] to "
                "the images' shape"
            )
    else:
        _look(found, y, held)
    reading = _completed(found, reading, held, y)
    arrays, notices = arrange(path, held.train, held.layout, "", reading, held.names)
    measured = Measurements.of(path, arrays)
    for notice in (*held.notices, *notices):
        found.say("y", notice.text.removeprefix(f"{path.name}: "))
    shape = image_shape or scan or _shape_of(measured)
    noise = _noise(found, reading, held, measured) if y is not None else None
    measured = _with_level(measured, held, reading, noise)
    made, why = guess(measured, shape)
    if y is not None:
        found.y = measured.y.numpy()
    if made is None:
        found.say("operator", f"none agrees: {why}")
        return found
    able = judge(found, measured, made)
    keys, made = _keys(path, reading, measured, made, image_shape)
    found.commands = commands("measurements", keys, made.name, made.values, able)
    if _is_large(measured, made):
        found.say("y", f"large and few: data.patch={PATCH} cuts them into patches")
    return found


def _images(held: Held) -> NDArray[Any] | None:
    """Return y as stored, (n, c, h, w), complex values kept."""
    if held.layout is None:
        return None
    ordered = ByImage(held.train["y"], held.layout)
    values = ordered[slice(None)]
    if ordered.inner == "HW":
        return values[:, None]
    return np.moveaxis(values, 3, 1) if ordered.inner == "HWC" else values


def _shape_of(measured: Measurements) -> ImageShape:
    channels, height, width = (int(v) for v in measured.y.shape[1:])
    return channels, height, width


def _look(found: Inspection, y: NDArray[Any], held: Held) -> None:
    """Tell of the numbers of y as they are stored, and of what is missing."""
    held_out = f", {len(held.test['y'])} more held out" if held.test else ""
    size = "x".join(map(str, y.shape[1:]))
    found.say("y", f"{len(y)} images of {size}{held_out}; {y.dtype}, {_span(y)}")
    shown = np.abs(y) if y.dtype.kind == "c" else y
    for line in histogram(shown):
        found.say("y", line)
    gaps = gaps_of(y)
    _tell_gaps(found, gaps, y)
    _tell_mask(found, held)


def _tell_mask(found: Inspection, held: Held) -> None:
    """Tell of a mask that the file holds."""
    mask = held.train.get("params/mask")
    if mask is not None and mask.ndim == 4:
        found.say("missing", f"params/mask: {law_of(mask)}")
        if len(mask) > 1 and (mask == mask[:1]).all() and (mask == 0).any():
            found.say("missing", f"never measured: {places(mask[0] == 0)}")


def _tell_gaps(found: Inspection, gaps: Gaps, y: NDArray[Any]) -> None:
    if gaps.nan:
        law = law_of(~np.isnan(y))
        found.say("missing", f"NaN: {law}")
    if gaps.saturated is not None:
        value, share = gaps.saturated
        found.say("missing", f"{share:.2%} of y is {value:g}, the largest value: saturated?")
    if n := int(gaps.dead.sum()):
        where = places(gaps.dead)
        who = "pixel has" if n == 1 else "pixels have"
        found.say("missing", f"{n} {who} one value in all images: dead or masked: {where}")
    if gaps.zeros > 0.01:
        same = law_of(y != 0)
        found.say("missing", f"{gaps.zeros:.1%} of y is exactly 0 ({same.partition('; ')[2]})")
    if "missing" not in found.sections:
        found.say("missing", "nothing: no NaN, no dead and no saturated pixels")


def _completed(found: Inspection, reading: Reading, held: Held, y: NDArray[Any] | None) -> Reading:
    """Return the reading with what the numbers tell: gaps, a range, and no noise level yet."""
    has_mask = "params/mask" in held.train or reading.mask is not None
    if reading.missing is None and not has_mask and np.isnan(held.train["y"]).any():
        reading = replace(reading, missing="nan")
    if y is not None and reading.range is None:
        mask = held.train.get("params/mask")
        lines = mask is not None and mask.ndim == 4 and mask.shape[2] == 1 < y.shape[2]
        if lines and y.dtype.kind != "c" and y.shape[1] == 2:  # k-space as two channels
            y = y[:, :1] + 1j * y[:, 1:]
        levels = np.asarray(held.train.get("sigma_y", 0.0))
        limits = _limits(y, float(np.median(levels) if levels.ndim > 1 else np.max(levels)))
        if limits is not None:
            reading = replace(reading, range=limits)
            low, high = limits
            found.say("y", f"in units of their own: data.range=[{low:.6g},{high:.6g}] is assumed")
    if reading.sigma_y is None and reading.photons is None and "sigma_y" not in held.train:
        reading = replace(reading, sigma_y=0.0)
    return reading


def _limits(y: NDArray[Any], level: float) -> tuple[float, float] | None:
    """Return which values are probably -1 and 1, or None where y is in these units already.

    Arguments:
        y: As stored; complex values are k-space, whose images tell.
        level: The noise level that the file says, or 0.
    """
    if y.dtype.kind == "c":
        images = np.abs(np.fft.ifft2(np.nan_to_num(y), norm="ortho"))
        top = float(f"{np.quantile(images, 0.999):.3g}")
        return None if 0.2 <= top <= 4 else (-top, top)
    known = y[np.isfinite(y) & (y != 0)] if (y == 0).mean() > 0.05 else y[np.isfinite(y)]
    if known.size == 0 or known.min() == known.max():
        return None
    least, most = float(known.min()), float(known.max())
    if y.dtype.kind in "iub":
        kind = np.iinfo(y.dtype) if y.dtype.kind != "b" else None
        if kind is None:
            return 0.0, 1.0
        if y.dtype.kind == "u" and kind.bits <= 16 and (most - least) > LEAST_SHARE * kind.max:
            return 0.0, float(kind.max)
        told = ranges_for(least, most).partition("[")[2].partition("]")[0].split(",")
        fills = (most - least) > LEAST_SHARE * (float(told[1]) - float(told[0]))
        return (float(told[0]), float(told[1])) if fills else (least, most)
    low, high = (float(f"{v:.3g}") for v in np.quantile(known, [0.0005, 0.9995]))
    # Of images in [0, 1] few values lie two standard deviations of the noise below 0.
    if float((known < -2 * level).mean()) <= 0.03 and 0.5 <= high - 2 * level <= 1.2:
        return 0.0, 1.0
    if least < 0 < most and 0.1 <= max(-low, high) <= 4:
        return None
    return low, high


def _noise(found: Inspection, reading: Reading, held: Held, measured: Measurements) -> Noise | None:
    """Tell the noise level by the numbers, and what the file says."""
    mask = measured.params.get("mask")
    y = measured.y
    seen = None
    if mask is not None and mask.dim() == y.dim():
        seen = (mask > 0).expand_as(y).numpy()
    factor = reading.scale[0]
    told = None
    if "sigma_y" in held.train:
        levels = np.asarray(held.train["sigma_y"], np.float64)
        found.say("noise", f"the file says sigma_y = {levels.max():.4g} (at most)")
        # Of a map what noise of one level has the same power.
        told = float(np.sqrt(np.mean(levels**2)) if levels.ndim > 1 else levels.max())
    is_lines = mask is not None and mask.dim() == 4 and mask.shape[2] == 1 < y.shape[2]
    if np.iscomplexobj(held.train["y"]) or is_lines:
        found.say("noise", "y is k-space, it seems: its level is not told by neighbouring values")
        return None
    noise = noise_of(y.numpy(), seen)
    if noise is None:
        found.say("noise", "too few neighbouring pixels were measured to estimate it")
        return None
    if reading.photons is not None:
        found.say("noise", f"{noise.sigma / factor:.3g} times what data.photons explains")
        return None
    units = f" = {noise.sigma:.3g} in units of images" if factor != 1 else ""
    spread = ""
    if noise.spread is not None:
        low, high = (v / factor for v in noise.spread)
        spread = f" (single images {low:.3g} to {high:.3g})"
    text = f"about {noise.sigma / factor:.4g}{units}{spread}"
    found.say("noise", f"{text}, by the finest wavelets; on detailed images an upper bound")
    if noise.gain is not None:
        gain = noise.gain / factor
        zero = -(noise.gain * reading.scale[1] + noise.offset) / (factor * noise.gain)
        found.say(
            "noise",
            f"it grows with the signal: variance = {gain:.3g} (y - {zero:.4g}), as counted photons "
            "make it; methods take one level, of which this is the middle; "
            f"data.photons=[{gain:.3g},{zero:.4g},0] brings all to one, or the file holds a map, "
            f"sigma_y = sqrt({gain:.3g} (max(y - {zero:.4g}, 0) + {gain:.3g}))",
        )
    # What is within texture and a factor of two is no contradiction.
    if told is not None and noise.sigma / factor < 0.5 * told:
        found.say("noise", f"less than the file's {told:.4g}: is its sigma_y in these units?")
    return noise


def _with_level(
    measured: Measurements, held: Held, reading: Reading, noise: Noise | None
) -> Measurements:
    """Return the measurements with the estimated level, where nobody said one."""
    if "sigma_y" in held.train or (reading.sigma_y or 0) > 0 or noise is None:
        return measured
    level = float(f"{noise.sigma:.3g}")
    return Measurements(measured.y, measured.params, measured.sigma_y * 0 + level)


def _keys(
    path: Path,
    reading: Reading,
    measured: Measurements,
    made: Guess,
    image_shape: ImageShape | None,
) -> tuple[dict[str, str], Guess]:
    """Return the keys of the data, and the guess with the level that its loader will find."""
    keys = {"path": str(path)}
    for key in ("layout", "key", "missing", "mask"):
        if (value := getattr(reading, key)) is not None:
            keys[key] = str(value)
    if reading.photons is not None:
        keys["photons"] = "[" + ",".join(f"{v:.10g}" for v in reading.photons) + "]"
    if reading.range is not None:
        keys["range"] = "[" + ",".join(f"{v:.10g}" for v in reading.range) + "]"
    if _is_large(measured, made):
        keys["patch"] = str(PATCH)
    if image_shape is not None:
        keys["image_shape"] = "[" + ",".join(map(str, image_shape)) + "]"
    if reading.sigma_y is not None:
        keys["sigma_y"] = f"{measured.sigma_y.max().item() / reading.scale[0]:.6g}"
        made = replace(made, values={**made.values, "sigma": _level(keys["sigma_y"], reading)})
    return keys, made


def _is_large(measured: Measurements, made: Guess) -> bool:
    """Whether patches are what to train on."""
    is_local = bool(made.operator.capabilities & {"mask", "identity"})
    if measured.y.dim() != 4 or not is_local or "fourier" in made.operator.capabilities:
        return False
    return len(measured) < FEW and min(measured.y.shape[2:]) >= 2 * PATCH


def _level(stored: str, reading: Reading) -> str:
    """Return a noise level in units of images as the loader will find it."""
    return f"{float(stored) * reading.scale[0]:.6g}"
