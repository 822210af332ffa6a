"""Memorisation: copies score 1, held-out images their nominal rate."""

import pytest
import torch

from cleanprior.evaluation.metrics.features import Classifier, Pixels
from cleanprior.evaluation.metrics.memorisation import (
    memorisation,
    nearest_similarity,
    ratio_share,
    threshold,
)


@pytest.fixture(scope="module", params=["pixels", "classifier"])
def features(request, digits_data, tmp_path_factory):
    if request.param == "pixels":
        return Pixels()
    return Classifier.of(digits_data, tmp_path_factory.getbasetemp())


def compare(x, data, features, held_out=None):
    held_out = data.test if held_out is None else held_out
    training = features(data.train)
    limit = threshold(features(held_out), training)
    return memorisation(x, features(x), data.train, training, limit)


def test_copies_of_training_images_score_one_and_are_found(digits_data, features):
    chosen = torch.randperm(1437, generator=torch.Generator().manual_seed(0))[:100]
    found = compare(digits_data.train[chosen], digits_data, features)
    assert found.share == 1
    assert found.ratio_share == 1
    same = digits_data.train[found.nearest] == digits_data.train[chosen]
    assert same.flatten(1).all(1).float().mean() > 0.98


def test_held_out_images_score_about_the_nominal_rate(digits_data, features):
    """Half of the held-out images set the threshold; .1 % of the other 180 is .2 of an image."""
    order = torch.randperm(360, generator=torch.Generator().manual_seed(0))
    first, second = digits_data.test[order[:180]], digits_data.test[order[180:]]
    found = compare(second, digits_data, features, first)
    assert found.share <= 0.03
    assert found.ratio_share <= 0.01


def test_the_threshold_has_the_nominal_rate_on_many_images():
    """20,000 held-out and 20,000 others of one law: 20 above, standard deviation about 6."""
    generator = torch.Generator().manual_seed(0)
    training, held_out, others = (
        torch.randn(n, 3, generator=generator, dtype=torch.float64).numpy()
        for n in (50, 20_000, 20_000)
    )
    limit = threshold(held_out, training)
    share = (nearest_similarity(others, training)[0] > limit).double().mean().item()
    assert 0.0002 < share < 0.002


def test_a_share_of_copies_among_others_is_told(digits_data, features):
    x = torch.cat([digits_data.train[:30], digits_data.test[:90]])
    found = compare(x, digits_data, features)
    assert found.share == pytest.approx(0.25, abs=0.02)
    assert found.ratio_share == pytest.approx(0.25, abs=0.01)
    assert set(found.closest(30).tolist()) == set(range(30))


def test_near_copies_count_in_pixels(digits_data):
    x = digits_data.train[:50]
    near = x + 0.02 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    assert ratio_share(near, digits_data.train) > 0.9
    assert ratio_share(near + 0.5, digits_data.train) < 0.1


def test_copies_of_an_image_that_the_set_holds_twice_count(digits_data):
    twice = torch.cat([digits_data.train[:20], digits_data.train[:20]])
    assert ratio_share(digits_data.train[:20], twice) == 1


def test_similarity_does_not_depend_on_a_common_offset(digits_data):
    """Features that are all positive would all be alike without centring."""
    a, b = Pixels()(digits_data.test), Pixels()(digits_data.train)
    found, index = nearest_similarity(a, b)
    shifted, shifted_index = nearest_similarity(a + 10, b + 10)
    assert torch.allclose(found, shifted)
    assert torch.equal(index, shifted_index)
    assert found.max() <= 1 + 1e-9
