r"""The singular value decomposition :math:`A = U S V^\top` of a batch of operators."""

from dataclasses import dataclass

import torch
from deepinv.physics import DecomposablePhysics
from jaxtyping import Bool, Float
from torch import Tensor

from .base import Operator, Params

#: Singular values up to this count as 0, as in deepinv's pseudo-inverse.
ZERO = 1e-5


@dataclass(frozen=True)
class Spectrum:
    r"""Spectral coordinates :math:`\bar x = V^\top x` of a batch.

    Coordinates may be the half spectrum of a real Fourier transform, whose entries have about half
    the variance of white noise: draw noise as an image and map it here.

    deepinv's physics keep the parameters of their last call; another call of the operator with
    other parameters must not come between :meth:`of` and the use of its result.

    Attributes:
        physics: The decomposable physics, with this batch's parameters.
        singular: Singular values, one a spectral coordinate of each image, at least 0.
    """

    physics: DecomposablePhysics
    singular: Float[Tensor, "b ..."]

    @classmethod
    def of(
        cls, operator: Operator, params: Params, like: Float[Tensor, "b ..."]
    ) -> "Spectrum | None":
        """Return the decomposition of a batch, or None where the operator has no cheap one.

        Arguments:
            operator: The forward operator.
            params: Parameters of the batch.
            like: Any tensor of the batch, for its length, dtype and device.
        """
        physics = operator.physics
        if "svd" not in operator.capabilities or not isinstance(physics, DecomposablePhysics):
            return None
        with torch.no_grad():
            zero = like.new_zeros(len(like), *operator.image_shape)
            y = operator.A(zero, params)  # leaves this batch's parameters in the physics
            shape = physics.V_adjoint(zero).shape
            if physics.U_adjoint(y).shape != shape:
                return None
            singular = torch.as_tensor(physics.mask, device=like.device).abs()
        return cls(physics, singular.to(zero.dtype).expand(shape))

    @property
    def kept(self) -> Bool[Tensor, "b ..."]:
        """Whether a coordinate is measured: its singular value exceeds :data:`ZERO`."""
        return self.singular > ZERO

    def column(self, values: Float[Tensor, " b"]) -> Float[Tensor, "b ..."]:
        """Shape one number an image so that it multiplies spectral coordinates."""
        return values.to(self.singular).reshape(-1, *(1,) * (self.singular.dim() - 1))

    def to_spectrum(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b ..."]:
        r"""Return :math:`V^\top x`."""
        return self.physics.V_adjoint(x)

    def to_image(self, coordinates: Float[Tensor, "b ..."]) -> Float[Tensor, "b c h w"]:
        """Return V times coordinates."""
        return self.physics.V(coordinates)

    def of_measurement(self, y: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        r"""Return :math:`U^\top y`."""
        return self.physics.U_adjoint(y)

    def pseudo_inverse(self, y: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        r"""Return :math:`\bar y = S^+ U^\top y`, 0 where nothing is measured."""
        inverse = torch.where(self.kept, 1 / self.singular.clamp_min(ZERO), 0.0)
        return inverse * self.of_measurement(y)
