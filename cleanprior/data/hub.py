"""Clean images by name from the Hugging Face hub, or from a folder in its layout."""

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError, did_you_mean
from .containers import optional
from .datasets import CleanData, held_out
from .pixels import check_options, from_picture


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
) -> CleanData:
    """Load a data set by its name with the library ``datasets`` (an extra).

    Arguments:
        repository: Its name, e.g. ``ylecun/mnist``, or a folder that ``datasets`` can read.
        subset: Its configuration, where it has several.
        split: Split to train on.
        test_split: Split held out; None takes ``test`` where there is one, else a hash of each
            image's content.
        column: Column of the images; None where one column alone holds images.
        label_column: Column of the classes (integers), or None for no labels.
        resolution: Side in pixels of the central square after resizing.
        channels: 1 for grey, 3 for RGB.
        test_share: Share of images held out, where there is no test split.
        limit: Load that many training images (the first ones), or None for all.

    Raises:
        UserError: ``datasets`` is missing or refuses, or a split or column does not exist.
    """
    check_options(resolution, channels, test_share, limit)
    if repository is None:
        raise UserError("data=huggingface needs data.repository=NAME, e.g. ylecun/mnist")
    library = optional("datasets", "load data from the Hugging Face hub")
    try:
        splits = library.load_dataset(repository, subset)
    except (ValueError, OSError, RuntimeError) as error:
        raise UserError(f"the data set '{repository}' was not loaded: {error}") from error
    train = _split(repository, splits, split)
    if test_split is None and "test" in splits and split != "test":
        test_split = "test"
    column = _column(repository, train.features, column)
    if label_column is not None and label_column not in train.features:
        raise UserError(
            f"'{repository}' has no column '{label_column}'; it has: {', '.join(train.features)}"
        )
    read = _Reader(column, label_column, resolution, channels)
    name = repository.rstrip("/").split("/")[-1]
    if test_split is not None:
        test = _split(repository, splits, test_split)
        x, labels = read(train, range(min(limit or len(train), len(train))))
        truth, classes = read(test, range(len(test)))
        return CleanData(name, x, truth, labels, classes)
    is_test = held_out([_digest(row[column]) for row in train], test_share)
    x, labels = read(train, (~is_test).nonzero()[:, 0].tolist()[:limit])
    truth, classes = read(train, is_test.nonzero()[:, 0].tolist())
    return CleanData(name, x, truth, labels, classes)


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

    def __init__(self, column: str, label: str | None, resolution: int, channels: int) -> None:
        self.column, self.label = column, label
        self.resolution, self.channels = resolution, channels

    def __call__(self, split: Any, numbers: Any) -> tuple[Tensor, Tensor | None]:
        x = torch.empty(len(numbers), self.channels, self.resolution, self.resolution)
        labels = []
        for i, number in enumerate(numbers):
            row = split[number]
            name = f"image {number}"
            x[i] = from_picture(row[self.column], self.resolution, self.channels, name)
            if self.label is not None:
                labels.append(int(row[self.label]))
        return x, torch.tensor(labels) if self.label is not None else None
