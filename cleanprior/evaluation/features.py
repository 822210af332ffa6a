"""Features for Frechet distances: from a classifier of the data's own labels, or from pixels."""

import hashlib
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn

from ..data.datasets import CleanData
from ..errors import UserError
from ..seeding import generator_for, scoped_rng, seed_for
from ..training.checkpoint import write_tensors

STEPS, BATCH, SEED = 600, 64, 0


class Features(Protocol):
    """Maps images to feature vectors; ``name`` is stated beside every distance."""

    name: str

    def __call__(self, x: Tensor) -> NDArray[np.float64]:
        """Return (n, d) features of images in [-1, 1]."""
        ...


class Pixels:
    """The pixels themselves, average-pooled to at most 8x8."""

    def __init__(self) -> None:
        self.name = "pixels, pooled to at most 8x8"

    def __call__(self, x: Tensor) -> NDArray[np.float64]:  # noqa: D102
        side = (min(8, x.shape[2]), min(8, x.shape[3]))
        return F.adaptive_avg_pool2d(x.clamp(-1, 1), side).flatten(1).double().numpy()


class Classifier:
    """64 features before the last layer of a small classifier of the data's own labels.

    It is trained on the clean training split, on the evaluation side only, with a fixed seed, and
    cached: the distance of a data set is the same number in every benchmark on a machine.
    """

    def __init__(self, net: nn.Sequential, accuracy: float, digest: str) -> None:
        self.net = net.eval().requires_grad_(False)
        self.accuracy = accuracy
        self.digest = digest
        self.name = f"64 of a small classifier (test accuracy {100 * accuracy:.1f} %)"

    @torch.no_grad()
    def __call__(self, x: Tensor) -> NDArray[np.float64]:  # noqa: D102
        parts = [self.net[:-1](part) for part in x.clamp(-1, 1).split(1024)]
        return torch.cat(parts).double().numpy()

    @staticmethod
    def build(shape: tuple[int, ...], classes: int) -> nn.Sequential:
        """Build the network: three convolutions, a 64-dimensional layer, the class scores."""
        with scoped_rng(seed_for(SEED, "classifier")):
            return nn.Sequential(
                nn.Conv2d(shape[0], 32, 3, padding=1),
                nn.SiLU(),
                nn.Conv2d(32, 64, 3, padding=1, stride=2),
                nn.SiLU(),
                nn.Conv2d(64, 64, 3, padding=1, stride=2),
                nn.SiLU(),
                nn.AdaptiveAvgPool2d(2),
                nn.Flatten(),
                nn.Linear(256, 64),
                nn.SiLU(),
                nn.Linear(64, classes),
            )

    @classmethod
    def of(cls, data: CleanData, cache: Path | None) -> "Classifier":
        """Train the classifier of a data set, or find it in the cache."""
        assert data.train_labels is not None and data.test_labels is not None
        digest = hashlib.sha256(data.train.numpy().tobytes())
        digest.update(data.train_labels.numpy().tobytes() + f"{STEPS},{BATCH},{SEED}".encode())
        key = digest.hexdigest()[:16]
        net = cls.build(data.image_shape, int(data.train_labels.max()) + 1)
        path = None if cache is None else cache / f"classifier-{key}.safetensors"
        if path is not None and path.exists():
            net.load_state_dict(load_file(path))
        else:
            cls._train(net, data.train, data.train_labels)
            if path is not None:
                write_tensors(path, net.state_dict(), {})
        with torch.no_grad():
            guesses = torch.cat([net(part).argmax(1) for part in data.test.split(1024)])
        return cls(net, (guesses == data.test_labels).float().mean().item(), key)

    @staticmethod
    def _train(net: nn.Sequential, x: Tensor, labels: Tensor) -> None:
        optimiser = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=1e-2)
        generator = generator_for(SEED, "classifier-batches")
        for _ in range(STEPS):
            index = torch.randint(len(x), (BATCH,), generator=generator)
            loss = F.cross_entropy(net(x[index]), labels[index])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()


def choose(name: str, data: CleanData, cache: Path | None) -> Features:
    """Return the features that a configuration asks for.

    Raises:
        UserError: An unknown name, or a classifier for data without labels.
    """
    if name not in ("auto", "classifier", "pixels"):
        raise UserError(f"features={name!r}; allowed: auto, classifier, pixels")
    if name == "pixels" or (name == "auto" and data.train_labels is None):
        return Pixels()
    if data.train_labels is None:
        raise UserError(f"features=classifier needs labels, and {data.name} has none; use pixels")
    return Classifier.of(data, cache)
