r"""An operator with an instrument's noise: what it records, and what methods are told of it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from ..config import Config, build
from ..config.noise import KEY, abilities, capabilities_of
from ..errors import UserError
from ..notices import Notice, tell
from ..operators.base import Operator, Params
from ..transfer import to_device
from .measurements import Measurements
from .noises import Noise
from .reading import Reading

#: Values that A may give of a picture of light, relative to its largest: rounding of an FFT.
ROUNDING = 1e-4
#: The least mean variance of a signal that one level stands for.
LEAST = 1e-12


@dataclass(frozen=True)
class InstrumentNoise:
    """Noise of an operator's measurements in the place of its own.

    Attributes:
        noise: Draws what is recorded of a signal.
        told: What methods are told: ``none``, ``map``, ``level`` or ``anscombe``.
        level: The (largest) noise level that they are told, in units of x; 0 before it is known.
    """

    noise: Noise
    told: str
    level: float = 0.0

    @cached_property
    def _root(self) -> Reading | None:
        """Anscombe's root with its inverse, where methods see counts by it."""
        detector = self.noise.photons
        if self.told != "anscombe" or detector is None:
            return None
        given = [detector.gain, detector.offset, detector.read]
        return Reading(range=[0.0, 1.0], photons=given)

    @property
    def is_rooted(self) -> bool:
        """Whether measurements and what a prior learns are images under Anscombe's root."""
        return self._root is not None

    def measure(
        self,
        operator: Operator,
        x: Tensor,
        params: Params,
        generator: Generator | Sequence[Generator],
    ) -> Tensor:
        """Return what the instrument records of images in [-1, 1]; 0 where nothing is measured.

        Arguments:
            operator: Its A.
            x: Images, (b, c, h, w), on its device.
            params: Their parameters.
            generator: One for all, or one an image: then no y depends on the others.
        """
        white = operator.A(torch.ones_like(x), params)
        signal = (operator.A(x, params) + white) / 2
        if self.noise.needs_light:
            signal = signal.clamp_min(0)
        here = signal.cpu()  # where the generators are
        if isinstance(generator, Generator):
            recorded = self.noise.draw(here, generator)
        else:
            pairs = zip(here, generator, strict=True)
            recorded = torch.stack([self.noise.draw(s[None], g)[0] for s, g in pairs])
        if self._root is not None:
            y = to_device(_by_array(self._root.unit, recorded), x.device)
        else:
            y = 2 * to_device(recorded, x.device) - white
        return y * operator.observed(y, params)

    def levels(self, operator: Operator, y: Tensor, params: Params) -> Tensor:
        """Return the noise levels of measurements as they are told, (n,) or a map.

        Arguments:
            operator: Their operator, on the CPU.
            y: All measurements that :meth:`measure` gave of a split.
            params: Their parameters.
        """
        if self._root is not None:
            return _same(y, self._root.scale[0])
        if self.told != "map" and self.level > 0:
            return _same(y, self.level)
        white = operator.A(torch.ones(len(y), *operator.image_shape), params)
        recorded = (y + white) / 2
        if self.told == "map":
            return 2 * self.noise.estimated(recorded).sqrt()
        observed = operator.observed(y, params)
        power = (self.noise.unbiased(recorded) * observed).double().sum()
        mean = power / observed.double().sum().clamp_min(1)
        return _same(y, 2 * float(mean.clamp_min(LEAST).sqrt()))

    def images(self, x: Tensor) -> Tensor:
        """Return restorations or samples as images in [-1, 1]: out of Anscombe's root, if any.

        By the exact unbiased inverse (:mod:`cleanprior.data.photons`).
        """
        if self._root is None:
            return x
        return 2 * _by_array(self._root.stored, x) - 1

    def learned(self, x: Tensor) -> Tensor:
        """Return images in [-1, 1] as the prior sees them: the inverse of :meth:`images`."""
        root = self._root
        if root is None:
            return x
        grid = np.linspace(-1.5, 1.5, 20_001)
        values = 2 * root.stored(grid) - 1
        kept = np.append(np.diff(values) > 0, True)
        return _by_array(lambda v: np.interp(v, values[kept], grid[kept]), x)


def _by_array(function: Callable[[Any], Any], x: Tensor) -> Tensor:
    return torch.from_numpy(function(x.double().numpy())).to(x.dtype)


def _told(level: float) -> float:
    """Return a level as configurations hold it: who compares both finds them equal."""
    return float(f"{level:.6g}")


def _same(y: Tensor, level: float) -> Tensor:
    return torch.full((len(y),), _told(level))


def with_noise(config: Mapping[str, Any], operator: Operator) -> Operator:
    """Return an operator with the noise of a configuration; the same where there is none.

    Arguments:
        config: A composed configuration.
        operator: The operator that it describes.

    Raises:
        UserError: A signal that would be negative, for noise of light; a y that is no image, for
            what changes pixels.
    """
    given = config.get(KEY)
    if given is None:
        return operator
    part = {k: v for k, v in given.items() if k not in ("kind", "as", "level")}
    noise: Noise = build({**part, "name": given["kind"]})
    if noise.needs_light:
        _check_light(operator, given["kind"])
    _check_pixels(operator, given["kind"])
    able = capabilities_of(operator.capabilities, given)
    level = float(given["level"])
    return operator.with_instrument(InstrumentNoise(noise, given["as"], level), able, level)


def told(config: Config, operator: Operator, measured: Measurements) -> tuple[Config, Operator]:
    """Return the configuration and the operator of who trains: their noise level is known.

    Arguments:
        config: The cell's, which identifies it as it was composed.
        operator: With the noise of :func:`with_noise`.
        measured: The training measurements, which tell the level.
    """
    noise = operator.noise
    assert isinstance(noise, InstrumentNoise)
    level = _told(measured.sigma_y.max().item())
    known = {**config, KEY: {**config[KEY], "level": level}}
    return known, operator.with_instrument(
        replace(noise, level=level), operator.capabilities, level
    )


def refuse(config: Config) -> None:
    """Refuse a noise for measurements that are there.

    Raises:
        UserError: There is one.
    """
    if KEY in config:
        raise UserError("noise.*: how measurements are drawn; those of a file are drawn already")


def check_written(operator: Operator) -> None:
    """Tell what a file of an instrument's measurements says of their noise.

    Raises:
        UserError: It would hold roots of counts and not say so.
    """
    if operator.noise is None:
        return
    if operator.noise.told == "anscombe":
        raise UserError(
            "noise.as=anscombe: a file holds counts, whoever reads it takes their root by "
            "data.photons; leave noise.as out"
        )
    if operator.noise.told != "map":
        text = (
            "sigma_y is one level, the root mean variance: noise.as=map writes one for each entry"
        )
        tell([Notice(text)])


def learned(operator: Operator, x: Tensor) -> Tensor:
    """Return clean images as a prior of these measurements would see them."""
    return operator.noise.learned(x) if isinstance(operator.noise, InstrumentNoise) else x


def _check_light(operator: Operator, kind: str) -> None:
    generator = Generator().manual_seed(0)
    x = (torch.rand(16, *operator.image_shape, generator=generator) > 0.9).float()
    y = operator.A(x, operator.draw(16, generator))
    if y.min() < -ROUNDING * float(y.abs().max()):
        raise UserError(
            f"noise.kind={kind} is noise of a signal that is not negative, and {operator.name} "
            "makes negative values of light: use operator.sigma, or noise.kind=quantisation"
        )


def _check_pixels(operator: Operator, kind: str) -> None:
    of_kind = abilities(kind)
    if "pixels" not in of_kind:
        return
    params = operator.draw(1, Generator().manual_seed(0))
    shape = tuple(operator.A(torch.zeros(1, *operator.image_shape), params).shape[1:])
    if len(shape) != 3:
        raise UserError(
            f"noise.kind={kind} changes pixels of an image, and a measurement of {operator.name} "
            f"has the shape {shape}: use operator.sigma"
        )
    is_colour = "colours" in of_kind
    if shape[0] == 2 or (is_colour and shape[0] not in (1, 3)):
        what = "two, as a complex image has" if shape[0] == 2 else str(shape[0])
        allowed = "1 or 3 channels" if is_colour else "real values, 1, 3 or more channels"
        raise UserError(f"noise.kind={kind}: images of {allowed}, and here they have {what}")


__all__ = [
    "InstrumentNoise",
    "check_written",
    "learned",
    "refuse",
    "told",
    "with_noise",
]
