"""Which images are held out: the split that the data ship, or a hash."""

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import UserError
from ..mapped import blocks, bytes_of

#: Words in the name of a folder (or split) of images to train on: ``Training``, ``train2017``.
TRAIN_WORDS = frozenset({"train", "training", "trainset", "traindata", "trn"})
#: Words in the name of a folder (or split) that a data set ships as not to be trained on.
TEST_WORDS = frozenset(
    [
        *("test", "testing", "testset", "testdata", "tst", "val", "valid", "validation", "valset"),
        *("eval", "evaluation", "holdout", "heldout"),
    ]
)
#: Held-out images below this number have no spread to compare with.
LEAST_HELD_OUT = 2


def position(key: str) -> float:
    """Return a number in [0, 1) that depends on the key only: a hash."""
    return int(hashlib.sha256(key.encode()).hexdigest()[:8], 16) / 2**32


def held_out(keys: Sequence[str], share: float) -> Tensor:
    """Choose the test split by a hash of each key: stable when images are added or reordered.

    Equal keys stay together. Where the hash holds out fewer than two images, or all of them, those
    of the smallest hashes are held out until there are two.

    Arguments:
        keys: One for each image.
        share: Share of keys that are held out.

    Returns:
        Which images are held out, (n,).

    Raises:
        UserError: Nothing would be left to train on.
    """
    counts = Counter(keys)
    names = sorted(counts)
    chosen = _chosen(names, np.array([counts[k] for k in names]), share)
    held = {name for name, is_held in zip(names, chosen, strict=True) if is_held}
    return torch.tensor([k in held for k in keys])


def held_out_rows(digests: NDArray[Any], share: float) -> Tensor:
    """Choose as :func:`held_out`, by hashes in one array: 64 bytes for each image and no more.

    Arguments:
        digests: A sha256 in 64 hexadecimal digits for each image, (n,).
        share: Share of hashes that are held out.

    Raises:
        UserError: Nothing would be left to train on.
    """
    names, place, counts = np.unique(digests, return_inverse=True, return_counts=True)
    return torch.from_numpy(_chosen(names, counts, share)[place])


def digests_of(y: Tensor) -> NDArray[Any]:
    """Return the sha256 of each row of a tensor, 64 hexadecimal digits, read in blocks."""
    return np.concatenate(
        [
            np.array([hashlib.sha256(bytes_of(r.contiguous())).hexdigest() for r in part], "S64")
            for part in blocks(y)
        ]
    )


def _chosen(
    names: Sequence[str] | NDArray[Any], counts: NDArray[Any], share: float
) -> NDArray[np.bool_]:
    """Return which of some different keys, sorted, are held out.

    Arguments:
        names: The keys.
        counts: How many images each has.
        share: Share of keys that are held out.
    """
    places = np.array([position(k.decode() if isinstance(k, bytes) else k) for k in names])
    chosen = places < share
    if counts[chosen].sum() < LEAST_HELD_OUT or chosen.all():
        order = np.argsort(places, kind="stable")  # of equal ones, the smaller key
        before = np.cumsum(counts[order]) - counts[order]
        chosen = np.zeros(len(places), bool)
        chosen[order[before < LEAST_HELD_OUT]] = True
    if chosen.all():
        raise UserError(
            f"{counts.sum()} in all, {len(places)} of them different; needed: at least 3 different "
            f"ones, of which {LEAST_HELD_OUT} are held out"
        )
    return chosen


def role(name: str) -> str:
    """Return what a folder or split is for, by its name: ``train``, ``test`` or nothing."""
    words = set(re.findall("[a-z]+", name.lower()))
    is_train, is_test = bool(words & TRAIN_WORDS), bool(words & TEST_WORDS)
    if is_train == is_test:
        return ""
    return "train" if is_train else "test"


@dataclass(frozen=True)
class ShippedSplit:
    """A split that lies in the names of folders.

    Attributes:
        train: Names of the pictures to train on.
        test: Names of those held out.
        others: Names of those that lie beside both.
        level: Which part of each path tells, from 0.
    """

    train: tuple[str, ...]
    test: tuple[str, ...]
    others: tuple[str, ...]
    level: int

    def folders(self, names: Sequence[str]) -> str:
        """Return the folders of some pictures at the level that tells, for sentences."""
        found = Counter(PurePosixPath(n).parts[self.level] for n in names)
        return ", ".join(f"{folder}/" for folder in sorted(found))


def shipped_split(names: Sequence[str]) -> ShippedSplit | None:
    """Find the split that pictures come in, or None.

    The first level of folders at which some are for training and others for testing tells:
    ``train/cat``, ``Testing/cat``, or ``cat/train``, ``cat/test``.

    Arguments:
        names: Names of pictures below their root, with ``/``.
    """
    folders = {n: PurePosixPath(n).parts[:-1] for n in names}
    for level in range(max((len(f) for f in folders.values()), default=0)):
        roles = {n: role(f[level]) if len(f) > level else "" for n, f in folders.items()}
        if {"train", "test"} <= set(roles.values()):
            train, test, others = (
                tuple(n for n in names if roles[n] == r) for r in ("train", "test", "")
            )
            return ShippedSplit(train, test, others, level)
    return None


def told(train: int, test: int, how: str) -> str:
    """Return the sentence that says how a data set was split."""
    return f"{train} images for training and {test} held out, {how}"
