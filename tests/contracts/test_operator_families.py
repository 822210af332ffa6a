"""What single operator families promise: their law, further corruption, closed forms, refusals."""

import math

import pytest
import torch

from cleanprior.errors import UserError
from cleanprior.operators.blur import line_kernel
from cleanprior.seeding import generator_for

RANDOM = [("box", (1, 8, 8)), ("compressed_sensing", (1, 8, 8)), ("mri", (2, 8, 8))]


def uniform(shape, seed=0):
    return 2 * torch.rand(shape, generator=generator_for(seed, "x")) - 1


def draw(operator, n, seed=0):
    return operator.draw(n, generator_for(seed, "params"))


@pytest.mark.parametrize(("name", "shape"), RANDOM)
def test_further_corruption_erases_entries_of_y(make_operator, name, shape):
    """A~ x is y with entries erased, so that it can be computed from y alone."""
    operator = make_operator(name, shape)
    params = draw(operator, 50)
    further = operator.further(params, 0.1, generator_for(0, "further"))
    x = uniform((50, *shape))
    y = operator.A(x, params)
    before, after = operator.observed(y, params), operator.observed(y, further)
    assert (after <= before).all()
    assert ((before - after).flatten(1).sum(1) > 0).all()
    torch.testing.assert_close(operator.A(x, further), after * y, rtol=1e-5, atol=1e-6)
    other = operator.further(params, 0.1, generator_for(1, "further"))
    assert not torch.equal(operator.observed(y, other), after)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 9, 14)])
def test_two_boxes_have_their_size_and_never_overlap(make_operator, shape):
    operator = make_operator("box", shape, "side=3")
    params = draw(operator, 500)
    further = operator.further(params, 0.1, generator_for(0, "further"))["mask"]
    assert params["mask"].shape == (500, 1, *shape[1:])
    assert ((1 - params["mask"]).flatten(1).sum(1) == 9).all()
    assert ((1 - further).flatten(1).sum(1) == 18).all()
    places = len(params["mask"].flatten(1).unique(dim=0))
    assert places > 0.9 * (shape[1] - 2) * (shape[2] - 2)


def test_a_box_and_its_partner_are_found_again(make_operator):
    operator = make_operator("box", (1, 8, 8), "side=3", "overlap=true")
    first = torch.randint(36, (300,), generator=generator_for(0, "a"))
    second = torch.randint(36, (300,), generator=generator_for(0, "b"))
    found = operator._places(operator._mask(first) * operator._mask(second))
    assert torch.equal(found.sort(1).values, torch.stack([first, second], 1).sort(1).values)


@pytest.mark.parametrize(
    ("shape", "overlap", "side", "limit"),
    [
        ((1, 8, 8), "false", 4, 3),
        ((1, 8, 8), "false", 0, 3),
        ((1, 8, 8), "true", 5, 4),
        ((1, 4, 5), "false", 3, 2),
    ],
)
def test_boxes_that_leave_no_room_are_refused(make_operator, shape, overlap, side, limit):
    with pytest.raises(
        UserError,
        match=f"side={side} does not leave room.*allowed: 1 to {limit}|side=0; allowed: at least",
    ):
        make_operator("box", shape, f"side={side}", f"overlap={overlap}")


def test_every_first_box_leaves_room_for_a_second(make_operator):
    for size in range(2, 12):
        side = (size + 1) // 3
        operator = make_operator("box", (1, size, size), f"side={side}")
        places = torch.arange((size - side + 1) ** 2)
        assert operator._allowed(places).any(1).all()
        if size > 2:
            with pytest.raises(UserError, match="leave room"):
                make_operator("box", (1, size, size), f"side={side + 1}")


def test_gaussian_rows_have_their_variance_and_differ_between_images(make_operator):
    operator = make_operator("compressed_sensing", (1, 8, 8), "m=16")
    matrix = draw(operator, 200)["matrix"].double()
    assert matrix.shape == (200, 16, 64)
    n = matrix.numel()
    assert abs(matrix.mean()) < 4 * (1 / 16 / n) ** 0.5
    assert abs(16 * matrix.var() - 1) < 4 * (2 / n) ** 0.5
    assert not torch.equal(matrix[0], matrix[1])
    assert operator.A(uniform((3, 1, 8, 8)), draw(operator, 3)).shape == (3, 16)


def test_a_dropped_row_leaves_no_trace_in_the_parameters(make_operator):
    operator = make_operator("compressed_sensing", (1, 8, 8), "m=4")
    params = draw(operator, 200)
    further = operator.further(params, 0.1, generator_for(0, "f"))
    assert (further["rows"].sum(1) == 3).all()
    assert (further["matrix"][further["rows"] == 0] == 0).all()
    rates = 1 - further["rows"].mean(0)
    assert (rates - 0.25).abs().max() < 4 * (0.25 * 0.75 / 200) ** 0.5


def test_the_pseudo_inverse_of_rows_is_that_of_linear_algebra(make_operator):
    operator = make_operator("compressed_sensing", (1, 4, 4), "m=10")
    params = operator.further(draw(operator, 3), 0.1, generator_for(0, "f"))
    y = torch.randn(3, 10, generator=generator_for(0, "y"))
    expected = torch.linalg.pinv(operator.matrix(params, 3)) @ y.double()[:, :, None]
    found = operator.A_dagger(y, params).flatten(1).double()
    torch.testing.assert_close(found, expected[:, :, 0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("m", [0, 65])
def test_rows_that_no_image_has_are_refused(make_operator, m):
    with pytest.raises(UserError, match="allowed: 1 to 64|m=0; allowed: at least 1"):
        make_operator("compressed_sensing", (1, 8, 8), f"m={m}")


def test_mri_measures_the_centre_and_the_stated_number_of_lines(make_operator):
    operator = make_operator("mri", (2, 12, 16), "acceleration=2", "centre_lines=4")
    params = draw(operator, 300)
    lines = params["mask"][:, 0, 0]
    assert (lines.sum(1) == 8).all()
    assert (lines[:, 6:10] == 1).all()
    outside = torch.cat([lines[:, :6], lines[:, 10:]], 1).mean(0)
    assert (outside - 4 / 12).abs().max() < 4 * (4 / 12 * 8 / 12 / 300) ** 0.5
    further = operator.further(params, 0.1, generator_for(0, "f"))["mask"][:, 0, 0]
    assert (further.sum(1) == 7).all()
    assert (further[:, 6:10] == 1).all()
    y = operator.A(uniform((300, 2, 12, 16)), params)
    assert (y.abs().amax((1, 2)) > 0).float().equal(lines)


def test_mri_is_the_orthonormal_fourier_transform(make_operator):
    operator = make_operator("mri", (2, 8, 8), "acceleration=1", "centre_lines=4")
    x = uniform((2, 2, 8, 8))
    y = operator.A(x, draw(operator, 2))
    shifted = torch.fft.ifftshift(torch.complex(x[:, 0], x[:, 1]), dim=(1, 2))
    expected = torch.fft.fftshift(torch.fft.fft2(shifted, norm="ortho"), dim=(1, 2))
    torch.testing.assert_close(torch.complex(y[:, 0], y[:, 1]), expected)


def test_k_space_is_lifted_to_the_zero_filled_image(make_operator):
    operator = make_operator("mri", (2, 8, 8))
    params = draw(operator, 3)
    y = operator.A(uniform((3, 2, 8, 8)), params)
    assert not operator.is_image(y)
    torch.testing.assert_close(operator.lift(y, params), operator.A_adjoint(y, params))
    assert not torch.allclose(operator.lift(y, params), y, atol=1e-2)


@pytest.mark.parametrize(
    ("shape", "override", "message"),
    [
        ((1, 8, 8), "sigma=0", r"needs complex images.*have 1 channel\(s\), allowed: 2"),
        ((2, 8, 8), "acceleration=0", "acceleration=0; allowed: at least 1"),
        ((2, 8, 8), "centre_lines=4", "together at most 4"),
        ((2, 8, 8), "further_lines=0", "allowed: at least 1"),
    ],
)
def test_mri_refuses_what_it_cannot_measure(make_operator, shape, override, message):
    with pytest.raises(UserError, match=message):
        make_operator("mri", shape, override)


@pytest.mark.parametrize("name", ["bicubic", "bilinear", "sinc"])
def test_downsampling_inverts_exactly_on_its_range(make_operator, name):
    operator = make_operator("downsampling", (1, 32, 32), f"filter={name}")
    y = uniform((2, 1, 16, 16))
    torch.testing.assert_close(operator.A(operator.A_dagger(y, {}), {}), y, rtol=1e-4, atol=1e-4)


def test_the_pseudo_inverse_of_downsampling_is_that_of_linear_algebra(make_operator):
    operator = make_operator("downsampling", (1, 8, 8))
    y = uniform((2, 1, 4, 4))
    expected = torch.linalg.pinv(operator.matrix({}, 1)[0]) @ y.flatten(1).double().T
    found = operator.A_dagger(y, {}).flatten(1).double()
    torch.testing.assert_close(found, expected.T, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(operator.lift(y, {}), operator.A_dagger(y, {}))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("factor=3", "factor=3 does not divide images of 8x8; allowed: 2, 4, 8"),
        ("factor=1", "allowed: 2, 4, 8"),
        ("filter=lanczos", "filter=lanczos; allowed: bicubic, bilinear, sinc"),
    ],
)
def test_downsampling_refuses_what_does_not_fit(make_operator, override, message):
    with pytest.raises(UserError, match=message):
        make_operator("downsampling", (1, 8, 8), override)


@pytest.mark.parametrize("filter", ["bicubic", "sinc"])
def test_a_filter_larger_than_the_image_is_refused(make_operator, filter):
    with pytest.raises(UserError, match="is larger than images of 4x4"):
        make_operator("downsampling", (1, 4, 4), f"filter={filter}")


def test_a_motion_along_a_row_is_a_box_filter():
    torch.testing.assert_close(line_kernel(1.0, 40.0), torch.ones(1, 1))
    row = line_kernel(3.0, 0.0)
    assert row.shape == (3, 3)
    torch.testing.assert_close(row[1], torch.tensor([0.25, 0.5, 0.25]), atol=0.01, rtol=0)
    torch.testing.assert_close(line_kernel(3.0, 90.0), row.T, atol=1e-6, rtol=0)


@pytest.mark.parametrize("angle", [0.0, 30.0, 45.0, 120.0])
def test_a_motion_kernel_points_along_its_angle(angle):
    kernel = line_kernel(7.0, angle).double()
    grid = torch.arange(-3.0, 4.0).double()
    assert abs(kernel.sum() - 1) < 1e-6
    torch.testing.assert_close(kernel, kernel.flip((0, 1)))
    cross = -(kernel * grid[:, None] * grid).sum()
    spread = (kernel * (grid**2 - grid[:, None] ** 2)).sum()
    found = 0.5 * math.degrees(math.atan2(2 * cross, spread))
    assert abs((found - angle + 90) % 180 - 90) < 1


@pytest.mark.parametrize("length", [0.5, 8])
def test_a_motion_that_does_not_fit_is_refused(make_operator, length):
    with pytest.raises(UserError, match="allowed: 1 to 7 pixels|length=0.5; allowed: at least 1"):
        make_operator("motion_blur", (1, 8, 8), f"length={length}")
