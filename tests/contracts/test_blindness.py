"""Clean images cannot reach a method that is not entitled to them."""

import pytest
import torch
from trained import CHEAP, IMAGES, LEARNERS, METHODS, fit

from cleanprior.testing.blindness import (
    check_clean_images_are_out_of_reach,
    holds_a_clean_image,
    tensors_reachable,
)
from cleanprior.testing.methods import check_never_reads_x


@pytest.mark.parametrize("name", METHODS)
def test_clean_images_cannot_be_reached_unless_entitled(setting, digits_data, name):
    check_clean_images_are_out_of_reach(setting(name), digits_data.train[:IMAGES])


def test_the_walk_finds_a_hidden_clean_image(digits_data):
    x = digits_data.train[:4].clone()
    rows = {row.tobytes() for row in x.flatten(1).numpy()}
    hidden = {"deep": [lambda: x[1:2]], "view": x[2, 0, 0, :3]}
    for part in ("deep", "view"):
        assert any(holds_a_clean_image(t, rows, 64) for t in tensors_reachable(hidden[part]))


@pytest.mark.parametrize("name", LEARNERS)
def test_canary_weights_do_not_change_when_clean_images_become_nan(setting, name):
    if setting(name)[3] is not None:
        pytest.skip(f"{name} is entitled to clean images")
    check_never_reads_x(name, tuple(CHEAP.get(name, ())))


def test_the_canary_would_sing(setting, digits_data):
    """The oracle, which does read clean images, diverges when they are NaN."""
    method, problem, data, clean = setting("oracle")
    _, report = fit((method, problem, data, torch.full_like(clean, float("nan"))))
    assert report.status == "diverged"
