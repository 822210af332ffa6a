"""What every installed method promises, on every operator that it supports."""

import pytest

from cleanprior import registry
from cleanprior.config import compose
from cleanprior.testing.methods import Cell, check_budget, check_method

CELLS = [(m, o) for m in registry.methods() for o in registry.options("operator")]


@pytest.mark.parametrize(("name", "operator_name"), CELLS)
def test_a_method_learns_samples_and_saves_or_says_why_not(name, operator_name, tmp_path) -> None:
    check_method(Cell.of(name, operator_name), tmp_path)


@pytest.mark.parametrize("name", registry.methods())
def test_every_method_gets_the_same_bytes_and_an_equal_budget(name: str) -> None:
    cell = Cell.of(name, "inpainting")
    assert cell.data.hash == Cell.of("naive", "inpainting").data.hash
    check_budget(cell)


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("sure_score", {"probe": "rademacher", "divergence": "jvp", "detach": True}),
        ("sure_score", {"reduction": "mean", "lambda_schedule": "ramp", "levels": "continuous"}),
        ("gsure", {"w": "coverage", "div_weight": "unbiased", "probe": "rademacher"}),
        ("ambient_tweedie", {"sigma_draw": "truncate", "weight": "edm", "augment": "none"}),
        ("ambient", {"preconditioning": "split", "gate": "none", "resample_further": True}),
        ("em", {"handoff": "float", "lambda_schedule": [], "reuse": False, "stop": "none"}),
        ("ambient_gan", {"loss_function": "hinge", "scale": "none", "critic_sees_params": True}),
    ],
)
def test_what_the_authors_do_is_an_option_and_no_default(name, ours):
    config = compose([f"method={name}"])["method"]
    assert {key: config[key] for key in ours} == ours
