"""A user's measurements as they lie on disk: one file, or a folder with a file for each picture."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import UserError
from ..notices import Notice
from .array_files import files_of, is_folder_of_files
from .array_sources import choose
from .containers import named_arrays
from .formats import Frames
from .layouts import ByImage, layout_of, to_nchw, with_axes
from .measured_arrays import Arrays, read_arrays, y_layout
from .reading import Reading
from .splits import shipped_split


@dataclass(frozen=True)
class Held:
    """What lies on disk.

    Attributes:
        train: Arrays to train on: ``y``, ``sigma_y``, ``params/NAME``.
        test: Arrays that are held out by the file; empty where it holds none out.
        layout: That of y; None where it is no image.
        names: The file that each row of ``train`` comes from, or None for a single file.
        test_names: The same for ``test``.
        how: How the two were told apart, where the files say it.
        notices: What should be told.
    """

    train: Arrays
    test: Arrays
    layout: str | None
    names: list[str] | None = None
    test_names: list[str] | None = None
    how: str = ""
    notices: tuple[Notice, ...] = field(default=())


def read_held(
    path: Path,
    image_shape: Sequence[int] | None,
    reading: Reading,
    is_whole: bool = False,
) -> Held:
    """Read a user's file or folder of measurements.

    Arguments:
        path: A file of :data:`cleanprior.data.containers.READ`, or a folder of such files.
        image_shape: (channels, height, width) of the images, or None where y has their shape.
        reading: What the user says of it.
        is_whole: Read all files of a folder as one, whatever its folders are called.

    Raises:
        UserError: It is missing, damaged, lacks an array, or holds pictures of different sizes.
    """
    if is_folder_of_files(path):
        return _folder(path, reading, is_whole)
    splits = read_arrays(path, reading.key)
    layouts = []
    for split in splits.values():
        if "y" in split:
            rows, layout = with_axes(split["y"], reading.layout)
            split["y"] = np.asarray(rows[:] if rows.shape else rows[()])
            layouts.append(layout)
    layout = y_layout(path, splits["train"]["y"], image_shape, layouts[0])
    if splits["test"] and "y" not in splits["test"]:
        found = ", ".join(f"test/{k}" for k in sorted(splits["test"]))
        raise UserError(f"'{path}' holds no array 'test/y'; found: {found}")
    return Held(splits["train"], splits["test"], layout, how="of the file's arrays test/")


def _folder(folder: Path, reading: Reading, is_whole: bool) -> Held:
    """Read the pictures of a folder as (n, c, h, w)."""
    names = files_of(folder)
    shipped = None if is_whole else shipped_split(names)
    notices: tuple[Notice, ...] = ()
    if shipped is not None and shipped.others:
        text = f"{folder}: {len(shipped.others)} files beside train and test are left out"
        notices = (Notice(f"{text}, e.g. {shipped.others[0]}", True),)
    parts = {"train": names} if shipped is None else {"train": shipped.train, "test": shipped.test}
    read: dict[str, NDArray[Any]] = {}
    for name in [n for part in parts.values() for n in part]:
        read[name] = _pictures(folder / name, reading)
        first = next(iter(read))
        if read[name].shape[1:] != read[first].shape[1:]:
            sizes = (("x".join(map(str, read[n].shape[1:]))) for n in (first, name))
            told = ", ".join(f"{n}: {s}" for n, s in zip((first, name), sizes, strict=True))
            raise UserError(f"'{folder}' holds measurements of different sizes ({told})")
    arrays = {k: {"y": np.concatenate([read[n] for n in part])} for k, part in parts.items()}
    rows = {k: [n for n in part for _ in read[n]] for k, part in parts.items()}
    how = "" if shipped is None else f"those in {shipped.folders(shipped.test)}"
    return Held(
        arrays["train"],
        arrays.get("test", {}),
        "NCHW",
        rows["train"],
        rows.get("test"),
        how,
        notices,
    )


def _pictures(path: Path, reading: Reading) -> NDArray[Any]:
    """Return the pictures of one file, (n, c, h, w)."""
    with named_arrays(path, "measurement file") as found:
        key = reading.key or ("y" if "y" in found else None)
        rows = choose(path, found, key)
        known = isinstance(rows, Frames)
        rows, layout = with_axes(rows, reading.layout)
        if layout is None and not known and len(rows.shape) == 2:
            layout = "HW"
        layout = layout_of(f"'{path}' holds y", rows.shape, layout)
        ordered = ByImage(rows, layout)
        values = ordered[slice(None)]
    if values.dtype.kind not in "biufc":
        raise UserError(f"'{path}' holds values of type {values.dtype}, which are no numbers")
    return values[:, None] if ordered.inner == "HW" else to_nchw(values, ordered.inner)
