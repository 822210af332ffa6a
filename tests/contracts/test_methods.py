"""What every installed method promises, on every operator that it supports."""

import pytest
import torch

from cleanprior.config import compose, registry
from cleanprior.testing.methods import Cell, check_budget, check_method
from cleanprior.testing.training import fit, make_setting, make_trainer, weights

PRESETS = registry.presets()
# A preset is its method with other values: that it trains is enough.
METHODS = [m for m in registry.methods() if m not in PRESETS]
CELLS = [(m, o) for m in METHODS for o in registry.options("operator")]


@pytest.mark.parametrize(("name", "operator_name"), CELLS)
def test_a_method_learns_samples_and_saves_or_says_why_not(name, operator_name, tmp_path) -> None:
    check_method(Cell.of(name, operator_name), tmp_path)


@pytest.mark.parametrize("name", METHODS)
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


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_its_method_with_other_values_and_trains(name):
    mine, base = (compose([f"method={n}"])["method"] for n in (name, PRESETS[name]))
    assert mine.keys() == base.keys()
    same = ("_target_", "needs", "clean_images")
    assert [mine[key] for key in same] == [base[key] for key in same]
    read = registry.read("method", name)  # as it is listed, without composing
    listed = {k: v for k, v in read.items() if k in mine and "${" not in str(v)}
    assert listed == {k: mine[k] for k in listed}
    changed = {k for k in mine if mine[k] != base[k]} - {"name", "about"}
    assert changed, "it changes nothing"
    cheap = ["method.posterior.steps=3"] if "posterior" in mine else []
    cheap += ["method.gaussian_iterations=1"] if "gaussian_iterations" in mine else []
    networks, report = fit(make_setting(name, tuple(cheap)), trainer=make_trainer(4))
    assert report.status == "done"
    assert all(torch.isfinite(v).all() for v in weights(networks).values())
