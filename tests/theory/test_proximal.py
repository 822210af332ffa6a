"""Proximal Frechet distance: at its floor for clean images, far above for others, needs no x."""

import pytest
import torch

from cleanprior.data import Measurements
from cleanprior.evaluation.metrics.features import Classifier, Pixels
from cleanprior.evaluation.metrics.proximal import Proximal, corrupt
from cleanprior.evaluation.metrics.restoration import frechet_distance

OPERATORS = [("inpainting", "p=0.5"), ("inpainting", "sigma=0.3"), ("denoising", "sigma=0.3")]


@pytest.fixture(scope="module", params=["pixels", "classifier"])
def features(request, digits_data, tmp_path_factory):
    if request.param == "pixels":
        return Pixels()
    return Classifier.of(digits_data, tmp_path_factory.getbasetemp())


@pytest.mark.parametrize(("name", "override"), OPERATORS)
def test_clean_images_are_at_the_floor_and_zeros_far_above(
    digits_data, make_operator, features, name, override
):
    # Both parts from one split: the classifier has met them alike.
    order = torch.randperm(1437, generator=torch.Generator().manual_seed(0))
    x, others = digits_data.train[order[:360]], digits_data.train[order[360:]]
    operator = make_operator(name, (1, 8, 8), override)
    measured = Measurements.draw(others, operator, 0, "train")
    proximal = Proximal(features, operator, measured, 0)
    found, floor, ceiling = proximal(x), proximal.floor(360).mean, proximal.ceiling(360)
    # Other images of the law, and a finite reference: above the floor, and not far.
    assert floor < found < 3 * floor
    assert ceiling > 8 * floor
    # Wrong images that are not trivial: shifted by a pixel, and of half the contrast.
    assert proximal(x.roll(1, 3)) > 2 * floor
    assert proximal(x / 2) > 2 * floor


def test_the_corruption_is_fresh_and_the_same_each_time(digits_data, make_operator):
    operator = make_operator("inpainting", (1, 8, 8), "sigma=0.1")
    measured = Measurements.draw(digits_data.train[:50], operator, 0, "train")
    proximal = Proximal(Pixels(), operator, measured, 0)
    x = digits_data.train[:50]
    assert proximal(x) == proximal(x)
    assert proximal(x) != Proximal(Pixels(), operator, measured, 1)(x)
    lifted = corrupt(x, operator, torch.Generator().manual_seed(0))
    assert not torch.equal(lifted, operator.lift(measured.y, measured.params))


def test_the_distance_is_the_one_of_lifted_measurements(digits_data, make_operator):
    """Without noise and randomness it is the distance of the images through the operator."""
    operator = make_operator("downsampling", (1, 8, 8), "sigma=0.0")
    measured = Measurements.draw(digits_data.train, operator, 0, "train")
    features = Pixels()
    seen = [operator.A_dagger(operator.A(x, {}), {}) for x in (digits_data.train, digits_data.test)]
    expected = frechet_distance(features(seen[0]), features(seen[1]))
    found = Proximal(features, operator, measured, 0)(digits_data.test)
    assert found == pytest.approx(expected, rel=1e-6)
    # Blind to what the operator hides.
    hidden = digits_data.test - seen[1]
    other = Proximal(features, operator, measured, 0)(digits_data.test + hidden)
    assert other == pytest.approx(found, rel=1e-3)


def test_measurements_that_were_not_simulated_bring_their_own_law(digits_data, make_operator):
    """Masks of p = 0.8 and noise of 0.2, and an operator that would draw p = 0.5 without noise."""
    other = make_operator("inpainting", (1, 8, 8), "p=0.8", "sigma=0.2")
    measured = Measurements.draw(digits_data.train, other, 0, "train")
    operator = make_operator("inpainting", (1, 8, 8), "p=0.5")
    own = Proximal(Pixels(), operator, measured, 0, is_simulated=False)
    floor = own.floor(360).mean
    assert own(digits_data.test) < 2 * floor
    assert Proximal(Pixels(), operator, measured, 0)(digits_data.test) > 3 * floor


def test_drawn_again_each_image_has_the_noise_level_of_its_parameters(digits_data, make_operator):
    operator = make_operator("inpainting", (1, 8, 8))
    x = digits_data.train[:500]
    drawn = Measurements.draw(x, operator, 0, "train")
    half = torch.arange(500) < 250
    params = {"mask": torch.where(half[:, None, None, None], 1.0, drawn.params["mask"])}
    sigma_y = torch.where(half, 0.3, 0.1)
    like = Measurements(drawn.y, params, sigma_y)
    zeros = torch.zeros(2000, 1, 8, 8)
    lifted = corrupt(zeros, operator, torch.Generator().manual_seed(0), like)
    seen = (lifted != 0).flatten(1)
    full = seen.all(1)
    assert 0.4 < full.float().mean() < 0.6
    assert lifted.flatten(1)[full].std().item() == pytest.approx(0.3, rel=0.02)
    assert lifted.flatten(1)[~full][seen[~full]].std().item() == pytest.approx(0.1, rel=0.02)


def test_the_floor_is_that_of_the_law_of_the_measurements_at_equal_number(
    digits_data, make_operator
):
    operator = make_operator("denoising", (1, 8, 8), "sigma=0.2")
    measured = Measurements.draw(digits_data.train[:200], operator, 0, "train")
    proximal = Proximal(Pixels(), operator, measured, 0)
    assert proximal.floor(50).mean > 3 * proximal.floor(200).mean > 9 * proximal.floor(2000).mean
    assert proximal.floor(100) == proximal.floor(100)


def test_another_number_corrupts_by_other_draws(digits_data, make_operator):
    operator = make_operator("inpainting", (1, 8, 8))
    measured = Measurements.draw(digits_data.train[:100], operator, 0, "train")
    proximal = Proximal(Pixels(), operator, measured, 0)
    x = digits_data.test[:60]
    assert proximal(x, 1) != proximal(x) == proximal(x, 0)
