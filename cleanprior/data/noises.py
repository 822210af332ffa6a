r"""Noise models of instruments, of a signal s: drawn by deepinv, and what y says of their variance.

The signal is what an instrument would show of an image in [0, 1], 0 black and 1 white: with images
x in [-1, 1], :math:`s = A (x + 1) / 2 = (A x + A 1) / 2`; counts, magnitudes and speckle are noise
of such a signal, and every level here is in its units, half of those of x. What is recorded comes
back as :math:`y = 2 \tilde s - A 1`, which is A x but for the noise.

``variance`` is :math:`E (\tilde s - s)^2` in closed form, bias included. ``estimated`` is the map
that is told to who takes Gaussian noise: the same from :math:`\tilde s` alone. Weights that follow
the noise are not independent of it: a pixel that is dark by chance counts for more. The weighted
mean of equal pixels of l photons is :math:`l / (1 - e^{-l}) - 1`, one photon too dark.

==============  ==============================================  ===================================
kind            variance at s                                   estimated from r, what is recorded
==============  ==============================================  ===================================
poisson         :math:`g (s + b) + \rho^2`                      :math:`g (r + b + g) + \rho^2`
rician          :math:`2 s^2 + 2 \sigma^2 - 2 s E[r]`           at :math:`s^2 = r^2 - 2 \sigma^2`
gamma           :math:`s^2 / L`                                 :math:`r^2 (L + 2)/((L-1)(L-2))`
quantisation    :math:`\Delta^2 / 12` on average                the same
==============  ==============================================  ===================================

with r, and r + b, at least 0. Poisson: the mean of the photons given their count under a flat law
is one more than the count, so that no dark pixel is without noise. Gamma: the factor makes the mean
square of :math:`(r - s) / \hat\sigma` exactly 1.

References:
    deepinv.physics.noise of DeepInverse (Tachella et al., 2025), arXiv:2505.20160
    The Rician distribution of noisy MRI data (Gudbjartsson and Patz, 1995),
    doi:10.1002/mrm.1910340618
    Parameter estimation in astronomy with Poisson-distributed data (Mighell, 1999), section 3,
    arXiv:astro-ph/9903093
    Quantization Noise (Widrow and Kollar, 2008), chapter 4
"""

import math
from abc import ABC, abstractmethod

import torch
from deepinv.physics import noise as library
from torch import Generator, Tensor
from typing_extensions import override

from ..config.checks import check_positive
from ..seeding import scoped_rng
from .photons import Photons


class Noise(ABC):
    """A noise model of a signal, drawn entry by entry.

    Attributes:
        photons: The detector, where the signal is counted.
        needs_light: Whether the signal must not be negative.
    """

    photons: Photons | None = None
    needs_light = True

    @abstractmethod
    def draw(self, signal: Tensor, generator: Generator) -> Tensor:
        """Return what is recorded of a signal; ``generator`` is the only source of randomness."""

    @abstractmethod
    def variance(self, signal: Tensor) -> Tensor:
        """Return the mean square of what is recorded minus the signal."""

    @abstractmethod
    def estimated(self, recorded: Tensor) -> Tensor:
        """Return the variance as what was recorded tells it, above 0."""

    def unbiased(self, recorded: Tensor) -> Tensor:
        """Return what is the variance on average, of which some may be below 0."""
        return self.estimated(recorded)


class Poisson(Noise):
    """Photons, with dark counts and read noise.

    Arguments:
        gain: Signal a photon, above 0: white is 1 / gain photons.
        background: Mean of the dark counts as a signal, at least 0. It is known and subtracted (an
            electronic offset has no other trace here); its noise stays.
        read: Standard deviation of the read noise as a signal, at least 0.
    """

    def __init__(self, gain: float, background: float = 0.0, read: float = 0.0) -> None:
        check_positive("gain", gain)
        if min(background, read) < 0:
            raise ValueError(f"background={background}, read={read}; allowed: at least 0")
        self.gain, self.background, self.read = float(gain), float(background), float(read)
        self.photons = Photons(self.gain, -self.background, self.read)

    @override
    def draw(self, signal: Tensor, generator: Generator) -> Tensor:
        light = signal + self.background
        if self.read == 0:
            counted = library.PoissonNoise(self.gain, rng=generator)(light)
        else:
            counted = library.PoissonGaussianNoise(self.gain, self.read, rng=generator)(light)
        return counted - self.background

    @override
    def variance(self, signal: Tensor) -> Tensor:
        return self.gain * (signal + self.background) + self.read**2

    @override
    def estimated(self, recorded: Tensor) -> Tensor:
        return self.variance(recorded.clamp_min(-self.background) + self.gain)

    @override
    def unbiased(self, recorded: Tensor) -> Tensor:
        return self.variance(recorded)


class Rician(Noise):
    """The magnitude of a complex signal.

    Arguments:
        sigma: Standard deviation of real and imaginary part each, above 0.
    """

    def __init__(self, sigma: float) -> None:
        check_positive("sigma", sigma)
        self.sigma = float(sigma)

    @override
    def draw(self, signal: Tensor, generator: Generator) -> Tensor:
        return library.RicianNoise(self.sigma, rng=generator)(signal)

    def mean(self, signal: Tensor) -> Tensor:
        r"""Return :math:`\sigma \sqrt{\pi/2}\, L_{1/2}(-s^2 / 2 \sigma^2)`."""
        half = signal.double() ** 2 / (4 * self.sigma**2)
        bessel = (1 + 2 * half) * torch.special.i0e(half) + 2 * half * torch.special.i1e(half)
        return self.sigma * math.sqrt(math.pi / 2) * bessel

    @override
    def variance(self, signal: Tensor) -> Tensor:
        s = signal.double()
        square = 2 * s**2 + 2 * self.sigma**2 - 2 * s * self.mean(signal)
        return square.to(signal.dtype)

    @override
    def estimated(self, recorded: Tensor) -> Tensor:
        return self.variance((recorded**2 - 2 * self.sigma**2).clamp_min(0).sqrt())


class Gamma(Noise):
    """Multiplicative noise of mean 1 and variance 1 / looks.

    Arguments:
        looks: Averaged exposures, above 2: of fewer no variance can be told.
    """

    #: A signal of 0 is recorded as 0; deepinv takes none.
    LEAST = 1e-6

    def __init__(self, looks: float) -> None:
        if not 2 < looks < math.inf:
            raise ValueError(f"looks={looks}; allowed: above 2")
        self.looks = float(looks)

    @override
    def draw(self, signal: Tensor, generator: Generator) -> Tensor:
        seed = int(torch.randint(2**62, (1,), generator=generator))
        with scoped_rng(seed):  # deepinv draws it from the global stream
            mean = signal.clamp_min(self.LEAST)
            drawn = library.GammaNoise(self.looks)(mean.detach())
        # The library's draw has no gradient; it is proportional to the mean.
        return drawn + (mean - mean.detach()) * (drawn / mean.detach())

    @override
    def variance(self, signal: Tensor) -> Tensor:
        return signal**2 / self.looks

    @override
    def estimated(self, recorded: Tensor) -> Tensor:
        factor = (self.looks + 2) / ((self.looks - 1) * (self.looks - 2))
        return factor * recorded.clamp_min(self.LEAST) ** 2

    @override
    def unbiased(self, recorded: Tensor) -> Tensor:
        return recorded**2 / (self.looks + 1)


class Quantisation(Noise):
    """Rounding to equal steps, of which 0 is one.

    deepinv's ``UniformNoise(step / 2)`` is its model where the signal covers many steps; what is
    drawn here is the rounding itself, which has no randomness.

    Arguments:
        step: Between two levels, above 0.
    """

    needs_light = False

    def __init__(self, step: float) -> None:
        check_positive("step", step)
        self.step = float(step)

    @override
    def draw(self, signal: Tensor, generator: Generator) -> Tensor:
        return self.step * torch.round(signal / self.step)

    @override
    def variance(self, signal: Tensor) -> Tensor:
        return torch.full_like(signal, self.step**2 / 12)

    @override
    def estimated(self, recorded: Tensor) -> Tensor:
        return self.variance(recorded)


__all__ = ["Gamma", "Noise", "Poisson", "Quantisation", "Rician"]
