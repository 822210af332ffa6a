"""Features for distances of distributions: pixels, a classifier of the data, known networks."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from filelock import FileLock
from numpy.typing import NDArray
from torch import Tensor, nn

from ...data.datasets import CleanData
from ...diffusion.limits import check_finite, check_weight_shapes
from ...errors import UserError
from ...hashed import OF, Damaged
from ...mapped import Pile, bytes_of, scratch_in
from ...notices import Notice, tell
from ...progress import Progress
from ...seeding import generator_for, scoped_rng, seed_for
from ...training.checkpoint import read_tensors, write_tensors
from .networks import NETWORKS, Unavailable

STEPS, BATCH, SEED = 600, 64, 0
#: Images between two steps of a slow network's progress bar; a multiple of its own batch.
SHOWN = 256
SILENT = Progress()


class Features(Protocol):
    """Maps images to feature vectors; ``key`` is in configurations, ``name`` beside distances."""

    key: str
    name: str
    #: Whether features of reference images are worth keeping on disk.
    is_slow: bool

    def __call__(self, x: Tensor) -> NDArray[np.float64]:
        """Return (n, d) features of images in [-1, 1]."""
        ...

    def with_scores(self, x: Tensor) -> tuple[NDArray[np.float64], Tensor | None]:
        """Return features, and (n, classes) class scores or None where there are no classes."""
        ...


class Pixels:
    """The pixels themselves, average-pooled to at most 8x8."""

    key = "pixels"
    is_slow = False

    def __init__(self) -> None:
        self.name = "pixels, pooled to at most 8x8"

    def __call__(self, x: Tensor) -> NDArray[np.float64]:
        """Return the features of images, (n, d)."""
        side = (min(8, x.shape[2]), min(8, x.shape[3]))
        return F.adaptive_avg_pool2d(x.clamp(-1, 1), side).flatten(1).double().numpy()

    def with_scores(self, x: Tensor) -> tuple[NDArray[np.float64], Tensor | None]:
        """Return features and None: pixels name no class."""
        return self(x), None


class Classifier:
    """64 features before the last layer of a small classifier of the data's own labels.

    It is trained on the clean training split, on the evaluation side only, with a fixed seed, and
    cached: the distance of a data set is the same number in every benchmark on a machine.
    """

    key = "classifier"
    is_slow = False

    def __init__(self, net: nn.Sequential, accuracy: float, digest: str) -> None:
        self.net = net.eval().requires_grad_(False)
        self.accuracy = accuracy
        self.digest = digest
        self.name = f"64 of a small classifier (test accuracy {100 * accuracy:.1f} %)"

    @torch.no_grad()
    def __call__(self, x: Tensor) -> NDArray[np.float64]:
        """Return the features of images, (n, d)."""
        return self.with_scores(x)[0]

    @torch.no_grad()
    def with_scores(self, x: Tensor) -> tuple[NDArray[np.float64], Tensor | None]:
        """Return features and (n, classes) class scores."""
        parts = [self.net[:-1](part) for part in x.clamp(-1, 1).split(1024)]
        features = torch.cat(parts)
        return features.double().numpy(), self.net[-1](features)

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
    def of(cls, data: CleanData, cache: Path | None, progress: Progress = SILENT) -> "Classifier":
        """Train the classifier of a data set, or find it in the cache."""
        assert data.train_labels is not None and data.test_labels is not None
        digest = hashlib.sha256(data.train.numpy().tobytes())
        digest.update(data.train_labels.numpy().tobytes() + f"{STEPS},{BATCH},{SEED}".encode())
        key = digest.hexdigest()[:16]
        net = cls.build(data.image_shape, int(data.train_labels.max()) + 1)
        path = None if cache is None else cache / f"classifier-{key}.safetensors"
        if path is None:
            cls._train(net, data.train, data.train_labels, progress)
        elif not _is_found(path, net):
            # Of cells that are evaluated side by side one trains it, and the others wait for it.
            damaged = path.stat().st_ino if path.exists() else None
            with FileLock(path.with_suffix(".lock")):
                is_new = path.exists() and path.stat().st_ino != damaged
                if not (is_new and _is_found(path, net)):
                    cls._train(net, data.train, data.train_labels, progress)
                    write_tensors(path, net.state_dict(), {OF: path.stem})
        with torch.no_grad():
            guesses = torch.cat([net(part).argmax(1) for part in data.test.split(1024)])
        return cls(net, (guesses == data.test_labels).float().mean().item(), key)

    @staticmethod
    def _train(net: nn.Sequential, x: Tensor, labels: Tensor, progress: Progress) -> None:
        optimiser = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=1e-2)
        generator = generator_for(SEED, "classifier-batches")
        with progress.task("classifier of the evaluation", STEPS) as task:
            for _ in range(STEPS):
                index = torch.randint(len(x), (BATCH,), generator=generator)
                loss = F.cross_entropy(net(x[index]), labels[index])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                task.advance()


ALLOWED = ("auto", "classifier", "pixels", *NETWORKS)


def choose(
    name: str,
    data: CleanData | None,
    cache: Path | None,
    is_downloading: bool = False,
    progress: Progress = SILENT,
) -> Features:
    """Return the features of one name.

    Arguments:
        name: One of :data:`ALLOWED`; ``auto`` is ``classifier`` where the data have labels, else
            ``pixels``.
        data: Its labels train the classifier; None where there are only measurements.
        cache: Folder of trained classifiers.
        is_downloading: Fetch weights that are absent.
        progress: Where to show that a classifier is being trained.

    Raises:
        UserError: An unknown name, or a classifier for data without labels.
        Unavailable: A network whose weights are not on this machine.
    """
    if name not in ALLOWED:
        raise UserError(f"features={name!r}; allowed: {', '.join(ALLOWED)}")
    if name in NETWORKS:
        return NETWORKS[name].load(is_downloading)
    has_labels = data is not None and data.train_labels is not None
    if name == "pixels" or (name == "auto" and not has_labels):
        return Pixels()
    if data is None or not has_labels:
        given = "measurements alone have" if data is None else f"{data.name} has"
        raise UserError(f"features=classifier needs labels, and {given} none; use pixels")
    return Classifier.of(data, cache, progress)


def choose_all(
    names: str | Sequence[str],
    data: CleanData | None,
    cache: Path | None,
    is_downloading: bool,
    progress: Progress = SILENT,
) -> tuple[dict[str, Features], dict[str, str]]:
    """Return the features of one or several names, and why others are not to be had.

    Raises:
        UserError: As :func:`choose`, or a name twice.
    """
    listed = [names] if isinstance(names, str) else list(names)
    if not listed or len(set(listed)) < len(listed):
        raise UserError(f"features={names}; allowed: each of {', '.join(ALLOWED)} at most once")
    found: dict[str, Features] = {}
    missing: dict[str, str] = {}
    for name in listed:
        try:
            found[name] = choose(name, data, cache, is_downloading, progress)
        except Unavailable as error:
            missing[name] = str(error)
    return found, missing


def compute(
    features: Features, x: Tensor, progress: Progress = SILENT
) -> tuple[NDArray[np.float64], Tensor | None]:
    """Return features and class scores of images, with a progress bar for a slow network."""
    if not features.is_slow:
        return features.with_scores(x)
    found, scores = [], []
    with progress.task(f"features · {features.key}", len(x)) as task:
        for part in x.split(SHOWN):
            values, classes = features.with_scores(part)
            found.append(values)
            scores += [] if classes is None else [classes]
            task.advance(len(part))
    return np.concatenate(found), torch.cat(scores) if scores else None


def reference_features(
    features: Features, x: Tensor, cache: Path | None, progress: Progress = SILENT
) -> NDArray[np.float64]:
    """Return features of reference images; those of slow networks are kept on disk, in float32."""
    return features_of_parts(features, lambda: iter([x]), len(x), cache, progress).numpy()


def features_of_parts(
    features: Features,
    parts: Callable[[], Iterator[Tensor]],
    n: int,
    cache: Path | None,
    progress: Progress = SILENT,
) -> Tensor:
    """Return features of reference images that are not all in memory, (n, d) in float64.

    Arguments:
        features: The features.
        parts: Yields the images in their order, part by part, each time that it is called.
        n: How many there are.
        cache: Folder where those of slow networks are kept, in float32; None for nowhere. Large
            ones lie in a file without a name there.
        progress: Where to show a slow network at work.
    """

    def computed() -> Tensor:
        pile, shown = Pile(), progress if features.is_slow else SILENT
        with scratch_in(cache), shown.task(f"features · {features.key}", n) as task:
            for part in parts():
                for some in part.split(SHOWN) if features.is_slow else [part]:
                    pile.add(torch.from_numpy(features.with_scores(some)[0]))
                    task.advance(len(some))
            return pile.tensor()

    if cache is None or not features.is_slow:
        return computed()
    digest, size = hashlib.sha256(), torch.Size()
    for part in parts():
        digest.update(bytes_of(part.contiguous()))
        size = part.shape[1:]
    digest.update(f"{(n, *size)}".encode())
    path = cache / f"{features.key}-{digest.hexdigest()[:16]}.safetensors"
    if path.exists():
        try:
            found = read_tensors(path, path.stem)[0]["features"]
            if len(found) == n and found.dim() == 2:
                return found.double()
            raise Damaged(f"'{path}' holds features of something else")
        except (Damaged, KeyError) as error:
            _tell_of(path, error)
    found = computed().float()
    write_tensors(path, {"features": found}, {OF: path.stem})
    return found.double()


def _is_found(path: Path, net: nn.Module) -> bool:
    """Whether a cached classifier has been read into a network; a damaged one is told."""
    if not path.exists():
        return False
    try:
        tensors = read_tensors(path, path.stem)[0]
        check_weight_shapes(net, {k: tuple(v.shape) for k, v in tensors.items()})
        check_finite(tensors)
    except UserError as error:
        _tell_of(path, error)
        return False
    net.load_state_dict(tensors)
    return True


def _tell_of(path: Path, error: Exception) -> None:
    told = str(error) if str(path) in str(error) else f"'{path}' is damaged: {error}"
    tell([Notice(f"{told}; computed again", is_warning=True)])
