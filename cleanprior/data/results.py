"""Restored images in the container of their measurements: its names, order, types and scale."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from ..errors import UserError
from ..extras import optional
from ..files import replace_folder, staging_path, write_with
from .array_files import files_of, is_folder_of_files
from .array_sources import choose
from .containers import READ, SUFFIXES, named_arrays, whole
from .formats import Form, Frames, format_of, suffix_of, to_stored
from .layouts import scatter
from .measured_arrays import y_layout
from .reading import AS_STORED, Reading

#: Letters of the axes of images in files that say nothing else.
_PLAIN = {".nii": "HWN", ".nii.gz": "HWN"}
_LOSSY = (".jpg", ".jpeg")


@dataclass(frozen=True)
class Part:
    """One file of measurements.

    Attributes:
        path: Where it lies.
        name: Its name within the folder; its own for a file alone.
        key: Name of the array that was y.
        form: How y lies in it.
        count: How many images it holds.
    """

    path: Path
    name: str
    key: str
    form: Form
    count: int


@dataclass(frozen=True)
class Original:
    """What measurements were read from, so that images can be written like it.

    Attributes:
        path: The file or the folder.
        parts: Its files, in the order of the measurements.
        reading: How stored values become images in [-1, 1].
        scales: What each image is multiplied by, (n,), where the file says so (``scale``).
    """

    path: Path
    parts: tuple[Part, ...]
    reading: Reading = AS_STORED
    scales: NDArray[Any] | None = None

    @property
    def is_folder(self) -> bool:
        """Whether each picture or stack has a file of its own."""
        return is_folder_of_files(self.path)

    @property
    def suffix(self) -> str:
        """Ending of its files."""
        return suffix_of(self.parts[0].path)


def original_of(path: Path, image_shape: Sequence[int] | None, reading: Reading) -> Original:
    """Look at a user's measurements again: how they lie in their files.

    Arguments:
        path: The file or the folder.
        image_shape: (channels, height, width) of the images, where it is known.
        reading: What the user says of it.

    Raises:
        UserError: It cannot be read.
    """
    if not is_folder_of_files(path):
        one = _part(path, path.name, image_shape, reading)
        return Original(path, (one,), reading, _scales(path))
    names = files_of(path)
    parts = tuple(_part(path / n, n, image_shape, reading, True) for n in names)
    return Original(path, parts, reading)


def _scales(path: Path) -> NDArray[Any] | None:
    """Return the factor of each image that a file holds as ``scale``, or None.

    Raises:
        UserError: It is not one positive number an image.
    """
    if format_of(path) is not None:
        return None
    with named_arrays(path, "measurement file") as found:
        if "scale" not in found or "y" not in found:
            return None
        values, count = np.asarray(whole(found["scale"]()), np.float64), found["y"]().shape[0]
    if values.shape != (count,) or not (np.isfinite(values) & (values > 0)).all():
        raise UserError(f"'{path}' holds a scale that is not one positive number an image")
    return values


def _part(
    path: Path,
    name: str,
    image_shape: Sequence[int] | None,
    reading: Reading,
    may_be_one: bool = False,
) -> Part:
    with named_arrays(path, "measurement file") as found:
        key = reading.key or ("y" if "y" in found else None)
        rows = choose(path, found, key)
        shape, dtype = tuple(rows.shape), np.dtype(rows.dtype)
        if isinstance(rows, Frames) and reading.layout is None:
            form = rows.form
        else:
            layout = reading.layout or ("HW" if may_be_one and len(shape) == 2 else None)
            if layout is None:
                y = _shaped(shape, dtype)
                layout = y_layout(path, y, image_shape, None)
                if layout is None and len(shape) == 3:  # larger grey images
                    layout = y_layout(path, y, None, None)
            known = rows.form if isinstance(rows, Frames) else Form("", shape, dtype)
            if layout is None:  # y is no image: its restoration is
                layout, known = "NCHW", replace(known, shape=(shape[0], 0, 0, 0))
            form = replace(known, axes=layout)
    counts = [n for n, a in zip(form.shape, form.axes, strict=True) if a == "N"]
    held = key or next(iter(found))
    return Part(path, name, held, form, int(np.prod(counts)) if counts else 1)


def _shaped(shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return an array of a shape that takes no memory."""
    return np.broadcast_to(np.zeros((), dtype), shape)


@dataclass(frozen=True)
class Target:
    """Where images are written, and like what.

    Attributes:
        path: The file, or the folder of the files.
        original: What the measurements were read from.
    """

    path: Path
    original: Original

    @classmethod
    def of(cls, to: Path | None, original: Original, default: str = "restored") -> "Target":
        """Return where images go by ``--to``: the ending that it has, or the original's.

        Raises:
            UserError: An ending that is not written, or a kind of file that cannot hold them.
        """
        is_named = to is not None and suffix_of(to) in READ and not to.is_dir()
        if to is None or (to.is_dir() and not original.is_folder):
            to = (to or Path()) / default
        if not is_named and not original.is_folder:
            to = to.with_name(to.name + original.suffix)
        found = cls(to, original)
        found.check()
        return found

    @property
    def is_folder(self) -> bool:
        """Whether a folder of files is written."""
        return suffix_of(self.path) not in READ and self.original.is_folder

    @property
    def suffix(self) -> str:
        """Ending of what is written."""
        return self.original.suffix if self.is_folder else suffix_of(self.path)

    def called(self, what: str) -> "Target":
        """Return the place of something beside: ``NAME_mean.tif``."""
        if self.is_folder:
            return replace(self, path=self.path.with_name(f"{self.path.name}_{what}"))
        stem = self.path.name[: -len(suffix_of(self.path))]
        return replace(self, path=self.path.with_name(f"{stem}_{what}{suffix_of(self.path)}"))

    def picture(self) -> Path:
        """Return the name of the picture beside."""
        base = self.path.name if self.is_folder else self.path.name[: -len(self.suffix)]
        more = "_picture" if self.suffix == ".png" and not self.is_folder else ""
        return self.path.with_name(f"{base}{more}.png")

    def check(self, is_float: bool = False) -> None:
        """Refuse what cannot be written, before any compute.

        Arguments:
            is_float: Whether the numbers are floats, whatever the original holds.

        Raises:
            UserError: The reason, and what to write.
        """
        suffix = self.suffix
        first = self.original.parts[0]
        advice = "give --to NAME.tif (or .npy, .fits, .nii)"
        if suffix in _LOSSY:
            raise UserError(f"--to {self.path}: JPEG changes the numbers; {advice}")
        found = format_of(self.path if not self.is_folder else first.path)
        if found is not None and found.name == "DICOM" and not self._is_like(first):
            raise UserError(f"--to {self.path}: DICOM is written from DICOM alone; {advice}")
        is_float = is_float or first.form.stored.kind not in "biu"
        if found is not None and found.name in ("DICOM", "picture") and is_float:
            raise UserError(f"--to {self.path}: {found.name} files hold no floats; {advice}")
        count = sum(p.count for p in self.original.parts)
        if found is not None and found.name == "picture" and not self.is_folder and count > 1:
            raise UserError(f"--to {self.path}: one picture cannot hold {count}; {advice}")
        if found is not None:
            optional(found.library, f"write '{self.path}'", found.extra)

    def _is_like(self, part: Part) -> bool:
        mine, theirs = format_of(Path(f"x{self.suffix}")), format_of(part.path)
        return mine is not None and mine == theirs

    def units(self, images: NDArray[Any]) -> NDArray[Any]:
        """Return images of the first measurements, in [-1, 1], in the original's units."""
        return self.original.reading.stored(images) * self._scales(len(images))

    def unit(self, values: NDArray[Any]) -> NDArray[Any]:
        """Return values of the first measurements in units of images."""
        return self.original.reading.unit(values / self._scales(len(values)))

    def _scales(self, n: int) -> NDArray[Any]:
        scales = self.original.scales
        return np.ones(1) if scales is None else scales[:n, None, None, None]

    def write(self, values: NDArray[Any], is_spread: bool = False) -> None:
        """Write images in the original's units, (n, c, h, w).

        Arguments:
            values: Those of the first n measurements, in their order, by :meth:`units`.
            is_spread: They are standard deviations: float32, without an offset.

        Raises:
            UserError: A disk that refuses, or a kind of file that cannot hold them.
        """
        for part, path, some in self._files(values):
            like = part.path if self._is_like(part) else None
            form = part.form
            if form.stored.kind == "c":
                real, imaginary = np.split(some, 2, axis=1)
                some = real + 1j * imaginary
            is_same = like is not None or {self.suffix, self.original.suffix} <= set(SUFFIXES)
            if not self.is_folder and (len(self.original.parts) > 1 or not is_same):
                form = self._plain(part.form, some, like is not None)
            if is_spread:
                form = replace(form, stored=np.dtype("float32"), slope=1.0, offset=0.0)
                some = np.abs(some)
            raw = to_stored(scatter(some, form.axes, form.shape), form)
            path.parent.mkdir(parents=True, exist_ok=True)
            if suffix_of(path) == ".zarr":
                staging = staging_path(path)
                _write(staging, raw, form, like, part.key)
                replace_folder(staging, path)
            else:
                write_with(path, partial(_write, raw=raw, form=form, like=like, key=part.key))

    def _plain(self, form: Form, images: NDArray[Any], is_like: bool) -> Form:
        """Return the form of one file for all images, in another container."""
        suffix = self.suffix
        axes = _PLAIN.get(suffix, "NCHW" if images.shape[1] > 1 or suffix in SUFFIXES else "NHW")
        if images.shape[1] > 1 and axes == "HWN":
            axes = "HWNNC"
        if "N" not in form.axes and len(images) == 1 and suffix not in SUFFIXES:
            axes = axes.replace("N", "")
        sizes = dict(zip("NCHW", images.shape, strict=True))
        shape = [sizes[a] for a in axes]
        if axes == "HWNNC":
            shape[3] = 1
        scaled = (form.slope, form.offset) != (1.0, 0.0) and not is_like
        stored = np.dtype("float32") if scaled else form.stored
        keep = {} if is_like else {"slope": 1.0, "offset": 0.0}
        return replace(form, axes=axes, shape=tuple(shape), stored=stored, **keep)

    def _files(self, values: NDArray[Any]) -> Iterator[tuple[Part, Path, NDArray[Any]]]:
        """Yield which images go into which file."""
        if not self.is_folder:
            yield self.original.parts[0], self.path, values
            return
        first = 0
        for part in self.original.parts:
            some = values[first : first + part.count]
            first += part.count
            if len(some):
                yield part, self.path / PurePosixPath(part.name), some


def _write(path: Path, raw: NDArray[Any], form: Form, like: Path | None, key: str) -> None:
    """Write one file.

    Raises:
        UserError: A kind of file that cannot hold these numbers.
    """
    found = format_of(path)
    if found is not None:
        library = optional(found.library, f"write '{path}'", found.extra)
        try:
            found.functions().write(path, raw, form, like, library)
        except (UserError, OSError):
            raise
        except Exception as error:
            raise UserError(f"cannot write {found.name}: {error}") from error
        return
    name = "x" if key in ("y", "array") else key
    raw = np.ascontiguousarray(raw)
    suffix = suffix_of(path)
    if suffix == ".npy":
        np.save(path, raw)
    elif suffix == ".npz":
        np.savez(path, **{name: raw})  # type: ignore[arg-type]
    elif suffix == ".safetensors":
        save_file({name: raw}, path)
    elif suffix == ".zarr":
        optional("zarr", f"write '{path}'").open_group(str(path), mode="w")[name] = raw
    else:
        with optional("h5py", f"write '{path}'").File(path, "w") as file:
            file[name] = raw
