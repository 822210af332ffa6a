"""One scan, step by step, in the form of the operator."""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import UserError
from ...operators.multicoil import sampling_of
from ...seeding import generator_for
from ..containers import named_arrays, whole
from . import maps as of_maps
from . import steps
from .scans import Complex, Numbers, Scan, read_maps


@dataclass(frozen=True)
class Options:
    """What a user says of a scan; see :func:`kspace`."""

    coils: int | None
    maps: str
    noise: str | None
    readout: int | None
    size: tuple[int, int] | None
    mask_from: str
    acceleration: float
    centre_lines: int | None
    mask_seed: int
    sigma_y: float | None
    is_phase_taken: bool


@dataclass(frozen=True)
class Prepared:
    """The slices of one file as the operator has them."""

    y: Complex
    mask: Numbers
    maps: Complex
    sigma_y: Numbers
    scale: Numbers
    centre: tuple[int, int]
    told: tuple[str, ...]


def prepare(scan: Scan, options: Options) -> Prepared:
    """Bring one scan to the form of the operator, step by step.

    Raises:
        UserError: As :func:`kspace`.
    """
    steps.check_kspace(scan.name, scan.kspace)
    told: list[str] = []
    kept = steps.object_slices(scan.kspace)
    if len(kept) < len(scan.kspace):
        told.append(f"slices {_listed(kept)} of {len(scan.kspace)}, the others are empty")
    k_space = scan.kspace[kept]
    mask = _mask(scan, k_space, options, told)
    k_space = k_space * (mask[:, None] > 0)
    k_space, mask = _readout(scan, k_space, mask, options, told)
    k_space, level = _noise(scan, k_space, mask, options, told)
    if options.coils is not None and options.coils < k_space.shape[1]:
        told.append(f"{k_space.shape[1]} coils compressed to {options.coils} virtual ones")
        k_space = steps.compress(k_space, options.coils)
    if options.size is not None:
        k_space, mask, factor = _cropped(scan, k_space, mask, options.size)
        level = replace(level, value=level.value * factor)
    centre = steps.centre_of(mask)
    if centre[1] == 0:
        raise UserError(
            f"'{scan.name}': the centre of k-space is not measured, which maps and scale need"
        )
    centre_only = steps.only_centre(k_space, centre)
    image = steps.root_sum_of_squares(steps.inverse(centre_only))
    maps = _maps(scan, k_space, centre, centre_only, image, options)
    if options.is_phase_taken:
        maps = of_maps.take_phase(maps, centre_only)
    scale = steps.scale_of(image)
    told.append(f"sigma_y from {level.origin}: {level.value:.4g} in the file's units")
    span = f"{scale.min():.4g} to {scale.max():.4g}"
    told.append(f"divided by the 99th percentile of the centre's image: {span}")
    y = (k_space / scale[:, None, None, None]).astype(np.complex64)
    sigma = (level.value / scale).astype(np.float32)
    text = tuple(f"{scan.name}: {t}" for t in told)
    return Prepared(y, mask, maps, sigma, scale, centre, text)


def _listed(kept: Any) -> str:
    return f"{kept[0]} to {kept[-1]}" if kept[-1] - kept[0] + 1 == len(kept) else str(list(kept))


def _mask(scan: Scan, k_space: Complex, options: Options, told: list[str]) -> Numbers:
    """Return what is measured of each slice, and say where that comes from."""
    zeros = steps.mask_from_zeros(k_space)
    count, rows, columns = len(k_space), *k_space.shape[2:]
    if options.mask_from == "drawn":
        if zeros.mean() < 1:
            raise UserError(
                f"'{scan.name}' is undersampled already ({zeros.mean():.1%} measured); "
                "mask_from=drawn needs a full scan"
            )
        shape = (2, rows, columns)
        law = sampling_of(shape, options.acceleration, options.centre_lines, None, "lines")
        digest = hashlib.sha256(scan.name.encode()).hexdigest()
        drawn = law.draw(count, generator_for(options.mask_seed, "kspace-mask", file=digest))
        told.append(f"mask drawn: {law.count} of {columns} lines, {law.centre_count} in the middle")
        return drawn[:, 0].numpy()
    if options.mask_from == "file" and scan.mask is None:
        raise UserError(f"'{scan.name}' holds no mask; set data.mask_from=zeros")
    if scan.mask is None or options.mask_from == "zeros":
        what = "lines" if zeros.shape[1] == 1 else "points"
        told.append(f"mask from the zeros of k-space: {zeros.mean():.1%} of the {what} measured")
        return zeros
    mask = scan.mask if scan.mask.ndim == 2 else scan.mask[None]
    if mask.ndim != 2 or mask.shape[1] != columns or mask.shape[0] not in (1, rows):
        raise UserError(
            f"'{scan.name}': its mask has shape {scan.mask.shape}; needed: ({columns},) or "
            f"({rows}, {columns})"
        )
    if not np.isin(mask, (0, 1)).all():
        raise UserError(f"'{scan.name}': its mask holds other values than 0 and 1")
    told.append(f"mask from the file: {mask.mean():.1%} measured")
    return np.repeat(mask[None], count, 0).astype(np.float32)


def _readout(
    scan: Scan, k_space: Complex, mask: Numbers, options: Options, told: list[str]
) -> tuple[Complex, Numbers]:
    """Remove readout oversampling where the header or the user says that there is some."""
    height = k_space.shape[2]
    wanted = options.readout or scan.readout
    if wanted is None or wanted >= height:
        if options.readout is not None and options.readout > height:
            raise UserError(f"readout={options.readout}; '{scan.name}' has {height} rows")
        return k_space, mask
    if mask.shape[1] > 1:
        raise UserError(
            f"'{scan.name}': rows are undersampled, so that they are no readout to shorten"
        )
    told.append(f"readout oversampling removed: {height} rows to {wanted}")
    return steps.remove_oversampling(k_space, wanted), mask


def _noise(
    scan: Scan, k_space: Complex, mask: Numbers, options: Options, told: list[str]
) -> tuple[Complex, steps.Level]:
    """Prewhiten where there are samples of noise; return the noise level and where it comes from.

    After prewhitening k-space is in units of the noise, so that a level of the user's is refused.
    """
    noise = scan.noise
    if options.noise is not None:
        noise = read_noise(Path(options.noise))
    if noise is not None:
        if options.sigma_y is not None:
            raise UserError(
                f"'{scan.name}': there are samples of noise and data.sigma_y; give one of them"
            )
        told.append(f"coils prewhitened by {noise.shape[1]} samples of noise")
        return steps.prewhiten(k_space, noise), steps.Level(1.0, "noise samples")
    if options.sigma_y is not None:
        return k_space, steps.Level(options.sigma_y, "data.sigma_y")
    return k_space, steps.level_from_corners(k_space, mask)


def read_noise(path: Path) -> Complex:
    """Read samples of noise, (coils, n), complex, of an ``.npy``.

    Raises:
        UserError: Another file, or another array.
    """
    with named_arrays(path, "file of noise samples") as found:
        values = whole(next(iter(found.values()))())
    if values.dtype.kind != "c" or values.ndim != 2:
        raise UserError(
            f"'{path}' holds {values.dtype} of shape {values.shape}; needed: (coils, n)"
        )
    return values.astype(np.complex64)


def _cropped(
    scan: Scan, k_space: Complex, mask: Numbers, size: tuple[int, int]
) -> tuple[Complex, Numbers, float]:
    """Keep the middle of k-space; return what it is multiplied by so that images keep values."""
    height, width = k_space.shape[2:]
    if size[0] > height or size[1] > width:
        raise UserError(f"size={list(size)}; '{scan.name}' has {height} rows, {width} columns")
    factor = (size[0] * size[1] / (height * width)) ** 0.5
    cut = factor * steps.crop(k_space, size)
    return cut.astype(np.complex64), steps.crop(mask, size).astype(np.float32), factor


def _maps(
    scan: Scan,
    k_space: Complex,
    centre: tuple[int, int],
    centre_only: Complex,
    image: Numbers,
    options: Options,
) -> Complex:
    if options.maps == "espirit":
        if k_space.shape[1] == 1:
            return np.ones_like(k_space)
        return of_maps.espirit(k_space, centre)
    if options.maps == "acs":
        return of_maps.from_centre(centre_only)
    if options.noise is not None or scan.noise is not None or options.coils is not None:
        raise UserError(
            "maps of a file are those of its coils, not of prewhitened or compressed ones; leave "
            "data.noise and data.coils out, or estimate them (data.maps=espirit)"
        )
    held = read_maps(Path(options.maps), k_space.shape[1], tuple(k_space.shape[2:]))
    if len(held) not in (1, len(k_space)):
        raise UserError(f"'{options.maps}' holds maps of {len(held)} slices, not {len(k_space)}")
    of_maps.check_cover(options.maps, held, image)
    return np.repeat(of_maps.normalised(held), len(k_space) // len(held), 0)


__all__ = ["Options", "Prepared", "prepare", "read_noise"]
