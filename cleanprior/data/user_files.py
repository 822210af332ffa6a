"""A user's measurements as they lie on disk: one file, or a folder with a file for each picture."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import UserError
from ..mapped import LARGE
from ..notices import Notice
from .array_files import files_of, is_folder_of_files
from .array_sources import choose
from .containers import Rows, named_arrays, whole
from .formats import Frames
from .layouts import ByImage, layout_of, to_nchw, with_axes
from .measured_arrays import open_arrays, y_layout
from .reading import Reading
from .splits import shipped_split


@dataclass(frozen=True)
class Held:
    """What lies on disk.

    Attributes:
        train: Arrays to train on, in memory or read by rows: ``y``, ``sigma_y``, ``params/NAME``.
        test: Arrays that are held out by the file; empty where it holds none out.
        layout: That of y; None where it is no image.
        names: The file that each row of ``train`` comes from, or None for a single file.
        test_names: The same for ``test``.
        how: How the two were told apart, where the files say it.
        notices: What should be told.
    """

    train: Mapping[str, Any]
    test: Mapping[str, Any]
    layout: str | None
    names: list[str] | None = None
    test_names: list[str] | None = None
    how: str = ""
    notices: tuple[Notice, ...] = field(default=())


@contextmanager
def open_held(
    path: Path,
    image_shape: Sequence[int] | None,
    reading: Reading,
    is_whole: bool = False,
) -> Iterator[Held]:
    """Open a user's file or folder of measurements; rows are read when they are asked for.

    Arguments:
        path: A file of :data:`cleanprior.data.containers.READ`, or a folder of such files.
        image_shape: (channels, height, width) of the images, or None where y has their shape.
        reading: What the user says of it.
        is_whole: Read all files of a folder as one, whatever its folders are called.

    Raises:
        UserError: It is missing, damaged, lacks an array, or holds pictures of different sizes.
    """
    if is_folder_of_files(path):
        yield _folder(path, reading, is_whole)
        return
    with open_arrays(path, reading.key) as splits:
        layouts = []
        for split in splits.values():
            if "y" in split:
                split["y"], layout = with_axes(split["y"], reading.layout)
                layouts.append(layout)
        layout = y_layout(path, splits["train"]["y"], image_shape, layouts[0])
        if splits["test"] and "y" not in splits["test"]:
            found = ", ".join(f"test/{k}" for k in sorted(splits["test"]))
            raise UserError(f"'{path}' holds no array 'test/y'; found: {found}")
        yield Held(splits["train"], splits["test"], layout, how="of the file's arrays test/")


def read_held(
    path: Path,
    image_shape: Sequence[int] | None,
    reading: Reading,
    is_whole: bool = False,
) -> Held:
    """Read all arrays of :func:`open_held` into memory."""
    with open_held(path, image_shape, reading, is_whole) as held:
        train, test = ({k: whole(v) for k, v in s.items()} for s in (held.train, held.test))
        return replace(held, train=train, test=test)


def _folder(folder: Path, reading: Reading, is_whole: bool) -> Held:
    """Open the pictures of a folder as (n, c, h, w)."""
    names = files_of(folder)
    shipped = None if is_whole else shipped_split(names)
    notices: tuple[Notice, ...] = ()
    if shipped is not None and shipped.others:
        text = f"{folder}: {len(shipped.others)} files beside train and test are left out"
        notices = (Notice(f"{text}, e.g. {shipped.others[0]}", True),)
    parts = {"train": names} if shipped is None else {"train": shipped.train, "test": shipped.test}
    pictures = _Files(folder, reading)
    for name in [n for part in parts.values() for n in part]:
        pictures.look(name)
    rows = {k: [n for n in part for _ in range(pictures.counts[n])] for k, part in parts.items()}
    arrays: dict[str, dict[str, Rows]] = {
        k: {"y": _Pictures(pictures, part)} for k, part in parts.items()
    }
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


class _Files:
    """The pictures of the files of a folder; some of the first files stay in memory.

    Attributes:
        counts: Pictures of each file that was looked at.
    """

    def __init__(self, folder: Path, reading: Reading) -> None:
        self._folder, self._reading = folder, reading
        self.counts: dict[str, int] = {}
        self._first: tuple[str, tuple[int, ...]] | None = None
        self._dtypes: dict[str, np.dtype[Any]] = {}
        self._kept: dict[str, NDArray[Any]] = {}
        self._room = LARGE

    def look(self, name: str) -> None:
        """Find the number and the type of a file's pictures.

        Raises:
            UserError: They have another size than those before.
        """
        found = _pictures(self._folder / name, self._reading)
        self._first = self._first or (name, found.shape[1:])
        if found.shape[1:] != self._first[1]:
            sizes = ((n, "x".join(map(str, s))) for n, s in (self._first, (name, found.shape[1:])))
            told = ", ".join(f"{n}: {s}" for n, s in sizes)
            raise UserError(f"'{self._folder}' holds measurements of different sizes ({told})")
        self.counts[name], self._dtypes[name] = len(found), found.dtype
        if found.nbytes <= self._room:
            self._room -= found.nbytes
            self._kept[name] = found

    def read(self, name: str) -> NDArray[Any]:
        """Return the pictures of a file that was looked at.

        Raises:
            UserError: It has changed since.
        """
        if name in self._kept:
            return self._kept[name]
        found = _pictures(self._folder / name, self._reading)
        assert self._first is not None
        if found.shape != (self.counts[name], *self._first[1]):
            raise UserError(f"'{self._folder / name}' has changed while it was read")
        return found

    @property
    def size(self) -> tuple[int, ...]:
        """(c, h, w) of each picture."""
        assert self._first is not None
        return self._first[1]

    def dtype(self, names: Sequence[str]) -> np.dtype[Any]:
        """Return the type that holds the values of all of these files."""
        return np.result_type(*{self._dtypes[n] for n in names})


class _Pictures:
    """The pictures of several files as one array, (n, c, h, w)."""

    def __init__(self, files: _Files, names: Sequence[str]) -> None:
        self._files, self._names = files, names
        self._ends = np.cumsum([files.counts[n] for n in names])
        self.shape = (int(self._ends[-1]), *files.size)
        self.dtype = files.dtype(names)
        self._last: tuple[str, NDArray[Any]] | None = None

    def __getitem__(self, rows: slice) -> NDArray[Any]:
        first, last, step = rows.indices(self.shape[0])
        found = np.empty((max(0, last - first), *self.shape[1:]), self.dtype)
        place = int(np.searchsorted(self._ends, first, side="right"))
        done = 0
        while done < len(found):
            name = self._names[place]
            begin = first + done - (int(self._ends[place]) - self._files.counts[name])
            part = self._of(name)[begin : begin + len(found) - done]
            found[done : done + len(part)] = part
            done, place = done + len(part), place + 1
        return found[::step]

    def _of(self, name: str) -> NDArray[Any]:
        if self._last is None or self._last[0] != name:
            self._last = name, self._files.read(name)
        return self._last[1]


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
