"""Which images are held out: the split that the data ship, or a hash."""

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import torch
from torch import Tensor

from ..errors import UserError

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
    places = {k: position(k) for k in keys}
    counts = Counter(keys)
    chosen = {k for k, place in places.items() if place < share}
    if sum(counts[k] for k in chosen) < LEAST_HELD_OUT or len(chosen) == len(places):
        chosen = set()
        for key in sorted(places, key=lambda k: (places[k], k)):
            if sum(counts[k] for k in chosen) >= LEAST_HELD_OUT:
                break
            chosen.add(key)
    if len(chosen) == len(places):
        raise UserError(
            f"{len(keys)} in all, {len(places)} of them different; needed: at least 3 different "
            f"ones, of which {LEAST_HELD_OUT} are held out"
        )
    return torch.tensor([k in chosen for k in keys])


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
