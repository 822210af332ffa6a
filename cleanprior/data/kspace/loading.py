"""Files of k-space as measurements of ``operator=mri_multicoil``: what ``data=kspace`` builds."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...errors import UserError
from ...notices import Notice
from ..measured import MeasuredData
from ..measurements import Measurements
from ..splits import LEAST_HELD_OUT, held_out
from .preparing import Options, Prepared, prepare
from .scans import SUFFIXES, Complex, read_scan

#: Where the mask comes from.
MASKS = ("auto", "file", "zeros", "drawn")


def kspace(
    path: str | None,
    slices: Sequence[int] | None,
    coils: int | None,
    maps: str,
    noise: str | None,
    readout: int | None,
    size: Sequence[int] | None,
    mask_from: str,
    acceleration: float,
    centre_lines: int | None,
    mask_seed: int,
    sigma_y: float | None,
    take_phase: bool,
    test_share: float,
) -> MeasuredData:
    """Load k-space of a file or a folder as measurements, each slice divided by its own scale.

    In this order: slices that hold an object, readout oversampling, prewhitening where there are
    samples of noise, coil compression, mask, noise level, coil maps, scale. The scale is kept with
    the measurements, and restorations are multiplied by it.

    Arguments:
        path: A file of :data:`SUFFIXES`, or a folder of them.
        slices: [first, one after the last] of each file; None for all that hold an object.
        coils: Virtual coils after compression, or None for all.
        maps: ``espirit``, ``acs`` (the centre's images over their root sum of squares), or a file.
        noise: ``.npy`` with samples of noise alone, (coils, n); None for those of the file.
        readout: Rows to keep of the field of view; None for what the file's header says.
        size: [rows, columns] in the middle of k-space to keep: larger pixels. None for all.
        mask_from: ``file``, ``zeros`` of k-space, ``drawn`` (retrospective: lines by the law of
            the operator), or ``auto``: the file's, else its zeros.
        acceleration: R of a drawn mask.
        centre_lines: Middle lines of a drawn mask; None as the operator.
        mask_seed: Seed of drawn masks.
        sigma_y: Noise level of real and imaginary parts in the file's units; None to estimate it.
        take_phase: Put the phase of the centre's image into the maps.
        test_share: Share held out, by a hash of file names (one file: of each slice).

    Raises:
        UserError: No such file, an array that is no k-space, maps, masks or noise that do not
            belong to it, no noise level.
    """
    if path is None:
        raise UserError("data=kspace needs data.path=FILE or FOLDER with k-space")
    if mask_from not in MASKS:
        raise UserError(f"mask_from={mask_from}; allowed: {', '.join(MASKS)}")
    if not 0 < test_share < 1:
        raise UserError(f"test_share={test_share} is not a share; allowed: between 0 and 1")
    span = _pair("slices", slices, 0)
    options = Options(
        coils=coils,
        maps=maps,
        noise=noise,
        readout=readout,
        size=_pair("size", size, 1),
        mask_from=mask_from,
        acceleration=acceleration,
        centre_lines=centre_lines,
        mask_seed=mask_seed,
        sigma_y=sigma_y,
        is_phase_taken=take_phase,
    )
    root = Path(path)
    files = files_of(root)
    found = [prepare(read_scan(file, span), options) for file in files]
    return _together(root, files, found, test_share)


def _pair(name: str, given: Sequence[int] | None, least: int) -> tuple[int, int] | None:
    if given is None:
        return None
    if len(given) != 2 or any(type(n) is not int or n < least for n in given):
        raise UserError(f"{name}={list(given)}; allowed: two whole numbers from {least}, or null")
    return int(given[0]), int(given[1])


def files_of(root: Path) -> list[Path]:
    """Return the files of k-space of a path, a folder's in the order of their names.

    Raises:
        UserError: There is none.
    """
    if root.is_file() or root.suffix.lower() == ".cfl":
        return [root]
    if not root.is_dir():
        raise UserError(f"'{root}' is neither a file nor a folder")
    found = [p for p in sorted(root.iterdir()) if p.suffix.lower() in SUFFIXES and p.is_file()]
    if not found:
        raise UserError(f"'{root}' holds no file of k-space; allowed: {', '.join(SUFFIXES)}")
    return found


def _together(
    root: Path, files: Sequence[Path], found: Sequence[Prepared], test_share: float
) -> MeasuredData:
    """Put the slices of all files together and hold some out.

    Raises:
        UserError: Files of different coils or sizes.
    """
    shapes = {p.y.shape[1:]: f.name for p, f in zip(found, files, strict=True)}
    if len(shapes) > 1:
        (a, first), (b, second) = list(shapes.items())[:2]
        raise UserError(
            f"'{first}' has (coils, rows, columns) {a} and '{second}' {b}; set data.coils, "
            "data.readout and data.size so that they agree"
        )
    rows, columns = found[0].y.shape[2:]
    is_lines = all(p.mask.shape[1] == 1 for p in found)
    masks = [
        p.mask if is_lines else np.broadcast_to(p.mask, (len(p.y), rows, columns)) for p in found
    ]
    measured = Measurements(
        _parts(np.concatenate([p.y for p in found])),
        {
            "mask": torch.from_numpy(np.concatenate(masks)[:, None].astype(np.float32)),
            "coil_maps": _parts(np.concatenate([p.maps for p in found])),
        },
        torch.from_numpy(np.concatenate([p.sigma_y for p in found])),
    )
    scale = torch.from_numpy(np.concatenate([p.scale for p in found]))
    law = _law(found, is_lines, measured)
    words = " ".join(f"operator.{k}={v}" for k, v in law.items() if k != "name")
    told = [Notice(text) for p in found for text in p.told]
    told.append(Notice(f"{root.name}: train on it by operator={law['name']} {words}"))
    names = [f.name for p, f in zip(found, files, strict=True) for _ in p.y]
    keys = (
        names if len(files) > 2 else [hashlib.sha256(row.numpy()).hexdigest() for row in measured.y]
    )
    if len(set(keys)) <= LEAST_HELD_OUT:
        told.append(Notice(f"{root.name}: {len(measured)} slices, too few to hold any out"))
        chosen = [torch.arange(len(measured))] * 2
    else:
        is_test = held_out(keys, test_share)
        chosen = [(~is_test).nonzero()[:, 0], is_test.nonzero()[:, 0]]
    train, test = (measured[index] for index in chosen)
    scales = {"train": scale[chosen[0]], "test": scale[chosen[1]]}
    shape = (2, int(rows), int(columns))
    return MeasuredData(root.stem, train, test, shape, tuple(told), scales=scales, law=law)


def _parts(values: Complex) -> torch.Tensor:
    """Return real and imaginary parts on a second axis."""
    return torch.from_numpy(np.stack([values.real, values.imag], 1))


def _law(found: Sequence[Prepared], is_lines: bool, measured: Measurements) -> dict[str, Any]:
    """Return the operator that these are measurements of, by its keys."""
    share = measured.params["mask"].mean().item()
    mask = measured.params["mask"]
    most = int(share * mask[0].numel()) - 1
    side = max(1, min(min(p.centre[1] for p in found), most if is_lines else int(most**0.5)))
    law: dict[str, Any] = {
        "name": "mri_multicoil",
        "coils": measured.y.shape[2],
        "acceleration": float(f"{1 / share:.4g}"),
        "centre_lines": side,
    }
    if not is_lines:
        law["pattern"] = "points"
    return {**law, "sigma": float(f"{measured.sigma_y.max().item():.6g}")}


__all__ = ["files_of", "kspace"]
