r"""Gaussian measurements: m random rows, drawn once for each image."""

from typing import Any

import torch
from deepinv.physics import LinearPhysics
from jaxtyping import Float
from torch import Generator, Tensor
from typing_extensions import override

from ..mapped import blocks
from .base import ImageShape, Operator, Params, distinct, mean


class RowMatrices(LinearPhysics):  # type: ignore[misc]
    r"""A dense matrix for each image, some of whose rows may be missing.

    .. math:: y_i = \mathrm{diag}(r_i) M_i x_i

    deepinv's ``CompressedSensing`` holds one matrix for a whole batch. The rows that are not
    missing must be linearly independent.

    Arguments:
        image_shape: Shape of an image, (channels, height, width).
    """

    def __init__(self, image_shape: ImageShape) -> None:
        super().__init__()
        self.image_shape = tuple(image_shape)

    def A(self, x: Tensor, matrix: Tensor, rows: Tensor, **kwargs: Any) -> Tensor:
        """Return the products of each image with its rows, (b, m); 0 for a missing row."""
        return rows * (matrix @ x.flatten(1)[:, :, None])[:, :, 0]

    def A_adjoint(self, y: Tensor, matrix: Tensor, rows: Tensor, **kwargs: Any) -> Tensor:
        """Return the sum of the rows weighted by y, (b, c, h, w)."""
        x = (matrix.mT @ (rows * y)[:, :, None])[:, :, 0]
        return x.reshape(len(y), *self.image_shape)

    def A_dagger(self, y: Tensor, matrix: Tensor, rows: Tensor, **kwargs: Any) -> Tensor:
        r"""Return :math:`A^\top (A A^\top)^{-1} y` over the rows that are not missing.

        Solved in float64: the condition of the product is the square of the matrix's.
        """
        a = rows[:, :, None].double() * matrix.double()
        # A missing row has the equation 1 * coefficient = 0.
        gram = a @ a.mT + torch.diag_embed(1 - rows.double())
        coefficients = torch.linalg.solve(gram, (rows * y).double()[:, :, None])
        return (a.mT @ coefficients)[:, :, 0].to(y.dtype).reshape(len(y), *self.image_shape)


class GaussianMeasurements(Operator):
    r"""Compressed sensing: m rows of :math:`N(0, 1/m)` entries an image, with optional noise.

    The rows of all images are stored: ``4 m d`` bytes an image of d entries, so this is for small
    images.

    Arguments:
        image_shape: Shape of an image, (channels, height, width).
        m: Rows an image, from 1 to the number of entries of an image.
        sigma: Noise level of each measurement in units of x, at least 0.

    Raises:
        ValueError: ``m`` outside its range.

    References:
        Ambient Diffusion (Daras et al., 2023), section 4 (one row dropped), arXiv:2305.19256
    """

    def __init__(self, image_shape: ImageShape, m: int, sigma: float) -> None:
        d = image_shape[0] * image_shape[1] * image_shape[2]
        if not 1 <= m <= d:
            raise ValueError(f"m={m} is not a number of rows for {d} entries; allowed: 1 to {d}")
        super().__init__(RowMatrices(image_shape), image_shape, sigma)
        self.m = m

    @property
    @override
    def name(self) -> str:
        return "compressed sensing"

    @override
    def draw(self, n: int, generator: Generator) -> Params:
        d = self.image_shape[0] * self.image_shape[1] * self.image_shape[2]
        matrix = torch.randn((n, self.m, d), generator=generator) / self.m**0.5
        return {"matrix": matrix, "rows": torch.ones(n, self.m)}

    def mismatch(self, params: Params) -> str | None:
        """Compare the share of rows and the variance of the entries with what is assumed."""
        matrix, rows = params["matrix"], params["rows"]
        if (missing := 1 - mean(rows)) > 0:
            return (
                f"params/rows marks {missing:.1%} of the rows as missing and the operator draws "
                "none; leave them out of y, params/matrix and params/rows and set operator.m"
            )
        squares = sum(part.double().pow(2).sum().item() for part in blocks(matrix))
        power = squares / matrix.numel() * self.m
        draws = distinct(matrix) * matrix[0].numel()
        if abs(power - 1) > 5 * (2 / draws) ** 0.5 + 0.01:
            return (
                f"the entries of params/matrix have the variance {power / self.m:.4g} and the "
                f"operator draws 1/m = {1 / self.m:.4g}; multiply params/matrix, y and sigma_y by "
                f"{power**-0.5 if power else 0:.4g}"
            )
        return None

    @override
    def observed(self, y: Float[Tensor, "b ..."], params: Params) -> Float[Tensor, "b ..."]:
        return params["rows"]

    def further(self, params: Params, delta: float, generator: Generator) -> Params:
        r"""Drop one of the rows, whatever ``delta``; its entries leave the parameters too."""
        rows = params["rows"]
        dropped = torch.multinomial(rows.cpu(), 1, generator=generator).to(rows.device)
        rows = rows.scatter(1, dropped, 0.0)
        return {"matrix": params["matrix"] * rows[:, :, None], "rows": rows}

    def supervision(self, further: Params, delta: float) -> Float[Tensor, "n d"]:
        r"""Return the eigenvalues of :math:`\tilde A^\top\tilde A + I/m`: the dropped row is new.

        Given A-tilde the dropped row is an independent draw, of covariance I/m.
        """
        gram = self.matrix(further, len(further["rows"]))
        return torch.linalg.eigvalsh(gram.mT @ gram) + 1 / self.m

    @override
    def matrix(self, params: Params, n: int) -> Float[Tensor, "n m d"]:
        return (params["matrix"] * params["rows"][:, :, None]).double()
