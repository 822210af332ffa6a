"""Clean images from arrays on disk: one file, or a folder of them, whole or in patches."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from ..fingerprint import files_below
from ..notices import Notice
from .array_sources import Source, Span, choose, limits_of, span_of
from .containers import READ, named_arrays
from .contents import check_range, judge_span
from .datasets import CleanData, copies
from .formats import suffix_of
from .layouts import check_layout
from .patches import LEAST_IMAGES, Patches
from .pixels import check_options
from .splits import held_out, role, shipped_split, told


def arrays(
    path: str | None,
    key: str | None,
    test_key: str | None,
    layout: str | None,
    range: Sequence[float] | None,
    resolution: int | None,
    channels: int | None,
    test_share: float,
    limit: int | None,
    patch: int | None = None,
    stride: int | None = None,
) -> CleanData:
    """Load images from arrays of files, converted chunk by chunk.

    Unsigned integers of 8 or 16 bits are scaled by the range of their dtype (uint8: 0 is -1 and 255
    is 1). Signed and wider integers and floats have no range of their own: ``range`` says which
    values are -1 and 1. Complex images become two channels, real and imaginary part.

    Arguments:
        path: A file of :data:`cleanprior.data.containers.READ`, or a folder of such files.
        key: Name of the array; None where a file holds a single one.
        test_key: Name of the array of the test split; None holds images out by their content. Of a
            folder, files in ``train`` and ``test`` are the splits, else a hash of their names is.
        layout: One of :data:`cleanprior.data.layouts.LAYOUTS`; None tells it from the file, or else
            from the shape.
        range: The two values that become -1 and 1, or None for the range of 8 or 16 bits.
        resolution: Side after centre crop and resize, or None for the images' own size.
        channels: 1 or 3, or None for the images' own.
        test_share: Share of images held out.
        limit: Keep that many training images (the first ones; of patches: any), or None for all.
        patch: Side of patches that are cut from the images, or None for whole images.
        stride: Pixels from one patch to the next: None for ``patch``, 1 for every position.

    Raises:
        UserError: A file or an array that is not there, a layout that is ambiguous, values without
            a range or outside it, (almost) a constant, or an option outside its range.
    """
    check_options(resolution, channels, test_share, limit)
    check_layout(layout)
    limits = check_range(range)
    if stride is not None and patch is None:
        raise UserError(f"stride={stride} is that of patches; set data.patch, too")
    squares = None if patch is None else Patches(patch, stride)
    if path is None:
        raise UserError("data=arrays needs data.path=FILE with an array of images")
    file = Path(path)
    wanted = _Wanted(key, layout, limits, resolution, channels, test_share, limit, squares)
    if is_folder_of_files(file):
        if test_key is not None:
            raise UserError("data.test_key names an array of one file; a folder has folders")
        return _folder(file, wanted)
    if test_key is not None and squares is not None:
        raise UserError("data.patch holds patches out by itself; leave data.test_key out")
    if test_key is not None:
        return _two_arrays(file, test_key, wanted)
    return _one_array(file, wanted)


@dataclass(frozen=True)
class _Seen:
    """What is kept of a file between finding the range of all files and reading it."""

    span: Span
    dtype: np.dtype[Any]
    layout: str


@dataclass(frozen=True)
class _Wanted:
    """What the loader was told."""

    key: str | None
    layout: str | None
    limits: Span | None
    resolution: int | None
    channels: int | None
    test_share: float
    limit: int | None
    patches: Patches | None

    def range_of(
        self, place: Path, sources: Sequence[Source | _Seen]
    ) -> tuple[Span, tuple[Notice, ...]]:
        """Return the values that become -1 and 1, and what should be told of all values.

        Raises:
            UserError: No range, values outside it, or (almost) a constant.
        """
        spans = [s.span for s in sources]
        limits = self.limits or limits_of(place, [s.dtype for s in sources], spans)
        found = span_of(spans, place, limits)
        return limits, judge_span(place.name, found, limits, self.limits is not None)


def is_folder_of_files(path: Path) -> bool:
    """Whether a path is a folder whose files are arrays; a zarr folder is one array."""
    return path.is_dir() and suffix_of(path) != ".zarr"


@contextmanager
def _source(path: Path, wanted: _Wanted) -> Iterator[Source]:
    """Open a file of a folder."""
    with named_arrays(path) as found:
        yield Source(path, choose(path, found, wanted.key), wanted.layout, True)


def _one_array(file: Path, wanted: _Wanted) -> CleanData:
    with named_arrays(file) as found:
        rows = choose(file, found, wanted.key)
        train = Source(file, rows, wanted.layout, wanted.patches is not None)
        limits, notices = wanted.range_of(file, [train])
        others = [k for k in found if k != wanted.key and role(k) == "test"]
        if wanted.patches is not None:
            images = train.read(None, None, limits, wanted.resolution, wanted.channels)
            return _cut(file, list(images), train.digests(), wanted, notices)
        is_test = held_out(train.digests(), wanted.test_share)
        x, truth = (
            train.read(chosen, limit, limits, wanted.resolution, wanted.channels)
            for chosen, limit in ((~is_test, wanted.limit), (is_test, None))
        )
    how = "by a hash of each image's content"
    if others:
        how += f" (data.test_key={others[0]} holds out that array)"
    return _made(file, x, truth, how, train.layout, notices)


def _two_arrays(file: Path, test_key: str, wanted: _Wanted) -> CleanData:
    if test_key == wanted.key:
        raise UserError(f"data.key and data.test_key are both '{test_key}'; name two arrays")
    with named_arrays(file) as found:
        train, test = (
            Source(file, choose(file, found, key), wanted.layout) for key in (wanted.key, test_key)
        )
        limits, notices = wanted.range_of(file, [train, test])
        fit = limits, wanted.resolution, wanted.channels
        x, truth = train.read(None, wanted.limit, *fit), test.read(None, None, *fit)
    how = f"of the arrays '{wanted.key or 'the other one'}' and '{test_key}'"
    return _made(file, x, truth, how, train.layout, notices)


def _made(
    file: Path, x: Tensor, truth: Tensor, how: str, layout: str, notices: tuple[Notice, ...]
) -> CleanData:
    size = "x".join(map(str, x.shape[1:]))
    split = Notice(f"{file.name}: {told(len(x), len(truth), how)}; {size} (layout {layout})")
    notices = (split, *notices, *copies(file.name, x, truth))
    return CleanData(file.stem, x, truth, notices=notices)


def files_of(folder: Path) -> list[str]:
    """Return the names of a folder's files that can be read, with ``/``, sorted.

    Raises:
        UserError: There is none.
    """
    found = [p.relative_to(folder).as_posix() for p, hidden in files_below(folder) if not hidden]
    names = sorted(n for n in found if suffix_of(Path(n)) in READ)
    if not names:
        raise UserError(f"'{folder}' holds no file that can be read: {', '.join(READ)}")
    return names


def _folder(folder: Path, wanted: _Wanted) -> CleanData:
    """Read every file of a folder, twice; all images of a file are in one split."""
    names = files_of(folder)
    if len(names) == 1 and wanted.patches is None:
        return _one_array(folder / names[0], wanted)
    shipped = shipped_split(names)
    notices: tuple[Notice, ...] = ()
    if shipped is not None:
        is_test = {n: n in set(shipped.test) for n in names if n not in set(shipped.others)}
        folders = shipped.folders(shipped.train), shipped.folders(shipped.test)
        how = f"the split that they come with ({folders[0]} and {folders[1]})"
        if shipped.others:
            text = f"{folder}: {len(shipped.others)} files beside these folders are left out"
            notices += (Notice(f"{text}, e.g. {shipped.others[0]}", True),)
    else:
        chosen = [False] * len(names)
        if wanted.patches is None or len(names) >= LEAST_IMAGES:
            chosen = held_out(names, wanted.test_share).tolist()
        is_test = dict(zip(names, chosen, strict=True))
        how = f"by a hash of the names of {len(names)} files"
    seen = []
    for name in is_test:
        with _source(folder / name, wanted) as source:
            seen.append(_Seen(source.span, source.dtype, source.layout))
    limits, more = wanted.range_of(folder, seen)
    images = {}
    for name in is_test:
        with _source(folder / name, wanted) as source:
            images[name] = source.read(None, None, limits, wanted.resolution, wanted.channels)
    if wanted.patches is not None:
        keys = [f"{n}#{i}" for n, x in images.items() for i in range(len(x))]
        held = [is_test[n] for n, x in images.items() for _ in x]
        whole = [one for x in images.values() for one in x]
        return _cut(folder, whole, keys, wanted, notices + more, held if any(held) else None)
    _check_sizes(folder, images)
    x, truth = (torch.cat([images[n] for n in images if is_test[n] == b]) for b in (False, True))
    layouts = ", ".join(sorted({s.layout for s in seen}))
    return _made(folder, x[: wanted.limit], truth, how, layouts, notices + more)


def _check_sizes(folder: Path, images: Mapping[str, Tensor]) -> None:
    shapes = {n: "x".join(map(str, x.shape[1:])) for n, x in images.items()}
    first = next(iter(shapes))
    for name, shape in shapes.items():
        if shape != shapes[first]:
            raise UserError(
                f"'{folder}' holds images of different sizes ({first}: {shapes[first]}, {name}: "
                f"{shape}); set data.resolution, or data.patch to cut patches"
            )


def _cut(
    place: Path,
    images: Sequence[Tensor],
    keys: Sequence[str],
    wanted: _Wanted,
    notices: tuple[Notice, ...],
    is_test: Sequence[bool] | None = None,
) -> CleanData:
    """Return the patches of images, which may differ in size."""
    patches = wanted.patches
    assert patches is not None
    sizes = [(int(x.shape[1]), int(x.shape[2])) for x in images]
    places, others, how = patches.split(keys, sizes, wanted.test_share, is_test)
    channels = len(images[0])
    x = patches.cut(images, patches.draw(places, wanted.limit, channels, "train"))
    truth = patches.cut(images, patches.draw(others, None, channels, "test"))
    counts = told(len(x), len(truth), how).replace("images for", "patches for")
    if len(x) < len(places):
        counts += f" ({len(x):,} of {len(places):,} positions)"
    split = Notice(f"{place.name}: {counts}; {'x'.join(map(str, x.shape[1:]))}")
    return CleanData(place.stem, x, truth, notices=(split, *notices))
