r"""Multi-coil Cartesian MRI: what several coils see of one complex image, on some lines."""

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from deepinv.physics import MultiCoilMRI
from jaxtyping import Bool, Float
from torch import Generator, Tensor
from typing_extensions import override

from ..mapped import blocks, rows
from .base import ImageShape, Operator, Params, distinct
from .coils import KINDS, draw_maps
from .sampling import Sampling
from .solve import conjugate_gradient

#: Of the measured lines, in the middle, where nobody says how many: fastMRI's .08 of the width at
#: R = 4 and .04 at R = 8 (Zbontar et al., 2018, arXiv:1811.08839).
CENTRE = 0.32
#: Of the pseudo-inverse of lines: singular values below this share of the largest count as 0.
RANK = 1e-4
#: Of that of points: iterations at most and the relative residual at which an image is done.
ITERATIONS, TOLERANCE = 500, 1e-8
PATTERNS = ("lines", "points")
#: No receiver has as many; a slip of the finger has more.
MOST_COILS = 1024


class RealMaps(MultiCoilMRI):  # type: ignore[misc]
    """deepinv's multi-coil MRI whose maps are real arrays, (b, 2, coils, h, w)."""

    def A(self, x: Tensor, mask: Tensor, coil_maps: Tensor, **kwargs: Any) -> Tensor:
        """Return k-space, (b, 2, coils, h, w), 0 where nothing is measured."""
        real = coil_maps[:, 0] * x[:, :1] - coil_maps[:, 1] * x[:, 1:]
        imaginary = coil_maps[:, 0] * x[:, 1:] + coil_maps[:, 1] * x[:, :1]
        seen = self.to_torch_complex(torch.stack([real, imaginary], 1))
        return mask[:, :, None] * self.from_torch_complex(self.fft(seen))

    def A_adjoint(self, y: Tensor, mask: Tensor, coil_maps: Tensor, **kwargs: Any) -> Tensor:
        """Return the image of each measurement, (b, 2, h, w)."""
        seen = self.from_torch_complex(self.ifft(self.to_torch_complex(mask[:, :, None] * y)))
        # Products in real numbers: torch's lazy conjugate is lost where tensors are wrapped.
        real = (coil_maps * seen).sum((1, 2))
        imaginary = (coil_maps[:, 0] * seen[:, 1] - coil_maps[:, 1] * seen[:, 0]).sum(1)
        return torch.stack([real, imaginary], 1)

    def A_dagger(self, y: Tensor, mask: Tensor, coil_maps: Tensor, **kwargs: Any) -> Tensor:
        """Return the least-squares image of least norm (SENSE), each image on its own in float64.

        Lines leave each row of the image to itself, a small dense system. Points are solved by
        conjugate gradient, which under few coils and many hidden points ends before it is there:
        condition numbers reach 1e5.
        """
        if mask.shape[2] == 1:
            each = zip(y, mask[:, 0, 0], coil_maps, strict=True)
            return torch.stack([self._by_rows(*one) for one in each])
        params = {"mask": mask.double(), "coil_maps": coil_maps.double()}

        def gram(x: Tensor) -> tuple[Tensor, Tensor]:
            return self.A_adjoint(self.A(x, **params), **params), x

        b = self.A_adjoint(y.double(), **params)
        return conjugate_gradient(gram, b, ITERATIONS, TOLERANCE).to(y.dtype)

    def _by_rows(self, y: Tensor, lines: Tensor, maps: Tensor) -> Tensor:
        """Return the pseudo-inverse of one measurement, (2, coils, h, w), of these lines."""
        seen = lines.bool()
        k_space = torch.complex(y[0].double(), y[1].double())
        rows_of_y = self.ifft(k_space, dim=(-2,))[..., seen]
        width = len(lines)
        fourier = self.fft(torch.eye(width, device=y.device, dtype=k_space.dtype), dim=(0,))[seen]
        sensitivity = torch.complex(maps[0].double(), maps[1].double())
        coils, height = sensitivity.shape[:2]
        # (h, coils, lines, w): every line of every coil of one row.
        system = fourier * sensitivity.transpose(0, 1)[:, :, None, :]
        u, s, vh = torch.linalg.svd(system.reshape(height, -1, width), full_matrices=False)
        # Conjugates in full, as above; torch's pinv takes lazy ones.
        seen_of = torch.conj_physical(u).transpose(-2, -1) @ rows_of_y.transpose(0, 1).reshape(
            height, -1, 1
        )
        weights = torch.where(s > RANK * s[:, :1], 1 / s, 0.0)[..., None]
        x = torch.conj_physical(vh).transpose(-2, -1) @ (weights * seen_of)
        return torch.view_as_real(x[..., 0]).movedim(-1, 0).to(y.dtype)


class MultiCoil(Operator):
    r"""Lines of the k-space of a complex image, seen by several coils.

    .. math:: y_c = M F S_c x + \sigma_y z_c

    Images have 2 channels, real and imaginary part; y is (2, coils, height, width) with the zero
    frequency in the middle (orthonormal transform) and 0 where nothing was measured. Parameters of
    each image are ``mask``, (1, 1, width) for lines and (1, height, width) for points, and
    ``coil_maps``, (2, coils, height, width), real and imaginary part: :math:`8\,C h w` bytes an
    image, as y. Drawn maps are a simulation; a scan brings its own.

    Arguments:
        image_shape: Shape of an image, (2, height, width).
        coils: Number of coils, 1 to :data:`MOST_COILS`; one coil has the map 1.
        acceleration: R; one in R lines is measured, at least 1.
        centre_lines: How many of them are the middle ones, at least 1; None for :data:`CENTRE` of
            the measured ones. For points: the side of the square in the middle.
        further_lines: Lines (points) outside the centre that further corruption drops, at least 1;
            None for what is left at R + 1.
        pattern: ``lines`` of k-space, or single ``points`` (two phase-encoded directions).
        maps: How simulated maps are drawn: ``birdcage`` or ``smooth``.
        sigma: Noise level of the real and imaginary parts of each coil, units of x, at least 0.

    Raises:
        ValueError: Images that have not 2 channels, or numbers that do not fit their size.

    References:
        SENSE: sensitivity encoding for fast MRI (Pruessmann et al., 1999)
        Ambient Diffusion Posterior Sampling (Aali et al., 2024), section 4, arXiv:2403.08728
    """

    lifted = "A^H y"

    def __init__(
        self,
        image_shape: ImageShape,
        coils: int,
        acceleration: float,
        centre_lines: int | None,
        further_lines: int | None,
        pattern: str,
        maps: str,
        sigma: float,
    ) -> None:
        channels, height, width = image_shape
        if channels != 2:
            raise ValueError(
                f"mri_multicoil needs complex images, real and imaginary part as channels; the "
                f"images have {channels} channel(s), allowed: 2 (data=complex_images makes them "
                "of magnitudes)"
            )
        for key, given, allowed in (("pattern", pattern, PATTERNS), ("maps", maps, KINDS)):
            if given not in allowed:
                raise ValueError(f"{key}={given}; allowed: {', '.join(allowed)}")
        if not 1 <= coils <= MOST_COILS:
            raise ValueError(f"coils={coils}; allowed: 1 to {MOST_COILS}")
        if not acceleration >= 1:
            raise ValueError(f"acceleration={acceleration}; allowed: at least 1")
        physics = RealMaps(img_size=(2, height, width))
        super().__init__(physics, image_shape, sigma)
        self.coils, self.acceleration = coils, acceleration
        self.pattern, self.maps = pattern, maps
        self.sampling = sampling_of(image_shape, acceleration, centre_lines, further_lines, pattern)

    @property
    @override
    def name(self) -> str:
        return "mri_multicoil"

    @override
    def draw(self, n: int, generator: Generator) -> Params:
        """Draw masks and the maps of a simulation."""
        mask = self.sampling.draw(n, generator)
        if self.coils == 1:
            one = torch.zeros(n, 2, 1, *self.image_shape[1:])
            one[:, 0] = 1
            return {"mask": mask, "coil_maps": one}
        size = self.image_shape[1:]
        return {"mask": mask, "coil_maps": draw_maps(self.maps, n, self.coils, *size, generator)}

    @override
    def mismatch(self, params: Params) -> str | None:
        """Compare the measured positions with the law, and the maps with what maps are."""
        largest, lost = 0.0, 0
        for part in blocks(params["coil_maps"]):
            power = part.square().sum((1, 2))
            largest, lost = max(largest, power.max().item()), lost + int((power < 1e-6).sum())
        if largest > 1.05:
            return (
                f"the squares of params/coil_maps sum to {largest:.3g} over the coils; needed: 1 "
                "where there is tissue; divide the maps by the root of that sum"
            )
        if lost:
            share = lost / (len(params["coil_maps"]) * math.prod(self.image_shape[1:]))
            return (
                f"params/coil_maps are 0 in all coils on {share:.1%} of the pixels, which no "
                "measurement shows; give maps of the whole image (ESPIRiT: crop 0)"
            )
        return self.sampling.mismatch(params["mask"], self.pattern)

    @override
    def with_law_of(self, params: Params) -> "Operator":
        """Return this operator as the parameters of a data set show it.

        One mask for all images is a fixed operator, though each image has its own coils: no image
        shows a line that is hidden in another. Maps are drawn among those of the data set.
        """
        mask, maps = params["mask"], params["coil_maps"]
        draw, found = self.sampling.draw, set(self.capabilities)
        if len(mask) > 1 and distinct(mask) == 1:
            found = found - {"random"} | {"fixed"}

            def draw(n: int, generator: Generator) -> Tensor:  # noqa: ARG001
                return mask[:1].repeat(n, 1, 1, 1)

        twin = copy.copy(self)
        twin.__dict__["draw"] = _Found(draw, maps)
        twin.capabilities = frozenset(found)
        return twin

    @override
    def shown(self, params: Params) -> Bool[Tensor, "..."] | None:
        """Return None: coils mix entries of k-space, so that none is an entry of x."""
        return None

    @override
    def observed(self, y: Float[Tensor, "b ..."], params: Params) -> Float[Tensor, "b ..."]:
        return params["mask"][:, None].expand_as(y)

    @override
    def normal(
        self, params: Params
    ) -> Callable[[Float[Tensor, "b c h w"]], Float[Tensor, "b c h w"]]:
        """Return :math:`A^H A`, in complex numbers and with one shift of the image a call.

        Under lines the transforms along them cancel: only the other axis is transformed.
        """
        mask, maps = params["mask"], params["coil_maps"]
        axes = (-1,) if mask.shape[2] == 1 else (-2, -1)
        seen = torch.fft.ifftshift(mask, dim=axes)
        coils = torch.fft.ifftshift(torch.complex(maps[:, 0], maps[:, 1]), dim=axes)
        adjoint = torch.conj_physical(coils)

        def apply(x: Tensor) -> Tensor:
            image = torch.fft.ifftshift(torch.complex(x[:, :1], x[:, 1:]), dim=axes)
            k_space = torch.fft.fftn(coils * image, dim=axes) * seen
            back = (adjoint * torch.fft.ifftn(k_space, dim=axes)).sum(1)
            back = torch.fft.fftshift(back, dim=axes)
            return torch.stack([back.real, back.imag], 1)

        return apply

    @override
    def lift(self, y: Float[Tensor, "b ..."], params: Params) -> Float[Tensor, "b c h w"]:
        """Return :math:`A^H y`, the coils combined."""
        return self.A_adjoint(y, params)

    @override
    def further(self, params: Params, delta: float, generator: Generator) -> Params:
        """Drop measured positions outside the centre, from R to R + 1, whatever ``delta``."""
        return {**params, "mask": self.sampling.drop(params["mask"], generator)}

    @override
    def supervision(self, further: Params, delta: float) -> Float[Tensor, "n d"]:
        r"""Return lower bounds of the eigenvalues of :math:`E[A^H A \mid \tilde A]`.

        With p the probability that A measures an entry of k-space, they are at least the least p
        times the least :math:`\sum_c|S_c|^2`.
        """
        least = self.sampling.shown(further["mask"]).flatten(1).amin(1)
        power = further["coil_maps"].double().square().sum((1, 2)).flatten(1).amin(1)
        channels, height, width = self.image_shape
        return (least * power)[:, None].expand(-1, channels * height * width)

    @override
    def describe(self, params: Params, n: int) -> Float[Tensor, "n c h w"]:
        """Return what is measured of k-space as one channel."""
        return params["mask"].expand(n, 1, *self.image_shape[1:])

    @property
    @override
    def description_channels(self) -> int:
        return 1


class _Found:
    """Draws masks by a law, and maps among those of a data set."""

    def __init__(self, masks: Callable[[int, Generator], Tensor], maps: Tensor) -> None:
        self.masks, self.maps = masks, maps

    def __call__(self, n: int, generator: Generator) -> Params:
        index = torch.randint(len(self.maps), (n,), generator=generator)
        return {"mask": self.masks(n, generator), "coil_maps": rows(self.maps, index)}

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Found":
        """Return the same: maps may lie in a file that is larger than memory."""
        return self


def sampling_of(
    shape: ImageShape,
    acceleration: float,
    centre: int | None,
    further: int | None,
    pattern: str,
) -> Sampling:
    """Return the law of the masks.

    Raises:
        ValueError: Numbers that do not fit the size of the images.
    """
    size = (1, shape[2]) if pattern == "lines" else (shape[1], shape[2])
    total = size[0] * size[1]
    count = int(total / acceleration)
    share = CENTRE * count
    side = centre or max(1, round(share if pattern == "lines" else share**0.5))
    block = (min(side, size[0]), side)
    middle = block[0] * block[1]
    drop = further or min(max(1, count - int(total / (acceleration + 1))), count - middle)
    is_fit = side <= min(shape[2], size[0] if pattern == "points" else side)
    if side < 1 or drop < 1 or not is_fit or middle + drop > count:
        raise ValueError(
            f"centre_lines={centre} and further_lines={further} do not fit the {count} {pattern} "
            f"of images of {shape[1]}x{shape[2]} at acceleration={acceleration:g}; allowed: both "
            f"at least 1, together at most {count} (of points the square of centre_lines counts)"
        )
    return Sampling(size, count, block, drop)


__all__ = ["MultiCoil", "sampling_of"]
