"""Clean images by name from the Hugging Face hub, or from a folder in its layout."""

import builtins
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError, did_you_mean
from ..extras import optional
from ..notices import Notice
from .datasets import CleanData, copies
from .pictures import PictureReader
from .pixels import check_options
from .splits import held_out, role, told


def huggingface(
    repository: str | None,
    subset: str | None,
    split: str,
    test_split: str | None,
    column: str | None,
    label_column: str | None,
    resolution: int,
    channels: int,
    test_share: float,
    limit: int | None,
    range: Sequence[float] | None = None,
) -> CleanData:
    """Load a data set by its name with the library ``datasets`` (an extra).

    Arguments:
        repository: Its name, e.g. ``ylecun/mnist``, or a folder that ``datasets`` can read.
        subset: Its configuration, where it has several.
        split: Split to train on.
        test_split: Split held out; None takes the one called ``test``, ``validation`` or the like,
            else a hash of each image's content.
        column: Column of the images; None where one column alone holds images.
        label_column: Column of the classes (integers), or None for no labels.
        resolution: Side in pixels of the central square after resizing.
        channels: 1 for grey, 3 for RGB.
        test_share: Share of images held out, where there is no test split.
        limit: Load that many training images (the first ones), or None for all.
        range: The two pixel values that become -1 and 1, or None for those of 1, 8 or 16 bits.

    Raises:
        UserError: ``datasets`` is missing or refuses, a split or column does not exist, or the
            images are (almost) a constant.
    """
    check_options(resolution, channels, test_share, limit)
    if repository is None:
        raise UserError("data=huggingface needs data.repository=NAME, e.g. ylecun/mnist")
    library = optional("datasets", "load data from the Hugging Face hub")
    try:
        splits = library.load_dataset(repository, subset, **_without_code(library))
    except (ValueError, OSError, RuntimeError) as error:
        raise UserError(f"the data set '{repository}' was not loaded: {error}") from error
    train = _split(repository, splits, split)
    if test_split is None:
        tests = [k for k in splits if k != split and role(k) == "test"]
        test_split = min(tests, key=lambda k: (k != "test", k), default=None)
    column = _column(repository, train.features, column)
    if label_column is not None and label_column not in train.features:
        raise UserError(
            f"'{repository}' has no column '{label_column}'; it has: {', '.join(train.features)}"
        )
    pictures = PictureReader(resolution, channels, range)
    read = _Reader(column, label_column, pictures)
    name = repository.rstrip("/").split("/")[-1]
    if test_split is not None:
        test = _split(repository, splits, test_split)
        count = min(limit or len(train), len(train))
        x, labels = read(train, list(builtins.range(count)))
        truth, classes = read(test, list(builtins.range(len(test))))
        how = f"the splits '{split}' and '{test_split}'"
    else:
        is_test = held_out([_digest(row[column]) for row in train], test_share)
        x, labels = read(train, (~is_test).nonzero()[:, 0].tolist()[:limit])
        truth, classes = read(train, is_test.nonzero()[:, 0].tolist())
        how = f"of the split '{split}' by a hash of each image's content"
    split_notice = Notice(f"{name}: {told(len(x), len(truth), how)}")
    notices = (split_notice, *pictures.notices(name), *copies(name, x, truth))
    return CleanData(name, x, truth, labels, classes, notices)


def _without_code(library: Any) -> dict[str, bool]:
    """Return what keeps ``datasets`` from running a repository's script; from 4 on none is run."""
    is_old = str(getattr(library, "__version__", "4")).split(".")[0] in ("0", "1", "2", "3")
    return {"trust_remote_code": False} if is_old else {}


def _digest(picture: Any) -> str:
    return hashlib.sha256(f"{picture.mode}{picture.size}".encode() + picture.tobytes()).hexdigest()


def _split(repository: str, splits: Mapping[str, Any], name: str) -> Any:
    if name not in splits:
        raise UserError(
            f"'{repository}' has no split '{name}'; it has: {', '.join(splits)}."
            f"{did_you_mean(name, splits)}"
        )
    return splits[name]


def _column(repository: str, features: Mapping[str, Any], given: str | None) -> str:
    """Return the column of images; a feature tells by its class."""
    images = [k for k, feature in features.items() if type(feature).__name__ == "Image"]
    if given is None and len(images) == 1:
        return images[0]
    if given is None or given not in images:
        wrong = f"no column of images '{given}'" if given else "not one column of images"
        raise UserError(
            f"'{repository}' has {wrong}; columns of images: {', '.join(images) or 'none'} (all: "
            f"{', '.join(features)}); set data.column"
        )
    return given


class _Reader:
    """Reads pictures and classes of some rows."""

    def __init__(self, column: str, label: str | None, reader: PictureReader) -> None:
        self.column, self.label, self.reader = column, label, reader

    def __call__(self, split: Any, numbers: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        side = self.reader.resolution
        x = torch.empty(len(numbers), self.reader.channels, side, side)
        labels = []
        for i, number in enumerate(numbers):
            row = split[number]
            x[i] = self.reader(row[self.column], f"image {number}")
            if self.label is not None:
                labels.append(int(row[self.label]))
        return x, torch.tensor(labels) if self.label is not None else None
