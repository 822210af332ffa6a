"""What several contract tests train."""

import pytest
import torch
from hostile import canary, prior, run  # noqa: F401
from plugins import plugin  # noqa: F401
from trained import CHEAP, assert_same, fit, weights

from cleanprior.testing.training import make_setting


@pytest.fixture
def setting():
    """Everything that training one method needs, on the first problem that it supports."""

    def make(name, seed=0, x=None):
        return make_setting(name, tuple(CHEAP.get(name, ())), seed, x)

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
