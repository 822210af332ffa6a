"""What several contract tests train."""

import pytest
import torch
from plugins import plugin  # noqa: F401
from trained import CHEAP, IMAGES, SHAPE, assert_same, fit, weights

from cleanprior.config import build, compose
from cleanprior.data import Measurements


@pytest.fixture
def setting(make_operator, make_problem, digits_data):
    """Everything that training one method needs, on the first problem that it supports."""

    def make(name, seed=0, x=None):
        config = compose([f"method={name}", *CHEAP.get(name, [])])
        for operator_name, sigma in (
            ("inpainting", "0"),
            ("inpainting", "0.1"),
            ("denoising", "0.3"),
        ):
            method = build(config["method"])
            operator = make_operator(operator_name, SHAPE, f"sigma={sigma}")
            problem = make_problem(operator, seed)
            if method.supports(problem) is None:
                break
        else:
            pytest.fail(f"{name} supports none of the problems that are tried")
        x = digits_data.train[:IMAGES].clone() if x is None else x
        data = Measurements.draw(x, operator, 0, "train")
        entitled = {"all": len(x)}.get(method.clean_images, method.clean_images)
        clean = x[: min(entitled, 10)].clone() if entitled else None
        return method, problem, data, clean

    return make


@pytest.fixture(scope="session")
def finished():
    """What :func:`trained` has trained in this session, by method."""
    return {}


@pytest.fixture
def trained(setting, finished):
    """``trained("em")``: what was trained on, networks, report, weights. Trained once: change none.

    Raises:
        AssertionError: A test has changed the weights.
    """

    def make(name):
        if name not in finished:
            built = setting(name)
            with torch.random.fork_rng():
                torch.manual_seed(1)
                networks, report = fit(built)
            finished[name] = built, networks, report, weights(networks)
        built, networks, report, expected = finished[name]
        assert_same(weights(networks), expected)
        return built, networks, report, expected

    return make
