r"""The Operator: :math:`y = A x + \sigma_y z`, its parameters' law, further corruption."""

import copy
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
import torch
from deepinv.physics import LinearPhysics
from jaxtyping import Bool, Float
from torch import Generator, Tensor

from ..mapped import blocks, bytes_of, rows
from ..seeding import randn_like
from .levels import is_white

Params = dict[str, Tensor]
ImageShape = tuple[int, int, int]
Generators = Generator | Sequence[Generator]
#: Capabilities of operators whose A A^T is a projection.
PROJECTIONS = frozenset({"mask", "identity", "fourier"})


@runtime_checkable
class Recorder(Protocol):
    """Noise in the place of an operator's own (:mod:`cleanprior.data.instrument_noise`)."""

    @property
    def told(self) -> str:
        """What methods are told: ``none``, ``map``, ``level`` or ``anscombe``."""
        ...

    def measure(
        self, operator: "Operator", x: Tensor, params: Params, generator: Generators
    ) -> Tensor:
        """Return what is recorded of images."""
        ...

    def levels(self, operator: "Operator", y: Tensor, params: Params) -> Tensor:
        """Return the noise levels that methods are told of measurements."""
        ...

    def images(self, x: Tensor) -> Tensor:
        """Return what a prior makes as images in [-1, 1]."""
        ...


class Operator:
    """A linear forward operator with per-image parameters and additive Gaussian noise.

    deepinv's physics keep the last parameters that they were given; every call here passes the
    parameters of its batch, so that no call depends on the one before.

    Arguments:
        physics: The deepinv operator.
        image_shape: Shape of an image, (channels, height, width).
        sigma: Noise level of the measurements in units of x (images in [-1, 1]), at least 0.

    Attributes:
        capabilities: Keys of :data:`cleanprior.config.capabilities.CAPABILITIES`, as its YAML says:
            :func:`cleanprior.config.build` tells them, and one that is constructed by hand has
            none. Parameters from a file may show others, see :meth:`with_law_of`.
        device: Where the physics lies, and with it images and measurements; the CPU at first.
        config: The configuration that :func:`cleanprior.operator` built it from, or None.
        noise: An instrument's noise in the place of Gaussian noise of ``sigma``, or None.

    Raises:
        ValueError: ``sigma`` negative or not finite.
    """

    capabilities: frozenset[str] = frozenset()
    #: Whether :meth:`measure` draws its noise by one call and some images have the same y, bit for
    #: bit, without the others. A class says it for itself: those that inherit from it do not.
    has_parts: ClassVar[bool] = False
    noise: Recorder | None = None
    #: What :meth:`lift` makes of a y that is no image, in a row's name.
    lifted: ClassVar[str] = "A^+ y"

    def __init__(self, physics: LinearPhysics, image_shape: ImageShape, sigma: float) -> None:
        if not 0 <= sigma < float("inf"):
            raise ValueError(f"sigma={sigma} is not a noise level; allowed: a number >= 0")
        self.physics = physics
        self.image_shape: ImageShape = (image_shape[0], image_shape[1], image_shape[2])
        self.sigma = float(sigma)
        self.device = torch.device("cpu")
        self.config: Mapping[str, Any] | None = None

    @property
    def name(self) -> str:
        """The operator's name in sentences shown to a user."""
        return type(self).__name__

    def to(self, device: torch.device | str) -> "Operator":
        """Return a copy of the operator whose physics lies on ``device``.

        This one stays as it is: whoever was handed an operator moves only a copy of his own.
        """
        moved = copy.deepcopy(self)
        moved.physics.to(device)
        moved.device = torch.device(device)
        return moved

    def draw(self, n: int, generator: Generator) -> Params:
        """Draw the parameters of ``n`` images; leading dimension n. Empty for a fixed operator.

        They lie on the CPU, as the generator does, wherever the physics is.
        """
        return {}

    def mismatch(self, params: Params) -> str | None:
        """Return how parameters from a file contradict this operator's law, or None.

        What a random draw explains (:func:`beyond_chance`) is no contradiction. The sentence says
        what was found, what is assumed, and what to set. Parameters may lie in a file and be many:
        :func:`cleanprior.mapped.blocks` of them are in memory one after the other.
        """
        return None

    def with_law_of(self, params: Params) -> "Operator":
        """Return this operator as the parameters of a data set show it.

        Equal parameters of all images are one fixed operator: it has ``fixed`` and not ``random``,
        and draws what it was given. An entry that no image shows is a ``null_space``.
        """
        n = len(next(iter(params.values()), ()))
        if n == 0:
            return self
        found = set(self.capabilities)
        twin = copy.copy(self)
        if n > 1 and all(bool((b == v[:1]).all()) for v in params.values() for b in blocks(v)):
            found = found - {"random"} | {"fixed"}
            twin.__dict__["draw"] = _Same(first(params))
        shown = self.shown(params)
        if shown is not None and not shown.all():
            found.add("null_space")
        twin.capabilities = frozenset(found)
        return twin

    def with_levels_of(self, sigma_y: Tensor) -> "Operator":
        """Return this operator with ``local_noise`` where levels differ between entries of y.

        Arguments:
            sigma_y: Noise levels of measurements, (n,) or a map (:mod:`.levels`).
        """
        if is_white(sigma_y) or "local_noise" in self.capabilities:
            return self
        twin = copy.copy(self)
        twin.capabilities = self.capabilities | {"local_noise"}
        return twin

    def with_instrument(
        self, noise: "Recorder", capabilities: frozenset[str], level: float = 0.0
    ) -> "Operator":
        """Return this operator with an instrument's noise.

        Arguments:
            noise: Measures in the place of the operator's Gaussian noise.
            capabilities: As methods know it.
            level: What they are told for ``sigma``, the (largest) level.
        """
        twin = copy.copy(self)
        twin.noise, twin.capabilities, twin.sigma = noise, capabilities, level
        return twin

    def shown(self, params: Params) -> Bool[Tensor, "..."] | None:
        """Return which entries of y some image shows; None where entries have no basis of x."""
        if not self.capabilities & {"mask", "fourier"}:
            return None
        zero = torch.zeros(1, *self.image_shape)
        found = torch.zeros(self.A(zero, first(params)).shape[1:], dtype=torch.bool)
        for part in torch.arange(len(next(iter(params.values())))).split(few(found.nbytes * 4)):
            y = torch.zeros(len(part), *found.shape)
            found |= (self.observed(y, take(params, part)) > 0).any(0)
        return found

    def A(self, x: Float[Tensor, "b c h w"], params: Params) -> Float[Tensor, "b ..."]:
        """Apply the forward operator, without noise. Differentiable in ``x``."""
        return self.physics.A(x, **params)

    def A_adjoint(self, y: Float[Tensor, "b ..."], params: Params) -> Float[Tensor, "b c h w"]:
        """Apply the adjoint operator."""
        return self.physics.A_adjoint(y, **params)

    def A_dagger(self, y: Float[Tensor, "b ..."], params: Params) -> Float[Tensor, "b c h w"]:
        """Apply the pseudo-inverse."""
        return self.physics.A_dagger(y, **params)

    def normal(
        self, params: Params
    ) -> Callable[[Float[Tensor, "b c h w"]], Float[Tensor, "b c h w"]]:
        r"""Return the map :math:`x \mapsto A^\top A x` of these images, for many calls."""
        return lambda x: self.A_adjoint(self.A(x, params), params)

    def observed(self, y: Float[Tensor, "b ..."], params: Params) -> Float[Tensor, "b ..."]:
        """Return 1 where an entry of ``y`` was measured and 0 where it only fills the array."""
        return torch.ones_like(y)

    def measure(
        self, x: Float[Tensor, "b c h w"], params: Params, generator: Generators
    ) -> Float[Tensor, "b ..."]:
        r"""Return :math:`y = A x + \sigma_y z`, or what an instrument records of A x.

        Entries that are not measured stay 0.
        """
        if self.noise is not None:
            return self.noise.measure(self, x, params, generator)
        y = self.A(x, params)
        if self.sigma == 0:
            return y
        return y + self.sigma * randn_like(y, generator) * self.observed(y, params)

    def is_image(self, y: Float[Tensor, "b ..."]) -> bool:
        """Whether entries of ``y`` are pixels of the image: not k-space, rows, coarser."""
        return y.shape[1:] == self.image_shape and "fourier" not in self.capabilities

    def lift(self, y: Float[Tensor, "b ..."], params: Params) -> Float[Tensor, "b c h w"]:
        """Return the image that a user would look at: y itself, or A^+ y where y is no image.

        For masks and the identity both are equal. For a blur, A^+ multiplies the noise by the
        inverse of tiny singular values, so y itself is what one has.
        """
        return y if self.is_image(y) else self.A_dagger(y, params)

    def further(self, params: Params, delta: float, generator: Generator) -> Params:
        r"""Draw the parameters of :math:`\tilde A = B A`, corrupted further with ``delta``.

        B erases entries: :math:`B y` is ``observed(y, further) * y``. The result lies where
        ``params`` do.

        Raises:
            ValueError: The family has no further corruption.
        """
        raise ValueError(f"{self.name} has no further corruption")

    def supervision(self, further: Params, delta: float) -> Float[Tensor, "n d"] | None:
        r"""Return the eigenvalues of :math:`E[A^\top A \mid \tilde A]` of each image, or None.

        For masks and MRI, eigenvalue k is the probability that A measures entry k. An eigenvalue of
        0 is a direction that A-tilde hides and that no A behind it would show. None where the
        family has no closed form.
        """
        return None

    def describe(self, params: Params, n: int) -> Float[Tensor, "n c h w"] | None:
        """Return image-shaped channels that tell a network which operator was used, or None."""
        return None

    @property
    def description_channels(self) -> int:
        """Number of channels of :meth:`describe`; 0 where it returns None."""
        return 0

    def matrix(self, params: Params, n: int) -> Float[Tensor, "n m d"]:
        """Return A of each image as a dense float64 matrix (for closed forms on small images)."""
        d = self.image_shape[0] * self.image_shape[1] * self.image_shape[2]
        basis = torch.eye(d, device=self.device).reshape(d, *self.image_shape)
        if not params:
            columns = self.A(basis, {}).flatten(1)
            return columns.T.double().expand(n, -1, -1)
        rows = [
            self.A(basis, {k: v[i : i + 1].expand(d, *v.shape[1:]) for k, v in params.items()})
            for i in range(n)
        ]
        return torch.stack([r.flatten(1).T for r in rows]).double()


class _Same:
    """Draws the same parameters for every image."""

    def __init__(self, one: Params) -> None:
        self.one = one

    def __call__(self, n: int, generator: Generator) -> Params:
        return {k: v.expand(n, *v.shape[1:]).clone() for k, v in self.one.items()}


def beyond_chance(found: float, assumed: float, draws: int) -> bool:
    """Whether a share among independent draws contradicts a probability.

    Five standard deviations of the draws, and half a percent for what is rounded in a file.
    """
    spread = (assumed * (1 - assumed) / max(draws, 1)) ** 0.5
    return abs(found - assumed) > 5 * spread + 0.005


def distinct(params: Tensor) -> int:
    """Return how many different rows a tensor has, by eight bytes of a hash of each."""
    digests = [
        np.array([_eight(row) for row in part], np.uint64) for part in blocks(params) if len(part)
    ]
    return len(np.unique(np.concatenate(digests))) if digests else 0


def _eight(row: Tensor) -> int:
    digest = hashlib.blake2b(bytes_of(row.contiguous()), digest_size=8)
    return int.from_bytes(digest.digest(), "little")


def few(size: int) -> int:
    """Return how many images of so many bytes are worked on at a time, where any number would do.

    At most 512, and 64 MB of them.
    """
    return max(1, min(512, (64 << 20) // max(1, size)))


def mean(values: Tensor) -> float:
    """Return the mean of a tensor's entries, read in blocks and added in float64."""
    total = sum(float(part.sum(dtype=torch.float64)) for part in blocks(values))
    return total / max(1, values.numel())


def take(params: Params, index: Tensor | slice) -> Params:
    """Select the parameters of some images."""
    return {k: rows(v, index) for k, v in params.items()}


def first(params: Params) -> Params:
    """Return a copy of the parameters of the first image, which whoever keeps them may copy."""
    return take(params, torch.arange(1))


def likelihood_sigma(sigma_y: Float[Tensor, "b ..."], floor: float) -> Float[Tensor, "b ..."]:
    """Return the noise level of the likelihood: ``sigma_y``, or ``floor`` where there is no noise.

    Known noise is never replaced: on blurred digits with sigma_y = 0.05 a floor of 0.1 cost 0.9 dB
    of the posterior mean. The measurements themselves are not altered.
    """
    return torch.where(sigma_y > 0, sigma_y, torch.full_like(sigma_y, floor))
