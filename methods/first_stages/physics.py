"""Our operators, their parameters and their randomness as deepinv's losses take them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from warnings import catch_warnings, filterwarnings

import torch
from deepinv.loss import R2RLoss
from deepinv.physics import LinearPhysics
from deepinv.transform import Transform
from torch import Generator, Tensor, nn
from typing_extensions import override

from cleanprior.operators import Operator, Params
from cleanprior.operators.levels import column
from cleanprior.operators.symmetry import draw_places, moved
from cleanprior.seeding import generator_for, randn_like


@contextmanager
def quiet_products() -> Iterator[None]:
    """Keep deepinv's remark on products of operators: nothing here inverts a product."""
    with catch_warnings():
        filterwarnings("ignore", "At least one input physics is a DecomposablePhysics")
        yield


class Measured(LinearPhysics):  # type: ignore[misc]
    """An operator with the parameters of a batch; deepinv's keep one set, and no generator.

    Arguments:
        operator: The operator.
        params: Parameters of the batch.
        sigma_y: Noise level of each image, (b,).
        generator: Of the noise that it adds.
        y: The measurements of the batch, where a loss splits them.
    """

    def __init__(
        self,
        operator: Operator,
        params: Params,
        sigma_y: Tensor,
        generator: Generator,
        y: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.operator, self.params = operator, params
        self.sigma_y, self.generator = sigma_y, generator
        if y is not None:
            self.mask = operator.observed(y, params)

    def A(self, x: Tensor, **kwargs: Any) -> Tensor:
        """Apply the operator."""
        return self.operator.A(x, self.params)

    def A_adjoint(self, y: Tensor, **kwargs: Any) -> Tensor:
        """Apply the adjoint."""
        return self.operator.A_adjoint(y, self.params)

    def noise(self, x: Tensor, **kwargs: Any) -> Tensor:
        """Add noise to what is measured."""
        return noisy(x, self.sigma_y, self.operator, self.params, self.generator)

    def clone(self) -> "Measured":
        """Return the same physics, to be given other parameters."""
        return Measured(self.operator, self.params, self.sigma_y, self.generator)

    def update(self, **params: Tensor) -> None:
        """Take the parameters of other operators."""
        self.params = params


def noisy(
    y: Tensor, sigma: Tensor, operator: Operator, params: Params, generator: Generator
) -> Tensor:
    """Return y with noise of these levels, one an image, on what was measured."""
    return y + column(sigma, y) * randn_like(y, generator) * operator.observed(y, params)


class Restorer(nn.Module):
    """A function of (y, physics) as deepinv's losses call a model."""

    def __init__(self, restore: Callable[[Tensor, Any], Tensor]) -> None:
        super().__init__()
        self.restore = restore

    def forward(self, y: Tensor, physics: Any) -> Tensor:
        """Restore."""
        return self.restore(y, physics)


class Split:
    """Draws how y is split, by the operator's further corruption: f is given what A-tilde keeps.

    deepinv's own generator splits pixels, also of k-space, whose lines belong together.

    Attributes:
        kept: Parameters of A-tilde of the last split.
    """

    def __init__(
        self, operator: Operator, params: Params, y: Tensor, delta: float, generator: Generator
    ) -> None:
        self.operator, self.params, self.y = operator, params, y
        self.delta, self.generator = delta, generator
        self.kept: Params = params

    def step(self, batch_size: int, input_mask: Tensor | None = None) -> dict[str, Tensor]:
        """Draw a split of each image; return 1 for entries of y that f is given."""
        self.kept = self.operator.further(self.params, self.delta, self.generator)
        return {"mask": self.operator.observed(self.y, self.kept)}


class Draws:
    """Draws operators of a batch by the operator's law."""

    def __init__(self, operator: Operator, n: int, generator: Generator) -> None:
        self.operator, self.n, self.generator = operator, n, generator

    def step(self) -> Params:
        """Draw the parameters of a batch."""
        drawn = self.operator.draw(self.n, self.generator)
        return {k: v.to(self.operator.device) for k, v in drawn.items()}


class Group(Transform):  # type: ignore[misc]
    """Declared symmetries, an element for each image, where deepinv's draw one for a batch.

    The parameter is the number of a stream from which the elements of a batch are drawn again.

    Arguments:
        symmetries: Of :data:`cleanprior.operators.symmetry.SYMMETRIES`.
        generator: Draws the numbers.
    """

    def __init__(self, symmetries: Sequence[str], generator: Generator) -> None:
        super().__init__(rng=generator)
        self.symmetries = symmetries

    def _get_params(self, x: Tensor) -> dict[str, Tensor]:
        return {"number": torch.randint(2**62, (1,), generator=self.rng)}

    def _places(self, x: Tensor, number: Tensor) -> Tensor:
        generator = generator_for(int(number), "elements")
        height, width = x.shape[2:]
        return draw_places(len(x), (height, width), self.symmetries, generator)

    def _transform(self, x: Tensor, number: Tensor, **kwargs: Any) -> Tensor:
        return moved(x, self._places(x, number))

    @override
    def inverse(self, x: Tensor, batchwise: bool = True, *, number: Tensor) -> Tensor:
        return moved(x, self._places(x, number).argsort(1))


class Recorrupted(R2RLoss):  # type: ignore[misc]
    """R2R of what a split gives f; the noise is drawn by whoever uses it.

    deepinv's own model draws it from the global stream, with one level for all, and hands a split
    no masks.

    Arguments:
        y: The recorrupted measurements that f is given.
        alpha: Of :func:`deepinv_alpha`.
    """

    def __init__(self, y: Tensor, alpha: float) -> None:
        super().__init__(alpha=alpha)
        self.y = y

    def adapt_model(self, model: nn.Module, **kwargs: Any) -> nn.Module:
        """Leave the model as it is."""
        return model

    def forward(self, x_net: Tensor, y: Tensor, physics: Any, model: Any, **kwargs: Any) -> Tensor:
        """Return the loss on the entries of y that f was given: all, or those of a split."""
        kept = model.get_masks()[-1] if hasattr(model, "get_masks") else 1.0
        return super().forward(x_net, y, physics, Corrupted(self.y * kept))


class Corrupted:
    """What R2R asks its model for."""

    def __init__(self, y: Tensor) -> None:
        self.y = y

    def get_corruption(self) -> Tensor:
        """Return what the model was given."""
        return self.y


def deepinv_alpha(alpha: float) -> float:
    r"""Return deepinv's alpha, of noise :math:`\sqrt{\alpha/(1-\alpha)}\,\sigma`, of R2R's own."""
    return alpha**2 / (1 + alpha**2)
