"""Files of k-space as measurements of ``operator=mri_multicoil``: what ``data=kspace`` builds."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...errors import UserError
from ...mapped import Pile, release
from ...mapped import rows as row_of
from ...notices import Notice
from ..measured import MeasuredData
from ..measurements import Measurements
from ..shelf import splits
from ..splits import LEAST_HELD_OUT, digests_of, held_out, held_out_rows
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

    One file at a time is in memory, and what is made of it goes to a file where that is large.

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
    return _together(root, files, lambda file: prepare(read_scan(file, span), options), test_share)


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


class _Gathered:
    """The slices of all files: numbers of each slice in memory, what is large in piles."""

    def __init__(self) -> None:
        self.shapes: dict[tuple[int, ...], str] = {}
        self.files: list[Prepared] = []
        self._y, self._maps, self._lines, self._points = Pile(), Pile(), Pile(), Pile()
        self._is_lines: list[bool] = []

    def add(self, name: str, one: Prepared) -> None:
        """Add the slices of a file."""
        self.shapes[one.y.shape[1:]] = name
        if len(self.shapes) > 1:
            return  # told when all files are known
        is_lines = one.mask.shape[1] == 1
        self._y.add(_parts(one.y))
        self._maps.add(_parts(one.maps))
        mask = torch.from_numpy(np.ascontiguousarray(one.mask[:, None].astype(np.float32)))
        (self._lines if is_lines else self._points).add(mask)
        self._is_lines.append(is_lines)
        none = np.zeros(0, np.complex64)
        self.files.append(replace(one, y=none, maps=none, mask=none.real))

    @property
    def is_lines(self) -> bool:
        """Whether all masks are lines of k-space."""
        return all(self._is_lines)

    def measurements(self) -> Measurements:
        """Return all slices, of which nothing is left here."""
        y = self._y.tensor()
        params = {"mask": self._mask(int(y.shape[3])), "coil_maps": self._maps.tensor()}
        level = torch.from_numpy(np.concatenate([one.sigma_y for one in self.files]))
        return Measurements(y, params, level)

    def _mask(self, rows: int) -> torch.Tensor:
        """Return the masks of all slices; lines beside points are as high as these."""
        if self.is_lines:
            return self._lines.tensor()
        points = self._points.tensor()
        if not any(self._is_lines):
            return points
        lines, pile = self._lines.tensor(), Pile()
        places = {True: 0, False: 0}
        for is_lines, one in zip(self._is_lines, self.files, strict=True):
            begin, held = places[is_lines], lines if is_lines else points
            part = row_of(held, torch.arange(begin, begin + len(one.scale)))
            pile.add(part.expand(-1, -1, rows, -1).contiguous())
            places[is_lines] += len(one.scale)
        return pile.tensor()

    def close(self) -> None:
        """Leave nothing in a file."""
        for pile in (self._y, self._maps, self._lines, self._points):
            pile.close()


def _together(
    root: Path, files: Sequence[Path], prepared: Callable[[Path], Prepared], test_share: float
) -> MeasuredData:
    """Put the slices of all files together, of which one at a time is in memory; hold some out.

    Raises:
        UserError: Files of different coils or sizes.
    """
    gathered = _Gathered()
    try:
        for file in files:
            gathered.add(file.name, prepared(file))
        if len(gathered.shapes) > 1:
            (a, first), (b, second) = list(gathered.shapes.items())[:2]
            raise UserError(
                f"'{first}' has (coils, rows, columns) {a} and '{second}' {b}; set data.coils, "
                "data.readout and data.size so that they agree"
            )
        measured = gathered.measurements()
    finally:
        gathered.close()
    found = gathered.files
    scale = torch.from_numpy(np.concatenate([p.scale for p in found]))
    law = _law(found, gathered.is_lines, measured)
    words = " ".join(f"operator.{k}={v}" for k, v in law.items() if k != "name")
    told = [Notice(text) for p in found for text in p.told]
    told.append(Notice(f"{root.name}: train on it by operator={law['name']} {words}"))
    names = [f.name for p, f in zip(found, files, strict=True) for _ in p.scale]
    digests = digests_of(measured.y) if len(files) <= 2 else np.array([])
    if len(set(names) if len(files) > 2 else np.unique(digests)) <= LEAST_HELD_OUT:
        told.append(Notice(f"{root.name}: {len(measured)} slices, too few to hold any out"))
        chosen = [torch.arange(len(measured))] * 2
    else:
        few = len(files) <= 2
        is_test = held_out_rows(digests, test_share) if few else held_out(names, test_share)
        chosen = [(~is_test).nonzero()[:, 0], is_test.nonzero()[:, 0]]
    train, test = splits((measured, chosen[0]), (measured, chosen[1]))
    scales = {"train": scale[chosen[0]], "test": scale[chosen[1]]}
    shape = (2, int(measured.y.shape[3]), int(measured.y.shape[4]))
    return MeasuredData(root.stem, train, test, shape, tuple(told), scales=scales, law=law)


def _parts(values: Complex) -> torch.Tensor:
    """Return real and imaginary parts on a second axis."""
    return torch.from_numpy(np.stack([values.real, values.imag], 1))


def _law(found: Sequence[Prepared], is_lines: bool, measured: Measurements) -> dict[str, Any]:
    """Return the operator that these are measurements of, by its keys."""
    mask = measured.params["mask"]
    share = mask.mean().item()
    release(mask)
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
