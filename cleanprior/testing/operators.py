"""What every operator promises."""

from collections.abc import Callable
from typing import ClassVar

import torch

from ..config import registry
from ..config.capabilities import CAPABILITIES
from ..data.measurements import Measurements
from ..errors import UserError
from ..operators.base import ImageShape, Operator, Params, take
from ..seeding import generator_for
from .cards import check_card
from .parts import make_operator, no_global_randomness, uniform


def draw(operator: Operator, n: int, seed: int = 0) -> Params:
    """Draw parameters of ``n`` images."""
    return operator.draw(n, generator_for(seed, "params"))


def check_adjoint(operator: Operator, tolerance: float = 1e-6) -> None:
    r"""Check that :math:`\langle A x, y\rangle = \langle x, A^\top y\rangle` for each image.

    Operators compute in float32; sums and norms are float64, so that what is left is the operator's
    own rounding.
    """
    params = draw(operator, 5)
    x = uniform((5, *operator.image_shape), 1)
    forward = operator.A(x, params)
    y = uniform(tuple(forward.shape), 2)
    backward = operator.A_adjoint(y, params)
    left = (forward.double() * y.double()).flatten(1).sum(1)
    right = (x.double() * backward.double()).flatten(1).sum(1)
    size = forward.double().flatten(1).norm(dim=1) * y.double().flatten(1).norm(dim=1)
    error = ((left - right).abs() / size).max().item()
    assert error < tolerance, f"A_adjoint is not the transpose of A: relative error {error:.2g}"


def check_pseudo_inverse(operator: Operator, tolerance: float = 1e-4) -> None:
    r"""Check that :math:`A A^+ A x = A x`."""
    params = draw(operator, 4)
    y = operator.A(uniform((4, *operator.image_shape)), params)
    again = operator.A(operator.A_dagger(y, params), params)
    size = y.double().flatten(1).norm(dim=1)
    error = ((again - y).double().flatten(1).norm(dim=1) / size).max().item()
    assert error < tolerance, f"A A_dagger y is not y: relative error {error:.2g}"


def check_normal(operator: Operator) -> None:
    r"""Check that :meth:`Operator.normal` is :math:`A^\top A`, each image on its own."""
    params = draw(operator, 4)
    x = uniform((4, *operator.image_shape))
    expected = operator.A_adjoint(operator.A(x, params), params)
    torch.testing.assert_close(operator.normal(params)(x), expected, rtol=1e-4, atol=1e-5)


def check_seeds(make: Callable[[], Operator]) -> None:
    """Check that a seed decides every byte of parameters and noise, and nothing else does.

    Arguments:
        make: Makes the operator anew, with a noise level above 0.
    """
    x = uniform((3, *make().image_shape))

    def measure(seed: int) -> tuple[Params, torch.Tensor]:
        operator = make()
        params = draw(operator, 3, seed)
        return params, operator.measure(x, params, generator_for(seed, "noise"))

    with no_global_randomness():
        params, y = measure(0)
    params_again, y_again = measure(0)
    assert torch.equal(y, y_again), "one seed gives two measurements"
    assert params.keys() == params_again.keys(), "one seed gives two sets of parameters"
    assert all(torch.equal(params[k], params_again[k]) for k in params), (
        "one seed gives two sets of parameters"
    )
    assert not torch.equal(y, measure(1)[1]), "another seed gives the same measurement"


def check_batches(operator: Operator) -> None:
    """Check that an image's result does not depend on the batch that it is in."""
    params = draw(operator, 4)
    x = uniform((4, *operator.image_shape))
    y = operator.A(x, params)
    for apply, inputs in (
        (operator.A, x),
        (operator.A_adjoint, y),
        (operator.A_dagger, y),
        (operator.lift, y),
        (operator.observed, y),
    ):
        together = apply(inputs, params)
        alone = [apply(inputs[i : i + 1], take(params, slice(i, i + 1))) for i in range(4)]
        torch.testing.assert_close(torch.cat(alone), together, rtol=1e-5, atol=1e-6)


def check_nothing_stays(operator: Operator) -> None:
    """Check that a call does not depend on the parameters of the one before."""
    first, second = draw(operator, 3, seed=1), draw(operator, 3, seed=2)
    x = uniform((3, *operator.image_shape))
    y, lifted = operator.A(x, first), operator.A_dagger(operator.A(x, first), first)
    operator.A(x, second)
    operator.A_adjoint(operator.A(x[:1], take(second, slice(0, 1))), take(second, slice(0, 1)))
    assert torch.equal(operator.A(x, first), y), "a call depends on the one before"
    assert torch.equal(operator.A_dagger(y, first), lifted), "a call depends on the one before"


def check_matrix(operator: Operator) -> None:
    """Check that the dense matrix is the operator, which makes it linear."""
    params = draw(operator, 3)
    x = uniform((3, *operator.image_shape))
    dense = operator.matrix(params, 3) @ x.flatten(1).double()[:, :, None]
    expected = operator.A(x, params).flatten(1).double()
    torch.testing.assert_close(dense[:, :, 0], expected, rtol=1e-5, atol=1e-6)


def check_capabilities(operator: Operator, name: str) -> None:
    """Check that the YAML's capabilities say what the operator does."""
    written = registry.read("operator", name)["capabilities"]
    has = operator.capabilities
    assert frozenset(written) == has, f"the YAML says {sorted(written)}, the class {sorted(has)}"
    assert has <= set(CAPABILITIES), f"unknown: {sorted(has - set(CAPABILITIES))}"
    params = draw(operator, 6)
    x = uniform((6, *operator.image_shape))
    y = operator.A(x, params)
    assert ("random" in has) != ("fixed" in has), "an operator is either random or fixed"
    assert ("random" in has) == bool(params), "random: draw() returns parameters"
    assert all(len(v) == 6 for v in params.values()), "parameters have one entry an image"
    assert ("same_shape" in has) == (y.shape == x.shape), "same_shape: y has the shape of x"
    assert ("identity" in has) == torch.equal(operator.A(x, params), x), "identity: A x = x"
    described = operator.describe(params, 6)
    shown = 0 if described is None else described.shape[1]
    assert operator.description_channels == shown, "description_channels: those of describe()"
    if "further" in has:
        operator.further(params, 0.1, generator_for(0, "further"))
        return
    try:
        operator.further(params, 0.1, generator_for(0, "further"))
    except ValueError as error:
        assert "no further corruption" in str(error)
    else:
        raise AssertionError("further() works and the capability 'further' is not declared")


def check_noise(operator: Operator) -> None:
    """Check that the noise has the stated level, on entries that were measured only.

    Arguments:
        operator: One with a noise level above 0.
    """
    sigma, n = operator.sigma, 200
    x = uniform((n, *operator.image_shape))
    params = draw(operator, n)
    clean = operator.A(x, params)
    y = operator.measure(x, params, generator_for(0, "noise"))
    seen = operator.observed(y, params)
    assert set(seen.unique().tolist()) <= {0.0, 1.0}, "observed() returns 0 and 1"
    noise = (y - clean)[seen.bool()].double()
    count = noise.numel()
    assert abs(noise.mean()) < 4 * sigma / count**0.5, "the noise has a mean"
    assert abs(noise.var() / sigma**2 - 1) < 4 * (2 / count) ** 0.5, "the noise has another level"
    assert (y[~seen.bool()] == 0).all(), "what was not measured is 0"


def check_no_noise(operator: Operator) -> None:
    """Check that ``sigma=0`` means exactly A x, in memory of its own."""
    assert operator.sigma == 0
    x = uniform((4, *operator.image_shape))
    params = draw(operator, 4)
    y = operator.measure(x, params, generator_for(0, "noise"))
    assert torch.equal(y, operator.A(x, params)), "without noise y is A x"
    data = Measurements.draw(x, operator, 0, "train")
    before = data.y.clone()
    x.fill_(float("nan"))
    assert torch.equal(data.y, before), "measurements share memory with the clean images"


def check_refuses_noise_level(make: Callable[[str], Operator]) -> None:
    """Check that a noise level that is none is refused.

    Arguments:
        make: Makes the operator with an override such as ``sigma=-0.1``.
    """
    for sigma in ("-0.1", "inf", "nan"):
        try:
            make(f"sigma={sigma}")
        except UserError:
            continue
        raise AssertionError(f"sigma={sigma} is let pass; allowed: a finite number from 0")


class OperatorContract:
    """Tests of one operator.

    Attributes:
        name: Its configuration.
        shape: Shape of images that it takes, (channels, height, width); small: some tests make
            dense matrices.
        overrides: Its keys, e.g. ``("p=0.3",)``.
    """

    name: ClassVar[str]
    shape: ClassVar[ImageShape] = (1, 8, 8)
    overrides: ClassVar[tuple[str, ...]] = ()

    def make(self, *overrides: str) -> Operator:
        """Build the operator."""
        return make_operator(self.name, self.shape, *self.overrides, *overrides)

    def test_the_yaml_has_a_key_for_every_argument(self) -> None:
        check_card("operator", self.name, handed=("image_shape",))

    def test_capabilities_say_what_the_operator_does(self) -> None:
        check_capabilities(self.make(), self.name)

    def test_adjoint_is_the_transpose(self) -> None:
        check_adjoint(self.make())

    def test_pseudo_inverse_reproduces_the_measurement(self) -> None:
        check_pseudo_inverse(self.make())

    def test_the_normal_map_is_the_adjoint_of_the_operator(self) -> None:
        check_normal(self.make())

    def test_same_seed_gives_the_same_bytes(self) -> None:
        check_seeds(lambda: self.make("sigma=0.3"))

    def test_an_image_does_not_depend_on_its_batch(self) -> None:
        check_batches(self.make())

    def test_a_call_leaves_nothing_behind(self) -> None:
        check_nothing_stays(self.make())

    def test_matrix_is_the_operator(self) -> None:
        check_matrix(self.make())

    def test_noise_has_the_stated_level(self) -> None:
        check_noise(self.make("sigma=0.25"))

    def test_no_noise_means_exactly_a_x(self) -> None:
        check_no_noise(self.make("sigma=0"))

    def test_a_noise_level_that_is_none_is_refused(self) -> None:
        check_refuses_noise_level(self.make)
