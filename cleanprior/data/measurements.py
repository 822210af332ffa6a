r"""Measurements: :math:`(y, \mathrm{params}, \sigma_y)` of every image, drawn once, hashed."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from safetensors.torch import save_file
from torch import Generator, Tensor

from ..defaults import check_dense, plain_tensors
from ..errors import UserError
from ..mapped import blocks, bytes_of, is_in_file, rows
from ..notices import tell
from ..operators.base import ImageShape, Operator, Params, take
from ..operators.levels import check_levels
from ..operators.parts import measure_parts
from ..operators.truth import Truth
from ..seeding import generator_for
from ..transfer import to_device
from .measured_arrays import arrange
from .reading import Reading
from .user_files import open_held

#: Images whose noise an instrument draws at a time.
RECORDED = 256


@dataclass(frozen=True)
class Batch:
    """What a loss may look at.

    Attributes:
        y: Measurements, (b, ...).
        params: Operator parameters of these images.
        sigma_y: Noise levels in units of x: (b,), or a map (:mod:`cleanprior.operators.levels`).
        index: Position of each image in the measurements, (b,).
        images: What an M-step fits, (b, c, h, w): restorations, or the clean images that an
            entitled method was handed. None for methods that train on measurements.
    """

    y: Tensor
    params: Params
    sigma_y: Tensor
    index: Tensor
    images: Tensor | None = None

    def __len__(self) -> int:
        return len(self.y)

    def to(self, device: torch.device | str) -> "Batch":
        """Return the batch on ``device``."""
        return Batch(
            to_device(self.y, device),
            {k: to_device(v, device) for k, v in self.params.items()},
            to_device(self.sigma_y, device),
            to_device(self.index, device),
            None if self.images is None else to_device(self.images, device),
        )


@runtime_checkable
class TrainingSet(Protocol):
    """What a round trains on: anything with a length that gives batches by index."""

    def __len__(self) -> int: ...

    def batch(self, index: Tensor) -> Batch:
        """Return the batch of these positions."""
        ...


class Content:
    """The hash of measurements, from their tensors in the order of their names, part by part."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._name = ""

    def begin(self, name: str, like: Tensor) -> None:
        """Begin with a tensor of this shape and type."""
        self._name = name
        self._digest.update(f"{name}{tuple(like.shape)}{like.dtype}".encode())

    def add(self, part: Tensor) -> memoryview:
        """Take the next rows of the tensor; return their bytes.

        Raises:
            UserError: NaN or infinity.
        """
        if not torch.isfinite(part).all():
            name = self._name.removeprefix("params.")
            raise UserError(f"the measurements hold NaN or infinity in '{name}'")
        content = bytes_of(part.contiguous())
        self._digest.update(content)
        return content

    @property
    def hash(self) -> str:
        """sha256 of all so far."""
        return self._digest.hexdigest()


@dataclass(frozen=True)
class Measurements:
    """The measurements of a data set under one operator.

    Attributes:
        y: (n, ...), kept as float32.
        params: Tensors with leading dimension n; empty for a fixed operator.
        sigma_y: Noise levels in units of x: one a measurement, (n,), or one an entry, a map of y's
            axes, each of its length or of 1 (:mod:`cleanprior.operators.levels`).
        hash: sha256 of all bytes; the same for every method of a benchmark.
    """

    y: Tensor
    params: Params
    sigma_y: Tensor
    hash: str = field(init=False)

    def __post_init__(self) -> None:
        for key, value in {"y": self.y, "sigma_y": self.sigma_y, **self.params}.items():
            check_dense(key, value)
        for key in ("y", "sigma_y"):
            value = getattr(self, key)
            if not value.is_floating_point():
                more = " (complex values: as two channels)" if value.is_complex() else ""
                raise UserError(f"{key} holds {value.dtype}; needed: floats{more}")
            object.__setattr__(self, key, value.detach().float())
        if self.y.dim() < 2 or len(self.y) == 0:
            raise UserError(f"y has shape {tuple(self.y.shape)}; needed: (n, ...) with n above 0")
        n = len(self.y)
        check_levels(self.sigma_y, self.y)
        for key, value in self.params.items():
            if len(value) != n:
                raise UserError(f"params '{key}' describe {len(value)} images; y holds {n}")
        if any(bool((part < 0).any()) for part in blocks(self.sigma_y)):
            raise UserError("sigma_y is negative; needed: a noise level >= 0 for each image")
        object.__setattr__(self, "hash", self._digest())

    def _digest(self) -> str:
        """Return the hash of all bytes, in one pass that also finds what is no number.

        Raises:
            UserError: NaN or infinity.
        """
        content = Content()
        for key, value in sorted(self.tensors().items()):
            content.begin(key, value)
            for part in blocks(value):
                content.add(part)
        return content.hash

    @classmethod
    @plain_tensors()
    def draw(
        cls,
        x: Tensor,
        operator: Operator,
        data_seed: int,
        split: str,
        truth: Truth | None = None,
    ) -> "Measurements":
        """Simulate the measurements of clean images, once.

        Arguments:
            x: Clean images, (n, c, h, w) in [-1, 1].
            operator: Its parameter law and noise are used; it does not depend on any method.
            data_seed: The data seed.
            split: ``"train"`` or ``"test"``: separate random streams.
            truth: What really measures, where the operator is only believed to.
        """
        params, parts = simulated(x, operator, data_seed, split, truth)
        y = _joined(parts, len(x))
        if operator.noise is not None:
            return cls(y, params, operator.noise.levels(operator, y, params))
        return cls(y, params, torch.full((len(x),), operator.sigma))

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: slice | Tensor) -> "Measurements":
        """Return some of the measurements: a slice, positions, or a mask of booleans."""
        if not isinstance(index, slice | Tensor):
            raise TypeError(f"measurements are taken by a slice, y[3:4], or a tensor; got {index}")
        params = take(self.params, index)
        return Measurements(rows(self.y, index), params, rows(self.sigma_y, index).clone())

    def batch(self, index: Tensor) -> Batch:
        """Return the measurements at these positions."""
        params = take(self.params, index)
        return Batch(rows(self.y, index), params, rows(self.sigma_y, index), index)

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors under flat names: ``y``, ``sigma_y``, ``params.mask``, ..."""
        return {
            "y": self.y,
            "sigma_y": self.sigma_y,
            **{f"params.{k}": v for k, v in self.params.items()},
        }

    def save(self, path: Path) -> None:
        """Write a safetensors file."""
        save_file({k: v.contiguous() for k, v in self.tensors().items()}, path)

    @classmethod
    def load(
        cls,
        path: str | Path,
        sigma_y: float | None = None,
        image_shape: ImageShape | None = None,
        layout: str | None = None,
        reading: Reading | None = None,
    ) -> "Measurements":
        """Read a user's measurements; :mod:`cleanprior.data.measured` says what the file holds.

        What a file holds out (``test/y``) is not read; of a folder every file is. They are read in
        blocks, and large ones lie in a file of their own while they are used.

        Arguments:
            path: The file.
            sigma_y: Noise level, for a file that holds none.
            image_shape: (channels, height, width) of the images, where it is known.
            layout: One of :data:`cleanprior.data.layouts.LAYOUTS`; None tells it from the shape.
            reading: What else the user says of the file: its range, gaps, mask.

        Raises:
            UserError: The file is missing, damaged, lacks ``y`` or the noise level, or holds an
                array that is not known.
        """
        file = Path(path)
        how = reading or Reading(layout=layout)
        with open_held(file, image_shape, how, is_whole=True) as held:
            found, notices = arrange(file, held.train, held.layout, "", how, held.names)
        tell((*held.notices, *notices))
        return cls.of(file, found, sigma_y)

    @classmethod
    def of(
        cls,
        path: Path,
        arrays: Mapping[str, Tensor],
        sigma_y: float | None = None,
        split: str = "",
    ) -> "Measurements":
        """Return the measurements of one split of a file.

        Arguments:
            path: The file, for errors.
            arrays: One split, by :func:`cleanprior.data.measured_arrays.arrange`.
            sigma_y: Noise level, where the file holds none.
            split: What stands before the names of this split, ``""`` or ``"test/"``.

        Raises:
            UserError: The noise level is missing, or a value is no measurement.
        """
        y = arrays["y"]
        level = arrays.get("sigma_y", None if sigma_y is None else torch.tensor(sigma_y))
        if level is None:
            raise UserError(
                f"'{path}' holds no noise level; add '{split}sigma_y' (0 for none), or set "
                "data.sigma_y in the file's units (`cleanprior inspect` estimates it)"
            )
        params = {k[7:]: v for k, v in arrays.items() if k.startswith("params/")}
        if level.dim() == 0 and y.dim() > 0:
            level = level.expand(len(y))
        return cls(y, params, level if is_in_file(level) else level.float().clone())


def simulated(
    x: Tensor, operator: Operator, data_seed: int, split: str, truth: Truth | None
) -> tuple[Params, Iterator[Tensor]]:
    """Return the parameters that are believed, and y in parts; see :meth:`Measurements.draw`."""

    def stream(role: str) -> Generator:
        return generator_for(data_seed, role, split=split)

    params = operator.draw(len(x), stream("operator"))
    if operator.noise is not None:
        true = params if truth is None else truth.draw(len(x), stream("operator"))
        measuring = operator if truth is None else truth.operator
        return params, _recorded(x, measuring, true, data_seed, split)
    if truth is None:
        return params, measure_parts(operator, x, params, stream("noise"))
    true = truth.draw(len(x), stream("operator"))
    return params, measure_parts(truth.operator, x, true, stream("noise"))


def _recorded(
    x: Tensor, operator: Operator, params: Params, data_seed: int, split: str
) -> Iterator[Tensor]:
    """Yield what an instrument records of consecutive images: each by a generator of its own."""
    for index in torch.arange(len(x)).split(RECORDED):
        sources = [generator_for(data_seed, "noise", split=split, image=i) for i in index.tolist()]
        yield operator.measure(rows(x, index), take(params, index), sources)


def _joined(parts: Iterator[Tensor], n: int) -> Tensor:
    """Return parts as one tensor of n rows, which is never there twice."""
    first = next(parts)
    if len(first) == n:
        return first
    whole, filled = first.new_empty(n, *first.shape[1:]), 0
    for part in chain([first], parts):
        whole[filled : filled + len(part)] = part
        filled += len(part)
    return whole


@dataclass(frozen=True)
class Images:
    """Images that an M-step fits, beside the measurements that they belong to.

    Attributes:
        images: (n, c, h, w) restorations or entitled clean images, in [-1, 1].
        measurements: The measurements of all images.
        index: Which measurement each image belongs to, (n,).
    """

    images: Tensor
    measurements: Measurements
    index: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, index: Tensor) -> Batch:
        """Return these images with their measurements."""
        measured = self.measurements.batch(self.index[index])
        return Batch(
            measured.y, measured.params, measured.sigma_y, measured.index, self.images[index]
        )
