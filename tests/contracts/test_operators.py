"""What every operator promises, over every operator YAML that is installed."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cleanprior.config import registry
from cleanprior.config.capabilities import CAPABILITIES
from cleanprior.data import Measurements
from cleanprior.errors import UserError
from cleanprior.operators.masks import further_mask
from cleanprior.seeding import generator_for
from cleanprior.testing import check_card
from cleanprior.testing import operators as promises
from cleanprior.testing.operators import draw
from cleanprior.testing.parts import uniform

NAMES = sorted(registry.options("operator"))
SHAPES = [(1, 8, 8), (3, 16, 16)]
CHANNELS = {"mri": 2, "mri_multicoil": 2}


def fit(name, shape):
    """Give a shape the channels that the operator takes."""
    return (CHANNELS.get(name, shape[0]), *shape[1:])


GRID = [(name, fit(name, shape)) for name in NAMES for shape in SHAPES]
over_grid = pytest.mark.parametrize(("name", "shape"), GRID)
over_names = pytest.mark.parametrize("name", NAMES)


@over_grid
def test_adjoint_is_the_transpose(make_operator, name, shape):
    promises.check_adjoint(make_operator(name, shape))


@over_grid
def test_the_normal_map_is_the_adjoint_of_the_operator(make_operator, name, shape):
    promises.check_normal(make_operator(name, shape))


@over_grid
def test_pseudo_inverse_reproduces_the_measurement(make_operator, name, shape):
    promises.check_pseudo_inverse(make_operator(name, shape))


@over_grid
def test_same_seed_gives_the_same_bytes_and_another_seed_does_not(make_operator, name, shape):
    promises.check_seeds(lambda: make_operator(name, shape, "sigma=0.3"))


@over_grid
def test_an_image_does_not_depend_on_its_batch(make_operator, name, shape):
    promises.check_batches(make_operator(name, shape))


@over_grid
def test_a_call_leaves_nothing_behind_for_the_next_one(make_operator, name, shape):
    promises.check_nothing_stays(make_operator(name, shape))


@over_names
def test_matrix_is_the_operator(make_operator, name):
    promises.check_matrix(make_operator(name, (2, 8, 10)))


@over_names
def test_an_operator_has_the_capabilities_of_its_yaml(make_operator, name):
    written = registry.read("operator", name)["capabilities"]
    made = make_operator(name, fit(name, (1, 8, 8)))
    assert frozenset(written) == made.capabilities
    assert type(made).capabilities == frozenset()  # they are written in the YAML alone
    assert set(written) <= set(CAPABILITIES)


@over_names
def test_every_constructor_argument_has_a_yaml_key(name):
    check_card("operator", name, handed=("image_shape",))


@over_names
def test_capabilities_say_what_the_operator_does(make_operator, name):
    promises.check_capabilities(make_operator(name, fit(name, (3, 8, 8))), name)


@over_names
def test_noise_has_the_stated_level_on_observed_entries_only(make_operator, name):
    promises.check_noise(make_operator(name, fit(name, (1, 16, 16)), "sigma=0.25"))


@over_names
def test_no_noise_means_exactly_a_x(make_operator, name):
    promises.check_no_noise(make_operator(name, fit(name, (1, 8, 8)), "sigma=0"))


@over_names
def test_measurements_do_not_share_memory_with_the_clean_images(make_operator, name):
    shape = fit(name, (1, 8, 8))
    operator = make_operator(name, shape, "sigma=0")
    x = uniform((4, *shape))
    data = Measurements.draw(x, operator, 0, "train")
    before = data.y.clone()
    x.fill_(float("nan"))
    assert torch.equal(data.y, before)


@over_names
@pytest.mark.parametrize("sigma", ["-0.1", "inf", "nan"])
def test_a_noise_level_that_is_none_is_refused(make_operator, name, sigma):
    with pytest.raises(UserError, match=r"allowed: at least 0|allowed: a finite number"):
        make_operator(name, fit(name, (1, 8, 8)), f"sigma={sigma}")


@pytest.mark.parametrize("per_channel", [False, True])
def test_inpainting_reveals_one_minus_p(make_operator, per_channel):
    p, n = 0.3, 400
    operator = make_operator("inpainting", (3, 8, 8), f"p={p}", f"per_channel={per_channel}")
    mask = draw(operator, n)["mask"]
    assert mask.shape == (n, 3 if per_channel else 1, 8, 8)
    assert abs(mask.mean() - (1 - p)) < 4 * (p * (1 - p) / mask.numel()) ** 0.5
    seen = operator.observed(torch.ones(n, 3, 8, 8), {"mask": mask})
    assert seen.shape == (n, 3, 8, 8)
    assert torch.equal(seen, mask.expand(n, 3, 8, 8))


def test_masks_of_different_images_differ(make_operator):
    mask = draw(make_operator("inpainting", (1, 8, 8)), 50)["mask"].flatten(1)
    assert len(mask.unique(dim=0)) == 50


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    p=st.floats(0, 0.95),
    delta=st.floats(0, 0.95),
    channels=st.integers(1, 3),
    seed=st.integers(0, 2**31),
)
def test_further_mask_shows_no_more_than_the_mask(p, delta, channels, seed):
    mask = (torch.rand(7, channels, 4, 4, generator=generator_for(seed, "m")) >= p).float()
    further = further_mask(mask, delta, generator_for(seed, "f"))
    assert set(further.unique().tolist()) <= {0.0, 1.0}
    assert (further <= mask).all()
    if delta == 0:
        assert torch.equal(further, mask)


@pytest.mark.parametrize(("p", "delta"), [(0.2, 0.1), (0.5, 0.1), (0.6, 0.3)])
def test_further_corruption_survives_with_its_rate(make_operator, p, delta):
    operator = make_operator("inpainting", (1, 16, 16), f"p={p}")
    params = draw(operator, 400)
    further = operator.further(params, delta, generator_for(0, "further"))["mask"]
    rate = (1 - p) * (1 - delta)
    assert abs(further.mean() - rate) < 4 * (rate * (1 - rate) / further.numel()) ** 0.5
    hidden = params["mask"][further == 0]
    scored = (1 - p) * delta / (p + (1 - p) * delta)
    assert abs(hidden.mean() - scored) < 4 * (scored * (1 - scored) / hidden.numel()) ** 0.5


@pytest.mark.parametrize("delta", [-0.1, 1.0, float("nan")])
def test_further_refuses_what_is_no_probability(delta):
    with pytest.raises(ValueError, match=r"not a probability of erasing; allowed: \[0, 1\)"):
        further_mask(torch.ones(1, 1, 2, 2), delta, generator_for(0, "f"))


@pytest.mark.parametrize("p", ["-0.1", "1", "1.5"])
def test_inpainting_refuses_what_is_no_share(make_operator, p):
    with pytest.raises(UserError, match=r"operator\.p=.*; allowed: \[0, 1\)"):
        make_operator("inpainting", (1, 8, 8), f"p={p}")


@pytest.mark.parametrize("size", [2, 9, 0, -1])
def test_blur_refuses_a_kernel_that_does_not_fit(make_operator, size):
    with pytest.raises(UserError, match="odd numbers from 1 to 8|allowed: at least 1"):
        make_operator("blur", (1, 8, 8), f"kernel_size={size}")


def test_blur_refuses_a_kernel_of_no_width(make_operator):
    with pytest.raises(UserError, match="blur_std=.*; allowed: above 0"):
        make_operator("blur", (1, 8, 8), "blur_std=0")


def test_blur_keeps_constants_and_smooths_with_periodic_edges(make_operator):
    operator = make_operator("blur", (1, 8, 8), "blur_std=1", "kernel_size=5")
    constant = torch.full((1, 1, 8, 8), 0.7)
    torch.testing.assert_close(operator.A(constant, {}), constant)
    point = torch.zeros(1, 1, 8, 8)
    point[..., 0, 0] = 1
    blurred = operator.A(point, {})[0, 0]
    line = torch.exp(-0.5 * torch.arange(-2.0, 3.0) ** 2)
    kernel = torch.outer(line, line) / line.sum() ** 2
    expected = torch.zeros(8, 8)
    expected[:5, :5] = kernel
    expected = expected.roll((-2, -2), (0, 1))
    torch.testing.assert_close(blurred, expected, atol=1e-6, rtol=1e-5)
