r"""Counted photons with read noise, brought to Gaussian noise of one level: generalised Anscombe.

A detector gives :math:`y = g\,P + \mu + n` with :math:`P \sim \mathrm{Poisson}(\lambda)` photons,
gain g, offset :math:`\mu` and read noise :math:`n \sim N(0, s^2)`. Then

.. math:: f(y) = 2 \sqrt{\max\big(0,\ (y - \mu)/g + 3/8 + (s/g)^2\big)}

has noise of a standard deviation close to 1, from about four photons a pixel on. What a prior
learns are images of :math:`E[f(y) \mid \lambda]`, which :func:`inverse` takes back to
:math:`g \lambda + \mu`: the exact unbiased inverse in its closed form.

References:
    Starck, Murtagh and Bijaoui, Image Processing and Data Analysis (1998), section 2.3.
    Makitalo and Foi, Optimal inversion of the generalized Anscombe transformation for
    Poisson-Gaussian noise (2013), equations 2 and 9, doi:10.1109/TIP.2012.2202675
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import UserError

#: Below, the closed form of the inverse leaves its range: no photon at all.
_LEAST = 2 * math.sqrt(3 / 8)


@dataclass(frozen=True)
class Photons:
    """A detector of photons.

    Attributes:
        gain: Stored units a photon, above 0.
        offset: Stored value without a photon.
        read: Standard deviation of the read noise in stored units, at least 0.
    """

    gain: float
    offset: float
    read: float

    @classmethod
    def of(cls, given: Sequence[float] | None) -> "Photons | None":
        """Return the detector of ``data.photons=[GAIN,OFFSET,READ]``.

        Raises:
            UserError: Other than three such numbers.
        """
        if given is None:
            return None
        is_number = all(isinstance(v, int | float) and math.isfinite(v) for v in given)
        if len(given) != 3 or not is_number or given[0] <= 0 or given[2] < 0:
            raise UserError(
                f"photons={list(given)}; allowed: [GAIN,OFFSET,READ], stored units a photon (above "
                "0), the value without one, and the read noise (at least 0)"
            )
        return cls(*map(float, given))

    def forward(self, y: NDArray[Any]) -> NDArray[Any]:
        """Return stored values with noise of standard deviation 1."""
        counts = (y - self.offset) / self.gain + 3 / 8 + (self.read / self.gain) ** 2
        return 2 * np.sqrt(np.maximum(counts, 0))

    def inverse(self, d: NDArray[Any]) -> NDArray[Any]:
        """Return the mean stored value of pixels whose :meth:`forward` has the mean ``d``."""
        d = np.maximum(d, _LEAST)
        root = math.sqrt(3 / 2)
        counts = d**2 / 4 + root / 4 / d - 11 / 8 / d**2 + 5 * root / 8 / d**3 - 1 / 8
        counts = counts - (self.read / self.gain) ** 2
        return self.gain * np.maximum(counts, 0) + self.offset
