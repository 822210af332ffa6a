"""What several contract tests train."""

import pytest
from trained import CHEAP, IMAGES, SHAPE

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
