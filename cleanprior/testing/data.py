"""What every data set of clean images promises."""

from typing import ClassVar

import torch

from ..config import build, compose
from ..data.datasets import CleanData, copies
from .cards import check_card
from .parts import no_global_randomness


def check_images(data: CleanData) -> None:
    """Check type, range and splits of clean images."""
    for split, images in (("train", data.train), ("test", data.test)):
        told = f"the {split} split"
        assert images.dtype == torch.float32, f"{told} is {images.dtype}; it must be float32"
        assert images.ndim == 4, f"{told} has shape {tuple(images.shape)}; (n, c, h, w) is needed"
        low, high = images.min().item(), images.max().item()
        assert -1 <= low < high <= 1, f"{told} lies in [{low:g}, {high:g}]; needed: within [-1, 1]"
        assert high - low > 0.5, f"{told} has almost no contrast: [{low:g}, {high:g}]"
    assert data.train.shape[1:] == data.test.shape[1:], "both splits have images of one shape"
    found = copies(data.name, data.train, data.test)
    assert not found, found[0].text
    labelled = ((data.train, data.train_labels), (data.test, data.test_labels))
    for images, labels in labelled:
        if labels is not None:
            assert labels.shape == (len(images),), "one label an image"
            assert labels.dtype == torch.int64, "labels are whole numbers"


class DataContract:
    """Tests of one data set.

    Attributes:
        name: Its configuration.
        overrides: Its keys, e.g. ``("path=tests/few",)``.
    """

    name: ClassVar[str]
    overrides: ClassVar[tuple[str, ...]] = ()

    def load(self) -> CleanData:
        """Load the data set."""
        keys = [f"data.{override}" for override in self.overrides]
        data: CleanData = build(compose(["method=naive", f"data={self.name}", *keys])["data"])
        return data

    def test_the_yaml_has_a_key_for_every_argument(self) -> None:
        check_card("data", self.name)

    def test_images_have_their_range_and_splits_share_none(self) -> None:
        check_images(self.load())

    def test_it_is_the_same_at_every_call(self) -> None:
        with no_global_randomness():
            first = self.load()
        torch.manual_seed(1)
        again = self.load()
        assert torch.equal(first.train, again.train), "the training split differs between calls"
        assert torch.equal(first.test, again.test), "the test split differs between calls"
